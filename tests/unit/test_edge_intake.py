"""The intake on a real store: what goes in, which samples come out, what is journalled, dropped and counted, and that a
restart at any step changes nothing of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.intake import Complete, Intake, check_fed
from edge_agent.settings import EdgeSettings
from edge_agent.store import Store
from sluice.daemon.settings import load
from sluice.doors.mqtt import Incoming
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import TensorSpec
from tests.unit.edge_stand_ins import KEY


def spec(*shape: int, dtype: Any = "float32", name: str = "x") -> tuple[TensorSpec, ...]:
    return (TensorSpec(name=name, dtype=dtype, shape=shape),)


class Device:
    """Intake and store, committed after each reading as the main loop does; `restart` leaves the rest to the store."""

    def __init__(self, folder: Path, specs: Mapping[str, tuple[TensorSpec, ...]], **more: Any) -> None:
        self.settings = EdgeSettings(device_id="d", public_keys=[KEY], data=folder, **more)
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


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_windows_of_two_models_over_the_same_readings_survive_a_restart_at_every_step(
    tmp_path: Path, every: int
) -> None:
    feeds = {"m": {"window": 4, "hop": 2}, "n": {"window": 3, "hop": 5}}
    device = Device(tmp_path, {"m": spec(4), "n": spec(3)}, inputs=feeds)
    made: dict[str, list[Any]] = {"m": [], "n": []}
    for i in range(40):
        for one in device.send({"values": i}):
            made[one.model].append(one.tensors["x"].tolist())
        assert len(device.store.readings()) < 4
        if i % every == 0:
            device.restart()
    assert made["m"] == [[i, i + 1, i + 2, i + 3] for i in range(0, 37, 2)]
    assert made["n"] == [[i, i + 1, i + 2] for i in range(0, 38, 5)]


IMU = {
    "acc": {"time_path": "t", "time_unit": "ms", "channels": 2},
    "gyro": {"time_path": "t", "time_unit": "ms", "values_path": ["x", "y"]},
    "temp": {"format": "csv", "columns": [1], "time_column": 0, "time_unit": "ms", "gap_s": 0.5},
}
"""Three sensors with times of their own: acc and gyro at about 50 Hz, temp now and then."""


def imu_readings(until_ms: int) -> list[tuple[str, int, Any, list[float]]]:
    """(sensor, time, payload, values) in the order of their times; every value is a straight line in time."""
    made: list[tuple[str, int, Any, list[float]]] = []
    for i in range(until_ms // 20):
        at, late = 20 * i + (7 * i) % 5, 20 * i + 3 + (3 * i) % 7
        made.append(("acc", at, {"t": at, "values": [at, -2 * at]}, [at, -2 * at]))
        made.append(("gyro", late, {"t": late, "x": 3 * late, "y": 1 + late}, [3 * late, 1 + late]))
        if i % 20 == 0:
            made.append(("temp", late + 1, b"%d,%d" % (late + 1, late + 8), [late + 8]))
    return sorted(made, key=lambda one: one[1])


def line(at: float) -> list[float]:
    """What all three sensors say at a time, ms."""
    return [at, -2 * at, 3 * at, 1 + at, at + 7]


@pytest.mark.parametrize("every", [1, 2, 5, 11])
def test_three_sensors_stand_side_by_side_and_a_restart_at_every_step_changes_nothing(
    tmp_path: Path, every: int
) -> None:
    """Two models on different grids, one of them with two inputs; a missing value, a gap and a repeat are among it."""
    feeds = {
        "m": {"sensors": ["acc", "gyro", "temp"], "rate_hz": 50, "window": 8, "hop": 4, "missing": "interpolate"},
        "n": {"tensors": {"a": ["gyro"], "b": ["acc"]}, "rate_hz": 25, "window_s": 0.2, "hop_s": 0.24},
    }
    specs = {"m": spec(8, 5), "n": (*spec(5, 2, name="b"), *spec(10, name="a"))}
    specs["n"] = tuple(reversed(specs["n"]))
    readings = imu_readings(2400)
    readings = [one for one in readings if one[0] != "gyro" or not 1000 < one[1] < 1200]
    hurt = next(i for i, one in enumerate(readings) if one[0] == "acc" and one[1] > 600)
    made: dict[bool, list[tuple[str, Any]]] = {}
    for restarts in (False, True):
        device = Device(tmp_path / str(restarts), specs, sensors=IMU, inputs=feeds)
        made[restarts] = []
        for i, (sensor, at, payload, _) in enumerate(readings):
            body = {"t": at, "values": [at, None]} if i == hurt else payload
            for one in device.send(body, sensor):
                made[restarts].append((one.model, {name: t.tolist() for name, t in one.tensors.items()}))
            if restarts and i % every == 0:
                device.restart()
        assert 0 < device.intake.counters["windows_dropped"] < 12 or restarts
        assert len(device.store.readings()) < 150
    assert made[True] == made[False]

    whole = [tensors["x"] for model, tensors in made[True] if model == "m"]
    for window in whole:
        first = window[0][0]
        for i, row in enumerate(window):
            assert row == pytest.approx(line(first + 20 * i), abs=1e-3)
    begins = [window[0][0] for window in whole]
    assert begins[:3] == pytest.approx([begins[0], begins[0] + 80, begins[0] + 160], abs=1e-3)
    assert not [begin for begin in begins if 1000 - 140 < begin < 1200], "the hole is in none"
    assert begins[-1] > 1700
    for model, tensors in made[True]:
        if model == "n":
            assert np.shape(tensors["b"]) == (5, 2) and np.shape(tensors["a"]) == (10,)
            first = tensors["b"][0][0]
            assert tensors["a"] == pytest.approx([v for i in range(5) for v in line(first + 40 * i)[2:4]], abs=1e-3)


def test_a_clock_that_jumps_costs_windows_and_neither_time_nor_memory(tmp_path: Path) -> None:
    feed = {"rate_hz": 50, "window": 4}
    device = Device(tmp_path, {"m": spec(4)}, sensors={"a": {"time_path": "t"}}, inputs={"m": feed})
    year, made = 365 * 86400.0, []
    clocks = [1.7e9, 1.7e9 + year, 1.7e9 - year, 0.0, 9e8, 1.7e9]
    for begin in clocks:
        for i in range(9):
            made += device.values({"t": begin + i / 50, "values": i})
            assert len(device.store.readings()) < 10
            device.restart()
    assert made == [[i, i + 1, i + 2, i + 3] for _ in clocks for i in (0, 4)]


def test_a_reading_that_is_late_is_dropped_and_counted(tmp_path: Path) -> None:
    device = Device(
        tmp_path,
        {"m": spec(2)},
        sensors={"a": {"time_path": "t", "back_s": 1.0}},
        input={"rate_hz": 1, "window": 2, "gap_most": 2},
    )
    sent = [(10, 1), (11, 2), (10.5, 99), (11, 99), (12, 3), (13, 4), (11.9, 5), (12.9, 6), (13.9, 7)]
    assert [v for at, value in sent for v in device.values({"t": at, "values": value})] == [[1, 2], [3, 4], [5, 6]]
    assert device.intake.counters == {"readings_late": 2, "clocks_set_back": 1, "windows_dropped": 1}


def test_a_sensor_that_falls_silent_costs_the_windows_that_it_would_be_in(tmp_path: Path) -> None:
    sensors = {name: {"time_path": "t", "time_unit": "ms", "channels": 1} for name in "ab"}
    feed = {"rate_hz": 10, "window": 2, "wait_s": 1, "gap_most": 2}
    device = Device(tmp_path, {"m": spec(2, 2)}, sensors=sensors, input=feed)
    made = []
    for at in range(0, 60_000, 100):
        made += device.values({"t": at, "values": at}, "a")
        if not 1_000 < at < 50_000:
            made += device.values({"t": at, "values": -at}, "b")
        assert len(device.store.readings()) < 40
    begins = [window[0][0] for window in made]
    assert begins == [*range(0, 1000, 200), *range(int(begins[5]), 59_900, 200)] and begins[5] in (50_000, 50_100)
    assert all(window == [[at, -at], [at + 100, -at - 100]] for at, window in zip(begins, made, strict=True))
    assert device.intake.counters["windows_dropped"] == pytest.approx(49_000 / 200, abs=8)


def test_a_slow_sensor_is_held_and_waited_for_no_longer_than_said(tmp_path: Path) -> None:
    sensors = {
        "fast": {"time_path": "t", "channels": 1},
        "slow": {"time_path": "t", "channels": 1, "gap_s": 60},
    }
    feed = {"rate_hz": 1, "window": 2, "wait_s": 3, "resample": "hold", "gap_most": 2}
    device = Device(tmp_path, {"m": spec(2, 2)}, sensors=sensors, input=feed)
    made = []
    device.send({"t": 0, "values": 7}, "slow")
    for at in range(200):
        made += device.values({"t": at, "values": at}, "fast")
        if at == 30:
            made += device.values({"t": 30.5, "values": 8}, "slow")
    held = [[[at, 7 if at < 31 else 8] for at in (begin, begin + 1)] for begin in range(0, 90, 2)]
    assert made == held, "60 s after its last reading its value is held no longer"


def test_where_readings_bring_no_time_that_of_their_arrival_counts_until_the_device_is_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(tmp_path, {"m": spec(2)}, input={"rate_hz": 1, "window": 2})
    second = 1_000_000_000
    for i in (100, 101, 102):
        made = device.values({"values": i}, arrived_ns=i * second)
        assert made == ([[100, 101]] if i == 101 else [])
        device.restart()
    assert device.values({"values": 103}, arrived_ns=103 * second) == [[102, 103]]
    device.send({"values": 104}, arrived_ns=104 * second)
    monkeypatch.setattr("edge_agent.intake._BOOT", tmp_path / "boot")
    (tmp_path / "boot").write_text("another")
    device.restart()
    assert [device.values({"values": i}, arrived_ns=i * second) for i in range(1, 5)] == [[], [[1, 2]], [], [[3, 4]]]
    assert device.intake.counters == {"windows_dropped": 1, "clocks_set_back": 1}


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize(
    ("missing", "made"),
    [
        ("drop", [[0, 1], [6, 7]]),
        ("hold", [[0, 1], [2, 2], [2, 5], [6, 7]]),
        ("interpolate", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ],
)
def test_missing_values_are_dropped_held_or_interpolated(
    tmp_path: Path, missing: str, made: list[list[int]], every: int
) -> None:
    sensor = {"format": "csv", "columns": [1], "source_id_column": 0}
    feed = {"window": 2, "missing": missing, "gap_most": 2}
    device = Device(tmp_path, {"m": spec(2)}, sensor=sensor, input=feed)
    values = ["0", "1", "2", "", "nan", "5", "6", "7"]
    found: list[Any] = []
    for i, value in enumerate(values):
        found += device.values(f"r{i},{value}".encode())
        assert device.send(f"r{i},{value}".encode()) == []
        if i % every == 0:
            device.restart()
    assert found == made


def test_a_reading_that_is_only_counted_is_made_durable_before_it_is_acknowledged(tmp_path: Path) -> None:
    """Of every ten readings the first makes a window; the others change where the next one begins, and no more."""
    device = Device(tmp_path, {"m": spec(1)}, input={"window": 1, "hop": 10})
    for i in range(35):
        assert device.values({"values": i}) == ([[i]] if i % 10 == 0 else [])
        assert device.store.readings() == []
        if i % 3 == 0:
            device.restart()


def test_the_store_knows_that_it_has_to_commit(tmp_path: Path) -> None:
    device = Device(tmp_path, {"m": spec(1)}, input={"window": 1, "hop": 10})
    for i in range(3):
        device.send({"values": i})
    incoming = Incoming("sluice/d/sensor/a", b'{"values": 1}', 1, False, 1, 1)
    assert not device.store.dirty
    assert device.intake.take(incoming, device.specs) == [] and device.store.dirty


def test_what_is_missing_is_refused_if_nothing_is_said_about_it(tmp_path: Path) -> None:
    device = Device(tmp_path, {"m": spec(4)}, input={"window": 2})
    device.send({"values": [1, 2]})
    for bad in ([None, 3], [float("nan"), 3], [None, None]):
        with pytest.raises(PermanentError, match="missing"):
            device.send({"values": bad})
    assert device.values({"values": [3, 4]}) == [[1, 2, 3, 4]], "the next one takes its place"


def test_what_only_some_models_can_use_begins_the_windows_of_the_others_anew(tmp_path: Path) -> None:
    feeds = {"m": {"window": 2, "missing": "hold"}, "n": {"window": 3}}
    device = Device(tmp_path, {"m": spec(2), "n": spec(3)}, inputs=feeds)
    made: dict[str, list[Any]] = {"m": [], "n": []}
    for value in [0, 1, None, 3, 4, 5, 6]:
        for one in device.send({"values": value}):
            made[one.model].append(one.tensors["x"].tolist())
        device.restart()
    assert made == {"m": [[0, 1], [1, 3], [4, 5]], "n": [[3, 4, 5]]}


def test_what_does_not_fit_the_models_numbers_is_refused_and_leaves_the_window_whole(tmp_path: Path) -> None:
    device = Device(tmp_path, {"m": spec(2, dtype="uint8")}, input={"window": 2})
    device.send({"values": 7})
    for bad in (256, -1):
        with pytest.raises(PermanentError, match="do not fit uint8"):
            device.send({"values": bad})
    assert device.values({"values": 254.7}) == [[7, 255]]


def test_a_journal_that_grows_beyond_its_bound_drops_its_window(tmp_path: Path) -> None:
    device = Device(tmp_path, {"m": spec(1000)}, input={"window": 1000}, journal_bytes=5000)
    most = 0
    for i in range(100):
        assert device.send({"values": i}) == []
        most = max(most, len(device.store.readings()))
    assert 10 < most < 25 and device.intake.counters["windows_dropped"] >= 4


def test_models_come_and_go(tmp_path: Path) -> None:
    feeds = {"m": {"window": 2, "sensors": ["a"]}, "n": {"window": 2, "sensors": ["b"]}}
    device = Device(tmp_path, {"m": spec(2)}, sensors={"a": {}, "b": {}}, inputs=feeds)
    device.send({"values": 1}, "a")
    assert device.send({"values": 1}, "b") == [] and device.intake.counters == {"readings_unused": 1}
    device.specs = {"m": spec(2, 1), "n": spec(2)}  # another bundle of m, which goes on; n begins
    assert device.values({"values": 2}, "a") == [[[1], [2]]]
    device.send({"values": 3}, "b")
    device.specs = {"m": spec(2, 1)}
    device.send({"values": 5}, "a")
    device.specs = {"m": spec(4)}  # takes more of each reading
    with pytest.raises(PermanentError, match="reading has 1 values; 2 such make no input of 4"):
        device.send({"values": 6}, "a")
    assert device.values({"values": [7, 8]}, "a") == [] and device.values({"values": [9, 10]}, "a") == [[7, 8, 9, 10]]
    assert device.intake.counters == {"readings_unused": 1, "windows_dropped": 2}
    device.specs = {"x": spec(2)}
    assert device.send({"values": [7, 8]}, "a") == [], "nothing feeds x"
    assert device.store.readings() == []


def test_other_settings_begin_anew_and_the_same_go_on(tmp_path: Path) -> None:
    device = Device(tmp_path, {"m": spec(3)}, sensor={"channels": 1}, input={"window": 3})
    device.send({"values": 1})
    device.store.close()
    device = Device(tmp_path, {"m": spec(3)}, sensor={"channels": 1}, input={"window": 3, "hop": 1})
    assert [device.values({"values": i}) for i in (2, 3, 4)] == [[], [], [[2, 3, 4]]]
    assert device.intake.counters == {"windows_dropped": 1}


def test_ids_are_told_apart_by_sensor(tmp_path: Path) -> None:
    device = Device(
        tmp_path, {"m": spec(1)}, sensors={"a": {}, "b": {}}, inputs={"m": {"sensors": ["a"]}, "n": {"sensors": ["b"]}}
    )
    device.specs = {"m": spec(1), "n": spec(1)}
    assert [len(device.send({"id": 1, "values": 1}, name)) for name in "abab"] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("given_settings", "said"),
    [
        (
            {"inputs": {"m": {"sensors": ["no"]}}, "sensors": {"a": {}}},
            "inputs.m: no sensor is called 'no'; there are a",
        ),
        ({"inputs": {"m": {"window_s": 1}}}, "inputs.m: window_s needs rate_hz"),
        ({"input": {"wait_s": 1}}, "input: wait_s needs rate_hz"),
        ({"input": {"rate_hz": 50, "window": 2, "window_s": 1}}, "input: window and window_s: use one of them"),
        ({"input": {"rate_hz": 50, "window_s": 1.01}}, "50.5 rows, no whole number"),
        ({"sensors": {"a": {}, "b": {}}}, "sensors: there are several"),
        ({"sensors": {"a": {}, "b": {}}, "input": {}}, "input: sensors a, b can stand in one window only with rate_hz"),
        (
            {"sensors": {"a": {}, "b": {}}, "input": {"rate_hz": 1}},
            "sensor 'a' stands beside others and needs channels",
        ),
        (
            {"sensors": {"a": {"channels": 1, "time_path": "t"}, "b": {"channels": 1}}, "input": {"rate_hz": 1}},
            "a bring their time, b do not",
        ),
        ({"sensors": {"a": {}}, "sensor": {}}, "sensor and sensors"),
        (
            {"sensors": {"a": {"topic": "x/+/y"}, "b": {"topic": "x/z/#"}}, "input": {"sensors": ["a"]}},
            "belong to both",
        ),
        ({"sensor": {"topic": "sluice/#"}}, "takes in the agent's own answers"),
        ({"sensor": {"topic": "x/#/y"}}, "no MQTT topic filter"),
        ({"sensor": {"format": "csv", "time_path": "t"}}, "sensor: time_path is for format json or avro, not for csv"),
        ({"sensor": {"format": "avro"}}, "sensor: format avro needs a schema_file"),
        ({"sensor": {"time_unit": "ms"}}, "time_unit without time_path"),
        ({"sensor": {"values_path": ["a", ""]}}, "a path is empty"),
        ({"sensor": {"format": "csv", "columns": [1, 2], "time_column": 2}}, "the same column is named twice"),
        ({"input": {"sensors": ["a"], "tensors": {"x": ["a"]}}}, "sensors and tensors: use one"),
        ({"sensor": {"gap_s": 86400}, "input": {"rate_hz": 50}}, "4320000 windows at once"),
    ],
)
def test_settings_that_contradict_one_another_are_named_in_one_line(
    given_settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "edge.toml"
    file.write_text(
        "\n".join(f"{k} = {inline(v)}" for k, v in {"device_id": "d", "public_keys": [KEY], **given_settings}.items())
    )
    with pytest.raises(PermanentError) as caught:
        load(EdgeSettings, file)
    assert said in str(caught.value) and str(caught.value).startswith("setting EDGE_") and "\n" not in str(caught.value)


def inline(value: Any) -> str:
    """A value as TOML has it on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {inline(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


@pytest.mark.parametrize(
    ("given_settings", "specs", "said"),
    [
        ({"input": {"window": 3}}, spec(4), "3 rows make no input 'x' of 4 for model 'm'"),
        ({"sensor": {"channels": 3}}, spec(4), "1 rows of 3 values make no input 'x' of 4 for model 'm'"),
        ({}, spec(1) + spec(1, name="y"), "model 'm' has inputs x, y; inputs.m.tensors in the settings feeds none"),
        ({"sensors": {"a": {}, "b": {}}, "inputs": {"n": {"sensors": ["a"]}}}, spec(1), "nothing feeds model 'm'"),
    ],
)
def test_a_model_that_the_settings_cannot_feed_is_refused(
    given_settings: dict[str, Any], specs: Any, said: str
) -> None:
    with pytest.raises(PermanentError, match=said):
        check_fed(EdgeSettings(device_id="d", public_keys=[KEY], **given_settings), "m", specs)


TIMES = st.sampled_from([0, 1, 20, 40, 60, 61, 500, 10_000, -5, -30, -20_000, 10**10, -(10**10), 10**16])
"""Milliseconds from one reading to the next, of clocks that run, stand, jump and go back."""
SOME = st.one_of(st.none(), st.floats(-100, 300), st.just(1e39), st.just("x"))
MESSAGE = st.tuples(
    st.sampled_from(["acc", "gyro", "temp"]), TIMES, st.lists(SOME, max_size=3), st.sampled_from([None, "a", "b"])
)


@given(messages=st.lists(MESSAGE, max_size=80), missing=st.sampled_from(["refuse", "drop", "hold", "interpolate"]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_is_taken_or_refused_and_never_gathers(
    tmp_path_factory: pytest.TempPathFactory, messages: list[Any], missing: str
) -> None:
    """Nothing else is raised, and what is journalled is what is held."""
    feeds = {
        "m": {"sensors": ["acc", "gyro", "temp"], "rate_hz": 50, "window": 4, "hop": 2, "missing": missing},
        "n": {"sensors": ["acc"], "window": 3, "hop": 2, "missing": missing, "gap_most": 2},
        "o": {"tensors": {"x": ["gyro"]}, "rate_hz": 50, "window": 1, "resample": "hold"},
    }
    specs = {"m": spec(4, 5), "n": spec(6, dtype="uint8"), "o": spec(2)}
    device = Device(tmp_path_factory.mktemp("d"), specs, sensors=IMU, inputs=feeds, journal_bytes=8000)
    clock = dict.fromkeys(IMU, 0)
    for number, (sensor, step, values, source_id) in enumerate(messages):
        clock[sensor] += step
        at = clock[sensor]
        body: Any = {"t": at, "id": source_id and f"{source_id}{number % 7}", "values": values}
        if sensor == "gyro":
            body |= dict(zip("xy", values, strict=False))
        if sensor == "temp":
            body = f"{at},{values[0] if values else ''}".encode()
        try:
            device.send(body, sensor)
        except PermanentError:
            device.store.commit()
        held = {name: len(track.rows) for name, track in device.intake._tracks.items()}
        assert sum(held.values()) == len(device.store.readings()) <= 3 * 8000 // 250
        if number % 5 == 4:
            device.restart()
    device.store.close()


def test_a_reading_of_the_wrong_size_is_refused(tmp_path: Path) -> None:
    device = Device(tmp_path, {"m": spec(1, 5)}, sensors=IMU, input={"rate_hz": 50})
    with pytest.raises(PermanentError, match="reading has 3 values, sensor 'acc' has 2"):
        device.send({"t": 1, "values": [1, 2, 3]}, "acc")
