"""From exported segments and held-out samples to scales, temperatures, thresholds and what to expect of them.

The samples are split once: one part fits what needs no promise (int8 ranges, temperatures, candidates for the
threshold), the other certifies. Everything after the ranges sees tensors as they come through the codec.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from partitioner import certify
from partitioner.chain import Passage, ranges_of, run_chain, with_scales
from sluice.stage.policy import gate
from sluice.stage.segment import Arrays
from sluice.wire.manifest import Certificate, ExitPolicy, OperatingPoint, Segment, TensorSpec
from sluice.wire.names import Tier

if TYPE_CHECKING:
    from partitioner.export import Exported

FIT_SHARE = 0.25
"""Share of the samples that fits; the rest certifies."""
NEVER = 2.0
"""A threshold that no confidence reaches."""
COLDEST, HOTTEST = 0.05, 20.0

Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Goal:
    """What was asked for: ε = `max_accuracy_loss`, δ = 1 − `confidence`, and how tensors travel."""

    max_accuracy_loss: float
    confidence: float
    codec: str
    measure: str
    placement: tuple[Tier, ...]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Segments with their scales, the operating points, and why there is no certified early exit, if there is none."""

    segments: list[Segment]
    inputs: tuple[TensorSpec, ...]
    points: tuple[OperatingPoint, ...]
    reason: str


def calibrate(
    exported: Sequence[Exported],
    crossings: Sequence[Sequence[TensorSpec]],
    samples: Arrays,
    y: Labels | None,
    wanted: Labels,
    goal: Goal,
    seed: int = 0,
) -> Calibrated:
    """Calibrate on `samples` (name: (n, *shape), none of them trained on).

    `crossings[k]`: specs of what crosses into segment k, without scales. `y`: (n,) true labels, if known. `wanted`:
    (n,) labels of the full float model. The operating points are `default` (certified, or without early exits where
    nothing can be certified) and `no-exit`.
    """
    running = [one.segment for one in exported]
    fit, rest = _halves(len(wanted), seed)
    ranges = ranges_of(running, _rows(samples, fit))
    segments = with_scales([one.spec for one in exported], ranges)
    scaled = {t.name: t for segment in segments for t in (*segment.outputs, *segment.inputs)}
    known = [[scaled.get(spec.name, spec) for spec in specs] for specs in crossings]

    fitted = run_chain(running, known, _rows(samples, fit), goal.placement, goal.codec)
    truth = wanted if y is None else y
    temperatures = [temperature(logits, truth[fit]) for logits in fitted.logits]
    levels = certify.candidates(_confidence(goal.measure, fitted, temperatures)[:-1])

    passage = run_chain(running, known, _rows(samples, rest), goal.placement, goal.codec)
    confidence = _confidence(goal.measure, passage, temperatures)[:-1]
    labels = [gate(goal.measure, logits, 1.0)[0] for logits in passage.logits]
    epsilon, delta = goal.max_accuracy_loss, round(1 - goal.confidence, 12)
    chosen = certify.choose(goal.measure, levels, confidence, labels, wanted[rest], epsilon, delta)

    def point(name: str, threshold: float, certificate: Certificate | None) -> OperatingPoint:
        exits = certify.first_exit(goal.measure, confidence, threshold, len(rest))
        policies = [
            ExitPolicy.model_validate(
                {"measure": goal.measure, "threshold": threshold if k < len(confidence) else 0.0, "temperature": t}
            )
            for k, t in enumerate(temperatures)
        ]
        return OperatingPoint(
            id=name,
            placement=goal.placement,
            codec=goal.codec,
            policies=tuple(policies),
            certificate=certificate,
            expected=expected(passage, labels, exits, wanted[rest], None if y is None else y[rest]),
        )

    certificate = None
    if chosen.threshold is not None:
        certificate = Certificate(
            method=certify.METHOD,
            criterion="agreement",
            epsilon=epsilon,
            delta=delta,
            n=chosen.n,
            violations=chosen.violations,
        )
    default = NEVER if chosen.threshold is None else chosen.threshold
    points = (point("default", default, certificate), point("no-exit", NEVER, None))
    return Calibrated(segments, tuple(known[0]), points, chosen.reason)


def temperature(logits: NDArray[np.float32], labels: Labels) -> float:
    """The temperature that makes the probabilities of `logits` (n, classes) most likely for `labels` (n,).

    Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599.
    """
    rows = np.arange(len(labels))

    def loss(log_t: float) -> float:
        return float(-log_softmax(logits.astype(np.float64) / np.exp(log_t), axis=1)[rows, labels].mean())

    found = minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded")
    return float(np.exp(found.x))


def expected(
    passage: Passage, labels: Sequence[Labels], exits: Labels, wanted: Labels, y: Labels | None
) -> dict[str, float | list[float]]:
    """What was measured, where `exits` (n,) says which exit answers a sample; bytes are means over those that cross."""
    n = len(exits)
    answers = np.stack(labels)[exits, np.arange(n)]
    share = np.bincount(exits, minlength=len(labels)) / n
    figures: dict[str, float | list[float]] = {
        "agreement": float((answers == wanted).mean()),
        "exit_share": share.tolist(),
        "crossing_bytes": [
            float(sent[exits > k].mean()) if (exits > k).any() else float(sent.mean())
            for k, sent in enumerate(passage.sent)
        ],
    }
    if y is not None:
        figures["accuracy"] = float((answers == y).mean())
        figures["full_model_accuracy"] = float((wanted == y).mean())
        figures["exit_accuracy"] = [float((label == y).mean()) for label in labels]
    return figures


def _confidence(measure: str, passage: Passage, temperatures: Sequence[float]) -> list[NDArray[np.float32]]:
    return [gate(measure, logits, t)[1] for logits, t in zip(passage.logits, temperatures, strict=True)]


def _halves(n: int, seed: int) -> tuple[Labels, Labels]:
    """Indices of the fitting and of the certifying samples."""
    order = np.random.default_rng(seed).permutation(n)
    size = max(1, round(n * FIT_SHARE))
    return np.sort(order[:size]), np.sort(order[size:])


def _rows(samples: Arrays, indices: Labels) -> Arrays:
    return {name: array[indices] for name, array in samples.items()}
