"""A model that learns on: what it says of samples before it has learnt from them, and one update at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from cloud.training.loss import compile_for
from partitioner.anatomy.exits import Anatomy
from sluice.streams.samples import NONE, Array, Labels
from sluice.wire.errors import PermanentError
from sluice.wire.online import OnlineSettings


class Learner:
    """`model`, whose exits were found, learning as the settings say; one that never `learns` needs less memory."""

    def __init__(self, model: keras.Model, found: Anatomy, settings: OnlineSettings, *, learns: bool = True) -> None:
        self.model = model
        self.exits = [one.name for one in found.exits]
        self._trained = compile_for(model, found, settings.training())
        if learns:
            self._trained.optimizer.build(self._trained.trainable_variables)
        self._dtype = str(self._trained.inputs[0].dtype)
        self._rate, self._halves = settings.learning_rate, settings.rate_halves_after
        self._rises = settings.rate_rises_over
        self.updates = 0
        """In all."""
        self.since = 0
        """Since the learning rate began anew."""

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""
        rate = self._rate * min(1.0, (self.updates + 1) / self._rises) if self._rises else self._rate
        return rate if self._halves is None else rate / (1 + self.since / self._halves)

    def answers(self, x: Array) -> dict[str, Any]:
        """Of samples x (n, *shape), by exit: (n, classes) float32 logarithms of the classes' probabilities."""
        outputs = self._trained.predict_on_batch(x.astype(self._dtype, copy=False))
        return {name: _log(np.asarray(outputs[name]), self._trained.logits[name]) for name in self.exits}

    def right(self, x: Array, y: Labels) -> Any:
        """Whether the final exit gets each sample right: (n,) bool."""
        return self.answers(x)[self.exits[-1]].argmax(axis=-1) == y

    def learn(self, x: Array, y: Labels) -> None:
        """One update from samples x (n, *shape) with labels y (n,). `PermanentError` when the loss is no number."""
        if self._halves is not None or self.updates <= self._rises:
            self._trained.optimizer.learning_rate = self.rate
        told = self._trained.train_on_batch(
            x.astype(self._dtype, copy=False), dict.fromkeys(self.exits, y), return_dict=True
        )
        self.updates += 1
        self.since += 1
        if not math.isfinite(float(told["loss"])):
            raise PermanentError(
                f"the loss is not a number after {self.updates} updates: lower the learning rate ({self.rate:g} now), "
                "or scale the inputs"
            )

    @property
    def state(self) -> list[Any]:
        """Copies of all that an update changes: the model's variables and the optimizer's."""
        return _values([*self._trained.variables, *self._trained.optimizer.variables])

    @state.setter
    def state(self, values: Sequence[Any]) -> None:
        _assign([*self._trained.variables, *self._trained.optimizer.variables], values)

    @property
    def weights(self) -> list[Any]:
        """Copies of the model's variables."""
        return _values(self._trained.variables)

    @weights.setter
    def weights(self, values: Sequence[Any]) -> None:
        _assign(self._trained.variables, values)


def losses(answers: Any, y: Labels) -> Any:
    """Cross entropy in nats of each sample (n,), from `Learner.answers` of one exit; 0 where there is no label."""
    found = -answers[np.arange(len(y)), np.maximum(y, 0)]
    return np.where(y == NONE, 0.0, found)


def _log(outputs: Any, logits: bool) -> Any:
    if not logits:
        return np.log(np.maximum(outputs, 1e-7))
    outputs = outputs - outputs.max(axis=-1, keepdims=True)
    return outputs - np.log(np.exp(outputs).sum(axis=-1, keepdims=True))


def _values(variables: Sequence[Any]) -> list[Any]:
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def _assign(variables: Sequence[Any], values: Sequence[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
