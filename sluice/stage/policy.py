"""The exit policy: from an exit's logits to "answer here" or "go on".

A confidence measure is a `Measure` in `MEASURES`; to add one, write its two forms and add the line (and its name to
`sluice.wire.manifest.ExitPolicy`). Both forms do the same in float64: one for a batch, one for a single sample in plain
Python, because NumPy's calls cost more than a small exit does. Calibration uses the batch form, a device mostly the
other; they agree to about 1e-15, and thresholds lie between observed confidences, so what was certified is what runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sluice.wire.manifest import ExitPolicy

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Logits = NDArray[Any]
"""(n, classes) float32, as segments give them."""

PLAIN_CLASSES = 64
"""Up to so many classes plain Python is faster for a single sample than NumPy."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A confidence from `powers`, the exponentials of the logits less the largest of them over the temperature, and
    their `total` (1 at least): about 0 to 1, larger is surer.

    `batch`: of (n, classes) and (n,). `single`: of a list and a number.
    """

    batch: Callable[[Doubles, Doubles], Doubles]
    single: Callable[[list[float], float], float]


def _max_prob(powers: Doubles, total: Doubles) -> Doubles:
    """Probability of the most likely class."""
    del powers
    result: Doubles = 1.0 / total
    return result


def _max_prob_1(powers: list[float], total: float) -> float:
    del powers
    return 1.0 / total


def _margin(powers: Doubles, total: Doubles) -> Doubles:
    """Probability of the most likely class less that of the second."""
    second: Doubles = np.partition(powers, powers.shape[1] - 2, axis=1)[:, -2]
    margin: Doubles = (1.0 - second) / total
    return margin


def _margin_1(powers: list[float], total: float) -> float:
    return (1.0 - sorted(powers)[-2]) / total


def _entropy(powers: Doubles, total: Doubles) -> Doubles:
    """1 less the entropy over its maximum ln(classes), so that larger is surer here as well."""
    logs = np.log(powers, out=np.zeros_like(powers), where=powers > 0)
    certainty: Doubles = 1.0 - (np.log(total) - (powers * logs).sum(axis=1) / total) / math.log(powers.shape[1])
    return certainty


def _entropy_1(powers: list[float], total: float) -> float:
    weighed = sum([p * math.log(p) for p in powers if p > 0.0])
    return 1.0 - (math.log(total) - weighed / total) / math.log(len(powers))


MEASURES: dict[str, Measure] = {
    "max_prob": Measure(_max_prob, _max_prob_1),
    "margin": Measure(_margin, _margin_1),
    "entropy": Measure(_entropy, _entropy_1),
}


def probabilities(logits: Logits, temperature: float) -> Floats:
    """Softmax of `logits` (n, classes) float32 divided by `temperature`, worked out in float64, as float32.

    Temperature scaling: Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599.
    """
    if _is_single(logits):
        row = _powers(logits.tolist()[0], temperature)
        total = sum(row)
        return np.array([[power / total for power in row]], np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # infinite logits give NaN, as NaN does
        scaled = logits.astype(np.float64)
        scaled -= scaled.max(axis=1, keepdims=True)
        scaled /= temperature
        np.exp(scaled, out=scaled)
        scaled /= scaled.sum(axis=1, keepdims=True)
    return scaled.astype(np.float32)


def gate(measure: str, logits: Logits, temperature: float) -> tuple[NDArray[np.int64], Doubles]:
    """Labels (n,) int64 and confidence (n,) float64 in 0..1 (larger is surer) of `logits` (n, classes) float32.

    The label is the first class with the largest logit. A sample with a logit that is NaN, or whose largest is
    infinite, has label 0 and confidence 0: no exit is sure of it.
    """
    if _is_single(logits):
        label, sure = _gate_single(measure, logits.tolist()[0], temperature)
        return np.array([label], np.int64), np.array([sure])
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = logits.astype(np.float64)
        labels: NDArray[np.int64] = scaled.argmax(axis=1)
        scaled -= scaled.max(axis=1, keepdims=True)
        scaled /= temperature
        powers = np.exp(scaled, out=scaled)
        total = powers.sum(axis=1)
        confidence = MEASURES[measure].batch(powers, total)
    # a measure may end a hair outside of 0..1; fmax takes the number where the other is NaN
    return np.where(np.isnan(total), 0, labels), np.fmin(np.fmax(confidence, 0.0), 1.0)


def decide(policy: ExitPolicy, logits: Logits, *, last: bool = False) -> tuple[list[int], list[float], list[bool]]:
    """What an exit thinks of each of `logits` (n, classes) float32: labels, confidence, and whether it answers.

    The last exit always answers.
    """
    if _is_single(logits):
        label, sure = _gate_single(policy.measure, logits.tolist()[0], policy.temperature)
        return [label], [sure], [last or sure >= policy.threshold]
    labels, confidence = gate(policy.measure, logits, policy.temperature)
    answers = [True] * len(labels) if last else passes(policy, confidence).tolist()
    return labels.tolist(), confidence.tolist(), answers


def passes(policy: ExitPolicy, confidence: Doubles) -> NDArray[np.bool_]:
    """Which samples (n,) are certain enough to be answered at this exit."""
    result: NDArray[np.bool_] = confidence >= policy.threshold
    return result


def _is_single(logits: Logits) -> bool:
    """Whether plain Python is the faster way."""
    return len(logits) == 1 and logits.size <= PLAIN_CLASSES


def _powers(logits: list[float], temperature: float) -> list[float]:
    """Exponentials of one sample's logits less the largest, over the temperature."""
    top, exp = max(logits), math.exp
    return [exp((logit - top) / temperature) for logit in logits]


def _gate_single(measure: str, logits: list[float], temperature: float) -> tuple[int, float]:
    """`gate` of one sample: (label, confidence) of `logits`, one number a class."""
    powers = _powers(logits, temperature)
    total = sum(powers)
    if not total >= 1.0:  # NaN: the largest is 1 otherwise
        return 0, 0.0
    sure = MEASURES[measure].single(powers, total)
    return logits.index(max(logits)), sure if 0.0 <= sure <= 1.0 else float(sure > 0.5)
