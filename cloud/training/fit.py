"""One training run: all exits of a model at once, with losses and accuracies by exit after each epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import keras

from partitioner.anatomy.exits import Anatomy, gives_logits
from sluice.streams.samples import Array, Labels
from sluice.streams.tensorflow import dataset
from sluice.wire.errors import PermanentError

Metrics = dict[str, dict[str, float]]
"""By exit: loss, accuracy, and val_loss, val_accuracy where there are validation samples."""


@dataclass(frozen=True, slots=True)
class Data:
    """Samples x (n, *shape) and labels y (n,) int64."""

    x: Array
    y: Labels


def fit(
    model: keras.Model,
    found: Anatomy,
    train: Data,
    held_out: Data,
    *,
    epochs: int,
    batch: int,
    learning_rate: float,
    weights: Mapping[str, float],
    seed: int,
    report: Callable[[int, Metrics], None],
) -> Metrics:
    """Train `model` in place; `report(epoch from 1, metrics)` after each epoch. Returns the last metrics.

    Loss: the sum over exits of weight times cross entropy. Raises `PermanentError` when it stops being a number.
    """
    trained = by_exit(model, found)
    exits = [one.name for one in found.exits]
    losses = {
        one.name: keras.losses.SparseCategoricalCrossentropy(from_logits=gives_logits(found.graph, one.output))
        for one in found.exits
    }
    trained.compile(
        keras.optimizers.Adam(learning_rate),
        loss=losses,
        loss_weights=dict(weights),
        metrics={name: [keras.metrics.SparseCategoricalAccuracy("accuracy")] for name in exits},
    )

    def for_all(x, y):
        return x, dict.fromkeys(exits, y)

    last: Metrics = {}

    def after(epoch: int, logs: Mapping[str, float] | None = None) -> None:
        nonlocal last
        last = metrics_of(exits, logs or {})
        for name, values in last.items():
            if not all(math.isfinite(value) for value in values.values()):
                raise PermanentError(
                    f"the loss of exit {name!r} is not a number after epoch {epoch + 1}: lower the learning rate "
                    f"({learning_rate:g} now), or scale the inputs"
                )
        report(epoch + 1, last)

    trained.fit(
        dataset(train.x, train.y, batch, seed).map(for_all),
        validation_data=dataset(held_out.x, held_out.y, 256).map(for_all) if len(held_out.y) else None,
        epochs=epochs,
        verbose=0,
        shuffle=False,  # the dataset does it, by its seed
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=after)],
    )
    return last


def by_exit(model: keras.Model, found: Anatomy) -> keras.Model:
    """The same layers and weights with outputs as a dict by exit, whatever form a model of one input gives them in."""
    (only,) = model.inputs
    return keras.Model(only, {one.name: one.tensor for one in found.exits})


def metrics_of(exits: list[str], logs: Mapping[str, float]) -> Metrics:
    """Keras' flat logs by exit; with a single exit Keras names them without it."""
    found: Metrics = {name: {} for name in exits}
    for name in exits:
        for prefix in ("", "val_"):
            for what in ("loss", "accuracy"):
                keys = [f"{prefix}{name}_{what}", *([f"{prefix}{what}"] if len(exits) == 1 else [])]
                value = next((logs[key] for key in keys if key in logs), None)
                if value is not None:
                    found[name][f"{prefix}{what}"] = float(value)
    return found
