"""All Prometheus metrics of Sluice, by name: `sluice_<room>_<what>_<unit>[_total]`.

A daemon exposes them when its `metrics_port` is set. Defining them in one place keeps names unique and findable.
"""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_LATENCY_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

DOOR_DOWN = Counter("sluice_door_down_total", "Times that a broker went away", ["door"])

EDGE_READINGS = Counter("sluice_edge_readings_total", "Readings taken in")
EDGE_REPEATS = Counter("sluice_edge_readings_repeated_total", "Readings dropped as repeats of their source_id")
EDGE_BAD_READINGS = Counter("sluice_edge_readings_bad_total", "Readings that could not be read")
EDGE_INTAKE_DROPPED = Counter(
    "sluice_edge_intake_dropped_total", "Readings and windows that were dropped, counted and not refused", ["what"]
)
EDGE_OUTCOMES = Counter("sluice_edge_outcomes_total", "Outcomes put into the outbox", ["kind"])
EDGE_ANSWERS = Counter("sluice_edge_answers_total", "Answers published on the sensor broker", ["tier", "status"])
EDGE_ANSWER_REPEATS = Counter("sluice_edge_answers_repeated_total", "Answers from above that were not shown again")
EDGE_OUTBOX = Gauge("sluice_edge_outbox_entries", "Outcomes that nobody has receipted yet")
EDGE_OUTBOX_BYTES = Gauge("sluice_edge_outbox_bytes", "Bytes of these outcomes")
EDGE_DROPPED = Counter("sluice_edge_outbox_dropped_total", "Outcomes dropped because the outbox was full")
EDGE_BYTES_UP = Counter("sluice_edge_uplink_bytes_total", "Payload bytes of outcomes sent up")

GATEWAY_UP = Counter("sluice_gateway_outcomes_total", "Outcomes brought to Kafka", ["kind"])
GATEWAY_DOWN = Counter("sluice_gateway_answers_total", "Answers brought to devices")
GATEWAY_DOWN_HELD = Counter(
    "sluice_gateway_answers_held_total", "Times that a topic partition of answers was held for an unknown schema"
)
GATEWAY_DOWN_BAD = Counter("sluice_gateway_answers_bad_total", "Predictions passed by because they could not be read")
GATEWAY_DOWN_REFUSED = Counter("sluice_gateway_answers_refused_total", "Answers passed by that the broker refused")
GATEWAY_RETENTION = Counter(
    "sluice_gateway_retention_lost_total", "Records that retention took before they were passed on"
)
GATEWAY_DEAD = Counter("sluice_gateway_dead_letters_total", "Messages that became dead letters")
GATEWAY_HELD = Counter("sluice_gateway_held_total", "Messages of an unknown schema, left with the device")
GATEWAY_IN_FLIGHT = Gauge("sluice_gateway_in_flight_messages", "Messages taken in and not yet confirmed by Kafka")
GATEWAY_IN_FLIGHT_BYTES = Gauge("sluice_gateway_in_flight_bytes", "Payload bytes of these messages")
GATEWAY_RECEIPTS = Counter("sluice_gateway_receipts_total", "Samples receipted to their devices")
GATEWAY_REFUSED = Counter("sluice_gateway_refused_total", "Records that Kafka or its client refused for good")
GATEWAY_AGAIN = Counter("sluice_gateway_written_again_total", "Records written again because Kafka could not take them")
GATEWAY_KAFKA_S = Histogram(
    "sluice_gateway_kafka_seconds", "Slowest confirmation of each turn, from taking up to confirmed", buckets=_LATENCY_S
)

STAGE_SAMPLES = Counter("sluice_stage_samples_total", "Samples worked on", ["tier", "model"])
STAGE_OUTCOMES = Counter("sluice_stage_outcomes_total", "Outcomes produced", ["tier", "kind"])
STAGE_EXPIRED = Counter("sluice_stage_expired_total", "Samples finalised because their time was over", ["tier"])
STAGE_DEAD = Counter("sluice_stage_dead_letters_total", "Records that became dead letters", ["tier"])
STAGE_HELD = Counter("sluice_stage_held_total", "Times that a topic partition was held for an unknown schema", ["tier"])
STAGE_BATCH = Histogram("sluice_stage_batch_records", "Records of one batch", ["tier"], buckets=_BATCH)
STAGE_RETENTION = Counter(
    "sluice_stage_retention_lost_total", "Records that retention took before they were worked on", ["tier"]
)
STAGE_BATCH_S = Histogram("sluice_stage_batch_seconds", "Time of one batch", ["tier"], buckets=_LATENCY_S)

CLOUD_CERTIFICATE_BROKEN = Gauge(
    "sluice_cloud_certificate_broken", "1: audits say that the promise is not kept", ["bundle", "operating_point"]
)
CLOUD_CERTIFICATE_WEALTH = Gauge(
    "sluice_cloud_certificate_wealth_ratio",
    "What a bet against the promise made of 1 at most, over what it takes to believe it broken",
    ["bundle", "operating_point"],
)

RESULTS_ROWS = Counter("sluice_results_predictions_total", "Predictions written or folded")
RESULTS_REPEATS = Counter("sluice_results_repeated_total", "Predictions of a sample that was already final")
RESULTS_AUDITS = Counter("sluice_results_audits_total", "Audits written or counted as repeats")
RESULTS_LABELS = Counter("sluice_results_labels_total", "Late labels written or counted as repeats")
RESULTS_DEAD = Counter("sluice_results_dead_letters_total", "Records that became dead letters")
RESULTS_RETENTION = Counter("sluice_results_retention_lost_total", "Records that retention took before they were read")
