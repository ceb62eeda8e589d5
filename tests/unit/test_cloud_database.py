"""The database: migrations make the tables that the code knows, also when two processes begin at once."""

import sqlite3
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, insert, select

from cloud.database import migrate, open_database, reading, writing
from cloud.tables import devices, metadata, tokens
from cloud.tokens import any_admin, create, holder_of, listed, revoke
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.state import Desired, Run


def sqlite_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'sluice.db'}"


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    engine = open_database(sqlite_url(tmp_path))
    migrate(engine)
    return engine


def test_migrations_make_the_tables_that_the_code_knows(engine: Engine) -> None:
    with reading(engine) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_what_a_device_was_told_before_it_could_run_several_models_is_kept(tmp_path: Path) -> None:
    engine = open_database(sqlite_url(tmp_path))
    migrate(engine, "0004")
    told = {"device_id": "pi-1", "revision": 7, "bundle": "ab" * 32, "operating_point": "p", "profile": None}
    row = {"device_id": "pi-1", "token": 1, "revision": 7, "registered_at": 1}
    with writing(engine) as connection:
        create(connection, "device", "pi-1")
        connection.execute(insert(devices).values(row | {"desired": told | {"model": "gate"}}))
        connection.execute(insert(devices).values(row | {"device_id": "pi-2", "desired": None}))
    migrate(engine)
    with reading(engine) as connection:
        kept = connection.execute(select(devices.c.desired).order_by(devices.c.device_id)).scalars().all()
    run = Run(model="gate", bundle="ab" * 32, operating_point="p", revision=7)
    assert Desired.model_validate(kept[0]) == Desired(device_id="pi-1", revision=7, runs=(run,))
    assert kept[1] is None


def test_two_that_migrate_at_once_both_succeed(tmp_path: Path) -> None:
    failures: list[BaseException] = []
    together = threading.Barrier(2)

    def begin() -> None:
        own = open_database(sqlite_url(tmp_path))
        together.wait()
        try:
            migrate(own)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=begin) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_transaction_that_fails_leaves_nothing(engine: Engine) -> None:
    with pytest.raises(ZeroDivisionError), writing(engine) as connection:
        create(connection, "admin", "nobody")
        raise ZeroDivisionError
    with reading(engine) as connection:
        assert listed(connection) == []


def test_a_locked_database_is_temporary(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path)
    migrate(open_database(url))
    impatient = open_database(url)
    with impatient.connect() as connection:
        connection.exec_driver_sql("PRAGMA busy_timeout=10")
        connection.rollback()
    with sqlite3.connect(tmp_path / "sluice.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TemporaryError, match="locked"), writing(impatient) as connection:
            connection.execute(insert(tokens))
        other.execute("ROLLBACK")
    other.close()


def test_a_defect_is_not_taken_for_a_database_that_is_away(engine: Engine) -> None:
    with pytest.raises(Exception, match="no such table"), reading(engine) as connection:
        connection.exec_driver_sql("SELECT * FROM nowhere")


@pytest.mark.parametrize("url", ["mysql://x/y", "nonsense", "sqlite://"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(PermanentError, match="database"):
        open_database(url)


def test_a_token_works_until_it_is_revoked_and_is_not_stored(engine: Engine) -> None:
    with writing(engine) as connection:
        number, token = create(connection, "device", "pi-1")
    with reading(engine) as connection:
        assert holder_of(connection, token) == ("device", "pi-1")
        assert holder_of(connection, token + "x") is None
        assert not any_admin(connection)
        stored = [str(value) for row in connection.execute(select(tokens)) for value in row]
    assert not any(token in value for value in stored)
    with writing(engine) as connection:
        revoke(connection, number)
        assert holder_of(connection, token) is None
        with pytest.raises(PermanentError, match="revoked before"):
            revoke(connection, number)
