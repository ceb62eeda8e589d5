"""The full model's answers, which everything else is compared with."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
from numpy.typing import NDArray

from partitioner.anatomy.cut import LOGITS, Cut, cut, ends_of, logits_model
from partitioner.anatomy.exits import Anatomy
from partitioner.samples import Arrays, Samples
from sluice.wire.errors import PermanentError

BATCH = 256

Labels = NDArray[np.int64]


def whole(model: Anatomy) -> Cut:
    """The model in one piece, early exits left out."""
    return cut(model, ends_of(model, ()))


def answers(model: Anatomy, samples: Samples, progress: Callable[[str, int, int], None]) -> Labels | None:
    """Labels (n,) of the full float model; None when it does not classify.

    Raises `PermanentError` when it answers NaN.
    """
    if not model.exits:
        return None
    one = whole(model)
    labels = [part[f"{LOGITS}0"].argmax(axis=1) for part in _outputs(logits_model(one), one, samples.inputs, progress)]
    return np.concatenate(labels)


def results(model: Anatomy, inputs: Arrays) -> Arrays:
    """What the full float model makes, by the names of its results: (n, *shape) each."""
    one = whole(model)
    parts = list(_outputs(logits_model(one), one, inputs, lambda *_: None))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _outputs(full: keras.Model, one: Cut, inputs: Arrays, progress: Callable[[str, int, int], None]) -> list[Arrays]:
    n = len(next(iter(inputs.values())))
    parts = []
    for i in range(0, n, BATCH):
        progress("asking the full model", i, n)
        made = full([inputs[crossing.name][i : i + BATCH] for crossing in one.inputs], training=False)
        part = {name: np.asarray(value) for name, value in made.items()}
        if not all(np.isfinite(array).all() for array in part.values()):
            raise PermanentError(f"the full model answers NaN or infinity on samples {i} to {min(n, i + BATCH) - 1}")
        parts.append(part)
    return parts
