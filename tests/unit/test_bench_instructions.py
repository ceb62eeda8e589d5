"""The gate on instructions: what is over the accepted figure by more than the tolerance is told."""

import json
from pathlib import Path

import pytest

from bench import bench_instructions as bench


@pytest.fixture(autouse=True)
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "gate.json"
    path.write_text(json.dumps({"tolerance": 0.03, "accepted": {"a": 1000}}))
    monkeypatch.setattr(bench, "GATE", path)
    return path


@pytest.mark.parametrize("figures", [[1000.0], [1029.0], [500.0], [900.0, 1029.0, 2000.0]])
def test_within_the_tolerance_of_the_median_nothing_is_said(figures: list[float]) -> None:
    assert bench.judge({"a": figures}) == []


def test_beyond_it_the_line_says_how_much_and_how_to_accept_it() -> None:
    (said,) = bench.judge({"a": [1040.0]})
    assert "+4.0%" in said and "1000" in said and "--accept" in said


def test_a_figure_that_nobody_accepted_is_told() -> None:
    (said,) = bench.judge({"b": [1.0]})
    assert "no figure is accepted" in said


def test_what_is_accepted_passes_from_then_on(gate: Path) -> None:
    bench.accept({"a": [1040.0, 1041.4, 1042.0], "b": [1.0]})
    assert json.loads(gate.read_text()) == {"tolerance": 0.03, "accepted": {"a": 1040, "b": 1}}
    assert bench.judge({"a": [1041.4], "b": [1.0]}) == []
