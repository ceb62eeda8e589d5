"""What a prediction through Kafka is compared with: the Keras model, called for one sample after the other."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray


def called(model: Any, x: NDArray[np.float32]) -> tuple[list[float], list[int]]:
    """(milliseconds, label) of each sample of `x` (n, *shape), by `model(x)`, the way that Keras recommends for few."""
    return _each(lambda one: np.asarray(model(one, training=False)), x)


def predicted(model: Any, x: NDArray[np.float32]) -> tuple[list[float], list[int]]:
    """The same by `model.predict(x)`, as most people write it, and Kafka-ML's paper did."""
    return _each(lambda one: model.predict(one, verbose=0), x)


def _each(answer: Any, x: NDArray[np.float32]) -> tuple[list[float], list[int]]:
    times, labels = [], []
    for i in range(len(x)):
        begun = time.perf_counter()
        labels.append(int(answer(x[i : i + 1])[0].argmax()))
        times.append(1000 * (time.perf_counter() - begun))
    return times, labels
