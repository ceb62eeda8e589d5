"""The door to Kafka, where only a real broker can show what it promises."""

import confluent_kafka as ck
import pytest

from sluice.doors import kafka_stalls
from sluice.doors.kafka import KafkaCluster, KafkaReader, KafkaWriter, Record
from sluice.doors.kafka_transactions import KafkaTransactions
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


@pytest.mark.brokers
@pytest.mark.timeout(120)
@pytest.mark.parametrize("skips", [True, False])
def test_offsets_that_stay_pending_for_ever_hold_up_nobody_for_good(
    kafka: Kafka, unique: str, skips: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Kafka may keep them after it was killed: here they are of a transaction that nobody ends."""
    monkeypatch.setattr(kafka_stalls, "LOOK_EVERY_S", 0.5)
    topic, cluster = kafka.create_topic(unique, 2), KafkaCluster(bootstrap=kafka.bootstrap, options=QUICK)
    writer = KafkaWriter("devices", cluster)
    for place in range(10):
        writer.write(topic, str(place).encode(), partition=0)
    assert writer.flush(30) == 0
    first = KafkaReader("first", cluster, unique)
    first.assign({(topic, 0): 0})
    first.commit({(topic, 0): 4})
    hanging = KafkaTransactions("hanging", cluster, unique, 60.0)
    hanging.init()
    hanging.begin()
    hanging.write(topic, b"of the transaction", partition=1)
    offsets = [ck.TopicPartition(topic, 0, 7)]
    hanging._producer.send_offsets_to_transaction(offsets, first.group(), 30)
    first.close()
    reader = KafkaReader("reader", cluster, unique, skips_pending=skips)
    reader.subscribe([topic])
    found: list[Record] = []

    def read() -> bool:
        writer.write(topic, b"more", partition=0)
        writer.flush(30)
        found.extend(reader.read(1, 0.1))
        return bool(found)

    if skips:
        until(read)
        assert (found[0].partition, found[0].offset) == (0, 4)
    else:
        with pytest.raises(RuntimeError, match="stands still"):
            until(read)
    reader.close()
    hanging.abort()


@pytest.mark.brokers
@pytest.mark.timeout(120)
def test_what_a_reader_has_committed_it_does_not_read_again_although_kafka_forgot(kafka: Kafka, unique: str) -> None:
    """A killed broker may: here somebody puts the group back while nobody is in it. Others' progress counts as ever."""
    topic, cluster = kafka.create_topic(unique, 2), KafkaCluster(bootstrap=kafka.bootstrap, options=QUICK)
    writer = KafkaWriter("devices", cluster)
    for place in range(20):
        writer.write(topic, str(place).encode(), partition=place % 2)
    assert writer.flush(30) == 0
    reader = KafkaReader("reader", cluster, unique)
    reader.subscribe([topic])
    until(lambda: reader.read(1, 0.1))
    assert reader.commit({(topic, 0): 7, (topic, 1): 2})
    reader._consumer.unsubscribe()
    back = [ck.TopicPartition(topic, 0, 3), ck.TopicPartition(topic, 1, 5)]
    group = ck.ConsumerGroupTopicPartitions(unique, back)

    def put_back() -> bool:
        """Whether that went, which it does not while the reader is taken for a member."""
        (done,) = kafka.admin().alter_consumer_group_offsets([group]).values()
        return all(place.error is None for place in done.result(30).topic_partitions)

    until(put_back)
    reader.subscribe([topic])
    firsts: dict[int, int] = {}

    def both() -> bool:
        for record in reader.read(50, 0.1):
            firsts.setdefault(record.partition, record.offset)
        return len(firsts) == 2

    until(both)
    assert firsts == {0: 7, 1: 5}
    reader.close()
