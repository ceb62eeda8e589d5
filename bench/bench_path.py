"""The whole path next to the bare minimum: latency from sensor to answer by tier, and samples per second.

Both run at the same time on the same Mosquitto and the same Kafka with the same segments; each repetition measures
one and then the other, with the other one idle. Light load: one sample at a time every 20 ms. Throughput: as fast as
they take it with 64 samples under way. The sensor broker and the uplink broker are two, each as shipped
(`deploy/mosquitto`); the bare chain has one, which is the sensor broker.
"""

from __future__ import annotations

import secrets
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from rich.console import Console

from bench.bare import send_at_once
from bench.report import Report
from sluice.dev import demo as acts
from sluice.dev.processes import Processes
from sluice.dev.sensor import Sensor
from sluice.dev.system import DEVICES, Brokers, System, start_system
from sluice.doors.http import HttpDoor
from sluice.doors.kafka_topics import ensure_topics
from sluice.wire.names import TIERS
from tests.brokers.kafka import Kafka
from tests.brokers.mosquitto import Mosquitto, two_brokers

REPETITIONS = 5
LIGHT = 300
LIGHT_HZ = 50.0
HEAVY = 2000
OUTSTANDING = 64
THRESHOLDS = [0.9, 0.9]
"""Of the exits on device and fog: not certified, but each tier has something to answer, whatever the training gave."""

Latencies = dict[str, list[float]]
"""Milliseconds from sensor to answer, by the tier that answered."""


class Bare:
    """The bare chain's processes, and its sensor."""

    def __init__(self, bundle: Path, brokers: Brokers, x: np.ndarray[Any, Any]) -> None:
        self.x = x
        self.children = []
        for loop in ("device", "up", "fog", "cloud", "down"):
            address = [f"--mqtt={brokers.host}:{brokers.port}", f"--kafka={brokers.bootstrap}"]
            command = [sys.executable, "-m", "bench.bare", loop, str(bundle), *address]
            child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert child.stdout is not None
            child.stdout.readline()
            self.children.append(child)
        self.sent: dict[int, int] = {}
        self.latencies: Latencies = {}
        self.places = threading.Semaphore(OUTSTANDING)
        self.left = 0
        self.done = threading.Event()
        self.client = paho.Client(CallbackAPIVersion.VERSION2)
        self.client.on_message = self._answered
        self.client.on_socket_open = send_at_once
        self.client.connect(brokers.host, brokers.port)
        self.client.subscribe("bare/answer", 0)
        self.client.loop_start()

    def _answered(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        now = time.monotonic_ns()
        number, tier, _label = struct.unpack("<qBB", message.payload)
        self.latencies.setdefault(TIERS[tier], []).append((now - self.sent[number]) / 1e6)
        self.places.release()
        self.left -= 1
        if self.left == 0:
            self.done.set()

    def run(self, count: int, rate_hz: float) -> tuple[float, Latencies]:
        """(seconds, latencies) of `count` samples."""
        self.latencies, self.left = {}, count
        self.done.clear()
        begun = time.monotonic()
        for i in range(count):
            self.places.acquire()
            wait = begun + i / rate_hz - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            self.sent[i] = time.monotonic_ns()
            self.client.publish("bare/sensor", struct.pack("<q", i) + self.x[i % len(self.x)].tobytes())
        if not self.done.wait(30):
            raise RuntimeError(f"the bare chain lost {self.left} of {count} samples: it has no guarantees")
        return time.monotonic() - begun, self.latencies

    def stop(self) -> None:
        """End its processes."""
        self.client.loop_stop()
        self.client.disconnect()
        for child in self.children:
            child.terminate()
        for child in self.children:
            child.wait()
            assert child.stdout is not None
            child.stdout.close()


def ours(system: System, held: acts.Held, count: int, rate_hz: float) -> tuple[float, Latencies]:
    """(seconds, latencies) of `count` samples on the whole path, one device as the bare chain has."""
    device = system.devices[0]
    sensor = Sensor(
        {device: system.brokers.as_user(device)}, held.x, run=f"b{secrets.token_hex(3)}", outstanding=OUTSTANDING
    )
    sensor.start()
    begun = time.monotonic()
    sensor.publish([i % len(held.x) for i in range(count)], rate_hz)
    if not sensor.wait(30):
        raise RuntimeError("samples were lost on the whole path")
    seconds = time.monotonic() - begun
    sensor.stop()
    latencies: Latencies = {}
    for told in sensor.told:
        latencies.setdefault(told.finals[0].tier, []).append((told.answered_ns - told.sent_ns) / 1e6)
    return seconds, latencies


def run(console: Console) -> Report:
    """Measure."""
    report = Report("ours against the bare minimum (QoS 0, acks=1, nothing kept, nothing checked)")
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as temporary:
        folder = Path(temporary)
        with (
            Mosquitto() as mosquitto,
            Mosquitto(shipped="uplink.conf") as uplink,
            Kafka() as kafka,
            Processes(folder / "logs") as processes,
        ):
            brokers = Brokers(mosquitto.host, mosquitto.port, kafka.bootstrap)
            extra = two_brokers(uplink, DEVICES[:1])
            system = start_system(processes, folder, brokers, devices=DEVICES[:1], say=console.print, extra=extra)
            held = acts.Held()
            digest = acts.deploy(system, held, console, thresholds=THRESHOLDS)
            door = HttpDoor(system.url, system.token)
            door.fetch_bundle(digest, folder / "bundle", None, lambda manifest: range(len(manifest.segments)))
            door.close()
            ensure_topics(brokers.kafka, dict.fromkeys(("bare.fog", "bare.cloud", "bare.answers"), 4))
            bare = Bare(folder / "bundle", brokers, held.x)
            try:
                chains: list[tuple[str, Callable[[int, float], tuple[float, Latencies]]]] = [
                    ("ours", lambda count, rate: ours(system, held, count, rate)),
                    ("baseline", bare.run),
                ]
                for _, measure in chains:
                    measure(100, LIGHT_HZ)  # warm: connections, interpreters, topic partitions
                for repetition in range(REPETITIONS):
                    console.print(f"repetition {repetition + 1} of {REPETITIONS}")
                    for who, measure in chains if repetition % 2 else reversed(chains):
                        _measure(report, who, measure)
            finally:
                bare.stop()
    return report


def _measure(report: Report, who: str, measure: Callable[[int, float], tuple[float, Latencies]]) -> None:
    _, latencies = measure(LIGHT, LIGHT_HZ)
    for tier in TIERS:
        for share in (50, 99):
            row = report.row(f"{tier}: p{share} sensor to answer, {LIGHT_HZ:g}/s", "ms")
            getattr(row, who).append(float(np.percentile(latencies[tier], share)))
    seconds, _ = measure(HEAVY, 1e9)
    getattr(report.row(f"whole path, {OUTSTANDING} under way", "samples/s"), who).append(HEAVY / seconds)
