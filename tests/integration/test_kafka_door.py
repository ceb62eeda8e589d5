"""The door to Kafka, where only a real broker can show what it promises."""

import pytest

from sluice.doors.kafka import KafkaCluster, KafkaReader
from tests.brokers.kafka import Kafka
from tests.integration.edge_support import until

QUICK = {"session.timeout.ms": "1500", "heartbeat.interval.ms": "300"}


@pytest.mark.brokers
@pytest.mark.timeout(120)
def test_a_member_that_lives_and_does_not_read_holds_the_group_up_for_so_long_only(kafka: Kafka, unique: str) -> None:
    """Its heartbeats go on. By default it is a minute, and the test does not wait that long."""
    topic, cluster = kafka.create_topic(unique, 2), KafkaCluster(bootstrap=kafka.bootstrap, options=QUICK)
    silent, other = (KafkaReader(name, cluster, unique, silent_s=3.0) for name in ("silent", "other"))
    both = {(topic, 0), (topic, 1)}

    def has(reader: KafkaReader, share: set[tuple[str, int]]) -> bool:
        reader.read(1, 0.1)
        return reader.assignment() == share

    silent.subscribe([topic])
    until(lambda: has(silent, both))
    other.subscribe([topic])
    until(lambda: has(other, both), 20)
    until(lambda: not has(silent, both))  # it reads again, and learns that they are not its own
    other.close()
    silent.close()
