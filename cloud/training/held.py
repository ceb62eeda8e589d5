"""What of a live stream is held back: blocks of offsets, by a rule that is the same for every job and every time.

So what certifies can be told as slices, `topic:partition:offset:length`, and read again; and what one online job held
back no other has trained on. Half of the blocks judge (is what was learnt better?), half certify (the partitioner's
promises), so that what chose a model does not certify it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sluice.doors.kafka import TopicPartition
from sluice.streams.samples import Labels
from sluice.wire.slices import Slice, parse_slice

TRAIN, JUDGE, CERTIFY = 0, 1, 2
OF_A_CLASS = 5
"""Certifying records that each class needs."""
RARE = 0.01
"""A class of which there is less than this share may have fewer."""
MOST = 400_000
"""Letters that all slices of a candidate may take."""

Parts = NDArray[np.int8]


class Rule:
    """Which part an offset belongs to: blocks of `block` offsets, of which the share `share` is held back.

    What stands in the slices `trained_on` is known to the model already and never held back.
    """

    def __init__(self, block: int, share: float, trained_on: Sequence[str] = ()) -> None:
        self._block, self._share = block, share
        self._known: dict[TopicPartition, list[Slice]] = {}
        for piece in map(parse_slice, trained_on):
            self._known.setdefault((piece.topic, piece.partition), []).append(piece)

    def part_of(self, place: TopicPartition, block: int) -> int:
        """The part of one block of a topic partition."""
        digest = hashlib.sha256(f"{place[0]}:{place[1]}:{self._block}:{block}".encode()).digest()
        drawn = int.from_bytes(digest[:8], "big") / 2**64
        if drawn >= self._share:
            return TRAIN
        return JUDGE if drawn < self._share / 2 else CERTIFY

    def parts(self, places: Sequence[TopicPartition], where: Labels, offsets: Labels) -> Parts:
        """Of each record (n,): `where` is the number of its topic partition among `places`."""
        found = np.full(len(offsets), TRAIN, np.int8)
        if not self._share:
            return found
        blocks = offsets // self._block
        for number, place in enumerate(places):
            here = where == number
            for block in np.unique(blocks[here]).tolist():
                found[here & (blocks == block)] = self.part_of(place, block)
            for piece in self._known.get(place, ()):
                found[here & (offsets >= piece.offset) & (offsets < piece.end)] = TRAIN
        return found


class Certifying:
    """The newest `most` labelled records that certify: where they stand, not what they are."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._places: list[TopicPartition] = []
        self._rows = np.empty((0, 4), np.int64)
        """Number of the topic partition, offset, label, number of the record in the stream."""

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self, places: Sequence[TopicPartition], where: Labels, offsets: Labels, labels: Labels, born: Labels
    ) -> None:
        """More of them, (n,) each."""
        if not len(offsets):
            return
        self._places += [place for place in places if place not in self._places]
        number = np.array([self._places.index(place) for place in places], np.int64)
        rows = np.stack([number[where], offsets, labels, born], axis=1)
        self._rows = np.concatenate([self._rows, rows])[-self._most :]

    def forget(self, before: int) -> None:
        """Keep only what came from record number `before` on."""
        self._rows = self._rows[self._rows[:, 3] >= before]

    def lacks(self, least: int, seen: Labels) -> str | None:
        """What is still missing before a partitioner can work with it, in words; None: nothing.

        `seen` (classes,): how many records of each class came of late.
        """
        if len(self) < least:
            return f"{len(self)} of {least} certifying records"
        counts = np.bincount(self._rows[:, 2], minlength=len(seen))
        wanted = seen >= max(1.0, RARE * seen.sum())
        few = np.flatnonzero(wanted & (counts < OF_A_CLASS))
        if len(few):
            return f"{counts[few[0]]} of {OF_A_CLASS} certifying records of class {few[0]}"
        if np.count_nonzero(counts >= OF_A_CLASS) < 2:
            return "certifying records of a second class"
        return None

    def slices(self) -> list[str]:
        """Where they stand: a slice for each run of neighbouring offsets; the longest, where there are very many."""
        found: list[Slice] = []
        for number, (topic, partition) in enumerate(self._places):
            offsets = np.sort(self._rows[self._rows[:, 0] == number, 1])
            for run in np.split(offsets, np.flatnonzero(np.diff(offsets) > 1) + 1):
                if len(run):
                    found.append(Slice(topic, partition, int(run[0]), len(run)))
        found.sort(key=lambda piece: -piece.length)
        texts = [str(piece) for piece in found]
        return [text for text, size in zip(texts, np.cumsum([len(text) for text in texts]), strict=True) if size < MOST]

    def state(self) -> tuple[list[TopicPartition], Any]:
        """All of it, for a checkpoint."""
        return self._places, self._rows

    def restore(self, places: Sequence[Sequence[Any]], rows: Any) -> None:
        """The inverse of `state`."""
        self._places, self._rows = [(topic, partition) for topic, partition in places], rows
