"""What an exit takes for what: counts of (true, answered) pairs, and precision and recall of each class."""

from __future__ import annotations

from typing import Any

import numpy as np

from sluice.streams.samples import Labels

MOST_COUNTS = 100_000
"""Counts of all exits' matrices in a job's report, which is bounded; with more the matrices are left out of it."""


def confusion(y: Labels, answered: Labels, classes: int) -> Any:
    """(classes, classes) int64: row is the true label, column what was answered. `y`, `answered`: (n,)."""
    return np.bincount(y * classes + answered, minlength=classes * classes).reshape(classes, classes)


def summary(matrix: Any, exits: int = 1) -> dict[str, Any]:
    """`matrix` (rows: true label; None where those of so many `exits` are over `MOST_COUNTS`), and by class `precision`
    and `recall` (shares; None where nothing was answered so, or no sample is of it)."""
    right = np.diagonal(matrix)
    return {
        "matrix": matrix.tolist() if matrix.size * exits <= MOST_COUNTS else None,
        "precision": _shares(right, matrix.sum(axis=0)),
        "recall": _shares(right, matrix.sum(axis=1)),
    }


def _shares(part: Any, whole: Any) -> list[float | None]:
    return [round(float(p / w), 6) if w else None for p, w in zip(part, whole, strict=True)]
