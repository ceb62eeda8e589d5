"""What the agent costs a device: memory and CPU on windows as those of UCI HAR (128 rows of 9 channels, hop 64).

The agent runs in an environment made by `pip install .[edge]` alone, on real Mosquitto, with its receipts and answers
from a stand-in for all that is above. Two loads: a reading a row, 50 a second, as a wearable sends them; and 100
windows a second, a reading being the 64 rows that make the next window. CPU is that of all threads of the process, from
the kernel. The baseline (`bare_device.py`) does in one loop what nobody can leave out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console

from bench.report import Report
from tests.brokers.mosquitto import Mosquitto
from tests.installing import environment
from tests.integration.edge_support import (
    Above,
    MadeBundle,
    User,
    agent_settings,
    broker_of,
    make_bundle,
    rss_kb,
    until,
)

REPETITIONS = 3
ROWS, CHANNELS, HOP = 128, 9, 64
WINDOWS = 1000
WINDOWS_HZ = 100.0
ROW_HZ = 50.0
ROW_S = 10.0
IDLE_S = 5.0
MODEL = """
keras.utils.set_random_seed(3)
x = keras.Input((128, 9))
a = layers.MaxPooling1D(2)(layers.Conv1D(16, 5, strides=2, activation="relu")(x))
first = layers.Dense(3, name="first")(layers.GlobalAveragePooling1D()(a))
b = layers.Conv1D(32, 5, activation="relu")(a)
final = layers.Dense(3, name="final")(layers.GlobalAveragePooling1D()(b))
model = keras.Model(x, [first, final])
"""
ROW_BY_ROW = {"EDGE_INPUT__WINDOW": str(ROWS), "EDGE_INPUT__HOP": str(HOP)}
BLOCKS = {"EDGE_INPUT__WINDOW": str(ROWS // HOP), "EDGE_INPUT__HOP": "1"}


class Device:
    """A running agent, and what the kernel knows of it."""

    def __init__(self, process: subprocess.Popen[bytes], user: User, above: Above) -> None:
        self.pid, self.user, self.above = process.pid, user, above

    def cpu_s(self) -> float:
        """CPU seconds of all threads so far."""
        threads = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9

    def rss_mb(self) -> float:
        """Resident memory now."""
        return rss_kb(self.pid) * 1024 / 1e6

    def written(self) -> int:
        """Bytes that it made the kernel write to storage so far."""
        fields = Path(f"/proc/{self.pid}/io").read_text().split()
        return int(fields[fields.index("write_bytes:") + 1])

    def commits(self) -> int:
        """Transactions of its store so far, as it counts them; it reports that once a second."""
        time.sleep(1.5)
        return self.above.reported[-1].counters["store_writes"]

    def answered(self, count: int) -> None:
        """Wait until so many answers were heard."""
        until(lambda: len(self.user.heard) >= count)

    def send(self, readings: list[bytes], rate_hz: float) -> None:
        """Publish readings at their pace."""
        begun = time.monotonic()
        for i, payload in enumerate(readings):
            time.sleep(max(0.0, begun + i / rate_hz - time.monotonic()))
            self.user.publish(payload)


@contextmanager
def running(bin_: Path, made: MadeBundle, mosquitto: Mosquitto, folder: Path, more: dict[str, str]) -> Iterator[Device]:
    """An agent of the environment `bin_` that runs the bundle."""
    device = f"device-{folder.parent.name}-{folder.name}"  # the broker remembers what one reported
    broker = broker_of(mosquitto)
    bundle = folder / "data" / "bundles" / made.digest
    bundle.parent.mkdir(parents=True)
    bundle.symlink_to(made.folder)
    settings = agent_settings(made, device, folder / "data", mosquitto) | {"EDGE_AUDIT_SHARE": "0.01"}
    settings |= {"EDGE_REPORT_INTERVAL_S": "1"} | more
    with User(broker, device) as user, Above(broker, device) as above, (folder / "log").open("wb") as log:
        above.desire(made.desired(device))
        environment = {"PATH": os.environ["PATH"], **settings}
        process = subprocess.Popen(
            [str(bin_ / "python"), "-P", "-m", "edge_agent"], env=environment, cwd=folder, stdout=log, stderr=log
        )
        try:
            until(lambda: above.runs().bundle == made.digest)
            yield Device(process, user, above)
        finally:
            process.terminate()
            process.wait(30)


def readings(made: MadeBundle, sample: int) -> list[bytes]:
    """Blocks of 64 rows, in JSON: one half of the sample again and again, so that each window is the sample."""
    block = made.samples[sample][: HOP * CHANNELS]
    return [json.dumps({"values": block.tolist()}).encode()] * WINDOWS


def bare(made: MadeBundle, folder: Path, payloads: list[bytes]) -> dict[str, float]:
    """What the bare loop needs for the same readings."""
    file = folder / "readings"
    file.write_bytes(b"\n".join(payloads))
    command = [sys.executable, "-m", "bench.bare_device", str(made.folder), str(file), "--blocks", str(ROWS // HOP)]
    done = subprocess.run([*command, "--rate", str(WINDOWS_HZ)], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run(console: Console) -> Report:
    """Measure."""
    report = Report("the agent in its own environment, windows of 128 x 9 with hop 64, against the bare loop")
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as temporary, Mosquitto() as mosquitto:
        folder = Path(temporary)
        bin_ = environment(folder / "edge", "--constraint", "constraints.txt", ".[edge]")
        halves = np.random.default_rng(1).normal(size=(60, HOP, CHANNELS)).astype(np.float32).round(4)
        made = make_bundle(folder / "bundle", source=MODEL, x=np.concatenate([halves, halves], axis=1))
        for repetition in range(REPETITIONS):
            console.print(f"repetition {repetition + 1} of {REPETITIONS}")
            own = folder / f"r{repetition}"
            own.mkdir()
            _row_by_row(report, bin_, made, mosquitto, own)
            _at_full_pace(report, bin_, made, mosquitto, own)
    return report


def _row_by_row(report: Report, bin_: Path, made: MadeBundle, mosquitto: Mosquitto, own: Path) -> None:
    folder = own / "rows"
    folder.mkdir()
    with running(bin_, made, mosquitto, folder, ROW_BY_ROW) as device:
        report.row("resident, segment loaded (limit 80)", "MB").ours.append(device.rss_mb())
        before = device.cpu_s()
        time.sleep(IDLE_S)
        report.row("CPU with no readings", "% of a core").ours.append(100 * (device.cpu_s() - before) / IDLE_S)
        rows = [json.dumps({"values": row.round(4).tolist()}).encode() for row in made.samples.reshape(-1, CHANNELS)]
        before, written, begun = device.cpu_s(), device.written(), time.monotonic()
        count = int(ROW_S * ROW_HZ)
        device.send(rows[:count], ROW_HZ)
        spent = device.cpu_s() - before
        share = 100 * spent / (time.monotonic() - begun)
        report.row(f"CPU at {ROW_HZ:g} readings/s of one row", "% of a core").ours.append(share)
        report.row("CPU a reading of one row, in all", "ms").ours.append(1000 * spent / count)
        report.row("written to storage a reading of one row", "bytes").ours.append((device.written() - written) / count)


def _at_full_pace(report: Report, bin_: Path, made: MadeBundle, mosquitto: Mosquitto, own: Path) -> None:
    for what, which in (("answered on the device", made.easy[-1]), ("sent on", made.hard[0])):
        folder = own / what.split()[0]
        folder.mkdir()
        payloads = readings(made, which)
        with running(bin_, made, mosquitto, folder, BLOCKS) as device:
            device.send(payloads[:100], WINDOWS_HZ)  # warm
            device.answered(99)
            commits = device.commits()
            before, written = device.cpu_s(), device.written()
            device.send(payloads[100:], WINDOWS_HZ)
            device.answered(len(payloads) - 1)
            samples = len(payloads) - 100
            spent = (device.cpu_s() - before) / samples
            writes = (device.written() - written) / samples
            commits = device.commits() - commits
            report.row(f"resident after {WINDOWS} windows {what} (limit 80)", "MB").ours.append(device.rss_mb())
        base = bare(made, folder, payloads)
        row = report.row(f"CPU a sample {what}, {WINDOWS_HZ:g}/s", "ms")
        row.ours.append(1000 * spent)
        row.baseline.append(1000 * base["sample_s"])
        own_cost = report.row(f"of it beyond the segment's run, {what} (limit 0.5)", "ms")
        own_cost.ours.append(1000 * (spent - base["run_s"]))
        own_cost.baseline.append(1000 * (base["sample_s"] - base["run_s"]))
        report.row(f"written to storage a sample {what}", "bytes").ours.append(writes)
        report.row(f"transactions of the store a sample {what}", "").ours.append(commits / samples)
