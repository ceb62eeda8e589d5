"""What an evaluation asks, and what is answered: a Keras model (`keras_asked`) or a bundle (`chain`), in one form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sluice.streams.samples import Array, StreamConfig
from sluice.wire.errors import PermanentError


@dataclass(frozen=True, slots=True)
class Answers:
    """Of n samples: by name logits (n, classes), and, of a bundle, `by` (n,): the number of the exit that answers."""

    logits: Mapping[str, Array]
    by: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """Its `exits` in order and what else it answers with (`more`), how many classes it tells apart, what a sample has
    to be, and what it answers to x (n, *shape)."""

    exits: tuple[str, ...]
    more: tuple[str, ...]
    classes: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    answer: Callable[[Array], Answers]

    def require(self, config: StreamConfig, stream: str) -> None:
        """Raise `PermanentError` when samples as a stream's `config` describes them are not what it takes."""
        if config.shape != self.shape:
            raise PermanentError(
                f"stream {stream!r} has samples of shape {list(config.shape)}, the model takes {list(self.shape)}"
            )
        dtype = np.dtype(np.uint8 if config.dtype == "uint8" else np.float32)
        if not np.can_cast(dtype, self.dtype, "same_kind"):
            raise PermanentError(f"stream {stream!r} has {dtype} samples, the model takes {self.dtype}")
