"""Which thresholds to try, and in which order: from "no early exit" to "everything exits" on the cheapest way.

With one early exit the way is plain: its threshold falls. With several, the order in which they fall decides how much
is saved by the time that the promise is used up. `greedy_path` always lowers the threshold that buys the most saving
for the harm that it adds, on samples that certify nothing; what is promised of a level is `certify`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

NEVER = 2.0
"""A threshold that no confidence reaches."""
LEVELS = 256
"""Most levels of a path."""
STEPS = 128
"""Steps take a share of 1 / `STEPS` of all samples at least."""
TRUST = 0.5
"""How much what happened to a sample counts; the rest is what the model of harm says of its confidence."""
DIGITS = 12
"""Decimals of a confidence that tell: a device, which works it out one by one, may differ in the 15th."""
ODDS = 1e-9
"""Confidences this close to 0 or 1 are taken as that far off, for their logarithmic odds."""
NEWTON = 50
"""Most steps of Newton's method."""
TINY = 1e-6
"""A step that ends it."""
BELIEF = 1e-3
"""Weight of the belief that as many as not are harmed where confidence says nothing: hardly any."""

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Path = list[tuple[float, ...]]


def exits_of(confidence: Sequence[Floats], thresholds: Sequence[float], n: int) -> NDArray[np.int64]:
    """Which exit answers each of `n` samples: the first whose `confidence` (n,) is at least its threshold.

    One of each for every early exit; their number is that of the final exit. A confidence that is NaN never answers.
    """
    exits = np.full(n, len(confidence), np.int64)
    for k in reversed(range(len(confidence))):
        exits[confidence[k] >= thresholds[k]] = k
    return exits


def greedy_path(confidence: Sequence[Floats], harm: Sequence[Flags], cost: Sequence[float]) -> Path:
    """Levels of thresholds, one for each early exit, from all `NEVER` on lower and lower, at most `LEVELS`.

    `confidence`: (n,) float64 of each early exit; `harm`: (n,) whether its answer would harm, of each exit, the final
    one last; `cost`: of an answer at each exit, in any unit.

    Each step lowers one threshold as far as adds the least harm for what it saves: the steepest descent on the lower
    convex hull of harm over cost, so that each stop is near the best for some price of harm. Steps that add no harm
    come first; large steps are divided, so that harm rises little by little. Harm of few samples is noise: a sample
    counts half by what happened to it and half by what a logistic curve says of its confidence (Platt,
    "Probabilistic Outputs for Support Vector Machines", 1999). An exit that is no cheaper than what follows stays
    closed.

    Thresholds lie halfway between two observed confidences (samples of an int8 exit often tie), and above 0, so that a
    sample with confidence 0 (its logits are no numbers) is never answered early.
    """
    early = len(confidence)
    if not early or not len(harm[-1]):
        return [(NEVER,) * early]
    sure = [np.round(np.nan_to_num(c, nan=0.0), DIGITS) for c in confidence]
    steps = _descend(sure, expected_harm(sure, harm), np.asarray(cost, np.float64))
    seen = [np.unique(c) for c in sure]
    level = [NEVER] * early
    path = [tuple(level)]
    for k, lowest in steps:
        level[k] = _between(seen[k], lowest)
        path.append(tuple(level))
    if len(path) > LEVELS:
        path = [path[i] for i in np.linspace(0, len(path) - 1, LEVELS).round().astype(int)]
    return path


def from_safe_start(path: Path, confidence: Sequence[Floats], harm: Sequence[Flags], epsilon: float) -> Path:
    """The path from its least harmful level on, if its first harms more than a quarter of `epsilon`; else all.

    A codec that loses much may harm most while nothing exits early: the test of the path would end at its first level,
    though further down, where few samples cross, all is well. To be told by samples that certify nothing (those that
    the path was made with): a test may begin anywhere, if that is settled before it sees its own samples.
    """
    n = len(harm[-1])
    flags, rows = np.stack(harm), np.arange(n)
    counts = np.array([int(flags[exits_of(confidence, level, n), rows].sum()) for level in path])
    return path if counts[0] <= n * epsilon / 4 else path[int(counts.argmin()) :]


def expected_harm(sure: Sequence[Floats], harm: Sequence[Flags]) -> Floats:
    """(exits, n) harm to be expected of each answer, 0..1, from what happened and how sure (n,) each early exit was."""
    model = [_harm_by_confidence(c, flags) for c, flags in zip(sure, harm, strict=False)]
    model.append(np.full(len(harm[-1]), harm[-1].mean()))
    return TRUST * np.stack(harm).astype(np.float64) + (1 - TRUST) * np.stack(model)


def _descend(sure: Sequence[Floats], harm: Floats, cost: Floats) -> list[tuple[int, float]]:
    """(Exit, lowest confidence that it now answers), step by step, each of about n / `LEVELS` samples."""
    early, n = len(sure), harm.shape[1]
    least, division = max(1, n // STEPS), max(1, n // LEVELS)
    answers = np.full(n, early)
    order = [np.argsort(-c, kind="stable")[: np.count_nonzero(c > 0)] for c in sure]
    steps: list[tuple[int, float]] = []
    while True:
        found = [step for k in range(early) if (step := _steepest(sure[k], order[k], answers, harm, cost, k, least))]
        if not found:
            return steps
        _, _, k, moved = min(found, key=lambda step: step[:2])
        answers[moved] = k
        marks = sure[k][moved]
        steps += [(k, mark) for mark in np.unique(np.append(marks[division - 1 :: division], marks[-1]))[::-1].tolist()]
        order = [rows[answers[rows] > other] for other, rows in enumerate(order)]


def _steepest(
    sure: Floats, rows: NDArray[np.int64], answers: NDArray[np.int64], harm: Floats, cost: Floats, k: int, least: int
) -> tuple[float, float, int, NDArray[np.int64]] | None:
    """The best step of exit `k`: (harm added for what is saved, what is saved, negated, `k`, samples that move to it).

    `rows`: samples that it might still take, by falling confidence. None where nothing can be saved any more.
    """
    if not len(rows):
        return None
    later = answers[rows]
    saved = np.cumsum(cost[later] - cost[k])
    added = np.cumsum(harm[k, rows] - harm[later, rows])
    may = np.append(sure[rows][1:] < sure[rows][:-1], True) & (saved > 0)
    may[: least - 1] &= len(rows) < least
    ends = np.flatnonzero(may)
    if not len(ends):
        return None
    free = ends[added[ends] <= 0]
    if len(free):
        best, price = free[saved[free].argmax()], -np.inf
    else:
        prices = added[ends] / saved[ends]
        best = ends[len(ends) - 1 - prices[::-1].argmin()]
        price = float(prices.min())
    return price, -float(saved[best]), k, rows[: best + 1]


def _harm_by_confidence(sure: Floats, harm: Flags) -> Floats:
    """The chance of harm (n,) as a logistic curve in the logarithmic odds of a confidence, with Platt's targets.

    A weak belief that confidence is what it claims to be (slope 1) keeps the curve sane where there is little harm,
    none, or one confidence only.
    """
    doubt = np.log(np.maximum(1 - sure, ODDS)) - np.log(np.maximum(sure, ODDS))
    count = int(harm.sum())
    target = np.where(harm, (count + 1) / (count + 2), 1 / (len(harm) - count + 2))

    def loss(a: float, b: float) -> float:
        z = a + b * doubt
        return float((np.logaddexp(0, z) - target * z).sum() + 0.5 * (BELIEF * a**2 + (b - 1) ** 2))

    a, b = 0.0, 1.0
    for _ in range(NEWTON):
        chance: Floats = expit(a + b * doubt)
        off, weight = chance - target, chance * (1 - chance)
        down_a, down_b = off.sum() + BELIEF * a, (off * doubt).sum() + b - 1
        aa, ab, bb = weight.sum() + BELIEF, (weight * doubt).sum(), (weight * doubt**2).sum() + 1
        size = 1 / (aa * bb - ab**2)
        step_a, step_b = size * (bb * down_a - ab * down_b), size * (aa * down_b - ab * down_a)
        begun, share = loss(a, b), 1.0
        while loss(a - share * step_a, b - share * step_b) > begun and share > TINY:
            share /= 2
        a, b = a - share * step_a, b - share * step_b
        if abs(share * step_a) + abs(share * step_b) < TINY:
            break
    return np.asarray(expit(a + b * doubt))


def _between(seen: Floats, lowest: float) -> float:
    """A threshold halfway from `lowest`, one of the sorted `seen`, to the next below it (or to 0)."""
    index = int(np.searchsorted(seen, lowest))
    below = float(seen[index - 1]) if index else 0.0
    middle = (lowest + below) / 2
    return middle if middle > below else lowest
