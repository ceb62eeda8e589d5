"""The gateway's way up next to a process that only receives: messages for a second of CPU time, and by the clock.

The messages are offloads of 100 devices in turns, Kafka confirms with acks=all, each sample is receipted; the baseline
is `receiving.py`, which gets the same messages from the same broker in a session of its own. CPU time is the kernel's
for the whole process, all threads; it is what a core can do, whatever else the machine does at that time.

A backlog waits in the session before the process starts, so that nothing but the process is the limit; counted are the
last nine tenths. Mosquitto as it ships saves its whole state after every change, which for a backlog would measure the
disk: the backlog is measured on one that saves nothing, and the shipped one with devices that keep 256 messages under
way in all. Light load: one message every 20 ms.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import confluent_kafka as ck
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from rich.console import Console

from bench.bare import send_at_once
from bench.receiving import STEP
from bench.report import Report
from sluice.dev.processes import Processes
from sluice.doors.kafka import KafkaCluster, KafkaReader
from sluice.wire import names
from sluice.wire.messages import Belief, Offload, Tensor, decode, encode
from sluice.wire.state import Receipt, parse_state
from tests.brokers.kafka import Kafka
from tests.brokers.mosquitto import Mosquitto, moved

REPETITIONS = 5
DEVICES = 100
UNDER_WAY = 256
LIGHT = 300
LIGHT_S = 0.02
LOADS = (("1 KB", 1024, 20_000), ("16 KB", 16_384, 5_000))
SHIPPED = 5_000
"""Messages of 1 KB through Mosquitto as it ships."""
WAYS = ("ours", "baseline")
TOPIC = names.offload_topic("fog", "bench")
EPOCH = "0123456789abcdef"
TICKS = os.sysconf("SC_CLK_TCK")


class Forgetful(Mosquitto):
    """As it ships, but that it saves nothing."""

    def prepare(self) -> None:
        super().prepare()
        nothing = {"persistence": "false", "autosave_on_changes": "false"}
        self.config.write_text(moved(self.config.read_text(), nothing) + "\n")


def cpu_s(pid: int) -> float:
    """Seconds of CPU time that a process has used, all threads, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def offload(size: int) -> Offload:
    """One whose message has `size` bytes, but for some that its number takes."""
    made = Offload(
        device_id="device-00",
        epoch=EPOCH,
        seq=1_000_000,
        source_id=None,
        model="bench",
        bundle="ab" * 32,
        operating_point="default",
        tier="fog",
        next_segment=1,
        tensors=(),
        beliefs=(Belief(0, 3, 0.6),),
        captured_at=1_700_000_000_000_000,
        ttl_ms=60_000,
        compute_us={"edge": 200},
    )
    for bytes_left in range(size, 0, -1):
        tensor = Tensor("block", "int8", (16, 4, bytes_left), 0.1, 3, "int8-zstd", os.urandom(bytes_left))
        full = replace(made, tensors=(tensor,))
        if len(encode(full)) <= size:
            return full
    raise ValueError(f"{size} bytes are too few")


class Progress:
    """How far the run at hand is: what is through, and two marks of (messages, clock, CPU time)."""

    def __init__(self) -> None:
        self.places = threading.Semaphore(0)
        self.all = threading.Event()
        self.begin(0)

    def begin(self, wanted: int) -> None:
        """Of a run of `wanted` messages the last nine tenths count."""
        self.pid, self.count, self.wanted = 0, 0, wanted
        self.marks: list[tuple[int, float, float]] = []
        self.places = threading.Semaphore(UNDER_WAY)
        self.all.clear()

    def add(self, more: int) -> None:
        """So many more are through, and devices may send as many; of no account between two runs."""
        if self.wanted:
            self.count += more
            self.places.release(more)
            if self.count >= self.wanted:
                self.all.set()

    def mark(self, count: int, clock: float, cpu: float) -> bool:
        """`count` messages were through at that time; whether these are all."""
        if (not self.marks and count >= self.wanted // 10) or (self.marks and count >= self.wanted):
            self.marks.append((count, clock, cpu))
        return len(self.marks) == 2

    def rates(self) -> tuple[float, float]:
        """Messages (for a second of CPU time, a second by the clock)."""
        (first, begun, used_before), (last, ended, used) = self.marks
        return (last - first) / (used - used_before), (last - first) / (ended - begun)


class Fleet:
    """All devices in one client: it sends outcomes and hears receipts."""

    def __init__(self, mosquitto: Mosquitto, progress: Progress) -> None:
        self.progress = progress
        self.receipted: dict[int, float] = {}
        """When the receipt of a sample came."""
        self.seqs = itertools.count(1_000_000)
        self.client = paho.Client(CallbackAPIVersion.VERSION2, "fleet", protocol=paho.MQTTv5)
        self.client.max_inflight_messages_set(1000)
        self.client.on_socket_open = send_at_once
        self.client.on_message = self._receipt
        self.client.connect(mosquitto.host, mosquitto.port)
        self.client.subscribe("ours/+/receipt", 1)
        self.client.loop_start()

    def _receipt(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        new = [seq for seq in parse_state(Receipt, bytes(message.payload)).seqs if seq not in self.receipted]
        self.receipted.update(dict.fromkeys(new, time.monotonic()))
        self.progress.add(len(new))

    def send(self, way: str, sample: Offload, count: int, *, bounded: bool = False) -> list[int]:
        """Publish `count` samples and return their numbers; `bounded`: so many under way and no more."""
        seqs = list(itertools.islice(self.seqs, count))
        for seq in seqs:
            if bounded:
                self.progress.places.acquire()
            device = f"device-{seq % DEVICES:02}"
            payload = encode(replace(sample, device_id=device, seq=seq))
            last = self.client.publish(f"{way}/{device}/offload", payload, qos=1)
        if not bounded:
            last.wait_for_publish(120)
        return seqs

    def stop(self) -> None:
        """Disconnect."""
        self.client.disconnect()
        self.client.loop_stop()


class Stand:
    """One Mosquitto, one Kafka, and the two processes that take turns."""

    def __init__(self, mosquitto: Mosquitto, kafka: Kafka, folder: Path) -> None:
        self.mosquitto, self.kafka, self.folder = mosquitto, kafka, folder
        self.progress = Progress()
        self.fleet = Fleet(mosquitto, self.progress)
        self.begun = self.records()
        with self.working("baseline"):  # from here on the broker keeps a session for it
            pass
        with self.working("ours"):
            self._until_it_answers()

    @contextmanager
    def working(self, way: str) -> Iterator[None]:
        """The process of a way, from its start to its end."""
        if way == "baseline":
            address = f"{self.mosquitto.host}:{self.mosquitto.port}"
            topic = "$share/receiving/baseline/+/offload"
            command = [sys.executable, "-m", "bench.receiving", address, "receiving", topic]
            child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            self.progress.pid = child.pid
            subscribed = threading.Event()
            thread = threading.Thread(target=self._listen, args=(child, subscribed))
            thread.start()
            assert subscribed.wait(30)
            yield
            time.sleep(0.2)  # for its last acknowledgements
            child.terminate()
            thread.join()
            child.wait()
            return
        settings = {
            "GATEWAY_NAME": "bench",
            "GATEWAY_TOPIC_PREFIX": "ours",
            "GATEWAY_BROKER__HOST": self.mosquitto.host,
            "GATEWAY_BROKER__PORT": str(self.mosquitto.port),
            "GATEWAY_KAFKA__BOOTSTRAP": self.kafka.bootstrap,
            "GATEWAY_OUTCOMES_SESSION_S": "3600",  # the backlog has to outlive the baseline's turn
        }
        with Processes(self.folder / "logs") as processes:
            process = processes.start("gateway", ["gateway"], settings)
            self.progress.pid = process.child.pid
            process.wait_ready()
            yield

    def _listen(self, child: subprocess.Popen[str], subscribed: threading.Event) -> None:
        assert child.stdout is not None
        with child.stdout as lines:
            for line in lines:
                count, clock, cpu = line.split()
                if int(count):
                    self.progress.mark(int(count), float(clock), float(cpu))
                    self.progress.add(STEP)
                else:
                    subscribed.set()

    def _until_it_answers(self) -> None:
        """Its subscription stands, and the last one sent is receipted; nobody kept those that came too early."""
        while True:
            (last,) = self.fleet.send("ours", offload(1024), 1)
            time.sleep(0.5)
            if last in self.fleet.receipted:
                return

    def rates(self, way: str, size: int, count: int, *, backlog: bool) -> tuple[float, float]:
        """Messages (for a second of CPU time, a second by the clock)."""
        self.progress.begin(count)
        before, sample = self.records(), offload(size)
        if backlog:
            self.fleet.send(way, sample, count)
        with self.working(way):
            devices = threading.Thread(target=self.fleet.send, args=(way, sample, count), kwargs={"bounded": True})
            if not backlog:
                devices.start()
            while way == "ours":
                if self.progress.mark(self.records() - before, time.monotonic(), cpu_s(self.progress.pid)):
                    break
                time.sleep(0.02)
            if not self.progress.all.wait(120):
                raise RuntimeError(f"{way}: {self.progress.count} of {count} messages in 120 s")
            if way == "ours":  # the last receipts are part of it
                self.progress.marks[1] = (*self.progress.marks[1][:2], cpu_s(self.progress.pid))
            self.progress.wanted = 0
            if not backlog:
                devices.join()
        return self.progress.rates()

    def waits_ms(self) -> tuple[list[float], list[float]]:
        """Of light load: from sending to a reader of Kafka, and to the receipt."""
        reader = KafkaReader("light", KafkaCluster(bootstrap=self.kafka.bootstrap), "light")
        reader.assign({(TOPIC, 0): reader.watermarks((TOPIC, 0))[1]})
        read: dict[int, float] = {}
        sample, sent = offload(1024), dict[int, float]()
        with self.working("ours"):
            self._until_it_answers()

            def follow() -> None:
                while len(sent) < LIGHT or not sent.keys() <= read.keys():
                    now_read = reader.read(100, 0.05)
                    read.update(dict.fromkeys((decode(r.value).seq for r in now_read), time.monotonic()))

            thread = threading.Thread(target=follow, daemon=True)
            thread.start()
            for _ in range(LIGHT):
                at = time.monotonic()
                (seq,) = self.fleet.send("ours", sample, 1)
                sent[seq] = at
                time.sleep(LIGHT_S)
            thread.join(30)
            if thread.is_alive():
                raise RuntimeError("not all of the light load came to Kafka in 30 s")
            while not sent.keys() <= self.fleet.receipted.keys():
                time.sleep(0.1)
        reader.close()
        heard = self.fleet.receipted
        return [1000 * (read[s] - at) for s, at in sent.items()], [1000 * (heard[s] - at) for s, at in sent.items()]

    def records(self) -> int:
        """Records of offloads in Kafka."""
        return self._ends.get_watermark_offsets(ck.TopicPartition(TOPIC, 0), timeout=10)[1]

    @cached_property
    def _ends(self) -> ck.Consumer:
        return ck.Consumer({"bootstrap.servers": self.kafka.bootstrap, "group.id": "ends", "log_level": 0})


def _turns(report: Report, stand: Stand, console: Console, what: str, size: int, count: int, *, backlog: bool) -> None:
    rows = [report.row(f"{what}: messages for a second of CPU time", "1/s")]
    rows.append(report.row(f"{what}: messages a second by the clock", "1/s"))
    for repetition in range(REPETITIONS):
        for way in WAYS if repetition % 2 else reversed(WAYS):
            for row, rate in zip(rows, stand.rates(way, size, count, backlog=backlog), strict=True):
                getattr(row, way).append(rate)
        said = (f"{way} {getattr(rows[0], way)[-1]:.0f}, {getattr(rows[1], way)[-1]:.0f}" for way in WAYS)
        console.print(f"  {what}: {'; '.join(said)} messages for a second of CPU time, by the clock")


def _counted(stand: Stand, console: Console, what: str) -> str:
    stand.fleet.stop()
    receipted, records = len(stand.fleet.receipted), stand.records() - stand.begun
    if records < receipted:
        raise RuntimeError(f"{what}: {receipted} samples receipted, {records} in Kafka")
    said = f"{what}: {receipted} samples receipted, {records - receipted} repeats in Kafka"
    console.print(f"  {said}")
    return said


def run(console: Console) -> Report:
    """Measure."""
    report = Report("the gateway's way up (acks=all, receipts) against receiving only")
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as temporary, Kafka() as kafka:
        for topic in (names.PREDICTIONS, names.DESIRED, names.DEVICES, names.DEAD_LETTER):
            kafka.create_topic(topic, 1)
        with Forgetful() as mosquitto:
            kafka.create_topic(TOPIC, 1)
            stand = Stand(mosquitto, kafka, Path(temporary))
            for what, size, count in LOADS:
                _turns(report, stand, console, f"{what}, backlog", size, count, backlog=True)
            for name, waits in zip(("a reader of Kafka", "the receipt"), stand.waits_ms(), strict=True):
                cuts = statistics.quantiles(waits, n=100)
                report.row(f"light load: device to {name}, p50", "ms").ours.append(cuts[49])
                report.row(f"light load: device to {name}, p99", "ms").ours.append(cuts[98])
            report.notes.append(_counted(stand, console, "Mosquitto without saving"))
        with Mosquitto() as mosquitto:
            stand = Stand(mosquitto, kafka, Path(temporary))
            _turns(report, stand, console, "1 KB, shipped Mosquitto", 1024, SHIPPED, backlog=False)
            report.notes.append(_counted(stand, console, "Mosquitto as it ships"))
    report.notes.append("wanted: 1 KB ≥ 0.6 of receiving only and ≥ 3125 messages for a second of CPU time")
    return report
