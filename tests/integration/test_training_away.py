"""Kafka that goes while a training reads its stream: for a moment, for longer than reading waits, and for good."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluice.dev.processes import Processes
from tests.brokers.kafka import Kafka
from tests.integration.training_plane import WAIT_S, Plane, held, in_two

pytestmark = [pytest.mark.brokers, pytest.mark.tensorflow, pytest.mark.timeout(600)]

AWAY_S = 3
"""How long reading waits, where Kafka is to be away for longer; where it is to be back in time it is the default."""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Plane, Kafka]]:
    """A control plane with a Kafka of its own."""
    with Kafka() as kafka, Processes(tmp_path / "logs") as processes:
        plane = Plane(processes, tmp_path, kafka)
        yield plane, kafka
        plane.client.close()


def test_kafka_goes_while_a_training_reads(own: tuple[Plane, Kafka], unique: str) -> None:
    """It restarts: the training ends as one that saw nothing of it. It is away for longer than reading waits: the
    training is tried again. It stays away: the training has failed, and says why."""
    plane, kafka = own
    stream = in_two(plane, kafka, unique, 40_000)
    calm = plane.end_of(plane.client.train("good", stream, epochs=2, seed=7, batch=256)["id"])
    assert calm["state"] == "done"

    def as_calm(training: str, go: Path) -> None:
        deadline = time.monotonic() + WAIT_S
        while (found := plane.client.training(training))["state"] in ("queued", "running"):
            assert time.monotonic() < deadline, found
            go.touch()  # again, where it was tried again
            time.sleep(0.2)
        assert found["state"] == "done", found["reason"]
        assert found["metrics"] == calm["metrics"]
        assert found["result"]["records"] == 80_000 and found["result"]["confusion"] == calm["result"]["confusion"]

    training, go = held(plane, stream)
    kafka.kill()
    go.touch()
    plane.until(training, lambda found: found["progress"]["done"] > 1000)
    kafka.start()
    as_calm(training, go)
    assert plane.ends() == []

    plane.service.stop()
    plane.service.settings["CLOUD_STREAM_AWAY_S"] = f"{AWAY_S}"
    plane.service.start()
    plane.service.wait_ready(WAIT_S)
    training, go = held(plane, stream)
    kafka.kill()
    go.touch()
    deadline = time.monotonic() + WAIT_S
    tried_again = re.compile(rf"goes on after slice {unique}:\d:0:40000: Kafka gave nothing for {AWAY_S} s")
    while not tried_again.search(plane.service.log.read_text()):
        assert time.monotonic() < deadline, plane.service.tail()
        time.sleep(0.1)
    kafka.start()
    as_calm(training, go)

    training, go = held(plane, stream)
    kafka.kill()
    go.touch()
    ended = plane.end_of(training)
    assert ended["state"] == "failed" and "Kafka" in ended["reason"], ended["reason"]
    assert plane.service.running
