"""Sensor formats: from a payload to numbers. To add a format, write a function and add it to `FORMATS`.

A reading is a flat float64 or integer array and, if the payload has one, the user's own id of it. Windows of readings
are made in `window.py`; the type and shape of the model's input are given to them there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.settings import Sensor
from sluice.wire.errors import PermanentError
from sluice.wire.messages import MAX_ID

Values = NDArray[Any]
Reading = tuple[Values, str | None]
"""(numbers of one reading, source id)"""


def read(payload: bytes, sensor: Sensor) -> Reading:
    """The reading in `payload`; `PermanentError` says what is wrong with it."""
    if len(payload) > sensor.limit_bytes:
        raise PermanentError(f"reading of {len(payload)} bytes is over the limit of {sensor.limit_bytes}")
    values, source_id = FORMATS[sensor.format](payload, sensor)
    if values.size == 0:
        raise PermanentError("reading has no values")
    if not np.isfinite(values).all():
        raise PermanentError("reading has values that are not finite")
    if source_id is not None:
        if len(source_id) > MAX_ID:
            raise PermanentError(f"source id of {len(source_id)} characters is over {MAX_ID}")
        try:
            source_id.encode()
        except UnicodeEncodeError as error:  # JSON may hold half a surrogate pair, which no store and no message takes
            raise PermanentError("source id is not Unicode text") from error
    return values, source_id


def _json(payload: bytes, sensor: Sensor) -> Reading:
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise PermanentError(f"reading is not JSON: {error}") from error
    values = _at(document, sensor.values_path)
    if values is None:
        raise PermanentError(f"reading has nothing at {sensor.values_path!r}")
    source_id = _at(document, sensor.source_id_path)
    return _numbers(values), None if source_id is None else str(source_id) or None


def _at(document: Any, path: str) -> Any:
    for step in path.split("."):
        if not isinstance(document, dict) or step not in document:
            return None
        document = document[step]
    return document


def _csv(payload: bytes, sensor: Sensor) -> Reading:
    del sensor
    try:
        fields = payload.decode("ascii").strip().split(",")
    except UnicodeDecodeError as error:
        raise PermanentError("reading is not CSV: it has bytes that are not ASCII") from error
    return _numbers(fields), None


def _raw(payload: bytes, sensor: Sensor) -> Reading:
    dtype = np.dtype(sensor.dtype).newbyteorder("<")
    if len(payload) % dtype.itemsize:
        raise PermanentError(f"reading of {len(payload)} bytes is no whole number of {sensor.dtype}")
    return np.frombuffer(payload, dtype=dtype), None


def _numbers(values: Any) -> Values:
    try:
        return np.asarray(values, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError) as error:
        raise PermanentError(f"reading has values that are no numbers: {error}") from error


FORMATS: dict[str, Callable[[bytes, Sensor], Reading]] = {"json": _json, "csv": _csv, "raw": _raw}
