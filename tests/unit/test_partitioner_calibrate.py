"""Temperatures, and what is said of exits by their confidence: right on plain data, sane on odd ones."""

import numpy as np
import pytest

from partitioner.promise.calibrate import confidences, expected, labels_of, reliability, sweep, temperature
from partitioner.segments.chain import Passage
from sluice.stage.policy import gate


def test_a_temperature_undoes_overconfidence() -> None:
    random = np.random.default_rng(0)
    truth = random.normal(0, 2, (4000, 5))
    p = np.exp(truth) / np.exp(truth).sum(axis=1, keepdims=True)
    labels = (p.cumsum(axis=1) > random.random((4000, 1))).argmax(axis=1)
    assert temperature((truth * 3).astype(np.float32), labels) == pytest.approx(3, rel=0.1)
    assert temperature(truth.astype(np.float32), labels) == pytest.approx(1, rel=0.1)


def test_a_temperature_is_sane_on_odd_samples() -> None:
    labels = np.zeros(30, np.int64)
    assert temperature(np.full((30, 3), 7, np.float32), labels) == pytest.approx(1, abs=0.01)
    right = np.tile(np.array([4, 0, 0], np.float32), (30, 1))
    assert 0.1 < temperature(right, labels) < 1, "all of few are right: surer, but not without end"
    holes = right.copy()
    holes[::2] = np.nan
    assert temperature(holes, labels) == pytest.approx(temperature(right[::2], labels[::2]), rel=0.01)
    assert temperature(np.full((3, 2), np.nan, np.float32), labels[:3]) == pytest.approx(1, abs=0.01)


def test_confidences_are_those_of_the_devices_gate() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    logits[3] = np.nan
    first, second = confidences("margin", [logits, logits], [1.0, 2.0])
    assert first.dtype == np.float64 and first[3] == 0
    assert np.array_equal(second, gate("margin", logits, 2.0)[1])


def passage() -> Passage:
    early = np.array([[2, 0], [2, 0], [0, 2], [0, 2]], np.float32)
    final = np.array([[2, 0], [0, 2], [0, 2], [2, 0]], np.float32)
    return Passage((early, final), (np.array([10, 20, 30, 50]),))


def test_what_to_expect_is_counted_over_the_exits_that_answer() -> None:
    wanted, y = np.array([0, 1, 1, 0]), np.array([0, 1, 0, 0])
    found = expected(passage(), np.array([0, 1, 0, 1]), wanted, y)
    assert found["agreement"] == 1.0 and found["exit_share"] == [0.5, 0.5]
    assert found["crossing_bytes"] == [35.0]
    assert (found["accuracy"], found["full_model_accuracy"], found["exit_accuracy"]) == (0.75, 0.75, [0.25, 0.75])
    interval = found["accuracy_interval"]
    assert isinstance(interval, list) and interval == pytest.approx([0.1941, 0.9937], abs=1e-4)
    assert found["agreement_interval"] == pytest.approx([0.025 ** (1 / 4), 1.0])
    unlabelled = expected(passage(), np.zeros(4, np.int64), wanted, None)
    assert "accuracy" not in unlabelled and unlabelled["crossing_bytes"] == [27.5], "nobody crosses: were they to"


def test_bytes_count_for_those_that_no_exit_before_the_cut_answered() -> None:
    """A cut may have no exit of its own before it."""
    both = Passage(passage().logits, (np.array([1, 1, 1, 5]), np.array([10, 20, 30, 50])))
    found = expected(both, np.array([0, 1, 0, 1]), np.zeros(4, np.int64), None, passed=[0, 1])
    assert found["crossing_bytes"] == [2.0, 35.0]


def test_reliability_compares_confidence_with_what_is_right() -> None:
    found = reliability(np.array([0.0, 0.95, 0.95, 1.0]), np.array([False, True, False, True]))
    assert [one["count"] for one in found["bins"]] == [1, 3]
    assert found["bins"][1]["confidence"] == pytest.approx(2.9 / 3)
    assert found["ece"] == pytest.approx((0 + 3 * abs(2.9 / 3 - 2 / 3)) / 4)
    random = np.random.default_rng(0)
    sure = random.random(20_000)
    assert reliability(sure, random.random(20_000) < sure)["ece"] < 0.02
    assert reliability(np.zeros(0), np.zeros(0, np.bool_)) == {"bins": [], "ece": 0.0}


def test_a_sweep_goes_from_the_strictest_threshold_to_all() -> None:
    sure = np.array([0.9, 0.8, 0.8, 0.1, 0.0])
    labels, wanted = np.array([0, 0, 0, 0, 0]), np.array([0, 0, 1, 1, 1])
    found = sweep(sure, labels, wanted, None)
    assert [one["threshold"] for one in found] == [0.9, 0.8, 0.1]
    assert [one["share"] for one in found] == pytest.approx([0.2, 0.6, 0.8])
    assert [one["agreement"] for one in found] == pytest.approx([1, 2 / 3, 0.5])
    assert all(one["accuracy"] is None for one in found)
    assert [one["accuracy"] for one in sweep(sure, labels, wanted, wanted)][1] == pytest.approx(2 / 3)
    many = sweep(np.random.default_rng(0).random(5000), np.zeros(5000), np.zeros(5000), None)
    shares = [one["share"] for one in many]
    assert 30 <= len(many) <= 33 and shares == sorted(shares) and shares[-1] == 1
    assert sweep(np.zeros(5), labels, wanted, None) == []


def test_labels_are_those_that_a_device_answers_with() -> None:
    logits = np.array([[0, 1, 2], [0, 1, np.inf], [0, np.nan, 1]], np.float32)
    assert labels_of(logits).tolist() == gate("margin", logits, 2.0)[0].tolist()
    assert labels_of(logits)[0] == 2
