"""The certificate, by itself: no TensorFlow, synthetic data, the promise checked by resampling."""

import numpy as np
import pytest
from numpy.typing import NDArray

from partitioner.certify import Chosen, candidates, choose, first_exit, p_value, samples_needed

CLASSES = 5
POOL = 20_000
Pool = tuple[list[NDArray[np.float32]], list[NDArray[np.int64]], NDArray[np.int64]]


def pool(seed: int) -> Pool:
    """Two early exits whose answers are right with a probability that rises with their confidence; the final exit
    agrees with the full model in all but 0.2 % (the codec)."""
    random = np.random.default_rng(seed)
    wanted = random.integers(0, CLASSES, POOL)
    confidence, labels = [], []
    for sharpness in (3.0, 8.0):
        sure = random.beta(sharpness, 1.0, POOL).astype(np.float32)
        right = random.random(POOL) < 1 - 0.6 * (1 - sure.astype(np.float64))
        confidence.append(sure)
        labels.append(np.where(right, wanted, (wanted + 1) % CLASSES))
    labels.append(np.where(random.random(POOL) < 0.998, wanted, (wanted + 1) % CLASSES))
    return confidence, labels, wanted


def disagreement(data: Pool, threshold: float) -> float:
    confidence, labels, wanted = data
    exits = first_exit("max_prob", confidence, threshold, len(wanted))
    return float((np.stack(labels)[exits, np.arange(len(wanted))] != wanted).mean())


def draw(data: Pool, n: int, random: np.random.Generator) -> Pool:
    rows = random.integers(0, POOL, n)
    confidence, labels, wanted = data
    return [c[rows] for c in confidence], [one[rows] for one in labels], wanted[rows]


@pytest.mark.parametrize(("epsilon", "delta", "n"), [(0.02, 0.05, 400), (0.05, 0.1, 150), (0.02, 0.2, 1000)])
def test_the_promise_holds_in_resampling(epsilon: float, delta: float, n: int) -> None:
    """Of many calibrations, at most a share δ may choose a threshold whose true risk is above ε."""
    data = pool(1)
    random = np.random.default_rng(2)
    rounds, violated, early = 400, 0, 0
    risk: dict[float, float] = {}
    for _ in range(rounds):
        levels = candidates(draw(data, 100, random)[0])
        confidence, labels, wanted = draw(data, n, random)
        chosen = choose("max_prob", levels, confidence, labels, wanted, epsilon, delta)
        if chosen.threshold is None:
            continue
        true = risk.setdefault(chosen.threshold, disagreement(data, chosen.threshold))
        violated += true > epsilon
        early += chosen.threshold <= 1
    # three standard deviations of the count at share delta
    assert violated <= rounds * delta + 3 * np.sqrt(rounds * delta * (1 - delta))
    assert early > rounds / 2, "the method must also be of use"


def test_too_few_samples_say_how_many_are_needed() -> None:
    assert [samples_needed(e, 0.05) for e in (0.005, 0.01, 0.02)] == [598, 299, 149]
    confidence, labels, wanted = draw(pool(3), 148, np.random.default_rng(0))
    chosen = choose("max_prob", [2.0, 0.9], confidence, labels, wanted, 0.02, 0.05)
    assert chosen.threshold is None and "149 are needed" in chosen.reason
    agreed = [wanted] * 3
    rows = np.arange(149) % 148
    at_last = choose(
        "max_prob", [2.0], [c[rows] for c in confidence], [a[rows] for a in agreed], wanted[rows], 0.02, 0.05
    )
    assert at_last.threshold == 2.0


def test_a_codec_that_loses_too_much_certifies_nothing() -> None:
    confidence, labels, wanted = draw(pool(3), 500, np.random.default_rng(0))
    labels[-1] = (wanted + 1) % CLASSES
    chosen = choose("max_prob", candidates(confidence), confidence, labels, wanted, 0.02, 0.05)
    assert chosen.threshold is None and "codec loses too much" in chosen.reason


def test_exits_that_are_never_right_stay_closed_and_it_is_said() -> None:
    confidence, _, wanted = draw(pool(3), 500, np.random.default_rng(0))
    wrong = (wanted + 1) % CLASSES
    levels = [2.0, *np.linspace(0.9, 0.1, 9)]
    chosen = choose("max_prob", levels, confidence, [wrong, wrong, wanted], wanted, 0.02, 0.05)
    assert (chosen.threshold, chosen.violations) == (2.0, 0)
    assert "no early exit can be certified" in chosen.reason


def test_a_lucky_level_behind_a_bad_one_is_not_taken() -> None:
    """Testing stops at the first level that fails, whatever comes behind it: that is why no correction is needed."""
    n = 400
    sure = np.full(n, 0.5, np.float32)
    sure[:100] = 0.9
    wanted = np.zeros(n, np.int64)
    first = np.zeros(n, np.int64)
    first[:40] = 1
    second = np.full(n, 0.7, np.float32)
    result = choose("max_prob", [2.0, 0.8, 0.6], [sure, second], [first, wanted, wanted], wanted, 0.02, 0.05)
    assert result.threshold == 2.0


def test_p_value_is_the_exact_binomial() -> None:
    assert p_value(0, 149, 0.02) == pytest.approx(0.98**149)
    assert p_value(1, 10, 0.1) == pytest.approx(0.9**10 + 10 * 0.1 * 0.9**9)


def test_the_first_certain_exit_answers() -> None:
    confidence = [np.array([0.9, 0.2, 0.2], np.float32), np.array([0.9, 0.9, 0.2], np.float32)]
    assert first_exit("max_prob", confidence, 0.5, 3).tolist() == [0, 1, 2]
    assert first_exit("max_prob", confidence, 2.0, 3).tolist() == [2, 2, 2]
    assert first_exit("max_prob", [], 0.5, 2).tolist() == [0, 0]


def test_candidates_begin_with_no_early_exit_and_fall() -> None:
    levels = candidates([np.array([0.1, 0.7], np.float32), np.array([0.7, 0.3], np.float32)])
    assert levels == [2.0, *sorted({float(np.float32(v)) for v in (0.1, 0.7, 0.3)}, reverse=True)]
    assert candidates([]) == [2.0]
    assert isinstance(
        choose("max_prob", [2.0], [], [np.zeros(200, np.int64)], np.zeros(200, np.int64), 0.02, 0.05), Chosen
    )
