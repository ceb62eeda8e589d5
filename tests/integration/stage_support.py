"""What the stages' tests share: a bundle on disk, offloads of it, workers with their metrics, what came of them."""

import json
import secrets
import shutil
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sluice.dev.processes import Process, Processes
from sluice.doors.kafka import KafkaCluster, KafkaReader, KafkaWriter, Record
from sluice.wire import bundle as bundles
from sluice.wire import names
from sluice.wire.codec import encode_tensor
from sluice.wire.messages import Offload, Prediction, decode, encode
from tests.brokers.kafka import Kafka
from tests.unit.bundle_support import make_bundle

OPTIONS = {
    "session.timeout.ms": "1500",
    "heartbeat.interval.ms": "300",
    "topic.metadata.propagation.max.ms": "500",  # until a topic that is not there is taken for missing
}
BOTH = ("at-least-once", "exactly-once")


@contextmanager
def kafka_for_stages(properties: dict[str, str] | None = None) -> Iterator[Kafka]:
    """A Kafka of a module's own, with the topics that stages write to."""
    with Kafka(properties=properties) as server:
        server.create_topic(names.PREDICTIONS, 2)
        server.create_topic(names.DEAD_LETTER, 1)
        yield server


class Stage:
    """A bundle on disk, offloads of it, workers, and what came of them."""

    def __init__(self, folder: Path, kafka: Kafka) -> None:
        bundle = make_bundle(folder / "new")
        self.folder, self.kafka, self.digest = folder, kafka, bundle.digest
        (folder / "new").rename(folder / bundle.digest)
        self.manifest = bundle.manifest
        self.cluster = KafkaCluster(bootstrap=kafka.bootstrap)
        self.topic = names.offload_topic("cloud", self.manifest.model)
        kafka.create_topic(self.topic, 4)
        random = np.random.default_rng(0)
        self.tensors = tuple(
            encode_tensor(random.normal(size=spec.shape).astype(np.float32), spec, "raw")
            for spec in self.manifest.crossing(1)
        )

    def offload(self, device: str, seq: int, **changes: Any) -> bytes:
        one = Offload(
            device_id=device,
            epoch="0123456789abcdef",
            seq=seq,
            source_id=None,
            model=self.manifest.model,
            bundle=self.digest,
            operating_point="default",
            tier="cloud",
            next_segment=1,
            tensors=self.tensors,
            beliefs=(),
            captured_at=0,
            ttl_ms=3_600_000,
        )
        return encode(replace(one, **changes))

    def send(self, device: str, count: int) -> None:
        """Samples 0 to `count` - 1 of a device, spread over the topic partitions."""
        writer = KafkaWriter("devices", self.cluster)
        writer.write_all(self.topic, ((f"{device}-{seq}", self.offload(device, seq)) for seq in range(count)), 60)

    def start(self, processes: Processes, name: str, delivery: str, **settings: str) -> Process:
        own = {
            "STAGE_TIER": "cloud",
            "STAGE_KAFKA__BOOTSTRAP": self.kafka.bootstrap,
            "STAGE_KAFKA__OPTIONS": json.dumps(OPTIONS),
            "STAGE_CLOUD_URL": "http://127.0.0.1:9",
            "STAGE_DATA": str(self.folder),
            "STAGE_DELIVERY": delivery,
            "STAGE_BATCH_MOST": "16",
        }
        process = processes.start(name, ["stage"], own | settings)
        process.wait_ready()
        return process


class Answers:
    """What a reader of committed records finds on a topic from now on."""

    def __init__(self, stage: Stage, topic: str = names.PREDICTIONS, partitions: int = 2) -> None:
        self.reader = KafkaReader("answers", stage.cluster, secrets.token_hex(4))
        ends = {(topic, p): self.reader.watermarks((topic, p))[1] for p in range(partitions)}
        self.reader.assign(ends)
        self.records: list[Record] = []

    def of(self, device: str) -> Counter[int]:
        """How often each sample of a device was answered."""
        while more := self.reader.read(500, 0.2):
            self.records += more
        found = [decode(record.value) for record in self.records]
        return Counter(one.seq for one in found if isinstance(one, Prediction) and one.device_id == device)

    def at_least(self, device: str, count: int) -> bool:
        """Whether so many samples of a device were answered."""
        return len(self.of(device)) >= count


def renamed(stage: Stage, model: str, **changes: Any) -> str:
    """Digest of the same bundle for another model, with other `changes` to its manifest."""
    data = stage.manifest.model_copy(update={"model": model, **changes}).model_dump_json().encode()
    folder = stage.folder / bundles.sha256(data)
    shutil.copytree(stage.folder / stage.digest, folder)
    bundles.write_atomically(folder / bundles.MANIFEST, data)
    return folder.name


def metric(port: int, name: str, **labels: str) -> float:
    """What a worker says of itself; 0 for what has not happened yet."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as page:
        lines = page.read().decode().splitlines()
    wanted = name + "{" + ",".join(f'{label}="{value}"' for label, value in sorted(labels.items())) + "} "
    return sum(float(line.split()[-1]) for line in lines if line.startswith(wanted))
