"""From settings to a wish, from the wish to a plan, and from the plan to the operating points that go into the bundle.

The default is the plan's best by the objective that was asked for. What another objective would choose becomes a
further operating point where it is clearly better by its own measure; all share exits and segments, so that a device
can move among them without a download.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from partitioner.anatomy.cut import End, ends_of
from partitioner.anatomy.exits import Anatomy
from partitioner.anatomy.splits import SplitPoint, find_split
from partitioner.planning.plan import ROUNDING, Choice, Plan, Wish, most_hopeful, plan
from partitioner.planning.scene import END, Measured, codecs_of
from partitioner.promise.certify import scope_of
from partitioner.promise.parts import Parts
from partitioner.settings import PartitionSettings
from sluice.wire.errors import PermanentError
from sluice.wire.names import Tier

DEFAULT = "default"
ALTERNATIVES = {"latency": "lowest-latency", "bytes": "fewest-bytes", "device-compute": "least-device-compute"}
"""Id of the operating point that another objective brings."""
CLEARLY = 0.8
"""Such a point has to get by with this share of the default's latency, bytes or device compute."""


@dataclass(frozen=True, slots=True)
class Decided:
    """The `plan`, the operating points by id (the default first, all with the same exits), where segments end."""

    plan: Plan
    choices: dict[str, Choice]
    ends: tuple[End, ...]
    points: tuple[SplitPoint, ...]
    """The split point of each of the scene's points but the last."""
    warnings: tuple[str, ...]
    given_up: str = ""
    """Why nothing is to be certified: it was tried, and another test of the same samples would prove nothing."""

    def placement(self, choice: Choice) -> tuple[Tier, ...]:
        """The tier of each segment."""
        order = sorted({end.exit for end in self.ends[:-1] if end.exit is not None})
        return tuple(
            choice.exit_tiers[order.index(end.exit)] if end.exit in order else choice.tier_at(self._point(end))
            for end in self.ends
        )

    def _point(self, end: End) -> int:
        """Number of the scene's point where the trunk ends with `end`."""
        positions = [point.position for point in self.points]
        return positions.index(end.position) if end.position in positions else len(positions)


def decide(
    found: Anatomy,
    measured: Measured,
    parts: Parts,
    compulsory: tuple[int, ...],
    settings: PartitionSettings,
    groups: int | None = None,
    without: frozenset[str] = frozenset(),
    given_up: str = "",
) -> Decided:
    """Plan by `settings`, leaving out the codecs `without`.

    `groups`: certifying groups, if the samples tell theirs; `given_up`: why no promise can be had, if that is known.

    Raises `PermanentError` when what is asked for does not fit the model.
    """
    epsilon, delta = settings.max_accuracy_loss, round(1 - settings.confidence, 12)
    wish = Wish(
        objective=settings.objective,
        epsilon=epsilon,
        delta=delta,
        groups=groups if scope_of(groups, settings.promise, epsilon, delta) == "groups" else None,
        given_up=given_up,
        n_certify=len(parts.certify),
        codecs=[codec for codec in codecs_of(settings, bool(found.exits)) if codec not in without],
        compulsory=compulsory,
        thresholds=settings.thresholds,
        **settle(found, measured.points, settings),
    )
    planned = plan(measured.scene, wish)
    best = planned.best
    choices = {DEFAULT: best}
    if settings.placement is None and settings.thresholds is None:
        found_too = _alternatives(measured, wish, best)
        choices |= found_too if planned.no_promise else _affordable(wish, best, found_too)
    positions = {index for choice in choices.values() for index in (choice.edge_end, choice.fog_end)}
    cuts = [measured.points[index] for index in sorted(positions) if index < len(measured.points)]
    cuts += [point for point in _named(measured.points, settings) if point not in cuts]
    warnings = [planned.no_promise] if planned.no_promise else []
    return Decided(
        planned, choices, tuple(ends_of(found, best.exits, cuts)), measured.points, tuple(warnings), given_up
    )


def _alternatives(measured: Measured, wish: Wish, best: Choice) -> dict[str, Choice]:
    """What other objectives would choose with the same exits, where it is clearly better for them."""
    scene = measured.scene
    kept = replace(
        scene,
        exits=[scene.exits[k] for k in best.exits],
        confidence=[scene.confidence[k] for k in best.exits],
        harm=[*(scene.harm[k] for k in best.exits), scene.harm[-1]],
    )
    tiers = {best.exits.index(k): tier for k, tier in wish.exit_tiers.items() if k in best.exits}
    again = plan(kept, replace(wish, compulsory=tuple(range(len(best.exits))), exit_tiers=tiers))
    found: dict[str, Choice] = {}
    for objective, name in ALTERNATIVES.items():
        one = replace(again.by_objective[objective], exits=best.exits)
        before, after = (_amount(choice, objective) for choice in (best, one))
        same = [_where(other, objective) for other in (best, *found.values())]
        idle = one.edge_end == 0 and "edge" not in one.exit_tiers  # a device that only sends
        if objective == wish.objective or idle or _where(one, objective) in same:
            continue
        if after < CLEARLY * before:
            found[name] = one
    return found


def _affordable(wish: Wish, best: Choice, others: dict[str, Choice]) -> dict[str, Choice]:
    """As many of `others` as leave hope that every operating point is certified: they share what δ allows."""
    kept = dict(others)
    while kept:
        most = most_hopeful(replace(wish, delta=wish.delta / (1 + len(kept))))
        if all(1 - one.figures.agreement <= most + ROUNDING for one in (best, *kept.values())):
            break
        kept.popitem()
    return kept


def _amount(choice: Choice, objective: str) -> float:
    figures = choice.figures
    return {"latency": figures.latency_ms, "bytes": figures.bytes, "device-compute": figures.device_us}[objective]


def _where(choice: Choice, objective: str) -> tuple[object, ...]:
    """What makes a choice another operating point: not another codec alone, where it is for the device's sake."""
    where = (choice.edge_end, choice.fog_end, choice.exit_tiers)
    return where if objective == "device-compute" else (*where, choice.codec)


def settle(found: Anatomy, points: Sequence[SplitPoint], settings: PartitionSettings) -> dict[str, Any]:
    """What `settings` leave no choice in, as fields of a `Wish`; `points` are where a tier may end.

    Raises `PermanentError` when thresholds or a placement do not fit the model, or a split point is unknown.
    """
    early = max(0, len(found.exits) - 1)
    if settings.thresholds is not None and len(settings.thresholds) != early:
        raise PermanentError(f"{len(settings.thresholds)} thresholds for {early} early exits: one each is needed")
    if settings.placement is not None:
        return _placed(found, points, settings.placement, _named(points, settings))
    named = [point.name for point in _named(points, settings)]
    if len(named) == 2:
        return {"edge_points": named[:1], "fog_points": named[1:]}
    if named:
        return {"edge_points": named, "fog_points": [*named, END]}
    return {}


def _placed(
    found: Anatomy, points: Sequence[SplitPoint], placement: Sequence[Tier], named: Sequence[SplitPoint]
) -> dict[str, Any]:
    """Where edge and fog end, and the tiers of exits, when each segment has its tier."""
    ends = ends_of(found, range(len(found.exits) - 1), named)
    if len(ends) != len(placement):
        raise PermanentError(
            f"placement names {len(placement)} tiers, the model has {len(ends)} segments, ending at "
            f"{', '.join(end.name for end in ends)}"
        )
    names = {point.position: point.name for point in points}

    def last(*tiers: Tier) -> str:
        on = [end.position for end, tier in zip(ends, placement, strict=True) if tier in tiers]
        return names.get(max(on, default=0), END)

    early = zip(ends[:-1], placement[:-1], strict=True)
    return {
        "edge_points": [last("edge")],
        "fog_points": [last("edge", "fog")],
        "exit_tiers": {end.exit: tier for end, tier in early if end.exit is not None},
    }


def _named(points: Sequence[SplitPoint], settings: PartitionSettings) -> list[SplitPoint]:
    """The split points that the user named, in order."""
    names = () if isinstance(settings.split, str) else settings.split
    return sorted({find_split(points, name) for name in names}, key=lambda point: point.position)
