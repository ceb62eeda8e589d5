"""Every candidate there is, and what remains of them: the Pareto front over harm, latency, bytes and device compute.

A candidate is a set of early exits, a level of its thresholds, a codec, and the stations where edge and fog end.
Nothing is skipped but what cannot be on the front: where edge, codec and level are given, bytes and device compute
no longer depend on where the fog ends, so that of the ends of the fog only those count that no other beats in latency
and loss together. The best plan for any of the objectives is on the front too.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partitioner.planning.expect import Expected, Levels, Line, costs_of, expect, levels_of, line_of
from partitioner.planning.pareto import front
from partitioner.promise.thresholds import greedy_path
from sluice.wire.errors import PermanentError
from sluice.wire.names import Tier

if TYPE_CHECKING:
    from partitioner.planning.link import Link
    from partitioner.planning.plan import Scene, Wish

HOPELESS = 5
"""A level that harms more than so many times ε is no candidate, not even for the Pareto front."""
MOST_OPTIONAL = 5
"""Early exits of which every combination is looked at."""
LEVELS = 128
"""Most levels of a path that are tried, evenly taken from those that are left."""

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ExitSet:
    """Early exits that are kept, the stations they make, and the levels to try."""

    exits: tuple[int, ...]
    line: Line
    levels: Levels


@dataclass(frozen=True, slots=True)
class Limits:
    """What a candidate may be: names of codecs; points (True: allowed) where edge and fog may end; tiers of exits."""

    codecs: Sequence[str]
    edge: NDArray[np.bool_]
    fog: NDArray[np.bool_]
    exit_tiers: Mapping[int, Tier]
    shared: bool = False
    """Whether the edge has to do something, but not everything."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """(N,) each: number of exit set, codec and level, stations where edge and fog end; `costs`: (N, 4), `COSTS`."""

    exit_set: Indices
    codec: Indices
    level: Indices
    edge: Indices
    fog: Indices
    costs: NDArray[np.float64]

    def rows(self, indices: Indices) -> Candidates:
        """Those alone."""
        picked = (self.exit_set, self.codec, self.level, self.edge, self.fog, self.costs)
        return Candidates(*(array[indices] for array in picked))


def exit_sets(scene: Scene, wish: Wish) -> list[ExitSet]:
    """Each set of early exits that has the compulsory ones, the smallest first, with the levels that may hope.

    Of more than `MOST_OPTIONAL` that may stay or go: none, one, two, or all of them.
    """
    every = range(len(scene.exits))
    compulsory = tuple(every) if wish.thresholds is not None else tuple(wish.compulsory)
    optional = [k for k in every if k not in compulsory]
    sizes = range(len(optional) + 1) if len(optional) <= MOST_OPTIONAL else (0, 1, 2, len(optional))
    kept = [tuple(sorted((*compulsory, *some))) for size in sizes for some in itertools.combinations(optional, size)]
    return [ExitSet(exits, line_of(scene, exits), _levels(scene, wish, exits)) for exits in kept]


def _levels(scene: Scene, wish: Wish, exits: tuple[int, ...]) -> Levels:
    if wish.thresholds is not None:
        return levels_of(scene, exits, [wish.thresholds])
    if not exits:
        return levels_of(scene, exits, [()])
    at = [*(scene.exits[k].at for k in exits), len(scene.points) - 1]
    heads = np.cumsum([*(scene.exits[k].macs for k in exits), 0])
    cost = [float(scene.trunk_macs[:point].sum() + head) for point, head in zip(at, heads, strict=True)]
    harm = [*(scene.harm[k] for k in exits), scene.harm[-1]]
    path = greedy_path([scene.confidence[k] for k in exits], harm, cost)
    harmful = levels_of(scene, exits, path).harm > HOPELESS * wish.epsilon
    harmful[0] = False
    left = [level for level, out in zip(path, harmful, strict=True) if not out]
    taken = np.linspace(0, len(left) - 1, min(len(left), LEVELS)).round().astype(int)
    return levels_of(scene, exits, [left[i] for i in taken])


def never(scene: Scene, one: ExitSet) -> ExitSet:
    """The same exits, none of which answers early."""
    return replace(one, levels=levels_of(scene, one.exits, one.levels.thresholds[:1]))


def keep_within(scene: Scene, one: ExitSet, most_harm: float) -> ExitSet:
    """The same exits, at those levels alone that harm at most so much."""
    levels = [level for level, harm in zip(one.levels.thresholds, one.levels.harm, strict=True) if harm <= most_harm]
    return replace(one, levels=levels_of(scene, one.exits, levels))


def limits_of(scene: Scene, wish: Wish) -> Limits:
    """What `wish` allows; `PermanentError` for a point that there is not, with the nearest name."""
    return Limits(
        tuple(wish.codecs), _ends(scene, wish.edge_points), _ends(scene, wish.fog_points), dict(wish.exit_tiers)
    )


def _ends(scene: Scene, names: Sequence[str] | None) -> NDArray[np.bool_]:
    known = [point.name for point in scene.points]
    for name in names or ():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.0)
            raise PermanentError(f"there is no point {name[:60]!r} to cut at; the nearest name is {near[0]!r}")
    return np.array([names is None or name in names for name in known])


def search(scene: Scene, sets: Sequence[ExitSet], limits: Limits, uplink: Link) -> tuple[Candidates, int]:
    """The front, maybe empty, and how many candidates there were. Of equals the first set of exits and the fewest
    tiers remain, so `sets` should begin with the smallest."""
    kept = []
    considered = 0
    for number, one in enumerate(sets):
        parts = []
        edge, fog = _allowed(one, limits)
        for codec, name in enumerate(limits.codecs):
            expected = expect(scene, one.line, one.levels, name, uplink)
            can = np.isfinite(expected.straight[0])
            considered += len(one.levels.harm) * int(np.triu(np.outer(edge & can, fog & can)).sum())
            rows = (_straight(expected, edge & fog & can, codec == 0), _with_fog(expected, edge & can, fog & can))
            parts += [(np.full(len(level), codec), level, e, f, expected) for level, e, f in rows]
        kept.append(_front_of_set(number, one, parts))
    found = _joined(kept)
    return found.rows(front(found.costs)), considered


def _allowed(one: ExitSet, limits: Limits) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Stations (S,) where the edge, and where the fog, may end."""
    edge, fog = limits.edge[one.line.point], limits.fog[one.line.point]
    if limits.shared:
        edge[0] = edge[-1] = False
    for number, k in enumerate(one.exits):
        done = one.line.passed > number
        tier = limits.exit_tiers.get(k)
        if tier is not None:
            edge &= done if tier == "edge" else ~done
            fog &= ~done if tier == "cloud" else done
    return edge, fog


Rows = tuple[Indices, Indices, Indices]
"""Level, and stations where edge and fog end."""
Part = tuple[Indices, Indices, Indices, Indices, Expected]
"""Codec and `Rows`, and what is to be expected there."""


def _straight(expected: Expected, allowed: NDArray[np.bool_], everything: bool) -> Rows:
    """No segment on the fog; `everything` on the edge, where there is no crossing, counts for one codec only."""
    ends = np.flatnonzero(allowed if everything else allowed[:-1])
    levels = len(expected.straight)
    end = np.tile(ends, levels)
    return np.repeat(np.arange(levels), len(ends)), end, end


def _with_fog(expected: Expected, edge: NDArray[np.bool_], fog: NDArray[np.bool_]) -> Rows:
    """For each level and end of the edge the ends of the fog above it that nothing beats in latency and loss."""
    stations = expected.fog.shape[1]
    alive = np.zeros(expected.fog.shape, bool)
    found: list[Rows] = []
    for end in range(stations - 2, -1, -1):
        new = end + 1
        if fog[new]:
            latency, loss = expected.fog[:, new, None], expected.loss[:, new, None]
            beaten = (alive & (expected.fog <= latency) & (expected.loss <= loss)).any(axis=1, keepdims=True)
            alive &= beaten | (expected.fog < latency) | (expected.loss < loss)
            alive[:, new] = ~beaten[:, 0]
        if edge[end]:
            level, last = np.nonzero(alive)
            found.append((level, np.full(len(level), end), last))
    return tuple(np.concatenate(arrays) for arrays in zip(*found, strict=True)) if found else (np.zeros(0, int),) * 3


def _front_of_set(number: int, one: ExitSet, parts: Sequence[Part]) -> Candidates:
    """What remains of one set of exits; first within each level, where most candidates go."""
    costs = [costs_of(one.levels, expected, level, edge, fog) for _, level, edge, fog, expected in parts]
    codec, level, edge, fog = (np.concatenate([part[i] for part in parts]) for i in range(4))
    found = Candidates(np.full(len(level), number), codec, level, edge, fog, np.concatenate(costs))
    last = len(one.line.point) - 1
    tiers = (edge > 0).astype(int) + (fog > edge) + (fog < last)
    found = found.rows(np.lexsort((tiers, level)))
    starts = np.searchsorted(found.level, np.arange(len(one.levels.harm) + 1))
    best = [a + front(found.costs[a:b]) for a, b in itertools.pairwise(starts) if b > a]
    found = found.rows(np.concatenate(best) if best else np.zeros(0, int))
    return found.rows(front(found.costs))


def _joined(parts: Sequence[Candidates]) -> Candidates:
    names = Candidates.__slots__
    return Candidates(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
