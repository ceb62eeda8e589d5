"""Dead letters on a real Kafka: each stage, gateway and device leaves its own kind, and what can be sent again is."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sluice.dev.processes import sluice_command
from sluice.doors.kafka import Headers, KafkaCluster, KafkaReader, KafkaWriter, Record, dead_letter_headers
from sluice.letters.letters import find, get, replay
from sluice.wire import names
from sluice.wire.errors import PermanentError
from sluice.wire.messages import encode
from tests.brokers.kafka import Kafka
from tests.unit.wire_support import offload, prediction

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def kafka() -> Iterator[Kafka]:
    """One of this module's own: the names of Sluice's topics are fixed."""
    with Kafka() as server:
        server.create_topic(names.DEAD_LETTER, 2)
        server.create_topic(names.PREDICTIONS, 1)
        yield server


@pytest.fixture
def cluster(kafka: Kafka) -> KafkaCluster:
    return KafkaCluster(bootstrap=kafka.bootstrap)


@pytest.fixture
def model(kafka: Kafka, unique: str) -> str:
    kafka.create_topic(names.offload_topic("fog", unique), 1)
    return unique


def leave(cluster: KafkaCluster, *letters: tuple[bytes, Headers], key: str | None = "device") -> list[str]:
    """Write letters; their places."""
    places: list[str] = []
    writer = KafkaWriter("test", cluster)
    for value, headers in letters:
        writer.write(
            names.DEAD_LETTER,
            value,
            key=key,
            headers=headers,
            on_offset=lambda partition, offset: places.append(f"{partition}:{offset}"),
        )
        assert writer.flush(20) == 0
    return places


def on(cluster: KafkaCluster, topic: str) -> list[Record]:
    reader = KafkaReader("test", cluster, "test")
    first, end = reader.watermarks((topic, 0))
    reader.assign({(topic, 0): first})
    records: list[Record] = []
    while len(records) < end - first:
        records += reader.read(100, 1.0)
    reader.close()
    return records


def run(kafka: Kafka, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*sluice_command(), "dead-letter", *arguments, "--bootstrap", kafka.bootstrap],
        env={"PATH": os.environ["PATH"], "COLUMNS": "200"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_what_a_stage_left_is_listed_shown_and_sent_again(
    kafka: Kafka, cluster: KafkaCluster, model: str, tmp_path: Path
) -> None:
    topic, value = names.offload_topic("fog", model), encode(offload(model=model))
    headers = dead_letter_headers("bundle is not signed", "stage-fog", topic, 0, 41)
    (place,) = leave(cluster, (value, headers), key="pump-1")

    def listed(*arguments: str) -> list[dict[str, Any]]:
        done = run(kafka, tmp_path, "list", "--json", *arguments)
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return [row for row in rows if row["place"] == place]

    (row,) = listed("--room", "stage-fog", "--reason", "not signed")
    assert (row["origin"], row["key"], row["bytes"]) == (f"{topic}:0:41", "pump-1", len(value))
    assert not listed("--room", "gateway") and not listed("--reason", "unheard of")
    assert "bundle is not signed" in run(kafka, tmp_path, "list").stdout

    shown = run(kafka, tmp_path, "show", place, "--json")
    assert shown.returncode == 0, shown.stderr
    (told,) = json.loads(shown.stdout)["content"]
    assert told["model"] == model and "float32" in told["tensors"][0]

    again = run(kafka, tmp_path, "replay", place)
    assert again.returncode == 0, again.stderr
    assert f"{place} to {topic}" in again.stdout
    (record,) = on(cluster, topic)
    assert (record.key, record.value) == (b"pump-1", value)
    assert dict(record.headers)["replayed-from"] == place.encode()
    assert get(cluster, place).value == value, "it stays"


def test_what_a_gateway_left_finds_its_topic(cluster: KafkaCluster, model: str) -> None:
    """The topic that was missing then, as a rollout makes it."""
    early = dead_letter_headers(f"no topic for tier fog, model {model}", "gateway", "plant/a/pump-1/offload")
    answer = dead_letter_headers("made up", "gateway", "sluice/pump-1/prediction")
    sample = encode(offload(model=model, tier="fog", device_id="pump-1"))
    known = encode(prediction(model=model, device_id="pump-1"))
    places = leave(cluster, (sample, early), (known, answer), key=None)
    replay(cluster, [get(cluster, place) for place in places])
    (record,) = on(cluster, names.offload_topic("fog", model))
    assert (record.key, record.value) == (b"pump-1", sample), "keyed by device, as a gateway does"
    assert known in [record.value for record in on(cluster, names.PREDICTIONS)]


@pytest.mark.parametrize(
    ("value", "headers", "says"),
    [
        (b"21.5;x", dead_letter_headers("no numbers", "edge-agent", "sluice/pump-1/sensor/shaft"), "publish it to"),
        (b"\xc3\x01half", dead_letter_headers("too large to keep whole", "stage-fog", "t", 0, 1), "only the beginning"),
        (b"rubbish", dead_letter_headers("not Avro", "gateway", "sluice/pump-1/offload"), "no message that a gateway"),
        (b"{}", dead_letter_headers("not signed", "gateway", names.DESIRED, 0, 3), "roll out again"),
        (
            encode(prediction()),
            dead_letter_headers("forged", "gateway", "sluice/evil/prediction"),
            "nobody may pass it",
        ),
        (encode(offload()), dead_letter_headers("a kind", "gateway", "sluice/d/prediction"), "nobody may pass it"),
    ],
)
def test_what_cannot_be_sent_again_says_what_to_do(
    cluster: KafkaCluster, model: str, value: bytes, headers: Headers, says: str
) -> None:
    good = dead_letter_headers("a bundle was away", "stage-fog", names.offload_topic("fog", model), 0, 1)
    places = leave(cluster, (b"good", good), (value, headers))
    with pytest.raises(PermanentError, match=says):
        replay(cluster, [get(cluster, place) for place in places])
    assert on(cluster, names.offload_topic("fog", model)) == [], "all or none"


def test_all_of_many_are_found_and_only_those_that_are_there(cluster: KafkaCluster, unique: str) -> None:
    headers = dead_letter_headers(unique, "stage-fog", "t", 0, 1)
    writer = KafkaWriter("test", cluster)
    for number in range(1500):
        writer.write(names.DEAD_LETTER, str(number).encode(), key=str(number), headers=headers)
    assert writer.flush(20) == 0
    found = find(cluster, None, lambda one: one.reason == unique)
    assert sorted(int(one.value) for one in found) == list(range(1500))
    assert len(find(cluster, 10)) == 20, "ten of each topic partition"
    for place, says in (("0:99999999", "there is no letter"), ("first", "write partition:offset")):
        with pytest.raises(PermanentError, match=says):
            get(cluster, place)


def test_commands_say_what_is_wrong_in_one_line(kafka: Kafka, tmp_path: Path) -> None:
    for arguments, says in (
        (("replay",), "name the letters by place, or say --all"),
        (("show", "9:0"), ""),
        (("list", "--option", "nonsense"), "write NAME=VALUE"),
    ):
        done = run(kafka, tmp_path, *arguments)
        assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1
