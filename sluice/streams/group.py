"""Reading a live stream in a consumer group: several readers share it, each goes on where the group stopped.

What was read counts as used only when the caller says so: `commit` moves the group's offsets, so a reader that dies
between reading and using leaves its records to the next one. A record is used at least once; who commits together with
what it made of a batch (a checkpoint, a row) can make that exactly once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Self

import numpy as np

from sluice.doors.kafka import KafkaCluster, KafkaReader, Record, TopicPartition
from sluice.streams.bad import BadRecords
from sluice.streams.formats import decode
from sluice.streams.reader import BATCH, Batch
from sluice.streams.samples import BadRecord, parse_config
from sluice.wire.errors import PermanentError, TemporaryError

USE_S = 300.0
"""A batch that is used for longer costs its reader the membership."""
POLL_S = 0.2
FILL_S = 0.05
"""How long a batch waits for more records after its first."""


class Group:
    """A member of consumer group `group` on `topics`, whose records are of `format` with the announcement's `config`.

    Iterating gives batches of at most `batch` records until nothing has come for `timeout_s` seconds (None: for ever)
    since it has joined the group, and Kafka is there.
    A group that was never here begins with the oldest record, or with the next one if not `from_beginning`.

    With `begin` the caller keeps for himself how far he is: reading begins there whatever the group says, also where a
    topic partition was taken away and came back, batches tell where each sample stood, and what retention took is
    counted in `lost`. `classes` as in `sluice.streams.formats.decode`.
    """

    def __init__(
        self,
        cluster: KafkaCluster,
        topics: Sequence[str],
        format: str,
        config: dict[str, object],
        group: str,
        *,
        timeout_s: float | None = None,
        batch: int = BATCH,
        from_beginning: bool = True,
        bad: BadRecords | None = None,
        begin: Mapping[TopicPartition, int] | None = None,
        classes: int | None = None,
    ) -> None:
        self._format, self._config, self._classes = format, parse_config(config), classes
        self._timeout_s, self._batch, self._bad = timeout_s, batch, bad
        self._from_beginning = from_beginning
        self._next: dict[TopicPartition, int] = {}
        """Of each topic partition that is ours, the offset after what was given out or committed last."""
        self._own: dict[TopicPartition, int] | None = None if begin is None else dict(begin)
        """Where the caller is."""
        self._joined = False
        self._quiet_s = 0.0
        """How long was read in vain since the last record."""
        self._at_end: dict[TopicPartition, int] = {}
        """Of each topic partition, the offset at which nothing more was there when it was last reached."""
        self.lost = 0
        self._turn, self._inside = threading.Lock(), threading.Lock()
        self._reader = KafkaReader(
            "group",
            cluster,
            group,
            from_beginning=from_beginning,
            on_assigned=self._assigned,
            on_lost=self._lost,
            on_end=self._at_end.__setitem__,
            on_overtaken=None if begin is None else self._overtaken,
            silent_s=USE_S,
        )
        self._reader.subscribe(topics)
        self.stopping = False
        """Set it to let the iteration end with the batch at hand."""

    def __iter__(self) -> Iterator[Batch]:
        """Batches as they come. Raises as `take`."""
        while not (self.stopping or self.over):
            batch = self.take()
            if batch is not None:
                yield batch

    def take(self) -> Batch | None:
        """The next batch, if there is one within `POLL_S`.

        Raises as `sluice.streams.formats.decode`, but for records that `bad` bears.
        """
        begun = time.monotonic()
        with self._alone():
            records = self._reader.read(self._batch, POLL_S, FILL_S)
        if records or not self._joined:
            self._quiet_s = 0.0
        else:
            self._quiet_s += time.monotonic() - begun
        return self._batch_of(records) if records else None

    @property
    def over(self) -> bool:
        """Whether nothing came for the whole timeout, and Kafka says that nothing is there. `PermanentError`: a topic
        is not there any more."""
        if self._timeout_s is None or self._quiet_s <= self._timeout_s:
            return False
        if self._all_read():
            return True
        self._quiet_s = 0.0
        return False

    def _all_read(self) -> bool:
        """Whether everything that Kafka has of what is ours was read; False also if it does not say."""
        try:
            ends = {place: self._reader.watermarks(place)[1] for place in self._reader.assignment()}
            return all(self._at_end.get(place, 0) >= end for place, end in ends.items())
        except TemporaryError:
            return False
        except PermanentError as error:  # librdkafka says so too of topics that it has forgotten while Kafka was away
            try:
                there = self._reader.topic_names()
            except TemporaryError:
                return False
            if gone := set(self._reader.topics) - there:
                raise PermanentError(f"Kafka has no topic {min(gone)} any more") from error
            return False

    def nothing(self) -> Batch:
        """A batch of no records, that says where the caller is in all topic partitions that are his."""
        empty = self._batch_of([])
        return replace(empty, ends={} if self._own is None else dict(self._own))

    def _batch_of(self, records: Sequence[Record]) -> Batch:
        ends = _ends(records)
        self._next.update(ends)
        if self._own is None:
            x, y = decode(self._format, records, self._config, self._bad, self._classes)
            return Batch(x, y, ends)
        self._own.update(ends)
        out: set[tuple[str, int, int]] = set()

        def leave_out(error: BadRecord) -> None:
            if self._bad is None:
                raise error
            self._bad(error)
            out.add((error.record.topic, error.record.partition, error.record.offset))

        x, y = decode(self._format, records, self._config, leave_out, self._classes)
        left = [one for one in records if (one.topic, one.partition, one.offset) not in out] if out else records
        number = {place: i for i, place in enumerate(ends)}
        places = np.array([number[one.topic, one.partition] for one in left], np.int64)
        return Batch(x, y, ends, places, np.array([one.offset for one in left], np.int64))

    def commit(self, batch: Batch) -> bool:
        """The batch was used: nobody of the group reads it again. False: it is someone else's by now, and read again.

        Raises `TemporaryError` when Kafka cannot say; then it may be called again.
        """
        return self.commit_ends(batch.ends)

    def commit_ends(self, ends: Mapping[TopicPartition, int]) -> bool:
        """The same of all batches up to these ends."""
        with self._alone():
            return self._reader.commit(ends)

    def lag(self, timeout_s: float = 5.0) -> dict[TopicPartition, int]:
        """How many offsets there are behind what was given out last, of each topic partition that is ours.

        May be called from another thread than the one that takes batches.
        """
        with self._alone():
            ends = {place: self._reader.watermarks(place, timeout_s) for place in self._reader.assignment()}
        return {place: high - max(low, self._next.get(place, low)) for place, (low, high) in ends.items()}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One thread at a time, in the order in which they come: Kafka's client lets one in as well, but whichever asks
        just then, and a thread that reads without a pause never leaves it to another one."""
        with self._turn:
            self._inside.acquire()
        try:
            yield
        finally:
            self._inside.release()

    def close(self) -> None:
        """Leave the group."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _assigned(self, places: list[TopicPartition]) -> Mapping[TopicPartition, int] | None:
        """Where the group stands in what is ours now is told by Kafka, for `lag`; or by the caller, for reading too."""
        self._joined = True
        try:
            self._next.update(self._reader.committed(places))
        except TemporaryError:
            pass  # reading goes on all the same; the lag is right with the first record
        if self._own is None:
            return None
        for place in places:
            if place not in self._own:
                self._own |= self._found(place)
        begin = {place: self._own[place] for place in places if place in self._own}
        self._next.update(begin)
        return begin

    def _found(self, place: TopicPartition) -> dict[TopicPartition, int]:
        """Where a topic partition begins of which the caller said nothing; nothing if Kafka cannot say."""
        if place in self._next:
            return {place: self._next[place]}
        try:
            return {place: self._reader.watermarks(place)[0 if self._from_beginning else 1]}
        except TemporaryError:
            return {}

    def _overtaken(self, _place: TopicPartition, count: int) -> None:
        self.lost += count

    def _lost(self, places: list[TopicPartition]) -> None:
        self._joined = False
        for place in places:
            self._next.pop(place, None)
            self._at_end.pop(place, None)


def _ends(records: Sequence[Record]) -> dict[TopicPartition, int]:
    return {(record.topic, record.partition): record.offset + 1 for record in records}
