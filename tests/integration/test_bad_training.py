"""Bad input to trainings, through the service as a process and real Kafka: a clear end of the job, and harm to no one.

Beside each training that goes wrong another one runs at the same time, which has to end well.
"""

import io
import json
import re
import secrets
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from confluent_kafka import TopicPartition

from sluice.client import Client
from sluice.dev.processes import Process, Processes
from sluice.doors.kafka import KafkaCluster, KafkaReader, KafkaWriter
from sluice.streams.send import send_stream
from sluice.wire.errors import PermanentError
from sluice.wire.names import CONTROL, DEAD_LETTER
from tests.brokers.kafka import Kafka

pytestmark = [pytest.mark.brokers, pytest.mark.tensorflow, pytest.mark.timeout(600)]

WAIT_S = 120.0
SOURCE = "x = keras.Input((4,))\nmodel = keras.Model(x, layers.Dense(3, name='only')(x))\n"
IN_TRAINING = "import os, sys, time\nif 'cloud.training.job' in sys.modules:\n    {}\n"
"""Before a model's source: what it does when it is trained, and not when it is checked."""
HELD = """
import os, sys, time
if "cloud.training.job" in sys.modules:
    from sluice.streams.fed import Fed
    whole = Fed.__iter__
    def held(self):
        for number, batch in enumerate(whole(self)):
            yield batch
            while number == 0 and not os.path.exists("go"):
                time.sleep(0.05)
    Fed.__iter__ = held
"""
"""Before a model's source: the training waits, with the first batch of its stream read, for a file in its folder."""


class Plane:
    """A running control plane, service and results writer, and an admin's client of it."""

    def __init__(self, processes: Processes, folder: Path, kafka: Kafka, **settings: str) -> None:
        self.folder = folder
        self.kafka = KafkaCluster(bootstrap=kafka.bootstrap)
        environment = {"CLOUD_DATA": str(folder / "data"), "CLOUD_PORT": "0", "CLOUD_KAFKA__BOOTSTRAP": kafka.bootstrap}
        environment |= {"CLOUD_JOBS_AT_ONCE": "4", "CLOUD_JOB_THREADS": "1"} | settings
        self.service: Process = processes.start("cloud", ["cloud"], environment)
        processes.start("results-writer", ["results-writer"], environment).wait_ready(WAIT_S)
        self.url = f"http://127.0.0.1:{self.service.wait_ready(WAIT_S)['port']}"
        token = next(line for line in self.service.log.read_text().splitlines() if "Admin token" in line).split()[-1]
        self.client = Client(self.url, token)
        self.client.add_model("good", SOURCE)
        random = np.random.default_rng(0)
        x, y = random.normal(size=(300, 4)).astype(np.float32), random.integers(0, 3, 300)
        good = f"good-{secrets.token_hex(4)}"
        send_stream(self.kafka, good, x, y, stream_id=good)
        self.good = self.known(good)

    def known(self, stream_id: str) -> str:
        """The stream, when the service knows of it."""
        self.client.stream(stream_id, wait_s=WAIT_S)
        return stream_id

    def announce(
        self, topic: str, records: int, format: str, config: dict[str, Any], slices: list[str] | None = None
    ) -> str:
        said: dict[str, Any] = {
            "stream_id": topic,
            "deployment": None,
            "slices": slices or [f"{topic}:0:0:{records}"],
            "format": format,
        }
        said |= {"config": config, "validation_rate": 0.2, "count": records}
        KafkaWriter("test", self.kafka).write_all(CONTROL, [(topic, json.dumps(said).encode())], 30)
        return self.known(topic)

    def ends(self, *started: dict[str, Any]) -> list[dict[str, Any]]:
        """The trainings when they have ended, with another one beside them that ended well."""
        beside = self.client.train("good", self.good, epochs=2)
        *ended, well = [self.end_of(one["id"]) for one in (*started, beside)]
        assert well["state"] == "done", well["reason"]
        assert self.service.running and self.client.models(), "the service is the same process as before"
        return ended

    def end_of(self, training: str, timeout_s: float = 240.0) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while (found := self.client.training(training))["state"] in ("queued", "running"):
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        return found

    def until(self, training: str, wanted: Callable[[dict[str, Any]], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while True:
            found = self.client.training(training)
            assert found["state"] in ("queued", "running") and time.monotonic() < deadline, found
            if wanted(found):
                return
            time.sleep(0.05)

    def refused(self, what: Callable[[], object]) -> str:
        with pytest.raises(PermanentError) as caught:
            what()
        return str(caught.value)

    def letters(self, origin: str, value: bytes, count: int = 1) -> list[tuple[str, int, str, bytes]]:
        """(room, offset, reason, value) of the dead letters of a topic with that value, when there are so many."""
        reader = KafkaReader("letters", self.kafka, f"letters-{secrets.token_hex(4)}")
        reader.assign_all(DEAD_LETTER)
        found: list[tuple[str, int, str, bytes]] = []
        deadline = time.monotonic() + 30
        try:
            while len(found) < count and time.monotonic() < deadline:
                for record in reader.read(500, 0.2):
                    said = {name: value.decode() for name, value in record.headers if isinstance(value, bytes)}
                    if said["origin"] == origin and record.value == value:
                        found.append((said["room"], int(said["offset"]), said["reason"], record.value))
        finally:
            reader.close()
        return sorted(found)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with Processes(tmp_path_factory.mktemp("logs")) as processes:
        yield processes


@pytest.fixture(scope="module")
def plane(kafka: Kafka, processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    limits = {"CLOUD_JOB_MEMORY_MB": "1500", "CLOUD_JOB_TIME_S": "120", "CLOUD_CHECK_TIME_S": "40"}
    plane = Plane(processes, tmp_path_factory.mktemp("plane"), kafka, **limits)
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
AT = (30, 31, 77)
"""Offsets of the bad records in a stream of 120."""


@pytest.mark.parametrize("what", BAD)
def test_records_that_cannot_be_read(plane: Plane, kafka: Kafka, unique: str, what: str) -> None:
    """Without a bound the first one fails the training and is named; within one all are left out and kept."""
    (format, config, good), bad, reason = BAD[what]
    kafka.create_topic(unique)
    pairs = [bad if i in AT else good(i % 3) for i in range(120)]
    writer = KafkaWriter("test", plane.kafka)
    for key, value in pairs:
        writer.write(unique, value, key=key, partition=0)
    assert writer.flush(30) == 0
    stream = plane.announce(unique, 120, format, config)
    strict, enough = [plane.client.train("good", stream, epochs=2, bad_most=most) for most in (0, 3)]
    failed, done = plane.end_of(strict["id"]), plane.end_of(enough["id"])
    assert (failed["state"], done["state"]) == ("failed", "done"), done["reason"]
    first = f"record {unique}:0:{AT[0]} "
    assert failed["reason"].startswith(first) and re.search(reason, failed["reason"])
    result = done["result"]
    assert (result["records"], result["bad"]) == (117, 3) and result["first_bad"].startswith(first)
    letters = plane.letters(unique, bad[1], 3)
    assert [offset for _, offset, _, _ in letters] == [*AT]
    assert all(room == "streams" and re.search(reason, why) for room, _, why, _ in letters)


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
    assert [offset for i in (30, 31) for _, offset, _, _ in plane.letters(unique, bad[i])] == [30, 31]


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
    (why,) = [why for room, _, why, value in plane.letters(CONTROL, message) if room == "results-writer"]
    assert "1000000000000000 records in slices of 20" in why


def in_two(plane: Plane, kafka: Kafka, topic: str, rows: int) -> str:
    """A stream of two slices, in a topic partition each; one is more than what is under way to a job at a time."""
    kafka.create_topic(topic, partitions=2)
    random = np.random.default_rng(1)
    writer = KafkaWriter("test", plane.kafka)
    for partition in (0, 1):
        for row in random.normal(size=(rows, 4)).astype(np.float32):
            writer.write(topic, row.tobytes(), key=str(int(row[0] > 0)), partition=partition)
    assert writer.flush(60) == 0
    slices = [f"{topic}:{partition}:0:{rows}" for partition in (0, 1)]
    return plane.announce(topic, 2 * rows, "raw", {"shape": [4]}, slices)


def held(plane: Plane, stream: str) -> tuple[str, Path]:
    """A training that has the first batch of its stream and waits; the file that lets it go on."""
    plane.client.add_model("held", HELD + SOURCE)
    training = plane.client.train("held", stream, epochs=2, seed=7)["id"]
    plane.until(training, lambda found: (found["progress"] or {}).get("done", 0) > 0)
    return training, plane.folder / "data" / "jobs" / training / "go"


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
    plane.client.add_model("waits", IN_TRAINING.format("time.sleep(600)") + SOURCE)
    found = [plane.client.train("waits", plane.good)["id"] for _ in range(4)]
    for one in found:
        plane.until(one, lambda job: job["state"] == "running")
    return found


SOURCES = {
    "ends": ("sys.exit('I will not')", "line 3: SystemExit: I will not"),
    "ends at once": ("os._exit(3)", "the job ended by exit code 3"),
    "ends as if all were well": ("os._exit(0)", "the job ended by exit code 0"),
    "ends by a signal": ("os.kill(os.getpid(), 11)", "the job ended by signal SIGSEGV"),
    "ends by a signal without a name": ("os.kill(os.getpid(), 40)", "the job ended by signal 40"),
    "fails": ("raise ValueError('no such thing')", "line 3: ValueError: no such thing"),
    "eats memory": ("held = [b'1' * 50_000_000 for _ in range(100)]; time.sleep(600)", "its limit is 1500 MB"),
    "never returns": ("time.sleep(600)", "the job took longer than 120 s and was ended"),
}


def test_source_that_does_harm_when_it_is_trained(plane: Plane) -> None:
    """And not when it was checked."""
    started = []
    for what, (source, _) in SOURCES.items():
        plane.client.add_model(name := what.replace(" ", "-"), IN_TRAINING.format(source) + SOURCE)
        started.append(plane.client.train(name, plane.good))
    for ended, (what, (_, reason)) in zip(plane.ends(*started), SOURCES.items(), strict=True):
        assert ended["state"] == "failed" and reason in ended["reason"], (what, ended["reason"])


def test_source_that_is_refused_when_it_is_handed_in(plane: Plane) -> None:
    """Within the time of a check, with the real error, while a training goes on beside it."""
    beside = plane.client.train("good", plane.good, epochs=2)["id"]
    for source, reason in [
        ("model = keras.Model(", "line 1: '(' was never closed"),
        ("x = 1\nimport kears", "line 2: ModuleNotFoundError: No module named 'kears'"),
        ("import sys\nsys.exit(1)", "line 2: SystemExit: 1"),
        ("import os\nos._exit(1)", "the job ended by exit code 1"),
        ("x = [b'1' * 50_000_000 for _ in range(100)]\nimport time\ntime.sleep(60)", "its limit is 1500 MB"),
        ("x = keras.Input((4,))", "leaves no variable `model`"),
        ("while True: pass", "the job took longer than 40 s and was ended"),
    ]:
        assert reason in plane.refused(partial(plane.client.add_model, "bad", source))
    assert plane.end_of(beside)["state"] == "done"
    assert "bad" not in {model["name"] for model in plane.client.models()}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Plane, Kafka]]:
    """A control plane with a Kafka of its own."""
    with Kafka() as kafka, Processes(tmp_path / "logs") as processes:
        plane = Plane(processes, tmp_path, kafka, CLOUD_STREAM_AWAY_S="10")
        yield plane, kafka
        plane.client.close()


def test_kafka_goes_while_a_training_reads(own: tuple[Plane, Kafka], unique: str) -> None:
    """It restarts: the training ends as one that saw nothing of it. It is away for longer than reading waits: the
    training is tried again. It stays away: the training has failed, and says why."""
    plane, kafka = own
    stream = in_two(plane, kafka, unique, 40_000)
    calm = plane.end_of(plane.client.train("good", stream, epochs=2, seed=7)["id"])
    assert calm["state"] == "done"

    def as_calm(training: str, go: Path) -> None:
        deadline = time.monotonic() + WAIT_S
        while (found := plane.client.training(training))["state"] in ("queued", "running"):
            assert time.monotonic() < deadline, found
            go.touch()  # again, where it was tried again
            time.sleep(0.2)
        assert found["state"] == "done", found["reason"]
        assert found["metrics"] == calm["metrics"]
        assert found["result"]["records"] == 80_000 and found["result"]["confusion"] == calm["result"]["confusion"]

    training, go = held(plane, stream)
    kafka.kill()
    go.touch()
    plane.until(training, lambda found: found["progress"]["done"] > 1000)
    kafka.start()
    as_calm(training, go)
    assert plane.ends() == []

    training, go = held(plane, stream)
    kafka.kill()
    go.touch()
    deadline = time.monotonic() + WAIT_S
    tried_again = re.compile(rf"goes on after slice {unique}:\d:0:40000: Kafka gave nothing for 10 s")
    while not tried_again.search(plane.service.log.read_text()):
        assert time.monotonic() < deadline, plane.service.tail()
        time.sleep(0.1)
    kafka.start()
    as_calm(training, go)

    training, go = held(plane, stream)
    kafka.kill()
    go.touch()
    ended = plane.end_of(training)
    assert ended["state"] == "failed" and "Kafka" in ended["reason"], ended["reason"]
    assert plane.service.running
