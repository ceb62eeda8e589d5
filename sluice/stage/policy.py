"""The exit policy: from an exit's logits to "answer here" or "go on".

A confidence measure is a function in `MEASURES`; to add one, write it and add the line (and its name to
`sluice.wire.manifest.ExitPolicy`). Calibration uses these same functions, so what was certified is what runs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sluice.wire.manifest import ExitPolicy

Floats = NDArray[np.float32]


def probabilities(logits: Floats, temperature: float) -> Floats:
    """Softmax of `logits` (n, classes) float32 divided by `temperature`.

    Temperature scaling: Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599.
    """
    scaled: Floats = logits / np.float32(temperature)
    scaled -= scaled.max(axis=1, keepdims=True)
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(axis=1, keepdims=True)
    return scaled


def _max_prob(p: Floats) -> Floats:
    """Probability of the most likely class, 0..1."""
    result: Floats = p.max(axis=1)
    return result


def _margin(p: Floats) -> Floats:
    """Probability of the most likely class less that of the second, 0..1."""
    top = np.partition(p, p.shape[1] - 2, axis=1)[:, -2:]
    result: Floats = top[:, 1] - top[:, 0]
    return result


def _entropy(p: Floats) -> Floats:
    """1 less the entropy over its maximum ln(classes), so that larger is surer here as well, 0..1."""
    spread = -(p * np.log(np.maximum(p, 1e-12))).sum(axis=1)
    result: Floats = (1.0 - spread / np.log(p.shape[1])).astype(np.float32)
    return result


MEASURES: dict[str, Callable[[Floats], Floats]] = {
    "max_prob": _max_prob,
    "margin": _margin,
    "entropy": _entropy,
}


def gate(measure: str, logits: Floats, temperature: float) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Labels (n,) int64, confidence (n,) float32 in 0..1 (larger is surer), probabilities (n, classes) float32.

    A sample whose logits are not numbers has confidence 0: no exit is sure of it.
    """
    p = probabilities(logits, temperature)
    # a float32 measure may end a hair outside of 0..1; fmax takes the number where the other is NaN
    return p.argmax(axis=1), np.fmin(np.fmax(MEASURES[measure](p), np.float32(0)), np.float32(1)), p


def passes(policy: ExitPolicy, confidence: Floats) -> NDArray[np.bool_]:
    """Which samples (n,) are certain enough to be answered at this exit."""
    result: NDArray[np.bool_] = confidence >= policy.threshold
    return result
