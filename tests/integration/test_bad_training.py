"""Bad input to trainings, through the service as a process and real Kafka: a clear end of the job, and harm to no one.

Beside each training that goes wrong another one runs at the same time, which has to end well. What a model's own source
may do is in `test_bad_sources`, Kafka that goes in `test_training_away`.
"""

import io
import json
import re
from collections.abc import Iterator
from typing import Any

import fastavro
import numpy as np
import pytest
from confluent_kafka import TopicPartition

from sluice.dev.processes import Processes
from sluice.doors.kafka import KafkaWriter
from sluice.wire.names import CONTROL
from tests.brokers.kafka import Kafka
from tests.integration.training_plane import AT_ONCE, SOURCE, Plane, held, in_two

pytestmark = [pytest.mark.brokers, pytest.mark.tensorflow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with Processes(tmp_path_factory.mktemp("logs")) as processes:
        yield processes


@pytest.fixture(scope="module")
def plane(kafka: Kafka, processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    plane = Plane(processes, tmp_path_factory.mktemp("plane"), kafka)
    yield plane
    plane.client.close()


FIELDS = [{"name": name, "type": "float"} for name in "abcd"]
SCHEMA = {"type": "record", "name": "Reading", "fields": [*FIELDS, {"name": "y", "type": "long"}]}
OTHER = {"type": "record", "name": "Note", "fields": [{"name": "text", "type": "string"}]}
ROW = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}
CSV: dict[str, Any] = {"shape": [4], "labels": ["no", "yes", "maybe"]}


def avro(schema: dict[str, Any], record: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, record)
    return out.getvalue()


def avro_row(label: int) -> tuple[bytes | None, bytes]:
    return None, avro(SCHEMA, ROW | {"y": label})


def csv_row(label: int) -> tuple[bytes | None, bytes]:
    return str(label).encode(), b"0.1,0.2,0.3,0.4"


def json_row(label: int) -> tuple[bytes | None, bytes]:
    return None, json.dumps({"x": [0.1, 0.2, 0.3, 0.4], "y": label}).encode()


def raw_row(label: int) -> tuple[bytes | None, bytes]:
    return str(label).encode(), np.array([0.1, 0.2, 0.3, 0.4], np.float32).tobytes()


AVRO = ("avro", {"shape": [4], "schema": SCHEMA}, avro_row)
BAD: dict[str, tuple[Any, tuple[bytes | None, bytes], str]] = {
    "wrong schema": (
        AVRO,
        (None, avro(OTHER, {"text": "not a reading"})),
        "is no whole Avro record|bytes after its end",
    ),
    "half a record": (AVRO, (None, avro_row(1)[1][:9]), "is no whole Avro record"),
    "NaN in Avro": (AVRO, (None, avro(SCHEMA, ROW | {"b": float("nan"), "y": 1})), "not a finite float32"),
    "row too short": (("csv", CSV, csv_row), (b"1", b"0.1,0.2,0.3"), "has 3 columns, not 4"),
    "not numeric": (("csv", CSV, csv_row), (b"1", b"0.1,0.2,wet,0.4"), "'wet', which is no number"),
    "NaN": (("csv", CSV, csv_row), (b"1", b"0.1,0.2,nan,0.4"), "not a finite float32"),
    "label outside": (("csv", CSV, csv_row), (b"3", b"0.1,0.2,0.3,0.4"), "has label 3, which is no class"),
    "label of no class": (("csv", CSV, csv_row), (b"perhaps", b"0.1,0.2,0.3,0.4"), "has label 'perhaps'"),
    "label beyond the model": (("raw", {"shape": [4]}, raw_row), (b"7", raw_row(0)[1]), "the model tells 3 classes"),
    "raw too short": (("raw", {"shape": [4]}, raw_row), (b"1", b"1234567"), "has 7 bytes, not 16"),
    "no JSON": (("json", {"shape": [4]}, json_row), (None, b'{"x": [0.1, 0.2'), "is no JSON"),
    "JSON without values": (("json", {"shape": [4]}, json_row), (None, b'{"z": 1, "y": 0}'), "has nothing at 'x'"),
}
AT = (30, 31, 77, 90, 119)
"""Offsets of the bad records in a stream of 120."""


@pytest.mark.parametrize("format", sorted({format for (format, _, _), _, _ in BAD.values()}))
def test_records_that_cannot_be_read(plane: Plane, kafka: Kafka, unique: str, format: str) -> None:
    """Of all kinds, in one stream. Without a bound the first one fails the training and is named; within one all are
    left out, and each is kept with its own reason."""
    kinds = [kind for kind in BAD.values() if kind[0][0] == format]
    _, config, good = kinds[0][0]
    bad = {offset: kinds[i % len(kinds)][1:] for i, offset in enumerate(AT)}
    kafka.create_topic(unique)
    writer = KafkaWriter("test", plane.kafka)
    for offset in range(120):
        key, value = bad[offset][0] if offset in bad else good(offset % 3)
        writer.write(unique, value, key=key, partition=0)
    assert writer.flush(30) == 0
    stream = plane.announce(unique, 120, format, config)
    strict, enough = [plane.client.train("good", stream, epochs=2, bad_most=most) for most in (0, len(AT))]
    failed, done = plane.end_of(strict["id"]), plane.end_of(enough["id"])
    assert (failed["state"], done["state"]) == ("failed", "done"), done["reason"]
    first = f"record {unique}:0:{AT[0]} "
    assert failed["reason"].startswith(first) and re.search(bad[AT[0]][1], failed["reason"])
    result = done["result"]
    assert (result["records"], result["bad"]) == (120 - len(AT), len(AT)) and result["first_bad"].startswith(first)
    letters = plane.letters(unique, len(AT))
    assert [(offset, value) for _, offset, _, value in letters] == [(at, pair[1]) for at, (pair, _) in bad.items()]
    for room, offset, why, _ in letters:
        assert room == "streams" and re.search(bad[offset][1], why), why


def test_one_bad_record_more_than_was_allowed(plane: Plane, kafka: Kafka, unique: str) -> None:
    """Of several kinds: the first in the topic partition is named, and those within the bound are kept all the same."""
    kafka.create_topic(unique)
    bad = {30: b"0.1,nan,0.3,0.4", 31: b"0.1,0.2", 77: b"wet"}
    writer = KafkaWriter("test", plane.kafka)
    for i in range(120):
        writer.write(unique, bad.get(i, b"0.1,0.2,0.3,0.4"), key=b"1", partition=0)
    assert writer.flush(30) == 0
    stream = plane.announce(unique, 120, "csv", CSV)
    (ended,) = plane.ends(plane.client.train("good", stream, epochs=2, bad_most=2))
    first = f"record {unique}:0:30 has a value that is not a finite float32"
    assert ended["reason"] == f"3 records are bad, 2 would be left out; the first: {first}"
    assert [(offset, value) for _, offset, _, value in plane.letters(unique, 2)] == [(i, bad[i]) for i in (30, 31)]


def test_announcements_that_cannot_be_read_by(plane: Plane, kafka: Kafka, unique: str) -> None:
    """A schema that is none, a shape without end, a format that there is not: the stream's training says so."""
    kafka.create_topic(unique)
    KafkaWriter("test", plane.kafka).write_all(unique, [raw_row(1)] * 20, 30)
    slices = [f"{unique}:0:0:20"]
    configs: list[tuple[str, dict[str, Any], str]] = [
        ("avro", {"shape": [4], "schema": {"type": "record", "fields": "none"}}, "stream config: format avro needs"),
        ("avro", {"shape": [4], "schema": {"type": "record", "name": "R", "fields": []}}, "has no field 'x'"),
        ("raw", {"shape": [100_000, 100_000]}, "too many values"),
        ("parquet", {"shape": [4]}, "stream format 'parquet' is unknown; known: avro, csv, json, raw"),
    ]
    streams = [plane.announce(f"{unique}-{i}", 20, *config[:2], slices) for i, config in enumerate(configs)]
    ended = plane.ends(*(plane.client.train("good", stream, epochs=2) for stream in streams))
    for one, (_, _, reason) in zip(ended, configs, strict=True):
        assert one["state"] == "failed" and reason in one["reason"]
    for broken in (b"{", b'{"stream_id": "x"}', json.dumps({"slices": ["everything"]}).encode()):
        KafkaWriter("test", plane.kafka).write_all(CONTROL, [(unique, broken)], 30)
    plane.announce(f"{unique}-after", 20, "raw", {"shape": [4]}, slices)
    assert f"{unique}-after" in {stream["stream_id"] for stream in plane.client.streams()}


def test_counts_that_are_not_true(plane: Plane, kafka: Kafka, unique: str) -> None:
    """More than there are places for is refused when it is announced: it would take the memory for it."""
    kafka.create_topic(unique)
    writer = KafkaWriter("test", plane.kafka)
    for _ in range(20):
        writer.write(unique, raw_row(0)[1], key=b"1")
    assert writer.flush(30) == 0
    slices = [f"{unique}:0:0:20"]
    fewer = plane.announce(f"{unique}-19", 19, "raw", {"shape": [4]}, slices)
    (ended,) = plane.ends(plane.client.train("good", fewer, epochs=2))
    assert ended["state"] == "failed" and "more records than the 19 that were announced" in ended["reason"]
    said = {"stream_id": unique, "slices": slices, "format": "raw", "config": {"shape": [4]}, "validation_rate": 0.2}
    message = json.dumps(said | {"count": 10**15}).encode()
    writer.write_all(CONTROL, [(unique, message)], 30)
    (why,) = [why for room, _, why, _ in plane.letters(CONTROL, value=message) if room == "results-writer"]
    assert "1000000000000000 records in slices of 20" in why


def test_what_is_left_of_a_stream_and_a_slice_that_expires_meanwhile(plane: Plane, kafka: Kafka, unique: str) -> None:
    """Real deletion of records: before a training, and while one reads its first epoch."""
    stream = in_two(plane, kafka, unique, 40_000)

    def expire(partition: int, before: int) -> None:
        where = TopicPartition(unique, partition, before)
        kafka.admin().delete_records([where])[where].result(timeout=30)

    def left() -> list[str]:
        found = plane.client.stream(stream)
        return [found["left"], *(piece["left"] for piece in found["slices"])]

    assert left() == ["whole", "whole", "whole"]
    training, go = held(plane, stream)
    expire(1, 39_000)
    assert left() == ["partly expired", "whole", "partly expired"]
    go.touch()
    ended = plane.end_of(training)
    assert ended["state"] == "failed"
    assert ended["reason"].startswith(f"slice {unique}:1:0:40000 is no longer in Kafka: retention left 1000 of 40000")
    assert "is partly expired" in plane.refused(lambda: plane.client.train("good", stream))
    rest = plane.announce(
        f"{unique}-rest", 1500, "raw", {"shape": [4]}, [f"{unique}:0:0:500", f"{unique}:1:39000:1000"]
    )
    (again,) = plane.ends(plane.client.train("good", rest, epochs=2))
    assert (again["state"], again["result"]["records"]) == ("done", 1500), "any slice that is there can be trained on"
    expire(1, 40_000)
    assert left() == ["gone", "whole", "gone"]
    kafka.admin().delete_topics([unique])[unique].result(timeout=30)
    assert left() == ["gone", "gone", "gone"]


def test_a_topic_that_does_not_exist(plane: Plane, unique: str) -> None:
    stream = plane.announce(unique, 5, "raw", {"shape": [4]})
    assert plane.client.stream(stream)["left"] == "gone"
    why = plane.refused(lambda: plane.client.train("good", stream))
    assert f"slice {unique}:0:0:5 of stream '{unique}' is gone" in why


def test_a_topic_that_goes_before_its_training_begins(plane: Plane, kafka: Kafka, unique: str) -> None:
    kafka.create_topic(unique)
    KafkaWriter("test", plane.kafka).write_all(unique, [raw_row(1)] * 20, 30)
    stream = plane.announce(unique, 20, "raw", {"shape": [4]})
    waiting = in_line(plane)
    training = plane.client.train("good", stream)["id"]
    kafka.admin().delete_topics([unique])[unique].result(timeout=30)
    for one in waiting:
        plane.client.cancel_training(one)
    ended = plane.end_of(training)
    assert ended["state"] == "failed" and f"slice {unique}:0:0:20 is not in Kafka" in ended["reason"]


def in_line(plane: Plane) -> list[str]:
    """Trainings that take all places there are, until they are cancelled."""
    plane.client.add_model(
        "waits", "import sys, time\nif 'cloud.training.job' in sys.modules:\n    time.sleep(600)\n" + SOURCE
    )
    found = [plane.client.train("waits", plane.good)["id"] for _ in range(AT_ONCE)]
    for one in found:
        plane.until(one, lambda job: job["state"] == "running")
    return found
