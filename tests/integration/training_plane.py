"""What tests of trainings that go wrong share: a control plane as a process on real Kafka, and
one training that goes well beside those that do not."""

import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sluice.client import Client
from sluice.dev.processes import Process, Processes, free_port
from sluice.doors.kafka import KafkaCluster, KafkaReader, KafkaWriter
from sluice.streams.send import send_stream
from sluice.wire.errors import PermanentError
from sluice.wire.names import CONTROL, DEAD_LETTER
from tests.brokers.kafka import Kafka

WAIT_S = 120.0
AT_ONCE = 3
"""Trainings that run at the same time."""
SOURCE = "x = keras.Input((4,))\nmodel = keras.Model(x, layers.Dense(3, name='only')(x))\n"
HELD = """
import os, sys, time
if "cloud.training.job" in sys.modules:
    from sluice.streams.fed import Fed
    whole = Fed.__iter__
    def held(self):
        for number, batch in enumerate(whole(self)):
            yield batch
            while number == 0 and not os.path.exists("go"):
                time.sleep(0.05)
    Fed.__iter__ = held
"""
"""Before a model's source: the training waits, with the first batch of its stream read, for a file in its folder."""


class Plane:
    """A running control plane, service and results writer, and an admin's client of it."""

    def __init__(self, processes: Processes, folder: Path, kafka: Kafka, **settings: str) -> None:
        self.folder = folder
        self.kafka = KafkaCluster(bootstrap=kafka.bootstrap)
        environment = {"CLOUD_DATA": str(folder / "data"), "CLOUD_PORT": str(free_port())}
        environment |= {"CLOUD_KAFKA__BOOTSTRAP": kafka.bootstrap}
        environment |= {"CLOUD_JOBS_AT_ONCE": str(AT_ONCE), "CLOUD_JOB_THREADS": "1"} | settings
        self.service: Process = processes.start("cloud", ["cloud"], environment)
        processes.start("results-writer", ["results-writer"], environment).wait_ready(WAIT_S)
        self.url = f"http://127.0.0.1:{self.service.wait_ready(WAIT_S)['port']}"
        token = next(line for line in self.service.log.read_text().splitlines() if "Admin token" in line).split()[-1]
        self.client = Client(self.url, token)
        self.client.add_model("good", SOURCE)
        random = np.random.default_rng(0)
        x, y = random.normal(size=(300, 4)).astype(np.float32), random.integers(0, 3, 300)
        good = f"good-{secrets.token_hex(4)}"
        send_stream(self.kafka, good, x, y, stream_id=good)
        self.good = self.known(good)

    def known(self, stream_id: str) -> str:
        """The stream, when the service knows of it."""
        self.client.stream(stream_id, wait_s=WAIT_S)
        return stream_id

    def announce(
        self, topic: str, records: int, format: str, config: dict[str, Any], slices: list[str] | None = None
    ) -> str:
        said: dict[str, Any] = {
            "stream_id": topic,
            "deployment": None,
            "slices": slices or [f"{topic}:0:0:{records}"],
            "format": format,
        }
        said |= {"config": config, "validation_rate": 0.2, "count": records}
        KafkaWriter("test", self.kafka).write_all(CONTROL, [(topic, json.dumps(said).encode())], 30)
        return self.known(topic)

    def ends(self, *started: dict[str, Any]) -> list[dict[str, Any]]:
        """The trainings when they have ended, with another one beside them that ended well."""
        beside = self.client.train("good", self.good, epochs=2)
        *ended, well = [self.end_of(one["id"]) for one in (*started, beside)]
        assert well["state"] == "done", well["reason"]
        assert self.service.running and self.client.models(), "the service is the same process as before"
        return ended

    def end_of(self, training: str, timeout_s: float = 240.0) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while (found := self.client.training(training))["state"] in ("queued", "running"):
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        return found

    def until(self, training: str, wanted: Callable[[dict[str, Any]], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while True:
            found = self.client.training(training)
            assert found["state"] in ("queued", "running") and time.monotonic() < deadline, found
            if wanted(found):
                return
            time.sleep(0.05)

    def refused(self, what: Callable[[], object]) -> str:
        with pytest.raises(PermanentError) as caught:
            what()
        return str(caught.value)

    def letters(self, origin: str, count: int = 1, value: bytes | None = None) -> list[tuple[str, int, str, bytes]]:
        """(room, offset, reason, value) of the dead letters of a topic (with that value), when there are so many."""
        reader = KafkaReader("letters", self.kafka, f"letters-{secrets.token_hex(4)}")
        reader.assign_all(DEAD_LETTER)
        found: list[tuple[str, int, str, bytes]] = []
        deadline = time.monotonic() + 30
        try:
            while len(found) < count and time.monotonic() < deadline:
                for record in reader.read(500, 0.2):
                    said = {name: value.decode() for name, value in record.headers if isinstance(value, bytes)}
                    if said["origin"] == origin and value in (None, record.value):
                        found.append((said["room"], int(said["offset"]), said["reason"], record.value))
        finally:
            reader.close()
        return sorted(found)


def in_two(plane: Plane, kafka: Kafka, topic: str, rows: int) -> str:
    """A stream of two slices, in a topic partition each; one is more than what is under way to a job at a time."""
    kafka.create_topic(topic, partitions=2)
    random = np.random.default_rng(1)
    writer = KafkaWriter("test", plane.kafka)
    for partition in (0, 1):
        for row in random.normal(size=(rows, 4)).astype(np.float32):
            writer.write(topic, row.tobytes(), key=str(int(row[0] > 0)), partition=partition)
    assert writer.flush(60) == 0
    slices = [f"{topic}:{partition}:0:{rows}" for partition in (0, 1)]
    return plane.announce(topic, 2 * rows, "raw", {"shape": [4]}, slices)


def held(plane: Plane, stream: str) -> tuple[str, Path]:
    """A training that has the first batch of its stream and waits; the file that lets it go on."""
    if "held" not in {model["name"] for model in plane.client.models()}:
        plane.client.add_model("held", HELD + SOURCE)
    training = plane.client.train("held", stream, epochs=2, seed=7, batch=256)["id"]
    plane.until(training, lambda found: (found["progress"] or {}).get("done", 0) > 0)
    return training, plane.folder / "data" / "jobs" / training / "go"
