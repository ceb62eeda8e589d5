"""Sensor formats: from a payload to numbers. To add a format, write a function and add it to `FORMATS`.

A reading is a flat array of numbers, the user's own id of it and its time, if the payload has them. A value that is
not there (null, NaN, an empty field) is NaN; what is done about it is the matter of the input that the sensor feeds
(`window.py`). Avro is decoded in `sensor_avro.py`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_agent.sensing import Sensor
from edge_agent.sensor_avro import decode_reading
from sluice.wire.errors import PermanentError, in_short
from sluice.wire.messages import MAX_ID

Values = NDArray[Any]
NS_OF = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1000, "ns": 1}
MAX_TIME_NS = 2**62
"""Times beyond ± this are refused: with room to spare, what is calculated from them fits 64 bits."""
_NOTHING = object()
"""Stands for what a path leads to where it leads nowhere."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Reading(NamedTuple):
    """What a payload holds: `values` (n,), integer or float64, NaN where one is missing; time in ns, or None."""

    values: Values
    source_id: str | None = None
    at_ns: int | None = None
    missing: bool = False


def read(payload: bytes, sensor: Sensor) -> Reading:
    """The reading in `payload`; `PermanentError` says what is wrong with it."""
    if len(payload) > sensor.limit_bytes:
        raise PermanentError(too_large(len(payload), sensor.limit_bytes))
    values, source_id, time = FORMATS[sensor.format](payload, sensor)
    if values.size == 0:
        raise PermanentError("reading has no values")
    missing = False
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        if np.isinf(values).any():
            raise PermanentError("reading has values that are infinite")
        missing, values = True, np.where(np.isnan(values), values.dtype.type(np.nan), values)  # one NaN, a quiet one
    if source_id is not None:
        if isinstance(source_id, bool) or not isinstance(source_id, str | int | float):
            raise PermanentError("source id is neither text nor number")
        if isinstance(source_id, float) and not isfinite(source_id):  # all NaN would be repeats of one another
            raise PermanentError("source id is no finite number")
        source_id = str(source_id)
        if len(source_id) > MAX_ID:
            raise PermanentError(f"source id of {len(source_id)} characters is over {MAX_ID}")
        try:
            source_id.encode()
        except UnicodeEncodeError as error:  # JSON may hold half a surrogate pair, which no store and no message takes
            raise PermanentError("source id is not Unicode text") from error
    return Reading(values, source_id or None, _time(time, sensor.time_unit) if sensor.has_time else None, missing)


def _fastest() -> Callable[[bytes], Any]:
    try:
        import orjson
    except ImportError:  # a machine that it is not made for
        return json.loads
    loads: Callable[[bytes], Any] = orjson.loads
    return loads


fast_loads = _fastest()


def too_large(nbytes: int, limit: int) -> str:
    """What is wrong with a reading of `nbytes`."""
    return f"reading of {nbytes} bytes is over the limit of {limit}"


Found = tuple[Values, Any, Any]
"""(values, source id or None, time or None), as they stand in the payload."""


def _json(payload: bytes, sensor: Sensor) -> Found:
    """orjson takes an eighth of the time of Python's own `json`, which has the last word: it also reads NaN, and whole
    numbers of any size, of which orjson makes floats (an id must not lose digits)."""
    try:
        found = _fields(fast_loads(payload), sensor)
        if not isinstance(found[1], float):
            return found
    except (ValueError, RecursionError):
        pass
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise PermanentError(f"reading is not JSON: {in_short(error)}") from error
    return _fields(document, sensor)


def _avro(payload: bytes, sensor: Sensor) -> Found:
    assert sensor.schema_file is not None
    return _fields(decode_reading(payload, sensor.schema_file, header=sensor.framing == "single-object"), sensor)


def _fields(document: Any, sensor: Sensor) -> Found:
    """What stands at the paths; with several paths to values, one that leads nowhere is a missing value."""
    if isinstance(sensor.values_path, str):
        values = _at(document, sensor.values_path, _NOTHING)
        if values is _NOTHING:
            raise PermanentError(f"reading has nothing at {sensor.values_path!r}")
        made = _numbers(values)
    else:
        found = [_at(document, path, _NOTHING) for path in sensor.values_path]
        if all(one is _NOTHING for one in found):
            raise PermanentError(f"reading has nothing at {', '.join(sensor.values_path)}")
        found = [None if one is _NOTHING else one for one in found]
        if any(isinstance(one, list) for one in found):
            made = np.concatenate([_numbers(one) for one in found])
        else:
            made = _numbers(found)
    time = None if sensor.time_path is None else _at(document, sensor.time_path)
    return made, _at(document, sensor.source_id_path), time


@lru_cache(maxsize=1024)
def _steps(path: str) -> tuple[tuple[str, int], ...]:
    """The steps of a path, each as a name and as a number in a list (-1: it is none)."""
    return tuple((step, int(step) if step.isascii() and step.isdigit() else -1) for step in path.split("."))


def _at(document: Any, path: str, nothing: Any = None) -> Any:
    for name, number in _steps(path):
        if isinstance(document, dict):
            document = document.get(name, nothing)
        elif isinstance(document, list) and 0 <= number < len(document):
            document = document[number]
        else:
            return nothing
    return document


def _csv(payload: bytes, sensor: Sensor) -> Found:
    try:
        lines = payload.decode().strip("\r\n").splitlines()
        fields = next(csv.reader(lines, delimiter=sensor.separator, strict=True), [])
    except (UnicodeDecodeError, csv.Error) as error:
        raise PermanentError(f"reading is not CSV: {in_short(error)}") from error
    if len(lines) > 1:
        raise PermanentError(f"reading has {len(lines)} lines of CSV; a message holds one")
    special = (sensor.source_id_column, sensor.time_column)
    try:
        wanted = [fields[i] for i in sensor.columns] if sensor.columns else None
        source_id, time = (None if i is None else fields[i].strip() for i in special)
    except IndexError as error:
        raise PermanentError(f"reading has {len(fields)} columns, too few") from error
    if wanted is None:
        wanted = fields if special == (None, None) else [field for i, field in enumerate(fields) if i not in special]
    if any(not field or field.isspace() for field in wanted):
        wanted = [field if field and not field.isspace() else "nan" for field in wanted]
    return _numbers(wanted), source_id, time


def _raw(payload: bytes, sensor: Sensor) -> Found:
    dtype = np.dtype(sensor.dtype).newbyteorder("<")
    if len(payload) % dtype.itemsize:
        raise PermanentError(f"reading of {len(payload)} bytes is no whole number of {sensor.dtype}")
    return np.frombuffer(payload, dtype=dtype), None, None


def _numbers(values: Any) -> Values:
    try:
        return np.asarray(values, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise PermanentError(f"reading has values that are no numbers: {in_short(error)}") from error


def _time(time: Any, unit: str) -> int:
    """`time` in `unit` as ns. Times with a fraction are taken to the microsecond, which is what a float64 holds of
    the seconds since 1970."""
    try:
        if unit == "iso":
            moment = datetime.fromisoformat(time)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            made = (moment - _EPOCH) // timedelta(microseconds=1) * 1000
        elif isinstance(time, bool) or time is None:
            raise ValueError("it is no number")
        else:
            if isinstance(time, str):
                time = int(time) if time.strip().lstrip("+-").isdigit() else float(time)
            made = time * NS_OF[unit] if isinstance(time, int) else round(time * NS_OF[unit] / 1000) * 1000
    except (TypeError, ValueError, OverflowError) as error:
        raise PermanentError(f"reading has no time in {unit}: {str(time)[:40]!r}: {in_short(error)}") from error
    if not -MAX_TIME_NS < made < MAX_TIME_NS:
        raise PermanentError(f"reading has a time beyond all reason: {str(time)[:40]} {unit}")
    return int(made)


FORMATS: dict[str, Callable[[bytes, Sensor], Found]] = {"json": _json, "csv": _csv, "raw": _raw, "avro": _avro}
