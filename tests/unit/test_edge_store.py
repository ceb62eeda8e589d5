"""The device's store: epochs, numbers that are never given twice, and what a kill -9 leaves of it."""

import secrets
import signal
import sqlite3
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from edge_agent.store import Store
from sluice.wire.errors import PermanentError, TemporaryError
from tests.small_disk import fill, small_disk

__all__ = ["small_disk"]  # a fixture


def crash(store: Store) -> None:
    """Leave the open transaction behind, as a crash does."""
    store._db.rollback()
    store._db.close()


def test_an_epoch_is_kept_and_a_new_store_has_a_new_one(tmp_path: Path) -> None:
    epochs = []
    for folder in ("a", "a", "b"):
        store = Store(tmp_path / folder)
        epochs.append(store.epoch)
        store.close()
    assert epochs[0] == epochs[1] != epochs[2]
    assert all(len(bytes.fromhex(epoch)) == 8 for epoch in epochs)


def test_the_epoch_is_durable_before_anything_is_done_with_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    epoch = store.epoch
    crash(store)
    store = Store(tmp_path)
    assert store.epoch == epoch
    store.close()


def test_what_is_not_committed_is_gone_and_what_is_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for _ in range(3):
        store.put(store.new_seq(), "prediction", b"kept")
    store.set_receipted(1)
    store.set_told(2)
    store.set_fact("desired", b"1")
    assert store.first_seen("a")
    store.commit()
    store.put(store.new_seq(), "offload", b"lost")
    store.remove(0)
    store.set_fact("desired", b"2")
    assert store.first_seen("b")
    crash(store)
    store = Store(tmp_path)
    assert [(r.seq, r.payload, r.receipted, r.told) for r in store.rows()] == [
        (0, b"kept", False, False),
        (1, b"kept", True, False),
        (2, b"kept", False, True),
    ]
    assert store.fact("desired") == b"1" and store.fact("nothing") is None
    assert store.new_seq() == 3  # nobody has seen the one that was taken and not committed
    assert not store.first_seen("a") and store.first_seen("b")
    store.close()


def test_so_many_dead_letters_are_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in range(7):
        store.push_letter(b"%d" % number, 3)
    store.commit()
    crash(store)
    store = Store(tmp_path)
    kept = store.letters()
    assert [letter for _, letter in kept] == [b"4", b"5", b"6"]
    store.drop_letters(kept[1][0])
    assert [letter for _, letter in store.letters()] == [b"6"]
    store.close()


def test_another_outcome_of_the_same_sample_is_neither_receipted_nor_told(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put(5, "offload", b"first")
    store.set_receipted(5)
    store.set_told(5)
    store.put(5, "prediction", b"second")
    assert [(r.kind, r.payload, r.receipted, r.told) for r in store.rows()] == [("prediction", b"second", False, False)]
    store.close()


def test_a_store_of_an_earlier_version_is_taken_up(tmp_path: Path) -> None:
    """It did not write down when an outcome came: those count as new."""
    store = Store(tmp_path)
    store.put(store.new_seq(), "prediction", b"old", 70.0)
    store.commit()
    assert store.lived_s() == 70.0
    store._db.execute("ALTER TABLE outbox DROP COLUMN born")
    store.close()
    store = Store(tmp_path)
    store.put(store.new_seq(), "prediction", b"new", 5.0)
    assert [(row.payload, row.born) for row in store.rows()] == [(b"old", 0.0), (b"new", 5.0)]
    store.put(1, "prediction", b"instead", 9.0)
    assert [row.born for row in store.rows()] == [0.0, 5.0], "of the same sample"
    assert store.lived_s() == 5.0
    store.close()


def test_only_the_last_source_ids_are_remembered(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for i in range(20):
        assert store.first_seen(f"s{i}")
        assert not store.first_seen(f"s{i}")
    store.forget_seen(5)
    assert [store.first_seen(f"s{i}") for i in (15, 19)] == [False, False]
    assert [store.first_seen(f"s{i}") for i in (0, 14)] == [True, True]
    store.forget_seen(0)
    assert store.first_seen("s19")
    store.close()


def test_a_second_agent_on_the_same_store_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, timeout=0.1))
    with pytest.raises(PermanentError, match="another agent"):
        Store(tmp_path)
    store.close()


def test_a_store_that_cannot_be_written_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").mkdir()
    with pytest.raises(PermanentError, match=r"cannot be written.*EDGE_STORE=memory") as refused:
        Store(tmp_path)
    assert "Is another agent" not in str(refused.value)


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_bytes(secrets.token_bytes(8192))
    with pytest.raises(PermanentError, match=r"store\.sqlite: .*may be moved away"):
        Store(tmp_path)


def test_a_store_in_memory_writes_nothing_and_forgets_everything(tmp_path: Path) -> None:
    store = Store(None)
    store.put(store.new_seq(), "offload", b"sample")
    store.commit()
    assert [row.payload for row in store.rows()] == [b"sample"] and list(tmp_path.iterdir()) == []
    store.close()
    again = Store(None)
    assert again.epoch != store.epoch and again.new_seq() == 0 and list(again.rows()) == []
    again.close()


def test_with_no_room_nothing_is_lost_and_all_is_written_when_there_is(small_disk: Path) -> None:
    store = Store(small_disk)
    store.put(store.new_seq(), "prediction", b"before")
    store.commit()
    filled = fill(small_disk)
    store.put(store.new_seq(), "offload", bytes(200_000))
    store.set_receipted(0)
    assert store.first_seen("a")
    for _ in range(3):
        with pytest.raises(TemporaryError, match="cannot be written: database or disk is full"):
            store.commit()
        assert store.dirty
    filled.unlink()
    store.commit()
    assert [(row.seq, len(row.payload), row.receipted) for row in store.rows()] == [(0, 6, True), (1, 200_000, False)]
    crash(store)
    store = Store(small_disk)
    assert [row.seq for row in store.rows()] == [0, 1] and store.new_seq() == 2 and not store.first_seen("a")
    store.close()


def test_closed_or_begun_with_no_room_it_says_so(small_disk: Path) -> None:
    store = Store(small_disk)
    store.commit()
    filled = fill(small_disk)
    store.put(store.new_seq(), "offload", bytes(200_000))
    store.close()
    Store(small_disk).close()  # it has nothing to write
    for file in small_disk.glob("store.sqlite*"):
        file.unlink()
    fill(small_disk)
    with pytest.raises(PermanentError, match=r"full.*make room"):
        Store(small_disk)
    filled.unlink()


CHILD = """
import sys
from pathlib import Path
from edge_agent.store import Store

store = Store(Path(sys.argv[1]))
print("epoch", store.epoch, flush=True)
while True:
    turn = [store.new_seq() for _ in range(3)]
    for seq in turn:
        store.put(seq, "prediction", b"%d" % seq)
    store.commit()
    print("given", *turn, flush=True)  # what is published comes after the commit
"""


def test_no_number_is_given_twice_whenever_the_process_is_killed(tmp_path: Path) -> None:
    given: list[int] = []
    epochs = set()
    for _ in range(6):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        try:
            epochs.add(child.stdout.readline())
            child.stdout.readline()
            time.sleep(secrets.randbelow(50) / 1000)
        finally:
            child.send_signal(signal.SIGKILL)
        rest = child.stdout.read()
        child.stdout.close()
        child.wait()
        turns = [line.split()[1:] for line in rest.splitlines(keepends=True) if line.endswith("\n")]
        given += [int(seq) for turn in turns for seq in turn]
    assert len(given) == len(set(given)) > 0 and len(epochs) == 1
    store = Store(tmp_path)
    kept = {row.seq: row.payload for row in store.rows()}
    assert set(given) <= kept.keys()
    assert all(payload == b"%d" % seq for seq, payload in kept.items())
    assert store.new_seq() > max(kept)
    store.close()


def test_a_commit_is_on_the_medium_and_not_only_with_the_kernel(tmp_path: Path) -> None:
    """What a power cut asks for: as SQLite itself says of the connection."""
    store = Store(tmp_path)
    assert store._db.execute("PRAGMA synchronous").fetchone() == (2,), "FULL: the log is synced at each commit"
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()
