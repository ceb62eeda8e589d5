"""Sending and reading a stream, on the embedded Kafka (the real one is in tests/integration)."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from sluice.doors.kafka import KafkaCluster, KafkaReader, KafkaWriter
from sluice.doors.kafka_topics import EmbeddedKafka
from sluice.streams.command import send
from sluice.streams.files import read_samples
from sluice.streams.reader import load_stream, read_slices
from sluice.streams.send import send_stream
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.names import CONTROL
from sluice.wire.slices import Slice, parse_slice
from sluice.wire.state import Announcement, parse_state

X = np.random.default_rng(0).integers(0, 255, (500, 3, 2), np.uint8)
Y = np.arange(500) % 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    server = EmbeddedKafka()
    yield KafkaCluster(bootstrap=server.bootstrap)
    del server


def as_sent(announcement: Announcement, x: Any, y: Any) -> None:
    """The same pairs, whatever order the topic partitions gave them."""
    want = sorted((sample.tobytes(), int(label)) for sample, label in zip(X, Y, strict=True))
    assert sorted((sample.tobytes(), int(label)) for sample, label in zip(x, y, strict=True)) == want
    assert announcement.count == len(x)


@pytest.mark.parametrize("name", ["avro", "raw"])
def test_a_stream_comes_back(cluster: KafkaCluster, unique: str, name: str) -> None:
    seen: list[tuple[int, int]] = []
    announcement = send_stream(
        cluster,
        unique,
        X,
        Y,
        stream_id=unique,
        format=name,
        validation_rate=0.25,
        labels=list("abcd"),
        progress=lambda *at: seen.append(at),
    )
    assert seen[-1] == (500, 500)
    x, y = load_stream(cluster, announcement, batch=70)
    as_sent(announcement, x, y)
    again, _ = load_stream(cluster, announcement)
    np.testing.assert_array_equal(x, again)
    assert announced(cluster, unique) == announcement


def announced(cluster: KafkaCluster, stream_id: str) -> Announcement:
    reader = KafkaReader("test", cluster, "test")
    reader.assign_all(CONTROL)
    try:
        for _ in range(50):
            for record in reader.read(100, 0.2):
                if record.key == stream_id.encode():
                    return parse_state(Announcement, record.value)
    finally:
        reader.close()
    raise AssertionError("not announced")


def test_another_writer_does_no_harm(cluster: KafkaCluster, unique: str) -> None:
    """Foreign records lie before, between and after; the slices leave them out."""
    writer = KafkaWriter("other", cluster)
    writer.write_all(unique, [(None, b"foreign")] * 20, 10)

    def meddle(done: int, _total: int) -> None:
        if done < 500:
            for partition in range(4):
                writer.write(unique, b"foreign", partition=partition)
            writer.flush(10)

    slow = KafkaCluster(bootstrap=cluster.bootstrap, options={"queue.buffering.max.messages": "50"})
    announcement = send_stream(slow, unique, X, Y, stream_id=unique, progress=meddle)
    writer.write_all(unique, [(None, b"foreign")] * 20, 10)
    assert all(parse_slice(text).length for text in announcement.slices)
    as_sent(announcement, *load_stream(cluster, announcement))


def test_kafka_that_goes_away_while_reading_is_temporary(unique: str) -> None:
    server = EmbeddedKafka()
    cluster = KafkaCluster(bootstrap=server.bootstrap)
    announcement = send_stream(cluster, unique, X, None, stream_id=unique)
    whole = parse_slice(announcement.slices[0])
    pieces = [Slice(unique, whole.partition, whole.offset + at, 1) for at in (0, 1)]
    batches = read_slices(cluster, pieces, stalled_s=1)
    assert len(next(batches)) == 1
    del server
    with pytest.raises(TemporaryError, match="gave nothing for 1 s at offset"):
        list(batches)


def test_data_that_cannot_be_sent(cluster: KafkaCluster, unique: str) -> None:
    for x, y in [
        (X[:0], None),
        (X, Y[:10]),
        (X, Y - 1),
        (np.full((2, 2), np.nan, np.float32), None),
    ]:
        with pytest.raises(PermanentError):
            send_stream(cluster, unique, x, y, stream_id=unique)
    with pytest.raises(PermanentError, match="stream name"):
        send_stream(cluster, unique, X, Y, stream_id="No Name")


def test_kafka_that_is_away_is_temporary() -> None:
    with pytest.raises(TemporaryError):
        list(read_slices(KafkaCluster(bootstrap="127.0.0.1:1"), [parse_slice("t:0:0:1")], stalled_s=1))


def test_a_broken_record_is_named(cluster: KafkaCluster, unique: str) -> None:
    announcement = send_stream(cluster, unique, X, Y, stream_id=unique)
    piece = parse_slice(announcement.slices[0])
    writer = KafkaWriter("other", cluster)
    writer.write(unique, b"\xff", partition=piece.partition)
    writer.flush(10)
    spoilt = announcement.model_copy(update={"slices": [f"{unique}:{piece.partition}:{piece.end}:1"], "count": 1})
    with pytest.raises(PermanentError, match=f"record {unique}:{piece.partition}:{piece.end} is no whole Avro"):
        load_stream(cluster, spoilt)


def test_a_slice_beyond_the_end_is_refused(cluster: KafkaCluster, unique: str) -> None:
    announcement = send_stream(cluster, unique, X, Y, stream_id=unique)
    piece = parse_slice(announcement.slices[0])
    longer = announcement.model_copy(update={"slices": [f"{unique}:{piece.partition}:{piece.offset}:100000"]})
    with pytest.raises(PermanentError, match="goes beyond"):
        load_stream(cluster, longer)
    fewer = announcement.model_copy(update={"count": 501})
    with pytest.raises(PermanentError, match="500 records where 501 were announced"):
        load_stream(cluster, fewer)


def test_the_command(cluster: KafkaCluster, unique: str, tmp_path: Path) -> None:
    file = tmp_path / "d.npz"
    np.savez(file, x=X, y=Y, labels=np.array(list("abcd")))
    app = typer.Typer()
    app.command()(send)
    arguments = [str(file), "--topic", unique, "--stream-id", unique, "--format", "raw"]
    arguments += ["--bootstrap", cluster.bootstrap, "--validation-rate", "0.3", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    announcement = parse_state(Announcement, result.stdout)
    assert (announcement.count, announcement.validation_rate) == (500, 0.3)
    assert announcement.config["labels"] == list("abcd")
    as_sent(announcement, *load_stream(cluster, announcement))


def test_help_needs_no_extra() -> None:
    """Looking at the command imports no broker client and no TensorFlow."""
    code = "import sys, sluice.streams.command, partitioner.command as c\n"
    code += "print([m for m in ('confluent_kafka', 'tensorflow', 'keras', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"z": X}, "no array `x`"),
        ({"x": X, "y": Y[:3]}, "not 500 whole numbers"),
        ({"x": X, "y": Y * 0.5}, "not 500 whole numbers"),
        ({"x": np.array(["a"])}, "is not one of"),
        ({"x": np.array([None])}, "no .npz file of plain arrays"),
    ],
)
def test_files_that_are_no_samples(tmp_path: Path, arrays: dict[str, Any], reason: str) -> None:
    file = tmp_path / "d.npz"
    np.savez(file, **arrays)
    with pytest.raises(PermanentError, match=reason):
        read_samples(file)


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="cannot be read"):
        read_samples(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text(json.dumps({"x": 1}))
    with pytest.raises(PermanentError, match=r"no \.npz file"):
        read_samples(tmp_path / "text.npz")
    np.save(tmp_path / "one.npy", X)
    with pytest.raises(PermanentError, match=r"no \.npz file"):
        read_samples(tmp_path / "one.npy")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(PermanentError, match=r"no \.npz file"):
        read_samples(tmp_path / "cut.npz")
