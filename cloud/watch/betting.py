"""Does a share keep to its bound? Tested by betting, valid however often one looks.

**Game.** Two players bet on each sample whether it is harmed. One says that more than a share ε is, the other that less
is. Each begins with a capital of 1 and stakes a part of it, at odds that are fair if the share is just ε: were the
other side right, nobody could expect to win, and the chance that the capital *ever* reaches 1/δ is at most δ (Ville's
inequality). So one may look after every sample, stop or go on as one likes, and believe a capital of 1/δ at level δ.
For such tests see Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", Journal of the
Royal Statistical Society B 86, 2024. A stake of λ turns 1 into 1 + λ (X − ε), X being 1 for a harmed sample and 0 for
another.

**Audits.** Whether a sample is harmed is known of few only: an early answer is audited with probability q, and a sample
that reached the final exit is not harmed, for certain. Audits are bet on as above, other early answers not at all, and
a sample that reached the final exit with q λ instead of λ. Then one sample, of which a share ρ is answered early and a
share θ of those harmed, is worth 1 + q λ (ρ θ − ε) on average: no more than 1 as long as harm, ρ θ, is at most ε. That
holds sample by sample, so shares may wander; only q has to be known, or for the one who bets on more, a bound above it
(below it for the other).

**Stakes** are a fixed grid, as nobody knows how large the harm would be. And harm may begin after years without: who
had staked everything from the first audit on had nothing left by then. So the one who bets on more keeps half of the
capital back and brings it into play bit by bit, ever more slowly, at each audit anew.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

MORE = (0.01, 0.03, 0.1, 0.2, 0.4, 0.8)
"""Stakes of the one who says that more are harmed, as parts of the largest, 1/ε; equal shares of the capital."""
LESS = ((0.98, 0.5), (0.5, 0.25), (0.2, 0.15), (0.05, 0.1))
"""(stake of the other as part of the largest, 1/(1 − ε); share of the capital)."""


def log_more(harmed: Flags, passed: Floats, share: float, epsilon: float, starts: Flags | None = None) -> Floats:
    """Logarithm of the capital of the one who says "more than `epsilon` are harmed", after each of n audits (not 0).

    `harmed` (n,): of each audit, in order; `passed` (n,): how many samples since the audit before no early exit has
    answered; `share`: how many of the early answers are audited, at most. `starts` (n,): audits before which a bit may
    come into play, the first one among them; None: any. Where it is not known how audits and what passed were mixed,
    all that passed has to stand at such an audit: else a bit could come in behind it.
    """
    parts = np.array(MORE)
    won = np.where(harmed[:, None], np.log1p(parts * (1 / epsilon - 1)), np.log1p(-parts))
    log_product = np.cumsum(won + passed[:, None] * np.log1p(-share * parts), axis=0)
    turns = np.arange(len(harmed)) if starts is None else np.cumsum(starts) - 1
    back = 0.5 / (1 + np.log1p(turns))  # kept back after each audit's bit came into play
    entering = -np.diff(back, prepend=1.0)
    before = np.vstack([np.zeros(len(parts)), log_product[:-1]])
    with np.errstate(divide="ignore"):  # nothing comes in: the logarithm of 0
        bits = np.log(entering)[:, None] - before
    in_play = log_product + np.logaddexp.accumulate(bits, axis=0)
    played: Floats = np.logaddexp.reduce(in_play, axis=1) - math.log(len(parts))
    result: Floats = np.logaddexp(played, np.log(back))
    return result


def log_less(harmed: Flags, passed: Floats, unseen: Floats, share: float, share_most: float, epsilon: float) -> Floats:
    """The same of the one who says "less than `epsilon` are harmed"; between `share` and `share_most` are audited.

    `unseen` (n,): how many samples since the audit before were answered early where nobody audits. They may all be
    harmed, and are bet on as if they were.
    """
    stakes = np.array([part for part, _ in LESS]) / (1 - epsilon)
    won = np.where(harmed[:, None], np.log1p(-stakes * (1 - epsilon)), np.log1p(stakes * epsilon))
    won = won + passed[:, None] * np.log1p(share * stakes * epsilon)
    won = won + unseen[:, None] * np.log1p(-share_most * stakes * (1 - epsilon))
    log_capital = np.cumsum(won, axis=0) + np.log([capital for _, capital in LESS])
    result: Floats = np.logaddexp.reduce(log_capital, axis=1)
    return result


def audits_needed(epsilon: float, delta: float) -> int:
    """With how many audits in a row, none of them harmed, "less than `epsilon`" is sure if all answers are early."""
    low, high = 0, 1
    while log_less(*_clean(high), 0.0, 0.0, epsilon)[-1] < -math.log(delta):
        low, high = high, 2 * high
    capital = log_less(*_clean(high), 0.0, 0.0, epsilon)
    return low + 1 + int(np.argmax(capital[low:] >= -math.log(delta)))


def _clean(n: int) -> tuple[Flags, Floats, Floats]:
    return np.zeros(n, dtype=bool), np.zeros(n), np.zeros(n)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who of the two has won, and at which audit (0 is the first); None: not yet.

    `wealth` is the capital now of the one who bets on more, `wealth_most` the largest ever, both 10^300 at most.
    """

    more_at: int | None
    less_at: int | None
    wealth: float
    wealth_most: float


def judge(more: Floats, less: Floats, delta: float) -> Verdict:
    """The verdict at level `delta`, from the logarithms of both capitals (n,) after each audit."""
    bar = -math.log(delta)

    def first(capital: Floats) -> int | None:
        reached = np.flatnonzero(capital >= bar)
        return int(reached[0]) if len(reached) else None

    def plain(logarithm: float) -> float:
        return math.exp(min(logarithm, 300 * math.log(10)))

    if not len(more):
        return Verdict(None, None, 1.0, 1.0)
    return Verdict(first(more), first(less), plain(float(more[-1])), plain(max(0.0, float(more.max()))))
