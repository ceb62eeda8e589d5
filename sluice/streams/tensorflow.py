"""From streams to `tf.data`: the only module of the streams that imports TensorFlow.

`datasets` gives an announced stream as training and validation data, `group_dataset` a live one. Row numbers are
shuffled and batched, and each batch is gathered in one go; single records never pass through Python.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from sluice.doors.kafka import KafkaCluster
from sluice.streams.group import Group
from sluice.streams.reader import ALIGNED, MEMORY_BYTES, Batch, load_stream, split_stream
from sluice.streams.samples import Array, Labels, StreamConfig
from sluice.wire.state import Announcement

TOGETHER_BYTES = 2_000_000
"""So much of samples is brought together at once, at most, or one batch if that is more."""
ROW_BYTES = 16
"""A sample's row number and label."""


def datasets(
    cluster: KafkaCluster,
    announcement: Announcement,
    batch: int,
    *,
    seed: int = 0,
    folder: Path | None = None,
    memory_bytes: int = MEMORY_BYTES,
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """(training, validation) of an announced stream: batches of (x (b, *shape), y (b,)).

    Kafka is read once, here; epochs run over what is kept, in memory or in a file in `folder`. Training data are
    shuffled anew in each epoch, over all topic partitions, by `seed`; what belongs to validation is the stream's own
    and always the same (`split_stream`). Raises as `sluice.streams.reader.load_stream`.
    """
    x, y = load_stream(cluster, announcement, folder=folder, memory_bytes=memory_bytes)
    train, held_out = split_stream(announcement, y, len(x))
    to_train = dataset(x, y, batch, seed, rows=train)
    return to_train, dataset(x, y, batch, rows=held_out) if len(held_out) else to_train.take(0)


def dataset(
    x: Array,
    y: Labels | None,
    batch: int,
    shuffle_seed: int | None = None,
    rows: Array | None = None,
) -> tf.data.Dataset:
    """Batches of (x (b, *shape), y (b,)), or of x alone without labels; shuffled anew in each epoch if a seed is given.

    `rows`: only those samples. The last batch may be smaller. The same seed gives the same order. `x` may not change
    while the dataset is in use.
    """
    at = np.arange(len(x)) if rows is None else np.asarray(rows, np.int64)
    values, labels = gatherer(x), None if y is None else tf.constant(y)

    def of(these: tf.Tensor) -> Any:
        return values(these) if y is None else (values(these), tf.gather(labels, these))

    if shuffle_seed is None:
        batches = in_batches(tf.data.Dataset.range(1), lambda _: at, batch, of, bytes_of(x))
    else:
        drawn = tf.data.Dataset.random(shuffle_seed, rerandomize_each_iteration=True).take(1)
        batches = in_batches(drawn, lambda one: np.random.default_rng(one).permutation(at), batch, of, bytes_of(x))
    count = math.ceil(len(at) / batch)  # told to Keras, which warns of data that end
    return batches.apply(tf.data.experimental.assert_cardinality(count))


def in_batches(
    epochs: tf.data.Dataset,
    order: Callable[[int], Array],
    batch: int,
    of: Callable[[tf.Tensor], Any],
    sample_bytes: int,
) -> tf.data.Dataset:
    """What `of` makes of row numbers (b,), batch by batch; `order` tells the row numbers (n,) of an epoch, and is asked
    ahead of time with the number that stands for it in `epochs`.

    As many batches as `TOGETHER_BYTES` hold, of samples that take `sample_bytes` each, are made by one call of `of`,
    while those before them are used: a call for each would take longer than the samples themselves. Of what tf.data
    offers to find out while it runs, nothing is used, since that takes longer than a small epoch.
    """
    together = batch * max(1, TOGETHER_BYTES // (batch * (sample_bytes + ROW_BYTES)))

    def cut(number: int) -> tuple[Array, Array]:
        """Row numbers of whole batches, and apart those of one that is not whole, (k, most), and how many in each."""
        rows = order(int(number))
        whole = len(rows) - len(rows) % batch
        parts = [rows[begin : min(begin + together, whole)] for begin in range(0, whole, together)]
        parts += [rows[whole:]] if whole < len(rows) else []
        sizes = np.array([len(part) for part in parts], np.int64)
        padded = np.zeros((len(parts), sizes.max(initial=0)), np.int64)
        for row, part in zip(padded, parts, strict=True):
            row[: len(part)] = part
        return padded, sizes

    def by_numpy(number: tf.Tensor) -> Any:
        padded, sizes = tf.numpy_function(cut, [number], [tf.int64, tf.int64])
        return tf.ensure_shape(padded, (None, None)), tf.ensure_shape(sizes, (None,))

    def some(padded: tf.Tensor, size: tf.Tensor) -> Any:
        each = tf.minimum(size, batch)
        return tf.nest.map_structure(lambda made: tf.reshape(made, (-1, each, *made.shape[1:])), of(padded[:size]))

    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    pieces = epochs.map(by_numpy).prefetch(1).unbatch()
    return pieces.map(some).prefetch(1).unbatch().with_options(options)


def bytes_of(x: Array) -> int:
    """What one sample of x (n, *shape) takes."""
    return math.prod(x.shape[1:]) * x.dtype.itemsize


def gatherer(x: Array) -> Any:
    """Row numbers (b,) to samples (b, *shape): by TensorFlow from memory, by NumPy from a file."""
    if not isinstance(x, np.memmap):
        values = _as_tensor(x)
        return lambda these: tf.gather(values, these)

    def from_file(these: tf.Tensor) -> tf.Tensor:
        found = tf.numpy_function(lambda rows: x[rows], [these], x.dtype, stateful=False)
        found.set_shape((None, *x.shape[1:]))
        return found

    return from_file


def _as_tensor(x: Array) -> tf.Tensor:
    """The same memory where it is as TensorFlow wants it, which that of a stream is; else a copy."""
    if not x.size or x.ctypes.data % ALIGNED or not (x.flags.c_contiguous and x.flags.writeable):
        return tf.constant(x)
    return tf.experimental.dlpack.from_dlpack(x.__dlpack__())


def group_dataset(group: Group, config: StreamConfig) -> tuple[tf.data.Dataset, keras.callbacks.Callback]:
    """A live stream as batches of (x (b, *shape), y (b,)), and the callback that commits those that were trained on.

    The dataset can be gone through once. `fit` it for one epoch with the callback, and without steps that repeat it.
    """
    given: deque[Batch] = deque()

    def batches() -> Iterator[tuple[Array, Labels]]:
        for one in group:
            given.append(one)
            if len(one.y):
                yield one.x, one.y

    signature = (
        tf.TensorSpec((None, *config.shape), tf.uint8 if config.dtype == "uint8" else tf.float32),
        tf.TensorSpec((None,), tf.int64),
    )
    return tf.data.Dataset.from_generator(batches, output_signature=signature), CommitUsed(group, given)


class CommitUsed(keras.callbacks.Callback):
    """Commits a batch of a group when it was trained on, and what was left out whole before it."""

    def __init__(self, group: Group, given: deque[Batch]) -> None:
        super().__init__()
        self._group = group
        self._given = given

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """The oldest batch that was given out and not committed is the one that was used."""
        del batch, logs
        while self._given:
            one = self._given.popleft()
            self._group.commit(one)
            if len(one.y):
                return
