"""Online jobs over REST: with small programs in place of the jobs, and then whole, on real Kafka, killed on the way."""

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from sqlalchemy import select, update

from cloud.database import reading, writing
from cloud.routes.online import go_on
from cloud.settings import CloudSettings
from cloud.tables import jobs, online_jobs, partitions
from sluice.client import Client
from sluice.commands.online import online
from sluice.doors.kafka import KafkaCluster, KafkaReader, KafkaWriter
from sluice.doors.kafka_topics import EmbeddedKafka
from sluice.streams.group import Group
from sluice.streams.send import Sender
from sluice.wire.errors import PermanentError
from sluice.wire.slices import parse_slice
from tests.brokers.kafka import Kafka
from tests.integration.cloud_support import Running, running
from tests.integration.test_cloud_api import daily_command, data_stream
from tests.integration.test_cloud_service import CHECKOUT, SLUICE, Process

WAIT_S = 240.0
MODEL = """
x = keras.Input((4,), name="reading")
a = layers.Dense(16, activation="relu")(x)
final = layers.Dense(3, name="final")(layers.Dense(16, activation="relu")(a))
model = keras.Model(x, [layers.Dense(3, name="early")(a), final])
"""


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Running]:
    embedded = EmbeddedKafka()
    settings = CloudSettings(data=tmp_path / "data", port=0, kafka=KafkaCluster(bootstrap=embedded.bootstrap))
    with running(settings, tmp_path) as service:
        yield service


def settled(client: Client, job_id: str) -> dict[str, Any]:
    """The job, when all has come of its candidates that will."""
    deadline = time.monotonic() + WAIT_S
    while True:
        job = client.online(job_id)
        if job["candidates"] and all(one["bundle"] or one["reason"] for one in job["candidates"]):
            return job
        assert time.monotonic() < deadline, job
        time.sleep(0.1)


def test_a_candidate_becomes_a_version_and_a_bundle(
    cloud: Running, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, stream = cloud.client, data_stream(cloud, f"data-{unique}")
    client.add_model("digits", "good")
    started = client.learn_on(stream, model="digits", records=5)
    assert (started["topics"], started["settings"]["records"]) == ([stream], 5)
    assert client.wait_for_online(started["id"])["result"]["records"] == 999
    job = settled(client, started["id"])
    assert len(job["metrics"]) <= 500 and job["metrics"][-1]["records"] == 999
    (candidate,) = job["candidates"]
    assert (candidate["version"], candidate["reason"]) == (2, None), "told twice, it is one"
    assert candidate["told"] == {"accuracy": 0.9, "accuracy_before": 0.5}
    version = cloud.http.get("/v1/models/digits/2").json()
    assert (version["training"], version["kind"]) == (candidate["training"], "keras")
    training = client.training(candidate["training"])
    assert (training["state"], training["online"], training["version"]) == ("done", started["id"], 2)
    assert client.trained_model(training["id"]) == b"learnt good"
    assert client.partition_of(candidate["partition"])["training"] == training["id"]
    manifest = client.manifest(candidate["bundle"])
    assert (manifest.model, manifest.version) == ("digits", 2)
    assert client.learnt_model(started["id"]) == b"last"
    again = client.learn_on(stream, training=training["id"], cut=False, topics=[stream, "more"])
    assert (again["version"], again["topics"]) == (2, [stream, "more"])
    assert [one["id"] for one in client.online_jobs()] == [again["id"], started["id"]]
    client.wait_for_online(again["id"])
    shown = daily_command(cloud, monkeypatch, online, "show", started["id"])
    assert "candidate 1 is version 2" in shown and "final: 90.0% (80.0%)" in shown
    assert started["id"] in daily_command(cloud, monkeypatch, online, "show", "--json")
    told = json.loads(
        daily_command(cloud, monkeypatch, online, "start", stream, "--model", "digits", "--records", "9", "--json")
    )
    assert told["result"]["records"] == 999


def test_a_job_may_be_reminded_of_what_its_model_was_trained_on(cloud: Running, unique: str) -> None:
    """Of a candidate's model: of what the model was trained on that its job began from."""
    client, first, live = cloud.client, data_stream(cloud, f"first-{unique}"), data_stream(cloud, f"live-{unique}", 2)

    def past(job: dict[str, Any]) -> Any:
        client.wait_for_online(job["id"])
        return json.loads(go_on(cloud.service, job["id"]))["past"]

    client.add_model("digits", "good")
    assert past(client.learn_on(live, model="digits", cut=False)) is None, "never trained, as far as is known"
    training = client.wait_for_training(client.train("digits", first)["id"])["id"]
    job = client.learn_on(live, training=training, buffer=70, seed=5)
    found = past(job)
    assert (found["stream"]["slices"], found["most"], found["seed"]) == ([f"{first}:0:0:3"], 70, 5)
    with reading(cloud.service.engine) as connection:
        known = select(online_jobs.c.trained_on).where(online_jobs.c.id == job["id"])
        assert connection.execute(known).scalar_one() == found["stream"]["slices"]
    (candidate,) = settled(client, job["id"])["candidates"]
    assert past(client.learn_on(live, training=candidate["training"]))["stream"] == found["stream"]
    assert past(client.learn_on(live, model="digits", version=candidate["version"]))["stream"] == found["stream"]
    assert past(client.learn_on(live, training=training, replay_trained_on=False)) is None


def test_a_partition_that_the_service_took_with_it_is_begun_anew(cloud: Running, unique: str) -> None:
    stream = data_stream(cloud, f"data-{unique}")
    cloud.client.add_model("m", "good")
    started = cloud.client.learn_on(stream, model="m")["id"]
    (first,) = settled(cloud.client, started)["candidates"]
    with writing(cloud.service.engine) as connection:  # what the next service says of it
        taken = {"state": "failed", "reason": "the service was restarted"}
        connection.execute(update(jobs).where(jobs.c.id == first["partition"]).values(taken))
        connection.execute(update(partitions).where(partitions.c.id == first["partition"]).values(bundle=None))
    deadline = time.monotonic() + WAIT_S
    while (second := settled(cloud.client, started)["candidates"][0])["partition"] == first["partition"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert second["bundle"] and second["version"] == 2


def test_candidates_that_are_not_cut_are_versions(cloud: Running, unique: str) -> None:
    client, stream = cloud.client, data_stream(cloud, f"data-{unique}")
    client.add_model("digits", "good")
    started = client.learn_on(stream, model="digits", cut=False)
    deadline = time.monotonic() + WAIT_S
    while not (found := client.online(started["id"])["candidates"]) or not found[0]["version"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (found[0]["version"], found[0]["partition"], found[0]["reason"]) == (2, None, None)


@pytest.mark.parametrize(
    ("source", "reason"),
    [("astray", "names topic 'elsewhere'"), ("hasty", "more often than it may")],
)
def test_a_job_that_proposes_what_it_may_not_has_failed(cloud: Running, unique: str, source: str, reason: str) -> None:
    stream = data_stream(cloud, f"data-{unique}")
    cloud.client.add_model("m", source)
    started = cloud.client.learn_on(stream, model="m")
    with pytest.raises(PermanentError, match=reason):
        cloud.client.wait_for_online(started["id"])
    assert len(cloud.client.online(started["id"])["candidates"]) == (source == "hasty")


def test_a_candidate_that_is_no_good_says_why(cloud: Running, unique: str) -> None:
    stream = data_stream(cloud, f"data-{unique}")
    cloud.client.add_model("m", "spoilt")
    (candidate,) = settled(cloud.client, cloud.client.learn_on(stream, model="m")["id"])["candidates"]
    assert "NameError" in candidate["reason"] and candidate["version"] is None
    assert len(cloud.http.get("/v1/models/m").json()) == 1


def test_an_online_job_needs_a_model_and_a_stream(cloud: Running, unique: str) -> None:
    stream = data_stream(cloud, f"data-{unique}")
    cloud.client.add_model("m", "slow")
    for body, status, words in (
        ({"model": "m", "stream_id": "nowhere"}, 404, "'nowhere'"),
        ({"model": "n", "stream_id": stream}, 404, "'n'"),
        ({"model": "m", "version": 9, "stream_id": stream}, 404, "version 9"),
        ({"training": "training-0", "stream_id": stream}, 404, "'training-0'"),
        ({"stream_id": stream}, 422, "either a model"),
        ({"model": "m", "training": "t", "stream_id": stream}, 422, "either a model"),
        ({"model": "m", "stream_id": stream, "topics": ["no topic"]}, 422, "topics"),
        ({"model": "m", "stream_id": stream, "settings": {"batch": 0}}, 422, "batch"),
        ({"model": "m", "stream_id": stream, "partition": {"head": 1}}, 422, "head"),
    ):
        assert words in cloud.problem(cloud.post("/v1/online", body), status)
    started = cloud.client.learn_on(stream, model="m")["id"]
    assert cloud.http.get(f"/v1/online/{started}/model").status_code == 404
    assert cloud.http.get(f"/v1/online/{started}/log").status_code == 200
    cloud.client.cancel_online(started)
    with pytest.raises(PermanentError, match="cancelled"):
        cloud.client.wait_for_online(started)
    assert cloud.http.get("/v1/online/online-0").status_code == 404


def test_an_endless_job_comes_to_an_end_when_it_is_told_to(
    cloud: Running, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = data_stream(cloud, f"data-{unique}")
    cloud.client.add_model("m", "slow")
    started = cloud.client.learn_on(stream, model="m")["id"]
    assert "done" in daily_command(cloud, monkeypatch, online, "finish", started)
    assert cloud.client.learnt_model(started) == b"last"
    assert cloud.client.finish_online(started)["state"] == "done"


@pytest.fixture
def service(kafka: Kafka, tmp_path: Path) -> Iterator[Process]:
    """The control plane and its results writer, as processes."""
    process = Process(tmp_path, kafka.bootstrap)
    writer = subprocess.Popen([*SLUICE, "results-writer"], env=process.environment, cwd=CHECKOUT)
    yield process
    writer.terminate()
    writer.wait(30)
    if process.process.poll() is None:
        process.stop(signal.SIGTERM)


def draw(n: int, seed: int) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    y = random.integers(0, 3, n)
    return (random.normal(size=(n, 4)) + np.eye(3, 4)[y] * 4).astype(np.float32), y


def send_live(cluster: KafkaCluster, topic: str, n: int, seed: int) -> None:
    """Records that nobody announces."""
    writer = KafkaWriter("live", cluster)
    for number, (x, y) in enumerate(zip(*draw(n, seed), strict=True)):
        writer.write(topic, x.tobytes(), key=str(y), partition=number % 2)
    assert writer.flush(30) == 0


class Job:
    """An online job of a service that may be killed."""

    def __init__(self, service: Process, stream: str, **settings: Any) -> None:
        self.service, self.token = service, service.tokens()[0]
        with Client(service.url, self.token) as client:
            client.stream(stream, wait_s=60)
            client.add_model("readings", MODEL)
            self.id = client.learn_on(stream, model="readings", **settings)["id"]

    def wait(self, until: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Until it is so far."""
        deadline = time.monotonic() + WAIT_S
        while True:
            with Client(self.service.url, self.token) as client:
                job = client.online(self.id)
            if until(job):
                return job
            assert job["state"] in ("queued", "running"), job["reason"]
            assert time.monotonic() < deadline, job
            time.sleep(0.2)

    def kill(self, program: str) -> None:
        children = psutil.Process(self.service.process.pid).children(recursive=True)
        alive = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
        (process,) = [child for child in alive if program in child.cmdline()]
        process.kill()


def records(job: dict[str, Any]) -> int:
    return int(job["metrics"][-1]["records"]) if job["metrics"] else 0


def bundled(job: dict[str, Any]) -> bool:
    return bool(job["candidates"]) and bool(job["candidates"][0]["bundle"])


@pytest.mark.brokers
@pytest.mark.tensorflow
@pytest.mark.timeout(900)
def test_from_a_live_stream_to_a_bundle_across_kills(kafka: Kafka, service: Process, unique: str) -> None:
    """Job, feed and service are killed; each record is learnt from once, and what comes of it can be rolled out."""
    cluster = KafkaCluster(bootstrap=kafka.bootstrap)
    with Sender(cluster, unique, stream_id=unique, shape=(4,), format="raw", partitions=2) as sender:
        for x, y in zip(*draw(300, 0), strict=True):
            sender.send(x, int(y))
    often = {"checkpoint_s": 0.2, "metrics_s": 0.2, "learning_rate": 0.01}
    held_back = {"held_back": 0.4, "judged_least": 50, "certifying_least": 150}
    cutting = {"max_accuracy_loss": 0.1, "placement": ["edge", "cloud"]}
    running_job = Job(service, unique, partition=cutting, **often, **held_back)
    send_live(cluster, unique, 1000, 1)
    running_job.wait(lambda job: records(job) > 500)
    running_job.kill("cloud.training")
    send_live(cluster, unique, 500, 2)
    running_job.wait(lambda job: records(job) > 1200)
    running_job.kill("sluice.streams.feed")
    send_live(cluster, unique, 500, 4)
    running_job.wait(lambda job: records(job) > 1500)
    service.stop(signal.SIGKILL)
    send_live(cluster, unique, 1000, 3)
    service.start()
    with Group(cluster, [unique], "raw", {"shape": [4], "dtype": "float32"}, f"c-{unique}", timeout_s=5) as others:
        assert sum(len(batch.y) for batch in others) == 3300, "whoever else reads the stream reads all of it"
    job = running_job.wait(lambda job: records(job) >= 3000 and bundled(job))
    last = job["metrics"][-1]
    assert (last["records"], last["labelled"], last["lost"]) == (3000, 3000, 0), "each once"
    assert last["metrics"]["final"]["accuracy"] > 0.85
    reader = KafkaReader("look", cluster, job["consumers"])
    assert sum(reader.committed([(unique, 0), (unique, 1)]).values()) == 3300, "the group shows it"
    reader.close()
    with Client(service.url, running_job.token) as client:
        check_bundle(client, job)
        client.cancel_online(job["id"])
        with pytest.raises(PermanentError, match="cancelled"):
            client.wait_for_online(job["id"])


def check_bundle(client: Client, job: dict[str, Any]) -> None:
    """What came of the only candidate is certified on what was held back."""
    (candidate,) = job["candidates"]
    assert candidate["version"] == 2 and candidate["told"]["accuracy"] > candidate["told"]["accuracy_before"]
    manifest, training = client.manifest(candidate["bundle"]), client.training(candidate["training"])
    assert (manifest.model, manifest.version) == ("readings", 2)
    assert manifest.provenance.training == training["id"]
    held_back = sum(parse_slice(text).length for text in manifest.provenance.slices)
    assert held_back >= 150
    certificate = manifest.operating_points[0].certificate
    assert certificate is not None and 0.6 * held_back < certificate.n <= held_back
    assert all(segment.golden for segment in manifest.segments)
