"""Samples for Keras by their row numbers: they stand in memory once, whatever is drawn of them, and in what order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from cloud.training.parts import Rows
from sluice.streams.samples import Array, Labels
from sluice.streams.tensorflow import gatherer

LOOKED_AT = 256
"""Samples in a batch that is only looked at."""


class Samples:
    """x (n, *shape) and y (n,) int64, for a model that takes `dtype` and has these `exits`."""

    def __init__(self, x: Array, y: Labels, dtype: str, exits: Sequence[str]) -> None:
        self._values = gatherer(x)
        self._labels = tf.constant(y)
        self._dtype = dtype
        self._exits = exits

    def looked_at(self, rows: Rows) -> tf.data.Dataset:
        """Batches of (x, y by exit) of these rows, in their order."""
        return tf.data.Dataset.from_tensor_slices(rows).batch(LOOKED_AT).map(self._of).prefetch(2)

    def trained_on(
        self, order: Callable[[], Rows], batch: int, y: Labels | None = None, weights: Any = None
    ) -> tf.data.Dataset:
        """Batches of (x, y by exit), with `weights` (n,) of the samples of (x, y by exit, weight).

        Each time that it is gone through, `order` says which rows, and in what order. `y` (n,): other labels.
        """

        def whole() -> Iterator[Rows]:
            yield order()

        rows = tf.data.Dataset.from_generator(whole, output_signature=tf.TensorSpec((None,), tf.int64)).unbatch()
        labels = self._labels if y is None else tf.constant(y)
        if weights is None:
            return rows.batch(batch).map(lambda these: self._of(these, labels)).prefetch(2)
        by_row = tf.constant(weights)

        def weighted(these: tf.Tensor) -> Any:
            return *self._of(these, labels), tf.gather(by_row, these)

        return rows.batch(batch).map(weighted).prefetch(2)

    def _of(self, rows: tf.Tensor, labels: Any = None) -> Any:
        x = tf.cast(self._values(rows), self._dtype)
        return x, dict.fromkeys(self._exits, tf.gather(self._labels if labels is None else labels, rows))
