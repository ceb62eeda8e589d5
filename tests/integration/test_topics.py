"""The topics that the control plane makes, on a real Kafka."""

import time

import confluent_kafka as ck
import pytest

from sluice.doors.kafka import KafkaCluster, KafkaReader
from sluice.doors.kafka_topics import ensure_topics
from tests.brokers.kafka import Kafka
from tests.integration.edge_support import until

pytestmark = [pytest.mark.brokers]


@pytest.mark.parametrize("days", [3, -30])
def test_a_record_is_taken_and_dated_whatever_its_writers_clock_says(kafka: Kafka, unique: str, days: int) -> None:
    cluster = KafkaCluster(bootstrap=kafka.bootstrap)
    ensure_topics(cluster, {unique: 1})
    refused: list[object] = []
    producer = ck.Producer({"bootstrap.servers": kafka.bootstrap, "log_level": 0})
    wrong_ms = int((time.time() + days * 86_400) * 1000)
    producer.produce(unique, b"value", timestamp=wrong_ms, on_delivery=lambda error, _: refused.append(error))
    producer.flush(30)
    assert refused == [None]
    reader = KafkaReader("test", cluster, unique)
    reader.assign_all(unique)
    (record,) = until(lambda: reader.read(1, 1.0))
    reader.close()
    assert abs(record.timestamp_ms / 1000 - time.time()) < 3600
