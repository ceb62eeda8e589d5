"""One training run: all exits of a model at once, epoch by epoch, from the beginning or from a checkpoint.

`loss` says what is minimised, `parts` which samples come and in what order, `data` how they come, `checkpoint` what is
remembered of it all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from cloud.training import checkpoint
from cloud.training.checkpoint import Standing
from cloud.training.confusion import confusion, summary
from cloud.training.data import Samples
from cloud.training.loss import ByExit, compile_for
from cloud.training.parts import Parts, Rows, class_weights, shuffled
from partitioner.anatomy.exits import Anatomy
from sluice.streams.samples import Array, Labels
from sluice.wire.errors import PermanentError
from sluice.wire.training import TrainingSettings

CHECKPOINT_EVERY_S = 1.0
"""Epochs that are shorter than this share a checkpoint."""

Metrics = dict[str, dict[str, float]]
"""By exit: loss, accuracy and perhaps top_k; the same with val_ of the validation part, with stop_ of what early
stopping asks, where there are such samples."""
Report = Callable[[int, int, Metrics], None]
"""Called with the number of an epoch that is done, from 1, how many there will be at most, and its metrics."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run: the metrics of the model as it is now, the epoch that it is of, by exit its `summary`."""

    metrics: Metrics
    epoch: int
    confusion: dict[str, dict[str, Any]]


def fit(
    model: keras.Model,
    found: Anatomy,
    x: Array,
    y: Labels,
    parts: Parts,
    settings: TrainingSettings,
    *,
    labels: list[str] | None = None,
    folder: Path | None = None,
    report: Report = lambda *_: None,
) -> Outcome:
    """Train `model` in place on x (n, *shape), y (n,). With a `folder`, from the checkpoint in it, if there is one.

    `labels`: names of the classes. Raises `PermanentError` when a loss stops being a number, and where the settings
    name an exit or a label that there is not.
    """
    exits = [one.name for one in found.exits]
    trained = compile_for(model, found, settings)
    weights = class_weights(settings, y[parts.train], found.classes, labels)
    samples = Samples(x, y, trained.inputs[0].dtype, exits)
    run = _Run(trained, exits, parts.train, settings, folder)
    for number, metrics in enumerate(run.standing.history, 1):
        report(number, run.epochs, metrics)
    to_train = samples.trained_on(run.order, settings.batch, weights)
    looked_at = {"val_": parts.held_out, "stop_": parts.stop}
    asked = {prefix: samples.looked_at(rows) for prefix, rows in looked_at.items() if len(rows)}
    while run.goes_on:
        # one epoch a call and its steps told: Keras warns of data that end, and begins the next epoch's too early
        told = trained.fit(to_train, steps_per_epoch=run.steps, verbose=0, shuffle=False).history
        logs = {name: values[0] for name, values in told.items()}
        for prefix, dataset in asked.items():
            seen = trained.evaluate(dataset, verbose=0, return_dict=True)
            logs |= {prefix + name: value for name, value in seen.items()}
        metrics = metrics_of(exits, logs)
        _require_numbers(metrics, run.epoch, settings)
        run.done(metrics)
        report(len(run.standing.history), run.epochs, metrics)
    epoch = run.finish()
    matrices = _confusions(trained, samples, y, parts.held_out, found)
    return Outcome(run.standing.history[epoch - 1], epoch, matrices)


class _Run:
    """Where a run stands, and what it stands on: its variables, and those of its best epoch."""

    def __init__(
        self, trained: ByExit, exits: Sequence[str], train: Rows, settings: TrainingSettings, folder: Path | None
    ) -> None:
        trained.optimizer.build(trained.trainable_variables)
        self._model_state = trained.variables
        self._state = [*trained.variables, *trained.optimizer.variables]
        self._train = train
        self._settings = settings
        self._folder = folder
        self._judged = (settings.early_stopping and settings.early_stopping.exit) or exits[-1]
        self._best: list[Any] = []
        self._next_s = 0.0
        self.standing = Standing()
        self._each = math.ceil(len(train) / settings.batch)
        self._all = settings.steps or settings.epochs * self._each
        self.epochs = math.ceil(self._all / self._each)
        if folder is not None and (kept := checkpoint.load(folder)) is not None:
            standing, state, best = kept
            if [value.shape for value in state] == [tuple(variable.shape) for variable in self._state]:
                _assign(self._state, state)
                self.standing, self._best = standing, best

    @property
    def epoch(self) -> int:
        """The epoch that is under way, from 1."""
        return len(self.standing.history) + 1

    @property
    def goes_on(self) -> bool:
        """Whether there is another epoch."""
        return self.standing.steps < self._all and not self.standing.over

    @property
    def steps(self) -> int:
        """Steps of this epoch; the last one may be short."""
        return min(self._each, self._all - self.standing.steps)

    def order(self) -> Rows:
        """The rows of this epoch."""
        return shuffled(self._train, self._settings.seed, self.epoch)[: self.steps * self._settings.batch]

    def done(self, metrics: Metrics) -> None:
        """This epoch is done: judge it, and keep a checkpoint now and then."""
        standing = self.standing
        standing.steps += self.steps
        standing.history.append(metrics)
        stopping = self._settings.early_stopping
        if stopping and standing.judge(stopping, metrics[self._judged][f"stop_{stopping.metric}"]):
            self._best = _values(self._model_state) if stopping.restore_best else []
        if self._folder is not None and time.monotonic() >= self._next_s:
            checkpoint.save(self._folder, standing, _values(self._state), self._best)
            self._next_s = time.monotonic() + CHECKPOINT_EVERY_S

    def finish(self) -> int:
        """Go back to the best epoch where that is wished; returns the epoch that the model is of."""
        if not self._best:
            return len(self.standing.history)
        _assign(self._model_state, self._best)
        return self.standing.best


def _values(variables: Sequence[Any]) -> list[Any]:
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def _assign(variables: Sequence[Any], values: Sequence[Any]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _require_numbers(metrics: Metrics, epoch: int, settings: TrainingSettings) -> None:
    for name, values in metrics.items():
        if not all(math.isfinite(value) for value in values.values()):
            raise PermanentError(
                f"the loss of exit {name!r} is not a number after epoch {epoch}: lower the learning rate "
                f"({settings.learning_rate:g} now), or scale the inputs"
            )


def _confusions(trained: ByExit, samples: Samples, y: Labels, rows: Rows, found: Anatomy) -> dict[str, dict[str, Any]]:
    if not len(rows):
        return {}
    answered: dict[str, list[Any]] = {one.name: [] for one in found.exits}
    for x, _y in samples.looked_at(rows):
        outputs = trained.predict_on_batch(x)
        for name, parts in answered.items():
            parts.append(np.argmax(outputs[name], axis=-1))
    matrices = {name: confusion(y[rows], np.concatenate(parts), found.classes) for name, parts in answered.items()}
    return {name: summary(matrix, len(matrices)) for name, matrix in matrices.items()}


def metrics_of(exits: Sequence[str], logs: Mapping[str, float]) -> Metrics:
    """Keras' flat logs by exit; with a single exit Keras names them without it."""
    found: Metrics = {name: {} for name in exits}
    for name in exits:
        for prefix in ("", "val_", "stop_"):
            for what in ("loss", "accuracy", "top_k"):
                keys = [f"{prefix}{name}_{what}", *([f"{prefix}{what}"] if len(exits) == 1 else [])]
                value = next((logs[key] for key in keys if key in logs), None)
                if value is not None:
                    found[name][f"{prefix}{what}"] = float(value)
    return found
