"""One training run: all exits of a model at once, epoch by epoch, from the beginning or from a checkpoint.

`loss` says what is minimised, `parts` which samples come and in what order, `data` how they come, `checkpoint` what is
remembered of it all. A training on a stream where most labels are missing goes on in rounds, each with the labels that
the one before has given (`pseudo`); any other is a single round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from cloud.training import checkpoint
from cloud.training.checkpoint import Standing, better
from cloud.training.confusion import confusion, summary
from cloud.training.data import Samples
from cloud.training.loss import ByExit, compile_for, log
from cloud.training.parts import Parts, Rows, class_weights, shuffled
from cloud.training.pseudo import Pseudo, pseudo_labels
from partitioner.anatomy.exits import Anatomy
from sluice.streams.samples import Array, Labels
from sluice.wire.errors import PermanentError
from sluice.wire.training import TrainingSettings

CHECKPOINT_EVERY_S = 1.0
"""Epochs that are shorter than this share a checkpoint."""
CHECKPOINT_REST = 100
"""After a checkpoint comes none for so many times as long as it took to write."""

Metrics = dict[str, dict[str, float]]
"""By exit: loss, accuracy and perhaps top_k; the same with val_ of the validation part, with stop_ of what early
stopping asks, where there are such samples."""
Report = Callable[[int, int, Metrics, dict[str, int]], None]
"""Called with the number of an epoch that is done, from 1, how many there will be at most, its metrics and, of a
training in rounds, `round` (0: labels only) and how many samples that has `labelled`."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run: the metrics of the model as it is now, the epoch that it is of, by exit its `summary`,
    and the rounds, if there were to be some."""

    metrics: Metrics
    epoch: int
    confusion: dict[str, dict[str, Any]]
    rounds: list[dict[str, Any]] = field(default_factory=list)


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
    samples = Samples(x, y, trained.inputs[0].dtype, exits)
    run = _Run(trained, exits, parts, settings, folder)
    for number in range(1, run.epoch):
        report(*run.told(number))
    held_out, to_stop = (samples.looked_at(rows) if len(rows) else None for rows in (parts.held_out, parts.stop))

    def ended(logs: dict[str, float]) -> None:
        if to_stop is not None:
            seen = trained.evaluate(to_stop, verbose=0, return_dict=True)
            logs = logs | {f"stop_{name}": value for name, value in seen.items()}
        metrics = metrics_of(exits, logs)
        _require_numbers(metrics, run.epoch, settings)
        run.done(metrics)
        report(*run.told(run.epoch - 1))
        trained.stop_training = run.standing.over

    there_is_more = True
    while there_is_more:
        known, weights = _labelled(y, parts, run.pseudo, found.classes, settings, labels)
        while run.goes_on:
            epochs, steps = run.alike()
            # in one call, since each one sets up its data anew; the steps are told, since Keras warns of data that end
            trained.fit(
                samples.trained_on(run.order, epochs, settings.batch, known, weights),
                initial_epoch=epochs.start - 1,
                epochs=epochs.stop - 1,
                steps_per_epoch=steps,
                validation_data=held_out,
                callbacks=[_AtEnd(ended)],
                verbose=0,
                shuffle=False,
            )
        there_is_more = run.next_round(lambda: _label(trained, samples, y, parts, settings), found.classes)
    epoch = run.finish()
    matrices = _confusions(trained, samples, y, parts.held_out, found)
    return Outcome(run.standing.history[epoch - 1], epoch, matrices, run.rounds() if settings.pseudo_labels else [])


def _labelled(
    y: Labels, parts: Parts, pseudo: Pseudo, classes: int, settings: TrainingSettings, names: list[str] | None
) -> tuple[Labels, Any]:
    """Labels (n,) of a round, and weights (n,) of its samples or None, where all weigh 1."""
    known = y.copy()
    known[pseudo.rows] = pseudo.labels
    by_label = class_weights(settings, known[np.concatenate([parts.train, pseudo.rows])], classes, names)
    if by_label is None and not len(pseudo.rows):
        return known, None
    weights = np.ones(len(y), np.float32) if by_label is None else by_label[known]
    if settings.pseudo_labels:
        weights[pseudo.rows] *= settings.pseudo_labels.weight
    return known, weights


def _label(trained: ByExit, samples: Samples, y: Labels, parts: Parts, settings: TrainingSettings) -> Pseudo:
    """What the model as it is now labels for the next round."""
    wanted = settings.pseudo_labels
    if wanted is None or not len(parts.unlabelled):
        return Pseudo()
    name = wanted.exit or list(trained.logits)[-1]

    def logits_of(rows: Rows) -> Any:
        given = np.concatenate([trained.predict_on_batch(x)[name] for x, _y in samples.looked_at(rows)])
        return given if trained.logits[name] else keras.ops.convert_to_numpy(log(given))

    return pseudo_labels(logits_of, y, parts, wanted)


class _AtEnd(keras.callbacks.Callback):
    """Calls `ended` with the metrics of each epoch, those of the validation part among them."""

    def __init__(self, ended: Callable[[dict[str, float]], None]) -> None:
        super().__init__()
        self._ended = ended

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """What Keras calls."""
        del epoch
        self._ended(logs or {})


class _Run:
    """Where a run stands, and what it stands on: its variables, those of the best epoch of this round, those at the end
    of the best round before it, and what this round has labelled."""

    def __init__(
        self, trained: ByExit, exits: Sequence[str], parts: Parts, settings: TrainingSettings, folder: Path | None
    ) -> None:
        trained.optimizer.build(trained.trainable_variables)
        self._model_state = trained.variables
        self._state = [*trained.variables, *trained.optimizer.variables]
        self._parts = parts
        self._settings = settings
        self._folder = folder
        self._judged = (settings.early_stopping and settings.early_stopping.exit) or exits[-1]
        self._best: Sequence[Any] = ()
        self._best_round: Sequence[Any] = ()
        self._next_s = 0.0
        self.pseudo = Pseudo()
        self.standing = Standing()
        self.standing.begin_round(self.pseudo.told(0))
        rounds = 1 + (settings.pseudo_labels.rounds if settings.pseudo_labels else 0)
        self.epochs = rounds * math.ceil(self._all / self._each)
        kept = None if folder is None else checkpoint.load(folder)
        if kept and [value.shape for value in kept.state] == [tuple(variable.shape) for variable in self._state]:
            _assign(self._state, kept.state)
            kept.standing.rounds = kept.standing.rounds or self.standing.rounds  # written before there were rounds
            self.standing, self._best, self._best_round = kept.standing, kept.best, kept.best_round
            self.pseudo = Pseudo(*kept.labelled)

    @property
    def _train(self) -> Rows:
        return np.concatenate([self._parts.train, self.pseudo.rows])

    @property
    def _each(self) -> int:
        return math.ceil((len(self._parts.train) + len(self.pseudo.rows)) / self._settings.batch)

    @property
    def _all(self) -> int:
        return self._settings.steps or self._settings.epochs * self._each

    @property
    def epoch(self) -> int:
        """The epoch that is under way, from 1."""
        return len(self.standing.history) + 1

    @property
    def goes_on(self) -> bool:
        """Whether this round has another epoch."""
        return self.standing.steps < self._all and not self.standing.over

    def alike(self) -> tuple[range, int]:
        """The next epochs of equally many steps, and how many these are: only a round's last one may be shorter."""
        left = self._all - self.standing.steps
        return range(self.epoch, self.epoch + max(1, left // self._each)), min(self._each, left)

    def order(self, epoch: int) -> Rows:
        """The rows of an epoch."""
        before = epoch - 1 - self.standing.rounds[-1]["begun"]
        steps = min(self._each, self._all - before * self._each)
        return shuffled(self._train, self._settings.seed, epoch)[: steps * self._settings.batch]

    def told(self, epoch: int) -> tuple[int, int, Metrics, dict[str, int]]:
        """What is reported of an epoch that is done."""
        number = self.standing.round_of(epoch)
        labelled = self.standing.rounds[number]["labelled"]
        in_round = {"round": number, "labelled": labelled} if self._settings.pseudo_labels else {}
        return epoch, self.epochs, self.standing.history[epoch - 1], in_round

    def done(self, metrics: Metrics) -> None:
        """This epoch is done: judge it, and keep a checkpoint now and then."""
        standing = self.standing
        standing.steps = min(self._all, standing.steps + self._each)
        standing.history.append(metrics)
        stopping = self._settings.early_stopping
        if stopping and standing.judge(stopping, self._value(len(standing.history))):
            self._best = _values(self._model_state) if stopping.restore_best else ()
        begun = time.monotonic()
        if self._folder is not None and begun >= self._next_s:
            labelled = (self.pseudo.rows, self.pseudo.labels)
            checkpoint.save(self._folder, standing, _values(self._state), self._best, self._best_round, labelled)
            now = time.monotonic()
            self._next_s = now + max(CHECKPOINT_EVERY_S, CHECKPOINT_REST * (now - begun))

    def next_round(self, label: Callable[[], Pseudo], classes: int) -> bool:
        """End this round, go back to its best epoch where that is wished, and begin another one if there is to be one
        and `label` finds something to label."""
        standing, settings = self.standing, self._settings
        ended = standing.rounds[-1]
        ended["epoch"] = standing.best if self._best else len(standing.history)
        if self._best:
            _assign(self._model_state, self._best)
        if settings.pseudo_labels is None or settings.early_stopping is None:
            return False
        ended["value"] = self._value(ended["epoch"])
        if len(standing.rounds) - 1 == self._best_of_rounds():
            self._best_round = _values(self._model_state)
        if len(standing.rounds) > settings.pseudo_labels.rounds:
            return False
        pseudo = label()
        if not len(pseudo.rows):
            return False
        self.pseudo, self._best = pseudo, ()
        standing.begin_round(pseudo.told(classes))
        return True

    def finish(self) -> int:
        """Go back to the end of the best round; returns the epoch that the model is of."""
        if self._best_round:
            _assign(self._model_state, self._best_round)
        epoch: int = self.standing.rounds[self._best_of_rounds()]["epoch"]
        return epoch

    def rounds(self) -> list[dict[str, Any]]:
        """What became of each round: how many it has labelled, the `metrics` of the epoch that it ends with, how much
        more of the validation part is right than after the first round (`gain`), and which round is `kept`."""
        found = []
        first: float | None = None
        for number, one in enumerate(self.standing.rounds):
            metrics = self.standing.history[one["epoch"] - 1]
            right = metrics[self._judged].get("val_accuracy")
            first = right if number == 0 else first
            gain = None if right is None or first is None else round(right - first, 6)
            shown = {name: one[name] for name in ("labelled", "by_class", "temperature", "epoch", "value")}
            kept = number == self._best_of_rounds()
            found.append({"round": number, **shown, "gain": gain, "kept": kept, "metrics": metrics})
        return found

    def _best_of_rounds(self) -> int:
        """The number of the best round that is over, the first of equals; the first where rounds are not judged."""
        stopping, best = self._settings.early_stopping, 0
        for number, one in enumerate(self.standing.rounds):
            if stopping and "value" in one and better(stopping, one["value"], self.standing.rounds[best]["value"]):
                best = number
        return best

    def _value(self, epoch: int) -> float:
        """The judged metric of an epoch that is done."""
        assert self._settings.early_stopping is not None
        return self.standing.history[epoch - 1][self._judged][f"stop_{self._settings.early_stopping.metric}"]


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
