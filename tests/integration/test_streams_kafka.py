"""Streams on real Kafka: what retention took is named, and gaps between offsets neither hang nor count."""

import itertools
import time
from collections.abc import Iterator

import numpy as np
import pytest
import typer
from confluent_kafka import Producer, TopicPartition
from typer.testing import CliRunner

from sluice.doors.kafka import KafkaCluster, KafkaReader, KafkaWriter, Record
from sluice.streams.command import announce
from sluice.streams.reader import load_stream, read_slices, read_stream
from sluice.streams.send import Sender, announce_slices, send_stream
from sluice.wire.errors import PermanentError
from sluice.wire.slices import Slice, parse_slice
from sluice.wire.state import Announcement, parse_state
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


@pytest.fixture(scope="module")
def own() -> Iterator[Kafka]:
    """A Kafka that may be killed, and that compacts at once."""
    with Kafka(properties={"log.cleaner.backoff.ms": "100"}) as kafka:
        yield kafka


def everything(cluster: KafkaCluster, topic: str) -> list[list[Record]]:
    """All records of a topic, by topic partition."""
    reader = KafkaReader("all", cluster, "all")
    try:
        places = [(topic, number) for number in range(reader.partitions(topic))]
        ends = [reader.watermarks(place)[1] for place in places]
    finally:
        reader.close()
    whole = [[Slice(*place, 0, end)] for place, end in zip(places, ends, strict=True)]
    return [list(itertools.chain(*read_slices(cluster, one))) for one in whole]


def test_kafka_restarting_while_a_stream_is_sent(own: Kafka, unique: str) -> None:
    """Each record is there once, and those of a topic partition in the order in which they were sent."""
    cluster = cluster_of(own)
    with Sender(cluster, unique, stream_id=unique, shape=(4,), format="raw", partitions=2) as sender:
        for i, (row, label) in enumerate(zip(X, Y, strict=True)):
            sender.send(row, int(label))
            if i == 1000:
                own.kill()
            elif i == 2000:
                own.start()
    at = {row.tobytes(): i for i, row in enumerate(X)}
    orders = [[at[record.value] for record in records] for records in everything(cluster, unique)]
    assert sorted(itertools.chain(*orders)) == list(range(3000)), "none lost, none twice"
    assert all(order == sorted(order) for order in orders)


def test_gaps_that_compaction_left(own: Kafka, unique: str) -> None:
    """A slice of them is read to its end, an empty part of one is no records; a stream counts what is there."""
    cluster = cluster_of(own)
    settings = {"cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.01"}
    own.create_topic(unique, config=settings)
    writer = KafkaWriter("test", cluster)
    for i in range(300):
        writer.write(unique, f"{i},0".encode(), key=str(i % 10))
    assert writer.flush(30) == 0
    whole = parse_slice(f"{unique}:0:0:300")
    deadline = time.monotonic() + 60
    while len(found := list(itertools.chain(*read_slices(cluster, [whole])))) != 10:
        assert time.monotonic() < deadline, len(found)
        writer.write_all(unique, [("more", b"0,0")], 10)  # a segment is closed when the next one begins
    assert [record.offset for record in found] == list(range(290, 300))
    assert list(read_slices(cluster, [parse_slice(f"{unique}:0:5:200")])) == []
    config: dict[str, object] = {"shape": [2]}
    said = announce_slices(cluster, [str(whole)], stream_id=unique, format="csv", config=config)
    x, y = load_stream(cluster, said)
    assert x[:, 0].tolist() == list(range(290, 300)) and y.tolist() == list(range(10))
    with pytest.raises(PermanentError, match="has 10 records where 300 were announced"):
        load_stream(cluster, said.model_copy(update={"count": 300}))


def test_records_that_are_there_already_are_announced(kafka: Kafka, unique: str) -> None:
    """As TensorFlow's tutorial writes them, and to two topic partitions; nothing is sent again."""
    cluster = cluster_of(kafka)
    kafka.create_topic(unique, partitions=2)
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for row, label in zip(X[:200], Y, strict=False):
        producer.produce(unique, ",".join(map(str, row)).encode(), key=f"{label:.1f}".encode())
    producer.flush(30)
    arguments = [unique, "--stream-id", unique, "--format", "csv", "--config", '{"shape": [4]}', "--json"]
    app = typer.Typer()
    app.command()(announce)
    result = CliRunner().invoke(app, [*arguments, "--bootstrap", kafka.bootstrap], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    said = parse_state(Announcement, result.stdout)
    assert (said.count, said.deployment, len(said.slices)) == (200, None, 2)
    x, y = load_stream(cluster, said)
    order, wanted = np.lexsort(x.T), np.lexsort(X[:200].T)
    np.testing.assert_allclose(x[order], X[:200][wanted], rtol=1e-6)
    np.testing.assert_array_equal(y[order], Y[:200][wanted])

    def refused(slices: list[str], config: dict[str, object]) -> str:
        with pytest.raises(PermanentError) as caught:
            announce_slices(cluster, slices, stream_id=unique, format="csv", config=config)
        return str(caught.value)

    assert f"record {unique}:0:0 has 4 columns, not 3" in refused([unique], {"shape": [3]})
    assert "goes beyond" in refused([f"{unique}:0:0:500"], {"shape": [4]})
    assert "no topic none-such" in refused(["none-such"], {"shape": [4]})
    kafka.create_topic(f"{unique}-empty")
    assert "there are no records" in refused([f"{unique}-empty"], {"shape": [4]})


def test_what_is_sent_is_compressed(own: Kafka, unique: str) -> None:
    """On Kafka's own disk: as it is by default, and as it is wished."""

    def bytes_of(compression: str) -> int:
        topic = f"{unique}-{compression}"
        x = np.zeros((2000, 100), np.float32)
        send_stream(cluster_of(own), topic, x, None, stream_id=topic, format="raw", compression=compression)
        return sum(file.stat().st_size for file in (own.data / f"{topic}-0").glob("*.log"))

    whole = bytes_of("none")
    assert whole > 2000 * 100 * 4
    assert all(bytes_of(name) < whole / 4 for name in ("gzip", "snappy", "lz4", "zstd"))
