"""What is to be expected of candidates: latency, bytes, device compute and harm of many plans at once, as arrays.

With a set of early exits chosen, the model is a line of *stations*. The first is the raw input; then comes each point
of the trunk, together with the first exit that hangs there, and each further exit at the same point (at the input:
every exit) as a station of its own. A plan ends the edge at one station and the fog at the same or a later one. A
sample pays for every station up to the exit that answers it.

So for one codec everything splits into a part of where the edge ends and a part of where the fog ends, which is what
makes an exact search cheap: latency = `edge[level, e]` + `fog[level, f]`, or `straight[level, e]` without a fog.

**Taken as it is**: one sample at a time on idle tiers and links; an exit that hangs where a tier's trunk ends runs on
that tier (further exits there may run on the next). **Approximated**: the harm of a lossy codec is added
to that of the exits, and the harm of two crossings is the sum of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from partitioner.promise.thresholds import exits_of, expected_harm
from sluice.wire.names import TIERS, Tier

if TYPE_CHECKING:
    from partitioner.planning.link import Link
    from partitioner.planning.plan import Scene

Floats = NDArray[np.float64]
COSTS = ("harm", "latency_us", "bytes", "device_us")
"""What a candidate costs, by column: share harmed, and means over all samples."""
DIGITS = 7
"""Decimals of a cost that tell."""


@dataclass(frozen=True, slots=True)
class Line:
    """Stations, (S,) each: the `point` where they lie, exits `passed` once they are done (the final one is the last
    station's), and µs that a sample spends there on each tier."""

    point: NDArray[np.int64]
    passed: NDArray[np.int64]
    us: dict[Tier, Floats]


@dataclass(frozen=True, slots=True)
class Levels:
    """L settings of the thresholds of K early exits: `answered` (L, n) exit that answers, `harm` (L,) share of samples
    that is expected to be harmed, `going_on` (L, K + 2) share without an answer yet once so many exits are passed."""

    thresholds: Sequence[tuple[float, ...]]
    answered: NDArray[np.int64]
    harm: Floats
    going_on: Floats


@dataclass(frozen=True, slots=True)
class Expected:
    """Means over all samples, (L, S) each; latencies and `device` in µs, infinite where the codec cannot cross."""

    edge: Floats
    fog: Floats
    straight: Floats
    bytes: Floats
    device: Floats
    loss: Floats
    """Share of samples that a crossing here harms."""


def line_of(scene: Scene, exits: Sequence[int]) -> Line:
    """The stations when the early exits `exits` are kept."""
    gate = {tier: scene.codec_scale.get(tier, 1.0) * scene.handling.gate for tier in TIERS}
    point, passed = [0], [0]
    us: dict[Tier, list[float]] = {tier: [0.0] for tier in TIERS}
    for index in range(len(scene.points)):
        here = [k for k in exits if scene.exits[k].at == index]
        for number in range(max(len(here), 1 if index else 0)):
            point.append(index)
            passed.append(passed[-1] + (number < len(here)))
            for tier in TIERS:
                trunk = scene.trunk_us[tier][index - 1] if index and number == 0 else 0.0
                head = scene.exits[here[number]].head_us[tier] + gate[tier] if here else 0.0
                us[tier].append(trunk + head)
    passed[-1] += 1
    for tier in TIERS:
        us[tier][-1] += gate[tier]
    return Line(np.array(point), np.array(passed), {tier: np.array(spent) for tier, spent in us.items()})


def levels_of(scene: Scene, exits: Sequence[int], thresholds: Sequence[tuple[float, ...]]) -> Levels:
    """What the samples of the scene do at each of `thresholds` (one for each of `exits`)."""
    confidence = [scene.confidence[k] for k in exits]
    harm = np.stack([*(scene.harm[k] for k in exits), scene.harm[-1]])
    n = harm.shape[1]
    answered = np.stack([exits_of(confidence, level, n) for level in thresholds])
    sure = [np.nan_to_num(one, nan=0.0) for one in confidence]
    harmed = expected_harm(sure, harm)[answered, np.arange(n)]
    going_on = np.stack([(answered >= passed).mean(axis=1) for passed in range(len(exits) + 2)], axis=1)
    return Levels(thresholds, answered, harmed.mean(axis=1).round(DIGITS), going_on)


def expect(scene: Scene, line: Line, levels: Levels, codec: str, uplink: Link) -> Expected:
    """What is to be expected at each level when the edge, or the fog, ends at each station."""
    before = levels.going_on[:, np.concatenate([[0], line.passed[:-1]])]
    after = levels.going_on[:, line.passed]
    slow, own = {tier: scene.codec_scale.get(tier, 1.0) for tier in TIERS}, scene.handling
    spent = {tier: np.cumsum(before * line.us[tier], axis=1) for tier in TIERS}
    points = [scene.points[p] for p in line.point]
    inside, can = points[:-1], np.array([*(codec in p.bytes for p in points[:-1]), True])
    message = scene.header_bytes + np.array([*(p.bytes.get(codec, 0.0) for p in inside), 0.0])
    packing = np.array([*(p.encode_us.get(codec, 0.0) for p in inside), 0.0])
    unpacking = np.array([*(p.decode_us.get(codec, 0.0) for p in inside), 0.0])
    at_edge = slow["edge"] * (own.pack + own.step * (np.arange(len(points)) > 0))
    above = {tier: slow[tier] * (own.unpack + own.step + own.pack) for tier in TIERS}

    up, back = 1e6 * uplink.time_s(message), 1e6 * scene.backhaul.time_s(message)
    down = 1e6 * uplink.time_s(scene.answer_bytes) + slow["edge"] * own.unpack
    down_back = 1e6 * scene.backhaul.time_s(scene.answer_bytes)
    into_fog = slow["edge"] * packing + up + slow["fog"] * unpacking + above["fog"] + down
    into_cloud = slow["fog"] * packing + back + slow["cloud"] * unpacking + above["cloud"] + down_back
    straight = slow["edge"] * packing + up + back + slow["cloud"] * unpacking + above["cloud"] + down_back + down
    cloud_after = spent["cloud"][:, -1:] - spent["cloud"]
    device = at_edge + spent["edge"] + after * slow["edge"] * (packing + own.unpack)
    answers = (1 - after) * scene.answer_bytes if scene.results_sent else 0.0
    return Expected(
        edge=np.where(can, at_edge + spent["edge"] - spent["fog"] + after * into_fog, np.inf),
        fog=np.where(can, spent["fog"] + cloud_after + after * into_cloud, np.inf),
        straight=np.where(can, at_edge + spent["edge"] + cloud_after + after * straight, np.inf),
        bytes=after * message + answers,
        device=device,
        loss=_loss(scene, line, levels, codec, after),
    )


def costs_of(
    levels: Levels, expected: Expected, level: NDArray[np.int64], edge: NDArray[np.int64], fog: NDArray[np.int64]
) -> Floats:
    """(N, 4) costs of N candidates, in the order of `COSTS`: at each `level`, with edge and fog ending at stations."""
    again = fog > edge
    latency = np.where(again, expected.edge[level, edge] + expected.fog[level, fog], expected.straight[level, edge])
    loss = expected.loss[level, edge] + np.where(again, expected.loss[level, fog], 0.0)
    harm = np.minimum(1.0, levels.harm[level] + loss)
    costs = np.stack([harm, latency, expected.bytes[level, edge], expected.device[level, edge]], axis=1)
    return costs.round(DIGITS)  # equals are to be equal


def _loss(scene: Scene, line: Line, levels: Levels, codec: str, after: Floats) -> Floats:
    """Share (L, S) of samples that cross and whose answer changes by it.

    Where it is known of each sample, those are counted. Where only the share of all samples is known, all of them are
    taken to be among those that cross: what an exit was sure of is hardly ever what a codec overturns.
    """
    lost = np.zeros_like(after)
    crossing: dict[tuple[int, int], Floats] = {}
    for station in range(len(line.point) - 1):
        changed = np.asarray(scene.points[line.point[station]].loss.get(codec, 0.0))
        if changed.ndim == 0:
            lost[:, station] = np.minimum(after[:, station], float(changed))
        elif changed.any():
            key = (int(line.passed[station]), len(changed))
            if key not in crossing:
                crossing[key] = (levels.answered[:, : key[1]] >= key[0]).astype(np.float64)
            lost[:, station] = crossing[key] @ changed / len(changed)
    return lost
