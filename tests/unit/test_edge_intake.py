"""The intake on a real store: what goes in, which samples come out, what is journalled, dropped and counted, and that a
restart at any step changes nothing of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edge_agent.intake import Complete, Intake
from edge_agent.settings import EdgeSettings
from edge_agent.store import Store
from sluice.doors.mqtt import Incoming
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import TensorSpec
from tests.unit.edge_stand_ins import KEY


def spec(*shape: int, dtype: Any = "float32", name: str = "x") -> tuple[TensorSpec, ...]:
    return (TensorSpec(name=name, dtype=dtype, shape=shape),)


class Device:
    """Intake and store, committed after each reading as the main loop does; `restart` leaves the rest to the store."""

    def __init__(self, folder: Path, specs: Mapping[str, tuple[TensorSpec, ...]], **settings: Any) -> None:
        self.settings = EdgeSettings(device_id="d", public_keys=[KEY], data=folder, **settings)
        self.specs = specs
        self.start()

    def start(self) -> None:
        self.store = Store(self.settings.data)
        self.intake = Intake(self.settings, self.store)

    def restart(self) -> None:
        """As after kill -9: what is not committed is gone."""
        self.store._db.rollback()
        self.store._db.close()
        self.start()

    def send(self, payload: Any, sensor: str = "a", arrived_ns: int = 0) -> list[Complete]:
        """A reading of `sensor`, taken in and committed."""
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        incoming = Incoming(f"sluice/d/sensor/{sensor}", body, 1, False, 1, 1, arrived_ns)
        made = self.intake.take(incoming, self.specs)
        self.store.commit()
        return made

    def values(self, payload: Any, sensor: str = "a", arrived_ns: int = 0) -> list[Any]:
        """The values of what a reading completes."""
        return [t.tolist() for one in self.send(payload, sensor, arrived_ns) for t in one.tensors.values()]


def test_without_further_settings_each_reading_is_the_input_of_each_model(tmp_path: Path) -> None:
    device = Device(tmp_path, {"m": spec(2), "n": spec(2, 1)})
    made = device.send({"id": "r1", "values": [1, 2]}, "whatever")
    assert [(one.model, one.source_id) for one in made] == [("m", "r1"), ("n", "r1")]
    assert [one.tensors["x"].tolist() for one in made] == [[1, 2], [[1], [2]]]
    assert device.send({"id": "r1", "values": [1, 2]}) == []
    assert device.intake.counters == {"readings_repeated": 1}
    assert device.store.readings() == []
    with pytest.raises(PermanentError, match="reading has 3 values; 1 such make no input of 2"):
        device.send({"id": "r2", "values": [1, 2, 3]})
    assert len(device.send({"id": "r2", "values": [1, 2]})) == 2, "a reading that was refused is no repeat"


def test_windows_of_two_models_over_the_same_readings_survive_a_restart_at_every_step(tmp_path: Path) -> None:
    feeds = {"m": {"window": 4, "hop": 2}, "n": {"window": 3, "hop": 5}}
    device = Device(tmp_path, {"m": spec(4), "n": spec(3)}, inputs=feeds)
    made: dict[str, list[Any]] = {"m": [], "n": []}
    for i in range(40):
        for one in device.send({"values": i}):
            made[one.model].append(one.tensors["x"].tolist())
        assert len(device.store.readings()) < 4
        device.restart()
    assert made["m"] == [[i, i + 1, i + 2, i + 3] for i in range(0, 37, 2)]
    assert made["n"] == [[i, i + 1, i + 2] for i in range(0, 38, 5)]
