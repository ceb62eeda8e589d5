"""Settings of sensors and of what they feed: how a reading is read, and how readings become the input of a model.

`Sensor` is read by `sensor.py`, `Input` by `intake.py`; `check_sensing` finds settings that contradict one another.
What they mean to a user stands in docs/sensors.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations, zip_longest
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sluice.daemon.settings import Seconds
from sluice.wire.names import Name

WINDOWS_MOST = 1000
"""Windows that a single reading may complete, at the end of the longest gap that is filled."""
_FOR_FORMATS = {
    "values_path": ("json", "avro"),
    "source_id_path": ("json", "avro"),
    "time_path": ("json", "avro"),
    "columns": ("csv",),
    "source_id_column": ("csv",),
    "time_column": ("csv",),
    "separator": ("csv",),
    "dtype": ("raw",),
    "schema_file": ("avro",),
    "framing": ("avro",),
}
_FOR_RATE = ("window_s", "hop_s", "resample", "wait_s")


class Sensor(BaseModel):
    """How readings arrive and what is in them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    topic: str | None = None
    """MQTT topic filter of the readings; unset: `<prefix>/<device>/sensor/<name>`, and `+` where there is no name."""
    format: Literal["json", "csv", "raw", "avro"] = "json"
    """Format of a reading; see `edge_agent/sensor.py`."""
    values_path: str | list[str] = "values"
    """json, avro: dotted path to the number or list of numbers (`acc.x`, `samples.0`); or a list of such paths."""
    source_id_path: str = "id"
    """json, avro: dotted path to the user's own id of the reading; a reading without one is taken as new."""
    time_path: str | None = None
    """json, avro: dotted path to the time of the reading; unset: the time of its arrival counts."""
    columns: list[int] = []
    """csv: the columns of the values, in their order, the first is 0; empty: all but those of id and time."""
    source_id_column: int | None = Field(default=None, ge=0)
    """csv: the column of the user's own id of the reading."""
    time_column: int | None = Field(default=None, ge=0)
    """csv: the column of the time of the reading; unset: the time of its arrival counts."""
    separator: str = Field(default=",", min_length=1, max_length=1)
    """csv: what stands between two columns."""
    time_unit: Literal["s", "ms", "us", "ns", "iso"] = "s"
    """Unit of the time in a reading, since any moment that its sensors share; `iso`: text as in ISO 8601."""
    dtype: Literal["uint8", "int8", "int16", "int32", "float32", "float64"] = "float32"
    """raw: type of the little-endian numbers."""
    schema_file: Path | None = None
    """avro: file of the schema (`.avsc`)."""
    framing: Literal["single-object", "bare"] = "single-object"
    """avro: `single-object` (marker, fingerprint of the schema, body) or the `bare` body."""
    channels: int | None = Field(default=None, ge=1)
    """Numbers in a reading; unset: as many as there are columns or paths, or as the model needs."""
    gap_s: Seconds | None = Field(default=None, gt=0)
    """Windows with a rate: longest time between two readings that is bridged; unset: the input's `gap_most`."""
    back_s: Seconds = Field(default=10.0, ge=0)
    """Windows with a rate: a reading that is older than the one before it, by no more than this, is late and is
    dropped; by more, the sensor's clock was set back, and windows begin anew."""
    limit_bytes: int = Field(default=1_000_000, ge=1)
    """Largest payload that is read; a larger one is a dead letter."""

    @model_validator(mode="after")
    def _agrees(self) -> Sensor:
        for name in sorted(self.model_fields_set & _FOR_FORMATS.keys()):
            if self.format not in _FOR_FORMATS[name]:
                raise ValueError(f"{name} is for format {' or '.join(_FOR_FORMATS[name])}, not for {self.format}")
        if any(not path or "" in path.split(".") for path in [*self.paths, self.source_id_path, self.time_path or "t"]):
            raise ValueError("a path is empty, or has an empty step")
        if not self.paths:
            raise ValueError("values_path names nothing")
        if "time_unit" in self.model_fields_set and not self.has_time:
            raise ValueError("time_unit without time_path or time_column: which time?")
        special = [column for column in (self.source_id_column, self.time_column) if column is not None]
        if min(self.columns, default=0) < 0:
            raise ValueError("columns are counted from 0")
        if len({*self.columns, *special}) < len(self.columns) + len(special):
            raise ValueError("the same column is named twice")
        if self.format == "avro" and self.schema_file is None:
            raise ValueError("format avro needs a schema_file")
        if self.channels is not None and self.columns and self.channels != len(self.columns):
            raise ValueError(f"{self.channels} channels where columns are {len(self.columns)}")
        return self

    @property
    def paths(self) -> list[str]:
        """The paths to the values."""
        return [self.values_path] if isinstance(self.values_path, str) else self.values_path

    @property
    def has_time(self) -> bool:
        """Whether readings bring their time; else that of their arrival counts."""
        return self.time_path is not None or self.time_column is not None

    @property
    def width(self) -> int | None:
        """Numbers in a reading, where the settings say it."""
        if self.channels is not None:
            return self.channels
        if self.columns:
            return len(self.columns)
        return None if isinstance(self.values_path, str) else len(self.values_path)


class Input(BaseModel):
    """From readings to the input of a model. Rows are readings or, with `rate_hz`, points of a grid in time."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    sensors: list[Name] = []
    """Sensors whose values stand side by side in a row, in this order; empty: all, in the order of their names."""
    tensors: dict[str, list[Name]] = {}
    """In place of `sensors`, for a model of several inputs: the sensors of each, by the input's name."""
    window: int = Field(default=1, ge=1)
    """Rows that make one input."""
    hop: int = Field(default=0, ge=0)
    """Rows between the beginnings of two windows; 0: as many as a window has."""
    window_s: Seconds | None = Field(default=None, gt=0)
    """In place of `window`: its length in time."""
    hop_s: Seconds | None = Field(default=None, gt=0)
    """In place of `hop`: time between the beginnings of two windows."""
    rate_hz: float | None = Field(default=None, gt=0, le=1e6)
    """Rows a second, a grid in time that readings are brought to; unset: each reading is a row, as it comes."""
    resample: Literal["linear", "hold"] = "linear"
    """What a point of the grid gets: linear interpolation between two readings, or the last reading's value."""
    missing: Literal["refuse", "drop", "hold", "interpolate"] = "refuse"
    """What is done about a value that is null, NaN or an empty field. `refuse`: the reading is a dead letter. `drop`:
    windows that it is in are dropped. `hold`: the channel's last value stands in. `interpolate`: a line between the
    channel's values before and after."""
    gap_most: int = Field(default=5, ge=1)
    """Longest gap that is filled, in rows; a window with a longer one is dropped and counted."""
    wait_s: Seconds = Field(default=5.0, ge=0)
    """Several sensors: how far one may be ahead of another before a window no longer waits for the other."""

    @model_validator(mode="after")
    def _agrees(self) -> Input:
        given = self.model_fields_set
        for name in _FOR_RATE:
            if name in given and self.rate_hz is None:
                raise ValueError(f"{name} needs rate_hz")
        for rows, seconds in (("window", "window_s"), ("hop", "hop_s")):
            if {rows, seconds} <= given:
                raise ValueError(f"{rows} and {seconds}: use one of them")
        for name, length in (("window_s", self.window_s), ("hop_s", self.hop_s)):
            if length is not None and self.rate_hz is not None:
                rows_long = length * self.rate_hz
                if round(rows_long) < 1 or abs(rows_long - round(rows_long)) > 1e-6 * rows_long:
                    raise ValueError(f"{name} {length:g} at {self.rate_hz:g} Hz is {rows_long:g} rows, no whole number")
        if self.sensors and self.tensors:
            raise ValueError("sensors and tensors: use one of them")
        if any(not names for names in self.tensors.values()):
            raise ValueError("tensors: one has no sensor")
        named = [*self.sensors, *(name for names in self.tensors.values() for name in names)]
        if len(set(named)) < len(named):
            raise ValueError("a sensor is named twice")
        return self

    @property
    def rows(self) -> int:
        """Rows of a window."""
        return self.window if self.window_s is None or self.rate_hz is None else round(self.window_s * self.rate_hz)

    @property
    def step(self) -> int:
        """Rows between the beginnings of two windows."""
        if self.hop_s is not None and self.rate_hz is not None:
            return round(self.hop_s * self.rate_hz)
        return self.hop or self.rows

    def order(self, sensors: Mapping[str, Sensor]) -> list[str]:
        """Names of the sensors that it takes, in the order of the columns."""
        return [name for names in self.tensors.values() for name in names] or self.sensors or sorted(sensors)

    def gap_of(self, sensor: Sensor) -> float:
        """Longest time between two readings of `sensor` that is bridged, s; for inputs with a rate."""
        assert self.rate_hz is not None
        return sensor.gap_s if sensor.gap_s is not None else self.gap_most / self.rate_hz


def overlap(one: str, other: str) -> bool:
    """Whether there is a topic that both MQTT filters match; a topic is a filter, too."""
    for a, b in zip_longest(one.split("/"), other.split("/")):
        if "#" in (a, b):
            return True
        if a is None or b is None or (a != b and "+" not in (a, b)):
            return False
    return True


def check_sensing(
    sensors: Mapping[str, Sensor], topics: Mapping[str, str], inputs: Mapping[str, Input], answers: str
) -> None:
    """Raise `ValueError` in one line where settings contradict one another.

    `topics` are the sensors' filters by name, `inputs` what feeds models by where it stands in the settings, `answers`
    the topic that the agent itself publishes on the sensor broker.
    """
    for name, topic in topics.items():
        levels = topic.split("/")
        if any(("#" in level or "+" in level) and len(level) > 1 for level in levels) or "#" in levels[:-1]:
            raise ValueError(f"topic {topic!r} of sensor {name!r} is no MQTT topic filter")
        if overlap(topic, answers):
            raise ValueError(f"topic {topic!r} of sensor {name!r} takes in the agent's own answers ({answers})")
    for (one, its), (other, others) in combinations(topics.items(), 2):
        if overlap(its, others):
            raise ValueError(f"sensors {one!r} and {other!r}: a message could belong to both ({its}, {others})")
    for where, feed in inputs.items():
        _check_input(where, feed, sensors)


def _check_input(where: str, feed: Input, sensors: Mapping[str, Sensor]) -> None:
    order = feed.order(sensors)
    for name in order:
        if name not in sensors:
            raise ValueError(f"{where}: no sensor is called {name!r}; there are {', '.join(sorted(sensors))}")
    if feed.rate_hz is None:
        if len(order) > 1:
            raise ValueError(f"{where}: sensors {', '.join(order)} can stand in one window only with rate_hz")
        return
    for name in order:
        if len(order) > 1 and sensors[name].width is None:
            raise ValueError(f"{where}: sensor {name!r} stands beside others and needs channels, its numbers a reading")
        windows = feed.gap_of(sensors[name]) * feed.rate_hz / feed.step
        if windows > WINDOWS_MOST:
            raise ValueError(
                f"{where}: the longest gap of sensor {name!r} would be filled with {windows:.0f} windows at once, "
                f"over {WINDOWS_MOST}; shorten it, or widen the hop"
            )
    with_time = [name for name in order if sensors[name].has_time]
    if with_time and len(with_time) < len(order):
        others = ", ".join(name for name in order if name not in with_time)
        raise ValueError(
            f"{where}: {', '.join(with_time)} bring their time, {others} do not: they have no common clock"
        )
