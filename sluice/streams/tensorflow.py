"""From arrays to `tf.data`: the only module of the streams that imports TensorFlow.

Row numbers are shuffled and batched, and each batch is gathered in one go; single records never pass through Python.
"""

from __future__ import annotations

import tensorflow as tf

from sluice.streams.samples import Array, Labels


def dataset(x: Array, y: Labels | None, batch: int, shuffle_seed: int | None = None) -> tf.data.Dataset:
    """Batches of (x (b, *shape), y (b,)), or of x alone without labels; shuffled anew in each epoch if a seed is given.

    The last batch may be smaller. The same seed gives the same order.
    """
    rows = tf.data.Dataset.range(len(x))
    if shuffle_seed is not None:
        rows = rows.shuffle(len(x), seed=shuffle_seed, reshuffle_each_iteration=True)
    values = tf.constant(x)
    if y is None:
        return rows.batch(batch).map(lambda at: tf.gather(values, at)).prefetch(2)
    labels = tf.constant(y)
    return rows.batch(batch).map(lambda at: (tf.gather(values, at), tf.gather(labels, at))).prefetch(2)
