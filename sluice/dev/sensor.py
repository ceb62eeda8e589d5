"""A sensor and an outside observer: publishes samples to devices, collects the answers that the devices tell.

It sees only what a user would see, the topics of the sensor broker; so what it counts is what was promised. With
`uplink` it also weighs what the devices send up.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sluice.doors.mqtt import Incoming, MqttBroker, MqttDoor
from sluice.wire import messages
from sluice.wire.messages import Prediction
from sluice.wire.names import OUTCOME_KINDS, MqttTopics


@dataclass(slots=True)
class Told:
    """What was told of one sample: times are monotonic nanoseconds."""

    device: str
    sent_ns: int = 0
    answered_ns: int = 0
    first_ns: int = 0
    """When anything was told, a provisional answer too."""
    finals: list[Prediction] = field(default_factory=list)
    provisionals: int = 0
    generation: int = 0
    """The connection that brought the first final answer."""


class Sensor:
    """Publishes `samples` (n, …) to the devices by turns and listens to `answer`.

    `brokers` gives each device's sensor broker (with the device's user name where it wants one).
    """

    def __init__(
        self,
        brokers: dict[str, MqttBroker],
        samples: NDArray[np.generic],
        *,
        run: str,
        uplink: MqttBroker | None = None,
        outstanding: int = 64,
    ) -> None:
        self.topics = MqttTopics()
        self.samples = samples
        self.run_id = run
        self.devices = list(brokers)
        self.told: list[Told] = []
        self.strangers = 0
        """Answers that belong to no sample of this run."""
        self.redelivered = 0
        """Repeats, to the byte, of a final answer that an earlier connection had brought already.

        A broker that was killed may deliver what it had delivered, with MQTT's DUP mark or, from a queue that it had
        saved before, without it. A repeat within a connection, or one that differs, is a duplicate of our making.
        """
        self.bytes_up = 0
        self._places = threading.Semaphore(outstanding)
        self._changed = threading.Condition()
        self._done = 0
        self._doors = {
            device: MqttDoor(
                f"sensor of {device}",
                broker,
                f"{device}-{run}",
                subscriptions=[(self.topics.of(device, "answer"), 1)],
                on_message=self._answered,
            )
            for device, broker in brokers.items()
        }
        self._scale: MqttDoor | None = None
        if uplink is not None:
            self._scale = MqttDoor(
                "scale",
                uplink,
                f"scale-{run}",
                subscriptions=[(self.topics.every(kind), 1) for kind in OUTCOME_KINDS],
                on_message=self._weigh,
            )

    def start(self, timeout_s: float = 30.0) -> None:
        """Connect everywhere."""
        doors = [*self._doors.values(), *([self._scale] if self._scale else [])]
        for door in doors:
            door.start()
        for door in doors:
            if not door.up.wait(timeout_s):
                raise TimeoutError(f"{door.name}: no MQTT broker at {door.broker.host}:{door.broker.port}")

    def publish(self, order: Sequence[int], rate_hz: float, tick: Callable[[int], None] | None = None) -> None:
        """Publish samples[i] for i in `order`, at most `rate_hz` a second, by turns to the devices.

        Waits while too many have no answer yet, so that a test does not run away from what it tests.
        """
        begun, first = time.monotonic(), len(self.told)
        for number, index in enumerate(order, first):
            device = self.devices[number % len(self.devices)]
            while not self._places.acquire(timeout=30):
                pass  # the outstanding bound; whoever watches the run sees that nothing moves
            ahead = begun + (number - first) / rate_hz - time.monotonic()
            if ahead > 0:
                threading.Event().wait(ahead)
            body = {"id": f"{self.run_id}-{number}", "values": self.samples[index].reshape(-1).tolist()}
            payload = json.dumps(body).encode()
            with self._changed:
                self.told.append(Told(device, time.monotonic_ns()))
            self._doors[device].publish(self.topics.of(device, "sensor/camera"), payload)
            if tick:
                tick(number - first + 1)

    def wait(self, timeout_s: float) -> bool:
        """Wait until every sample has a final answer; False when `timeout_s` passed without any further one."""
        with self._changed:
            while self._done < len(self.told):
                if not self._changed.wait(timeout_s):
                    return False
        return True

    def stop(self) -> None:
        """Disconnect for good: the broker must not gather answers for a sensor that never comes back."""
        for door in [*self._doors.values(), *([self._scale] if self._scale else [])]:
            door.stop(forget=True)

    def _answered(self, incoming: Incoming) -> None:
        now = time.monotonic_ns()
        device, _ = self.topics.split(incoming.topic)
        prediction = messages.decode(incoming.payload)
        run, _, number = (prediction.source_id or "").rpartition("-")
        with self._changed:
            if not isinstance(prediction, Prediction) or run != self.run_id or int(number) >= len(self.told):
                self.strangers += 1
            else:
                told = self.told[int(number)]
                assert told.device == device, f"sample {number} of {told.device} answered by {device}"
                told.first_ns = told.first_ns or now
                if prediction.status == "final":
                    told.finals.append(prediction)
                    if len(told.finals) == 1:
                        told.generation = incoming.generation
                    elif told.generation != incoming.generation and prediction == told.finals[0]:
                        self.redelivered += 1
                    if len(told.finals) == 1:
                        told.answered_ns = now
                        self._done += 1
                        self._places.release()
                        self._changed.notify_all()
                else:
                    told.provisionals += 1
        self._doors[device].ack(incoming)

    def _weigh(self, incoming: Incoming) -> None:
        self.bytes_up += len(incoming.payload)
        if self._scale is not None:
            self._scale.ack(incoming)
