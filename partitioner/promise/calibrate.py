"""From logits of held-out samples to temperatures and confidences, and what to expect of an exit by its confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import beta

from partitioner.segments.chain import Passage
from sluice.stage.policy import gate

COLDEST, HOTTEST = 0.05, 20.0
BINS = 15
"""Of the reliability diagram, of equal width."""
SWEPT = 33
"""Thresholds of a sweep, at even steps of the share that they let answer."""
SURE = 0.95
"""Of the intervals."""

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


def temperature(logits: NDArray[np.float32], labels: Labels) -> float:
    """The temperature that makes the probabilities of `logits` (n, classes) most likely for `labels` (n,).

    Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599. A weak belief in 1 keeps it
    from running off where all of few samples are right, or all logits equal. Rows that are not numbers do not count.
    """
    told = np.isfinite(logits).all(axis=1)
    known, right = logits[told].astype(np.float64), labels[told]
    rows = np.arange(len(known))

    def loss(log_t: float) -> float:
        return float(0.5 * log_t**2 - log_softmax(known / np.exp(log_t), axis=1)[rows, right].sum())

    found = minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded")
    return float(np.exp(found.x))


def labels_of(logits: NDArray[np.float32]) -> Labels:
    """The labels (n,) that a device answers with, `logits` (n, classes) that are no numbers included."""
    return gate("max_prob", logits, 1.0)[0]


def confidences(measure: str, logits: Sequence[NDArray[np.float32]], temperatures: Sequence[float]) -> list[Floats]:
    """The confidence (n,) in each of `logits` (n, classes), as the device's gate works it out."""
    return [gate(measure, one, t)[1] for one, t in zip(logits, temperatures, strict=True)]


def expected(
    passage: Passage, exits: Labels, wanted: Labels, y: Labels | None, passed: Sequence[int] | None = None
) -> dict[str, float | list[float]]:
    """What was measured, where `exits` (n,) tells which exit answers a sample, `wanted` (n,) the full model's labels.

    Shares 0..1 with 95 % intervals (Clopper and Pearson, Biometrika 26, 1934); `exit_accuracy` of each exit's answers
    to all samples. Bytes of each cut are means over those that cross it, `passed`
    being the number of exits before it (one more each, if not told). Accuracies are there where the true labels `y`
    (n,) are known.
    """
    n = len(exits)
    labels = np.stack([labels_of(logits) for logits in passage.logits])
    answers = labels[exits, np.arange(n)]
    before = range(1, len(passage.sent) + 1) if passed is None else passed
    figures: dict[str, float | list[float]] = {
        "agreement": float((answers == wanted).mean()),
        "agreement_interval": _interval(answers == wanted),
        "exit_share": (np.bincount(exits, minlength=len(labels)) / n).tolist(),
        "crossing_bytes": [
            float(sent[exits >= exits_before].mean()) if (exits >= exits_before).any() else float(sent.mean())
            for sent, exits_before in zip(passage.sent, before, strict=True)
        ],
    }
    if y is not None:
        figures["accuracy"] = float((answers == y).mean())
        figures["accuracy_interval"] = _interval(answers == y)
        figures["full_model_accuracy"] = float((wanted == y).mean())
        figures["exit_accuracy"] = (labels == y).mean(axis=1).tolist()
    return figures


def reliability(confidence: Floats, right: NDArray[np.bool_]) -> dict[str, Any]:
    """How far `confidence` (n,) can be taken at its word, `right` (n,) being whether the answer is.

    `bins`: mean confidence, share that is right, and count, of each of `BINS` even intervals that is not empty; `ece`:
    expected calibration error, the mean distance of the two over the samples (Guo et al., arXiv 1706.04599, section 2).
    """
    number = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    bins = []
    for one in np.unique(number):
        members = number == one
        bins.append(
            {
                "confidence": float(confidence[members].mean()),
                "right": float(right[members].mean()),
                "count": int(members.sum()),
            }
        )
    error = sum(abs(one["confidence"] - one["right"]) * one["count"] for one in bins) / max(len(confidence), 1)
    return {"bins": bins, "ece": float(error)}


def sweep(confidence: Floats, labels: Labels, wanted: Labels, y: Labels | None) -> list[dict[str, float | None]]:
    """What an early exit would answer by itself at one threshold after the other, from the strictest on.

    `confidence`, its `labels`, the full model's labels `wanted` and the true ones `y`, if known: (n,) each. `threshold`
    is an observed confidence, `share` of samples at or above it, `agreement` and `accuracy` of the answers to those.
    """
    order = np.argsort(-confidence, kind="stable")
    sorted_down = confidence[order]
    last = np.flatnonzero(np.append(sorted_down[1:] < sorted_down[:-1], True))
    last = last[sorted_down[last] > 0]
    if not len(last):
        return []
    n = len(order)
    at = np.unique(last[np.searchsorted(last, np.linspace(last[0], last[-1], SWEPT))])
    agreed = np.cumsum(labels[order] == wanted[order])
    correct = None if y is None else np.cumsum(labels[order] == y[order])
    return [
        {
            "threshold": float(sorted_down[i]),
            "share": (i + 1) / n,
            "agreement": float(agreed[i] / (i + 1)),
            "accuracy": None if correct is None else float(correct[i] / (i + 1)),
        }
        for i in at.tolist()
    ]


def _interval(hits: NDArray[np.bool_]) -> list[float]:
    """The exact interval of a share, at `SURE`."""
    n, k, tail = len(hits), int(hits.sum()), (1 - SURE) / 2
    return [
        float(beta.ppf(tail, k, n - k + 1)) if k else 0.0,
        float(beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0,
    ]
