"""What was found, put together for people: the data of the report (`shape`) and the summary of a job."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from partitioner.anatomy.exits import Anatomy
from partitioner.anatomy.splits import SplitPoint, as_rows
from partitioner.operate import Operated, Tested
from partitioner.pack import tools
from partitioner.planning.decide import Decided
from partitioner.planning.link import Link
from partitioner.planning.plan import figures
from partitioner.planning.scene import Measured
from partitioner.planning.verdict import front_rows, verdict
from partitioner.promise.calibrate import labels_of, reliability, sweep
from partitioner.promise.parts import Parts
from partitioner.samples import Samples
from partitioner.settings import AUTO, PartitionSettings

if TYPE_CHECKING:
    from partitioner.partition import Source

Json = dict[str, Any]
Labels = NDArray[np.int64]

RATES_BPS = np.geomspace(1e4, 1e9, 31)
"""Rates of the uplink at which strategies are compared."""
CHOSEN = "chosen"


def gather(
    source: Source,
    found: Anatomy,
    every: Sequence[SplitPoint],
    measured: Measured,
    decided: Decided,
    operated: Operated,
    samples: Samples,
    wanted: Labels | None,
    parts: Parts,
    settings: PartitionSettings,
    warnings: Sequence[str],
) -> Json:
    """The report but for its digest, of the shape of `shape.Report`."""
    first = operated.points[0]
    return {
        "model": source.model,
        "version": source.version,
        "task": found.task,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "verdict": _verdict(measured, decided, first, settings),
        "warnings": list(warnings),
        "data": {
            "n": len(samples),
            "parts": {name: len(getattr(parts, name)) for name in ("train", "temperature", "plan", "certify")},
            "groups": None if samples.groups is None else len(np.unique(samples.groups)),
        },
        "segments": _segments(operated, first, samples, wanted, parts),
        "points": [_point(one) for one in operated.points],
        "exits": [] if wanted is None else _exits(operated, first, samples, wanted, parts),
        "pareto": front_rows(measured.scene, decided.plan),
        "links": _links(measured, decided, first),
        "split_points": _split_points(every, measured, decided, found),
        "groups": _groups(first),
        "settings": settings.model_dump(mode="json", exclude={"device"})
        | ({"device": settings.device.cpu or settings.device.machine} if settings.device else {}),
        "tools": tools(),
    }


def summary(operated: Operated) -> Json:
    """The default operating point in a few figures, and `lines` of it for people."""
    tested = operated.points[0]
    point = tested.point
    exits = [segment.exit.name for segment in operated.segments if segment.exit]
    return {
        "segments": [segment.name for segment in operated.segments],
        "exits": exits,
        "macs": [segment.macs for segment in operated.segments],
        "placement": list(point.placement),
        "codec": point.codec,
        "thresholds": [policy.threshold for policy in point.policies[:-1]],
        "temperatures": [policy.temperature for policy in point.policies],
        "certificate": point.certificate.model_dump() if point.certificate else None,
        "uncertified_because": _reason(tested),
        "operating_points": [one.point.id for one in operated.points],
        "lines": _lines(operated, exits),
        **point.expected,
    }


def _lines(operated: Operated, exits: Sequence[str]) -> list[str]:
    tested = operated.points[0]
    point = tested.point
    lines = [
        f"segment {one.index} to {one.name} on {tier}"
        for one, tier in zip(operated.segments, point.placement, strict=True)
    ]
    shares = point.expected.get("exit_share", [])
    for name, share in zip(exits, shares if isinstance(shares, list) else [], strict=False):
        lines.append(f"exit {name} answers {share:.1%}")
    if "agreement" in point.expected:
        lines.append(f"agreement with the full model {point.expected['agreement']:.2%}")
    if point.certificate:
        one = point.certificate
        lines.append(
            f"certified ({one.criterion}): at most {one.epsilon:.2%} harmed, {1 - one.delta:.0%} sure, "
            f"for new {one.scope}, from {one.n} samples"
        )
    return lines


def _reason(tested: Tested) -> str | None:
    return tested.certified.reason or None if tested.certified else None


def _point(tested: Tested) -> Json:
    point = tested.point
    return {
        "id": point.id,
        "placement": list(point.placement),
        "codec": point.codec,
        "thresholds": [policy.threshold for policy in point.policies[:-1]],
        "certificate": point.certificate.model_dump() if point.certificate else None,
        "uncertified_because": None if point.certificate else _reason(tested),
        "expected": point.expected,
    }


def _verdict(measured: Measured, decided: Decided, first: Tested, settings: PartitionSettings) -> str:
    """What the plan decided, with the figures of what is deployed."""
    plan, s = decided.plan, settings
    free = s.split == s.exits == s.codec == AUTO and s.placement is None and s.thresholds is None
    return verdict(
        measured.scene, s.objective, first.choice, plan.baselines, plan.split, plan.least_agreement, fixed=not free
    )


def _segments(operated: Operated, first: Tested, samples: Samples, wanted: Labels | None, parts: Parts) -> list[Json]:
    point, told = first.point, []
    shares = point.expected.get("exit_share", [])
    number = 0
    for index, (segment, crossing) in enumerate(zip(operated.segments, operated.crossings, strict=True)):
        sent = first.passage.sent[index - 1] if index else None
        exit_of = None
        if segment.exit is not None and wanted is not None:
            policy = point.policies[number]
            labels = labels_of(first.passage.logits[number])
            exit_of = {
                "name": segment.exit.name,
                "share": shares[number] if isinstance(shares, list) else 0.0,
                "agreement": float((labels == wanted[parts.certify]).mean()),
                "accuracy": None if samples.y is None else float((labels == samples.y[parts.certify]).mean()),
                "temperature": policy.temperature,
                "threshold": policy.threshold if number < len(point.policies) - 1 else None,
            }
            number += 1
        told.append(
            {
                "index": index,
                "name": segment.name,
                "macs": segment.macs,
                "file_bytes": segment.file.size,
                "tier": point.placement[index],
                "exit": exit_of,
                "reference_us": segment.reference_us,
                "crossing": [{"name": one.name, "shape": list(one.shape), "dtype": one.dtype} for one in crossing],
                "crossing_bytes": float(sent.mean()) if sent is not None and sent.any() else None,
            }
        )
    return told


def _exits(operated: Operated, first: Tested, samples: Samples, wanted: Labels, parts: Parts) -> list[Json]:
    names = [segment.exit.name for segment in operated.segments if segment.exit]
    answers, y = wanted[parts.certify], None if samples.y is None else samples.y[parts.certify]
    told = []
    for k, name in enumerate(names):
        labels = labels_of(first.passage.logits[k])
        right = labels == (answers if y is None else y)
        last = k == len(names) - 1
        told.append(
            {
                "name": name,
                "sweep": [] if last else sweep(first.confidence[k], labels, answers, y),
                "reliability": reliability(first.confidence[k], right),
            }
        )
    return told


def _links(measured: Measured, decided: Decided, first: Tested) -> Json:
    scene = measured.scene
    strategies = {CHOSEN: first.choice, **decided.plan.baselines}
    return {
        "uplink": {"rate_bps": scene.uplink.rate_bps, "delay_s": scene.uplink.delay_s},
        "rates_bps": RATES_BPS.tolist(),
        "strategies": [
            {
                "name": name,
                "latency_ms": [
                    figures(scene, choice, Link(rate, scene.uplink.delay_s)).latency_ms for rate in RATES_BPS.tolist()
                ],
                "chosen": name == CHOSEN,
            }
            for name, choice in strategies.items()
        ],
    }


def _split_points(every: Sequence[SplitPoint], measured: Measured, decided: Decided, found: Anatomy) -> list[Json]:
    sizes = {point.name: dict(point.bytes) for point in measured.scene.points}
    chosen = {end.position for end in decided.ends}
    exits = {found.position(k) for k in range(len(found.exits) - 1)}
    return [
        row
        | {
            "bytes": {**row["bytes"], **sizes.get(point.name, {})},
            "chosen": point.position in chosen,
            "exit": point.position in exits,
        }
        for point, row in zip(every, as_rows(every), strict=True)
    ]


def _groups(first: Tested) -> Json | None:
    certified = first.certified
    if certified is None or not certified.spread:
        return None
    return {
        "risk": {name: one.risk for name, one in certified.spread.items()},
        "n": {name: one.n for name, one in certified.spread.items()},
        "promise": certified.reason
        or f"The promise is made for new groups, from {certified.groups} groups that certified.",
    }
