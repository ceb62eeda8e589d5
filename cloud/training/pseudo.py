"""Labels for samples that have none, from the model that is in training (`fit` goes round by round with them).

Self-training: Scudder, IEEE Transactions on Information Theory 11, 1965; Lee, Pseudo-Label, ICML 2013 workshop. What is
sure of itself is not always right, so the model's probabilities are first brought down to earth on samples with a label
that it was not trained on, those of early stopping; and each round's labels are made anew, so that a wrong one may go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud.training.parts import Parts, Rows
from partitioner.promise.calibrate import temperature
from sluice.stage.policy import gate
from sluice.streams.samples import Labels
from sluice.wire.training import PseudoLabels

MOST_CLASSES = 1000
"""Classes up to which a round tells how many of each were labelled."""


def _none() -> Any:
    return np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Pseudo:
    """What was labelled: `rows` (m,), their `labels` (m,), and the temperature at which the model was sure enough."""

    rows: Rows = field(default_factory=_none)
    labels: Labels = field(default_factory=_none)
    temperature: float | None = None

    def told(self, classes: int) -> dict[str, Any]:
        """How many were labelled, in all and of each of `classes`."""
        counts = np.bincount(self.labels, minlength=classes).tolist() if classes <= MOST_CLASSES else None
        return {"labelled": len(self.rows), "by_class": counts, "temperature": self.temperature}


def pseudo_labels(logits_of: Callable[[Rows], Any], y: Labels, parts: Parts, wanted: PseudoLabels) -> Pseudo:
    """Label those of `parts.unlabelled` that the model is sure of; `logits_of` rows (n,) gives (n, classes) float32.

    The temperature (Guo et al., arXiv 1706.04599) is that of `parts.stop`, whose labels `y` tells.
    """
    at = temperature(logits_of(parts.stop), y[parts.stop])
    labels, confidence = gate("max_prob", logits_of(parts.unlabelled), at)
    sure = surest(labels, confidence, wanted.confidence, wanted.most_per_class)
    return Pseudo(parts.unlabelled[sure], labels[sure], at)


def surest(
    labels: Labels, confidence: NDArray[np.float64], least: float, most_per_class: int | None = None
) -> NDArray[np.int64]:
    """Which of n samples have `least` confidence (n,), rising; of each of `labels` (n,) the `most_per_class` surest."""
    order = np.argsort(-confidence, kind="stable")
    order = order[confidence[order] >= least]
    if most_per_class is not None:
        taken = [order[labels[order] == label][:most_per_class] for label in np.unique(labels[order])]
        order = np.concatenate([order[:0], *taken])
    return np.sort(order)
