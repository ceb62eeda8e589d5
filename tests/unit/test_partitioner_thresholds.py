"""Which thresholds are tried: from none to all, cheapest first, in fast time, and sane on odd data."""

import itertools
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from partitioner.promise.thresholds import LEVELS, NEVER, exits_of, from_safe_start, greedy_path

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def samples(n: int, sharpness: tuple[float, ...], seed: int) -> tuple[list[Floats], list[Flags]]:
    """Exits whose answers harm with a probability that falls with their confidence; the final one harms nobody."""
    random = np.random.default_rng(seed)
    confidence = [random.beta(one, 1.0, n) for one in sharpness]
    harm = [random.random(n) < 0.6 * (1 - c) for c in confidence]
    return confidence, [*harm, np.zeros(n, np.bool_)]


def seen(
    level: tuple[float, ...], confidence: list[Floats], harm: list[Flags], cost: list[float]
) -> tuple[float, float]:
    n = len(harm[-1])
    exits = exits_of(confidence, level, n)
    return float(np.stack(harm)[exits, np.arange(n)].mean()), float(np.asarray(cost)[exits].mean())


def test_the_first_certain_exit_answers() -> None:
    confidence = [np.array([0.9, 0.2, 0.2]), np.array([0.9, 0.9, 0.2])]
    assert exits_of(confidence, [0.5, 0.5], 3).tolist() == [0, 1, 2]
    assert exits_of(confidence, [0.9, 0.2], 3).tolist() == [0, 1, 1]
    assert exits_of(confidence, [NEVER, NEVER], 3).tolist() == [2, 2, 2]
    assert exits_of([], [], 2).tolist() == [0, 0]
    assert exits_of([np.array([np.nan, 1.0])], [0.0], 2).tolist() == [1, 0]


def test_the_path_falls_from_never_to_all_and_lies_between_confidences() -> None:
    confidence, harm = samples(800, (3.0, 8.0), 0)
    cost = [1.0, 3.0, 10.0]
    path = greedy_path(confidence, harm, cost)
    assert path[0] == (NEVER, NEVER) and len(path) <= LEVELS
    for before, after in itertools.pairwise(path):
        assert all(b >= a for b, a in zip(before, after, strict=True)) and before != after
    for k in range(2):
        used = {level[k] for level in path} - {NEVER}
        assert not used & set(confidence[k].tolist()) and min(used) > 0
    figures = [seen(level, confidence, harm, cost) for level in path]
    costs = [one[1] for one in figures]
    assert costs == sorted(costs, reverse=True) and costs[-1] == 1.0
    # harm rises little by little: no jump, hardly ever a step back
    risks = np.array([one[0] for one in figures])
    assert np.diff(risks).max() < 0.012 and (np.maximum.accumulate(risks) - risks).max() < 0.004


def test_the_path_saves_nearly_what_the_best_thresholds_save() -> None:
    """Against every pair of thresholds in hindsight, on other samples than the path was made with."""
    cost = [1.0, 3.0, 10.0]
    path = greedy_path(*samples(400, (3.0, 8.0), 1), cost)
    confidence, harm = samples(20_000, (3.0, 8.0), 2)
    figures = np.array([seen(level, confidence, harm, cost) for level in path])
    grid = [NEVER, *np.quantile(np.concatenate(confidence), np.linspace(1, 0, 40)).tolist()]
    best = np.array([seen(level, confidence, harm, cost) for level in itertools.product(grid, grid)])
    for most in (0.02, 0.05):
        saved = 10 - figures[figures[:, 0] <= most, 1].min()
        assert saved >= 0.93 * (10 - best[best[:, 0] <= most, 1].min())


def test_an_exit_that_is_always_right_opens_first_and_one_that_saves_nothing_never() -> None:
    random = np.random.default_rng(0)
    n = 500
    confidence = [random.random(n) for _ in range(3)]
    harm = [random.random(n) < 0.4, np.zeros(n, np.bool_), np.zeros(n, np.bool_), np.zeros(n, np.bool_)]
    path = greedy_path(confidence, harm, [1.0, 2.0, 12.0, 10.0])
    assert all(level[2] == NEVER for level in path)
    first = next(i for i, level in enumerate(path) if level[0] < NEVER)
    assert path[first - 1][1] < 0.2, "the harmless exit is nearly open before the harmful one begins"


def test_ties_are_answered_together() -> None:
    """An int8 exit has few distinct confidences: a threshold lies halfway between two of them."""
    sure = np.repeat([0.2, 0.6, 1.0], [10, 20, 30])
    path = greedy_path([sure], [sure < 0.9, np.zeros(60, np.bool_)], [1.0, 5.0])
    assert [level[0] for level in path] == pytest.approx([NEVER, 0.8, 0.4, 0.1])


def test_confidences_that_a_device_would_not_tell_apart_are_one() -> None:
    sure = np.array([1.0, 1.0 - 2e-16, 1.0 - 1e-15, 0.5])
    path = greedy_path([sure], [np.array([False, True, False, False]), np.zeros(4, np.bool_)], [1.0, 5.0])
    assert [level[0] for level in path] == pytest.approx([NEVER, 0.75, 0.25])


def test_odd_samples_are_no_error() -> None:
    none = np.zeros(50, np.bool_)
    assert greedy_path([], [none], [1.0]) == [()]
    equal = greedy_path([np.full(50, 0.1)], [none, none], [1.0, 2.0])
    assert equal == [(NEVER,), (0.05,)]
    silent = greedy_path([np.full(50, np.nan), np.zeros(50)], [none, none, none], [1.0, 2.0, 3.0])
    assert silent == [(NEVER, NEVER)]
    all_harm = greedy_path([np.linspace(0, 1, 50)], [~none, none], [1.0, 2.0])
    assert all_harm[0] == (NEVER,) and len(all_harm) > 10
    assert greedy_path([np.zeros(0)], [np.zeros(0, np.bool_)] * 2, [1.0, 2.0]) == [(NEVER,)]


def test_a_lossy_codec_moves_the_start_to_where_few_samples_cross() -> None:
    random = np.random.default_rng(0)
    n = 600
    confidence = [random.random(n)]
    lossy = random.random(n) < 0.03
    harm = [np.zeros(n, np.bool_), lossy]
    path = greedy_path(confidence, harm, [1.0, 5.0])
    moved = from_safe_start(path, confidence, harm, 0.02)
    assert len(moved) < len(path) and moved == path[-len(moved) :]
    assert seen(moved[0], confidence, harm, [1.0, 5.0])[0] == 0
    assert from_safe_start(path, confidence, harm, 0.2) == path


def test_three_exits_and_5000_samples_take_less_than_a_second() -> None:
    confidence, harm = samples(5000, (3.0, 5.0, 8.0), 0)
    took = []
    for _ in range(3):
        begun = time.process_time()
        greedy_path(confidence, harm, [1.0, 2.0, 4.0, 10.0])
        took.append(time.process_time() - begun)
    assert min(took) < 1.0
