"""Rollouts under load: another bundle, other operating points, while two devices are sent 150 images a second.

Seen from outside, by an observer of the devices: every sample has its answer, once, and each answer's outputs are what
the chain of its own bundle gives for that image. What a mixture of two bundles' segments would give is worked out as
well, so that the notes can say how many of the samples would have shown it. The longest gap in the answers around each
rollout stands next to the longest gap in a time of the same length in which nothing was rolled out.
"""

from __future__ import annotations

import secrets
import statistics
import tempfile
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bench.lenet import Chain, Stand, images, standing
from bench.report import Report
from sluice.dev.sensor import Sensor, Told

DEVICES = ("device-a", "device-b")
RATE_HZ = 150.0
SWAPS = (
    (1, "default"),
    (1, "sure"),
    (0, "default"),
    (0, "up"),
    (1, "default"),
    (1, "device"),
    (0, "default"),
    (1, "up"),
)
"""(bundle, operating point), one after the other."""
QUIET_S = 4.0
"""Before each rollout nothing changes for so long; as long is looked at from the beginning of each rollout."""
LATE_S = 30.0
"""For the last answers."""
TOLERANCE = 1e-4
"""Between probabilities: batches of other sizes differ in the last bits."""


def run(console: Console) -> Report:
    """Measure."""
    report = Report(
        f"rollouts while two devices are sent {RATE_HZ:g} images a second: lost, mixed, gaps in the answers"
    )
    with (
        tempfile.TemporaryDirectory(prefix="sluice-bench-") as temporary,
        standing(Path(temporary), console, DEVICES, bundles_wanted=2) as stand,
    ):
        _send(stand, 300)  # warm: connections, interpreters, topic partitions
        swaps, sensor = _under_load(stand, console)
        _gaps(report, sensor.told, swaps)
        _lost(report, sensor, stand)
        _mixed(report, sensor, stand.chains)
    return report


def _sensor(stand: Stand) -> Sensor:
    brokers = {device: stand.system.brokers.as_user(device) for device in DEVICES}
    sensor = Sensor(brokers, images(), run=f"h{secrets.token_hex(3)}", outstanding=10_000)
    sensor.start()
    return sensor


def _send(stand: Stand, count: int) -> None:
    sensor = _sensor(stand)
    sensor.publish([i % len(sensor.samples) for i in range(count)], RATE_HZ)
    if not sensor.wait(LATE_S):
        raise RuntimeError("samples were lost before anything was rolled out")
    sensor.stop()


def _under_load(stand: Stand, console: Console) -> tuple[list[tuple[str, int, int]], Sensor]:
    """(rollouts as (what, begun, done) in monotonic ns, the sensor with what was told)."""
    sensor, ending = _sensor(stand), threading.Event()

    def send() -> None:
        while not ending.is_set():
            at = len(sensor.told)
            sensor.publish([(at + i) % len(sensor.samples) for i in range(int(RATE_HZ / 2))], RATE_HZ)

    sending = threading.Thread(target=send, name="sending")
    sending.start()
    swaps = []
    try:
        for bundle, point in SWAPS:
            time.sleep(2 * QUIET_S)
            begun = time.monotonic_ns()
            stand.roll_out(stand.chains[bundle], point)
            swaps.append((f"bundle {bundle + 1} at {point}", begun, time.monotonic_ns()))
            console.print(f"  {swaps[-1][0]}: on all devices after {(swaps[-1][2] - begun) / 1e9:.1f} s")
        time.sleep(QUIET_S)
    finally:
        ending.set()
        sending.join()
    sensor.wait(LATE_S)
    sensor.stop()
    return swaps, sensor


def _gaps(report: Report, told: list[Told], swaps: list[tuple[str, int, int]]) -> None:
    """The longest gap in the answers of a device, around each rollout and just before it."""
    for what, begun, done in swaps:
        length = max(done - begun, int(QUIET_S * 1e9))
        row = report.row("longest gap in a device's answers, against a quiet time", "ms")
        row.ours.append(_longest(told, begun, begun + length))
        row.baseline.append(_longest(told, begun - length, begun))
        report.row("rollout to both devices", "ms").ours.append((done - begun) / 1e6)
        report.notes.append(f"{what}: longest gap {row.ours[-1]:.0f} ms, before it {row.baseline[-1]:.0f} ms")
    slowest = [(one.answered_ns - one.sent_ns) / 1e6 for one in told if one.finals]
    cuts = statistics.quantiles(slowest, n=100)
    report.row("p50 sensor to answer, all the time", "ms").ours.append(cuts[49])
    report.row("p99 sensor to answer, all the time", "ms").ours.append(cuts[98])


def _longest(told: list[Told], begin: int, end: int) -> float:
    """Longest time, ms, without an answer of one of the devices, between two moments."""
    longest = 0
    for device in DEVICES:
        times = sorted(t.answered_ns for t in told if t.device == device and begin <= t.answered_ns < end)
        times = [begin, *times, end]
        longest = max(longest, *(b - a for a, b in pairwise(times)))
    return longest / 1e6


def _lost(report: Report, sensor: Sensor, stand: Stand) -> None:
    """Samples without an answer, and answers told more than once."""
    told = sensor.told
    lost = sum(not one.finals for one in told)
    repeated = sum(len(one.finals) - 1 for one in told if one.finals) - sensor.redelivered
    report.row("samples sent", "samples").ours.append(len(told))
    report.row("lost", "samples").ours.append(lost)
    report.row("answered twice", "samples").ours.append(repeated)
    digests = {chain.digest: number + 1 for number, chain in enumerate(stand.chains)}
    by = Counter(
        f"bundle {digests[p.bundle]} at {p.operating_point} on {p.tier}" for one in told for p in one.finals[:1]
    )
    report.notes.append("answered by " + ", ".join(f"{who}: {count}" for who, count in sorted(by.items())))
    if lost or repeated:
        report.notes.append(f"MISSED: {lost} samples lost, {repeated} answered twice; wanted: none")


def _mixed(report: Report, sensor: Sensor, chains: tuple[Chain, ...]) -> None:
    """Answers whose outputs are not what their own bundle's chain gives for the image."""
    x = images()
    own: dict[str, Any] = {chain.digest: chain.probabilities(x) for chain in chains}
    others: dict[str, Any] = {
        chain.digest: [found for other in chains if other is not chain for found in _of_others(chain, other, x)]
        for chain in chains
    }
    mixed = telling = answers = 0
    worst = 0.0
    for number, one in enumerate(sensor.told):
        image = number % len(x)
        for prediction in one.finals[:1]:
            answers += 1
            outputs = np.frombuffer(prediction.outputs, "<f4")
            off = float(np.abs(outputs - own[prediction.bundle][prediction.exit][image]).max())
            worst = max(worst, off)
            mixed += not off <= TOLERANCE
            wrong = [array[image] for exit, array in others[prediction.bundle] if exit == prediction.exit]
            telling += all(np.abs(outputs - array).max() > 2 * TOLERANCE for array in wrong)
    report.row("mixed: not what its own bundle gives", "samples").ours.append(mixed)
    report.notes.append(
        f"a mixture would have shown in {telling} of {answers} answers; largest difference from a bundle's own chain "
        f"{worst:.1e}, allowed {TOLERANCE:g}"
    )
    if mixed:
        report.notes.append(f"MISSED: {mixed} answers are not what their own bundle gives; wanted: none")


def _of_others(chain: Chain, other: Chain, x: Any) -> list[tuple[int, Any]]:
    """(exit, probabilities) that an answer of `chain` must not have: the other's, and both mixtures'."""
    early, final = other.probabilities(x)
    return [(0, early), (1, final), (1, chain.mixed(other, x)), (1, other.mixed(chain, x))]
