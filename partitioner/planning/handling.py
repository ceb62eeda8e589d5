"""What a tier spends on a sample besides its segments and the codec: the step around them, the gates, the messages.

Next to a small segment that is no trifle, so the plan counts it. It is measured here with segments that do nothing,
in the code that runs on every tier.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sluice.stage.segment import Arrays
from sluice.stage.step import Stage, Work, step, unpack
from sluice.wire.manifest import (
    Blob,
    ExitHead,
    ExitPolicy,
    Manifest,
    OperatingPoint,
    Provenance,
    Segment,
    TensorSpec,
)
from sluice.wire.messages import Offload, decode, encode

RUNS, SECONDS = (15, 400), 0.3
CALL_BYTES = 20_000
"""A segment's call takes about as long as copying so many bytes."""
LEAST_ALONE = 0.1
"""Share of its time that a segment keeps at least when the cuts' share is taken off."""
DIGEST = "0" * 64
CROSSING = TensorSpec(name="h", dtype="float32", shape=(1,))


@dataclass(frozen=True, slots=True)
class Handling:
    """µs a sample: a tier's `step`, less its segments and gates; each `gate`; `pack`: a message to bytes; `unpack`:
    bytes to a message and its tensors, less what the codec takes."""

    step: float = 0.0
    gate: float = 0.0
    pack: float = 0.0
    unpack: float = 0.0


def without_cuts(
    us: NDArray[np.float64], whole: float, sizes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(P,) what the P segments of a finely cut trunk would take in one file, and (P - 1,) what each cut costs, µs.

    `us`: (P,) measured apart; `whole`: the trunk in one file; `sizes`: (P - 1,) bytes that cross each cut. What the
    segments take longer together is the cuts': a call each, and the bytes, which are copied out and in. Half of it is
    the segment's before, half that of the one after.
    """
    weight = CALL_BYTES + sizes
    cuts = max(0.0, us.sum() - whole) * weight / max(1.0, weight.sum())
    alone = us - (np.append(cuts, 0.0) + np.append(0.0, cuts)) / 2
    alone = np.maximum(alone, us * LEAST_ALONE)
    return alone * whole / alone.sum(), cuts


class _Idle:
    """A segment that has its outputs ready."""

    def __init__(self, made: Arrays) -> None:
        self.made = made

    def run(self, *_: object, **__: object) -> Arrays:
        return dict(self.made)


def measure_handling(classes: int, meanwhile: Callable[[], object] = lambda: None) -> Handling:
    """On this machine, for a classifier of so many classes (0: a model that does not classify).

    `meanwhile` is called before each step that is timed: a segment, which leaves little of it in the caches. Times are
    the thread's own, so that it does not matter who else is at work.
    """
    made = {"h": np.zeros((1, 1), np.float32), "logits": np.zeros((1, max(classes, 2)), np.float32)}
    sample = Work(_sample(), {"h": made["h"][0]})
    bare, gated = (_manifest(max(classes, 2), exits) for exits in (False, True))
    stages = [Stage("edge", DIGEST, one, 0, [_Idle(made)] * 2) for one in (bare, gated)]
    without, with_gate = (_median_us(lambda stage=stage: step(stage, [sample]), meanwhile) for stage in stages)
    (outcome,) = step(stages[1], [sample])
    payload = encode(outcome)
    return Handling(
        step=without,
        gate=max(0.0, with_gate - without) if classes else 0.0,
        pack=_median_us(lambda: encode(outcome)),
        unpack=_median_us(lambda: unpack(decode(payload), gated)),
    )


def _manifest(classes: int, exits: bool) -> Manifest:
    """Two segments, the first on the device, its exit, if it has one, never sure enough."""
    blob = Blob(sha256=DIGEST, size=1)
    head = ExitHead(name="exit", logits="logits")
    shared = {"file": blob, "golden": blob, "inputs": (CROSSING,), "macs": 0, "tolerance": 1.0}
    first = Segment(index=0, exit=head if exits else None, outputs=(), passes=("h",), **shared)
    last = Segment(index=1, exit=head, outputs=(), **shared)
    policies = (ExitPolicy(measure="max_prob", threshold=2.0),) * (1 + exits)
    point = OperatingPoint(id="default", placement=("edge", "cloud"), codec="raw", policies=policies)
    return Manifest(
        model="model",
        version=1,
        labels=tuple(str(label) for label in range(classes)),
        inputs=(CROSSING,),
        segments=(first, last),
        operating_points=(point,),
        provenance=Provenance(created_at=""),
    )


def _sample() -> Offload:
    return Offload(
        device_id="device",
        epoch="00" * 8,
        seq=0,
        source_id=None,
        model="model",
        bundle=DIGEST,
        operating_point="default",
        tier="edge",
        next_segment=0,
        tensors=(),
        beliefs=(),
        captured_at=0,
        ttl_ms=1000,
    )


def _median_us(work: Callable[[], object], meanwhile: Callable[[], object] = lambda: None) -> float:
    taken: list[float] = []
    until = time.perf_counter() + SECONDS
    while len(taken) < RUNS[0] or (len(taken) < RUNS[1] and time.perf_counter() < until):
        meanwhile()
        begun = time.thread_time_ns()
        work()
        taken.append((time.thread_time_ns() - begun) / 1000)
    return statistics.median(taken)
