"""Windows: `count` readings make one input, a new one begins every `hop` readings."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.sensor import Values
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import TensorSpec


class Window:
    """The readings that a later input still needs; they also stand in the journal, which survives a crash."""

    def __init__(self, count: int, hop: int, journal: Iterable[Values] = ()) -> None:
        self.count = count
        self.hop = hop or count
        self._readings: deque[Values] = deque(journal)
        self._skip = 0

    def push(self, values: Values) -> tuple[NDArray[Any] | None, int]:
        """Take in a reading. Returns (the input that it completes or None, readings no longer needed)."""
        self._readings.append(values)
        dropped = 0
        while self._skip and self._readings:
            self._readings.popleft()
            self._skip -= 1
            dropped += 1
        if len(self._readings) < self.count:
            return None, dropped
        whole = np.concatenate([self._readings[i] for i in range(self.count)])
        gone = min(self.hop, len(self._readings))
        for _ in range(gone):
            self._readings.popleft()
        self._skip = self.hop - gone
        return whole, dropped + gone


def as_input(values: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """`values` in the dtype and shape of the model's input (no batch axis).

    Raises `PermanentError` when they are too many or too few, or do not fit the dtype.
    """
    if values.size != spec.size:
        raise PermanentError(f"{values.size} values where input {spec.name!r} takes {spec.size}")
    if spec.dtype != "bool":
        info = np.finfo(spec.dtype) if spec.is_float else np.iinfo(spec.dtype)
        if values.min() < info.min or values.max() > info.max:
            raise PermanentError(f"values from {values.min():g} to {values.max():g} do not fit {spec.dtype}")
    return values.astype(spec.dtype).reshape(spec.shape)
