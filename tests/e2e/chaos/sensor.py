"""The sensor of a user who takes care, and what he hears: readings with an id, answers on the sensor brokers.

A reading is published with QoS 1; the client keeps it and sends it again until the broker has acknowledged it. A broker
that is killed may forget what it acknowledged, and then nobody but the user can know: so a reading without any answer
is published again, with the same id, if its broker was killed since; these are counted.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sluice.doors.mqtt import Incoming, MqttBroker, MqttDoor
from sluice.wire import messages
from sluice.wire.messages import Prediction
from sluice.wire.names import MqttTopics

AGAIN_S = 15.0
"""A reading without an answer is published again after that time, if its broker was killed."""
OUTSTANDING = 2000
"""Readings without a final answer; when they are that many, the sensor waits."""


@dataclass(slots=True)
class Heard:
    """A final answer: the message, when it came (monotonic seconds), over which connection."""

    payload: bytes
    at: float
    generation: int


@dataclass(slots=True)
class Shown:
    """A sample that was shown to a device, and what was heard of it."""

    device: str
    image: int
    published: float
    payload: bytes
    finals: list[Heard] = field(default_factory=list)
    provisionals: int = 0

    @property
    def answered(self) -> bool:
        """Whether anything was heard of it."""
        return bool(self.finals or self.provisionals)


class Sensor:
    """Publishes `count` readings at `rate_hz`, by turns to the devices, from a thread of its own."""

    def __init__(
        self,
        brokers: dict[str, MqttBroker],
        images: NDArray[np.float32],
        *,
        run: str,
        count: int,
        rate_hz: float,
        broker_died: Callable[[str, float, float], bool],
    ) -> None:
        self.run_id = run
        self.shown: list[Shown] = []
        self.republished = 0
        self.broken: list[str] = []
        """What was heard that is no answer to anything shown."""
        self.changed = threading.Condition()
        self.answered = 0
        """Samples with a final answer."""
        self._images = [image.reshape(-1).tolist() for image in images]
        self._count, self._rate_hz, self._broker_died = count, rate_hz, broker_died
        self._topics = MqttTopics()
        self._devices = list(brokers)
        self._stopping = threading.Event()
        self._doors = {
            device: MqttDoor(
                f"observer of {device}",
                broker,
                f"observer-{device}-{run}",
                subscriptions=[(self._topics.of(device, "answer"), 1)],
                on_message=self._heard,
            )
            for device, broker in brokers.items()
        }
        self._thread = threading.Thread(target=self._work, name="sensor", daemon=True)

    def start(self) -> None:
        """Connect, then begin to publish."""
        for door in self._doors.values():
            door.start()
        for door in self._doors.values():
            if not door.up.wait(30):
                raise TimeoutError(f"{door.name}: no broker")
        self._thread.start()

    def stop(self) -> None:
        """Stop publishing and leave."""
        self._stopping.set()
        self._thread.join()
        for door in self._doors.values():
            door.stop(forget=True)

    @property
    def all_shown(self) -> bool:
        """Whether every reading was published once."""
        return len(self.shown) == self._count

    @property
    def all_answered(self) -> bool:
        """Whether every sample has a final answer."""
        return self.answered == self._count

    def _work(self) -> None:
        begun, looked = time.monotonic(), 0.0
        while not self._stopping.is_set():
            now = time.monotonic()
            number = len(self.shown)
            due = begun + number / self._rate_hz
            if number < self._count and due <= now and number - self.answered < OUTSTANDING:
                self._publish(number)
            else:
                self._stopping.wait(min(max(due - now, 0.002), 0.05) if number < self._count else 0.05)
            if now >= looked + 1.0:
                looked = now
                self._publish_again(now)

    def _publish(self, number: int) -> None:
        device, image = self._devices[number % len(self._devices)], number % len(self._images)
        body = {"id": f"{self.run_id}-{number}", "values": self._images[image]}
        shown = Shown(device, image, time.monotonic(), json.dumps(body).encode())
        with self.changed:
            self.shown.append(shown)
        self._doors[device].publish(self._topics.of(device, "sensor/eye"), shown.payload)

    def _publish_again(self, now: float) -> None:
        for one in self.shown[-2 * OUTSTANDING :]:
            late = not one.answered and now - one.published > AGAIN_S
            if late and self._doors[one.device].up.is_set() and self._broker_died(one.device, one.published, now):
                one.published = now
                self.republished += 1
                self._doors[one.device].publish(self._topics.of(one.device, "sensor/eye"), one.payload)

    def _heard(self, incoming: Incoming) -> None:
        device, _ = self._topics.split(incoming.topic)
        prediction = messages.decode(incoming.payload)
        run, _, number = (prediction.source_id or "").rpartition("-")
        with self.changed:
            known = isinstance(prediction, Prediction) and run == self.run_id and int(number) < len(self.shown)
            if not known or self.shown[int(number)].device != device:
                self.broken.append(f"{device} told of {prediction.source_id!r}")
            elif isinstance(prediction, Prediction):
                shown = self.shown[int(number)]
                if prediction.status == "final":
                    shown.finals.append(Heard(incoming.payload, time.monotonic(), incoming.generation))
                    self.answered += len(shown.finals) == 1
                else:
                    shown.provisionals += 1
                self.changed.notify_all()
        self._doors[device].ack(incoming)
