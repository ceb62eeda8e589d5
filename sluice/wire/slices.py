"""Slices of data streams, written `topic:partition:offset:length`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sluice.wire.errors import PermanentError

_SLICE = re.compile(r"([A-Za-z0-9._-]{1,249}):(\d{1,9}):(\d{1,18}):(\d{1,18})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Slice:
    """`length` records of one topic partition from `offset` on."""

    topic: str
    partition: int
    offset: int
    length: int

    @property
    def end(self) -> int:
        """The offset after the last record."""
        return self.offset + self.length

    def __str__(self) -> str:
        return f"{self.topic}:{self.partition}:{self.offset}:{self.length}"


def parse_slice(text: str) -> Slice:
    """The slice that `text` names, with or without brackets; `PermanentError` if it names none."""
    match = _SLICE.fullmatch(text.strip().removeprefix("[").removesuffix("]"))
    if match is None:
        raise PermanentError(f"slice {text[:80]!r} is not topic:partition:offset:length")
    return Slice(match[1], int(match[2]), int(match[3]), int(match[4]))


def merged(slices: Iterable[Slice]) -> list[Slice]:
    """The same records, each once, topic partition by topic partition, offsets rising."""
    found: list[Slice] = []
    for piece in sorted(slices, key=lambda one: (one.topic, one.partition, one.offset)):
        last = found[-1] if found else None
        if last and (last.topic, last.partition) == (piece.topic, piece.partition) and piece.offset <= last.end:
            found[-1] = Slice(last.topic, last.partition, last.offset, max(last.end, piece.end) - last.offset)
        else:
            found.append(piece)
    return found
