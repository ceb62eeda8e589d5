"""Trainings and evaluations through the service, on real Kafka: what is counted when job and service are killed.

The service, its results writer and its jobs are real processes; they are killed at random moments, and each record is
counted once all the same.
"""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cloud.training import checkpoint
from sluice.client import Client
from sluice.dev.processes import Process, Processes, free_port
from sluice.doors.kafka import KafkaCluster, KafkaReader, KafkaWriter
from sluice.streams.samples import NONE
from sluice.streams.send import send_stream
from sluice.wire.errors import TemporaryError
from tests.brokers.kafka import Kafka

pytestmark = [pytest.mark.brokers, pytest.mark.tensorflow, pytest.mark.timeout(900)]

WAIT_S = 240.0
KILLS = 3
SLOW = """
x = keras.Input((4,))
a = layers.Dense(16, activation="relu")(x)
b = layers.Dense(3000, activation="relu")(layers.Dense(3000, activation="relu")(a))
model = keras.Model(x, [layers.Dense(3, name="early")(a), layers.Dense(3, name="final")(b)])
"""
"""Some thousand records a second: there is time to be killed."""
BURST = 500
"""Records that are sent at once to a live group."""
GROUPS = """
x = keras.Input((20,))
a = layers.Dense(32, activation="relu")(x)
early = layers.Dense(3, activation="softmax", name="early")(a)
model = keras.Model(x, [early, layers.Dense(3, name="final")(layers.Dense(32, activation="relu")(a))])
"""


class Plane:
    """A control plane, its results writer, and a client of it."""

    def __init__(self, processes: Processes, folder: Path, bootstrap: str) -> None:
        self.folder = folder / "cloud"
        port = free_port()
        self.settings = {
            "CLOUD_PORT": str(port),
            "CLOUD_DATA": str(self.folder),
            "CLOUD_KAFKA__BOOTSTRAP": bootstrap,
        }
        made = processes.run(["token", "create", "--role", "admin", "--name", "test", "--json"], self.settings)
        self.access = {"SLUICE_URL": f"http://127.0.0.1:{port}", "SLUICE_TOKEN": json.loads(made)["token"]}
        self.client = Client(self.access["SLUICE_URL"], self.access["SLUICE_TOKEN"])
        self.cloud = processes.start("cloud", ["cloud"], self.settings)
        self.cloud.wait_ready()
        self.writer = processes.start("results-writer", ["results-writer"], self.settings)
        self.writer.wait_ready()

    def job(self) -> psutil.Process | None:
        """The job's process that runs now, if there is one."""
        for child in psutil.Process(self.cloud.child.pid).children(recursive=True):
            try:
                if "cloud.training" in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                    return child
            except psutil.NoSuchProcess:
                continue
        return None

    def counted(self, evaluation_id: str) -> int:
        """How many records the checkpoint of an evaluation holds."""
        found = checkpoint.read(self.folder / "jobs" / evaluation_id)
        return found[0]["tally"]["labelled"] + found[0]["tally"]["unlabelled"] if found else 0


@pytest.fixture
def plane(kafka: Kafka, processes: Processes, tmp_path: Path) -> Iterator[Plane]:
    plane = Plane(processes, tmp_path, kafka.bootstrap)
    yield plane
    plane.client.close()


@pytest.fixture
def cluster(kafka: Kafka) -> KafkaCluster:
    return KafkaCluster(bootstrap=kafka.bootstrap)


def until(what: Callable[[], object], wait_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + wait_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def end(process: Process) -> None:
    """Kill the service and start it again."""
    process.kill()
    process.start()
    process.wait_ready()


def gets_on(plane: Plane, evaluation_id: str, before: int) -> None:
    """Wait until more than `before` records are counted, or the evaluation is done."""
    until(lambda: plane.counted(evaluation_id) > before or plane.client.evaluation(evaluation_id)["result"])


def killed_again_and_again(
    plane: Plane, evaluation_id: str, whole: int, killed: Callable[[int], None] = lambda _: None
) -> int:
    """Kill job and service in turn, at random moments in which they get on; returns how many kills it was, and tells
    `killed` after each."""
    dice, done, before = random.Random(evaluation_id), 0, 0
    while done < KILLS:
        gets_on(plane, evaluation_id, before)
        time.sleep(dice.uniform(0, 0.6))  # the moment is the point
        until(lambda: plane.job() or plane.client.evaluation(evaluation_id)["result"])  # it may be beginning again
        job = plane.job()
        if job is None:
            break
        if done % 2:
            end(plane.cloud)
        else:
            job.kill()
        done += 1
        killed(done)
        before = plane.counted(evaluation_id)
        if before >= whole:
            break
    return done


def with_labels(n: int, seed: int = 0) -> tuple[Any, Any]:
    dice = np.random.default_rng(seed)
    y = dice.integers(0, 3, n)
    x = (dice.normal(size=(n, 4)) + np.eye(3, 4)[y] * 2).astype(np.float32)
    y[dice.random(n) < 0.3] = NONE
    return x, y


def is_exact(result: dict[str, Any], y: Any) -> None:
    """The counts are the records, each once."""
    known = y[y != NONE]
    assert (result["records"], result["labelled"], result["unlabelled"]) == (len(y), len(known), len(y) - len(known))
    assert (result["bad"], result["lost"]) == (0, 0)
    for name in ("early", "final"):
        matrix = np.array(result["confusion"][name]["matrix"])
        assert matrix.sum(axis=1).tolist() == np.bincount(known, minlength=3).tolist()
        assert result["metrics"][name]["accuracy"] == pytest.approx(np.trace(matrix) / matrix.sum())


def test_a_stream_is_counted_once_however_often_job_and_service_are_killed(
    plane: Plane, cluster: KafkaCluster, unique: str
) -> None:
    x, y = with_labels(30_000)
    send_stream(cluster, unique, x, y, stream_id=unique, format="raw", partitions=3)
    plane.client.stream(unique, wait_s=60)
    plane.client.add_model("slow", SLOW)
    started = plane.client.evaluate(unique, model="slow")["id"]
    kills = killed_again_and_again(plane, started, len(y))
    done = plane.client.wait_for_evaluation(started)
    is_exact(done["result"], y)
    assert kills == KILLS, "or there was nothing to see"
    records = [one["records"] for one in done["metrics"]]
    assert records == sorted(records) and records[-1] == len(y)


def test_a_live_group_is_counted_once_however_often_job_and_service_are_killed(
    plane: Plane, cluster: KafkaCluster, unique: str
) -> None:
    """While records go on coming, some for each kill; the group's offsets follow: its lag is nought in the end."""
    x, y = with_labels(12_000)
    send_stream(cluster, unique, x[:100], y[:100], stream_id=unique, format="raw", partitions=3)
    plane.client.stream(unique, wait_s=60)
    plane.client.add_model("slow", SLOW)
    group = f"group-{unique}"
    started = plane.client.evaluate(unique, model="slow", live={"timeout_s": None, "group": group})["id"]

    due = threading.Semaphore(len(y) // (KILLS + 1) // BURST)

    def send() -> None:
        writer = KafkaWriter("test", cluster)
        for i in range(100, len(y)):
            if i % BURST == 0:
                writer.flush(30)
                assert due.acquire(timeout=WAIT_S)
                time.sleep(0.2)
            key = None if y[i] == NONE else str(y[i])
            while True:
                try:
                    writer.write(unique, x[i].tobytes(), key=key, partition=i % 3)
                    break
                except TemporaryError:
                    writer.poll(0.1)
        assert writer.flush(30) == 0

    sender = threading.Thread(target=send)
    sender.start()
    kills = killed_again_and_again(plane, started, len(y), lambda _: due.release(len(y) // (KILLS + 1) // BURST))
    sender.join(WAIT_S)
    until(lambda: plane.counted(started) >= len(y))
    plane.client.finish_evaluation(started)
    done = plane.client.wait_for_evaluation(started)
    is_exact(done["result"], y)
    assert kills == KILLS, "or there was nothing to see"
    reader = KafkaReader("test", cluster, group)
    places = [(unique, number) for number in range(3)]
    ends = {place: reader.watermarks(place)[1] for place in places}
    assert reader.committed(places) == ends
    reader.close()


def test_an_evaluation_ends_as_it_was_told_to(
    plane: Plane, cluster: KafkaCluster, processes: Processes, unique: str
) -> None:
    """Of a slice; after a number of records; by its command; when it is told to, or cancelled, and its figures stay."""
    x, y = with_labels(5000)
    said = send_stream(cluster, unique, x, y, stream_id=unique, format="raw")
    plane.client.stream(unique, wait_s=60)
    plane.client.add_model("groups", GROUPS.replace("(20,)", "(4,)"))
    some = plane.client.evaluate(unique, model="groups", slices=[f"{unique}:0:10:300", f"{unique}:0:200:300"])
    assert plane.client.wait_for_evaluation(some["id"])["result"]["records"] == 490
    told = processes.run(["evaluate", "groups", unique, "--json"], plane.access, WAIT_S)
    is_exact(json.loads(told), y)
    live = ["--live", "--records", "1200", "--group", unique, "--json"]
    first = json.loads(processes.run(["evaluate", "groups", unique, *live], plane.access, WAIT_S))
    assert 1200 <= first["records"] < 2300
    rest = ["--live", "--timeout-s", "3", "--group", unique, "--json"]
    second = json.loads(processes.run(["evaluate", "groups", unique, *rest], plane.access, WAIT_S))
    assert first["records"] + second["records"] == said.count, "a group goes on where it stopped"
    one, other = (plane.client.evaluate(unique, model="groups", live={"timeout_s": None})["id"] for _ in range(2))

    def figures(which: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = plane.client.evaluation(which)["metrics"]
        return found[-1] if found else {"records": 0}

    until(lambda: all(figures(which)["records"] == said.count for which in (one, other)))
    plane.client.finish_evaluation(one)
    is_exact(plane.client.wait_for_evaluation(one)["result"], y)
    plane.client.cancel_evaluation(other)
    until(lambda: plane.client.evaluation(other)["state"] == "cancelled")
    assert figures(other)["metrics"]["final"]["accuracy"] is not None
    brief = plane.client.evaluations()
    assert brief[0]["id"] == other and all("confusion" not in (row["result"] or {}) for row in brief)


def test_from_few_labels_to_a_bundle_that_is_asked(plane: Plane, cluster: KafkaCluster, unique: str) -> None:
    """A training that labels most of the stream itself; what came of it, and the bundle, on a stream that is new."""
    dice = np.random.default_rng(1)
    centres = dice.normal(size=(3, 20))
    centres *= 3.2 / np.linalg.norm(centres, axis=1, keepdims=True)
    kinds = dice.integers(0, 3, 4000)
    x = (centres[kinds] + dice.normal(size=(4000, 20))).astype(np.float32)
    y = kinds[:3000].copy()
    y[100:] = NONE
    new = f"{unique}-new"
    send_stream(cluster, unique, x[:3000], y, stream_id=unique, format="raw", validation_rate=0.3)
    send_stream(cluster, new, x[3000:], kinds[3000:], stream_id=new, format="raw")
    for name in (unique, new):
        plane.client.stream(name, wait_s=60)
    plane.client.add_model("groups", GROUPS)
    started = plane.client.train(
        "groups",
        unique,
        epochs=20,
        learning_rate=0.005,
        early_stopping={"patience": 10, "share": 0.25},
        pseudo_labels={"confidence": 0.9, "rounds": 2},
    )["id"]
    trained = plane.client.wait_for_training(started)["result"]
    assert (trained["records"], trained["unlabelled"]) == (3000, 2900)
    assert [one["round"] for one in trained["rounds"]] == [0, 1, 2] and trained["rounds"][1]["labelled"] > 1000
    assert sum(one["kept"] for one in trained["rounds"]) == 1
    assert np.array(trained["confusion"]["final"]["matrix"]).sum() == pytest.approx(30, abs=2), "labelled records alone"

    asked = plane.client.evaluate(new, training=started)["id"]
    right = plane.client.wait_for_evaluation(asked)["result"]["metrics"]["final"]["accuracy"]
    assert right > 0.8
    cut = plane.client.partition(started, placement=["edge", "cloud"], thresholds=[0.5])["id"]
    bundle = plane.client.wait_for_partition(cut)["bundle"]
    asked = plane.client.evaluate(new, bundle=bundle)["id"]
    done = plane.client.wait_for_evaluation(asked)
    assert (done["bundle"], done["operating_point"], done["result"]["records"]) == (bundle, "default", 1000)
    assert sum(done["result"]["exit_share"].values()) == pytest.approx(1)
    assert done["result"]["metrics"]["operating point"]["accuracy"] == pytest.approx(right, abs=0.1)
