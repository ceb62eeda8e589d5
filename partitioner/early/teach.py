"""Training what is attached to a model: the heads alone on stored features, or everything at once.

What is learnt are probabilities: the full model's, whose answers an early exit stands in for, mixed with the true
labels where they are known (Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531). A tenth
of the samples is held out; it decides which epoch is kept and when there is nothing more to learn. The loop is written
out here because for heads so small Keras' `fit` spends most of the time on itself.
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
EPOCHS = (2, 60)
"""Least and most epochs, whatever the steps."""
BATCHES = (8, 256)
"""Least and most samples a step; in between a twentieth of all."""
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
    steps: int,
    seed: int,
    told: Callable[[int, int], None],
) -> float:
    """Train `model` in place until every output in `from_logits` (by name: whether it gives logits) says `wanted`.

    `inputs`: (n, *shape) of each of the model's inputs, in its order; `wanted` (n, classes). The model takes one tensor
    or a list, and gives a dict; the cross entropies of its outputs are added. Adam with a falling rate, for about
    `steps` batches as far as `EPOCHS` allow. `told(epochs done, epochs in all)`. Returns the least loss on the held-out
    samples, whose weights are kept. Raises `PermanentError` when it stops being a number.
    """
    random = np.random.default_rng(seed)
    rows = random.permutation(len(wanted))
    held, rows = np.split(rows, [max(1, round(len(rows) * HELD_OUT))])
    batch = min(len(rows), int(np.clip(len(wanted) // 20, *BATCHES)))
    once = len(rows) // batch
    epochs = int(np.clip(steps // once, *EPOCHS))
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(learning_rate, epochs * once))
    optimizer.build(model.trainable_variables)
    losses = {name: keras.losses.CategoricalCrossentropy(from_logits=logits) for name, logits in from_logits.items()}
    arrays, answers = tuple(tf.constant(array) for array in inputs), tf.constant(wanted)

    def loss(some: tf.Tensor, training: bool) -> tf.Tensor:
        given = [tf.gather(array, some) for array in arrays]
        made = model(given if len(given) > 1 else given[0], training=training)
        right = tf.gather(answers, some)
        return tf.add_n([one(right, made[name]) for name, one in losses.items()])

    @tf.function(autograph=False)
    def learn(some: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            value = loss(some, True)
        gradients = tape.gradient(value, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    @tf.function(autograph=False, reduce_retracing=True)
    def judged(some: tf.Tensor) -> tf.Tensor:
        return loss(some, False) * tf.cast(tf.size(some), tf.float32)

    best, weights, since = math.inf, model.get_weights(), 0
    for epoch in range(1, epochs + 1):
        for some in random.permutation(rows)[: once * batch].reshape(once, batch):
            learn(tf.constant(some))
        parts = [float(judged(tf.constant(held[i : i + BATCHES[1]]))) for i in range(0, len(held), BATCHES[1])]
        value = sum(parts) / len(held)
        if not math.isfinite(value):
            raise PermanentError("training the exits: the loss is not a number; scale the inputs")
        since = 0 if value < best - LEAST_GAIN else since + 1
        if value < best:
            best, weights = value, model.get_weights()
        told(epoch, epochs)
        if since >= PATIENCE:
            break
    model.set_weights(weights)
    return best
