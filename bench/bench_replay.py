"""Replay of a published load: clients that send 100 messages each at 1, 2, 3 and 4 a second.

It is the load of the experiments with split inference in Kafka-ML, where clients of a two-part network send images of
MNIST: 100 + 50 + 33.3 + 25 = 208.3 s of sending, with 1, 3, 5 and 10 clients. There the whole takes 318 to 612 s, and
answers up to 393 s (p99). Here each client is a device with an agent of its own, its sensor sends images as JSON, half
of them exit on the device, and a sample is answered when an observer of the device has its final answer.

`SLUICE_CLIENTS=1,5` runs some numbers of clients alone; all of them take 14 minutes.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from bench.lenet import Stand, images, standing
from bench.report import Report
from sluice.dev.sensor import Sensor

CLIENTS = (1, 3, 5, 10)
MESSAGES = 100
RATES_HZ = (1.0, 2.0, 3.0, 4.0)
WITHIN = 1.01
"""Of the sending time, wanted at 5 and at 10 clients."""
P99_MS = 100.0
PATIENCE_S = 60.0
"""For answers that are missing when all is sent."""


def sending_s() -> float:
    """Time that sending takes."""
    return sum(MESSAGES / rate for rate in RATES_HZ)


def run(console: Console) -> Report:
    """Measure."""
    asked = os.environ.get("SLUICE_CLIENTS", "")
    wanted = [int(text) for text in asked.split(",")] if asked else list(CLIENTS)
    report = Report(
        f"{MESSAGES} messages a client at {', '.join(f'{r:g}' for r in RATES_HZ)} a second, MNIST, 2 segments"
    )
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as temporary:
        devices = [f"client-{number}" for number in range(max(wanted))]
        with standing(Path(temporary), console, devices) as stand:
            _replay(stand, devices, 20, (5.0,))  # warm: connections, interpreters, topic partitions
            for clients in wanted:
                console.print(f"{clients} clients: {sending_s():.0f} s of sending")
                _measure(report, stand, devices[:clients])
    if asked:
        report.notes.append(f"not the whole benchmark: {asked} clients alone")
    report.notes.append(f"baseline of the time to finish: {sending_s():.1f} s of sending")
    report.notes.append(
        f"wanted at 5 and 10 clients: finished within {WITHIN} of it, p99 ≤ {P99_MS:g} ms, none missing"
    )
    return report


def _measure(report: Report, stand: Stand, devices: list[str]) -> None:
    """One number of clients, from the first message to the last answer."""
    seconds, sensor = _replay(stand, devices, MESSAGES, RATES_HZ)
    clients, told = len(devices), sensor.told
    answered = [one for one in told if one.finals]
    latencies = [(one.answered_ns - one.sent_ns) / 1e6 for one in answered]
    p50, p99 = (float(np.percentile(latencies, share)) for share in (50, 99))
    missing = len(told) - len(answered)
    repeated = sum(len(one.finals) - 1 for one in answered) - sensor.redelivered
    early = sum(one.finals[0].tier == "edge" for one in answered) / len(answered)
    finished = report.row(f"{clients} clients: finished after", "s")
    finished.ours.append(seconds)
    finished.baseline.append(sending_s())
    for what, unit, value in (
        ("p50 sensor to answer", "ms", p50),
        ("p99 sensor to answer", "ms", p99),
        ("slowest", "ms", max(latencies)),
        ("exited on the device", "%", 100 * early),
        ("missing", "samples", missing),
    ):
        report.row(f"{clients} clients: {what}", unit).ours.append(value)
    for bad, words in (
        (clients >= 5 and seconds > WITHIN * sending_s(), f"finished after {seconds:.1f} s of {sending_s():.1f}"),
        (clients >= 5 and p99 > P99_MS, f"p99 {p99:.0f} ms"),
        (missing > 0, f"{missing} samples without a final answer"),
        (repeated > 0, f"{repeated} answers told twice"),
    ):
        if bad:
            report.notes.append(f"MISSED at {clients} clients: {words}")


def _replay(stand: Stand, devices: list[str], messages: int, rates_hz: tuple[float, ...]) -> tuple[float, Sensor]:
    """(seconds from the first message to the last answer, what was told)."""
    x, brokers = images(), stand.system.brokers
    sensor = Sensor(
        {device: brokers.as_user(device) for device in devices},
        x,
        run=f"r{secrets.token_hex(3)}",
        outstanding=10_000,  # nobody waits for an answer before sending on
    )
    sensor.start()
    begun = time.monotonic_ns()
    sent = 0
    for rate_hz in rates_hz:
        phase = time.monotonic()
        count = messages * len(devices)
        sensor.publish([(sent + i) % len(x) for i in range(count)], rate_hz * len(devices))
        sent += count
        time.sleep(max(0.0, phase + messages / rate_hz - time.monotonic()))  # to the end of the last message's turn
    complete = sensor.wait(PATIENCE_S)
    ended = max(one.answered_ns for one in sensor.told) if complete else time.monotonic_ns()
    sensor.stop()
    return max((ended - begun) / 1e9, sum(messages / rate for rate in rates_hz)), sensor
