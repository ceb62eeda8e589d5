"""Whole trainings from a stream, as the control plane's job does them, next to Keras' `fit` on arrays in memory.

MNIST, UCI HAR and hcopd with the models of `examples/`, five seeds each. Both sides have the same samples to train on
and to validate with, the same model, weights to begin with, batches and epochs, and leave a saved model. Ours is the
job on its own code path (`cloud.job_process`): a process that reads Kafka and feeds another one, which trains,
validates after each epoch, keeps checkpoints, reports metrics and counts a confusion matrix. `bare_training.py` is the
other side.

The seconds to compare leave out what is the same for both and hides the rest, starting Python and importing TensorFlow:
ours are from the job's beginning, when it has nothing of the stream yet, to the saved model, the others' from arrays in
memory to the saved model. Another row has the whole processes by the clock, a third the CPU time of all that ran.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bench import data
from bench.report import Report
from cloud.job_process import Limits, Program, run_job
from sluice.doors.kafka import KafkaCluster
from sluice.streams.feed import Wish
from sluice.streams.files import read_samples
from sluice.streams.reader import load_stream, split_stream
from sluice.streams.send import send_stream
from sluice.wire.state import Announcement
from tests.brokers.kafka import Kafka

SEEDS = range(5)
EXAMPLES = data.ROOT / "examples"
LIMITS = Limits(time_s=600, memory=8_000_000_000, output=1_000_000_000, log=1_000_000)
LIMIT = 1.05


@dataclass(frozen=True, slots=True)
class Case:
    """What is trained: the model is that of `examples/NAME`."""

    name: str
    epochs: int
    batch: int
    learning_rate: float
    validation_rate: float

    @property
    def source(self) -> str:
        """The model's source."""
        return (EXAMPLES / self.name / "model.py").read_text()

    def settings(self, seed: int) -> dict[str, Any]:
        """What both sides are told."""
        return {"epochs": self.epochs, "batch": self.batch, "learning_rate": self.learning_rate, "seed": seed}


CASES = (
    Case("copd", epochs=60, batch=10, learning_rate=0.01, validation_rate=0.3),
    Case("har", epochs=15, batch=64, learning_rate=1e-3, validation_rate=0.3),
    Case("mnist", epochs=3, batch=128, learning_rate=1e-3, validation_rate=0.2),
)


def sent(cluster: KafkaCluster, case: Case) -> Announcement:
    """The case's data set as a stream: a table as csv, windows and images raw, in two topic partitions."""
    settings: dict[str, Any] = {"format": "raw", "validation_rate": case.validation_rate, "partitions": 2}
    x: Any
    if case.name == "mnist":
        x, y, _, _ = data.mnist()
    elif case.name == "har":
        har = data.har()
        x, y = har.x_train, har.y_train
    else:
        found = read_samples(data.folder() / "hcopd" / "HCOPD_Dataset.csv", label="Diagnosis")
        assert found.y is not None
        x, y = found.x, found.y
        settings |= {"format": "csv", "features": found.features, "labels": found.labels}
    return send_stream(cluster, case.name, x, y, stream_id=case.name, **settings)


def write_arrays(cluster: KafkaCluster, stream: Announcement, path: Path) -> None:
    """The samples that the job will train on and validate with, as arrays."""
    x, y = load_stream(cluster, stream)
    train, held_out = split_stream(stream, y, len(x))
    np.savez(path, x=x[train], y=y[train], x_val=x[held_out], y_val=y[held_out])


def from_stream(folder: Path, case: Case, seed: int, cluster: KafkaCluster, stream: Announcement) -> dict[str, float]:
    """One training as a job."""
    job = {
        "kind": "training",
        "model": {"source": case.source},
        "stream": stream.model_dump(),
        "settings": case.settings(seed),
    }
    (folder / "job.json").write_text(json.dumps(job))
    hidden = folder.with_name(f"{folder.name}-hidden")
    hidden.mkdir()
    wish = Wish(kafka=cluster, stream=stream, classes=None).model_dump_json()
    events: list[dict[str, Any]] = []
    report = run_job(Program("cloud.training"), folder, hidden, LIMITS, threading.Event(), events.append, wish)
    if report.state != "done":
        raise RuntimeError(f"{case.name}: {report.reason}")
    told = [event for event in events if event["event"] == "metrics"]
    assert len(told) == case.epochs
    return {"seconds": report.result["seconds"], "accuracy": report.result["metrics"]["final"]["val_accuracy"]}


def from_arrays(folder: Path, case: Case, seed: int, arrays: Path) -> dict[str, float]:
    """The same by Keras alone."""
    (folder / "spec.json").write_text(json.dumps({"source": case.source, **case.settings(seed)}))
    (folder / "arrays.npz").symlink_to(arrays)
    command = [sys.executable, "-m", "bench.bare_training", str(folder)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, cwd=data.ROOT, capture_output=True)
    result: dict[str, float] = json.loads((folder / "result.json").read_text())
    return result


def measured(train: Any, *given: Any) -> dict[str, float]:
    """What `train` returns, with `wall` and `cpu`, seconds, of all processes that it started."""
    spent, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    result: dict[str, float] = train(*given)
    wall, now = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime
    return {**result, "wall": wall, "cpu": cpu}


def run(console: Console) -> Report:
    """Measure."""
    report = Report("trainings from a stream as a job, against Keras on arrays in memory; five seeds")
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as temporary, Kafka() as kafka:
        cluster = KafkaCluster(bootstrap=kafka.bootstrap)
        for case in CASES:
            stream = sent(cluster, case)
            folder = Path(temporary) / case.name
            folder.mkdir()
            write_arrays(cluster, stream, folder / "arrays.npz")
            _case(report, console, folder, case, cluster, stream)
    return report


def _case(
    report: Report, console: Console, folder: Path, case: Case, cluster: KafkaCluster, stream: Announcement
) -> None:
    for seed in SEEDS:
        found: dict[str, dict[str, float]] = {}
        for side in ("ours", "bare") if seed % 2 else ("bare", "ours"):
            place = folder / f"{side}-{seed}"
            place.mkdir()
            if side == "ours":
                found[side] = measured(from_stream, place, case, seed, cluster, stream)
            else:
                found[side] = measured(from_arrays, place, case, seed, folder / "arrays.npz")
        console.print(
            f"  {case.name}, seed {seed}: "
            + "; ".join(
                f"{side} {one['seconds']:.2f} s, in all {one['wall']:.1f} s, accuracy {one['accuracy']:.3f}"
                for side, one in found.items()
            )
        )
        for what, unit, key in (
            (f"training (limit {LIMIT})", "s", "seconds"),
            ("with Python and TensorFlow starting", "s", "wall"),
            ("CPU time of all processes", "s", "cpu"),
            ("accuracy of the final exit", "share", "accuracy"),
        ):
            row = report.row(f"{case.name}: {what}", unit)
            row.ours.append(found["ours"][key])
            row.baseline.append(found["bare"][key])
    _judge(report, case)


def _judge(report: Report, case: Case) -> None:
    """Notes on time and accuracy."""
    _, _, ratio = report.row(f"{case.name}: training (limit {LIMIT})", "s").medians()
    if ratio is not None and ratio > LIMIT:
        report.notes.append(f"MISSED: {case.name}: {ratio:.3f} times as long, {LIMIT} wanted")
    row = report.row(f"{case.name}: accuracy of the final exit", "share")
    gap = statistics.mean(row.ours) - statistics.mean(row.baseline)
    noise = 2 * ((statistics.variance(row.ours) + statistics.variance(row.baseline)) / len(row.ours)) ** 0.5
    said = f"{case.name}: accuracy {100 * gap:+.2f} points, noise of {len(row.ours)} seeds ±{100 * noise:.2f}"
    report.notes.append(said if abs(gap) <= noise else f"MISSED: {said}")
