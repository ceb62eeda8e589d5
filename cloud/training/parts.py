"""Which samples a training uses for what, in what order, and how much each counts; all of it the same each time."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sluice.streams.reader import split_stream, split_validation
from sluice.streams.samples import NONE, Labels
from sluice.wire.errors import PermanentError
from sluice.wire.state import Announcement
from sluice.wire.training import TrainingSettings

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Parts:
    """Row numbers: what is trained on, what early stopping asks (may be empty), and the validation part (may be), all
    with a label; and those that have none."""

    train: Rows
    stop: Rows
    held_out: Rows
    unlabelled: Rows = field(default_factory=lambda: np.empty(0, np.int64))


def parts_of(stream: Announcement, y: Labels, settings: TrainingSettings) -> Parts:
    """The parts of a stream with labels `y` (n,). Raises `PermanentError` when nothing is left to train or judge by."""
    train, held_out = split_stream(stream, y, len(y))
    known = y[train] != NONE
    train, unlabelled = train[known], train[~known]
    stop = train[:0]
    if stopping := settings.early_stopping:
        kept, aside = split_validation(y[train], stopping.share, settings.seed)
        if not len(aside):
            raise PermanentError(
                f"early stopping: a share of {stopping.share:g} of {len(train)} labelled samples sets none aside to "
                "judge by: raise the share"
            )
        train, stop = train[kept], train[aside]
    if not len(train):
        raise PermanentError(f"stream {stream.stream_id!r} leaves nothing to train on")
    return Parts(train, stop, held_out, unlabelled)


def shuffled(rows: Rows, seed: int, epoch: int) -> Rows:
    """The order of an epoch: the same for the same seed and epoch, whatever came before."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(rows)


def class_weights(
    settings: TrainingSettings, y: Labels, classes: int, labels: list[str] | None
) -> NDArray[np.float32] | None:
    """Weight of a sample by its label, (classes,), or None where all weigh 1.

    `y` (n,): labels of the training part; `labels`: the classes' names, if the stream tells them. Raises
    `PermanentError` for a label that there is not.
    """
    if settings.class_weights is None:
        return None
    weights = np.ones(classes, np.float32)
    if settings.class_weights == "balanced":
        present, counts = np.unique(y, return_counts=True)
        weights[present] = len(y) / (len(present) * counts)
        return weights
    numbers = {str(number): number for number in range(classes)}
    numbers |= {name: number for number, name in enumerate((labels or [])[:classes])}
    for name, weight in settings.class_weights.items():
        if name not in numbers:
            raise PermanentError(f"class_weights: there is no label {name!r} among {', '.join(list(numbers)[:20])}")
        weights[numbers[name]] = weight
    return weights
