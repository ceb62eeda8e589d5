"""Which offsets of which topic partition are through, and so up to where they may be committed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from sluice.doors.kafka import Record, TopicPartition


class Progress:
    """Records that were begun, in order, and whether they are done."""

    def __init__(self) -> None:
        self._open: dict[TopicPartition, OrderedDict[int, bool]] = {}

    def begin(self, record: Record) -> None:
        """A record is being worked on."""
        offsets = self._open.setdefault((record.topic, record.partition), OrderedDict())
        if offsets and record.offset <= next(reversed(offsets)):
            offsets.clear()  # the topic partition went and came back: from here on everything is read again
        offsets[record.offset] = False

    def done(self, place: TopicPartition, offset: int) -> None:
        """A record is through; one of a topic partition that was taken away is forgotten already."""
        if offset in self._open.get(place, ()):
            self._open[place][offset] = True

    def forget(self, places: Iterable[TopicPartition]) -> None:
        """These topic partitions are someone else's now."""
        for place in places:
            self._open.pop(place, None)

    def pop_offsets(self) -> dict[TopicPartition, int]:
        """The next offset of each topic partition that has moved since the last call."""
        moved = {}
        for place, offsets in self._open.items():
            while offsets and offsets[next(iter(offsets))]:
                moved[place] = offsets.popitem(last=False)[0] + 1
        return moved

    def __len__(self) -> int:
        return sum(len(offsets) for offsets in self._open.values())
