"""Avro bodies of one length as columns: a batch is decoded at once where its records are laid out alike.

Where every record of a batch has its fields at the same places (numbers of fixed width, short labels, bytes and arrays
of one size), the batch is a matrix of bytes, and a field is a range of its columns. Whatever is laid out in another way
is left to a reader of single records: `columns` then returns None, and never guesses.

Layout: Apache Avro 1.11 specification, "Binary Encoding".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Column = NDArray[Any]
_FIXED: dict[object, np.dtype[Any]] = {"float": np.dtype("<f4"), "double": np.dtype("<f8")}
MOST_BYTES = 9
"""Of a number of variable length: more would not fit into 63 bits."""


class _OtherLayout(Exception):
    """These records are not laid out alike."""


def columns(kinds: Mapping[str, Any], values: Sequence[bytes]) -> dict[str, Column] | None:
    """Of each field its values: (n,) numbers, (n, size) numbers of an array or bytes. `kinds` are the fields' types in
    order, `values` bodies of equal length. None: they are not laid out alike, or not whole records."""
    matrix = np.frombuffer(b"".join(values), np.uint8).reshape(len(values), -1)
    place = _Place(matrix)
    try:
        found = {name: _field(place, kind) for name, kind in kinds.items()}
    except _OtherLayout:
        return None
    return found if place.at == matrix.shape[1] else None


class _Place:
    """Where in the records reading is."""

    def __init__(self, matrix: Column) -> None:
        self.matrix = matrix
        self.at = 0

    def take(self, size: int) -> Column:
        """The next `size` bytes of each record (n, size)."""
        taken = self.matrix[:, self.at : self.at + size]
        if size < 0 or taken.shape[1] != size:
            raise _OtherLayout
        self.at += size
        return taken

    def number(self) -> Column:
        """The next number of variable length (n,), of as many bytes in each record."""
        found = np.zeros(len(self.matrix), np.uint64)
        for i in range(MOST_BYTES):
            byte = self.take(1)[:, 0]
            found |= (byte & 0x7F).astype(np.uint64) << np.uint64(7 * i)
            more = byte >= 0x80
            if not more.any():
                return (found >> np.uint64(1)).astype(np.int64) ^ -(found & np.uint64(1)).astype(np.int64)
            if not more.all():
                raise _OtherLayout
        raise _OtherLayout

    def same(self) -> int:
        """The next number, which all records have alike."""
        found = self.number()
        if (found != found[0]).any():
            raise _OtherLayout
        return int(found[0])


def _field(place: _Place, kind: Any) -> Column:
    if isinstance(kind, list):  # a union: all have the same branch
        branch = place.same()
        if not 0 <= branch < len(kind):
            raise _OtherLayout
        return _field(place, kind[branch])
    if isinstance(kind, dict) and kind.get("type") == "array":
        return _array(place, kind["items"])
    if isinstance(kind, dict):
        kind = kind.get("type")
    if kind in _FIXED:
        return np.ascontiguousarray(place.take(_FIXED[kind].itemsize)).view(_FIXED[kind])[:, 0]
    if kind in ("int", "long"):
        return place.number()
    if kind == "bytes":
        return place.take(place.same())
    raise _OtherLayout  # null, boolean and text: by the reader of single records


def _array(place: _Place, items: Any) -> Column:
    """One block of items of fixed width, as writers write it."""
    count = place.same()
    if items not in _FIXED or count <= 0:
        raise _OtherLayout
    found = np.ascontiguousarray(place.take(count * _FIXED[items].itemsize)).view(_FIXED[items])
    if place.same() != 0:
        raise _OtherLayout
    return found
