"""The REST service over HTTP: the thread from a model to a rollout, who may do what, and what it says to bad input.

Kafka is the embedded one here; jobs are small programs that keep the contract of the real ones.
"""

import json
import runpy
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import delete, func, insert, select
from typer.testing import CliRunner

from cloud.database import reading, writing
from cloud.desired import record
from cloud.settings import CloudSettings
from cloud.tables import (
    audits,
    bundles,
    device_states,
    devices,
    jobs,
    metadata,
    model_versions,
    predictions,
    rollouts,
    streams,
)
from sluice.client import Client
from sluice.commands import results, trainings
from sluice.commands.devices import devices as devices_command
from sluice.commands.rollout import rollout as rollout_command
from sluice.commands.train import train as train_command
from sluice.doors.http import HttpDoor
from sluice.doors.kafka import KafkaCluster, KafkaReader, KafkaWriter
from sluice.doors.kafka_topics import EmbeddedKafka
from sluice.wire import names
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.labels import Label
from sluice.wire.profile import read_profile
from sluice.wire.signing import public_text
from sluice.wire.state import Bounds, Desired, Run, parse_state, unseal
from tests.brokers.postgres import Postgres
from tests.integration.cloud_support import Running, bundle_files, manifest_of, running, sha256

NOWHERE = "127.0.0.1:1"


@pytest.fixture(scope="module")
def embedded() -> Iterator[EmbeddedKafka]:
    yield EmbeddedKafka()


@pytest.fixture
def cloud(embedded: EmbeddedKafka, tmp_path: Path) -> Iterator[Running]:
    kafka = KafkaCluster(bootstrap=embedded.bootstrap)
    settings = CloudSettings(data=tmp_path / "data", port=0, kafka=kafka, upload_mb=2)
    with running(settings, tmp_path) as service:
        yield service


@pytest.fixture
def cut_off(tmp_path: Path) -> Iterator[Running]:
    """A service whose Kafka is not there."""
    kafka = KafkaCluster(bootstrap=NOWHERE)
    settings = CloudSettings(data=tmp_path / "data", port=0, kafka=kafka, kafka_timeout_s=0.5)
    with running(settings, tmp_path) as service:
        yield service


def announce(cloud: Running, stream_id: str, slices: list[str], part: int = 1, **more: Any) -> None:
    """What the results writer does with an announcement."""
    announcement = {
        "stream_id": stream_id,
        "slices": slices,
        "format": "avro",
        "config": {},
        "validation_rate": 0.2,
        "count": 1,
        "deployment": None,
        "part": part,
        **more,
    }
    row = {"stream_id": stream_id, "part": part, "announcement": announcement, "announced_at": 1}
    with writing(cloud.service.engine) as connection:
        connection.execute(insert(streams).values(row))


def data_stream(cloud: Running, topic: str, count: int = 3) -> str:
    """A stream of `count` records in one topic partition; returns its id."""
    writer = KafkaWriter("test", cloud.service.settings.kafka)
    for _ in range(count):
        writer.write(topic, b"x", partition=0)
    assert writer.flush(10) == 0
    announce(cloud, topic, [f"{topic}:0:0:{count}"])
    return topic


def make_bundle(folder: Path, programs: Path, name: str = "digits", **options: Any) -> Path:
    runpy.run_path(str(programs / "bundle_maker.py"))["make_bundle"](folder, name, 1, **options)
    return folder


def a_bundle(cloud: Running, tmp_path: Path, name: str = "digits") -> str:
    folder = make_bundle(tmp_path / name, tmp_path / "programs", name)
    digest: str = cloud.http.post("/v1/bundles", files=bundle_files(folder)).json()["digest"]
    return digest


def desired_of(cloud: Running, device: str, count: int) -> list[bytes]:
    """The first `count` desired states that Kafka has for `device`."""
    reader = KafkaReader("test", cloud.service.settings.kafka, "test")
    reader.assign_all(names.DESIRED)
    found: list[bytes] = []
    deadline = time.monotonic() + 20
    while len(found) < count:
        assert time.monotonic() < deadline
        found += [r.value for r in reader.read(100, 0.2) if r.key == device.encode()]
    reader.close()
    return found


def rows(cloud: Running, table: Any) -> int:
    with reading(cloud.service.engine) as connection:
        return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def test_from_a_model_to_a_rollout(cloud: Running, unique: str, tmp_path: Path) -> None:
    client = cloud.client
    stream = data_stream(cloud, f"data-{unique}")
    assert client.stream(stream)["left"] == "whole"
    model = client.add_model("digits", "good")
    assert (model["name"], model["version"], model["check"]["cut"]["ok"]) == ("digits", 1, True)

    training = client.train("digits", stream, epochs=3)
    assert training["settings"]["epochs"] == 3
    seen: list[dict[str, Any]] = []
    done = client.wait_for_training(training["id"], seen.append)
    assert [entry["epoch"] for entry in done["metrics"]] == [1, 2, 3]
    assert done["result"]["metrics"] == {"final": {"accuracy": 0.9}}
    assert done["result"]["confusion"] == {"final": {"matrix": [[1]]}}
    assert "confusion" not in client.trainings()[0]["result"], "of many it would be too much"
    assert client.trained_model(training["id"]) == b"trained good"
    assert done["sha256"] == sha256(b"trained good")

    partition = client.wait_for_partition(client.partition(training["id"], codec="zstd")["id"])
    digest = partition["bundle"]
    assert [b["digest"] for b in client.bundles()] == [digest]
    page = cloud.http.get(f"/v1/partitions/{partition['id']}/report")
    assert page.text == client.report(partition["id"]) == "<!doctype html><title>digits</title>"
    assert page.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    device = client.add_device("pi-1")
    door = HttpDoor(cloud.url, device["token"])
    manifest = door.fetch_bundle(digest, tmp_path / "fetched", device["public_keys"], lambda _manifest: None)
    door.close()
    assert (manifest.model, manifest.version) == ("digits", 1)
    assert device["public_keys"] == client.public_keys()

    rollout = client.roll_out(digest, ["pi-1"])
    state = unseal(desired_of(cloud, "pi-1", 1)[0], "pi-1", device["public_keys"])
    run = Run(model="digits", bundle=digest, operating_point="default", revision=state.revision)
    assert state.runs == (run,)
    assert rollout["devices"] == [
        {"device_id": "pi-1", "revision": state.revision, "state": "pending", "last_error": None}
    ]
    assert client.device("pi-1")["desired"] == state.model_dump(mode="json")


@pytest.mark.brokers
def test_the_same_on_postgresql(embedded: EmbeddedKafka, postgres: Postgres, unique: str, tmp_path: Path) -> None:
    kafka = KafkaCluster(bootstrap=embedded.bootstrap)
    settings = CloudSettings(data=tmp_path / "data", port=0, kafka=kafka, database=postgres.database(unique))
    with running(settings, tmp_path) as cloud:
        with reading(cloud.service.engine) as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, metadata) == []
        stream = data_stream(cloud, f"data-{unique}")
        cloud.client.add_model("digits", "good")
        training = cloud.client.wait_for_training(cloud.client.train("digits", stream)["id"])
        digest = cloud.client.wait_for_partition(cloud.client.partition(training["id"])["id"])["bundle"]
        cloud.client.add_device("pi-1")
        cloud.problem(cloud.post("/v1/devices", {"device_id": "pi-1"}), 409)
        first, second = (cloud.client.roll_out(digest)["devices"][0]["revision"] for _ in range(2))
        assert first < second
        assert cloud.client.devices()[0]["revision"] == second
        assert cloud.client.summary(device="pi-1")["total"] == 0
        assert cloud.client.predictions()["predictions"] == []
        assert [model["name"] for model in cloud.client.models()] == ["digits"]


def test_models_have_versions_and_the_same_is_no_new_one(cloud: Running) -> None:
    first = cloud.post("/v1/models", {"name": "m", "source": "one"})
    again = cloud.post("/v1/models", {"name": "m", "source": "one"})
    other = cloud.post("/v1/models", {"name": "m", "source": "two"})
    assert [answer.status_code for answer in (first, again, other)] == [201, 200, 201]
    assert [answer.json()["version"] for answer in (first, again, other)] == [1, 1, 2]
    assert [version["version"] for version in cloud.http.get("/v1/models/m").json()] == [2, 1]
    assert [model["version"] for model in cloud.client.models()] == [2]
    assert cloud.http.get("/v1/models/m/1").json()["version"] == 1


def test_a_keras_file_is_a_model(cloud: Running, tmp_path: Path) -> None:
    file = tmp_path / "net.keras"
    file.write_bytes(b"PK weights")
    assert cloud.client.upload_model("net", file)["kind"] == "keras"
    file.write_bytes(b"broken")
    with pytest.raises(PermanentError, match="NameError"):
        cloud.client.upload_model("net", file)


def test_a_broken_model_is_refused_with_its_cause_and_nothing_is_kept(cloud: Running) -> None:
    detail = cloud.problem(cloud.post("/v1/models", {"name": "bad", "source": "broken"}), 422)
    assert detail == "model source, line 1: NameError: name 'broken' is not defined"
    assert rows(cloud, model_versions) == rows(cloud, jobs) == 0
    assert list(cloud.service.models.folder.iterdir()) == list(cloud.service.runner.folder.iterdir()) == []


def test_a_training_needs_a_model_and_a_stream_that_is_still_there(cloud: Running, unique: str) -> None:
    stream = data_stream(cloud, f"data-{unique}")
    announce(cloud, "lost", [f"data-{unique}:0:0:3", f"data-{unique}:0:3:9"])
    cloud.client.add_model("m", "good")

    def start(model: str, stream: str) -> httpx.Response:
        return cloud.post("/v1/trainings", {"model": model, "stream_id": stream})

    assert "'nothing'" in cloud.problem(start("nothing", stream), 404)
    assert "'nowhere'" in cloud.problem(start("m", "nowhere"), 404)
    assert f"data-{unique}:0:3:9" in cloud.problem(start("m", "lost"), 410)
    assert cloud.client.stream("lost")["left"] == "gone"
    assert [part["left"] for part in cloud.client.stream("lost")["slices"]] == ["whole", "gone"]
    newer = {"model": "m", "version": 7, "stream_id": stream}
    assert "version 7" in cloud.problem(cloud.post("/v1/trainings", newer), 404)
    unknown = {"model": "m", "stream_id": stream, "settings": {"epoch": 3}}
    assert "settings.epoch" in cloud.problem(cloud.post("/v1/trainings", unknown), 422)
    assert rows(cloud, jobs) == 0


def test_several_models_are_compared_on_one_stream(
    cloud: Running, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = data_stream(cloud, f"data-{unique}")
    for source in ("one", "two"):
        cloud.client.add_model("a", source)
    cloud.client.add_model("b", "good")
    started = cloud.client.compare(["a", ("a", 1), "b"], stream, epochs=2, optimizer="sgd", momentum=0.9)
    cloud.client.wait_for_training(cloud.client.train("a", stream)["id"])
    ended = cloud.client.wait_for_comparison(started)
    assert [(one["model"], one["version"], one["state"]) for one in ended] == [
        ("a", 2, "done"), ("a", 1, "done"), ("b", 1, "done"),
    ]  # fmt: skip
    assert {one["comparison"] for one in ended} == {started["comparison"]}
    assert all(one["settings"]["optimizer"] == "sgd" and len(one["metrics"]) == 2 for one in ended)
    assert cloud.client.trained_model(ended[1]["id"]) == b"trained one"
    assert [one["comparison"] for one in cloud.client.trainings()].count(None) == 1
    assert cloud.client.trainings("comparison-0") == []

    before = rows(cloud, jobs)
    named = [{"model": "a"}, {"model": "nothing"}]
    assert "'nothing'" in cloud.problem(cloud.post("/v1/trainings", {"models": named, "stream_id": stream}), 404)
    for odd in ({"model": "a", "models": named}, {}, {"models": named, "version": 1}):
        detail = cloud.problem(cloud.post("/v1/trainings", {**odd, "stream_id": stream}), 422)
        assert "either a model" in detail
    assert rows(cloud, jobs) == before

    shown = daily_command(cloud, monkeypatch, train_command, "a", "b", "--stream", stream, "--epochs", "1")
    assert "a 2" in shown and "b 1" in shown and "comparison-" in shown
    arguments = ["a", "b", "--stream", stream, "--json", "--patience", "3", "--balanced", "--bad-most", "4"]
    told = json.loads(daily_command(cloud, monkeypatch, train_command, *arguments))
    assert [one["state"] for one in told["trainings"]] == ["done", "done"]
    (kept, _) = cloud.client.trainings(told["comparison"])
    assert kept["settings"]["early_stopping"]["patience"] == 3
    assert (kept["settings"]["class_weights"], kept["settings"]["bad_most"]) == ("balanced", 4)
    with pytest.raises(PermanentError, match="are for one model"):
        daily_command(cloud, monkeypatch, train_command, "a", "b", "--stream", stream, "--cut")


def test_what_was_trained_is_trained_on(cloud: Running, unique: str) -> None:
    stream = data_stream(cloud, f"data-{unique}")
    cloud.client.add_model("digits", "good")
    first = cloud.client.wait_for_training(cloud.client.train("digits", stream)["id"])
    added = cloud.client.add_version("digits", first["id"])
    assert (added["version"], added["kind"], added["training"]) == (2, "keras", first["id"])
    assert added["sha256"] == first["sha256"]
    again = cloud.post("/v1/models/digits/versions", {"training": first["id"]})
    assert (again.status_code, again.json()) == (200, added)
    assert cloud.client.add_version("numbers", first["id"])["version"] == 1
    second = cloud.client.wait_for_training(cloud.client.train("digits", stream)["id"])
    assert second["version"] == 2
    assert cloud.client.trained_model(second["id"]) == b"trained trained good"
    assert [model["training"] for model in cloud.http.get("/v1/models/digits").json()] == [first["id"], None]

    def make(training: str, name: str = "digits") -> httpx.Response:
        return cloud.post(f"/v1/models/{name}/versions", {"training": training})

    assert "'training-0'" in cloud.problem(make("training-0"), 404)
    assert "name" in cloud.problem(make(first["id"], "No Name"), 422)
    cloud.client.add_model("slow", "slow")
    slow = cloud.client.train("slow", stream)["id"]
    assert "is not done" in cloud.problem(make(slow), 409)
    cloud.client.cancel_training(slow)
    cloud.client.add_model("odd", "spoilt")
    spoilt = cloud.client.wait_for_training(cloud.client.train("odd", stream)["id"])["id"]
    assert "NameError" in cloud.problem(make(spoilt, "odd"), 422)
    assert cloud.client.trained_model(spoilt) == b"broken", "what a training made stays its own"


def test_a_training_goes_on_with_the_next_service(embedded: EmbeddedKafka, unique: str, tmp_path: Path) -> None:
    settings = CloudSettings(data=tmp_path / "data", port=0, kafka=KafkaCluster(bootstrap=embedded.bootstrap))
    with running(settings, tmp_path) as cloud:
        stream = data_stream(cloud, f"data-{unique}")
        cloud.client.add_model("m", "slow")
        training = cloud.client.train("m", stream, epochs=2)["id"]
    with running(settings, tmp_path) as cloud:
        assert cloud.client.training(training)["state"] in ("queued", "running")
        cloud.client.cancel_training(training)
        with pytest.raises(PermanentError, match="cancelled"):
            cloud.client.wait_for_training(training)
    with running(settings, tmp_path) as cloud:
        assert cloud.client.training(training)["state"] == "cancelled"


def test_a_stream_of_several_producers_is_whole_when_all_parts_are_there(cloud: Running, unique: str) -> None:
    first, second = (f"data-{unique}:0:{at}:{length}" for at, length in ((0, 2), (2, 1)))
    data_stream(cloud, f"data-{unique}")
    announce(cloud, unique, [second], part=2, parts=3)
    announce(cloud, unique, [first], part=1, parts=3)
    assert cloud.client.stream(unique)["missing"] == [3]
    cloud.client.add_model("m", "good")
    training = {"model": "m", "stream_id": unique}
    assert "part 3 is missing" in cloud.problem(cloud.post("/v1/trainings", training), 409)
    announce(cloud, unique, [second], part=3, parts=3, format="raw")
    assert cloud.client.stream(unique)["missing"] == [3], "one that does not agree with the others is none of them"
    with writing(cloud.service.engine) as connection:
        connection.execute(delete(streams).where(streams.c.part == 3))
    announce(cloud, unique, [second], part=3, parts=3)
    found = cloud.client.stream(unique)
    assert found["missing"] == [] and found["announcement"]["slices"] == [first, second, second]
    assert (found["announcement"]["count"], found["announcement"]["parts"], found["left"]) == (3, 1, "whole")
    assert [stream["stream_id"] for stream in cloud.client.streams()].count(unique) == 1


def test_a_partition_needs_a_trained_model_that_can_be_cut(cloud: Running, unique: str) -> None:
    stream = data_stream(cloud, f"data-{unique}")
    for name, source in (("whole", "uncut"), ("slow", "slow"), ("odd", "damaged")):
        cloud.client.add_model(name, source)

    def cut(training: str, **settings: Any) -> httpx.Response:
        return cloud.post("/v1/partitions", {"training": training, "settings": settings})

    assert "'training-0'" in cloud.problem(cut("training-0"), 404)
    uncut = cloud.client.train("whole", stream)["id"]
    cloud.client.wait_for_training(uncut)
    assert "a skip connection crosses every cut" in cloud.problem(cut(uncut), 422)
    slow = cloud.client.train("slow", stream)["id"]
    cloud.problem(cut(slow), 409)
    cloud.client.cancel_training(slow)
    with pytest.raises(PermanentError, match="cancelled"):
        cloud.client.wait_for_training(slow)
    odd = cloud.client.train("odd", stream)["id"]
    cloud.client.wait_for_training(odd)
    assert "unknown" in cloud.problem(cut(odd, codec="zip"), 422)
    assert "no device" in cloud.problem(cut(odd, device="pi-9"), 404)
    cloud.client.add_device("pi-8")
    assert "has measured nothing" in cloud.problem(cut(odd, device="pi-8"), 409)
    with pytest.raises(PermanentError, match=r"content (is over the limit|has digest)"):
        cloud.client.wait_for_partition(cut(odd).json()["id"])
    assert rows(cloud, bundles) == 0
    log = cloud.http.get(f"/v1/trainings/{odd}/log")
    assert (log.status_code, log.headers["content-type"]) == (200, "text/plain; charset=utf-8")


def test_a_bundle_made_offline_is_checked_and_signed(cloud: Running, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "bundle", tmp_path / "programs")
    files = bundle_files(folder)
    assert "is missing" in cloud.problem(cloud.http.post("/v1/bundles", files=files[:-1]), 422)
    bad = [*files[:-1], ("blobs", (files[-1][1][0], b"other"))]
    assert "content" in cloud.problem(cloud.http.post("/v1/bundles", files=bad), 422)
    manifest = manifest_of(folder) | {"format": 2}
    odd = [("manifest", ("manifest.json", json.dumps(manifest).encode())), *files[1:]]
    assert "format" in cloud.problem(cloud.http.post("/v1/bundles", files=odd), 422)
    assert "send the files" in cloud.problem(cloud.http.post("/v1/bundles"), 422)
    assert rows(cloud, bundles) == 0
    added = cloud.client.upload_bundle(folder)
    assert added["operating_points"] == ["default", "all-fog"]
    assert cloud.client.upload_bundle(folder) == added
    raw = cloud.http.get(f"/v1/bundles/{added['digest']}/manifest").content
    assert raw == (folder / "manifest.json").read_bytes()


def test_rollouts_rise_in_revision_and_show_how_far_devices_are(cloud: Running, tmp_path: Path) -> None:
    digest = a_bundle(cloud, tmp_path)
    for name in ("pi-1", "pi-2", "pi-3"):
        cloud.client.add_device(name)
    first = cloud.client.roll_out(digest)
    second = cloud.client.roll_out(digest, ["pi-1", "pi-2", "pi-2"], "all-fog")
    before = {device["device_id"]: device["revision"] for device in first["devices"]}
    assert [device["device_id"] for device in second["devices"]] == ["pi-1", "pi-2"]
    assert all(device["revision"] > before[device["device_id"]] for device in second["devices"])
    revision = second["devices"][0]["revision"]
    ran = {"model": "digits", "bundle": digest, "operating_point": "all-fog", "revision": revision, "error": None}
    reported = {"revision": revision, "runs": [ran], "last_error": None}
    refused = {"model": "digits", "bundle": None, "revision": 0, "error": "golden samples fail"}
    failed = {"revision": revision, "runs": [refused], "last_error": "something else"}
    with writing(cloud.service.engine) as connection:
        for name, state in (("pi-1", reported), ("pi-2", failed)):
            row = {"device_id": name, "reported": state, "reported_at": 1, "status": "online", "status_at": 1}
            connection.execute(insert(device_states).values(row))
    states = {d["device_id"]: (d["state"], d["last_error"]) for d in cloud.client.rollout(second["id"])["devices"]}
    assert states == {"pi-1": ("done", None), "pi-2": ("failed", "golden samples fail")}
    states = {d["device_id"]: (d["state"], d["last_error"]) for d in cloud.client.rollout(first["id"])["devices"]}
    assert states == {"pi-1": ("superseded", None), "pi-2": ("superseded", None), "pi-3": ("pending", None)}
    reader = KafkaReader("test", cloud.service.settings.kafka, "test")
    topics = reader.topic_names()
    reader.close()
    assert {"sluice.offload.cloud.digits", "sluice.offload.fog.digits", names.DESIRED} <= topics


def test_a_device_runs_several_models_and_each_rollout_changes_one(
    cloud: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits, doors = a_bundle(cloud, tmp_path), a_bundle(cloud, tmp_path, "doors")
    cloud.client.add_device("pi-1")
    bounds = {"exit_share_least": 0.4, "samples": 50, "latency_p95_most_ms": 5.5}
    first = cloud.client.roll_out(digits, bounds=bounds)
    assert first["bounds"] == Bounds.model_validate(bounds).model_dump()
    second = cloud.client.roll_out(doors, ["pi-1"], "all-fog")
    assert second["bounds"] is None
    desired = Desired.model_validate(cloud.client.device("pi-1")["desired"])
    (one,), (other,) = first["devices"], second["devices"]
    assert {run.model: (run.bundle, run.operating_point, run.revision) for run in desired.runs} == {
        "digits": (digits, "default", one["revision"]),
        "doors": (doors, "all-fog", other["revision"]),
    }
    assert desired.runs[0].bounds == Bounds.model_validate(bounds)

    def shown(rollout: dict[str, Any]) -> tuple[str, str | None]:
        (device,) = cloud.client.rollout(rollout["id"])["devices"]
        return device["state"], device["last_error"]

    back = {"model": "digits", "bundle": "ab" * 32, "operating_point": "p", "revision": 1, "error": "exit share 0.1"}
    runs = {"model": "doors", "bundle": doors, "operating_point": "all-fog", "revision": other["revision"]}
    state = {"revision": other["revision"], "runs": [back, runs], "last_error": None}
    with writing(cloud.service.engine) as connection:
        row = {"device_id": "pi-1", "reported": state, "reported_at": 1, "status": "online", "status_at": 1}
        connection.execute(insert(device_states).values(row))
    assert shown(first) == ("failed", "exit share 0.1")
    assert shown(second) == ("done", None)
    listed = daily_command(cloud, monkeypatch, devices_command)
    assert "exit share" in listed and "doors" in listed
    options = ["--errors-most", "0.2", "--samples", "30", "--watch-s", "60", "--no-wait", "--json"]
    third = json.loads(daily_command(cloud, monkeypatch, rollout_command, digits, *options))
    assert third["bounds"] == Bounds(errors_most=0.2, samples=30, watch_s=60).model_dump()
    assert (shown(first)[0], shown(second)[0], shown(third)[0]) == ("superseded", "done", "pending")

    assert "no longer" in daily_command(cloud, monkeypatch, devices_command, "take-off", "pi-1", "digits")
    desired = Desired.model_validate(cloud.client.device("pi-1")["desired"])
    assert [run.model for run in desired.runs] == ["doors"] and desired.revision > third["devices"][0]["revision"]
    assert (shown(second)[0], shown(third)[0]) == ("done", "superseded")
    assert "'digits'" in cloud.problem(cloud.http.delete("/v1/devices/pi-1/models/digits"), 404)
    assert "'pi-9'" in cloud.problem(cloud.http.delete("/v1/devices/pi-9/models/digits"), 404)
    no_room = {"exit_share_least": 0.5, "exit_share_most": 0.4}
    answer = cloud.post("/v1/rollouts", {"bundle": digits, "devices": "all", "bounds": no_room})
    assert "leaves no room" in cloud.problem(answer, 422)
    answer = cloud.post("/v1/rollouts", {"bundle": digits, "devices": "all", "bounds": {"latency_most_ms": 5}})
    assert "latency_most_ms" in cloud.problem(answer, 422), "a bound that there is not would bound nothing"


def test_a_device_is_told_to_measure_itself(
    cloud: Running, unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, device = a_bundle(cloud, tmp_path), f"pi-{unique}"
    keys = cloud.client.add_device(device)["public_keys"]
    assert "no device 'pi-9'" in cloud.problem(cloud.http.post("/v1/devices/pi-9/profile"), 404)
    assert "runs nothing yet" in cloud.problem(cloud.http.post(f"/v1/devices/{device}/profile"), 409)
    rollout = cloud.client.roll_out(digest)
    asked = cloud.client.request_profile(device)
    assert asked["revision"] > rollout["devices"][0]["revision"]
    first, second = (unseal(sealed, device, keys) for sealed in desired_of(cloud, device, 2))
    assert first.profile is None
    assert second == first.model_copy(update={"revision": asked["revision"], "profile": asked["profile"]})
    assert cloud.client.request_profile(device)["profile"] != asked["profile"], "another request asks again"

    def report(revision: int, **more: Any) -> None:
        run = {"model": "digits", "bundle": digest, "operating_point": "default", "revision": first.revision}
        state = {"revision": revision, "runs": [run], "last_error": None, **more}
        with writing(cloud.service.engine) as connection:
            connection.execute(device_states.delete())
            row = {"device_id": device, "reported": state, "reported_at": 1, "status": "online", "status_at": 1}
            connection.execute(insert(device_states).values(row))

    segment = {"index": 0, "sha256": digest, "macs": 1, "us": {"1": 2.5}, "p90_us": {"1": 3.5}}
    measured = {"bundle": digest, "runtime": "r", "machine": "m", "cpu": "a fine CPU", "python": "3", "memory_mb": 50}
    measured |= {"request": asked["profile"], "segments": [segment]}
    report(first.revision)
    assert cloud.client.rollout(rollout["id"])["devices"][0]["state"] == "done"
    with pytest.raises(TemporaryError, match="has not answered"):
        cloud.client.wait_for_profile(asked, 0)
    report(cloud.client.device(device)["revision"], measured=measured)
    assert cloud.client.rollout(rollout["id"])["devices"][0]["state"] == "done", "the rollout's bundle still"
    assert cloud.client.wait_for_profile(asked, 0) == measured
    report(2, last_error=f"profile {asked['profile']}: a segment fails its golden samples")
    with pytest.raises(PermanentError, match=r"profile .*golden samples"):
        cloud.client.wait_for_profile(asked, 0)

    report(2, measured=measured)
    monkeypatch.setattr(Client, "request_profile", lambda *_: asked)
    out = tmp_path / "profile.json"
    shown = daily_command(cloud, monkeypatch, devices_command, "profile", device, "--out", str(out))
    assert "a fine CPU" in shown and "2.5 (3.5)" in shown
    assert read_profile(out).segments[0].us == {"1": 2.5}


def test_a_rollout_that_cannot_be_leaves_nothing(cloud: Running, tmp_path: Path) -> None:
    digest = a_bundle(cloud, tmp_path)

    def roll_out(**body: Any) -> httpx.Response:
        return cloud.post("/v1/rollouts", {"bundle": digest, **body})

    assert "register one first" in cloud.problem(roll_out(devices="all"), 404)
    cloud.client.add_device("pi-1")
    assert "'pi-9'" in cloud.problem(roll_out(devices=["pi-1", "pi-9"]), 404)
    assert "operating point 'fast'" in cloud.problem(roll_out(devices="all", operating_point="fast"), 422)
    assert "no bundle" in cloud.problem(roll_out(devices="all", bundle="0" * 64), 404)
    cloud.problem(roll_out(devices="some"), 422)
    cloud.problem(roll_out(devices=[]), 422)
    assert rows(cloud, rollouts) == 0
    assert cloud.client.device("pi-1")["revision"] == 0


def test_without_kafka_nothing_is_recorded(cut_off: Running, tmp_path: Path) -> None:
    digest = a_bundle(cut_off, tmp_path)
    cut_off.client.add_device("pi-1")
    answer = cut_off.post("/v1/rollouts", {"bundle": digest, "devices": "all"})
    cut_off.problem(answer, 503)
    assert int(answer.headers["retry-after"]) >= 1
    assert rows(cut_off, rollouts) == 0
    assert cut_off.client.device("pi-1")["desired"] is None
    announce(cut_off, "s", ["t:0:0:1"])
    assert cut_off.client.stream("s")["left"] == "unknown"
    cut_off.client.add_model("m", "good")
    cut_off.problem(cut_off.post("/v1/trainings", {"model": "m", "stream_id": "s"}), 503)
    assert rows(cut_off, jobs) == 0


def test_who_writes_does_not_wait_for_kafka(tmp_path: Path) -> None:
    """A change of what a device runs waits for a Kafka that is not there; meanwhile another device is registered."""
    settings = CloudSettings(data=tmp_path / "data", port=0, kafka=KafkaCluster(bootstrap=NOWHERE), kafka_timeout_s=8)
    run = Run(model="digits", bundle="0" * 64, operating_point="default")
    with running(settings, tmp_path) as cut_off:
        cut_off.client.add_device("pi-1")
        before = Desired(device_id="pi-1", revision=1, runs=(run,))
        with writing(cut_off.service.engine) as connection:
            record(connection, [before])
        over, answers = threading.Event(), list[httpx.Response]()

        def take_off() -> None:
            answers.append(cut_off.http.delete("/v1/devices/pi-1/models/digits"))
            over.set()

        thread = threading.Thread(target=take_off)
        thread.start()
        while cut_off.client.device("pi-1")["revision"] == 1:
            assert not over.wait(0.02), "on record before Kafka is asked"
        cut_off.client.add_device("pi-2")
        assert not over.is_set()
        thread.join()
        cut_off.problem(answers[0], 503)
        left = cut_off.client.device("pi-1")
        assert Desired.model_validate(left["desired"]) == before and left["revision"] > 1


def test_what_was_on_record_and_not_told_is_told_at_the_next_start(embedded: EmbeddedKafka, tmp_path: Path) -> None:
    """What a service leaves that was killed between the two."""
    device = f"pi-{tmp_path.name[-40:].lower().replace('_', '-')}"
    away, here = (
        CloudSettings(data=tmp_path / "data", port=0, kafka=KafkaCluster(bootstrap=where), kafka_timeout_s=seconds)
        for where, seconds in ((NOWHERE, 0.5), (embedded.bootstrap, 10))
    )
    run = Run(model="digits", bundle="0" * 64, operating_point="default")
    state = Desired(device_id=device, revision=7, runs=(run,))
    with running(away, tmp_path) as before:
        before.client.add_device(device)
        with writing(before.service.engine) as connection:
            record(connection, [state])
    with running(here, tmp_path) as after:
        (envelope,) = desired_of(after, device, 1)
        assert unseal(envelope, device, [public_text(after.service.key)]) == state


def test_devices_are_registered_once_with_a_proper_name(cloud: Running) -> None:
    assert set(cloud.client.add_device("pi-1")) == {"device_id", "token", "public_keys"}
    cloud.problem(cloud.post("/v1/devices", {"device_id": "pi-1"}), 409)
    for name in ("Pi", "../x", "a/b", "#", "", "x" * 64, "pi 1"):
        assert "device_id" in cloud.problem(cloud.post("/v1/devices", {"device_id": name}), 422)
    assert rows(cloud, devices) == 1
    assert [device["status"] for device in cloud.client.devices()] == ["unknown"]


def test_who_may_do_what(cloud: Running, tmp_path: Path) -> None:
    digest = a_bundle(cloud, tmp_path)
    blob = next((tmp_path / "digits" / "blobs").iterdir()).name
    device = {"Authorization": f"Bearer {cloud.client.add_device('pi-1')['token']}"}
    fetch = [f"/v1/bundles/{digest}", f"/v1/bundles/{digest}/manifest", f"/v1/bundles/{digest}/signature"]
    fetch.append(f"/v1/blobs/{blob}")
    admin_only = ["/v1/bundles", "/v1/models", "/v1/streams", "/v1/trainings", "/v1/partitions", "/v1/devices"]
    admin_only += ["/v1/rollouts", "/v1/predictions", "/v1/predictions/summary", "/v1/predictions/audits"]
    admin_only += ["/v1/accuracy", "/v1/certificates"]
    with httpx.Client(base_url=cloud.url) as nobody:
        for path in ("/v1/health", "/v1/keys"):
            assert nobody.get(path).status_code == 200
        for path in (*fetch, *admin_only):
            answer = nobody.get(path)
            assert answer.headers["www-authenticate"] == "Bearer"
            cloud.problem(answer, 401)
            cloud.problem(nobody.get(path, headers={"Authorization": "Bearer sluice_guess"}), 401)
        for path in fetch:
            assert nobody.get(path, headers=device).status_code == 200
        for path in admin_only:
            cloud.problem(nobody.get(path, headers=device), 403)
        for path in ("/v1/bundles", "/v1/models", "/v1/devices", "/v1/rollouts", "/v1/trainings"):
            cloud.problem(nobody.post(path, headers=device, json={}), 403)
    for path in (*fetch, *admin_only):
        assert cloud.http.get(path).status_code == 200


def test_every_error_is_a_problem_document(cloud: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.problem(cloud.http.get("/nowhere"), 404)
    cloud.problem(cloud.http.delete("/v1/health"), 405)
    cloud.problem(cloud.http.get("/v1/models/none"), 404)
    cloud.problem(cloud.http.get("/v1/trainings/none"), 404)
    cloud.problem(cloud.http.get("/v1/blobs/..%2f..%2fkeys%2fsigning.pem"), 404)
    cloud.problem(cloud.http.get("/v1/blobs/" + "A" * 64), 422)
    cloud.problem(cloud.http.get("/v1/blobs/" + "a" * 64), 404)
    cloud.problem(cloud.http.get("/v1/predictions?limit=0"), 422)
    cloud.problem(cloud.http.post("/v1/devices", content=b"{", headers={"content-type": "application/json"}), 422)
    cloud.problem(cloud.http.post("/v1/models", content=b"{"), 422)
    cloud.problem(cloud.http.post("/v1/models", data={"name": "x"}, files={"other": b"x"}), 422)
    cloud.problem(cloud.http.post("/v1/models", data={"name": "Not A Name"}, files={"file": b"x"}), 422)
    cloud.problem(cloud.http.post("/v1/devices", content=b"x" * 1_000_001), 413)
    cloud.problem(cloud.http.post("/v1/devices", content=iter([b"x" * 600_000] * 2)), 413)
    cloud.problem(cloud.post("/v1/models", {"name": "m", "source": "x" * 2_000_000}), 413)
    monkeypatch.setattr("cloud.routes.devices._view", lambda _row: 1 / 0)
    cloud.client.add_device("pi-1")
    detail = cloud.problem(cloud.http.get("/v1/devices"), 500)
    assert "ZeroDivision" not in detail


def test_the_interface_describes_itself(cloud: Running) -> None:
    described = cloud.http.get("/v1/openapi.json").json()
    assert "/v1/rollouts/{rollout_id}" in described["paths"]
    assert "multipart/form-data" in described["paths"]["/v1/models"]["post"]["requestBody"]["content"]


def daily_command(cloud: Running, monkeypatch: pytest.MonkeyPatch, command: Any, *arguments: str) -> str:
    import typer

    app = command
    if not isinstance(command, typer.Typer):
        app = typer.Typer()
        app.command()(command)
    monkeypatch.setenv("SLUICE_URL", cloud.url)
    monkeypatch.setenv("SLUICE_TOKEN", cloud.http.headers["authorization"].removeprefix("Bearer "))
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_rollout_waits_for_its_devices_and_fails_with_those_that_could_not(
    cloud: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = a_bundle(cloud, tmp_path)
    for name in ("pi-1", "pi-2"):
        cloud.client.add_device(name)

    def report(told: dict[str, dict[str, Any]]) -> None:
        """What the devices say once they were told."""
        while not all(cloud.client.device(name)["revision"] for name in told):
            time.sleep(0.05)
        with writing(cloud.service.engine) as connection:
            for name, run in told.items():
                revision = cloud.client.device(name)["revision"]
                runs = [{"model": "digits", "bundle": digest, "revision": revision, "error": None} | run]
                state = {"revision": revision, "runs": runs, "last_error": None}
                row = {"device_id": name, "reported": state, "reported_at": 1, "status": "online", "status_at": 1}
                connection.execute(insert(device_states).values(row))

    refused = {"bundle": None, "revision": 0, "error": "golden samples fail"}
    devices = threading.Thread(target=report, args=({"pi-1": {}, "pi-2": refused},))
    devices.start()
    with pytest.raises(PermanentError, match=r"could not do it: pi-2$"):
        daily_command(cloud, monkeypatch, rollout_command, digest)
    devices.join()
    assert [d["state"] for d in cloud.http.get("/v1/rollouts").json()[0]["devices"]] == ["done", "failed"]


def test_the_daily_commands(cloud: Running, unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = data_stream(cloud, f"data-{unique}")
    source = tmp_path / "net.py"
    source.write_text("good")

    def run(command: Any, *arguments: str) -> str:
        return daily_command(cloud, monkeypatch, command, *arguments)

    trained = json.loads(run(train_command, "net", stream, "--source", str(source), "--epochs", "2", "--json"))
    assert trained["metrics"] == {"final": {"accuracy": 0.9}}
    assert "bundle" in run(train_command, "net", stream)
    settings = tmp_path / "edge.toml"
    run(devices_command, "add", "pi-1", "--out", str(settings))
    assert settings.stat().st_mode & 0o77 == 0
    assert settings.read_text().startswith('device_id = "pi-1"\ntoken = "sluice_')
    with pytest.raises(PermanentError, match="is there already"):
        run(devices_command, "add", "pi-2", "--out", str(settings))
    begun = json.loads(run(rollout_command, trained["bundle"], "--no-wait", "--json"))
    assert [device["state"] for device in begun["devices"]] == ["pending"]
    assert "pi-1" in run(devices_command)
    assert json.loads(run(devices_command, "--json"))[0]["device_id"] == "pi-1"
    assert json.loads(run(results.results, "--json"))["total"] == 0
    assert "0 predictions" in run(results.results)


def test_trainings_are_looked_at(cloud: Running, unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table, curves as they come, side by side, the log; ending one, fetching what it made."""
    monkeypatch.setenv("COLUMNS", "200")
    stream = data_stream(cloud, f"data-{unique}")
    for name in ("a", "b", "slow"):
        cloud.client.add_model(name, name)
    look = partial(daily_command, cloud, monkeypatch, trainings.trainings)
    following = cloud.client.train("a", stream, epochs=3)["id"]
    shown = look("show", following, "--follow")
    assert f"{following}  a 1 on {stream}: done, epoch 3 of 3" in shown and "final training 0.9" in shown
    assert "exit final: true, answered" in shown
    started = cloud.client.compare(["a", "b"], stream, epochs=2)
    one, two = (job["id"] for job in cloud.client.wait_for_comparison(started))
    for which in ([started["comparison"]], [one, two]):
        shown = look("compare", *which)
        assert shown.index(one) < shown.index(two) and f"b 1, {two}" in shown and "epoch 2" in shown
    assert [job["id"] for job in json.loads(look("compare", one, "--json"))] == [one]
    slow = cloud.client.train("slow", stream)["id"]
    assert slow in look("cancel", slow)
    assert "cancelled" in look("show", slow, "--follow")
    table = look()
    assert all(job in table for job in (following, one, two, slow)) and "2/2" in table and "0.9" in table
    assert json.loads(look("show", one, "--json")) == cloud.client.training(one)
    assert look("log", one) == ""
    look("download", one, str(tmp_path / "a.keras"))
    assert (tmp_path / "a.keras").read_bytes() == b"trained a"
    for wrong, reason in (("comparison-0", "no comparison"), ("training-0", "no training")):
        with pytest.raises(PermanentError, match=reason):
            look("compare", wrong)
    with pytest.raises(PermanentError, match="is there already"):
        look("download", one, str(tmp_path / "a.keras"))


def test_predictions_by_page_and_summed_up(cloud: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(device: str, seq: int, tier: str, recorded_at: int, repeats: int = 0) -> dict[str, Any]:
        sample = {"device_id": device, "epoch": "00" * 8, "seq": seq, "source_id": None, "model": "digits"}
        answer = {"bundle": "ab" * 32, "operating_point": "default", "tier": tier, "exit": 0, "label": 1}
        how = {"confidence": 0.9, "status": "final", "reason": "exit", "captured_at": 1, "produced_at": 2}
        counts = {"recorded_at": recorded_at, "records": 1 + repeats, "repeats": repeats}
        return sample | answer | how | counts | {"compute_us": {"edge": 9}, "bytes_sent": 5}

    stored = [row("pi-1", seq, "edge" if seq % 2 else "fog", seq) for seq in range(1500)]
    stored.append(row("pi-2", 0, "cloud", 9999, repeats=2))
    with writing(cloud.service.engine) as connection:
        connection.execute(insert(predictions), stored)
    client = cloud.client
    assert [found["seq"] for found in client.every_prediction(device="pi-1")] == list(range(1500))
    assert [found["seq"] for found in client.predictions(device="pi-1", since=1490)["predictions"]] == [
        *range(1490, 1500)
    ]
    newest = client.predictions(newest=True, limit=1)
    assert [found["device_id"] for found in newest["predictions"]] == ["pi-2"]
    assert client.predictions(after=newest["next"]) == {"predictions": [], "next": newest["next"]}
    assert client.predictions(model="other")["predictions"] == []
    summary = client.summary()
    assert (summary["total"], summary["records"], summary["repeats"]) == (1501, 1503, 2)
    assert summary["by_tier"] == {"cloud": 1, "edge": 750, "fog": 750}
    assert client.summary(device="pi-2")["by_tier"] == {"cloud": 1}
    assert "1503 predictions on the topic, 2 of them repeats" in daily_command(cloud, monkeypatch, results.results)


def test_labels_go_through_kafka(
    cloud: Running, embedded: EmbeddedKafka, unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(f"device_id,source_id,label\n{unique},frame-1,7\n{unique},frame-2,seven\n")
    sample = f"{'00' * 8}:5"
    assert "1 told" in daily_command(cloud, monkeypatch, results.label, unique, "3", "--sample", sample)
    assert "2 told" in daily_command(cloud, monkeypatch, results.label, "--file", str(file))
    reader = KafkaReader("test", KafkaCluster(bootstrap=embedded.bootstrap), unique)
    reader.subscribe([names.LABELS])
    found: list[Label] = []
    deadline = time.monotonic() + 30
    while len(found) < 3 and time.monotonic() < deadline:
        found += [parse_state(Label, one.value) for one in reader.read(100, 0.2) if one.key == unique.encode()]
    reader.close()
    by_source = {one.source_id: one.label for one in found}
    assert by_source == {None: 3, "frame-1": 7, "frame-2": "seven"}
    assert "nobody has told" in daily_command(cloud, monkeypatch, results.accuracy)
    assert json.loads(daily_command(cloud, monkeypatch, results.accuracy, "--json")) == []


def test_audits_say_whether_exits_hold(cloud: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(seq: int, exit_: int, final_label: int, device: str = "pi-1") -> dict[str, Any]:
        sample = {"device_id": device, "epoch": "00" * 8, "seq": seq, "model": "digits", "bundle": "ab" * 32}
        said = {"operating_point": "default", "exit": exit_, "label": 3, "final_exit": 2, "final_label": final_label}
        return sample | said | {"final_confidence": 0.9, "recorded_at": seq, "records": 1}

    assert cloud.client.audits() == []
    stored = [row(seq, 0, 3 if seq else 5) for seq in range(10)] + [row(10, 1, 3), row(11, 1, 3, "pi-2")]
    with writing(cloud.service.engine) as connection:
        connection.execute(insert(audits), stored)
    first, second = cloud.client.audits(model="digits")
    assert (first["exit"], first["audited"], first["agreeing"], first["share"]) == (0, 10, 9, 0.9)
    # Wilson's interval of 9 in 10, as statistics packages give it
    assert (first["low"], first["high"]) == (pytest.approx(0.5958, abs=1e-4), pytest.approx(0.9821, abs=1e-4))
    assert (second["audited"], second["share"], second["high"]) == (2, 1.0, 1.0)
    assert second["low"] == pytest.approx(0.3424, abs=1e-4)
    assert [a["audited"] for a in cloud.client.audits(device="pi-2")] == [1]
    assert cloud.client.audits(since=12) == []
    assert json.loads(daily_command(cloud, monkeypatch, results.results, "--json"))["audits"] == [first, second]
