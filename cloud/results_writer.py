"""The results writer: brings predictions, labels, device states and announced streams from Kafka into the database.

`results_writer` is the process; one `Session` is a time without trouble. Rows and the offsets that they were read up
to are one transaction, and a session begins at the offsets in the database: so a crash between any two lines neither
loses nor repeats. When Kafka or the database is away the session ends, nothing is kept in memory, and a new one begins
when both are back. Neighbours: `projection` (records to rows), `sluice.doors.kafka`.
"""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType

from sqlalchemy import Engine
from sqlalchemy.exc import DataError, IntegrityError

from cloud.database import open_database, reading, wait_for_database, writing
from cloud.projection import TOPICS, Rows, load_offsets, move_offset, write
from cloud.settings import CloudSettings
from cloud.topics import ensure_fixed_topics
from sluice.daemon.guard import Guard
from sluice.daemon.life import READY, Backoff
from sluice.daemon.secrecy import keep_to_itself
from sluice.doors.kafka import BEGINNING, KafkaReader, KafkaWriter, Record, TopicPartition, dead_letter_headers
from sluice.wire import metrics, names
from sluice.wire.errors import PermanentError, TemporaryError, UnknownSchemaError

log = logging.getLogger(__name__)

GROUP = "sluice-results-writer"
POLL_S = 0.1
GATHER_S = 0.1
"""How long a batch waits for more after its first record: a transaction of ten rows costs hardly more than one of one,
and nobody waits for a result as for an answer."""
COMMIT_EVERY_S = 1.0
READ_AGAIN_S = 30.0
"""How long a held record may take to be read again before it is asked for once more."""
STEP_MOST_S = 120.0
"""A step that takes longer will not end: the process does, the next one goes on from the offsets in the database."""
CUT_BYTES = 1000
"""What is kept of a dead letter that is too large to be written whole."""


def results_writer(settings: CloudSettings, stop: threading.Event) -> None:
    """Run until `stop`. The main loop: sessions, with a pause after one that ended in trouble."""
    keep_to_itself()
    engine = open_database(settings.database_url)
    backoff, ready, trouble = Backoff(), False, False
    guard = Guard("results-writer", STEP_MOST_S)
    if not wait_for_database(engine, stop):
        return
    while not stop.is_set():
        try:
            with Session(settings, engine) as session:
                while not stop.is_set():
                    with guard:
                        session.step()
                    if session.working and (trouble or not ready):
                        log.info("working again" if ready else READY)
                        ready, trouble = True, False
                        backoff.reset()
        except TemporaryError as error:
            if not trouble:
                log.warning("%s; trying again until it works", error)
            trouble = True
            stop.wait(max(error.delay, backoff.wait_s()))


class Session:
    """Reading from the offsets in the database on, until the first trouble."""

    def __init__(self, settings: CloudSettings, engine: Engine) -> None:
        self.settings = settings
        self.engine = engine
        with reading(engine) as connection:  # a database that is away is known before Kafka is asked for anything
            load_offsets(connection, TOPICS)
        ensure_fixed_topics(settings)
        self.working = False
        self._next: dict[TopicPartition, int | None] = {}
        self._held: dict[TopicPartition, tuple[int, float]] = {}
        self._uncommitted: dict[TopicPartition, int] = {}
        self._commit_at = 0.0
        self._dead = KafkaWriter("results-writer-dead", settings.kafka)
        self._reader = KafkaReader(
            "results-writer",
            settings.kafka,
            GROUP,
            on_assigned=self._assigned,
            on_lost=self._lost,
            on_overtaken=_overtaken,
        )
        self._reader.subscribe(TOPICS)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reader.close()

    def _assigned(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        """Where to begin: at the offsets in the database; what was never read, at the beginning."""
        with reading(self.engine) as connection:
            stored = load_offsets(connection, TOPICS)
        for partition in partitions:
            self._next[partition] = stored.get(partition)
            self._held.pop(partition, None)
        self.working = True
        return {partition: stored.get(partition, BEGINNING) for partition in partitions}

    def _lost(self, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            self._next.pop(partition, None)
            self._held.pop(partition, None)
            self._uncommitted.pop(partition, None)

    def step(self) -> None:
        """One turn: a batch into the database; offsets to Kafka now and then, for tools that show the lag."""
        self._try_held()
        records = self._reader.read(self.settings.results_batch, POLL_S, GATHER_S)
        if records:
            try:
                self._bring_in(records)
            except (DataError, IntegrityError):  # one of them is refused: find out which
                for record in records:
                    self._bring_in_one(record)
        if self._uncommitted and time.monotonic() >= self._commit_at:
            self._reader.commit(self._uncommitted)
            self._uncommitted = {}
            self._commit_at = time.monotonic() + COMMIT_EVERY_S

    def _bring_in(self, records: list[Record], refused: str | None = None) -> None:
        """Rows and offsets of a batch in one transaction; dead letters are confirmed before it."""
        rows, following, dead = Rows(), dict[TopicPartition, int](), list[tuple[Record, str]]()
        hold: dict[TopicPartition, tuple[int, str]] = {}
        for record in records:
            partition = (record.topic, record.partition)
            held_at, _due = self._held.get(partition, (record.offset, 0.0))
            if partition in hold or partition not in self._next or held_at < record.offset:
                continue
            try:
                if refused is not None:
                    raise PermanentError(refused)
                rows.take(record)
            except UnknownSchemaError as error:
                hold[partition] = (record.offset, str(error))
                continue
            except PermanentError as error:
                dead.append((record, str(error)))
            self._held.pop(partition, None)
            following[partition] = record.offset + 1
        self._bury(dead)
        with writing(self.engine) as connection:
            for partition, offset in sorted(following.items()):
                move_offset(connection, partition, self._next[partition], offset)
            repeats = write(connection, rows)
        self._next |= following
        self._uncommitted |= following
        metrics.RESULTS_ROWS.inc(sum(row["records"] for row in rows.predictions.values()))
        metrics.RESULTS_REPEATS.inc(repeats)
        metrics.RESULTS_AUDITS.inc(sum(row["records"] for row in rows.audits.values()))
        metrics.RESULTS_LABELS.inc(len(rows.labels))
        for partition, (offset, reason) in hold.items():
            self._hold(partition, offset, reason)

    def _bring_in_one(self, record: Record) -> None:
        try:
            self._bring_in([record])
        except (DataError, IntegrityError) as error:
            self._bring_in([record], refused=f"the database refuses it: {error.orig}")

    def _bury(self, dead: list[tuple[Record, str]]) -> None:
        """Dead letters, confirmed by Kafka. Raises `TemporaryError` when they are not."""
        failures: list[Exception] = []
        for record, reason in dead:
            place = (record.topic, record.partition, record.offset)
            log.warning("dead letter: %s", reason, extra={"topic": place[0], "partition": place[1], "offset": place[2]})
            self._write_dead(record, reason, record.value, failures)
        if self._dead.flush(self.settings.kafka_timeout_s):
            raise TemporaryError("Kafka does not confirm dead letters")
        if failures:
            raise TemporaryError(f"dead letters could not be written: {failures[0]}")
        metrics.RESULTS_DEAD.inc(len(dead))

    def _write_dead(self, record: Record, reason: str, value: bytes, failures: list[Exception]) -> None:
        headers = dead_letter_headers(reason, "results-writer", record.topic, record.partition, record.offset)

        def note(error: Exception | None) -> None:
            if isinstance(error, PermanentError) and len(value) > CUT_BYTES:
                cut = f"{reason} (too large to keep whole: {len(value)} bytes)"
                self._write_dead(record, cut, value[:CUT_BYTES], failures)
            elif error is not None:
                failures.append(error)

        try:
            self._dead.write(names.DEAD_LETTER, value, key=record.key, headers=headers, on_delivery=note)
        except PermanentError as error:
            note(error)

    def _hold(self, partition: TopicPartition, offset: int, reason: str) -> None:
        """Leave this topic partition at `offset` and try again later; the others go on."""
        if partition not in self._held:
            log.warning("%s[%d] is held at %d: %s", *partition, offset, reason)
        self._reader.pause([partition])
        self._held[partition] = (offset, time.monotonic() + self.settings.results_hold_s)

    def _try_held(self) -> None:
        now = time.monotonic()
        for partition, (offset, due) in list(self._held.items()):
            if now >= due:
                self._held[partition] = (offset, now + READ_AGAIN_S)
                self._reader.resume([partition])
                self._reader.seek({partition: offset})


def _overtaken(partition: TopicPartition, lost: int) -> None:
    """Count what retention took before it was read."""
    metrics.RESULTS_RETENTION.inc(lost)
    log.error("%s[%d]: retention took %d records before they were read", *partition, lost)
