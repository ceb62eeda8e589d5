"""Stand-ins for what surrounds the outbox: two doors that record, a clock that a test moves, outcomes to put in."""

import itertools
import secrets
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from edge_agent.outbox import Outbox
from edge_agent.settings import EdgeSettings
from edge_agent.store import Store
from sluice.doors.mqtt import Incoming, MqttDoor
from sluice.wire import messages
from sluice.wire.messages import Belief, Offload, Outcome, Prediction, Tensor

KEY = "83pz6+w2YkVNuFVoXHDDFzLpReD4ZPIcCGHN8lkmiew="
"""A public key; nothing here is signed with it."""
DEVICE = f"device-{secrets.token_hex(3)}"
BUNDLE = "ab" * 32
_mids = itertools.count(1)


class Clock:
    """Monotonic seconds that only the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += seconds


class Door:
    """Records what is published and acknowledged; the test says when the broker has taken it."""

    def __init__(self, up: bool = True) -> None:
        self.up = threading.Event()
        if up:
            self.up.set()
        self.sent: list[tuple[int, str, Outcome]] = []
        self.acked: list[Incoming] = []

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int:
        assert qos == 1 and not retain
        mid = next(_mids)
        self.sent += [(mid, topic, outcome) for outcome in messages.decode_all(payload, len(payload))]
        return mid

    def ack(self, message: Incoming) -> None:
        self.acked.append(message)

    def messages(self) -> list[list[int]]:
        """The samples in each message since the last look."""
        by_mid: dict[int, list[int]] = {}
        for mid, _, outcome in self.sent:
            by_mid.setdefault(mid, []).append(outcome.seq)
        self.sent.clear()
        return list(by_mid.values())

    def take(self) -> list[Outcome]:
        """What was published since the last look."""
        taken = [outcome for _, _, outcome in self.sent]
        self.sent.clear()
        return taken


class Device:
    """An outbox between two recording doors, with the turns of the main loop."""

    def __init__(self, folder: Path, clock: Clock, up: bool = True, **settings: Any) -> None:
        self.clock = clock
        self.folder = folder
        self.settings = EdgeSettings(device_id=DEVICE, public_keys=[KEY], data=folder, **settings)
        self.sensor, self.uplink = Door(), Door(up)
        self.store = Store(folder)
        self.outbox = Outbox(self.settings, self.store, cast(MqttDoor, self.sensor), cast(MqttDoor, self.uplink))

    def restart(self) -> "Device":
        """What a kill -9 leaves: the last commit. A new run with the same settings."""
        self.store._db.rollback()
        self.store._db.close()
        again = Device.__new__(Device)
        again.clock, again.folder, again.settings = self.clock, self.folder, self.settings
        again.sensor, again.uplink = Door(), Door(self.uplink.up.is_set())
        again.store = Store(self.folder)
        sensor, uplink = cast(MqttDoor, again.sensor), cast(MqttDoor, again.uplink)
        again.outbox = Outbox(again.settings, again.store, sensor, uplink)
        return again

    def turn(self) -> None:
        """The second half of the main loop's turn."""
        self.outbox.tick()
        self.store.commit()
        self.outbox.after_commit()

    def add(self, *outcomes: Outcome) -> None:
        self.outbox.add(outcomes)
        self.turn()

    def offload(self, **changes: Any) -> Offload:
        return replace(
            Offload(
                device_id=DEVICE,
                epoch=self.store.epoch,
                seq=self.store.new_seq(),
                source_id=None,
                model="columns",
                bundle=BUNDLE,
                operating_point="default",
                tier="fog",
                next_segment=1,
                tensors=(Tensor("h", "int8", (4,), 0.0, 0, "raw", b"1234"),),
                beliefs=(Belief(0, 2, 0.5), Belief(1, 1, 0.75)),
                captured_at=5,
                ttl_ms=60_000,
            ),
            **changes,
        )

    def own_final(self, **changes: Any) -> Prediction:
        return answer_to(self.offload(), tier="edge", reason="exit", **changes)

    def hear(self, prediction: Prediction) -> Incoming:
        """An answer arrives from above."""
        incoming = Incoming(f"sluice/{DEVICE}/inbox", messages.encode(prediction), 1, False, next(_mids), 1)
        self.outbox.answer(prediction, incoming)
        return incoming

    def sensor_takes(self) -> list[Prediction]:
        """The sensor broker takes all answers published so far."""
        told = []
        for mid, topic, outcome in self.sensor.sent:
            assert topic == f"sluice/{DEVICE}/answer" and isinstance(outcome, Prediction)
            self.outbox.published(mid)
            told.append(outcome)
        self.sensor.sent.clear()
        return told

    def kept(self) -> list[tuple[int, str]]:
        """(seq, kind) of what stands in the store."""
        return [(row.seq, row.kind) for row in self.store.rows()]


def answer_to(offload: Offload, **changes: Any) -> Prediction:
    """The final answer of the cloud to `offload`."""
    return replace(
        Prediction(
            device_id=offload.device_id,
            epoch=offload.epoch,
            seq=offload.seq,
            source_id=offload.source_id,
            model=offload.model,
            bundle=offload.bundle,
            operating_point=offload.operating_point,
            tier="cloud",
            exit=2,
            label=0,
            confidence=0.875,
            outputs=b"",
            status="final",
            reason="last",
            captured_at=offload.captured_at,
            produced_at=6,
        ),
        **changes,
    )
