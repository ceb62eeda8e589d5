"""The device's store: one SQLite file with the outbox, the window journal and what must survive a power cut.

One transaction a turn of the main loop (group commit): what came in, what it became and the counter of samples become
durable together, before anything is acknowledged or published. Deletions alone may wait, since losing one only means
that something is sent again.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_agent.sensor import Values
from sluice.wire.errors import PermanentError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (
    seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, payload BLOB NOT NULL, receipted INTEGER NOT NULL DEFAULT 0,
    told INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS readings (
    sensor TEXT NOT NULL, number INTEGER NOT NULL, at_ns INTEGER NOT NULL, dtype TEXT NOT NULL, reading BLOB NOT NULL,
    PRIMARY KEY (sensor, number)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seen (position INTEGER PRIMARY KEY AUTOINCREMENT, source_id TEXT NOT NULL UNIQUE);
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the outbox: `kind` is offload or prediction, `payload` the encoded outcome."""

    seq: int
    kind: str
    payload: bytes
    receipted: bool
    told: bool


class Store:
    """The file and its open transaction. All calls belong to the main loop's thread."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "store.sqlite"
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._db.executescript(_SCHEMA)
            self.begin()
        except sqlite3.DatabaseError as error:
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
        self.commit()

    def begin(self) -> None:
        """Open the transaction of this turn."""
        self._db.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Make everything since the last commit durable; returns when it is."""
        self.before_commit()
        if self.dirty:
            self.set_fact("next_seq", str(self.next_seq).encode())
        self._db.execute("COMMIT")
        self.dirty = False
        self.commits += 1
        self.begin()

    def close(self) -> None:
        """Commit and close."""
        self.commit()
        self._db.execute("COMMIT")
        self._db.close()

    def fact(self, name: str) -> bytes | None:
        """A single value by name."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def set_fact(self, name: str, value: bytes) -> None:
        """Set a single value."""
        self._db.execute(
            "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, value),
        )

    def new_seq(self) -> int:
        """The number of the next sample; never given again once this turn is committed."""
        self.dirty = True
        self.next_seq += 1
        return self.next_seq - 1

    def put(self, seq: int, kind: str, payload: bytes) -> None:
        """Add an outcome, or replace that of the same sample."""
        self.dirty = True
        self._db.execute(
            "INSERT INTO outbox (seq, kind, payload) VALUES (?, ?, ?) ON CONFLICT (seq) DO UPDATE SET "
            "kind = excluded.kind, payload = excluded.payload, receipted = 0, told = 0",
            (seq, kind, payload),
        )

    def set_receipted(self, seq: int) -> None:
        """The outcome is in Kafka; what is left of it here waits for its answer."""
        self._db.execute("UPDATE outbox SET receipted = 1 WHERE seq = ?", (seq,))

    def set_told(self, seq: int) -> None:
        """The final answer was told; what is left of it here waits for its receipt."""
        self._db.execute("UPDATE outbox SET told = 1 WHERE seq = ?", (seq,))

    def remove(self, seq: int) -> None:
        """The sample is finished, or dropped."""
        self._db.execute("DELETE FROM outbox WHERE seq = ?", (seq,))

    def rows(self) -> Iterator[Row]:
        """The whole outbox, oldest first."""
        found = self._db.execute("SELECT seq, kind, payload, receipted, told FROM outbox ORDER BY seq")
        for seq, kind, payload, receipted, told in found:
            yield Row(seq, kind, payload, bool(receipted), bool(told))

    def push_reading(self, sensor: str, number: int, at_ns: int, values: Values) -> None:
        """Append reading `number` of a sensor to the window journal."""
        self.dirty = True
        self._db.execute(
            "INSERT INTO readings VALUES (?, ?, ?, ?, ?)", (sensor, number, at_ns, values.dtype.str, values.tobytes())
        )

    def drop_readings(self, sensor: str, before: int) -> None:
        """Remove the readings of a sensor that come before number `before` from the journal."""
        self.dirty = True
        self._db.execute("DELETE FROM readings WHERE sensor = ? AND number < ?", (sensor, before))

    def readings(self) -> list[tuple[str, int, int, Values]]:
        """The journal: (sensor, number, time in ns, values) in the order of sensors and numbers."""
        rows = self._db.execute("SELECT * FROM readings ORDER BY sensor, number").fetchall()
        return [(sensor, number, at, np.frombuffer(blob, dtype)) for sensor, number, at, dtype, blob in rows]

    def first_seen(self, source_id: str) -> bool:
        """Remember a source id; False if it was known, that is, the reading is a repeat."""
        self.dirty = True
        cursor = self._db.execute("INSERT OR IGNORE INTO seen (source_id) VALUES (?)", (source_id,))
        return cursor.rowcount > 0

    def forget_seen(self, keep: int) -> None:
        """Remember only the last `keep` source ids."""
        self._db.execute(
            "DELETE FROM seen WHERE position <= (SELECT position FROM seen ORDER BY position DESC LIMIT 1 OFFSET ?)",
            (keep,),
        )
