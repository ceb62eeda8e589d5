"""Online learning from a live stream on real Kafka, as the job that the control plane starts, feed and all.

How many windows of UCI HAR it learns from in a second, tested before they are learnt from, against `bare_online`, which
makes the same updates from arrays in memory. Checkpoints and drift detection are on, nothing is held back, so that the
updates are the same.

And what it is good for: a model is trained once on the windows of ten people, which stand on a topic; the other twenty
come as a stream, person by person. The job is told what its model was trained on, as the control plane tells it.
Accuracy over that stream is set against that of the model as it was trained.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bench import data
from bench.chains import har_net, quiet_keras, train
from bench.report import Report
from cloud.job_process import JOB, Event, Limits, Program, run_job
from sluice.doors.kafka import KafkaCluster, KafkaReader, KafkaWriter
from sluice.doors.kafka_topics import ensure_topics
from sluice.wire.state import Announcement
from tests.brokers.kafka import Kafka

SEEDS = (0, 1, 2, 3, 4)
REPETITIONS = 5
RECORDS = 30_000
WARM = 5_000
"""Records before measuring begins: graphs are made, buffers filled."""
BATCH, REPLAY, BUFFER = 32, 32, 2000
FIRST_PEOPLE = 10
EPOCHS = 12
PARTITIONS = 2
LIMITS = Limits(time_s=3600, memory=4_000_000_000, output=4_000_000_000, log=1_000_000, events_s=100_000)


def run(console: Console, seeds: tuple[int, ...] = SEEDS, repetitions: int = REPETITIONS) -> Report:
    """Measure."""
    report = Report(f"online learning, batches of {BATCH} and {REPLAY} of the past, test-then-train, UCI HAR")
    x, y, people = _people()
    random = np.random.default_rng(0)
    with Kafka() as kafka, tempfile.TemporaryDirectory() as name:
        cluster, folder = KafkaCluster(bootstrap=kafka.bootstrap), Path(name)
        rows = random.integers(0, len(y), RECORDS)
        _speed(report, console, cluster, folder, x[rows], y[rows], repetitions)
        for seed in seeds:
            _shift(report, console, cluster, folder / f"seed-{seed}", x, y, people, seed)
    report.notes.append(f"trained once on {FIRST_PEOPLE} people, the others in the order of their numbers")
    return report


def _people() -> tuple[Any, Any, Any]:
    """All windows, their labels, and whose they are."""
    har = data.har()
    x = np.concatenate([har.x_train, har.x_test])
    y = np.concatenate([har.y_train, har.y_test])
    return x, y, np.concatenate([har.subject_train, har.subject_test])


def _speed(
    report: Report, console: Console, cluster: KafkaCluster, folder: Path, x: Any, y: Any, repetitions: int
) -> None:
    topic = "speed"
    announcement = _send(cluster, topic, x, y)
    model, arrays = folder / "model.keras", folder / "data.npz"
    har_net().save(model)
    np.savez(arrays, x=x, y=y)
    row = report.row("samples a second, against the same updates from memory", "samples/s")
    for number in range(repetitions):

        def bare() -> float:
            command = [sys.executable, "-m", "bench.bare_online", str(model), str(arrays)]
            command += map(str, (BATCH, REPLAY, BUFFER, WARM))
            told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=data.ROOT)
            return float(json.loads(told.stdout.splitlines()[-1])["rate"])

        def ours(number: int = number) -> float:
            metrics, _ = _learn_on(cluster, announcement, folder / f"job-{number}", model, records=len(y))
            warm = next(entry for entry in metrics if entry["records"] >= WARM)
            last = metrics[-1]
            return float((last["records"] - warm["records"]) / (last["seconds"] - warm["seconds"]))

        for turn in (bare, ours) if number % 2 == 0 else (ours, bare):
            (row.baseline if turn is bare else row.ours).append(turn())
        console.print(f"  {row.ours[-1]:.0f} samples/s, from memory {row.baseline[-1]:.0f}")


def _shift(
    report: Report, console: Console, cluster: KafkaCluster, folder: Path, x: Any, y: Any, people: Any, seed: int
) -> None:
    random = np.random.default_rng(seed)
    order = np.unique(people)
    known = np.isin(people, order[:FIRST_PEOPLE])
    rows = np.concatenate([random.permutation(np.flatnonzero(people == one)) for one in order[FIRST_PEOPLE:]])
    quiet_keras().utils.set_random_seed(seed)
    model = har_net()
    train(model, x[known], y[known], EPOCHS, BATCH)
    folder.mkdir()
    model.save(folder / "model.keras")
    answered = model.predict(x[rows], batch_size=256, verbose=0)
    first = _send(cluster, f"first-{seed}", x[known], y[known])
    announcement = _send(cluster, f"shift-{seed}", x[rows], y[rows], partitions=1)
    path, n = folder / "model.keras", len(rows)
    _, result = _learn_on(cluster, announcement, folder / "job", path, _whole(cluster, first), records=n, seed=seed)
    for name in ("early", "final"):
        row = report.row(f"accuracy over the stream, exit {name}, against the model trained once", "share")
        row.baseline.append(float((answered[name].argmax(axis=-1) == y[rows]).mean()))
        row.ours.append(result["metrics"][name]["whole_accuracy"])
        console.print(f"  seed {seed}, {name}: {row.ours[-1]:.4f}, trained once {row.baseline[-1]:.4f}")


def _send(cluster: KafkaCluster, topic: str, x: Any, y: Any, partitions: int = PARTITIONS) -> Announcement:
    """Windows as raw records, in their order; announced are none of them: what is read is what came after."""
    ensure_topics(cluster, {topic: partitions})
    writer = KafkaWriter("bench", cluster, linger_ms=5, options={"queue.buffering.max.kbytes": 1_000_000})
    for i in range(len(y)):
        writer.write(topic, x[i].tobytes(), key=str(y[i]), partition=i % partitions)
        writer.poll()
    assert writer.flush(120) == 0
    said = {"stream_id": topic, "slices": [f"{topic}:0:0:0"], "format": "raw", "validation_rate": 0, "count": 0}
    return Announcement.model_validate(said | {"config": {"shape": list(x.shape[1:]), "dtype": "float32"}})


def _whole(cluster: KafkaCluster, stream: Announcement) -> Announcement:
    """The same stream, with all that is on its topic announced."""
    reader = KafkaReader("bench", cluster, "bench")
    topic = stream.stream_id
    counts = [reader.watermarks((topic, partition))[1] for partition in range(PARTITIONS)]
    reader.close()
    slices = [f"{topic}:{partition}:0:{count}" for partition, count in enumerate(counts)]
    return stream.model_copy(update={"slices": slices, "count": sum(counts)})


def _learn_on(
    cluster: KafkaCluster,
    announcement: Announcement,
    folder: Path,
    model: Path,
    known: Announcement | None = None,
    **settings: Any,
) -> tuple[list[Event], Any]:
    """(the job's metrics, its result) after it has learnt from all."""
    folder.mkdir()
    (folder / "input.keras").write_bytes(model.read_bytes())
    settings = {"batch": BATCH, "replay": REPLAY, "buffer": BUFFER, "held_back": 0, "metrics_s": 0.2} | settings
    job = {"kind": "online", "model": {"file": "input.keras"}, "stream": announcement.model_dump()}
    job |= {"trained_on": known.slices if known else [], "settings": settings}
    (folder / JOB).write_text(json.dumps(job))
    live = {"topics": [announcement.stream_id], "group": folder.parent.name + folder.name, "batch": 256}
    past = None if known is None else {"stream": known.model_dump(), "most": BUFFER}
    wish = {"kafka": cluster.model_dump(), "stream": announcement.model_dump(), "live": live, "past": past}
    metrics: list[Event] = []

    def hear(event: Event) -> None:
        if event["event"] == "metrics":
            metrics.append(event)

    program, hidden = Program("cloud.training"), folder / "hidden"
    report = run_job(program, folder, hidden, LIMITS, threading.Event(), hear, json.dumps(wish))
    if report.state != "done":
        raise RuntimeError(f"the job {report.state}: {report.reason}")
    return metrics, report.result
