"""Sensors of every format on real Mosquitto, and an agent that is killed in the middle, again and again: each window of
each model exactly once, in order, and with exactly the values that it has to have; without an id at least once.

Two models run, all of whose segments are in the cloud, so that what the agent made of the readings can be seen above.
One takes a grid in time of two sensors, JSON and CSV with missing values; the other windows by count of a third one.
"""

import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import fastavro
import pytest
from fastavro.schema import fingerprint, to_parsing_canonical_form

from sluice.dev.processes import Processes
from sluice.doors.mqtt import MqttDoor
from sluice.wire import bundle as bundles
from sluice.wire.codec import decode_tensor
from sluice.wire.manifest import TensorSpec
from sluice.wire.messages import Offload
from sluice.wire.state import Run
from tests.brokers.mosquitto import Mosquitto
from tests.integration.edge_support import (
    POINT,
    WAIT_S,
    Above,
    MadeBundle,
    agent_settings,
    broker_of,
    until,
    write,
)

pytestmark = [pytest.mark.brokers, pytest.mark.tensorflow, pytest.mark.timeout(300)]

FIRST, LAST, KILLS = 10, 240, (31, 124, 222)
"""Steps of 20 ms, and those at which the agent is killed: while readings flow. Models are on trial for 20 samples, and
an agent that ends three times meanwhile goes back; so the last kill comes when both have proven themselves."""
SCHEMA = {
    "type": "record",
    "name": "Counted",
    "fields": [{"name": "id", "type": "string"}, {"name": "v", "type": {"type": "array", "items": "int"}}],
}
SENSORS: dict[str, dict[str, Any]] = {
    "left": {"time_path": "at.ms", "time_unit": "ms", "values_path": ["v.0"]},
    "right": {
        "format": "csv",
        "source_id_column": 0,
        "time_column": 1,
        "time_unit": "ms",
        "columns": [3, 2],
    },
    "raw": {"format": "raw", "dtype": "int16"},
    "avro": {"format": "avro", "values_path": "v"},
}
GRID = {
    "sensors": ["left", "right"],
    "rate_hz": 50,
    "window_s": 0.24,
    "hop_s": 0.08,
    "missing": "interpolate",
    "gap_most": 4,
    "wait_s": 600,
}


class Sensors:
    """Publishes step by step: `left` exactly on the grid, `right` before it and with holes, `counted` by number."""

    def __init__(self, broker: Any, device: str, counted: str) -> None:
        self.device, self.counted, self.number = device, counted, 0
        self.door = MqttDoor("sensors", broker, f"{device}-sensors")

    def __enter__(self) -> "Sensors":
        self.door.start()
        assert self.door.up.wait(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.door.stop()

    def step(self, i: int) -> None:
        left = {"id": f"l{i}", "at": {"ms": 20 * i}, "v": [7 * i % 256]}
        self.door.publish(f"sluice/{self.device}/sensor/left", json.dumps(left).encode())
        at = 20 * i - 1 - i % 5
        first, second = ("" if i % 9 == 4 else at / 20, "nan" if i % 9 in (5, 6) else 255 - at / 20)
        self.door.publish(f"{self.device}/right", f"r{i},{at},{second},{first}".encode())
        self._count()

    def _count(self) -> None:
        values, self.number = counted(self.number), self.number + 1
        if self.counted == "raw":
            payload = b"".join(value.to_bytes(2, "little") for value in values)
        else:
            out = io.BytesIO(b"\xc3\x01" + bytes.fromhex(fingerprint(to_parsing_canonical_form(SCHEMA), "CRC-64-AVRO")))
            out.seek(10)
            fastavro.schemaless_writer(out, fastavro.parse_schema(SCHEMA), {"id": f"c{self.number}", "v": values})
            payload = out.getvalue()
        self.door.publish(f"sluice/{self.device}/sensor/{self.counted}", payload)


def counted(number: int) -> list[int]:
    return [number % 256, number * 3 % 256, number * 5 % 256]


def on_the_grid(last: int) -> list[list[int]]:
    """The windows of `left` and `right` together that are complete after step `last`."""
    begins = range(FIRST, last - 12 + 1, 4)
    return [[v for i in range(begin, begin + 12) for v in (7 * i % 256, i, 255 - i)] for begin in begins]


def by_count(readings: int) -> list[list[int]]:
    """The windows of so many counted readings: 12 of them, a new one every 2."""
    return [[v for i in range(begin, begin + 12) for v in counted(i)] for begin in range(0, readings - 12 + 1, 2)]


def numbers_of(windows: list[list[int]]) -> list[int]:
    """The numbers of the counted readings that the windows were made of, one after the other."""
    numbers = [number for window in windows for number in (window[0], window[3])]
    numbers += windows[-1][6::3] if windows else []
    for i, window in enumerate(windows):
        assert window == [v for number in numbers[2 * i : 2 * i + 12] for v in counted(number)]
    return numbers


def windows_of(above: Above, model: str, spec: TensorSpec) -> list[list[int]]:
    """What came up of a model, in the order of its samples; what came again is the same."""
    by_seq: dict[int, list[int]] = {}
    for outcome in list(above.came):
        if outcome.model == model:
            assert isinstance(outcome, Offload)
            values = decode_tensor(outcome.tensors[0], spec).reshape(-1).tolist()
            assert by_seq.setdefault(outcome.seq, values) == values
    return [by_seq[seq] for seq in sorted(by_seq)]


@pytest.mark.parametrize("counting", ["avro", "raw"])
def test_killed_again_and_again_each_window_comes_once_and_as_it_has_to_be(
    made: MadeBundle, unique: str, tmp_path: Path, processes: Processes, mosquitto: Mosquitto, counting: str
) -> None:
    device, data, broker = f"device-{unique}", tmp_path / "data", broker_of(mosquitto)
    manifest = bundles.open_bundle(made.folder).manifest
    point = manifest.operating_points[0].model_copy(update={"placement": ("cloud", "cloud"), "codec": "raw"})
    grid, rows = (
        write(made.folder, data / "bundles", manifest.model_copy(update={"model": model}), point, made.key)
        for model in ("columns", "rows")
    )
    sensors: dict[str, Any] = {name: dict(SENSORS[name]) for name in ("left", "right", counting)}
    sensors["right"]["topic"] = f"{device}/right"
    (tmp_path / "counted.avsc").write_text(json.dumps(SCHEMA))
    if counting == "avro":
        sensors["avro"]["schema_file"] = str(tmp_path / "counted.avsc")
    inputs = {"columns": GRID, "rows": {"sensors": [counting], "window": 12, "hop": 2}}
    settings = agent_settings(made, device, data, mosquitto, EDGE_RECEIPT_TIMEOUT_S="1") | {
        "EDGE_SENSORS": json.dumps(sensors),
        "EDGE_INPUTS": json.dumps(inputs),
    }
    spec = manifest.inputs[0]
    with Above(broker, device, answers=False) as above, Sensors(broker, device, counting) as user:
        above.desire(made.desired(device, digest=grid, others=(Run(model="rows", bundle=rows, operating_point=POINT),)))
        agent = processes.start("agent", ["edge-agent"], settings)
        agent.wait_ready()
        until(lambda: above.reported and len(above.reported[-1].runs) == 2)
        for i in range(FIRST, LAST):
            user.step(i)
            if i in KILLS:
                if i == KILLS[-1]:
                    until(lambda: len(windows_of(above, "columns", spec)) >= len(on_the_grid(KILLS[-1] - 3)))
                    until(lambda: len(windows_of(above, "rows", spec)) >= len(by_count(user.number - 3)))
                agent.kill()
                agent.start()
        wanted = on_the_grid(LAST - 2)
        until(lambda: len(windows_of(above, "columns", spec)) >= len(wanted))
        assert windows_of(above, "columns", spec) == wanted
        until(lambda: numbers_of(windows_of(above, "rows", spec))[-1:] >= [user.number - 2])
        numbers = numbers_of(windows_of(above, "rows", spec))
        if counting == "avro":
            assert windows_of(above, "rows", spec) == by_count(user.number)
        else:  # raw readings have no id, so what the broker had not heard of comes again: at least once, and in order
            assert numbers[0] == 0 and all(b <= a + 1 for a, b in pairwise(numbers))
            assert set(numbers) >= set(range(user.number - 1))
        agent.wait_ready()
        assert agent.stop() == 0
