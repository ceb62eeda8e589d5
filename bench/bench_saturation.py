"""How much one worker process takes, and how much the whole path, and what they do then.

One worker: offloads are written to Kafka at a steady rate for some seconds, then as fast as they go; counted are the
answers that come in that time, and the sizes of the worker's batches, from its `/metrics`. The whole path: four devices
are sent images, half of which exit there, at rising rates; a rate is sustained when it could be sent, every sample was
answered, and p99 from sensor to answer stays under a second. The shares of a core that every process takes, brokers
among them, say which one is the bottleneck.

`SLUICE_RATES=100,200` tries these rates of the whole path alone, and leaves out the worker.
"""

from __future__ import annotations

import math
import os
import secrets
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from bench.bench_worker import IMAGES as OFFLOADS
from bench.bench_worker import TOPIC
from bench.bench_worker import Stand as WorkerStand
from bench.lenet import Stand, cpu_s, images, machine_s, standing
from bench.report import Report
from sluice.dev.processes import Processes, free_port
from sluice.dev.sensor import Sensor
from sluice.doors.kafka import KafkaWriter
from tests.brokers.kafka import Kafka

WORKER_RATES = (500, 1000, 2000, 4000, 8000, 0)
"""Records a second offered to one worker; 0: as fast as they can be written."""
WORKER_S = 5.0
FLOOD = 40_000
PATH_RATES = (50, 100, 150, 200, 300, 400, 500, 600, 800, 1000)
PATH_S = 15.0
DEVICES = ("device-a", "device-b", "device-c", "device-d")
P99_S = 1.0
SETTLE_S = 5.0
"""After sending, for the answers still under way; more would be a backlog."""
SHARE_SENT = 0.98
FULL = 0.85
"""Share of a core from which on a process is said to be full; where none is, the machine is."""


@dataclass(frozen=True, slots=True)
class Batches:
    """A worker's batches so far: how many, how many records in them, and how many of at most so many records."""

    count: float
    records: float
    upto: Mapping[float, float]

    def since(self, before: Batches) -> Batches:
        """Those after `before`."""
        upto = {size: count - before.upto.get(size, 0.0) for size, count in self.upto.items()}
        return Batches(self.count - before.count, self.records - before.records, upto)

    @property
    def mean(self) -> float:
        """Records in a batch."""
        return self.records / self.count if self.count else 0.0

    def least_upto(self, share: float) -> float:
        """The bucket that `share` of the batches are not larger than."""
        return next((size for size, count in sorted(self.upto.items()) if count >= share * self.count), float("inf"))


def batches(port: int) -> Batches:
    """From a stage's `/metrics`."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, Any] = {"count": 0.0, "sum": 0.0, "bucket": {}}
    for family in text_string_to_metric_families(text):
        if family.name == "sluice_stage_batch_records":
            for sample in family.samples:
                kind = sample.name.rpartition("_")[2]
                if kind == "bucket":
                    found["bucket"][float(sample.labels["le"])] = sample.value
                elif kind in found:
                    found[kind] = sample.value
    return Batches(found["count"], found["sum"], found["bucket"])


def run(console: Console) -> Report:
    """Measure."""
    report = Report("samples a second of one worker process and of the whole path, sizes of batches seen")
    asked = os.environ.get("SLUICE_RATES", "")
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as temporary:
        folder = Path(temporary)
        if not asked:
            with Kafka() as kafka:
                _worker(report, WorkerStand(kafka, folder / "worker"), console)
        port = free_port()
        extra = {"stage-fog": {"STAGE_METRICS_PORT": str(port)}}
        with standing(folder / "path", console, DEVICES, extra=extra) as stand:
            _offer(stand, 50, 5.0)  # warm: connections, interpreters, topic partitions
            _path(report, stand, port, [int(text) for text in asked.split(",")] if asked else PATH_RATES, console)
    return report


def _worker(report: Report, stand: WorkerStand, console: Console) -> None:
    """One worker process by offered load."""
    port = free_port()
    settings = {
        "STAGE_TIER": "fog",
        "STAGE_KAFKA__BOOTSTRAP": stand.kafka.bootstrap,
        "STAGE_CLOUD_URL": "http://127.0.0.1:9",
        "STAGE_DATA": str(stand.folder),
        "STAGE_METRICS_PORT": str(port),
    }
    with Processes(stand.folder / "logs") as processes:
        process = processes.start("stage-fog", ["stage"], settings)
        process.wait_ready()
        stand.write("ours", range(500))
        _until(stand, 500, 60.0)  # warm, and its group has formed
        for rate in WORKER_RATES:
            offered = f"{rate}/s" if rate else "as fast as written"
            pids = {"worker": process.child.pid, "kafka": stand.kafka.pid, "writer and observer": os.getpid()}
            before, answered, begun = batches(port), stand.answered("ours"), time.monotonic()
            spent, machine = cpu_s(pids), machine_s()
            count = _write_at(stand, rate)
            done = _until(stand, answered + count, 120.0)
            seconds = time.monotonic() - begun
            seen = batches(port).since(before)
            made = stand.answered("ours") - answered
            shares, used = _shares(pids, spent, seconds), (machine_s() - machine) / seconds
            busy = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
            console.print(f"  worker, {offered}: {made / seconds:.0f}/s, {seen.mean:.1f} a batch; {busy}")
            for what, unit, value in (
                ("answered", "samples/s", made / seconds),
                ("records in a batch, mean", "records", seen.mean),
                ("records in a batch, 90 % at most", "records", seen.least_upto(0.9)),
                ("CPU", "% of a core", 100 * shares["worker"]),
            ):
                report.row(f"worker offered {offered}: {what}", unit).ours.append(value)
            if not rate:
                report.notes.append(f"one worker, {offered}, shares of a core: {busy}; {_bottleneck(shares, used)}")
            if not done:
                report.notes.append(f"MISSED: worker offered {offered}: {count - made} of {count} without an answer")


def _shares(pids: Mapping[str, int], before: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Share of a core that each process took since `before` (`cpu_s`), the busiest first."""
    shares = {name: (now - before[name]) / seconds for name, now in cpu_s(pids).items()}
    return dict(sorted(shares.items(), key=lambda pair: -pair[1]))


def _write_at(stand: WorkerStand, rate: int) -> int:
    """Write records for `WORKER_S` at a rate; returns how many."""
    if not rate:
        stand.write("ours", range(FLOOD))
        return FLOOD
    writer = KafkaWriter("load", stand.cluster, linger_ms=0)
    begun, written, count = time.monotonic(), 0, int(rate * WORKER_S)
    while written < count:
        due = min(count, int((time.monotonic() - begun) * rate) + 1)
        for number in range(written, due):
            writer.write(TOPIC, stand.ours[number % OFFLOADS], key=str(number))
        written = due
        writer.poll(0)
        time.sleep(0.002)
    writer.flush(30)
    return count


def _until(stand: WorkerStand, answers: int, patience_s: float) -> bool:
    """Wait until there are so many answers."""
    end = time.monotonic() + patience_s
    while stand.answered("ours") < answers:
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _path(report: Report, stand: Stand, port: int, rates: Sequence[int], console: Console) -> None:
    """The whole path by offered load, until a rate is not sustained in two tries."""
    best = 0.0
    for rate in rates:
        failed: list[str] = []
        while len(failed) < 2 and (reasons := _try(report, stand, port, rate, console)):
            failed.append(reasons)
        if len(failed) == 2:
            report.notes += [f"whole path at {rate}/s is not sustained: {reasons}" for reasons in failed]
            break
        best = rate
    report.row("whole path: sustained, p99 under 1 s", "samples/s").ours.append(best)
    if not best:
        report.notes.append(f"MISSED: not even {rates[0]}/s is sustained")


def _try(report: Report, stand: Stand, port: int, rate: int, console: Console) -> str:
    """One rate of the whole path; why it is not sustained and what was full, or nothing."""
    pids = {**stand.pids, "sensor and observer": os.getpid()}
    before, spent, machine = batches(port), cpu_s(pids), machine_s()
    sensor, sending_s, seconds = _offer(stand, rate, PATH_S)
    seen = batches(port).since(before)
    shares = _shares(pids, spent, seconds)
    told = sensor.told
    answered = [one for one in told if one.finals]
    latencies = [(one.answered_ns - one.sent_ns) / 1e6 for one in answered] or [math.nan]
    p50, p99 = (float(np.percentile(latencies, share)) for share in (50, 99))
    reasons = [
        words
        for bad, words in (
            (len(told) < SHARE_SENT * rate * sending_s, f"only {len(told) / sending_s:.0f}/s could be sent"),
            (len(answered) < len(told), f"{len(told) - len(answered)} of {len(told)} not answered in time"),
            (not p99 < 1000 * P99_S, f"p99 {p99:.0f} ms"),
        )
        if bad
    ]
    busy = ", ".join(f"{name} {share:.0%}" for name, share in list(shares.items())[:5])
    console.print(f"  whole path, {rate}/s: p99 {p99:.0f} ms, {seen.mean:.1f} a batch; {busy}; {'; '.join(reasons)}")
    for what, unit, value in (
        ("answered", "samples/s", len(answered) / sending_s),
        ("p50 sensor to answer", "ms", p50),
        ("p99 sensor to answer", "ms", p99),
        ("records in a fog batch, mean", "records", seen.mean),
        ("records in a fog batch, 90 % at most", "records", seen.least_upto(0.9)),
    ):
        report.row(f"whole path offered {rate}/s: {what}", unit).ours.append(value)
    report.notes.append(f"whole path at {rate}/s, shares of a core: {busy}")
    return "; ".join([*reasons, _bottleneck(shares, (machine_s() - machine) / seconds)]) if reasons else ""


def _bottleneck(shares: Mapping[str, float], machine: float) -> str:
    """What was full: `shares` of a core by process, the busiest first; `machine`: cores in use, by anyone."""
    name, share = next(iter(shares.items()))
    ours, cores = sum(shares.values()), os.cpu_count() or 1
    if share >= FULL:
        return f"bottleneck: {name}, {share:.0%} of a core"
    if ours >= FULL * cores:
        return f"bottleneck: the machine; all processes together take {ours:.1f} of {cores} cores, {name} most"
    if machine >= FULL * cores:
        return f"bottleneck: others on this machine take {machine - ours:.1f} of {cores} cores; this run says nothing"
    return f"bottleneck: none by CPU ({name} takes {share:.0%} of a core): something waits, perhaps for a disk"


def _offer(stand: Stand, rate: float, duration_s: float) -> tuple[Sensor, float, float]:
    """(what was told, s of sending, s until the last answer or the end of patience) at `rate` a second in all."""
    x, brokers = images(), stand.system.brokers
    sensor = Sensor(
        {device: brokers.as_user(device) for device in stand.system.devices},
        x,
        run=f"s{secrets.token_hex(3)}",
        outstanding=100_000,  # the load does not wait for answers
    )
    sensor.start()
    begun = time.monotonic()
    sensor.publish([i % len(x) for i in range(int(rate * duration_s))], rate)
    sending_s = max(time.monotonic() - begun, duration_s)
    end = begun + sending_s + SETTLE_S
    while not sensor.wait(0.2) and time.monotonic() < end:
        continue
    seconds = time.monotonic() - begun
    sensor.stop()
    return sensor, sending_s, seconds
