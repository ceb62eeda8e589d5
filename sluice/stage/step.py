"""One step of a stage: a batch of samples in, predictions and offloads out. Pure, the same on every tier.

The samples of a batch share bundle, operating point and next segment. They run through this tier's segments one by
one; at each exit those that are certain enough are answered, the others go on; what is left after the tier's last
segment is offloaded to the next. An audit (what an exit has answered already) goes on at every exit but the final one.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import compress

import numpy as np

from sluice.stage.policy import decide, probabilities
from sluice.stage.segment import Array, Arrays, RunningSegment
from sluice.wire.codec import decode_tensor, encode_tensor
from sluice.wire.errors import PermanentError, in_short
from sluice.wire.manifest import ExitPolicy, Manifest, OperatingPoint, TensorSpec
from sluice.wire.messages import Belief, Offload, Outcome, Prediction, Reason, Status
from sluice.wire.names import Tier

RESULT = Belief(0, -1, 1.0)
"""What a model that does not classify thinks of its answer."""
_FLOAT32 = struct.Struct("f")


@dataclass(frozen=True, slots=True)
class Leg:
    """One segment at an operating point: its exit if it has one (number, policy, name of its logits), and what crosses
    after it (for the model's last: its outputs)."""

    number: int
    policy: ExitPolicy | None
    logits: str
    crossing: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """An operating point, looked up once: the segments that this tier runs, all legs of the model, its inputs."""

    point: OperatingPoint
    share: range
    legs: tuple[Leg, ...]
    inputs: tuple[TensorSpec, ...]

    def into(self, index: int) -> tuple[TensorSpec, ...]:
        """What crosses into segment `index`."""
        return self.legs[index - 1].crossing if index else self.inputs


@dataclass(frozen=True, slots=True)
class Stage:
    """A tier's share of a bundle, loaded: `segments` from index `first` on, in order."""

    tier: Tier
    digest: str
    manifest: Manifest
    first: int
    segments: Sequence[RunningSegment]
    routes: dict[str, Route] = field(default_factory=dict, compare=False, repr=False)
    """Those that were needed, by operating point."""

    def route(self, point_id: str) -> Route:
        """The route of an operating point; `PermanentError` if the manifest has none of that id."""
        found = self.routes.get(point_id)
        if found is None:
            found = self.routes[point_id] = _route(self.manifest, point_id, self.tier)
        return found


def _route(manifest: Manifest, point_id: str, tier: Tier) -> Route:
    point = manifest.operating_point(point_id)
    numbers = {segment.index: number for number, segment in enumerate(manifest.exits)}
    last = len(manifest.segments) - 1
    legs = [
        Leg(
            numbers.get(i, 0),
            point.policies[numbers[i]] if segment.exit else None,
            segment.exit.logits if segment.exit else "",
            segment.outputs if i == last else manifest.crossing(i + 1),
        )
        for i, segment in enumerate(manifest.segments)
    ]
    return Route(point, share_of(point, tier), tuple(legs), manifest.inputs)


@dataclass(frozen=True, slots=True)
class Work:
    """A sample on its way: `offload` says who it is and what earlier exits thought (its `tensors` are not read
    here), `tensors` holds what crosses into its next segment, each of the manifest's shape without a batch axis."""

    offload: Offload
    tensors: Arrays

    @property
    def kind(self) -> tuple[str, int, bool]:
        """Operating point, next segment, whether it is an audit: what the samples of a batch share, in one bundle."""
        before = self.offload
        return (before.operating_point, before.next_segment, before.audit is not None)


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
            f"tensors {in_short(sorted(t.name for t in offload.tensors))} where segment {offload.next_segment} needs "
            f"{in_short(sorted(specs))}"
        )
    return Work(offload, {t.name: decode_tensor(t, specs[t.name]) for t in offload.tensors})


def step(stage: Stage, works: Sequence[Work]) -> list[Outcome]:
    """An outcome for each of `works`, in their order.

    A model that does not classify has no exits: its last segment answers for every sample, with label -1, confidence 1
    and all its results as float32, one after the other in the order of the manifest. Raises `PermanentError` if the
    stage has none of the segments that the samples need.
    """
    offload = works[0].offload
    route = stage.route(offload.operating_point)
    start, end = offload.next_segment, len(route.legs) - 1
    if start not in route.share:
        raise PermanentError(f"segment {start} is not placed on {stage.tier} at {route.point.id!r}")
    begun = time.perf_counter_ns()
    outcomes: list[Outcome | None] = [None] * len(works)
    beliefs: dict[int, tuple[Belief, ...]] = {}
    live = list(range(len(works)))
    tensors = {spec.name: _together([work.tensors[spec.name] for work in works]) for spec in route.into(start)}
    for index in range(start, route.share.stop):
        leg = route.legs[index]
        made = stage.segments[index - stage.first].run(tensors, lent=True)
        if leg.policy is not None:
            logits = made[leg.logits]
            labels, sure, answers = decide(leg.policy, logits, last=index == end)
            thoughts = [Belief(leg.number, *pair) for pair in zip(labels, map(_as_sent, sure), strict=True)]
            if any(answers) and (index == end or offload.audit is None):
                spent = _share_us(begun, works)
                known = iter(probabilities(logits if all(answers) else logits[answers], leg.policy.temperature))
                for sample, answered, belief in zip(live, answers, thoughts, strict=True):
                    if answered:
                        outcomes[sample] = predict(
                            works[sample].offload,
                            belief,
                            stage.tier,
                            "final",
                            "last" if index == end else "exit",
                            spent_us=spent,
                            outputs=next(known).astype("<f4").tobytes(),
                        )
                if all(answers):
                    break
                keep = [not answered for answered in answers]
                live, thoughts = list(compress(live, keep)), list(compress(thoughts, keep))
                made = {name: array[keep] for name, array in made.items()}
                tensors = {name: array[keep] for name, array in tensors.items()}
            for sample, belief in zip(live, thoughts, strict=True):
                beliefs[sample] = (*beliefs.get(sample, works[sample].offload.beliefs), belief)
        tensors = {s.name: made[s.name] if s.name in made else tensors[s.name] for s in leg.crossing}
    else:
        spent = _share_us(begun, works)
        crossing = route.into(route.share.stop)
        for row, sample in enumerate(live):
            own = [(spec, tensors[spec.name][row]) for spec in crossing]
            before = works[sample].offload
            if route.share.stop > end:
                results = b"".join(array.astype("<f4").tobytes() for _, array in own)
                outcomes[sample] = predict(before, RESULT, stage.tier, "final", "last", spent_us=spent, outputs=results)
            else:
                outcomes[sample] = replace(
                    before,
                    tier=route.point.placement[route.share.stop],
                    next_segment=route.share.stop,
                    tensors=tuple(encode_tensor(array, spec, route.point.codec) for spec, array in own),
                    beliefs=beliefs.get(sample, before.beliefs),
                    compute_us=_add(before.compute_us, stage.tier, spent),
                )
    return [outcome for outcome in outcomes if outcome is not None]


def _together(arrays: list[Array]) -> Array:
    """A batch (n, *shape) of the samples' tensors."""
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _share_us(begun_ns: int, works: Sequence[Work]) -> int:
    """Time since `begun_ns` that falls to each of `works`, µs."""
    return (time.perf_counter_ns() - begun_ns) // 1000 // len(works)


def _as_sent(confidence: float) -> float:
    """`confidence` as it travels: float32."""
    sent: float = _FLOAT32.unpack(_FLOAT32.pack(confidence))[0]
    return sent


def predict(
    offload: Offload,
    belief: Belief,
    tier: Tier,
    status: Status,
    reason: Reason,
    *,
    spent_us: int = 0,
    outputs: bytes = b"",
) -> Prediction:
    """The prediction that `belief` makes of the sample of `offload`; `outputs`: little-endian float32, or none."""
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
        outputs=outputs,
        status=status,
        reason=reason,
        captured_at=offload.captured_at,
        produced_at=time.time_ns() // 1000,
        compute_us=_add(offload.compute_us, tier, spent_us),
        bytes_sent=offload.bytes_sent,
        trace=offload.trace,
        audit=offload.audit,
    )


def best_belief(offload: Offload) -> Belief | None:
    """What the surest of the exits passed so far thought; None when none was passed."""
    return max(offload.beliefs, key=lambda belief: belief.confidence, default=None)


def _add(compute: dict[str, int], tier: Tier, spent_us: int) -> dict[str, int]:
    return {**compute, tier: compute.get(tier, 0) + spent_us} if spent_us else compute
