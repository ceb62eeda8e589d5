"""Training what is attached to a model: the heads alone on stored features, or everything at once.

What is learnt are probabilities: the full model's, whose answers an early exit stands in for, mixed with the true
labels where they are known (Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531). A tenth
of the samples is held out; it decides which epoch is kept and when there is nothing more to learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from sluice.wire.errors import PermanentError

Array = NDArray[np.generic]
Floats = NDArray[np.float32]

HELD_OUT = 0.1
"""Share of the samples that chooses the epoch."""
STEPS = 5000
"""Steps of training at most, within `EPOCHS`."""
EPOCHS = (4, 60)
BATCH = 256
PATIENCE, LEAST_GAIN = 6, 3e-4
"""Epochs in which the loss on the held-out samples has not become smaller by that much, after which it is enough."""
TOLD = 0.5
"""Weight of the true labels where they are known; the rest is the full model's probabilities."""


def targets(probabilities: Floats, y: NDArray[np.int64] | None) -> Floats:
    """What to learn (n, classes): the full model's `probabilities`, mixed with the true labels `y` (n,) if known."""
    if y is None:
        return probabilities
    mixed: Floats = probabilities * np.float32(1 - TOLD)
    mixed[np.arange(len(y)), y] += np.float32(TOLD)
    return mixed


def teach(
    model: keras.Model,
    inputs: Sequence[Array],
    wanted: Floats,
    *,
    from_logits: Mapping[str, bool],
    learning_rate: float,
    seed: int,
    told: Callable[[int, int], None],
) -> float:
    """Train `model` in place until every output in `from_logits` (by name: whether it gives logits) says `wanted`.

    `inputs`: (n, *shape) of each of the model's inputs, in its order; `wanted` (n, classes). The model's outputs are a
    dict; their cross entropies are added. Adam with a falling rate. `told(epochs done, epochs in all)`. Returns the
    least loss on the held-out samples, whose weights are kept. Raises `PermanentError` when it stops being a number.
    """
    rows = np.random.default_rng(seed).permutation(len(wanted))
    held = max(1, round(len(rows) * HELD_OUT))
    batch = int(np.clip(len(rows) // 20, 8, BATCH))
    steps = math.ceil((len(rows) - held) / batch)
    epochs = int(np.clip(STEPS // steps, *EPOCHS))
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(learning_rate, epochs * steps)),
        loss={name: keras.losses.CategoricalCrossentropy(from_logits=logits) for name, logits in from_logits.items()},
    )

    def after(epoch: int, logs: Mapping[str, float] | None = None) -> None:
        if not math.isfinite((logs or {})["val_loss"]):
            raise PermanentError("training the exits: the loss is not a number; scale the inputs")
        told(epoch + 1, epochs)

    data = _Data([tf.constant(array) for array in inputs], tf.constant(wanted), tuple(from_logits))
    stop = keras.callbacks.EarlyStopping("val_loss", LEAST_GAIN, PATIENCE, restore_best_weights=True)
    history = model.fit(
        data.batches(rows[held:], batch, seed),
        validation_data=data.batches(rows[:held], BATCH, None),
        epochs=epochs,
        shuffle=False,  # the data do it, by their seed
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=after), stop],
    )
    return float(min(history.history["val_loss"]))


class _Data:
    """Inputs and targets as TensorFlow holds them, from which batches are gathered by row number."""

    def __init__(self, inputs: Sequence[tf.Tensor], wanted: tf.Tensor, outputs: Sequence[str]) -> None:
        self.inputs, self.wanted, self.outputs = tuple(inputs), wanted, outputs

    def batches(self, rows: NDArray[np.int64], batch: int, seed: int | None) -> tf.data.Dataset:
        """Batches of `rows`, in another order in each epoch if a seed is given."""
        order = tf.data.Dataset.from_tensor_slices(rows)
        if seed is not None:
            order = order.shuffle(len(rows), seed=seed, reshuffle_each_iteration=True)
        return order.batch(batch).map(self._gather).prefetch(2)

    def _gather(self, at: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], dict[str, tf.Tensor]]:
        wanted = tf.gather(self.wanted, at)
        return tuple(tf.gather(array, at) for array in self.inputs), dict.fromkeys(self.outputs, wanted)
