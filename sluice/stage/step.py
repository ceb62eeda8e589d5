"""One step of a stage: a batch of samples in, predictions and offloads out. Pure, the same on every tier.

The samples of a batch share bundle, operating point and next segment. They run through this tier's segments one by
one; at each exit those that are certain enough are answered, the others go on; what is left after the tier's last
segment is offloaded to the next.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sluice.stage.policy import gate, passes
from sluice.stage.segment import Array, Arrays, RunningSegment
from sluice.wire.codec import decode_tensor, encode_tensor
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Manifest, OperatingPoint
from sluice.wire.messages import Belief, Offload, Outcome, Prediction, Reason, Status
from sluice.wire.names import Tier


@dataclass(frozen=True, slots=True)
class Stage:
    """A tier's share of a bundle, loaded: `segments` from index `first` on, in order."""

    tier: Tier
    digest: str
    manifest: Manifest
    first: int
    segments: Sequence[RunningSegment]


@dataclass(frozen=True, slots=True)
class Work:
    """A sample on its way: `offload` says who it is and what earlier exits thought (its `tensors` are not read
    here), `tensors` holds what crosses into its next segment, each of the manifest's shape without a batch axis."""

    offload: Offload
    tensors: Arrays


def share_of(point: OperatingPoint, tier: Tier) -> range:
    """The segments that `tier` runs at an operating point; they are neighbours, maybe none."""
    indices = [i for i, placed in enumerate(point.placement) if placed == tier]
    return range(indices[0], indices[-1] + 1) if indices else range(0)


def loaded_by(manifest: Manifest, tier: Tier) -> range:
    """The segments that `tier` needs for every operating point of the manifest, so that it may move among them."""
    shares = [share for point in manifest.operating_points if (share := share_of(point, tier))]
    return range(min(s.start for s in shares), max(s.stop for s in shares)) if shares else range(0)


def unpack(offload: Offload, manifest: Manifest) -> Work:
    """Decode the tensors of `offload` against the manifest.

    Raises `PermanentError` unless they are exactly what crosses into its next segment, of the same model.
    """
    if offload.model != manifest.model:
        raise PermanentError(f"offload is of model {offload.model!r}, its bundle of {manifest.model!r}")
    if offload.next_segment >= len(manifest.segments):
        raise PermanentError(f"next_segment {offload.next_segment} of {len(manifest.segments)} segments")
    specs = {spec.name: spec for spec in manifest.crossing(offload.next_segment)}
    if sorted(t.name for t in offload.tensors) != sorted(specs):
        raise PermanentError(
            f"tensors {sorted(t.name for t in offload.tensors)} where segment {offload.next_segment} needs "
            f"{sorted(specs)}"
        )
    return Work(offload, {t.name: decode_tensor(t, specs[t.name]) for t in offload.tensors})


def step(stage: Stage, works: Sequence[Work]) -> list[Outcome]:
    """An outcome for each of `works`, in their order.

    Raises `PermanentError` if the stage has none of the segments that they need.
    """
    offload = works[0].offload
    manifest = stage.manifest
    point = manifest.operating_point(offload.operating_point)
    share = share_of(point, stage.tier)
    start = offload.next_segment
    if start not in share:
        raise PermanentError(f"segment {start} is not placed on {stage.tier} at {point.id!r}")
    begun = time.perf_counter_ns()
    outcomes: list[Outcome | None] = [None] * len(works)
    beliefs: list[tuple[Belief, ...]] = [work.offload.beliefs for work in works]
    live = np.arange(len(works))
    tensors = {spec.name: np.stack([work.tensors[spec.name] for work in works]) for spec in manifest.crossing(start)}
    for index in range(start, share.stop):
        made = stage.segments[index - stage.first].run(tensors)
        spec = manifest.segments[index]
        if spec.exit is not None:
            number = manifest.exits.index(spec)
            policy = point.policies[number]
            labels, confidence, probs = gate(
                policy.measure, made[spec.exit.logits].astype(np.float32, copy=False), policy.temperature
            )
            last = index == len(manifest.segments) - 1
            answered = np.ones(len(live), bool) if last else passes(policy, confidence)
            spent = (time.perf_counter_ns() - begun) // 1000 // len(works)
            for row, sample in enumerate(live.tolist()):
                belief = Belief(number, int(labels[row]), float(confidence[row]))
                if answered[row]:
                    outcomes[sample] = predict(
                        works[sample].offload,
                        belief,
                        stage.tier,
                        "final",
                        "last" if last else "exit",
                        spent_us=spent,
                        outputs=probs[row],
                    )
                else:
                    beliefs[sample] = (*beliefs[sample], belief)
            if answered.all():
                break
            keep = ~answered
            live = live[keep]
            made = {name: array[keep] for name, array in made.items()}
            tensors = {name: array[keep] for name, array in tensors.items()}
        tensors = {
            spec.name: made[spec.name] if spec.name in made else tensors[spec.name]
            for spec in manifest.crossing(index + 1)
        }
    else:
        spent = (time.perf_counter_ns() - begun) // 1000 // len(works)
        crossing = manifest.crossing(share.stop)
        for row, sample in enumerate(live.tolist()):
            before = works[sample].offload
            outcomes[sample] = replace(
                before,
                tier=point.placement[share.stop],
                next_segment=share.stop,
                tensors=tuple(encode_tensor(tensors[s.name][row], s, point.codec) for s in crossing),
                beliefs=beliefs[sample],
                compute_us=_add(before.compute_us, stage.tier, spent),
            )
    return [outcome for outcome in outcomes if outcome is not None]


def predict(
    offload: Offload,
    belief: Belief,
    tier: Tier,
    status: Status,
    reason: Reason,
    *,
    spent_us: int = 0,
    outputs: Array | None = None,
) -> Prediction:
    """The prediction that `belief` makes of the sample of `offload`; `outputs` (classes,) float32 if there are."""
    return Prediction(
        device_id=offload.device_id,
        epoch=offload.epoch,
        seq=offload.seq,
        source_id=offload.source_id,
        model=offload.model,
        bundle=offload.bundle,
        operating_point=offload.operating_point,
        tier=tier,
        exit=belief.exit,
        label=belief.label,
        confidence=belief.confidence,
        outputs=b"" if outputs is None else outputs.astype("<f4").tobytes(),
        status=status,
        reason=reason,
        captured_at=offload.captured_at,
        produced_at=time.time_ns() // 1000,
        compute_us=_add(offload.compute_us, tier, spent_us),
        bytes_sent=offload.bytes_sent,
        trace=offload.trace,
    )


def best_belief(offload: Offload) -> Belief | None:
    """What the surest of the exits passed so far thought; None when none was passed."""
    return max(offload.beliefs, key=lambda belief: belief.confidence, default=None)


def _add(compute: dict[str, int], tier: Tier, spent_us: int) -> dict[str, int]:
    return {**compute, tier: compute.get(tier, 0) + spent_us} if spent_us else compute
