"""Accuracy from late labels: counted by what answered and when, judged by what the bundle calls its classes."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from cloud.database import migrate, open_database, writing
from cloud.tables import labels, predictions
from cloud.watch import accuracy
from cloud.watch.accuracy import Counts, count_right
from cloud.watch.shares import share_of
from sluice.wire.errors import PermanentError

EPOCH, KNOWN, GONE = "00" * 8, "ab" * 32, "cd" * 32
HOUR = 3600 * 1_000_000


def answer(seq: int, label: int, tier: str = "edge", bundle: str = KNOWN, at: int = 0) -> dict[str, Any]:
    sample = {"device_id": "pi-1", "epoch": EPOCH, "seq": seq, "source_id": f"frame-{seq}", "model": "digits"}
    said = {"bundle": bundle, "operating_point": "default", "tier": tier, "exit": tier == "fog", "label": label}
    how = {"confidence": 0.9, "status": "final", "reason": "exit", "captured_at": 1, "produced_at": 2}
    return sample | said | how | {"recorded_at": at, "records": 1, "repeats": 0, "compute_us": {}, "bytes_sent": 0}


def label(seq: int, number: int = -1, name: str = "") -> dict[str, Any]:
    what = {"device_id": "pi-1", "epoch": "", "seq": -1, "source_id": f"frame-{seq}", "model": ""}
    return what | {"label": number, "name": name, "told_at": 1, "recorded_at": 1, "records": 1, "repeats": 0}


ANSWERS = [
    answer(0, 0),
    answer(1, 1),
    answer(2, 1),
    answer(3, 0, "fog", at=HOUR + 5),
    answer(4, 1, "fog", at=HOUR),
    answer(5, 0, bundle=GONE, at=2 * HOUR - 1),
    answer(6, 1, bundle=GONE),
    answer(7, -1),  # a model that does not classify
]
LABELS = [
    label(0, 0),
    label(1, name="no"),
    label(3, name="no"),
    label(4, 2),  # the bundle has two classes
    label(5, name="no"),  # nobody knows what that bundle called its classes
    label(6, 1),
    label(9, 1),  # its answer never came
]


def counts(tmp_path: Path, bucket_us: int | None, **more: Any) -> dict[Any, Counts]:
    engine = open_database(f"sqlite:///{tmp_path / 'sluice.db'}")
    migrate(engine)
    with writing(engine) as connection:
        connection.execute(insert(predictions), ANSWERS)
        connection.execute(insert(labels), LABELS)
        names = {KNOWN: ("no", "yes")}
        found = count_right(connection, more.get("conditions", []), bucket_us, names.get)
    engine.dispose()
    return found


def test_answers_are_counted_by_what_made_them(tmp_path: Path) -> None:
    assert counts(tmp_path, None) == {
        (0, "digits", KNOWN, "edge", 0): Counts(samples=3, labelled=2, right=1),
        (0, "digits", KNOWN, "fog", 1): Counts(samples=2, labelled=2, right=1, unknown=1),
        (0, "digits", GONE, "edge", 0): Counts(samples=2, labelled=2, right=1, unknown=1),
    }


def test_and_by_time(tmp_path: Path) -> None:
    found = counts(tmp_path, HOUR, conditions=[predictions.c.bundle == GONE])
    assert found == {
        (0, "digits", GONE, "edge", 0): Counts(samples=1, labelled=1, right=1),
        (HOUR, "digits", GONE, "edge", 0): Counts(samples=1, labelled=1, unknown=1),
    }


def test_too_many_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accuracy, "GROUPS_MOST", 2)
    with pytest.raises(PermanentError, match="later `since`"):
        counts(tmp_path, None)


def test_an_interval_is_that_of_the_books() -> None:
    """Wilson's interval of 9 in 10 and of 2 in 2, as statistics packages give it."""
    assert share_of(9, 10) == {
        "share": 0.9,
        "low": pytest.approx(0.59585, abs=1e-5),
        "high": pytest.approx(0.98212, abs=1e-5),
    }
    assert share_of(2, 2) == {"share": 1.0, "low": pytest.approx(0.34238, abs=1e-5), "high": 1.0}
