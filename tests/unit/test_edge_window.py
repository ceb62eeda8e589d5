"""Windows over readings: beside one another, overlapping, with gaps, and taken up from the journal after a crash."""

from pathlib import Path

import numpy as np
import pytest

from edge_agent.store import Store
from edge_agent.window import Window

READINGS = [np.asarray([float(i), i + 0.5]) for i in range(20)]


def windows_of(count: int, hop: int, readings: int) -> list[list[int]]:
    """Which readings stand in which window, by definition."""
    return [list(range(start, start + count)) for start in range(0, readings - count + 1, hop or count)]


@pytest.mark.parametrize(("count", "hop"), [(1, 1), (1, 0), (4, 4), (4, 0), (4, 1), (4, 3), (2, 5), (1, 3)])
def test_windows_begin_every_hop_readings(count: int, hop: int) -> None:
    window = Window(count, hop)
    made, held = [], 0
    for values in READINGS:
        whole, gone = window.push(values)
        held += 1 - gone
        assert 0 <= held < max(count, 2)
        if whole is not None:
            made.append(whole.tolist())
    assert made == [np.concatenate([READINGS[i] for i in w]).tolist() for w in windows_of(count, hop, len(READINGS))]


@pytest.mark.parametrize(("count", "hop"), [(4, 4), (4, 1), (4, 3), (3, 2)])
@pytest.mark.parametrize("cut", range(1, 9))
def test_a_crash_between_two_readings_changes_no_window(tmp_path: Path, count: int, hop: int, cut: int) -> None:
    made = []
    for part in (READINGS[:cut], READINGS[cut:]):
        store = Store(tmp_path)
        window = Window(count, hop, store.journal())
        for values in part:
            store.push_reading(values)
            whole, gone = window.push(values)
            store.drop_readings(gone)
            if whole is not None:
                made.append(whole.tolist())
        assert len(store.journal()) < count
        store.close()
    assert made == [np.concatenate([READINGS[i] for i in w]).tolist() for w in windows_of(count, hop, len(READINGS))]


def test_the_journal_keeps_values_as_they_are(tmp_path: Path) -> None:
    odd = [np.asarray([1e-300, -0.0, 1 / 3]), np.asarray([2**31 - 1, -7], np.int32), np.asarray([0.1], np.float32)]
    store = Store(tmp_path)
    for values in odd:
        store.push_reading(values)
    store.close()
    store = Store(tmp_path)
    assert [values.tolist() for values in store.journal()] == [values.tolist() for values in odd]
    store.close()
