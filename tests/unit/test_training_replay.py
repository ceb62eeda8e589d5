"""What learning on is made of, without a model: the buffer, drift, what is held back, the contest, the history."""

import numpy as np
import pytest

from cloud.training.contest import Contest
from cloud.training.drift import Drift
from cloud.training.held import CERTIFY, JUDGE, TRAIN, Certifying, Rule
from cloud.training.prequential import Prequential
from cloud.training.replay import Buffer
from sluice.wire.slices import parse_slice
from sluice.wire.thinning import thin

PLACE = ("t", 0)


def filled(labels: np.ndarray, size: int, *, balanced: bool) -> Buffer:
    buffer = Buffer(size, (2,), np.float32, 3, balanced=balanced)
    random = np.random.default_rng(0)
    x = np.arange(len(labels), dtype=np.float32)[:, None].repeat(2, axis=1)
    for at in range(0, len(labels), 7):
        these = slice(at, at + 7)
        buffer.add(x[these], labels[these], np.arange(len(labels))[these], random)
    return buffer


def test_a_reservoir_is_a_fair_sample_of_all_that_came() -> None:
    labels = np.random.default_rng(1).choice(3, 5000, p=[0.9, 0.08, 0.02])
    born = np.concatenate([filled(labels, 300, balanced=False).arrays()["born"]])
    assert len(born) == len(set(born.tolist())) == 300
    assert abs(born.mean() / 5000 - 0.5) < 0.1, "old ones stay as likely as new ones"


def test_a_balanced_buffer_keeps_what_is_rare() -> None:
    labels = np.random.default_rng(1).choice(3, 5000, p=[0.9, 0.08, 0.02])
    buffer = filled(labels, 240, balanced=True)
    arrays = buffer.arrays()
    counts = np.bincount(arrays["y"])
    assert counts.sum() == 240 and counts.min() >= 75
    np.testing.assert_array_equal(labels[arrays["born"]], arrays["y"])
    np.testing.assert_array_equal(arrays["x"][:, 0], arrays["born"])


@pytest.mark.parametrize("balanced", [True, False])
def test_a_buffer_goes_on_from_its_checkpoint(balanced: bool) -> None:
    labels = np.random.default_rng(2).integers(0, 3, 500)
    buffer = filled(labels, 50, balanced=balanced)
    other = Buffer(50, (2,), np.float32, 3, balanced=balanced)
    other.restore({name: value.copy() for name, value in buffer.arrays().items()})
    for one in (buffer, other):
        assert one.draw(1000, np.random.default_rng(3))[0].shape == (50, 2), "each once"
    np.testing.assert_array_equal(other.arrays()["born"], buffer.arrays()["born"])
    other.add(np.ones((9, 2), np.float32), np.arange(9) % 3, np.arange(9) + 500, np.random.default_rng(4))
    assert other.count == 50


def test_a_buffer_forgets_what_was_before_a_change() -> None:
    buffer = filled(np.arange(400) % 3, 100, balanced=True)
    buffer.forget(350)
    assert 0 < buffer.count < 100 and buffer.arrays()["born"].min() >= 350
    assert buffer.arrays()["seen"].sum() == buffer.count
    buffer.forget(10_000)
    x, y = buffer.draw(5, np.random.default_rng(0))
    assert x.shape == (0, 2) and y.shape == (0,)


def test_a_buffer_that_would_be_too_large_is_smaller() -> None:
    assert Buffer(1000, (1000, 1000), np.float32, 2, balanced=True).size == 64
    nothing = Buffer(0, (2,), np.float32, 3, balanced=True)
    nothing.add(np.ones((2, 2), np.float32), np.array([0, 1]), np.array([0, 1]), np.random.default_rng(0))
    assert nothing.count == 0


def errors(share: float, n: int, seed: int) -> list[int]:
    return [int(one) for one in np.random.default_rng(seed).random(n) < share]


def test_a_rise_of_the_error_is_a_drift_and_a_fall_is_none() -> None:
    drift = Drift(0.002)
    assert drift.take(errors(0.3, 2000, 0)) is None
    assert drift.take(errors(0.05, 2000, 1)) is None, "it learns"
    change = drift.take(errors(0.6, 500, 2))
    assert change is not None and change.since > change.before + 0.05
    assert change.width <= 700, "what was before the change is left out"
    assert drift.late > 0.4, "how bad it is by now"
    assert len(drift.errors) <= 700


def test_without_a_change_there_is_no_drift() -> None:
    assert [Drift(0.002).take(errors(0.2, 3000, seed)) for seed in range(20)].count(None) >= 19


def test_drift_goes_on_from_what_a_checkpoint_kept() -> None:
    drift = Drift(0.002)
    drift.take(errors(0.05, 3000, 0))
    again = Drift(0.002, list(drift.errors))
    assert again.take(errors(0.5, 400, 1)) is not None


def test_what_is_held_back_hangs_on_the_offset_alone() -> None:
    rule = Rule(32, 0.4)
    offsets = np.arange(32_000)
    parts = rule.parts([PLACE], np.zeros(32_000, np.int64), offsets)
    shares = np.bincount(parts) / 32_000
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.05)
    blocks = parts.reshape(-1, 32)
    assert (blocks == blocks[:, :1]).all(), "whole blocks"
    some = np.array([5, 31_000, 40, 7])
    np.testing.assert_array_equal(Rule(32, 0.4).parts([PLACE], np.zeros(4, np.int64), some), parts[some])
    other = rule.parts([("t", 1)], np.zeros(32_000, np.int64), offsets)
    assert (other != parts).mean() > 0.3, "another topic partition has other blocks"
    less = Rule(32, 0.2).parts([PLACE], np.zeros(32_000, np.int64), offsets)
    assert not ((less != TRAIN) & (parts == TRAIN)).any(), "who holds back less holds back of the same"


def test_what_a_model_knows_is_not_held_back() -> None:
    parts = Rule(10, 0.9, ["t:0:100:500"]).parts([PLACE], np.zeros(1000, np.int64), np.arange(1000))
    assert (parts[100:600] == TRAIN).all() and (parts[600:] != TRAIN).mean() > 0.7
    assert (Rule(10, 0.0).parts([PLACE], np.zeros(9, np.int64), np.arange(9)) == TRAIN).all()
    assert {JUDGE, CERTIFY} <= set(parts.tolist())


def test_certifying_records_are_told_as_slices() -> None:
    certifying = Certifying(100)
    offsets = np.array([10, 11, 12, 20, 21, 5, 6])
    where = np.array([0, 0, 0, 0, 0, 1, 1])
    certifying.add([PLACE, ("u", 3)], where, offsets, np.zeros(7, np.int64), np.arange(7))
    certifying.add([("u", 3)], np.zeros(1, np.int64), np.array([7]), np.ones(1, np.int64), np.array([7]))
    assert sorted(certifying.slices()) == ["t:0:10:3", "t:0:20:2", "u:3:5:3"]
    other = Certifying(100)
    other.restore(*certifying.state())
    other.forget(3)
    assert sorted(other.slices()) == ["t:0:20:2", "u:3:5:3"]
    assert len(certifying) == 8


def test_only_the_newest_certify() -> None:
    certifying = Certifying(10)
    for at in range(5):
        offsets = np.arange(4) + 4 * at
        certifying.add([PLACE], np.zeros(4, np.int64), offsets, np.zeros(4, np.int64), offsets)
    assert [parse_slice(text).offset for text in certifying.slices()] == [10]


def test_a_partitioner_needs_enough_of_every_class() -> None:
    def lacking(labels: list[int], seen: list[int]) -> str | None:
        certifying, n = Certifying(1000), len(labels)
        certifying.add([PLACE], np.zeros(n, np.int64), np.arange(n), np.array(labels, np.int64), np.arange(n))
        found: str | None = certifying.lacks(20, np.array(seen))
        return found

    assert lacking([0] * 10, [10, 0, 0]) == "10 of 20 certifying records"
    assert lacking([0] * 30, [100, 0, 0]) == "certifying records of a second class"
    assert lacking([0] * 30 + [1], [100, 30, 0]) == "1 of 5 certifying records of class 1"
    assert lacking([0] * 30 + [1] * 5, [100, 30, 0]) is None
    assert lacking([0] * 30 + [1] * 5, [400, 30, 3]) is None, "what is very rare may be missing"


def test_one_that_is_better_wins_and_an_equal_one_does_not() -> None:
    """Looked at after every record: of 200 contests between equals at most a share of 5 % may ever be won."""
    random = np.random.default_rng(0)
    won = 0
    for _ in range(200):
        contest = Contest()
        contest.take(*(random.random((2, 1500)) < 0.8))
        won += contest.is_won(0.95)
    assert won <= 14, "with p = 0.05 more than 14 of 200 come once in ten years of tests"
    better = Contest()
    better.take(random.random(600) < 0.9, random.random(600) < 0.75)
    assert better.is_won(0.95) and better.judged == 600
    again = Contest(np.array(better.won), better.judged)
    assert again.wealth == better.wealth


def test_records_that_both_get_right_say_nothing() -> None:
    contest = Contest()
    contest.take(np.ones(1000, bool), np.ones(1000, bool))
    assert (contest.wealth, contest.judged) == (1.0, 1000)


def test_one_that_becomes_better_late_is_found_all_the_same() -> None:
    random = np.random.default_rng(5)
    contest = Contest()
    contest.take(random.random(5000) < 0.7, random.random(5000) < 0.8)
    assert not contest.is_won(0.95)
    contest.take(random.random(1500) < 0.9, random.random(1500) < 0.6)
    assert contest.is_won(0.95)


def test_accuracy_of_late_and_in_whole() -> None:
    found = Prequential(["early", "final"], 10)
    assert found.metrics() == {}
    right = np.zeros((30, 2), bool)
    right[20:, 1] = True
    for at in range(0, 30, 6):
        found.take(right[at : at + 6], np.ones((6, 2)), np.arange(6) % 3)
    assert found.full and found.accuracy == 1.0
    shown = found.metrics()
    assert shown["final"] == {"whole_accuracy": round(1 / 3, 6), "whole_loss": 1.0, "accuracy": 1.0, "loss": 1.0}
    assert shown["early"]["accuracy"] == 0.0
    other = Prequential(["early", "final"], 10)
    other.restore(found.arrays())
    assert other.metrics() == shown and other.seen(3).sum() == 10
    other.forget()
    assert other.accuracy == 0.0 and "accuracy" not in other.metrics()["final"]


def test_a_history_stays_bounded_and_keeps_its_first_and_its_last() -> None:
    history: list[int] = []
    for number in range(100_000):
        history.append(number)
        thin(history, 100)
    assert len(history) <= 100 and history == sorted(history)
    assert history[0] == 0 and history[-50:] == list(range(99_950, 100_000)), "the newest are all there"
