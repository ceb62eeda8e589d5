"""Format `csv`: a record's value is one row of text; the label is a column, or the record's key.

Rows of numbers are read by NumPy, all of a batch at once. Where a column holds texts or a row is not as it should be,
Python's own reader takes the batch row by row, and finds out which row it is.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from sluice.streams.samples import (
    NONE,
    Array,
    Encoded,
    Feature,
    Labels,
    StreamConfig,
    bad,
    category_numbers,
    check_sizes,
    in_wire_dtype,
    label_of,
    label_of_key,
    labels_of_keys,
    number_of,
    values_of,
)

CELL_BYTES = 100
"""Bytes that one cell may take on the average."""


def decode(records: Sequence[Encoded], config: StreamConfig) -> tuple[Array, Labels]:
    """As `sluice.streams.formats.decode`, in the dtype of the wire."""
    columns, features = _columns(config), _features(config)
    at = [columns.index(feature.name) for feature in features]
    label_at = columns.index(config.y) if config.y in columns else None
    values = values_of(records)
    check_sizes(records, values, len(columns) * CELL_BYTES + 1000)
    cells = _numbers(values, len(columns), config)
    if cells is not None and not any(feature.categories for feature in features):
        x = cells[:, at]
        y = _labels(records, None if label_at is None else cells[:, label_at], config)
    else:
        x, y = _one_by_one(records, len(columns), features, at, label_at, config)
    return in_wire_dtype(records, x, config).reshape(len(records), *config.shape), y


def encode(sample: Array, label: int | None, config: StreamConfig) -> tuple[bytes | None, bytes]:
    """(key, value) of one sample (*shape) and its label; a label goes where the columns have a place for it."""
    features = _features(config)
    values = {
        feature.name: feature.categories[int(value)] if feature.categories else str(value)
        for feature, value in zip(features, sample.reshape(-1).tolist(), strict=True)
    }
    key = None
    if label is not None and config.y in _columns(config):
        values[config.y] = config.labels[label] if config.labels else str(label)
    elif label is not None:
        key = str(label).encode()
    out = io.StringIO()
    csv.writer(out, delimiter=config.delimiter, lineterminator="").writerow(
        values.get(column, "") for column in _columns(config)
    )
    return key, out.getvalue().encode()


def own(dtype: np.dtype[Any], labelled: bool, features: Sequence[Feature]) -> dict[str, object]:
    """What is announced for this format alone: the label is the key, and no column."""
    del dtype, labelled, features
    return {"y": ""}


def _features(config: StreamConfig) -> tuple[Feature, ...]:
    if config.features:
        return config.features
    return tuple(Feature(name=column) for column in _columns(config) if column != config.y)


def _columns(config: StreamConfig) -> tuple[str, ...]:
    if config.columns:
        return config.columns
    return tuple(feature.name for feature in config.features) or tuple(f"x{i}" for i in range(config.size))


def _numbers(values: Sequence[bytes], columns: int, config: StreamConfig) -> Array | None:
    """All cells (n, columns) float64, if every one is a number and every row has all of them."""
    try:
        rows = b"\n".join(values).decode("ascii").split("\n")
        if len(rows) != len(values):  # some have line ends of their own
            rows = [value.decode("ascii") for value in values]
        if not any(map(str.strip, rows)):
            return None  # NumPy would warn of it
        cells = np.loadtxt(rows, np.float64, delimiter=config.delimiter, comments=None, quotechar='"', ndmin=2)
    except (UnicodeDecodeError, ValueError):
        return None
    return cells if cells.shape == (len(values), columns) else None


def _labels(records: Sequence[Encoded], column: Array | None, config: StreamConfig) -> Labels:
    if column is None:
        return labels_of_keys(records, config)
    whole = (column == np.trunc(column)) & (column >= 0) & (column < 2**31)
    if not whole.all():
        worst = int(np.argmin(whole))
        raise bad(records[worst], f"has label {column[worst]:g}, which is no class")
    return column.astype(np.int64)


def _one_by_one(
    records: Sequence[Encoded],
    columns: int,
    features: Sequence[Feature],
    at: Sequence[int],
    label_at: int | None,
    config: StreamConfig,
) -> tuple[Array, Labels]:
    known = category_numbers(features)
    x = np.empty((len(records), len(features)))
    y = np.full(len(records), NONE, np.int64)
    for i, record in enumerate(records):
        row = _row(record, columns, config)
        for j, feature in enumerate(features):
            x[i, j] = number_of(record, row[at[j]], feature, known[j])
        y[i] = label_of_key(record, config) if label_at is None else label_of(record, row[label_at], config)
    return x, y


def _row(record: Encoded, columns: int, config: StreamConfig) -> list[str]:
    try:
        rows = list(csv.reader([record.value.decode()], delimiter=config.delimiter, skipinitialspace=True, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise bad(record, f"is no row of text: {error}") from error
    if len(rows) != 1 or len(rows[0]) != columns:
        raise bad(record, f"has {len(rows[0]) if rows else 0} columns, not {columns}")
    return [cell.strip() for cell in rows[0]]
