"""Format `json`: a record's value is one JSON object; values and label stand at paths in it.

A path is names and numbers with dots between them: `accel.x`, `readings.0.value`. All values may stand at one path, as
an array in the sample's shape, or one by one at the paths of the features.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from sluice.streams.samples import (
    Array,
    Encoded,
    Labels,
    StreamConfig,
    bad,
    category_numbers,
    in_wire_dtype,
    label_of,
    label_of_key,
    number_of,
)
from sluice.wire.errors import in_short

VALUE_BYTES = 40
"""Bytes that one value may take on the average."""
OVERHEAD = 10_000
"""Bytes that a record may take beside its values."""
_NONE = object()


def decode(records: Sequence[Encoded], config: StreamConfig) -> tuple[Array, Labels]:
    """As `sluice.streams.formats.decode`, in the dtype of the wire."""
    limit = config.size * VALUE_BYTES + OVERHEAD
    paths = [_path(feature.name) for feature in config.features]
    known, at_x, at_y = category_numbers(config.features), _path(config.x), _path(config.y)
    xs: list[Any] = []
    ys: list[int] = []
    for record in records:
        found = _parsed(record, limit)
        label = _at(found, at_y) if config.y else _NONE
        ys.append(label_of_key(record, config) if label is _NONE else label_of(record, label, config))
        if config.features:
            values = [_at(found, path) for path in paths]
            missing = next((f.name for f, value in zip(config.features, values, strict=True) if value is _NONE), None)
            if missing is not None:
                raise bad(record, f"has nothing at {missing!r}")
            xs.append([number_of(record, *of) for of in zip(values, config.features, known, strict=True)])
        else:
            xs.append(_array(record, _at(found, at_x), config))
    return in_wire_dtype(records, np.array(xs), config).reshape(len(xs), *config.shape), np.array(ys, np.int64)


def encode(sample: Array, label: int | None, config: StreamConfig) -> tuple[bytes | None, bytes]:
    """(key, value) of one sample (*shape) and its label."""
    made: dict[str, Any] = {}
    if config.features:
        for feature, value in zip(config.features, sample.tolist(), strict=True):
            _put(made, feature.name, feature.categories[int(value)] if feature.categories else value)
    else:
        _put(made, config.x, sample.tolist())
    if label is not None:
        _put(made, config.y, config.labels[label] if config.labels else label)
    return None, json.dumps(made, allow_nan=False, separators=(",", ":")).encode()


def _path(text: str) -> tuple[str, ...]:
    return tuple(text.split("."))


def _at(found: Any, path: Sequence[str]) -> Any:
    """What stands at a path; `_NONE` where that leads nowhere."""
    for part in path:
        if isinstance(found, dict) and part in found:
            found = found[part]
        elif isinstance(found, list) and part.isascii() and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        else:
            return _NONE
    return found


def _put(made: dict[str, Any], path: str, value: object) -> None:
    *parents, last = _path(path)
    for part in parents:
        made = made.setdefault(part, {})
    made[last] = value


def _parsed(record: Encoded, limit: int) -> Any:
    if len(record.value) > limit:
        raise bad(record, f"has {len(record.value)} bytes, {limit} at most are expected")
    try:
        return json.loads(record.value)
    except (ValueError, RecursionError) as error:  # of bytes that are no text as well
        raise bad(record, f"is no JSON: {in_short(error)}") from error


def _array(record: Encoded, values: Any, config: StreamConfig) -> Array:
    if values is _NONE:
        raise bad(record, f"has nothing at {config.x!r}")
    try:
        found = np.array(values)
    except ValueError as error:  # rows of different lengths
        raise bad(record, f"has no array at {config.x!r}") from error
    if found.dtype.kind not in "iuf":
        raise bad(record, f"has other things than numbers at {config.x!r}")
    if found.shape not in (config.shape, (config.size,)):
        raise bad(record, f"has values of shape {list(found.shape)}, not {list(config.shape)}")
    return found.reshape(config.shape)
