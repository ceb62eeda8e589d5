"""Thresholds with a promise: the exits disagree with the full model on at most ε of all samples, with confidence 1 − δ.

**Method.** Angelopoulos et al., "Learn then Test: Calibrating Predictive Algorithms to Achieve Risk Control", arXiv
2110.01052, with fixed sequence testing over one number λ: every early exit answers when its confidence is at least λ.
Candidates go from "no early exit" to "everything exits at once"; they are fixed before the certifying samples are
looked at. For each, the null hypothesis "disagreement > ε" is tested by its exact binomial p-value
P(Bin(n, ε) ≤ violations), the one behind Clopper and Pearson (Biometrika 26, 1934); testing stops at the first that
cannot be rejected at level δ, and the last one rejected is taken. No correction for the number of tests is needed.

**What it covers**: new samples exchangeable with the certifying ones. Other people, machines or sites than those in
the data are not covered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from sluice.stage.policy import passes
from sluice.wire.manifest import ExitPolicy

METHOD = "learn-then-test, fixed sequence, exact binomial"
CANDIDATES = 1000
"""Most values of λ that are tried."""

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chosen:
    """The λ that was certified, with how many of `n` samples disagreed; `reason` says why no exit may answer early."""

    threshold: float | None
    n: int
    violations: int
    reason: str = ""


def samples_needed(epsilon: float, delta: float) -> int:
    """The least n with which anything can be certified: no disagreement at all gives (1 − ε)^n ≤ δ."""
    return math.ceil(math.log(delta) / math.log1p(-epsilon))


def p_value(violations: int, n: int, epsilon: float) -> float:
    """P(Bin(n, ε) ≤ violations): how likely so few are if the true share were ε."""
    return float(binom.cdf(violations, n, epsilon))


def candidates(confidence: Sequence[Floats]) -> list[float]:
    """Values of λ to try, from the strictest on, out of early exits' confidences on samples that certify nothing.

    λ = 2 comes first: above every confidence, so nobody exits early.
    """
    if not confidence:
        return [2.0]
    seen = np.concatenate(confidence).astype(np.float64)
    levels = np.unique(np.quantile(seen, np.linspace(0, 1, CANDIDATES), method="lower"))
    return [2.0, *levels[::-1].tolist()]


def first_exit(measure: str, confidence: Sequence[Floats], threshold: float, n: int) -> Labels:
    """Which exit answers each of `n` samples when all early ones (their `confidence`: (n,) each) use one threshold."""
    policy = ExitPolicy.model_validate({"measure": measure, "threshold": threshold})
    exits = np.full(n, len(confidence), np.int64)
    for k in reversed(range(len(confidence))):
        exits[passes(policy, confidence[k])] = k
    return exits


def choose(
    measure: str,
    levels: Sequence[float],
    confidence: Sequence[Floats],
    labels: Sequence[Labels],
    wanted: Labels,
    epsilon: float,
    delta: float,
) -> Chosen:
    """The last λ of `levels` whose disagreement with `wanted` is certified to be at most `epsilon`.

    `confidence`: (n,) of each early exit; `labels`: (n,) of every exit, the final one last; `wanted`: (n,) labels of
    the full model.
    """
    n = len(wanted)
    needed = samples_needed(epsilon, delta)
    if n < needed:
        return Chosen(
            None, n, 0, f"{n} samples cannot certify {epsilon:g} at {1 - delta:g}: {needed} are needed at least"
        )
    answers = np.stack(labels)
    best: Chosen | None = None
    for level in levels:
        exits = first_exit(measure, confidence, level, n)
        violations = int((answers[exits, np.arange(n)] != wanted).sum())
        if p_value(violations, n, epsilon) > delta:
            if best is None:
                reason = f"{violations} of {n} samples disagree with the full model without any early exit"
                return Chosen(None, n, violations, f"{reason}: the codec loses too much for {epsilon:g}")
            if best.threshold == levels[0]:
                why = f"already at {level:.4g} {violations} of {n} samples disagree with the full model"
                best = replace(best, reason=f"no early exit can be certified for {epsilon:g}: {why}")
            break
        best = Chosen(level, n, violations)
    assert best is not None
    return best
