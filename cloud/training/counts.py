"""What an evaluation counts, and which records that is of: both in one file, so that each record counts exactly once.

The checkpoint decides. A record is counted when the file says so, which also says from where to read on; whatever was
counted after the file was written is read again, and counted again from what the file holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import log_softmax

from cloud.training import checkpoint
from cloud.training.answers import Answers
from cloud.training.confusion import confusion, summary
from sluice.doors.kafka import TopicPartition
from sluice.streams.samples import NONE, Labels


@dataclass(slots=True)
class Tally:
    """Numbers of records, and what was told of them: `labelled` and `unlabelled` are those that could be read, `bad`
    those that could not, `lost` those that retention took before they were read."""

    labelled: int = 0
    unlabelled: int = 0
    bad: int = 0
    first_bad: str | None = None
    lost: int = 0
    seconds: float = 0.0
    told: list[dict[str, Any]] = field(default_factory=list)
    """The running figures so far."""

    @property
    def records(self) -> int:
        """Those that could be read."""
        return self.labelled + self.unlabelled

    def numbers(self) -> dict[str, Any]:
        """The numbers alone."""
        found = {name: value for name, value in asdict(self).items() if name not in ("told", "seconds")}
        return {"records": self.records, **found, "seconds": round(self.seconds, 3)}


class Counts:
    """Counts of an evaluation of something with these `exits`, and `more` that answers, which tell so many `classes`
    apart."""

    def __init__(self, exits: Sequence[str], classes: int, more: Sequence[str] = ()) -> None:
        self.classes = classes
        self._exits = exits
        self.tally = Tally()
        self.ends: dict[TopicPartition, int] = {}
        """Of each topic partition the offset up to which all is counted."""
        self._confusion = {name: np.zeros((classes, classes), np.int64) for name in (*exits, *more)}
        self._loss = dict.fromkeys(self._confusion, 0.0)
        self._by = np.zeros(len(exits), np.int64)
        """How many records each exit has answered, labelled or not; of a bundle."""
        self.changed = False
        """Whether there is something that the checkpoint does not hold yet."""

    def add(self, answers: Answers, y: Labels, ends: Mapping[TopicPartition, int]) -> None:
        """Count n records: the answers, labels `y` (n,), where they end; those without a label are but numbered."""
        if answers.by is not None:
            self._by += np.bincount(answers.by, minlength=len(self._by))
        known = np.flatnonzero(y != NONE)
        truth = y[known]
        for name, given in answers.logits.items():
            mine = np.asarray(given)[known]
            self._confusion[name] += confusion(truth, mine.argmax(axis=1), self.classes)
            likely = log_softmax(mine.astype(np.float64), axis=1)[np.arange(len(truth)), truth]
            self._loss[name] -= float(likely.sum())
        self.tally.labelled += len(known)
        self.tally.unlabelled += len(y) - len(known)
        self.changed |= any(self.ends.get(place) != end for place, end in ends.items())
        self.ends.update(ends)

    def miss(self, bad: int, first_bad: str | None, lost: int) -> None:
        """So many records could not be read, the first of them this one, and so many were lost to retention, in all."""
        self.changed |= (bad, lost) != (self.tally.bad, self.tally.lost)
        self.tally.bad, self.tally.lost = bad, lost
        self.tally.first_bad = self.tally.first_bad or first_bad

    def figures(self) -> dict[str, Any]:
        """Numbers and metrics; of a bundle also `exit_share`: which share of the records each exit answers."""
        found: dict[str, Any] = {**self.tally.numbers(), "metrics": self.metrics()}
        if answered := int(self._by.sum()):
            found["exit_share"] = dict(zip(self._exits, (self._by / answered).tolist(), strict=True))
        return found

    def metrics(self) -> dict[str, dict[str, float | None]]:
        """By exit: mean cross entropy in nats as `loss`, and `accuracy`, of the records with a label; None where there
        are none, or where an exit's outputs are no numbers."""
        n = self.tally.labelled
        found: dict[str, dict[str, float | None]] = {}
        for name, matrix in self._confusion.items():
            loss = self._loss[name] / n if n else math.nan
            right = float(np.trace(matrix)) / n if n else None
            found[name] = {"loss": loss if math.isfinite(loss) else None, "accuracy": right}
        return found

    def confusion(self) -> dict[str, dict[str, Any]]:
        """By exit what it takes for what (`confusion.summary`)."""
        return {name: summary(matrix, len(self._confusion)) for name, matrix in self._confusion.items()}

    def save(self, folder: Path) -> None:
        """Write the checkpoint."""
        ends = [[topic, partition, offset] for (topic, partition), offset in self.ends.items()]
        arrays = {f"c{i}": matrix for i, matrix in enumerate(self._confusion.values())}
        arrays |= {"loss": np.array(list(self._loss.values())), "by": self._by}
        checkpoint.write(folder, {"tally": asdict(self.tally), "ends": ends}, arrays)
        self.changed = False

    def load(self, folder: Path) -> None:
        """Go on from the checkpoint, if there is one."""
        found = checkpoint.read(folder)
        if found is None:
            return
        standing, arrays = found
        self.tally = Tally(**standing["tally"])
        self.ends = {(topic, partition): offset for topic, partition, offset in standing["ends"]}
        self._confusion = {name: arrays[f"c{i}"] for i, name in enumerate(self._confusion)}
        self._loss = dict(zip(self._loss, arrays["loss"].tolist(), strict=True))
        self._by = arrays["by"]
