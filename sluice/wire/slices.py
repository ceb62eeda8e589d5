"""Slices of data streams, written `topic:partition:offset:length`."""

from __future__ import annotations

import re
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
