"""Samples for Keras by their row numbers: they stand in memory once, whatever is drawn of them, and in what order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from cloud.training.parts import Rows
from sluice.streams.samples import Array, Labels
from sluice.streams.tensorflow import bytes_of, gatherer, in_batches

LOOKED_AT = 256
"""Samples in a batch that is only looked at."""


class Samples:
    """x (n, *shape) and y (n,) int64, for a model that takes `dtype` and has these `exits`."""

    def __init__(self, x: Array, y: Labels, dtype: str, exits: Sequence[str]) -> None:
        self._values = gatherer(x)
        self._bytes = bytes_of(x)
        self._labels = tf.constant(y)
        self._dtype = dtype
        self._exits = exits

    def looked_at(self, rows: Rows) -> tf.data.Dataset:
        """Batches of (x, y by exit) of these rows, in their order."""
        batches = in_batches(tf.data.Dataset.range(1), lambda _: rows, LOOKED_AT, self._of, self._bytes)
        return batches.apply(tf.data.experimental.assert_cardinality(math.ceil(len(rows) / LOOKED_AT)))

    def trained_on(
        self,
        order: Callable[[int], Rows],
        epochs: range,
        batch: int,
        y: Labels | None = None,
        weights: Any = None,
    ) -> tf.data.Dataset:
        """Batches of (x, y by exit), with `weights` (n,) of the samples of (x, y by exit, weight), of one epoch after
        the other.

        `order` says which rows an epoch has, and in what order. `y` (n,): other labels.
        """

        labels = self._labels if y is None else tf.constant(y)
        by_row = None if weights is None else tf.constant(weights)

        def unweighted(these: tf.Tensor) -> Any:
            return self._of(these, labels)

        def weighted(these: tf.Tensor) -> Any:
            return *self._of(these, labels), tf.gather(by_row, these)

        numbers = tf.data.Dataset.range(epochs.start, epochs.stop)
        return in_batches(numbers, order, batch, unweighted if weights is None else weighted, self._bytes)

    def _of(self, rows: tf.Tensor, labels: Any = None) -> Any:
        x = tf.cast(self._values(rows), self._dtype)
        return x, dict.fromkeys(self._exits, tf.gather(self._labels if labels is None else labels, rows))
