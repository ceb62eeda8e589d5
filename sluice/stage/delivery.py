"""What becomes of outcomes: written to Kafka, and the offsets of what they were made of moved after them.

`AtLeastOnce` writes batch after batch without waiting, and commits the offsets of a batch when Kafka has confirmed all
that came of it and of those before. `ExactlyOnce` makes outcomes and offsets one transaction: what a crash, a fence or
a rebalance cuts off never happened for those who read committed records, and is done again. Kafka ends a transaction by
its age, so after a slow batch none is open while the next ones are worked on. Both turn what Kafka refuses for good
into dead letters. A worker calls `settle` before each batch and `take` with each.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sluice.doors.kafka import KafkaReader, KafkaWriter, Record, TopicPartition, dead_letter_headers
from sluice.doors.kafka_transactions import KafkaTransactions, TransactionFailedError
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
ALONE_S = 600.0
"""How long every batch has a transaction of its own after one was slow."""
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
            topic = names.PREDICTIONS if known else names.offload_topic(outcome.tier, outcome.model)
            self._write(batch, record, topic, messages.encode(outcome), outcome.device_id)
            answered += known
        if outcomes:
            metrics.STAGE_OUTCOMES.labels(self.tier, "prediction").inc(answered)
            metrics.STAGE_OUTCOMES.labels(self.tier, "offload").inc(len(outcomes) - answered)
        for record, reason in dead:
            metrics.STAGE_DEAD.labels(self.tier).inc()
            self._dead_letter(batch, record, reason)
        batch.left -= 1

    def _write(self, batch: Batch, record: Record, topic: str, value: bytes, key: str) -> None:
        def delivered(error: Exception | None) -> None:
            batch.left -= 1
            if isinstance(error, PermanentError):
                self._refused(batch, record, str(error))
            elif error is not None:
                self._failed(error)

        batch.left += 1
        self._put(topic, value, key=key, on_delivery=delivered)

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


class ExactlyOnce(Delivery):
    """Outcomes and offsets in one transaction; see the module."""

    writer: KafkaTransactions

    def __init__(self, settings: StageSettings, reader: KafkaReader, rewound: Rewound) -> None:
        name = f"stage-{settings.tier}"
        own = settings.transactional_id or f"sluice-{name}-{secrets.token_hex(8)}"
        super().__init__(settings.tier, KafkaTransactions(name, settings.kafka, own, settings.transaction_timeout_s))
        self.reader = reader
        self.interval_s = settings.transaction_interval_s
        self.timeout_s = settings.transaction_timeout_s
        self._rewound = rewound
        self._begun = self._open = self._committing = self._spoilt = False
        """Kafka knows this producer; a transaction is open; its end was begun, and only that may be done next; nothing
        of it may count."""
        self._first: Offsets = {}
        """Where the transaction began to read."""
        self._offsets: Offsets = {}
        """Where it ends."""
        self._opened = self._due = self._settled = self._alone_until = 0.0
        """Moments (monotonic seconds): the transaction was opened, is to end; `settle` was through; until when every
        batch has one of its own."""
        self._poison: dict[tuple[TopicPartition, int], str] = {}
        """Records of which came what Kafka refuses: they become dead letters when they come again."""
        self._cut: set[tuple[TopicPartition, int]] = set()
        """Those whose letters are refused whole."""

    @property
    def patience_s(self) -> float | None:
        """Longest wait for the next records; None: any."""
        return 0.0 if self._open else None

    def take(
        self, outcomes: Sequence[tuple[Record, Outcome]], dead: Iterable[tuple[Record, str]], offsets: Offsets
    ) -> None:
        """Write what came of a batch, as part of the transaction; one that took too long for that is done again."""
        now = time.monotonic()
        if now >= self._settled + self.timeout_s / 4:
            self._alone_until = now + ALONE_S
        letters = list(dead)
        for record, _ in (*outcomes, *letters):
            place = record.topic, record.partition
            self._first[place] = min(record.offset, self._first.get(place, record.offset))
        if self._open and now >= self._opened + self.timeout_s * 3 / 4:
            self._outlasted()
            return
        if not self._open:
            self.writer.begin()
            self._open, self._opened = True, now
            self._due = now if now < self._alone_until else now + self.interval_s
        letters += [(record, reason) for record, _ in outcomes if (reason := self._poison.get(_key(record)))]
        good = [(record, outcome) for record, outcome in outcomes if _key(record) not in self._poison]
        self._offsets.update(offsets)
        batch = Batch({})
        try:
            self._write_all(batch, good, [one for one in letters if _key(one[0]) not in self._cut])
            for record, reason in letters:
                if _key(record) in self._cut:
                    self._dead_letter(batch, record, reason, cut=True)
        except TransactionFailedError as error:
            self._spoil(error)

    def settle(self, stop: threading.Event, *, idle: bool) -> None:
        """End the transaction, if nothing more comes or it is time to. `TemporaryError`: call it again."""
        del stop
        if not self._begun:
            self.writer.init()
            self._begun = True
        if not self._committing:
            self.writer.poll()
            self._check()
        self._end(now=idle or time.monotonic() >= self._due)
        self._settled = time.monotonic()

    def lost(self, places: list[TopicPartition]) -> None:
        """Topic partitions are taken away: end the transaction, forget them."""
        if self._committing or (self._open and not self._spoilt):
            try:
                self._commit(rewind=False)
            except TemporaryError as error:
                log.warning("a transaction ends later: %s", error)
        for place in places:
            self._first.pop(place, None)
            self._offsets.pop(place, None)
        self._poison = {key: reason for key, reason in self._poison.items() if key[0] not in places}
        self._cut = {key for key in self._cut if key[0] not in places}

    def stop(self) -> None:
        """End the transaction."""
        self._end(now=True)

    def _end(self, *, now: bool) -> None:
        """What has to be done with the transaction: an end that was begun comes first, whatever else there is."""
        if self._committing:
            self._commit()
        elif self._spoilt:
            self._abort()
        elif self._open and now:
            self._commit()

    def _commit(self, *, rewind: bool = True) -> None:
        self._committing = True
        try:
            self.writer.commit(self._offsets, self.reader)
        except TransactionFailedError as error:
            self._committing = False
            self._spoil(error)
            if rewind:
                self._abort()
            return
        self._committing = False
        over = {key for key in (*self._poison, *self._cut) if key[1] < self._offsets.get(key[0], 0)}
        self._poison = {key: reason for key, reason in self._poison.items() if key not in over}
        self._cut -= over
        self._begin_anew()

    def _abort(self) -> None:
        """Nothing of the transaction counts."""
        if self._open:
            with contextlib.suppress(TransactionFailedError):  # Kafka has ended it by itself
                self.writer.abort()
        self._again()

    def _outlasted(self) -> None:
        """A batch took longer than the transaction that was open when it began: Kafka ends that, or did already."""
        log.warning(
            "a batch took longer than a transaction may (STAGE_TRANSACTION_TIMEOUT_S=%g): it is done again by itself",
            self.timeout_s,
            extra={"tier": self.tier},
        )
        self.writer.renew()
        self._begun = False
        self._again()

    def _again(self) -> None:
        """Read again what the transaction was made of."""
        self._check()
        ours = self.reader.assignment()
        again = {place: offset for place, offset in self._first.items() if place in ours}
        self.reader.seek(again)
        self._rewound(again)
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._open = self._spoilt = False
        self._first.clear()
        self._offsets.clear()

    def _spoil(self, error: Exception) -> None:
        if not self._spoilt:
            log.warning("a transaction is done again: %s", error, extra={"tier": self.tier})
        self._spoilt = True

    def _refused(self, batch: Batch, record: Record, reason: str) -> None:
        del batch
        self._poison[_key(record)] = reason
        self._spoil(PermanentError(reason))  # the client may have refused it before the transaction knew of it

    def _letter_refused(self, batch: Batch, record: Record, reason: str) -> None:
        del batch  # nothing may be written from here: the transaction may be ending
        self._cut.add(_key(record))
        self._spoil(PermanentError(reason))

    def _failed(self, error: Exception) -> None:
        del error  # the transaction cannot be committed then, which says so itself


def _key(record: Record) -> tuple[TopicPartition, int]:
    return (record.topic, record.partition), record.offset
