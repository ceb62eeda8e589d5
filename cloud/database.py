"""The door to the database: SQLite or PostgreSQL by URL, transactions, migrations.

`reading` and `writing` are the only ways in. A database that is away, locked or full is a `TemporaryError`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    TimeoutError,
)

from sluice.daemon.life import Backoff
from sluice.wire.errors import PermanentError, TemporaryError

log = logging.getLogger(__name__)
logging.getLogger("alembic").setLevel(logging.WARNING)

BUSY_S = 30
_MIGRATION_LOCK = 0x51C1CE
_SQLITE_PASSING = ("locked", "busy", "disk i/o", "full", "unable to open")


def open_database(url: str) -> Engine:
    """The engine for `url`; connects to nothing yet. `PermanentError`: neither SQLite nor PostgreSQL."""
    try:
        parsed = make_url(url)
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        if parsed.get_backend_name() == "postgresql":
            return create_engine(parsed, pool_pre_ping=True, connect_args={"connect_timeout": 5})
        if parsed.get_backend_name() != "sqlite" or not parsed.database:
            raise PermanentError("database: use a URL of a SQLite file or of PostgreSQL")
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, connect_args={"timeout": BUSY_S})
    except (ArgumentError, NoSuchModuleError) as error:
        raise PermanentError(f"database: {error}") from error
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin and end where we say, not where the driver guesses
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    # a transaction that begins by reading and writes later could lose its place in the queue of writers
    writes = connection.get_execution_options().get("sluice_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection that sees one state of the database. Raises `TemporaryError` when it is away."""
    with _translated(), engine.connect() as connection, connection.begin():
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction: committed at the end of the block, undone by an exception. `TemporaryError`: database away."""
    with _translated(), engine.connect() as plain:
        connection = plain.execution_options(sluice_writes=True)
        with connection.begin():
            yield connection


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise TemporaryError("database: all connections are in use") from error
    except DBAPIError as error:
        if not _passing(error):
            raise
        raise TemporaryError(f"database: {str(error.orig).strip().splitlines()[0]}") from error


def _passing(error: DBAPIError) -> bool:
    if error.connection_invalidated:
        return True
    if not isinstance(error, OperationalError | InterfaceError):
        return False
    if type(error.orig).__module__.startswith("sqlite3"):
        return any(word in str(error.orig).lower() for word in _SQLITE_PASSING)
    return True


def migrate(engine: Engine, form: str = "head") -> None:
    """Bring the tables to a form, by default the newest; safe when several processes do it at once.

    Raises `TemporaryError` when the database is away.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    with writing(engine) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
        config.attributes["connection"] = connection
        command.upgrade(config, form)


def wait_for_database(engine: Engine, stop: threading.Event) -> bool:
    """Bring the database to the newest form as soon as it is there; False if `stop` was set before."""
    backoff, away = Backoff(), False
    while not stop.is_set():
        try:
            migrate(engine)
        except TemporaryError as error:
            if not away:
                log.warning("%s; trying again until it is there", error)
            away = True
            stop.wait(backoff.wait_s())
        else:
            return True
    return False
