"""The certificate, by itself: no TensorFlow, synthetic data, the promise checked by resampling."""

import numpy as np
import pytest
from numpy.typing import NDArray

from partitioner.promise.certify import (
    BETTING,
    BINOMIAL,
    Certified,
    as_certificate,
    certify,
    given_thresholds,
    group_p_value,
    groups_needed,
    harm_of,
    p_value,
    samples_needed,
)
from partitioner.promise.parts import FEW_GROUPS, split_parts
from partitioner.promise.thresholds import NEVER, exits_of, from_safe_start, greedy_path
from sluice.wire.errors import PermanentError

CLASSES = 5
POOL = 20_000
COST = [1.0, 3.0, 10.0]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Pool = tuple[list[Floats], list[Flags]]
SHUT = (NEVER, NEVER)


def pool(seed: int, n: int = POOL) -> Pool:
    """Two early exits whose answers are right with a probability that rises with their confidence; the final exit
    agrees with the full model in all but 0.2 % (the codec)."""
    random = np.random.default_rng(seed)
    wanted = random.integers(0, CLASSES, n)
    confidence, labels = [], []
    for sharpness in (3.0, 8.0):
        sure = random.beta(sharpness, 1.0, n)
        right = random.random(n) < 1 - 0.6 * (1 - sure)
        confidence.append(sure)
        labels.append(np.where(right, wanted, (wanted + 1) % CLASSES))
    labels.append(np.where(random.random(n) < 0.998, wanted, (wanted + 1) % CLASSES))
    return confidence, harm_of("agreement", labels, wanted, None)


def take(data: Pool, rows: NDArray[np.int64]) -> Pool:
    confidence, harm = data
    return [c[rows] for c in confidence], [one[rows] for one in harm]


def risk(data: Pool, thresholds: tuple[float, ...]) -> float:
    confidence, harm = data
    n = len(harm[-1])
    return float(np.stack(harm)[exits_of(confidence, thresholds, n), np.arange(n)].mean())


@pytest.mark.parametrize(("epsilon", "delta", "n"), [(0.02, 0.05, 500), (0.05, 0.1, 180), (0.02, 0.2, 1000)])
def test_the_promise_holds_in_resampling(epsilon: float, delta: float, n: int) -> None:
    """Of many calibrations, path and all, at most a share δ may choose thresholds whose true risk is above ε."""
    data = pool(1)
    random = np.random.default_rng(2)
    rounds, violated, early = 200, 0, 0
    for _ in range(rounds):
        drawn = random.integers(0, POOL, n)
        parts = split_parts(n, None, int(random.integers(1 << 30)), train=False)
        path = greedy_path(*take(data, drawn[parts.plan]), COST)
        found = certify(path, *take(data, drawn[parts.certify]), epsilon=epsilon, delta=delta)
        if found.thresholds is None:
            continue
        violated += risk(data, found.thresholds) > epsilon
        early += min(found.thresholds) <= 1
    # three standard deviations of the count at share delta
    assert violated <= rounds * delta + 3 * np.sqrt(rounds * delta * (1 - delta))
    assert early > rounds / 2, "the method must also be of use"


def test_too_few_samples_say_how_many_are_needed() -> None:
    assert [samples_needed(e, 0.05) for e in (0.005, 0.01, 0.02)] == [598, 299, 149]
    confidence, harm = take(pool(3), np.arange(148))
    found = certify([SHUT, (0.9, 0.9)], confidence, harm, epsilon=0.02, delta=0.05, total=200)
    assert found.thresholds is None and not found.method
    assert found.reason == "148 samples cannot certify 0.02 at 0.95: 149 are needed at least, of about 202 in all"
    none = np.zeros(149, np.bool_)
    enough = certify([(NEVER,)], [np.ones(149)], [none, none], epsilon=0.02, delta=0.05)
    assert enough.thresholds == (NEVER,) and enough.method == BINOMIAL and not enough.reason
    nobody = certify([(NEVER,)], [np.zeros(0)], [np.zeros(0, np.bool_)] * 2, epsilon=0.02, delta=0.05, total=3)
    assert nobody.thresholds is None and "149 are needed" in nobody.reason


def test_a_codec_that_loses_too_much_certifies_nothing() -> None:
    confidence, harm = take(pool(3), np.arange(500))
    harm[-1][:] = True
    found = certify([SHUT, (0.9, 0.9)], confidence, harm, epsilon=0.02, delta=0.05)
    assert found.thresholds is None and "500 of 500 samples" in found.reason
    assert "too many for 0.02" in found.reason and found.at_the_start().thresholds is None


def test_where_the_codec_loses_only_what_crosses_the_exits_are_certified_without_no_exit() -> None:
    random = np.random.default_rng(0)
    n = 3000
    confidence = [random.random(n)]
    harm = [np.zeros(n, np.bool_), random.random(n) < 0.03]
    plan, rest = np.arange(600), np.arange(600, n)
    path = greedy_path(*take((confidence, harm), plan), [1.0, 5.0])
    tested = take((confidence, harm), rest)
    assert certify(path, *tested, epsilon=0.02, delta=0.05).thresholds is None
    moved = from_safe_start(path, *take((confidence, harm), plan), 0.02)
    found = certify(moved, *tested, epsilon=0.02, delta=0.05)
    assert found.thresholds is not None and found.thresholds[0] < 0.5
    closed = found.at_the_start()
    assert closed.thresholds is None and "was not tested" in closed.reason
    assert as_certificate(closed, "agreement", 0.02, 0.95, 1) is None
    hopeless = certify(moved, tested[0], [tested[1][1]] * 2, epsilon=0.02, delta=0.05)
    assert hopeless.thresholds is None and "at the least harmful thresholds" in hopeless.reason


def test_exits_that_are_never_right_stay_closed_and_it_is_said() -> None:
    confidence, _ = take(pool(3), np.arange(500))
    wrong = np.ones(500, np.bool_)
    path = [SHUT, *((t, t) for t in np.linspace(0.9, 0.1, 9).tolist())]
    found = certify(path, confidence, [wrong, wrong, ~wrong], epsilon=0.02, delta=0.05)
    assert (found.thresholds, found.violations) == (SHUT, 0)
    assert "no early exit can be certified" in found.reason


def test_a_lucky_level_behind_a_bad_one_is_not_taken() -> None:
    """Testing stops at the first level that fails, whatever comes behind it: that is why no correction is needed."""
    n = 400
    sure = np.full(n, 0.5)
    sure[:100] = 0.9
    harm = np.zeros(n, np.bool_)
    harm[:40] = True
    none = np.zeros(n, np.bool_)
    path = [(2.0, 2.0), (0.8, 2.0), (2.0, 0.6)]
    found = certify(path, [sure, np.full(n, 0.7)], [harm, none, none], epsilon=0.02, delta=0.05)
    assert found.thresholds == (2.0, 2.0)


def test_no_exit_is_certified_along_with_what_was_reached() -> None:
    data = take(pool(3), np.arange(2000))
    path = [SHUT, (0.95, 0.95), (0.9, 0.9)]
    found = certify(path, *data, epsilon=0.05, delta=0.05)
    assert found.thresholds == (0.9, 0.9)
    closed = found.at_the_start()
    assert closed.thresholds == SHUT and closed.violations == data[1][-1].sum() < found.violations
    one = as_certificate(found, "agreement", 0.05, 0.95, 3)
    assert one is not None and (one.method, one.n, one.points, one.scope) == (BINOMIAL, 2000, 3, "samples")
    assert (one.epsilon, one.delta, one.violations, one.groups) == (0.05, 0.05, found.violations, None)


def test_without_early_exits_the_codec_alone_is_certified() -> None:
    found = certify([()], [], [np.zeros(200, np.bool_)], epsilon=0.02, delta=0.05)
    assert found.thresholds == () and found.method and not found.reason
    assert found.at_the_start().thresholds == ()


def test_given_thresholds_are_looked_at_and_not_certified() -> None:
    confidence, harm = take(pool(3), np.arange(500))
    found = given_thresholds([0.5, 0.5], confidence, harm)
    assert found.thresholds == (0.5, 0.5) and found.n == 500 and found.violations > 0
    assert "thresholds were given" in found.reason
    assert as_certificate(found, "agreement", 0.02, 0.95, 1) is None
    closed = found.at_the_start()
    assert closed.thresholds is None and as_certificate(closed, "agreement", 0.02, 0.95, 1) is None


def test_harm_is_disagreement_or_a_right_answer_lost() -> None:
    wanted, y = np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])
    early = np.array([0, 1, 0, 2])
    assert harm_of("agreement", [early, wanted], wanted, None)[0].tolist() == [False, True, True, True]
    assert harm_of("agreement", [early, wanted], wanted, None)[1].any() == False  # noqa: E712
    assert harm_of("accuracy", [early], wanted, y)[0].tolist() == [False, True, False, True]
    with pytest.raises(PermanentError, match="needs true labels"):
        harm_of("accuracy", [early], wanted, None)


def test_accuracy_lost_is_at_most_its_harm() -> None:
    random = np.random.default_rng(0)
    wanted, y, early = random.integers(0, 3, (3, 1000))
    lost = (wanted == y).mean() - (early == y).mean()
    assert harm_of("accuracy", [early], wanted, y)[0].mean() >= lost


def test_p_value_is_the_exact_binomial() -> None:
    assert p_value(0, 149, 0.02) == pytest.approx(0.98**149)
    assert p_value(1, 10, 0.1) == pytest.approx(0.9**10 + 10 * 0.1 * 0.9**9)


def test_how_many_groups_a_promise_for_new_ones_takes() -> None:
    assert [groups_needed(e, 0.05) for e in (0.01, 0.05)] == [307, 61]
    assert groups_needed(0.5, 0.5) == 20, "of few groups chance does not alone decide which certify"
    assert group_p_value(np.zeros(61), 0.05) <= 0.05 < group_p_value(np.zeros(60), 0.05)
    assert group_p_value(np.array([0.0] * 60 + [1.0]), 0.05) > 0.05, "ruins the largest bet, and is no error"
    assert group_p_value(np.ones(100), 0.05) == 1
    order = np.random.default_rng(0).permutation(np.linspace(0, 0.1, 100))
    assert group_p_value(order, 0.2) == pytest.approx(group_p_value(np.sort(order), 0.2))


def test_the_bound_over_groups_holds_at_its_null() -> None:
    """Groups whose mean risk is just ε: rejected in a share δ of the draws at most, be the risks even or extreme."""
    random = np.random.default_rng(0)
    for concentration in (0.2, 5.0, 500.0):
        risks = random.beta(0.1 * concentration, 0.9 * concentration, (2000, 80))
        rejected = np.mean([group_p_value(row, 0.1) <= 0.05 for row in risks])
        assert rejected <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


def grouped(groups: int, each: int, seed: int) -> tuple[list[Floats], list[Flags], NDArray[np.str_]]:
    """One exit; each group has a risk of its own at low confidence."""
    random = np.random.default_rng(seed)
    names = np.repeat([f"g{i:03}" for i in range(groups)], each)
    weight = np.repeat(random.beta(0.5, 2.0, groups), each)
    confidence = random.random(groups * each)
    harm = random.random(groups * each) < weight * (1 - confidence) ** 2
    return [confidence], [harm, np.zeros(groups * each, np.bool_)], names


def test_what_is_promised_for_new_groups_holds_for_them() -> None:
    path = [(NEVER,), *((t,) for t in np.linspace(0.99, 0.01, 99).tolist())]
    confidence, harm, _ = grouped(5000, 40, 99)
    pool_risk = {level: risk((confidence, harm), level) for level in path}
    violated = opened = 0
    for seed in range(200):
        drawn = grouped(60, 20, seed)
        found = certify(path, drawn[0], drawn[1], epsilon=0.06, delta=0.1, groups=drawn[2])
        assert found.thresholds is not None and (found.scope, found.groups, found.method) == ("groups", 60, BETTING)
        violated += pool_risk[found.thresholds] > 0.06
        opened += found.thresholds[0] < 0.9
    assert violated <= 200 * 0.1 + 3 * np.sqrt(200 * 0.1 * 0.9)
    assert opened > 100


def few_groups(promise: str) -> Certified:
    confidence, harm, names = grouped(9, 100, 0)
    path = [(NEVER,), (0.9,), (0.8,), (0.7,)]
    found: Certified = certify(path, confidence, harm, epsilon=0.05, delta=0.1, groups=names, promise=promise)
    return found


def test_few_groups_promise_nothing_for_new_ones_and_say_so() -> None:
    found = few_groups("auto")
    assert (found.scope, found.groups, found.method) == ("samples", 9, BINOMIAL) and found.thresholds != (NEVER,)
    assert "nothing is promised for new groups" in found.reason
    assert f"9 groups cannot certify 0.05 at 0.9 for new groups: {groups_needed(0.05, 0.1)} are needed" in found.reason
    assert found.spread is not None and sorted(found.spread) == [f"g{i:03}" for i in range(9)]
    assert sum(one.n for one in found.spread.values()) == 900
    assert sum(one.violations for one in found.spread.values()) == found.violations
    worst = max(found.spread, key=lambda name: found.spread[name].risk)
    assert f"{found.spread[worst].risk:.2%} are harmed, most in group '{worst}'" in found.reason
    certificate = as_certificate(found, "agreement", 0.05, 0.9, 1)
    assert certificate is not None and (certificate.scope, certificate.groups) == ("samples", 9)


def test_a_user_may_insist_on_groups_or_be_content_with_samples() -> None:
    insisted = few_groups("groups")
    assert insisted.thresholds is None and "are needed at least" in insisted.reason
    assert as_certificate(insisted, "agreement", 0.05, 0.9, 1) is None
    content = few_groups("samples")
    assert content.thresholds is not None and "nothing is promised for new groups" in content.reason
    confidence, harm, _ = grouped(9, 100, 0)
    with pytest.raises(PermanentError, match="needs groups"):
        certify([(NEVER,)], confidence, harm, epsilon=0.05, delta=0.1, promise="groups")


def test_groups_that_are_needed_are_found_at_once() -> None:
    assert [groups_needed(epsilon, 0.05) for epsilon in (0.01, 0.001, 0.00003)] == [307, 3084, 102_843]
    for epsilon, delta in ((0.01, 0.05), (0.1, 0.01), (0.03, 0.3)):
        many = groups_needed(epsilon, delta)
        assert group_p_value(np.zeros(many), epsilon) <= delta
        assert many == FEW_GROUPS or group_p_value(np.zeros(many - 1), epsilon) > delta
