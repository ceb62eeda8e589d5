"""Runs on the emulated device: `guest.py segment BUNDLE SAMPLES` or `guest.py agent BUNDLE SAMPLES DESIRED DEVICE`.

`segment` runs the first segment, one sample at a time. `agent` runs the real main loop (`Agent.run`) between two
brokers that are played here, since paho's threads would make the count a matter of chance: a reading is put in as soon
as the one before is acknowledged, what is published is taken at once, receipted, and answered if it is an offload. So
each turn of the loop brings one sample in and finishes the one before. What the brokers do is not counted.

Marks are set after a warm-up and then every `ROUND` samples.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sluice.doors import mqtt
from sluice.stage.segment import load_segments
from sluice.stage.step import best_belief, predict
from sluice.wire import messages
from sluice.wire.bundle import open_bundle
from sluice.wire.state import Receipt

CALL, PAUSE, RESUME = 0x51C0, 1000001, 1000002
WARM_UP, ROUND, ROUNDS = 100, 100, 6


def say(word: int) -> None:
    """Tell the plugin."""
    with contextlib.suppress(OSError):
        os.getpriority(CALL, word)


@contextlib.contextmanager
def uncounted() -> Iterator[None]:
    say(PAUSE)
    try:
        yield
    finally:
        say(RESUME)


def segment(folder: Path, samples: Any) -> None:
    """The first segment alone."""
    manifest = open_bundle(folder).manifest
    (first,) = load_segments(folder, manifest, range(1))
    name, shape = manifest.inputs[0].name, (1, *manifest.inputs[0].shape)
    inputs = [{name: sample.reshape(shape)} for sample in samples]
    for i in range(WARM_UP + ROUND * ROUNDS + 1):
        if i >= WARM_UP and not (i - WARM_UP) % ROUND:
            say((i - WARM_UP) // ROUND)
        first.run(inputs[i % len(inputs)])


class Door:
    """A broker, in place of `MqttDoor`: the sensor's or the uplink's."""

    def __init__(self, name: str, *_: Any, **on: Any) -> None:
        self.name = name
        self.up = threading.Event()
        self.generation = 1
        self.on_message: Callable[[mqtt.Incoming], None] = on["on_message"]
        self.on_published: Callable[[int], None] | None = on.get("on_published")
        self.on_up: Callable[[], None] | None = on.get("on_up")
        self.mid = 0
        WORLD.doors[name] = self

    def start(self) -> None:
        self.up.set()
        if self.on_up is not None:
            self.on_up()
        if self.name == "uplink":
            self.bring("desired", WORLD.desired)

    def stop(self, **_: Any) -> None:
        pass

    def bring(self, kind: str, payload: bytes) -> None:
        """A message comes from the broker."""
        self.mid += 1
        self.on_message(mqtt.Incoming(f"sluice/{WORLD.device}/{kind}", payload, 1, False, self.mid, 1))

    def publish(self, topic: str, payload: bytes, **_: Any) -> int:
        with uncounted():
            self.mid += 1
            mid = self.mid
            if self.on_published is not None:
                self.on_published(mid)
            WORLD.take(topic.rpartition("/")[2], payload)
            return mid

    def ack(self, _: mqtt.Incoming) -> None:
        if self.name == "sensor":
            with uncounted():
                WORLD.acknowledged()


class World:
    """What is around the agent, and how far it is."""

    def __init__(self, digest: str, samples: Any, desired: bytes, device: str) -> None:
        self.doors: dict[str, Door] = {}
        self.desired = desired
        self.device = device
        self.digest = digest.encode()
        self.readings = [sample.tolist() for sample in samples]
        self.number = 0
        self.stop = threading.Event()

    def next_reading(self) -> None:
        body = {"id": f"reading-{self.number:06}", "values": self.readings[self.number % len(self.readings)]}
        self.doors["sensor"].bring("sensor/camera", json.dumps(body).encode())

    def acknowledged(self) -> None:
        """The agent has the reading in its store."""
        self.number += 1
        done = self.number - WARM_UP
        if done >= 0 and not done % ROUND:
            say(done // ROUND)
        if done == ROUND * ROUNDS:
            self.stop.set()
        else:
            self.next_reading()

    def take(self, kind: str, payload: bytes) -> None:
        """What is published on the uplink, and what those above do then."""
        if kind == "reported" and self.digest in payload and not self.number:
            self.next_reading()
        if kind not in ("offload", "prediction"):
            return
        for outcome in messages.decode_all(payload):
            receipt = Receipt(epoch=outcome.epoch, seqs=[outcome.seq]).model_dump_json().encode()
            self.doors["uplink"].bring("receipt", receipt)
            if isinstance(outcome, messages.Offload):
                belief = best_belief(outcome)
                assert belief is not None
                answer = predict(outcome, belief, "cloud", "final", "last")
                self.doors["uplink"].bring("inbox", messages.encode(answer))


def agent() -> None:
    """The agent's main loop, in this thread."""
    mqtt.MqttDoor = Door  # type: ignore[assignment,misc]
    from edge_agent.agent import Agent
    from edge_agent.settings import EdgeSettings
    from sluice.daemon.settings import load

    Agent(load(EdgeSettings)).run(WORLD.stop)


if __name__ == "__main__":
    bundle, samples = Path(sys.argv[2]), np.load(sys.argv[3])
    if sys.argv[1] == "segment":
        segment(bundle, samples)
    else:
        WORLD = World(bundle.name, samples, base64.b64decode(sys.argv[4]), sys.argv[5])
        agent()
