"""How good a model is that learns on: each record is answered first and learnt from then (test-then-train).

Prequential error: Gama, Sebastião and Rodrigues, "On evaluating stream learning algorithms", Machine Learning 90, 2013:
over a window of the last records, which forgets what the model was once, and over the whole stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


class Prequential:
    """Of each exit, whether it was right and its loss: in a window of `size` labelled records, and in whole."""

    def __init__(self, exits: Sequence[str], size: int) -> None:
        self._exits, self._size = list(exits), size
        self._right = np.empty((0, len(exits)), bool)
        self._loss = np.empty((0, len(exits)), np.float32)
        self._whole = np.zeros((2, len(exits)))
        """Right answers and losses of each exit, summed up."""
        self._labels = np.empty(0, np.int64)
        self.count = 0

    def take(self, right: Any, loss: Any, labels: Any) -> None:
        """Some labelled records in order: right (n, exits) bool, loss (n, exits) in nats, labels (n,)."""
        self.count += len(right)
        self._whole += np.stack([right.sum(axis=0), loss.sum(axis=0)])
        self._right = np.concatenate([self._right, right])[-self._size :]
        self._loss = np.concatenate([self._loss, loss.astype(np.float32)])[-self._size :]
        self._labels = np.concatenate([self._labels, labels])[-self._size :]

    @property
    def full(self) -> bool:
        """Whether the window is."""
        return len(self._right) == self._size

    @property
    def accuracy(self) -> float:
        """Of the final exit, in the window; 0 where it is empty."""
        return float(self._right[:, -1].mean()) if len(self._right) else 0.0

    def seen(self, classes: int) -> Any:
        """How many records of each class there are in the window: (classes,)."""
        return np.bincount(self._labels, minlength=classes)

    def forget(self) -> None:
        """Begin the window anew."""
        self._right, self._loss, self._labels = self._right[:0], self._loss[:0], self._labels[:0]

    def metrics(self) -> dict[str, dict[str, float]]:
        """By exit: accuracy and loss in the window, whole_accuracy and whole_loss; nothing without a record."""
        if not self.count:
            return {}
        found = {}
        for i, name in enumerate(self._exits):
            found[name] = {
                "whole_accuracy": round(self._whole[0, i] / self.count, 6),
                "whole_loss": round(self._whole[1, i] / self.count, 6),
            }
            if len(self._right):
                found[name]["accuracy"] = round(float(self._right[:, i].mean()), 6)
                found[name]["loss"] = round(float(self._loss[:, i].mean()), 6)
        return found

    def arrays(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {
            "right": self._right,
            "loss": self._loss,
            "labels": self._labels,
            "whole": self._whole,
            "count": np.array(self.count),
        }

    def restore(self, arrays: dict[str, Any]) -> None:
        """The inverse of `arrays`."""
        self._right, self._loss, self._labels = arrays["right"], arrays["loss"], arrays["labels"]
        self._whole, self.count = arrays["whole"].copy(), int(arrays["count"])
