"""What is minimised: the sum over exits of weight times cross entropy, and what early exits learn from the final one.

The sum is BranchyNet's (Teerapittayanon et al., arXiv 1709.01686): early layers learn to serve the early exits and the
later ones at once. Learning from the final exit is Phuong and Lampert's (ICCV 2019): an early exit's loss becomes
(1 - w) cross entropy + w T² KL(final at temperature T, early at T), and the final exit learns nothing from that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from partitioner.anatomy.exits import Anatomy, gives_logits
from sluice.wire.errors import PermanentError
from sluice.wire.training import Distillation, TrainingSettings


class ByExit(keras.Model):
    """A model whose outputs are a dict by exit, and whose early exits may learn from the final one."""

    distillation: Distillation | None = None
    logits: Mapping[str, bool] = {}
    """By exit, in order: whether it gives logits, not probabilities."""
    weights_by_exit: Mapping[str, float] = {}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Keras' own loss, and on top what early exits learn from the final one."""
        total = super().compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training)
        if self.distillation is None or not training:
            return total
        weight, temperature = self.distillation.weight, self.distillation.temperature
        softened = {
            name: ops.log_softmax((y_pred[name] if logits else log(y_pred[name])) / temperature)
            for name, logits in self.logits.items()
        }
        *early, final = self.logits
        teacher = ops.stop_gradient(softened[final])
        for name in early:
            apart = ops.mean(ops.sum(ops.exp(teacher) * (teacher - softened[name]), axis=-1))
            total += self.weights_by_exit[name] * weight * temperature**2 * apart
        return total


def log(probabilities: Any) -> Any:
    """Logits of probabilities."""
    return ops.log(ops.maximum(probabilities, 1e-7))


def by_exit(model: keras.Model, found: Anatomy) -> ByExit:
    """The same layers and weights with outputs as a dict by exit, whatever form a model of one input gives them in."""
    (only,) = model.inputs
    return ByExit(only, {one.name: one.tensor for one in found.exits})


def compile_for(model: keras.Model, found: Anatomy, settings: TrainingSettings) -> ByExit:
    """`model` by exit, ready to be trained. Raises `PermanentError` where the settings name an exit that it has not."""
    trained = by_exit(model, found)
    exits = [one.name for one in found.exits]
    stopping = settings.early_stopping
    pseudo = settings.pseudo_labels
    named = [*settings.exit_weights, *(one.exit for one in (stopping, pseudo) if one and one.exit)]
    if unknown := [name for name in named if name not in exits]:
        raise PermanentError(f"the model has no exit {unknown[0]!r}, it has {', '.join(exits)}")
    if settings.distillation and len(exits) == 1:
        raise PermanentError("the model has no early exit that could learn from the final one: leave out distillation")
    if settings.top_k and settings.top_k >= found.classes:
        raise PermanentError(f"top_k {settings.top_k} says nothing of {found.classes} classes")
    trained.logits = {one.name: gives_logits(found.graph, one.output) for one in found.exits}
    trained.weights_by_exit = {name: settings.exit_weights.get(name, 1.0) for name in exits}
    trained.distillation = settings.distillation
    of_labels = 1.0 - settings.distillation.weight if settings.distillation else 1.0
    trained.compile(
        optimizer_of(settings),
        loss={name: keras.losses.SparseCategoricalCrossentropy(from_logits=trained.logits[name]) for name in exits},
        loss_weights={
            name: weight * (1.0 if name == exits[-1] else of_labels) for name, weight in trained.weights_by_exit.items()
        },
        metrics={name: _metrics(settings) for name in exits},
    )
    return trained


def _metrics(settings: TrainingSettings) -> list[keras.metrics.Metric]:
    wanted: list[keras.metrics.Metric] = [keras.metrics.SparseCategoricalAccuracy("accuracy")]
    if settings.top_k:
        wanted.append(keras.metrics.SparseTopKCategoricalAccuracy(settings.top_k, name="top_k"))
    return wanted


def optimizer_of(settings: TrainingSettings) -> keras.optimizers.Optimizer:
    """The optimizer that the settings describe."""
    given: dict[str, Any] = {"learning_rate": settings.learning_rate}
    if settings.weight_decay or settings.optimizer == "adamw":
        given["weight_decay"] = settings.weight_decay
    if settings.optimizer in ("sgd", "rmsprop"):
        given["momentum"] = settings.momentum
    elif settings.momentum:
        raise PermanentError(f"optimizer {settings.optimizer!r} takes no momentum: sgd and rmsprop do")
    makers = {
        "adam": keras.optimizers.Adam,
        "adamw": keras.optimizers.AdamW,
        "sgd": keras.optimizers.SGD,
        "rmsprop": keras.optimizers.RMSprop,
    }
    return makers[settings.optimizer](**given)
