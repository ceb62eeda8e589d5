"""The stage worker next to a bare loop: records a second from one topic to the next, and latency to a reader.

Both are one process each on the same Kafka with the same segment, a LeNet's second half. The bare loop (`bare.py`)
polls, invokes and produces one record after the other, with acks=1 and offsets committed whenever its client likes.
Throughput: all records are there before the process starts; counted is the time in which the last nine tenths of the
answers come. Latency: one record every 10 ms, from its writing to a `read_committed` reader of the answers.
"""

from __future__ import annotations

import io
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
from typing import Any

import confluent_kafka as ck
import numpy as np
from rich.console import Console

from bench.chains import LOGITS, lenet, pieces, segment_of
from bench.report import Report
from sluice.dev.processes import Processes
from sluice.doors.kafka import KafkaCluster, KafkaReader, KafkaWriter
from sluice.stage.segment import load_segment
from sluice.wire import bundle as bundles
from sluice.wire.codec import encode_tensor
from sluice.wire.manifest import ExitPolicy, Manifest, OperatingPoint, Provenance, Segment
from sluice.wire.messages import Offload, decode, encode
from sluice.wire.names import DEAD_LETTER, PREDICTIONS, offload_topic
from tests.brokers.kafka import Kafka

REPETITIONS = 5
RECORDS = 30_000
LIGHT = 500
LIGHT_S = 0.01
MODEL = "lenet"
TOPIC = offload_topic("fog", MODEL)
BARE, BARE_ANSWERS = "bare.fog", "bare.answers"
IMAGES = 64
MODES = ("bare", "at-least-once", "exactly-once")


def make_bundle(folder: Path) -> tuple[str, list[Offload]]:
    """(digest, offloads of `IMAGES` images) of a LeNet in two segments, in `folder`/digest, unsigned."""
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 28, 28, 1), dtype=np.uint8)
    blobs = folder / "new" / bundles.BLOBS
    segments: list[Segment] = []
    tensors: dict[str, Any] = {"x": images}
    for index, piece in enumerate(pieces(lenet(), "block")):
        content, spec = segment_of(piece, index)
        samples: dict[str, Any] = {f"in.{tensor.name}": tensors[tensor.name] for tensor in spec.inputs}
        made = load_segment(content, spec).run(tensors)
        golden = io.BytesIO()
        np.savez(golden, **samples | {f"out.{name}": array for name, array in made.items()})
        files = {"file": bundles.write_blob(blobs, content), "golden": bundles.write_blob(blobs, golden.getvalue())}
        segments.append(spec.model_copy(update=files))
        tensors |= made
    policy = ExitPolicy(measure="max_prob", threshold=0.9)
    manifest = Manifest(
        model=MODEL,
        version=1,
        labels=tuple("0123456789"),
        inputs=segments[0].inputs,
        segments=tuple(segments),
        operating_points=(
            OperatingPoint(id="default", placement=("edge", "fog"), codec="raw", policies=(policy, policy)),
        ),
        provenance=Provenance(created_at=""),
    )
    data = manifest.model_dump_json().encode()
    bundles.write_atomically(folder / "new" / bundles.MANIFEST, data)
    digest = bundles.sha256(data)
    (folder / "new").rename(folder / digest)
    (crossing,) = manifest.crossing(1)
    offloads = [
        Offload(
            device_id="bench",
            epoch="0123456789abcdef",
            seq=number,
            source_id=None,
            model=MODEL,
            bundle=digest,
            operating_point="default",
            tier="fog",
            next_segment=1,
            tensors=(encode_tensor(tensors[crossing.name][number], crossing, "raw"),),
            beliefs=(),
            captured_at=0,
            ttl_ms=3_600_000,
        )
        for number in range(IMAGES)
    ]
    assert LOGITS in tensors
    return digest, offloads


class Stand:
    """Kafka with its topics, and the messages that both kinds of loop get."""

    def __init__(self, kafka: Kafka, folder: Path) -> None:
        self.kafka, self.folder = kafka, folder
        for topic in (TOPIC, BARE):
            kafka.create_topic(topic, 2)
        for topic in (PREDICTIONS, BARE_ANSWERS, DEAD_LETTER):
            kafka.create_topic(topic, 1)
        self.digest, offloads = make_bundle(folder)
        self.ours = [encode(one) for one in offloads]
        self.bare = [one.seq.to_bytes(8, "little") + one.tensors[0].data for one in offloads]
        self.cluster = KafkaCluster(bootstrap=kafka.bootstrap)

    @contextmanager
    def working(self, mode: str) -> Iterator[None]:
        """The process of a mode, from its start to its end."""
        if mode == "bare":
            command = [sys.executable, "-m", "bench.bare", "fog", str(self.folder / self.digest)]
            child = subprocess.Popen([*command, "--mqtt=", f"--kafka={self.kafka.bootstrap}"], stdout=subprocess.PIPE)
            assert child.stdout is not None
            with child.stdout as out:
                out.readline()
                yield
                child.terminate()
                child.wait()
            return
        settings = {
            "STAGE_TIER": "fog",
            "STAGE_KAFKA__BOOTSTRAP": self.kafka.bootstrap,
            "STAGE_CLOUD_URL": "http://127.0.0.1:9",
            "STAGE_DATA": str(self.folder),
            "STAGE_LOG_LEVEL": "WARNING",
            "STAGE_DELIVERY": mode,
        }
        with Processes(self.folder / "logs") as processes:
            processes.start(f"stage-{mode}", ["stage"], settings)
            yield

    def answered(self, mode: str) -> int:
        """Answers so far, markers of transactions among them."""
        topic = BARE_ANSWERS if mode == "bare" else PREDICTIONS
        return self._ends.get_watermark_offsets(ck.TopicPartition(topic, 0), timeout=10)[1]

    @cached_property
    def _ends(self) -> ck.Consumer:
        return ck.Consumer({"bootstrap.servers": self.kafka.bootstrap, "group.id": "ends", "log_level": 0})

    def write(self, mode: str, numbers: range) -> None:
        """Records of the images, in turns."""
        writer = KafkaWriter("load", self.cluster, linger_ms=5)
        topic, values = (BARE, self.bare) if mode == "bare" else (TOPIC, self.ours)
        writer.write_all(topic, ((str(i), values[i % IMAGES]) for i in numbers), 120)

    def throughput(self, mode: str) -> float:
        """Answers a second."""
        begun = self.answered(mode)
        self.write(mode, range(RECORDS))
        tenth, marks = RECORDS // 10, list[tuple[int, float]]()
        with self.working(mode):
            end = time.monotonic() + 300
            while True:
                made, now = self.answered(mode) - begun, time.monotonic()
                if made >= tenth and not marks:
                    marks.append((made, now))
                if made >= RECORDS:
                    return (RECORDS - marks[0][0]) / (now - marks[0][1])
                if now > end:
                    raise RuntimeError(f"{mode}: {made} of {RECORDS} answers in 300 s")
                time.sleep(0.01)

    def latencies_ms(self, mode: str) -> list[float]:
        """Of `LIGHT` records, one after the other."""
        topic = BARE_ANSWERS if mode == "bare" else PREDICTIONS
        reader = KafkaReader("answers", self.cluster, "answers")
        reader.assign({(topic, 0): self.answered(mode)})
        sent, taken = [0.0] * (LIGHT + 20), list[tuple[int, float]]()
        everything = threading.Event()

        def read() -> None:
            while len(taken) < len(sent):
                for record in reader.read(10, 0.05):
                    number = int.from_bytes(record.value[:8], "little") if mode == "bare" else decode(record.value).seq
                    taken.append((number, time.monotonic()))
            everything.set()

        thread = threading.Thread(target=read, daemon=True)
        with self.working(mode):
            thread.start()
            writer = KafkaWriter("light", self.cluster, linger_ms=0)
            for i in range(len(sent)):
                if mode == "bare":
                    topic, value = BARE, i.to_bytes(8, "little") + self.bare[i % IMAGES][8:]
                else:
                    topic, value = TOPIC, encode(self._numbered(i))
                sent[i] = time.monotonic()
                writer.write(topic, value, key=str(i))
                writer.poll(0)
                if i < 20:  # until the group has formed
                    while len(taken) <= i:
                        time.sleep(0.01)
                time.sleep(LIGHT_S)
            assert everything.wait(30)
        reader.close()
        return [1000 * (at - sent[number]) for number, at in taken if number >= 20]

    def _numbered(self, number: int) -> Offload:
        made = decode(self.ours[number % IMAGES])
        assert isinstance(made, Offload)
        return replace(made, seq=number)


def run(console: Console) -> Report:
    """Measure."""
    report = Report("a stage's worker against a loop without guarantees, one process each, the same segment")
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as temporary, Kafka() as kafka:
        stand = Stand(kafka, Path(temporary))
        speeds: dict[str, list[float]] = {mode: [] for mode in MODES}
        for repetition in range(REPETITIONS):
            for mode in MODES if repetition % 2 else reversed(MODES):
                speeds[mode].append(stand.throughput(mode))
            console.print("  " + ", ".join(f"{mode} {speeds[mode][-1]:.0f}/s" for mode in MODES))
        waits: dict[str, Any] = {mode: stand.latencies_ms(mode) for mode in MODES}
    for mode, baseline in (("at-least-once", "bare"), ("exactly-once", "at-least-once")):
        row = report.row(f"{mode} against {baseline}: samples a second", "1/s")
        row.ours, row.baseline = speeds[mode], speeds[baseline]
    for mode in MODES:
        cuts = statistics.quantiles(waits[mode], n=100)
        report.row(f"{mode}: light load, p50", "ms").ours.append(cuts[49])
        report.row(f"{mode}: light load, p99", "ms").ours.append(cuts[98])
    report.notes.append("wanted: at-least-once ≥ 0.8 of bare, exactly-once ≥ 0.9 of at-least-once, its p99 ≤ 50 ms")
    return report
