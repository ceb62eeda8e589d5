"""Thresholds with a promise: the exits harm at most ε of all new samples, with confidence 1 − δ.

**Method.** Angelopoulos et al., "Learn then Test: Calibrating Predictive Algorithms to Achieve Risk Control", arXiv
2110.01052, with fixed sequence testing. The sequence is a path of thresholds (`thresholds.greedy_path`), settled before
the certifying samples are looked at. At each level the null hypothesis "more than ε are harmed" is tested; testing
stops at the first that cannot be rejected at level δ, and the last one rejected is taken. However many are tested, the
chance to reject a true one is at most δ: for that, the first true one of the sequence has to be rejected. All levels
that were passed are certified together.

The path begins at "no early exit", where harm is least and the test easiest: a later start could only fail sooner. It
may begin later if samples that certify nothing say so (`thresholds.from_safe_start`), but a test that failed must not
be begun again elsewhere.

**Samples.** The p-value is the exact binomial one, P(Bin(n, ε) ≤ violations), behind Clopper and Pearson (Biometrika
26, 1934). With samples of several groups, in the proportions in which new ones will come, violations are a sum of
unequal chances, which scatters less: the p-value is then on the safe side (Hoeffding, Annals of Mathematical Statistics
27, 1956). It covers new samples like the certifying ones, independent of one another. Other people, machines or sites
are not covered.

**Groups.** For new groups (people, devices, sites) the groups are what was sampled: R_g, the share harmed in group g,
is one observation in 0..1, however many samples the group has. "Its mean is over ε" is tested by betting (Waudby-Smith
and Ramdas, "Estimating means of bounded random variables by betting", arXiv 2010.09686): were it so, nobody could
expect to win by the stakes Π (1 + λ (ε − R_g)), and 1 over the capital won is a p-value (Markov's inequality). The
capital is divided among few fixed λ, `BETS`, so that the order of the groups does not matter. Nearly all is on the
largest, 1 / (1 − ε), which suits shares far below 1; where nobody is harmed it gives (1 − ε)^G, as the binomial bound
does. It is tighter than Hoeffding's and Bentkus' unless some groups are harmed altogether and others not at all. Even
so an ε of 1 % takes 307 groups. Fewer get a promise for new samples of themselves, and that is said. Which of the two
is decided by the number of groups alone, not by how a test comes out.

**Several operating points.** A promise for all of them together holds if each is tested at δ / points (Bonferroni's
inequality; Dunn, Journal of the American Statistical Association 56, 1961).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr

from partitioner.promise.parts import FEW_GROUPS
from partitioner.promise.thresholds import NEVER, exits_of
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Certificate

BINOMIAL = "learn-then-test, fixed sequence, exact binomial"
BETTING = "learn-then-test, fixed sequence, betting on the mean over groups"
BETS = ((1.0, 0.9), (0.5, 0.05), (0.2, 0.03), (0.05, 0.02))
"""(λ over its largest value, share of the capital)."""

Criterion = Literal["agreement", "accuracy"]
Promise = Literal["auto", "groups", "samples"]
Scope = Literal["samples", "groups"]
Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class GroupRisk:
    """What was seen of a group: `violations` of `n` samples."""

    n: int
    violations: int

    @property
    def risk(self) -> float:
        """Share of harmed samples."""
        return self.violations / self.n


@dataclass(frozen=True, slots=True)
class Certified:
    """What a test came to: `thresholds`, one for each early exit, at which `violations` of `n` samples were harmed.

    `thresholds` are None where nothing could be certified: then no early exit may answer, and the figures are those of
    the path's first level. `method` is empty where nothing is promised. `reason` says what is not promised, and why.
    `spread`: what was seen of each of `groups` at these thresholds, or at the first level.
    """

    thresholds: tuple[float, ...] | None
    n: int
    violations: int
    method: str = ""
    reason: str = ""
    scope: Scope = "samples"
    groups: int | None = None
    spread: Mapping[str, GroupRisk] | None = None
    start: tuple[float, ...] = ()
    """The first level of the path."""
    start_violations: int = 0

    def at_the_start(self) -> Certified:
        """The same for no early exit at all: certified with the level that was reached, if the path began there."""
        if not self.method:
            return replace(self, thresholds=None)
        if not _closed(self.start):
            reason = "no early exit at all was not tested: the codec loses much there"
            return replace(self, thresholds=None, method="", reason=reason, spread=None)
        return replace(self, thresholds=self.start, violations=self.start_violations, reason="", spread=None)


def harm_of(criterion: Criterion, labels: Sequence[Labels], wanted: Labels, y: Labels | None) -> list[Flags]:
    """Whether the answer of each exit would harm a sample: (n,) for each of `labels`, (n,) of each exit.

    `agreement`: it is not `wanted` (n,), the full model's; needs no true labels, and bounds the accuracy lost as well.
    `accuracy`: it is wrong where the full model's is right. The share of such samples is at least the accuracy that is
    lost, which may be less, because early exits are also right where the full model is wrong; that is not set off.
    Raises `PermanentError` for `accuracy` without true labels `y` (n,).
    """
    if criterion == "agreement":
        return [answers != wanted for answers in labels]
    if y is None:
        raise PermanentError("criterion 'accuracy' needs true labels: give y, or promise agreement with the full model")
    right = wanted == y
    return [right & (answers != y) for answers in labels]


def samples_needed(epsilon: float, delta: float) -> int:
    """The least n with which anything can be certified: nobody harmed at all gives (1 − ε)^n ≤ δ."""
    return math.ceil(math.log(delta) / math.log1p(-epsilon))


def groups_needed(epsilon: float, delta: float) -> int:
    """The least number of groups with which anything can be promised for new ones, `FEW_GROUPS` at least."""
    low, high = 0, samples_needed(epsilon, delta)
    while _won(high, epsilon) < 1 / delta:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _won(middle, epsilon) >= 1 / delta else (middle, high)
    return max(high, FEW_GROUPS)


def _won(groups: int, epsilon: float) -> float:
    """The capital after so many groups of which nobody is harmed."""
    return math.fsum(part * (1 + bet / (1 - epsilon) * epsilon) ** groups for bet, part in BETS)


def scope_of(groups: int | None, promise: Promise, epsilon: float, delta: float) -> Scope:
    """Whom a promise is for, with so many certifying `groups` (None: there are none); arguments as of `certify`."""
    if groups is None or promise == "samples":
        return "samples"
    return "groups" if promise == "groups" or groups >= groups_needed(epsilon, delta) else "samples"


def p_value(violations: int, n: int, epsilon: float) -> float:
    """P(Bin(n, ε) ≤ violations): how likely so few are if the true share were ε."""
    return float(bdtr(violations, n, epsilon))


def group_p_value(risks: Floats, epsilon: float) -> float:
    """How likely so low `risks` (groups,), independent and each in 0..1, are if their mean were ε or more."""
    with np.errstate(divide="ignore"):  # ruined: the logarithm of 0
        logs = [np.log(part) + np.log1p(bet / (1 - epsilon) * (epsilon - risks)).sum() for bet, part in BETS]
    return float(min(1.0, np.exp(-np.logaddexp.reduce(logs))))


def certify(
    path: Sequence[tuple[float, ...]],
    confidence: Sequence[Floats],
    harm: Sequence[Flags],
    *,
    epsilon: float,
    delta: float,
    groups: NDArray[np.generic] | None = None,
    promise: Promise = "auto",
    total: int | None = None,
) -> Certified:
    """The last level of `path` that can be certified to harm at most a share `epsilon`, at `delta` for this path alone.

    `confidence`: (n,) float64 of each early exit; `harm`: (n,) of each exit, the final one last (`harm_of`); `groups`:
    (n,) of each sample. `promise`: for new `groups`, for new `samples` of these groups, or `auto`: for new groups if
    there are enough to say anything of them. `total`: how many samples were given in all, to say how many are needed.
    Raises `PermanentError` for a promise for groups without groups.
    """
    if promise == "groups" and groups is None:
        raise PermanentError("a promise for new groups needs groups: say of which each sample is")
    seen = _seen(confidence, harm, groups)
    first = seen.at(path[0])
    sure = f"{epsilon:g} at {1 - delta:g}"
    scope, few_groups = scope_of(first.groups, promise, epsilon, delta), ""
    if first.groups is not None and promise != "samples" and first.groups < (needed := groups_needed(epsilon, delta)):
        few_groups = f"{first.groups} groups cannot certify {sure} for new groups: {needed} are needed at least"
    if scope == "groups" and few_groups:
        return replace(first, thresholds=None, reason=few_groups, scope=scope)
    if scope == "samples" and first.n < (needed := samples_needed(epsilon, delta)):
        in_all = f", of about {math.ceil(needed * total / first.n)} in all" if total and 0 < first.n < total else ""
        few = f"{first.n} samples cannot certify {sure}: {needed} are needed at least{in_all}"
        return replace(first, thresholds=None, reason=few)

    reached, failed = _walk(path, seen, scope, epsilon, delta)
    begun = "without any early exit" if _closed(path[0]) else "at the least harmful thresholds"
    if reached is None:
        found = f"{first.violations} of {first.n} samples are harmed {begun}: too many for {sure}"
        return replace(first, thresholds=None, reason=found, scope=scope)
    reasons = []
    if reached == path[0] and failed is not None and _closed(path[0]):
        lost = seen.at(failed).violations
        reasons.append(
            f"no early exit can be certified for {sure}: already at the next level {lost} of {first.n} are harmed"
        )
    found = seen.at(reached)
    if scope == "samples" and found.spread is not None:
        reasons.append(_of_these_groups_only(found.spread, few_groups))
    return replace(
        found,
        method=BINOMIAL if scope == "samples" else BETTING,
        reason="; ".join(reasons),
        scope=scope,
        start=first.start,
        start_violations=first.violations,
    )


def given_thresholds(
    thresholds: Sequence[float],
    confidence: Sequence[Floats],
    harm: Sequence[Flags],
    *,
    groups: NDArray[np.generic] | None = None,
) -> Certified:
    """What was seen at thresholds that a user fixed; nothing is promised of them. Arguments as of `certify`."""
    found = _seen(confidence, harm, groups).at(tuple(thresholds))
    return replace(found, reason="thresholds were given: nothing is promised of them")


def as_certificate(
    certified: Certified, criterion: Criterion, epsilon: float, confidence: float, points: int
) -> Certificate | None:
    """The manifest's certificate of one of `points` operating points, each tested at (1 − `confidence`) / `points`.

    None where nothing is promised.
    """
    if not certified.method or certified.thresholds is None:
        return None
    return Certificate(
        method=certified.method,
        criterion=criterion,
        epsilon=epsilon,
        delta=round(1 - confidence, 12),
        n=certified.n,
        violations=certified.violations,
        points=points,
        scope=certified.scope,
        groups=certified.groups,
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """The certifying samples: `confidence` and `harm` of each exit, names of groups, and the group of each sample."""

    confidence: Sequence[Floats]
    harm: Flags
    names: tuple[str, ...] | None
    member: NDArray[np.int64]

    def harmed(self, level: Sequence[float]) -> Flags:
        """Whether each sample (n,) is harmed at `level`."""
        n = self.harm.shape[1]
        harmed: Flags = self.harm[exits_of(self.confidence, level, n), np.arange(n)]
        return harmed

    def by_group(self, harmed: Flags) -> tuple[Floats, Floats]:
        """Samples, and harmed samples, of each group."""
        return np.bincount(self.member).astype(np.float64), np.bincount(self.member, weights=harmed)

    def at(self, level: tuple[float, ...]) -> Certified:
        """What is seen at `level`, without a promise."""
        harmed = self.harmed(level)
        count = int(harmed.sum())
        if self.names is None:
            return Certified(level, len(harmed), count, start=level, start_violations=count)
        counts = zip(self.names, *self.by_group(harmed), strict=True)
        spread = {name: GroupRisk(int(n), int(bad)) for name, n, bad in counts}
        return Certified(
            level, len(harmed), count, groups=len(spread), spread=spread, start=level, start_violations=count
        )


def _seen(confidence: Sequence[Floats], harm: Sequence[Flags], groups: NDArray[np.generic] | None) -> _Seen:
    if groups is None:
        return _Seen(confidence, np.stack(harm), None, np.zeros(0, np.int64))
    names, member = np.unique(groups, return_inverse=True)
    return _Seen(confidence, np.stack(harm), tuple(map(str, names.tolist())), member)


def _walk(
    path: Sequence[tuple[float, ...]], seen: _Seen, scope: Scope, epsilon: float, delta: float
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """The last level that passed before the first that failed, and that one; None where there is none."""
    reached = None
    for level in path:
        harmed = seen.harmed(level)
        if scope == "samples":
            chance = p_value(int(harmed.sum()), len(harmed), epsilon)
        else:
            sizes, bad = seen.by_group(harmed)
            chance = group_p_value(bad / sizes, epsilon)
        if chance > delta:
            return reached, level
        reached = level
    return reached, None


def _closed(level: Sequence[float]) -> bool:
    """Whether nobody is answered early."""
    return all(threshold >= NEVER for threshold in level)


def _of_these_groups_only(spread: Mapping[str, GroupRisk], why: str) -> str:
    """That nothing is promised for new groups, and how far the groups lie apart."""
    worst = max(spread, key=lambda name: spread[name].risk)
    lowest = min(one.risk for one in spread.values())
    because = f": {why}" if why else ""
    return (
        f"nothing is promised for new groups, only for new samples of these {len(spread)}{because}; of their samples "
        f"{lowest:.2%} to {spread[worst].risk:.2%} are harmed, most in group {worst[:40]!r}"
    )
