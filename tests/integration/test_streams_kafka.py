"""Streams on real Kafka: what retention took is named, and gaps between offsets neither hang nor count."""

import numpy as np
import pytest
from confluent_kafka import Producer, TopicPartition

from sluice.doors.kafka import KafkaCluster
from sluice.streams.reader import load_stream, read_slices, read_stream
from sluice.streams.send import send_stream
from sluice.wire.errors import PermanentError
from sluice.wire.slices import parse_slice
from tests.brokers.kafka import Kafka

pytestmark = pytest.mark.brokers

X = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32)
Y = np.arange(3000) % 5


def cluster_of(kafka: Kafka) -> KafkaCluster:
    return KafkaCluster(bootstrap=kafka.bootstrap)


def test_a_stream_over_several_topic_partitions(kafka: Kafka, unique: str) -> None:
    cluster = cluster_of(kafka)
    announcement = send_stream(cluster, unique, X, Y, stream_id=unique, format="raw", partitions=3)
    pieces = [parse_slice(text) for text in announcement.slices]
    assert {piece.partition for piece in pieces} == {0, 1, 2}
    x, y = load_stream(cluster, announcement)
    assert y is not None
    order, wanted = np.lexsort(x.T), np.lexsort(X.T)
    np.testing.assert_array_equal(x[order], X[wanted])
    np.testing.assert_array_equal(y[order], Y[wanted])
    np.testing.assert_array_equal(x, load_stream(cluster, announcement, batch=17)[0])


def test_an_expired_slice_says_what_is_left(kafka: Kafka, unique: str) -> None:
    cluster = cluster_of(kafka)
    announcement = send_stream(cluster, unique, X, Y, stream_id=unique)
    kafka.admin().delete_records([TopicPartition(unique, 0, 1000)])[TopicPartition(unique, 0)].result(timeout=30)
    with pytest.raises(PermanentError, match=f"{unique}:0:0:3000 is no longer in Kafka: retention left 2000 of 3000"):
        load_stream(cluster, announcement)
    kafka.admin().delete_topics([unique])[unique].result(timeout=30)
    with pytest.raises(PermanentError, match=unique):
        load_stream(cluster, announcement)


def test_a_slice_that_expires_while_it_is_read_says_what_is_left(kafka: Kafka, unique: str) -> None:
    cluster = cluster_of(kafka)
    announcement = send_stream(cluster, unique, X, Y, stream_id=unique, format="raw", partitions=2)
    second = parse_slice(announcement.slices[1])
    batches = read_stream(cluster, announcement, batch=10)
    next(batches)
    kept = second.end - 700
    where = TopicPartition(unique, second.partition, kept)
    kafka.admin().delete_records([where])[where].result(timeout=30)
    with pytest.raises(PermanentError, match=f"{second} is no longer in Kafka: retention left 700 of {second.length}"):
        list(batches)


def test_a_topic_that_never_was(kafka: Kafka, unique: str) -> None:
    with pytest.raises(PermanentError, match=f"slice {unique}:0:0:5"):
        list(read_slices(cluster_of(kafka), [parse_slice(f"{unique}:0:0:5")]))


def test_markers_of_transactions_are_stepped_over(kafka: Kafka, unique: str) -> None:
    """A committed, an aborted and a committed transaction: 3 + 3 records, 3 markers, nothing of the aborted."""
    kafka.create_topic(unique)
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": unique})
    producer.init_transactions(30)
    for round_, commits in enumerate((True, False, True)):
        producer.begin_transaction()
        for i in range(3):
            producer.produce(unique, f"{round_}{i}".encode())
        producer.flush(30)
        if commits:
            producer.commit_transaction(30)
        else:
            producer.abort_transaction(30)
    whole = parse_slice(f"{unique}:0:0:12")
    records = [record for batch in read_slices(cluster_of(kafka), [whole], stalled_s=10) for record in batch]
    assert [record.value for record in records] == [b"00", b"01", b"02", b"20", b"21", b"22"]
    part = parse_slice(f"{unique}:0:3:5")  # marker, three aborted, marker: no record at all
    assert list(read_slices(cluster_of(kafka), [part], stalled_s=10)) == []


def test_an_open_transaction_is_not_there_yet(kafka: Kafka, unique: str) -> None:
    kafka.create_topic(unique)
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": unique})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(unique, b"not yet")
    producer.flush(30)
    with pytest.raises(PermanentError, match="goes beyond 0, where what is committed"):
        list(read_slices(cluster_of(kafka), [parse_slice(f"{unique}:0:0:1")], stalled_s=2))
    producer.abort_transaction(30)
