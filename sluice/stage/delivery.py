"""What becomes of outcomes: written to Kafka, and the offsets of what they were made of moved after them.

`AtLeastOnce` writes batch after batch without waiting, and commits the offsets of a batch when Kafka has confirmed all
that came of it and of those before. `ExactlyOnce` (`exactly_once.py`) makes outcomes and offsets one transaction. Both
turn what Kafka refuses for good into dead letters. A worker calls `settle` before each batch and `take` with each.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sluice.doors.kafka import KafkaReader, KafkaWriter, Record, TopicPartition, dead_letter_headers
from sluice.stage.audit import made_here
from sluice.stage.settings import StageSettings
from sluice.wire import messages, metrics, names
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.messages import Outcome, Prediction
from sluice.wire.names import Tier

log = logging.getLogger(__name__)

CUT_BYTES = 1000
"""What is kept of a dead letter that is too large to be kept whole."""
BATCHES_MOST = 16
"""Batches whose outcomes Kafka has not confirmed."""
BUSY_WAIT_S = 0.002
"""How long a worker waits for records while Kafka owes confirmations."""
LAST_S = 2.0
"""How long the last outcomes are waited for."""

Offsets = dict[TopicPartition, int]
Rewound = Callable[[Iterable[TopicPartition]], None]
"""Told which topic partitions are read again from an earlier offset on."""


@dataclass(slots=True)
class Batch:
    """The next offsets after a batch, and how many of its records are not confirmed; one more while it is written."""

    offsets: Offsets
    left: int = 1


class Delivery:
    """What both have in common: how outcomes and dead letters are written."""

    def __init__(self, tier: Tier, writer: KafkaWriter) -> None:
        self.tier = tier
        self.writer = writer
        self.failure: Exception | None = None
        """Why a record was lost for good, which is not to happen."""

    def _write_all(
        self, batch: Batch, outcomes: Sequence[tuple[Record, Outcome]], dead: Iterable[tuple[Record, str]]
    ) -> None:
        answered = 0
        for record, outcome in outcomes:
            known = isinstance(outcome, Prediction)
            self._write(batch, record, outcome)
            answered += known
        if outcomes:
            metrics.STAGE_OUTCOMES.labels(self.tier, "prediction").inc(answered)
            metrics.STAGE_OUTCOMES.labels(self.tier, "offload").inc(len(outcomes) - answered)
        for record, reason in dead:
            metrics.STAGE_DEAD.labels(self.tier).inc()
            self._dead_letter(batch, record, reason)
        batch.left -= 1

    def _write(self, batch: Batch, record: Record, outcome: Outcome) -> None:
        known = isinstance(outcome, Prediction)
        topic = names.PREDICTIONS if known else names.offload_topic(outcome.tier, outcome.model)

        def delivered(error: Exception | None) -> None:
            batch.left -= 1
            if isinstance(error, PermanentError) and made_here(outcome):
                self._audit_refused(record, str(error))
            elif isinstance(error, PermanentError):
                self._refused(batch, record, str(error))
            elif error is not None:
                self._failed(error)

        batch.left += 1
        self._put(topic, messages.encode(outcome), key=outcome.device_id, on_delivery=delivered)

    def _dead_letter(self, batch: Batch, record: Record, reason: str, *, cut: bool = False) -> None:
        """Write it whole or, `cut`, its beginning, where Kafka takes it no larger than it was."""
        value = record.value[:CUT_BYTES] if cut else record.value
        if cut:
            reason = f"{reason} (too large to keep whole: {len(record.value)} bytes)"

        def delivered(error: Exception | None) -> None:
            batch.left -= 1
            if isinstance(error, PermanentError):
                if cut or len(record.value) <= CUT_BYTES:
                    self.failure = error
                else:
                    self._letter_refused(batch, record, reason)
            elif error is not None:
                self._failed(error)

        log.error("dead letter: %s", reason, extra={"topic": record.topic, "offset": record.offset})
        headers = dead_letter_headers(reason, f"stage-{self.tier}", record.topic, record.partition, record.offset)
        batch.left += 1
        self._put(names.DEAD_LETTER, value, key=record.key, headers=headers, on_delivery=delivered)

    def _put(self, topic: str, value: bytes, **options: Any) -> None:
        while True:
            try:
                self.writer.write(topic, value, **options)
            except TemporaryError:
                self.writer.poll(0.1)
            else:
                return

    def _refused(self, batch: Batch, record: Record, reason: str) -> None:
        """Kafka will never take what came of `record`."""
        metrics.STAGE_DEAD.labels(self.tier).inc()
        self._dead_letter(batch, record, reason)

    def _audit_refused(self, record: Record, reason: str) -> None:
        """Kafka will never take an audit; its sample is answered all the same."""
        log.warning("no audit: %s", reason, extra={"topic": record.topic, "offset": record.offset})

    def _letter_refused(self, batch: Batch, record: Record, reason: str) -> None:
        """Kafka will never take the whole of a dead letter."""
        self._dead_letter(batch, record, reason, cut=True)

    def _check(self) -> None:
        """Raise `RuntimeError` if something was lost, so that a new process does everything again."""
        if self.failure is not None:
            raise RuntimeError(f"Kafka lost a record for good: {self.failure}")

    def _failed(self, error: Exception) -> None:
        self.failure = error


class AtLeastOnce(Delivery):
    """Offsets move after outcomes; see the module."""

    def __init__(self, settings: StageSettings, reader: KafkaReader, rewound: Rewound) -> None:
        del rewound  # it never reads again
        super().__init__(settings.tier, KafkaWriter(f"stage-{settings.tier}", settings.kafka, linger_ms=0))
        self.reader = reader
        self.interval_s = settings.commit_interval_s
        self._batches: deque[Batch] = deque()
        self._done: Offsets = {}
        """Confirmed, not committed yet."""
        self._next_commit = 0.0

    @property
    def patience_s(self) -> float | None:
        """Longest wait for the next records; None: any."""
        return BUSY_WAIT_S if self._batches else self.interval_s if self._done else None

    def take(
        self, outcomes: Sequence[tuple[Record, Outcome]], dead: Iterable[tuple[Record, str]], offsets: Offsets
    ) -> None:
        """Write what came of a batch; `offsets` move when all of it is confirmed."""
        batch = Batch(offsets)
        self._batches.append(batch)
        self._write_all(batch, outcomes, dead)

    def settle(self, stop: threading.Event, *, idle: bool) -> None:
        """Commit what is confirmed, if it is time to; wait while too much is not. `TemporaryError`: call it again."""
        del idle
        self._confirm()
        while len(self._batches) >= BATCHES_MOST and not stop.is_set():
            self.writer.poll(0.05)
            self._confirm()
        if self._done and time.monotonic() >= self._next_commit:
            self._commit()

    def lost(self, places: list[TopicPartition]) -> None:
        """Topic partitions are taken away: commit what is done on them, forget them."""
        self.writer.flush(LAST_S)
        self._confirm()
        done = {place: self._done.pop(place) for place in places if place in self._done}
        for batch in self._batches:
            for place in places:
                batch.offsets.pop(place, None)
        try:
            self.reader.commit(done)
        except TemporaryError as error:
            log.warning("what was done last will be done again: %s", error)

    def stop(self) -> None:
        """Wait a little for the last outcomes, and commit."""
        self.writer.flush(LAST_S)
        self._confirm()
        self._commit()

    def _confirm(self) -> None:
        self.writer.poll()
        self._check()
        while self._batches and not self._batches[0].left:
            self._done.update(self._batches.popleft().offsets)

    def _commit(self) -> None:
        self.reader.commit(self._done)
        self._done.clear()
        self._next_commit = time.monotonic() + self.interval_s
