"""The certificate's test: seldom wrong however often one looks, and quick to see what is clear. All seeds are fixed."""

import math

import numpy as np
import pytest

from cloud.watch.betting import Flags, Floats, audits_needed, judge, log_less, log_more

EPSILON, DELTA = 0.01, 0.05
BAR = math.log(1 / DELTA)
RUNS = 400
NONE = np.zeros(0)


def at_most(level: float) -> float:
    """The share of false alarms that 400 runs may show if their true share is `level`: four standard errors more."""
    return level + 4 * math.sqrt(level * (1 - level) / RUNS)


def audited(dice: np.random.Generator, samples: int, early: float, wrong: float, share: float) -> tuple[Flags, Floats]:
    """Samples one by one: answered early or not, audited or not, harmed or not; as the test sees them."""
    is_early = dice.random(samples) < early
    places = np.flatnonzero(is_early & (dice.random(samples) < share))
    harmed = dice.random(len(places)) < wrong
    passed_before = np.cumsum(~is_early)[places]
    return harmed, np.diff(passed_before, prepend=0).astype(float)


@pytest.mark.parametrize("early", [1.0, 0.6, 0.2])
def test_looked_at_after_every_audit_it_is_seldom_wrong(early: float) -> None:
    """Just at the bound, where it is hardest: 400 runs of some 3000 audits each."""
    dice = np.random.default_rng(5)
    alarms = praise = 0
    for _ in range(RUNS):
        harmed, passed = audited(dice, int(30_000 / early), early, EPSILON / early, 0.1)
        alarms += bool(log_more(harmed, passed, 0.1, EPSILON).max() >= BAR)
        praise += bool(log_less(harmed, passed, np.zeros(len(harmed)), 0.1, 0.1, EPSILON).max() >= BAR)
    assert alarms / RUNS <= DELTA
    assert praise / RUNS <= at_most(DELTA)


def test_also_if_only_hours_are_known() -> None:
    """A hundred audits an hour, and what passed in that hour before the first of them: bits come in only there."""
    dice = np.random.default_rng(9)
    alarms = 0
    for _ in range(RUNS):
        harmed, passed = audited(dice, 40_000, 0.5, 2 * EPSILON, 0.1)
        n = len(harmed) // 100 * 100
        harmed, hourly = harmed[:n], np.zeros(n)
        hourly[::100] = passed[:n].reshape(-1, 100).sum(axis=1)
        starts = np.arange(n) % 100 == 0
        alarms += bool(log_more(harmed, hourly, 0.1, EPSILON, starts).max() >= BAR)
    assert alarms / RUNS <= DELTA


def test_also_if_the_share_of_early_answers_wanders() -> None:
    """Harm stays at the bound, sample by sample, while early answers go from nearly all to few and back."""
    dice = np.random.default_rng(6)
    alarms = 0
    for _ in range(RUNS):
        pieces = [audited(dice, 10_000, early, EPSILON / early, 0.1) for early in (0.9, 0.1, 0.9)]
        harmed, passed = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        alarms += bool(log_more(harmed, passed, 0.1, EPSILON).max() >= BAR)
    assert alarms / RUNS <= DELTA


@pytest.mark.parametrize(
    ("wrong", "within"),
    [(0.03, 1000), (0.05, 400), (0.1, 120), (0.3, 30)],  # for a bound of 1 %; in 95 % of the runs
)
def test_a_clear_violation_is_found_soon(wrong: float, within: int) -> None:
    dice = np.random.default_rng(7)
    found = 0
    for _ in range(RUNS):
        harmed = dice.random(within) < wrong
        found += bool(log_more(harmed, np.zeros(within), 0.01, EPSILON).max() >= BAR)
    assert found / RUNS >= 0.95


def test_a_violation_that_begins_late_is_found_as_well() -> None:
    """After 20 000 audits that kept to the bound, 5 % harmed: within 1000 audits in 95 % of the runs."""
    dice = np.random.default_rng(8)
    found = early = 0
    for _ in range(100):
        harmed = np.concatenate([dice.random(20_000) < 0.002, dice.random(1000) < 0.05])
        capital = log_more(harmed, np.zeros(len(harmed)), 0.01, EPSILON)
        early += bool(capital[:20_000].max() >= BAR)
        found += bool(capital[20_000:].max() >= BAR)
    assert early == 0
    assert found >= 95


def test_capital_is_what_betting_by_hand_gives() -> None:
    """The recursion written out: a bit comes into play before each audit, then what is in play is bet."""
    harmed, passed = np.array([False, True, False, True]), np.array([0.0, 2.0, 0.0, 1.0])
    parts, share = (0.01, 0.03, 0.1, 0.2, 0.4, 0.8), 0.1
    kept, in_play, expected = 1.0, [0.0] * 6, []
    for t in range(4):
        back = 0.5 / (1 + math.log(1 + t))
        in_play = [
            (has + (kept - back) / 6) * (1 - share * part) ** passed[t] * (1 + part / EPSILON * (harmed[t] - EPSILON))
            for has, part in zip(in_play, parts, strict=True)
        ]
        kept = back
        expected.append(kept + sum(in_play))
    assert np.exp(log_more(harmed, passed, share, EPSILON)) == pytest.approx(expected)


def test_unseen_answers_count_as_harm_for_the_one_who_praises() -> None:
    clean = np.zeros(2000, dtype=bool)
    praised = log_less(clean, np.zeros(2000), np.zeros(2000), 0.01, 0.01, EPSILON)
    doubted = log_less(clean, np.zeros(2000), np.full(2000, 5.0), 0.01, 0.01, EPSILON)  # 5 in 105 answers nobody audits
    assert praised[-1] > BAR > doubted.max()


def test_audits_needed_are_just_enough() -> None:
    needed = audits_needed(EPSILON, DELTA)
    assert 299 <= needed <= 450  # 299: what any test of so many clean samples takes
    for n, enough in ((needed, True), (needed - 1, False)):
        capital = log_less(np.zeros(n, dtype=bool), np.zeros(n), np.zeros(n), 0.01, 0.01, EPSILON)
        assert bool(capital[-1] >= BAR) is enough


def test_a_verdict_once_reached_stays() -> None:
    more = np.array([0.0, BAR + 1, -5.0])
    verdict = judge(more, np.array([-1.0, -1.0, -1.0]), DELTA)
    assert (verdict.more_at, verdict.less_at) == (1, None)
    assert [verdict.wealth, verdict.wealth_most] == pytest.approx([math.exp(-5), math.e / DELTA])
    assert judge(NONE, NONE, DELTA).more_at is None
    assert judge(np.array([5000.0]), np.array([0.0]), DELTA).wealth == pytest.approx(1e300)
