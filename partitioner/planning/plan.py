"""The plan: which early exits, at which thresholds, cut where, in which codec, on which tiers; all chosen together.

From a `Scene` (what was measured of the finely cut model on the plan's samples) and a `Wish` (what is wanted, what
must not be touched) to the candidate that makes expected latency, uplink bytes or device compute least under the
promise. All candidates are looked at: `expect` says what they cost, `search` goes through them.

**The promise.** What the plan picks is certified later on samples that it never saw (`certify`). It hopes for that
where `n_certify` samples would, more likely than not, show few enough harmed ones: at most k, the largest number with
P(Bin(n_certify, ε) ≤ k) ≤ δ. What share will be harmed is `thresholds.expected_harm` of the plan's samples, because a
few of them without any harm prove nothing. Where no candidate may hope, no early exit answers and no codec loses
anything.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom

from partitioner.planning.expect import costs_of, expect, levels_of, line_of
from partitioner.planning.handling import Handling
from partitioner.planning.link import Link
from partitioner.planning.pareto import thin
from partitioner.planning.search import Candidates, ExitSet, Limits, exit_sets, keep_within, limits_of, never, search
from partitioner.planning.verdict import ON_DEVICE, SPLIT, TO_CLOUD, TO_FOG, kind
from partitioner.promise.certify import group_p_value, groups_needed, samples_needed
from sluice.wire.errors import PermanentError
from sluice.wire.names import Tier

OBJECTIVES = {"latency": 1, "bytes": 2, "device-compute": 3}
"""What can be made least, and its column in the candidates' costs."""
SHOWN = 60
"""Most candidates of the front that are told."""

ROUNDING = 1e-9
HALVED = 40
"""Times that an interval is halved to find a share in it."""

Share = float
Flips = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Point:
    """A place on the trunk where a tier may end. A codec that is not in `bytes` (mean payload) cannot cross here.

    `loss`: what the codec does to final answers. Either (m,) bool: which of the first m of the plan's samples get
    another one; or the share of all samples that do. `encode_us`, `decode_us`: at speed 1 of `Scene.codec_scale`.
    """

    name: str
    bytes: Mapping[str, float]
    loss: Mapping[str, Share | Flips]
    encode_us: Mapping[str, float]
    decode_us: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class EarlyExit:
    """An early exit at point number `at`; `head_us`: its head on each tier."""

    name: str
    at: int
    head_us: Mapping[Tier, float]
    macs: int


@dataclass(frozen=True, slots=True)
class Scene:
    """What was measured. P points, the raw input first, the end last; K early exits in order; n samples."""

    points: Sequence[Point]
    trunk_us: Mapping[Tier, NDArray[np.float64]]
    """(P - 1,) of each tier: from a point to the next; the last includes the final exit."""
    trunk_macs: NDArray[np.int64]
    exits: Sequence[EarlyExit]
    confidence: Sequence[NDArray[np.float64]]
    """(n,) of each early exit."""
    harm: Sequence[NDArray[np.bool_]]
    """(n,) of each exit, the final one last: whether its answer would harm."""
    uplink: Link
    backhaul: Link
    header_bytes: float
    answer_bytes: float
    results_sent: bool = True
    """Whether answers given on the device go up, as messages of `answer_bytes`."""
    codec_scale: Mapping[Tier, float] = field(default_factory=dict)
    """How many times longer than measured a tier takes to encode and decode, and for `handling`; 1 if not told."""
    handling: Handling = field(default_factory=Handling)


@dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted: the least of `objective` (a key of `OBJECTIVES`) with harm of at most `epsilon`, by the
    certificate of `n_certify` samples at `delta`; and what is settled already."""

    objective: str
    epsilon: float
    delta: float
    n_certify: int
    codecs: Sequence[str]
    compulsory: Sequence[int] = ()
    """Early exits that must stay."""
    edge_points: Sequence[str] | None = None
    """Names of the points where the edge may end; None: all."""
    fog_points: Sequence[str] | None = None
    exit_tiers: Mapping[int, Tier] = field(default_factory=dict)
    """Tiers of early exits that must not be elsewhere."""
    groups: int | None = None
    """Certifying groups, where the promise is for new ones."""
    given_up: str = ""
    """Why nothing may be hoped for, if that is known already."""
    thresholds: tuple[float, ...] | None = None
    """Of all early exits, which then stay; nothing is promised of them, a codec may add at most `epsilon` of harm."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Means over the plan's samples. `latency_ms` to the answer back at the device, `bytes` on the uplink, upwards,
    `device_us` of compute on the device, `exit_share` of each kept exit, final last; `agreement`: the share that is
    expected not to be harmed."""

    latency_ms: float
    bytes: float
    device_us: float
    agreement: float
    exit_share: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """A candidate: `exits` (of the scene's early exits) run on `exit_tiers` and answer from `thresholds` on; the trunk
    runs on the edge up to point `edge_end`, on the fog up to `fog_end`, in the cloud from there."""

    exits: tuple[int, ...]
    exit_tiers: tuple[Tier, ...]
    edge_end: int
    fog_end: int
    codec: str
    thresholds: tuple[float, ...]
    figures: Figures

    def tier_at(self, point: int) -> Tier:
        """Where the trunk between `point` - 1 and `point` runs."""
        return "edge" if point <= self.edge_end else "fog" if point <= self.fog_end else "cloud"


@dataclass(frozen=True, slots=True)
class Plan:
    """What was chosen, what else there was, and what to say about it."""

    best: Choice
    by_objective: dict[str, Choice]
    baselines: dict[str, Choice]
    """Without any early exit: all on the device, raw input to the fog, raw input to the cloud (where it fits)."""
    pareto: list[Choice]
    """At most `SHOWN` that no other beats, the chosen ones among them."""
    split: Choice | None
    """The best that splits the model, where `best` does not; `best` if it does."""
    least_agreement: float
    """What was to be kept."""
    no_promise: str
    """Why no early exit may answer, if so."""
    considered: int
    took_s: float


def plan(scene: Scene, wish: Wish) -> Plan:
    """The best candidate for each objective, and what it is compared with.

    Raises `PermanentError` when `wish` names what is not there, or leaves nothing to choose.
    """
    begun = time.perf_counter()
    limits = limits_of(scene, wish)
    space = _Space.of(scene, exit_sets(scene, wish), limits)
    if not len(space.found.level):
        raise PermanentError("nothing is left to choose: no codec that is allowed can cross where a tier may end")
    most_harm, no_promise = _most_harm(wish, space), ""
    allowed = space
    if not space.any_within(most_harm):
        no_promise = _why_none(wish, space)
        allowed = _Space.of(scene, [never(scene, space.sets[0])], limits)
        most_harm = float(allowed.found.costs[:, 0].min())
    rows = {name: allowed.least(name, most_harm) for name in OBJECTIVES}
    by_objective = {name: allowed.choice(row) for name, row in rows.items()}
    best = by_objective[wish.objective]
    split = best
    if kind(scene, best) != SPLIT:
        hopeful = [one for one in allowed.sets if one.levels.harm.min() <= most_harm + ROUNDING]
        within = [keep_within(scene, one, most_harm + ROUNDING) for one in hopeful]
        split = _best_of(_Space.of(scene, within, replace(limits, shared=True)), wish, most_harm) if within else None
    baselines = dict(_baselines(scene, wish, most_harm))
    shown = thin(space.found.costs, rows.values() if allowed is space else (), SHOWN)
    return Plan(
        best,
        by_objective,
        baselines,
        [space.choice(row) for row in shown.tolist()],
        split,
        1 - most_harm,
        no_promise,
        space.considered,
        time.perf_counter() - begun,
    )


def figures(
    scene: Scene, choice: Choice, uplink: Link | None = None, exit_share: Sequence[float] | None = None
) -> Figures:
    """What is to be expected of `choice`, over another `uplink` than the scene's if it is given.

    `exit_share`: of each exit that is kept, the final one last, where it is known better than from the samples that
    the plan was made with: those flatter what was chosen on them.
    """
    line = line_of(scene, choice.exits)
    levels = levels_of(scene, choice.exits, [choice.thresholds])
    if exit_share is not None:
        levels = replace(levels, going_on=1.0 - np.cumsum([0.0, *exit_share])[None])
    done = np.minimum(line.passed, len(choice.exits))
    edge = (line.point <= choice.edge_end) & (done <= choice.exit_tiers.count("edge"))
    fog = (line.point <= choice.fog_end) & (done <= len(choice.exits) - choice.exit_tiers.count("cloud"))
    expected = expect(scene, line, levels, choice.codec, uplink or scene.uplink)
    ends = (np.flatnonzero(allowed)[-1:] for allowed in (edge, fog))
    (costs,) = costs_of(levels, expected, np.zeros(1, np.int64), *ends)
    return _figures(costs, levels.going_on[0])


def _figures(costs: NDArray[np.float64], going_on: NDArray[np.float64]) -> Figures:
    harm, latency_us, size, device_us = costs.tolist()
    return Figures(latency_us / 1000, size, device_us, 1 - harm, tuple((-np.diff(going_on)).tolist()))


@dataclass(frozen=True, slots=True)
class _Space:
    """What was searched, and the front that was found."""

    scene: Scene
    sets: Sequence[ExitSet]
    limits: Limits
    found: Candidates
    considered: int

    @classmethod
    def of(cls, scene: Scene, sets: Sequence[ExitSet], limits: Limits) -> _Space:
        return cls(scene, sets, limits, *search(scene, sets, limits, scene.uplink))

    def any_within(self, most_harm: float) -> bool:
        return bool((self.found.costs[:, 0] <= most_harm + ROUNDING).any())

    def least(self, objective: str, most_harm: float) -> int:
        """The row with the least of `objective`, ties broken by the other two."""
        columns = [OBJECTIVES[objective], *(c for name, c in OBJECTIVES.items() if name != objective)]
        rows = np.flatnonzero(self.found.costs[:, 0] <= most_harm + ROUNDING)
        return int(rows[np.lexsort([self.found.costs[rows, c] for c in reversed(columns)])[0]])

    def choice(self, row: int) -> Choice:
        one = self.sets[self.found.exit_set[row]]
        edge, fog, level = (int(array[row]) for array in (self.found.edge, self.found.fog, self.found.level))
        ends = [int(np.flatnonzero(one.line.passed > number)[0]) for number in range(len(one.exits))]
        return Choice(
            exits=one.exits,
            exit_tiers=tuple("edge" if at <= edge else "fog" if at <= fog else "cloud" for at in ends),
            edge_end=int(one.line.point[edge]),
            fog_end=int(one.line.point[fog]),
            codec=self.limits.codecs[self.found.codec[row]],
            thresholds=one.levels.thresholds[level],
            figures=_figures(self.found.costs[row], one.levels.going_on[level]),
        )


def _best_of(space: _Space, wish: Wish, most_harm: float) -> Choice | None:
    return space.choice(space.least(wish.objective, most_harm)) if space.any_within(most_harm) else None


def _most_harm(wish: Wish, space: _Space) -> float:
    """The largest share of harmed samples that a certificate may be hoped for with, below 0 if there is none."""
    if wish.thresholds is not None:
        return float(space.sets[0].levels.harm[0]) + wish.epsilon
    return most_hopeful(wish)


def most_hopeful(wish: Wish) -> float:
    """The largest share of harmed samples that a certificate may be hoped for with, below 0 if there is none."""
    if wish.given_up:
        return -1.0
    if wish.groups is not None:
        return hopeful_group_harm(wish.epsilon, wish.delta, wish.groups)
    return hopeful_harm(wish.epsilon, wish.delta, wish.n_certify)


def hopeful_group_harm(epsilon: float, delta: float, groups: int) -> float:
    """The largest share of harmed samples, alike in all `groups`, with which they certify `epsilon` for new ones; else
    below 0. Groups that differ need less harm, so this is the most that may be hoped for."""
    if groups < groups_needed(epsilon, delta):
        return -1.0
    low, high = 0.0, epsilon
    for _ in range(HALVED):
        middle = (low + high) / 2
        low, high = (middle, high) if group_p_value(np.full(groups, middle), epsilon) <= delta else (low, middle)
    return low


def hopeful_harm(epsilon: float, delta: float, n_certify: int) -> float:
    """The largest share of harmed samples with which `n_certify` certify `epsilon` as likely as not; else below 0."""
    violations = int(binom.ppf(delta, n_certify, epsilon))
    violations -= int(binom.cdf(violations, n_certify, epsilon) > delta)
    if violations < 0:
        return -1.0
    return float(beta.ppf(0.5, violations + 1, n_certify - violations))


def _why_none(wish: Wish, space: _Space) -> str:
    if wish.given_up:
        return wish.given_up
    needed = samples_needed(wish.epsilon, wish.delta)
    promise = f"a harm of at most {wish.epsilon:g} at {1 - wish.delta:g}"
    if wish.groups is not None and wish.groups < (many := groups_needed(wish.epsilon, wish.delta)):
        return f"{wish.groups} groups cannot certify {promise} for new groups: {many} are needed at least"
    if wish.groups is None and wish.n_certify < needed:
        return f"{wish.n_certify} samples cannot certify {promise}: {needed} are needed at least"
    least = space.found.costs[:, 0].min()
    return f"nothing that was tried would be certified for {promise}: the least harm to be expected is {least:.2%}"


def _baselines(scene: Scene, wish: Wish, most_harm: float) -> Iterator[tuple[str, Choice]]:
    """Each with the codec that suits the objective best; one that no codec can send is left out."""
    only = [ExitSet((), line_of(scene, ()), levels_of(scene, (), [()]))]
    index = np.arange(len(scene.points))
    first, last = index == 0, index == index[-1]
    raw = scene.points[0].bytes
    codecs = tuple(wish.codecs) if any(codec in raw for codec in wish.codecs) else tuple(raw) or tuple(wish.codecs)
    for name, edge, fog in ((ON_DEVICE, last, last), (TO_FOG, first, last), (TO_CLOUD, first, first)):
        space = _Space.of(scene, only, Limits(codecs, edge, fog, {}))
        if len(space.found.level):
            least = max(most_harm, float(space.found.costs[:, 0].min()))
            yield name, space.choice(space.least(wish.objective, least))
