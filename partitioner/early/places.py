"""Where an exit may hang: places by name, what a head reads there, and which places seem worth an exit."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from partitioner.anatomy.exits import Anatomy
from partitioner.anatomy.graph import Key
from partitioner.anatomy.splits import INPUT, SplitPoint, find_split, split_points
from partitioner.early import heads
from sluice.wire.errors import PermanentError

AUTO = "auto"
MOST = 3
"""Exits that `choose_places` chooses at most."""
TARGETS = (0.2, 0.5)
"""Shares of the model's MACs after which an exit is wanted."""
NEAR = 0.15
"""How far from its target an exit may be."""
HEAD_SHARE = 0.15
"""Largest share that a head's MACs should be of those that it saves."""
AT_MOST = 0.5
"""The same where an exit is asked for and no design is that cheap."""
INPUT_SIZE = 64 * 64 * 3
"""Values of an input above which a small net of its own is not tried by itself."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an exit is to hang, what it reads there, the head's design, and the exit's name."""

    point: SplitPoint
    key: Key
    head: str
    name: str


def choose_places(model: Anatomy) -> list[str]:
    """Where exits seem worth their cost: maybe the input, and block ends after a fifth and a half of the MACs.

    None of them where even the cheapest sensible head would cost more than `HEAD_SHARE` of what it saves.
    """
    points = split_points(model)
    raw = points[0]
    total = raw.macs_after
    if not model.exits or not total:
        return []
    chosen = [INPUT] if _input_is_small(model, raw) and _fitting(model, raw, raw.keys[0]) else []
    ends = [point for point in points if point.block_end and point.position and _feature(model, point) is not None]
    for target in TARGETS:
        near = [
            point
            for point in ends
            if abs(point.macs_before / total - target) <= NEAR
            and point.name not in chosen
            and _fitting(model, point, _feature(model, point))
        ]
        if near:
            size = max(1, raw.nbytes("raw"))
            best = min(near, key=lambda p: abs(p.macs_before / total - target) + 0.1 * min(p.nbytes("raw") / size, 1.0))
            chosen.append(best.name)
    return chosen[:MOST]


def _input_is_small(model: Anatomy, raw: SplitPoint) -> bool:
    (first, *others) = raw.tensors
    known = first.dtype.startswith("float") or first.dtype in ("uint8", "int8")
    return not others and known and len(model.inputs) == 1 and math.prod(first.shape) <= INPUT_SIZE


def _fitting(model: Anatomy, point: SplitPoint, key: Key, share: float = HEAD_SHARE) -> str | None:
    """The most accurate head for that share of what follows; at the input itself only one that is a net of its own."""
    found = heads.choose(model.graph.shape(key), model.classes, share * point.macs_after)
    return found if point.position or found in heads.NETS else None


def find_places(model: Anatomy, places: Sequence[str], head: str) -> list[Place]:
    """`places` looked up; `PermanentError` for what is not there."""
    if not model.exits:
        raise PermanentError("the model does not classify into single labels: no exit can be attached")
    if not places:
        raise PermanentError("no place to attach an exit at was named")
    points = split_points(model)
    names = {point.name for point in points}
    found: list[Place] = []
    for place in places:
        where, colon, design = (place, "", "") if place in names else place.rpartition(":")
        if not colon:
            where, design = place, head
        if design != AUTO and design not in heads.HEADS:
            raise PermanentError(f"head {design[:40]!r} is unknown; known: {AUTO}, {', '.join(heads.HEADS)}")
        point = find_split(points, where)
        key = _feature(model, point)
        if key is None:
            many = "several inputs cross" if len(point.keys) > 1 else "nothing that a head could read crosses"
            raise PermanentError(f"no exit can be attached at {where!r}: {many} there; choose a later place")
        if design == AUTO:
            design = _fitting(model, point, key) or _fitting(model, point, key, AT_MOST) or "linear"
        name = "exit-" + re.sub(r"[^A-Za-z0-9_.-]", "-", place)
        if name in model.results or name in [other.name for other in found]:
            raise PermanentError(
                f"there would be two exits called {name!r}: choose another place, or another head there"
            )
        found.append(Place(point, key, design, name))
    return found


def _feature(model: Anatomy, point: SplitPoint) -> Key | None:
    """What a head reads at `point`: the input, if it is the only one, or else what the last layer made."""
    inputs = set(model.inputs.values())
    made = [tensor for tensor in point.tensors if tensor.key not in inputs and tensor.dtype.startswith("float")]
    if made:
        return max(made, key=lambda tensor: tensor.key).key
    return point.keys[0] if point.position == 0 and len(point.keys) == 1 else None
