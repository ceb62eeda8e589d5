"""The device's store: one SQLite file with the outbox, the window journal and what must survive a power cut.

One transaction a turn of the main loop (group commit): what came in, what it became and the counter of samples become
durable together, before anything is acknowledged or published. Deletions alone may wait, since losing one only means
that something is sent again.

Where there is no room, or the medium fails, `commit` says so and may be called again: what belongs to the transaction
is kept and written anew, so the caller waits, with nothing acknowledged, until there is room.

A store without a folder is in memory, for devices that may not write. Then a restart forgets everything: what had no
receipt is lost, samples have a new epoch, windows begin anew, source ids are taken for new, and the bundle is the one
that the broker's retained desired state names, whatever was refused as too old before.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_agent.sensor import Values
from sluice.wire.errors import PermanentError, TemporaryError

log = logging.getLogger(__name__)

_PRAGMAS = (
    "page_size=1024",  # a sample touches about seven pages, and flash wears by what is written
    "locking_mode=EXCLUSIVE",  # before the next one: then the log needs no shared memory, which is a file as well
    "journal_mode=WAL",
    "synchronous=FULL",
    "cache_spill=OFF",  # writing is left to the commit, which may fail
    "temp_store=MEMORY",
)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (
    seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, payload BLOB NOT NULL, receipted INTEGER NOT NULL DEFAULT 0,
    told INTEGER NOT NULL DEFAULT 0, born REAL NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS readings (
    sensor TEXT NOT NULL, number INTEGER NOT NULL, at_ns INTEGER NOT NULL, dtype TEXT NOT NULL, reading BLOB NOT NULL,
    PRIMARY KEY (sensor, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS letters (number INTEGER PRIMARY KEY, letter BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS seen (position INTEGER PRIMARY KEY AUTOINCREMENT, source_id TEXT NOT NULL UNIQUE);
"""


_SET_FACT = "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
_PASSING = ("SQLITE_FULL", "SQLITE_IOERR")
"""What may be over later: no room, a medium that fails."""
_NOT_WRITABLE = ("SQLITE_CANTOPEN", "SQLITE_READONLY")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the outbox: `kind` is offload or prediction, `payload` the encoded outcome."""

    seq: int
    kind: str
    payload: bytes
    receipted: bool
    told: bool
    born: float
    """When it was added, in seconds that the device has run (`lived_s`)."""


class Store:
    """The file and its open transaction. All calls belong to the main loop's thread.

    `folder` None: in memory. Raises `PermanentError` for a file that cannot be used.
    """

    def __init__(self, folder: Path | None) -> None:
        path = ":memory:" if folder is None else folder / "store.sqlite"
        self._open: list[tuple[str, tuple[object, ...]]] = []
        """What was written in the open transaction, to be written again if it fails."""
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            for pragma in _PRAGMAS:
                self._db.execute(f"PRAGMA {pragma}")
            self._db.executescript(_SCHEMA)
            if "born" not in [column[1] for column in self._db.execute("PRAGMA table_info(outbox)")]:
                self._db.execute("ALTER TABLE outbox ADD COLUMN born REAL NOT NULL DEFAULT 0")
            self._db.execute("BEGIN IMMEDIATE")
        except OSError as error:
            raise PermanentError(f"store {path}: {error.strerror}; EDGE_STORE=memory writes none") from error
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorname.startswith(_PASSING):
                raise PermanentError(f"store {path}: {error}: make room there, or use EDGE_STORE=memory") from error
            if error.sqlite_errorname.startswith(_NOT_WRITABLE):
                raise PermanentError(
                    f"store {path} cannot be written: {error}; EDGE_STORE=memory writes none"
                ) from error
            raise PermanentError(
                f"store {path}: {error}. Is another agent running here? A damaged store may be moved away: the "
                "device then begins a new epoch"
            ) from error
        epoch = self.fact("epoch")
        if epoch is None:
            epoch = os.urandom(8)
            self.set_fact("epoch", epoch)
        self.epoch = epoch.hex()
        self.next_seq = int(self.fact("next_seq") or b"0")
        self.dirty = False
        self.before_commit: Callable[[], None] = lambda: None
        """Called at the beginning of each commit: what is written at most once a transaction is written there."""
        self.commits = 0
        """Transactions made durable so far: what must wait for the next one remembers this number."""
        self.writes = 0
        """Those of them that had anything to write."""
        try:
            self.commit()
        except TemporaryError as error:
            raise PermanentError(f"{error}: make room in {folder}, or use EDGE_STORE=memory") from error

    def commit(self) -> None:
        """Make everything since the last commit durable; returns when it is.

        `TemporaryError`: no room, or the medium fails. Nothing is lost: call it again.
        """
        try:
            if not self._db.in_transaction:  # the last one failed
                self._db.execute("BEGIN IMMEDIATE")
                for statement in self._open:
                    self._db.execute(*statement)
            self.before_commit()
            if self.dirty:
                self._db.execute(_SET_FACT, ("next_seq", str(self.next_seq).encode()))
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            if not error.sqlite_errorname.startswith(_PASSING):
                raise
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise TemporaryError(f"the store cannot be written: {error}", 1.0) from error
        self.dirty = False
        self.commits += 1
        self.writes += bool(self._open)
        self._open.clear()
        self._db.execute("BEGIN IMMEDIATE")

    def close(self) -> None:
        """Commit and close; what cannot be written was not acknowledged to anyone.

        Nor is it written if the last commit failed: that comes again, and must not be here already.
        """
        try:
            if self._db.in_transaction:
                self.commit()
        except TemporaryError as error:
            log.error("closing: %s; what is not durable comes again", error)
        self._db.close()

    def _write(self, statement: str, *values: object) -> sqlite3.Cursor:
        """Write something in the open transaction."""
        self._open.append((statement, values))
        return self._db.execute(statement, values)

    def fact(self, name: str) -> bytes | None:
        """A single value by name."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def set_fact(self, name: str, value: bytes) -> None:
        """Set a single value."""
        self._write(_SET_FACT, name, value)

    def new_seq(self) -> int:
        """The number of the next sample; never given again once this turn is committed."""
        self.dirty = True
        self.next_seq += 1
        return self.next_seq - 1

    def put(self, seq: int, kind: str, payload: bytes, born: float = 0.0) -> None:
        """Add an outcome, or replace that of the same sample, which keeps its age."""
        self.dirty = True
        self._write(
            "INSERT INTO outbox (seq, kind, payload, born) VALUES (?, ?, ?, ?) ON CONFLICT (seq) DO UPDATE SET "
            "kind = excluded.kind, payload = excluded.payload, receipted = 0, told = 0",
            *(seq, kind, payload, born),
        )

    def set_receipted(self, seq: int) -> None:
        """The outcome is in Kafka; what is left of it here waits for its answer."""
        self._write("UPDATE outbox SET receipted = 1 WHERE seq = ?", seq)

    def set_payload(self, seq: int, payload: bytes) -> None:
        """Keep less of an outcome; nothing depends on when this becomes durable."""
        self._write("UPDATE outbox SET payload = ? WHERE seq = ?", payload, seq)

    def set_told(self, seq: int) -> None:
        """The final answer was told; what is left of it here waits for its receipt."""
        self._write("UPDATE outbox SET told = 1 WHERE seq = ?", seq)

    def remove(self, seq: int) -> None:
        """The sample is finished, or dropped."""
        self._write("DELETE FROM outbox WHERE seq = ?", seq)

    def rows(self) -> Iterator[Row]:
        """The whole outbox, oldest first."""
        found = self._db.execute("SELECT seq, kind, payload, receipted, told, born FROM outbox ORDER BY seq")
        for seq, kind, payload, receipted, told, born in found:
            yield Row(seq, kind, payload, bool(receipted), bool(told), born)

    def lived_s(self) -> float:
        """Seconds that the device has run, as far as is known: when the youngest outcome was added.

        A clock may be wrong by years, so age counts only while the device runs; an empty outbox begins anew.
        """
        (born,) = self._db.execute("SELECT MAX(born) FROM outbox").fetchone()
        return born or 0.0

    def push_reading(self, sensor: str, number: int, at_ns: int, values: Values) -> None:
        """Append reading `number` of a sensor to the window journal."""
        self.dirty = True
        self._write(
            "INSERT INTO readings VALUES (?, ?, ?, ?, ?)", sensor, number, at_ns, values.dtype.str, values.tobytes()
        )

    def drop_readings(self, sensor: str, before: int) -> None:
        """Remove the readings of a sensor that come before number `before` from the journal."""
        self.dirty = True
        self._write("DELETE FROM readings WHERE sensor = ? AND number < ?", sensor, before)

    def readings(self) -> list[tuple[str, int, int, Values]]:
        """The journal: (sensor, number, time in ns, values) in the order of sensors and numbers."""
        rows = self._db.execute("SELECT * FROM readings ORDER BY sensor, number").fetchall()
        return [(sensor, number, at, np.frombuffer(blob, dtype)) for sensor, number, at, dtype, blob in rows]

    def first_seen(self, source_id: str) -> bool:
        """Remember a source id; False if it was known, that is, the reading is a repeat."""
        self.dirty = True
        cursor = self._write("INSERT OR IGNORE INTO seen (source_id) VALUES (?)", source_id)
        return cursor.rowcount > 0

    def forget_seen(self, keep: int) -> None:
        """Remember only the last `keep` source ids."""
        self._write(
            "DELETE FROM seen WHERE position <= (SELECT position FROM seen ORDER BY position DESC LIMIT 1 OFFSET ?)",
            keep,
        )

    def push_letter(self, letter: bytes, most: int) -> None:
        """Keep a dead letter until the link is up; of more than `most` the oldest go."""
        self.dirty = True
        number = self._write("INSERT INTO letters (letter) VALUES (?)", letter).lastrowid or 0
        self._write("DELETE FROM letters WHERE number <= ?", number - most)

    def letters(self) -> list[tuple[int, bytes]]:
        """The dead letters that are kept, with their numbers, oldest first."""
        return self._db.execute("SELECT number, letter FROM letters ORDER BY number").fetchall()

    def drop_letters(self, upto: int) -> None:
        """Dead letters up to this number are on their way; one that this forgets to forget comes twice."""
        self._write("DELETE FROM letters WHERE number <= ?", upto)
