"""Reading a live stream in a consumer group: several readers share it, each goes on where the group stopped.

What was read counts as used only when the caller says so: `commit` moves the group's offsets, so a reader that dies
between reading and using leaves its records to the next one. A record is used at least once; who commits together with
what it made of a batch (a checkpoint, a row) can make that exactly once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from sluice.doors.kafka import KafkaCluster, KafkaReader, Record, TopicPartition
from sluice.streams.bad import BadRecords
from sluice.streams.formats import decode
from sluice.streams.reader import BATCH, Batch
from sluice.streams.samples import parse_config
from sluice.wire.errors import TemporaryError

POLL_S = 0.2
FILL_S = 0.05
"""How long a batch waits for more records after its first."""


class Group:
    """A member of consumer group `group` on `topics`, whose records are of `format` with the announcement's `config`.

    Iterating gives batches of at most `batch` records until nothing has come for `timeout_s` seconds (None: for ever)
    since it has joined the group.
    A group that was never here begins with the oldest record, or with the next one if not `from_beginning`.
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
    ) -> None:
        self._format, self._config = format, parse_config(config)
        self._timeout_s, self._batch, self._bad = timeout_s, batch, bad
        self._reader = KafkaReader(
            "group", cluster, group, from_beginning=from_beginning, on_assigned=self._assigned, on_lost=self._lost
        )
        self._reader.subscribe(topics)
        self._next: dict[TopicPartition, int] = {}
        """Of each topic partition that is ours, the offset after what was given out or committed last."""
        self._joined = False
        self.stopping = False
        """Set it to let the iteration end with the batch at hand."""

    def __iter__(self) -> Iterator[Batch]:
        """Batches as they come. Raises as `sluice.streams.formats.decode`, but for records that `bad` bears."""
        last = time.monotonic()
        while not self.stopping:
            records = self._reader.read(self._batch, POLL_S, FILL_S)
            if records:
                ends = _ends(records)
                self._next.update(ends)
                x, y = decode(self._format, records, self._config, self._bad)
                yield Batch(x, y, ends)
                last = time.monotonic()
            elif not self._joined:
                last = time.monotonic()
            elif self._timeout_s is not None and time.monotonic() - last > self._timeout_s:
                return

    def commit(self, batch: Batch) -> bool:
        """The batch was used: nobody of the group reads it again. False: it is someone else's by now, and read again.

        Raises `TemporaryError` when Kafka cannot say; then it may be called again.
        """
        return self._reader.commit(batch.ends)

    def lag(self, timeout_s: float = 5.0) -> dict[TopicPartition, int]:
        """How many offsets there are behind what was given out last, of each topic partition that is ours."""
        ends = {place: self._reader.watermarks(place, timeout_s) for place in self._reader.assignment()}
        return {place: high - max(low, self._next.get(place, low)) for place, (low, high) in ends.items()}

    def close(self) -> None:
        """Leave the group."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _assigned(self, places: list[TopicPartition]) -> None:
        """Where the group stands in what is ours now: told by Kafka, for `lag`."""
        self._joined = True
        try:
            self._next.update(self._reader.committed(places))
        except TemporaryError:
            return  # reading goes on all the same; the lag is right with the first record

    def _lost(self, places: list[TopicPartition]) -> None:
        for place in places:
            self._next.pop(place, None)


def _ends(records: Sequence[Record]) -> dict[TopicPartition, int]:
    return {(record.topic, record.partition): record.offset + 1 for record in records}
