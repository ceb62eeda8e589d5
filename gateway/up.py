"""Up: what devices send becomes records in Kafka; they get a receipt once Kafka has confirmed it.

One turn: take what came; check it and hand it to the Kafka producer; for what Kafka has confirmed meanwhile,
acknowledge the MQTT message and send the receipt. The number of messages between the first and the last is bounded:
at the bound the network thread waits, so memory stays flat when Kafka is away and devices keep what is theirs.
"""

from __future__ import annotations

import base64
import binascii
import logging
import queue
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

from gateway.settings import GatewaySettings
from sluice.daemon.life import Backoff
from sluice.doors.kafka import Headers, KafkaReader, KafkaWriter, dead_letter_headers
from sluice.doors.mqtt import Incoming, MqttDoor
from sluice.wire import messages, metrics, names
from sluice.wire.errors import PermanentError, TemporaryError, UnknownSchemaError
from sluice.wire.messages import Offload, Outcome
from sluice.wire.state import DeadLetter, DeviceStatus, Receipt, Reported, parse_state

log = logging.getLogger(__name__)

BUSY_WAIT_S = 0.0005
"""How long a turn waits for messages while Kafka owes confirmations."""
TOPICS_AGE_S = 1.0
"""Least time between two looks whether an unknown topic exists by now."""
RECEIPT_MOST = 1000
"""Samples in one receipt: 20 digits each, they stay below the bound of what is state in its size."""


@dataclass(slots=True)
class Delivery:
    """An MQTT message on its way: how many records of it Kafka has not confirmed, whom to receipt then.

    While it is taken apart it counts for one more, so that it is not through before all its records are written.
    """

    incoming: Incoming
    left: int = 1
    receipts: list[tuple[str, str, int]] = field(default_factory=list)


class Up:
    """The way up; `run` is its loop."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.topics = names.MqttTopics(settings.topic_prefix)
        self.writer = KafkaWriter(f"{settings.name}-up", settings.kafka, linger_ms=0)
        self.catalogue = KafkaReader(f"{settings.name}-topics", settings.kafka, f"sluice-{settings.name}-topics")
        share = f"$share/{settings.shared_group}/" if settings.shared_group else ""
        shared = [(share + self.topics.every(k), 1) for k in (*names.OUTCOME_KINDS, names.LETTER_KIND)]
        state = [(self.topics.every(kind), 1) for kind in names.STATE_KINDS]  # retained, which shares do not bring
        self.door = MqttDoor(
            "uplink",
            settings.broker,
            f"{settings.name}-up",
            subscriptions=shared + state,
            on_message=self._take_in,
        )
        self._came: queue.SimpleQueue[Incoming] = queue.SimpleQueue()
        self._places = threading.Semaphore(settings.in_flight)
        self._stop = threading.Event()
        self._stopping = threading.Event()
        self._receipts: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._under_way = 0
        self._known_topics: set[str] = set()
        self._topics_seen = 0.0
        self._held_told: set[str] = set()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; what is not confirmed by then stays with the broker."""
        self._stop = stop
        self._wait_for_topics()
        self.door.start()
        while not stop.is_set():
            try:
                self._carry(self._came.get(timeout=BUSY_WAIT_S if self._under_way else 0.1))
                while not self._came.empty():
                    self._carry(self._came.get())
            except queue.Empty:
                pass  # nothing came; there may be confirmations
            self.writer.poll()
            self._send_receipts()
        self._stopping.set()
        self._places.release()
        self.writer.flush(2.0)
        self._send_receipts()
        self.door.stop()
        self.catalogue.close()

    def _wait_for_topics(self) -> None:
        """The control plane makes the fixed topics; until they are there nothing is taken in."""
        backoff, told = Backoff(), False
        while not self._stop.is_set():
            self.writer.poll()
            try:
                missing = {names.PREDICTIONS, names.DEVICES, names.DEAD_LETTER} - self.catalogue.topic_names()
                if not missing:
                    return
                if not told:
                    log.warning("waiting for %s; the control plane makes the topics", ", ".join(sorted(missing)))
                    told = True
            except TemporaryError:
                told = False  # the door has said that Kafka is away
            self._stop.wait(backoff.wait_s())

    def _take_in(self, incoming: Incoming) -> None:
        """From the network thread: waits for a place."""
        self._places.acquire()
        if self._stopping.is_set():
            self._places.release()  # for the next one that waits here: it stays with the broker as well
            return
        self._came.put(incoming)
        metrics.GATEWAY_IN_FLIGHT.inc()

    def _carry(self, incoming: Incoming) -> None:
        """Hand one message to Kafka, as what it is or as a dead letter."""
        delivery = Delivery(incoming)
        try:
            self._records(delivery)
        except PermanentError as error:
            self._dead_letter(delivery, str(error), incoming.topic, incoming.payload)
        except UnknownSchemaError as error:
            metrics.GATEWAY_HELD.inc()
            if str(error) not in self._held_told:
                self._held_told = {*list(self._held_told)[:99], str(error)}
                log.error("not receipted, the device keeps it: %s", error, extra={"topic": incoming.topic})
        except TemporaryError as error:
            log.warning("told to stop while Kafka is away, the broker keeps the message: %s", error)
            return
        self._one_less(delivery)

    def _one_less(self, delivery: Delivery) -> None:
        delivery.left -= 1
        if delivery.left == 0:
            self._confirmed(delivery)

    def _records(self, delivery: Delivery) -> None:
        """Write the records of a message; nothing is written when any of it is broken."""
        incoming = delivery.incoming
        device, kind = self.topics.split(incoming.topic)
        if kind in names.OUTCOME_KINDS:
            outcomes = messages.decode_all(incoming.payload, self.settings.message_limit_bytes)
            for outcome in outcomes:
                self._check(device, kind, outcome)
            for outcome in outcomes:
                delivery.receipts.append((outcome.device_id, outcome.epoch, outcome.seq))
                topic = self._topic_of(outcome)
                value = incoming.payload if len(outcomes) == 1 else messages.encode(outcome)
                if topic is None:
                    reason = f"no topic for tier {outcome.tier}, model {outcome.model}: it is made by a rollout"
                    self._dead_letter(delivery, reason, incoming.topic, value)
                else:
                    self._write(delivery, topic, value, device)
                    metrics.GATEWAY_UP.labels(kind).inc()
        elif kind in names.STATE_KINDS:
            if incoming.payload:  # an empty one clears a retained message
                kind_of_state: type[Reported] | type[DeviceStatus] = Reported if kind == "reported" else DeviceStatus
                state = parse_state(kind_of_state, incoming.payload)
                if state.device_id != device:
                    raise PermanentError(f"{kind} of {state.device_id!r} on the topic of {device!r}")
                self._write(delivery, names.DEVICES, incoming.payload, f"{device}/{kind}")
        elif kind == names.LETTER_KIND:
            letter = parse_state(DeadLetter, incoming.payload)
            try:
                data = base64.b64decode(letter.data, validate=True)
            except (binascii.Error, ValueError) as error:
                raise PermanentError("dead letter's data is not base64") from error
            self._dead_letter(delivery, letter.reason, letter.origin, data, room="edge-agent", key=device)
        else:
            raise PermanentError(f"nothing is known to do with {kind[:40]!r}")

    @staticmethod
    def _check(device: str, kind: str, outcome: Outcome) -> None:
        if outcome.device_id != device:
            raise PermanentError(f"outcome of {outcome.device_id!r} on the topic of {device!r}")
        if isinstance(outcome, Offload) != (kind == "offload"):
            raise PermanentError(f"a message on topic {kind!r} is none")
        if isinstance(outcome, Offload) and outcome.tier == "edge":
            raise PermanentError("offload is meant for the edge")

    def _topic_of(self, outcome: Outcome) -> str | None:
        """The Kafka topic of an outcome; None if it does not exist. The gateway makes no topic."""
        if not isinstance(outcome, Offload):
            return names.PREDICTIONS
        topic = names.offload_topic(outcome.tier, outcome.model)
        now = time.monotonic()
        if topic not in self._known_topics and now >= self._topics_seen + TOPICS_AGE_S:
            while True:
                try:
                    self._known_topics = self.catalogue.topic_names()
                    break
                except TemporaryError:
                    if self._stop.is_set():
                        raise
                    self.writer.poll(0.1)
            self._topics_seen = time.monotonic()
        return topic if topic in self._known_topics else None

    def _dead_letter(
        self,
        delivery: Delivery,
        reason: str,
        origin: str,
        data: bytes,
        room: str = "gateway",
        key: str | None = None,
    ) -> None:
        log.error("dead letter: %s", reason, extra={"topic": origin})
        metrics.GATEWAY_DEAD.inc()
        headers = dead_letter_headers(reason, room, origin)
        self._write(delivery, names.DEAD_LETTER, data[: self.settings.message_limit_bytes // 2], key, headers)

    def _write(
        self,
        delivery: Delivery,
        topic: str,
        value: bytes,
        key: str | None,
        headers: Headers | None = None,
    ) -> None:
        delivery.left += 1
        self._under_way += 1

        def confirmed(error: Exception | None) -> None:
            self._under_way -= 1
            if error is not None and topic == names.DEAD_LETTER:
                raise RuntimeError(f"a dead letter cannot be written: {error}")
            if error is not None:
                self._dead_letter(delivery, str(error), delivery.incoming.topic, value)
            self._one_less(delivery)

        while True:
            try:
                self.writer.write(topic, value, key=key, headers=headers, on_delivery=confirmed)
            except TemporaryError:
                if self._stop.is_set():
                    raise
                self.writer.poll(0.05)
            except PermanentError as error:  # too large for the client already
                return confirmed(error)
            else:
                return None

    def _confirmed(self, delivery: Delivery) -> None:
        """All of a message is in Kafka: the broker may forget it, the device gets its receipts."""
        self.door.ack(delivery.incoming)
        self._places.release()
        metrics.GATEWAY_IN_FLIGHT.dec()
        for device, epoch, seq in delivery.receipts:
            self._receipts[device, epoch].append(seq)

    def _send_receipts(self) -> None:
        for (device, epoch), seqs in self._receipts.items():
            for i in range(0, len(seqs), RECEIPT_MOST):
                receipt = Receipt(epoch=epoch, seqs=seqs[i : i + RECEIPT_MOST])
                self.door.publish(self.topics.of(device, "receipt"), receipt.model_dump_json().encode())
        self._receipts.clear()
