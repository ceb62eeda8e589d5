"""Sending and reading a stream, on the embedded Kafka (the real one is in tests/integration)."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from sluice.client import stream
from sluice.doors.kafka import KafkaCluster, KafkaReader, KafkaWriter
from sluice.doors.kafka_topics import EmbeddedKafka
from sluice.streams.command import send
from sluice.streams.files import read_samples
from sluice.streams.formats import FORMATS
from sluice.streams.reader import load_stream, read_slices
from sluice.streams.samples import NONE
from sluice.streams.send import Sender, send_stream
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
        (X, Y - 2),
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
    with pytest.raises(PermanentError, match="kind 'npy' cannot be sent"):
        read_samples(tmp_path / "one.npy")
    with pytest.raises(PermanentError, match=r"no \.npz file"):
        read_samples(tmp_path / "one.npy", kind="npz")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(PermanentError, match=r"no \.npz file"):
        read_samples(tmp_path / "cut.npz")


CSV = "sex, age, smokes, ill\nf,77,2,yes\nm,72.5,2,no\nf,73,3,\n"


def test_a_table_has_categories_and_a_label(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    found = read_samples(tmp_path / "t.csv", label="ill", leave_out=["smokes"])
    assert found.x.tolist() == [[0, 77], [1, 72.5], [0, 73]] and found.x.dtype == np.float32
    assert found.y is not None and (found.y.tolist(), found.labels) == ([1, 0, NONE], ("no", "yes"))
    assert [(f.name, f.categories) for f in found.features] == [("sex", ("f", "m")), ("age", ())]


def test_the_same_table_in_other_kinds_of_files(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    rows = [{"sex": "f", "age": 77, "ill": "yes"}, {"sex": "m", "age": 72.5, "ill": "no"}]
    rows.append({"sex": "f", "age": 73, "ill": None})
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    kinds = {"sex": "string", "age": "double", "ill": ["null", "string"]}
    schema = {"type": "record", "name": "T", "fields": [{"name": n, "type": k} for n, k in kinds.items()]}
    with (tmp_path / "t.avro").open("wb") as file:
        fastavro.writer(file, schema, rows)
    wanted = read_samples(tmp_path / "t.csv", label="ill", leave_out=["smokes"])
    for name in ("t.jsonl", "t.avro"):
        found = read_samples(tmp_path / name, label="ill")
        np.testing.assert_array_equal(found.x, wanted.x)
        np.testing.assert_array_equal(found.y, wanted.y)
        assert (found.features, found.labels) == (wanted.features, wanted.labels)


def test_rows_without_names(tmp_path: Path) -> None:
    (tmp_path / "t.data").write_text("1;0.5\n0;2\n")
    found = read_samples(tmp_path / "t.data", kind="csv", columns=["y", "x"], label="y", delimiter=";")
    assert found.x.tolist() == [[0.5], [2]] and found.y is not None and found.y.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        ("a,b\n1,2,3\n", {}, "row 1 has 3 columns, not 2"),
        ("a,a\n1,2\n", {}, "not all different"),
        ("a,b\n", {}, "no samples"),
        ("a\n1\n", {"label": "a"}, "no columns but the label"),
        ("a,b\n1,2\n", {"label": "c"}, "no column 'c'; there are: a, b"),
        ("", {}, "the file is empty"),
        ("id\n" + "\n".join(f"n{i}" for i in range(1001)), {}, "'id' holds 1001 different texts, such as 'n0'"),
    ],
)
def test_tables_that_cannot_be_sent(tmp_path: Path, text: str, options: dict[str, Any], reason: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(PermanentError, match=reason):
        read_samples(tmp_path / "t.csv", **options)


@pytest.mark.parametrize("name", FORMATS)
def test_a_table_from_standard_input_comes_back(cluster: KafkaCluster, unique: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(CSV)
    app = typer.Typer()
    app.command()(send)
    arguments = ["-", "--topic", unique, "--stream-id", unique, "--format", name, "--label", "ill", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--bootstrap", cluster.bootstrap, "--part", "2/3"], input=CSV)
    assert result.exit_code == 0, result.output
    announcement = parse_state(Announcement, result.stdout)
    assert (announcement.part, announcement.parts) == (2, 3)
    wanted = read_samples(tmp_path / "t.csv", label="ill")
    x, y = load_stream(cluster, announcement)
    order, other = np.argsort(x[:, 1]), np.argsort(wanted.x[:, 1])
    np.testing.assert_array_equal(x[order], wanted.x[other])
    assert wanted.y is not None
    np.testing.assert_array_equal(y[order], wanted.y[other])


def test_record_by_record(cluster: KafkaCluster, unique: str) -> None:
    with Sender(cluster, unique, stream_id=unique, shape=(3, 2), dtype="uint8", format="raw") as sender:
        for sample, label in zip(X[:50], Y, strict=False):
            sender.send(sample, int(label))
    announcement = announced(cluster, unique)
    x, _ = load_stream(cluster, announcement)
    assert sorted(row.tobytes() for row in x) == sorted(row.tobytes() for row in X[:50])
    other = f"{unique}-2"
    with pytest.raises(KeyError), Sender(cluster, other, stream_id=other, shape=(3, 2), dtype="uint8") as sender:
        sender.send(X[0], 0)
        raise KeyError("the user's own")
    with pytest.raises(AssertionError, match="not announced"):
        announced(cluster, other)


class Frame(dict[str, Any]):
    """As much of a DataFrame as is asked for."""

    @property
    def columns(self) -> list[str]:
        return list(self)

    def __getitem__(self, name: str) -> Any:
        class Column:
            def to_numpy(_) -> Any:
                return np.array(dict.__getitem__(self, name), object)

        return Column()


def test_in_one_call(cluster: KafkaCluster, unique: str) -> None:
    announcement = stream(cluster.bootstrap, unique, X, Y, stream_id=unique, format="raw")
    as_sent(announcement, *load_stream(cluster, announcement))
    frame = Frame(size=[1.5, 2.0, 3.0], kind=["a", "b", "a"], good=["no", "yes", None])
    announcement = stream(cluster.bootstrap, f"{unique}-f", frame, "good", stream_id=f"{unique}-f")
    x, y = load_stream(cluster, announcement)
    assert sorted(zip(x.tolist(), y.tolist(), strict=True)) == [([1.5, 0], 0), ([2, 1], 1), ([3, 0], NONE)]
    assert announcement.config["labels"] == ["no", "yes"]
