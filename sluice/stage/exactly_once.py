"""Outcomes and the offsets of what they were made of, in one Kafka transaction.

What a crash, a fence or a rebalance cuts off never happened for those who read committed records, and is done again.
While one transaction ends, which takes Kafka some round trips, the next batches are worked on already; what came of
them waits, since a producer has one transaction at a time. Kafka ends a transaction by its age, so after a slow batch
none is open while the next ones are worked on.

    open ── it is time ──> ending ── committed ──> none ── what waits is written ──> open
                              └──── failed ────> spoilt ── aborted; it and what waits are read again ──> none
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from sluice.doors.kafka import KafkaReader, Record, TopicPartition
from sluice.doors.kafka_transactions import FencedError, KafkaTransactions, TransactionFailedError
from sluice.stage.audit import made_here
from sluice.stage.delivery import BUSY_WAIT_S, Batch, Delivery, Offsets, Rewound
from sluice.stage.settings import StageSettings
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.messages import Outcome

log = logging.getLogger(__name__)

ALONE_S = 600.0
"""How long every batch has a transaction of its own after one was slow."""
WAITING_MOST = 16
"""Batches that are worked on while a transaction ends."""


@dataclass(slots=True)
class Made:
    """What came of a batch: outcomes, dead letters with their reasons, and the next offsets."""

    outcomes: list[tuple[Record, Outcome]]
    letters: list[tuple[Record, str]]
    offsets: Offsets

    def firsts(self) -> Offsets:
        """The first offset of each topic partition that something came of."""
        found: Offsets = {}
        for record, _ in (*self.outcomes, *self.letters):
            place = _place(record)
            found[place] = min(record.offset, found.get(place, record.offset))
        return found

    def leave(self, places: Sequence[TopicPartition]) -> None:
        """Take out what is of these topic partitions."""
        self.outcomes = [one for one in self.outcomes if _place(one[0]) not in places]
        self.letters = [one for one in self.letters if _place(one[0]) not in places]
        self.offsets = {place: offset for place, offset in self.offsets.items() if place not in places}


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
        self._nobody_elses = settings.transactional_id is None
        """Nobody but Kafka itself fences this producer, when it ends a transaction because of its age."""
        self._rewound = rewound
        self._begun = self._open = self._committing = self._spoilt = False
        """Kafka knows this producer; a transaction is open; its end was begun, and only that may be done next; nothing
        of it may count."""
        self._ending: Future[None] | None = None
        """The end of the transaction, while it is under way in a thread of its own."""
        self._waiting: list[Made] = []
        """Not written yet."""
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
        self._unaudited: set[tuple[TopicPartition, int]] = set()
        """Those that nobody audits, since what came of them is refused, or their audit."""

    @property
    def patience_s(self) -> float | None:
        """Longest wait for the next records; None: any."""
        if self._committing and not self._waiting:
            return BUSY_WAIT_S
        return 0.0 if self._open else None

    def take(
        self, outcomes: Sequence[tuple[Record, Outcome]], dead: Iterable[tuple[Record, str]], offsets: Offsets
    ) -> None:
        """Write what came of a batch, as part of the transaction; one that took too long for that is done again."""
        now = time.monotonic()
        if now >= self._settled + self.timeout_s / 4:
            self._alone_until = now + ALONE_S
        self._waiting.append(Made(list(outcomes), list(dead), offsets))
        if self._open and not self._committing and now >= self._opened + self.timeout_s * 3 / 4:
            self._outlasted()
        elif not self._committing:
            self._write_waiting()

    def settle(self, stop: threading.Event, *, idle: bool) -> None:
        """End the transaction, if nothing more comes or it is time to. `TemporaryError`: call it again."""
        self._introduce()
        if self._committing:
            self._end(BUSY_WAIT_S if idle and self._waiting else 0.0)
            while self._committing and len(self._waiting) >= WAITING_MOST and not stop.is_set():
                self._end(0.05)
        if not self._committing:
            self.writer.poll()
            self._check()
            if self._spoilt:
                self._abort()
                self._introduce()
            self._write_waiting()
            if self._open and not self._spoilt and (idle or time.monotonic() >= self._due):
                self._end(0.0)
        self._settled = time.monotonic()

    def lost(self, places: list[TopicPartition]) -> None:
        """Topic partitions are taken away: end the transaction and one of what waits, forget them."""
        try:
            self._end_all()
        except TemporaryError as error:
            log.warning("a transaction ends later: %s", error)
        for place in places:
            self._first.pop(place, None)
            self._offsets.pop(place, None)
        for made in self._waiting:
            made.leave(places)
        self._poison = {key: reason for key, reason in self._poison.items() if key[0] not in places}
        self._cut = {key for key in self._cut if key[0] not in places}
        self._unaudited = {key for key in self._unaudited if key[0] not in places}

    def stop(self) -> None:
        """End the transaction, and one of what waits."""
        self._end_all()
        if self._spoilt:
            self._abort()

    def _end_all(self) -> None:
        """Commit what is open or ending, then what waits, as far as nothing fails."""
        if self._committing:
            self._end(None)
        if not self._spoilt:
            self._write_waiting()
        if self._open and not self._spoilt:
            self._end(None)

    def _end(self, wait_s: float | None) -> None:
        """Commit: begin with it or wait for it, for `wait_s` at most. `TemporaryError`: it is to be begun once more."""
        if self._ending is None:
            self._committing = True
            self._ending = _in_background(self.writer.commit, dict(self._offsets), self.reader.group())
        with contextlib.suppress(TimeoutError):
            self._ending.exception(wait_s)
        if not self._ending.done():
            return
        ended, self._ending = self._ending, None
        try:
            ended.result()
        except TransactionFailedError as error:
            self._committing = False
            self._spoil(error)
            return
        self._committing = False
        self.reader.has_committed(self._offsets)
        over = {key for key in (*self._unaudited, *self._cut) if key[1] < self._offsets.get(key[0], 0)}
        self._poison = {key: reason for key, reason in self._poison.items() if key not in over}
        self._cut -= over
        self._unaudited -= over
        self._begin_anew()

    def _write_waiting(self) -> None:
        """Write what waits, as part of the transaction that is open, or of a new one."""
        while self._waiting and not self._spoilt:
            self._write_made(self._waiting[0])  # which stays, should the transaction not begin
            del self._waiting[0]

    def _write_made(self, made: Made) -> None:
        now = time.monotonic()
        for place, offset in made.firsts().items():
            self._first[place] = min(offset, self._first.get(place, offset))
        if not self._open:
            self.writer.begin()
            self._open, self._opened = True, now
            self._due = now if now < self._alone_until else now + self.interval_s
        samples = [(r, o) for r, o in made.outcomes if not (made_here(o) and _key(r) in self._unaudited)]
        letters = made.letters + [(r, reason) for r, _ in samples if (reason := self._poison.get(_key(r)))]
        good = [(record, outcome) for record, outcome in samples if _key(record) not in self._poison]
        self._offsets.update(made.offsets)
        batch = Batch({})
        try:
            self._write_all(batch, good, [one for one in letters if _key(one[0]) not in self._cut])
            for record, reason in letters:
                if _key(record) in self._cut:
                    self._dead_letter(batch, record, reason, cut=True)
        except TransactionFailedError as error:
            self._spoil(error)

    def _abort(self) -> None:
        """Nothing of the transaction counts."""
        if self._open:
            try:
                self.writer.abort()
            except TransactionFailedError as error:
                log.info("Kafka has ended a transaction by itself: %s", error)
            except FencedError:
                if not self._nobody_elses and time.monotonic() < self._opened + self.timeout_s:
                    raise
                log.warning("Kafka has ended a transaction because of its age", extra={"tier": self.tier})
                self._renew()
        self._again()

    def _outlasted(self) -> None:
        """A batch took longer than the transaction that was open when it began: Kafka ends that, or did already."""
        log.warning(
            "a batch took longer than a transaction may (STAGE_TRANSACTION_TIMEOUT_S=%g): it is done again by itself",
            self.timeout_s,
            extra={"tier": self.tier},
        )
        self._renew()
        self._again()

    def _introduce(self) -> None:
        """Make this producer known to Kafka, if it is not."""
        if not self._begun:
            self.writer.init()
            self._begun = True

    def _renew(self) -> None:
        self.writer.renew()
        self._begun = False

    def _again(self) -> None:
        """Read again what the transaction was made of, and what waits."""
        self._check()
        for made in self._waiting:
            for place, offset in made.firsts().items():
                self._first[place] = min(offset, self._first.get(place, offset))
        self._waiting.clear()
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
        self._unaudited.add(_key(record))
        self._spoil(PermanentError(reason))  # the client may have refused it before the transaction knew of it

    def _audit_refused(self, record: Record, reason: str) -> None:
        super()._audit_refused(record, reason)
        self._unaudited.add(_key(record))
        self._spoil(PermanentError(reason))

    def _letter_refused(self, batch: Batch, record: Record, reason: str) -> None:
        del batch  # nothing may be written from here: the transaction may be ending
        self._cut.add(_key(record))
        self._spoil(PermanentError(reason))

    def _failed(self, error: Exception) -> None:
        del error  # the transaction cannot be committed then, which says so itself


def _in_background(
    call: Callable[[Mapping[TopicPartition, int], object], None], offsets: Offsets, group: object
) -> Future[None]:
    """Do it in a thread, which does not keep the process from ending."""
    future: Future[None] = Future()

    def work() -> None:
        try:
            call(offsets, group)
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=work, name="commit", daemon=True).start()
    return future


def _place(record: Record) -> TopicPartition:
    return record.topic, record.partition


def _key(record: Record) -> tuple[TopicPartition, int]:
    return _place(record), record.offset
