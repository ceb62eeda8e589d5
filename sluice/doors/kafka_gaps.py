"""Gaps in what a reader is given: what retention took before it was read, told apart from what was never there.

Transactions and compaction leave gaps too. Retention it was where Kafka's first record lies behind the one that was
expected; Kafka is asked for it now and then, so a gap may be told a little later. Used by `kafka.py: KafkaReader`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic

LOOK_EVERY_S = 5.0
"""Least time between two questions for the first record of a topic partition."""

TopicPartition = tuple[str, int]


class Gaps:
    """`first` tells the offset of the first record that is there, or None if Kafka cannot say now."""

    def __init__(self, first: Callable[[TopicPartition], int | None]) -> None:
        self._first = first
        self._next: dict[TopicPartition, int] = {}
        self._fresh: set[TopicPartition] = set()
        """Nothing was read of them yet since `begin`."""
        self._open: dict[TopicPartition, list[tuple[int, int]]] = {}
        """(expected, found), until Kafka has been asked."""
        self._look_at: dict[TopicPartition, float] = {}

    def begin(self, place: TopicPartition, offset: int) -> None:
        """`offset` is the next to be read."""
        self._next[place] = offset
        self._fresh.add(place)
        self._look_at.pop(place, None)

    def forget(self, places: Iterable[TopicPartition]) -> None:
        """These topic partitions are someone else's now."""
        for place in places:
            for known in (self._next, self._open, self._look_at):
                known.pop(place, None)
            self._fresh.discard(place)

    def see(self, place: TopicPartition, offset: int) -> None:
        """A record was read."""
        expected = self._next.get(place, offset)
        if offset > expected and (offset > expected + 1 or place in self._fresh):  # a single one is a transaction's end
            self._open.setdefault(place, []).append((expected, offset))
        self._fresh.discard(place)
        self._next[place] = offset + 1

    def lost(self) -> dict[TopicPartition, int]:
        """How many records retention took, of each topic partition where it did; each is told once."""
        found: dict[TopicPartition, int] = {}
        if not self._open:
            return found
        now = monotonic()
        for place, gaps in list(self._open.items()):
            if now < self._look_at.get(place, 0.0):
                continue
            self._look_at[place] = now + LOOK_EVERY_S
            first = self._first(place)
            if first is None:
                continue
            del self._open[place]
            if total := sum(max(0, min(first, offset) - expected) for expected, offset in gaps):
                found[place] = total
        return found
