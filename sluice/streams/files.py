"""Samples from a file: arrays (`.npz`), rows (`.csv`), objects (`.jsonl`), records (`.avro`).

The last three are tables: each column is a feature, one of them may be the label. A column that holds anything but
numbers has categories, which become numbers in the order of their texts.
"""

from __future__ import annotations

import csv
import io
import json
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastavro
import numpy as np

from sluice.streams.samples import DTYPES, NONE, Array, Feature, Labels
from sluice.wire.errors import PermanentError, in_short

KINDS = ("npz", "csv", "jsonl", "avro")
CATEGORIES_MOST = 1000
"""Different texts in a column; more are no categories but names or words."""

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Samples:
    """x (n, *shape), y (n,) int64 with `NONE` for no label, or None; names of classes; the features of a table."""

    x: Array
    y: Labels | None
    labels: tuple[str, ...] = ()
    features: tuple[Feature, ...] = ()


def read_samples(
    path: Path,
    *,
    kind: str | None = None,
    label: str | None = None,
    leave_out: Sequence[str] = (),
    columns: Sequence[str] = (),
    delimiter: str = ",",
) -> Samples:
    """The samples of a file; `-` is standard input.

    `kind` is one of `KINDS`, by default the file's ending. Of a table `label` is the label's column, `leave_out` are
    columns that are no features, `columns` their names where the file does not tell them.
    Raises `PermanentError` when the file is not what it should be; pickled objects are never loaded.
    """
    kind = kind or path.suffix.removeprefix(".") or "csv"
    if kind not in KINDS:
        raise PermanentError(f"{path}: files of kind {kind[:20]!r} cannot be sent; known: {', '.join(KINDS)}")
    try:
        if kind == "npz":
            return _arrays(path)
        found = {"csv": _csv, "jsonl": _jsonl, "avro": _avro}[kind](_bytes(path), columns, delimiter)
    except OSError as error:
        raise PermanentError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, TypeError, zipfile.BadZipFile, csv.Error, StopIteration) as error:
        what = ".npz file of plain arrays" if kind == "npz" else kind
        raise PermanentError(f"{path} is no {what}: {in_short(error)}") from error
    return table(found, label=label, leave_out=leave_out)


def table(columns: Columns, *, label: str | None = None, leave_out: Sequence[str] = ()) -> Samples:
    """Samples of the columns of a table, all of one length: one float32 a feature, a label's number for its text.

    `columns` is also a DataFrame's `{name: frame[name].to_numpy() for name in frame}`. Raises `PermanentError`.
    """
    missing = next((name for name in (label, *leave_out) if name is not None and name not in columns), None)
    if missing is not None:
        raise PermanentError(f"there is no column {missing!r}; there are: {', '.join(columns)}")
    y: Labels | None = None
    labels: tuple[str, ...] = ()
    if label is not None:
        y, labels = _labels(label, columns[label])
    features, xs = [], []
    for name, cells in columns.items():
        if name != label and name not in leave_out:
            feature, numbers = _feature(name, cells)
            features.append(feature)
            xs.append(numbers)
    if not features or not len(xs[0]):
        raise PermanentError("there are no samples: no rows, or no columns but the label's")
    return Samples(np.stack(xs, axis=1).astype(np.float32), y, labels, tuple(features))


def _arrays(path: Path) -> Samples:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in ("x", "y", "labels") if name in arrays.files}
    if "x" not in found or found["x"].ndim < 1:
        raise PermanentError(f"{path} has no array `x` of samples")
    x = found["x"]
    if x.dtype.name not in DTYPES:
        raise PermanentError(f"{path}: x is {x.dtype}, which is not one of {', '.join(DTYPES)}")
    y = found.get("y")
    if y is not None and (y.shape != (len(x),) or y.dtype.kind not in "iu"):
        raise PermanentError(f"{path}: y is {y.dtype}{list(y.shape)}, not {len(x)} whole numbers")
    labels = tuple(str(label) for label in found["labels"].ravel()) if "labels" in found else ()
    return Samples(x, None if y is None else y.astype(np.int64), labels)


def _bytes(path: Path) -> bytes:
    return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()


def _csv(data: bytes, columns: Sequence[str], delimiter: str) -> Columns:
    rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig")), delimiter=delimiter, strict=True))
    rows = [row for row in rows if row]
    if not rows:
        raise PermanentError("there are no samples: the file is empty")
    names = list(columns) or [cell.strip() for cell in rows.pop(0)]
    if len(set(names)) != len(names):
        raise PermanentError(f"the columns {', '.join(names)[:200]} are not all different: name them with --columns")
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise PermanentError(f"row {number} has {len(row)} columns, not {len(names)}")
    return {name: [row[i].strip() for row in rows] for i, name in enumerate(names)}


def _jsonl(data: bytes, columns: Sequence[str], _delimiter: str) -> Columns:
    return _of_objects((json.loads(line) for line in data.splitlines() if line.strip()), columns)


def _avro(data: bytes, columns: Sequence[str], _delimiter: str) -> Columns:
    return _of_objects(fastavro.reader(io.BytesIO(data)), columns)


def _of_objects(objects: Iterable[Any], columns: Sequence[str]) -> Columns:
    """The columns of objects; those of the first are all there are, unless they are named."""
    rows = list(objects)
    if not rows or not isinstance(rows[0], dict):
        raise PermanentError("there are no objects with named values")
    names = list(columns) or list(rows[0])
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or any(name not in row for name in names):
            raise PermanentError(f"object {number} has not all of the columns {', '.join(names)[:200]}")
    return {name: [row[name] for row in rows] for name in names}


def _labels(name: str, cells: Sequence[Any]) -> tuple[Labels, tuple[str, ...]]:
    """(class numbers, names of classes): whole numbers from 0 on are class numbers as they are."""
    texts = ["" if cell is None else str(cell) for cell in cells]
    known = sorted({text for text in texts if text})
    if all(text.isascii() and text.isdigit() and len(text) < 10 for text in known):
        return np.array([int(text) if text else NONE for text in texts], np.int64), ()
    _few(name, known)
    numbers = {text: i for i, text in enumerate(known)} | {"": NONE}
    return np.array([numbers[text] for text in texts], np.int64), tuple(known)


def _feature(name: str, cells: Sequence[Any]) -> tuple[Feature, Array]:
    try:
        return Feature(name=name), np.array(cells, np.float64)
    except (ValueError, TypeError):
        texts = [str(cell) for cell in cells]
    known = sorted(set(texts))
    _few(name, known)
    numbers = {text: i for i, text in enumerate(known)}
    return Feature(name=name, categories=tuple(known)), np.array([numbers[text] for text in texts], np.float64)


def _few(name: str, known: Sequence[str]) -> None:
    if len(known) > CATEGORIES_MOST:
        raise PermanentError(
            f"column {name!r} holds {len(known)} different texts, such as {known[0][:40]!r}: too many to be "
            "categories; leave it out"
        )
