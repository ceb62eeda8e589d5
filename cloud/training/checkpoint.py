"""Where a job stands, kept in one file, so that one that was killed goes on from there.

What an epoch of a training does depends on nothing but this: weights, the optimizer's state, the state of dropout's
random numbers, how many epochs are done (the order of the samples is drawn from seed and epoch), the best epoch so far,
and, of a training in rounds, the best round so far and what labels this one has given. An evaluation keeps its counts,
and which records they are of, in the same way (`evaluation`).
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sluice.wire.training import EarlyStopping

FILE = "checkpoint.npz"


@dataclass(slots=True)
class Standing:
    """How far a training is: `history` has the metrics of each epoch that is done, in order.

    `steps`, `best` (number of the best epoch, from 1; 0: none yet), `best_value` (its judged metric) and `over` (early
    stopping has ended it) are of the round at hand. `rounds` has of each round, this one too, `begun` (epochs done
    before it) and what it has labelled; once it is over also its `epoch` (the one that it ends with) and `value`.
    """

    steps: int = 0
    history: list[Any] = field(default_factory=list)
    best: int = 0
    best_value: float | None = None
    over: bool = False
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def judge(self, stopping: EarlyStopping, value: float) -> bool:
        """Whether the last epoch in `history`, with this value of the judged metric, is the best of its round."""
        if self.best_value is None or better(stopping, value, self.best_value):
            self.best, self.best_value = len(self.history), value
            return True
        self.over = len(self.history) - self.best >= stopping.patience
        return False

    def begin_round(self, labelled: Mapping[str, Any]) -> None:
        """Another round begins, in which so many were `labelled`."""
        self.rounds.append({"begun": len(self.history), **labelled})
        self.steps, self.best, self.best_value, self.over = 0, 0, None, False

    def round_of(self, epoch: int) -> int:
        """The number of the round, from 0, that an epoch (from 1) is of."""
        return sum(one["begun"] < epoch for one in self.rounds) - 1


def better(stopping: EarlyStopping, value: float, than: float) -> bool:
    """Whether one value of the judged metric is better than another."""
    return value < than if stopping.metric == "loss" else value > than


class Kept(NamedTuple):
    """A training's checkpoint, arrays in order: the values of all variables; of the model's at the best epoch of this
    round, and at the end of the best round before it; rows and labels that this round has labelled."""

    standing: Standing
    state: Sequence[Any]
    best: Sequence[Any] = ()
    best_round: Sequence[Any] = ()
    labelled: Sequence[Any] = ()


def save(
    folder: Path,
    standing: Standing,
    state: Sequence[Any],
    best: Sequence[Any],
    best_round: Sequence[Any] = (),
    labelled: Sequence[Any] = (),
) -> None:
    """Write a training's checkpoint; what is what stands at `Kept`."""
    groups = zip("sbrl", (state, best, best_round, labelled), strict=True)
    arrays = {f"{letter}{i}": value for letter, group in groups for i, value in enumerate(group)}
    write(folder, asdict(standing), arrays)


def load(folder: Path) -> Kept | None:
    """A training's checkpoint as it was saved; None if there is none, or none that can be read."""
    found = read(folder)
    if found is None:
        return None
    try:
        standing = Standing(**found[0])
    except TypeError:
        return None
    return Kept(standing, *(_in_order(found[1], letter) for letter in "sbrl"))


def write(folder: Path, standing: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write the file, whole or not at all: `standing` is for JSON."""
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    arrays["standing"] = np.frombuffer(json.dumps(standing).encode(), np.uint8)
    new = folder / f"{FILE}.new"
    with new.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())
    new.replace(folder / FILE)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(standing, arrays by name) as they were written; None if there is no file, or none that can be read."""
    try:
        with (folder / FILE).open("rb") as whole, np.load(whole, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
            standing = json.loads(arrays.pop("standing").tobytes())
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    return (standing, arrays) if isinstance(standing, dict) else None


def _in_order(arrays: Mapping[str, Any], letter: str) -> list[Any]:
    count = sum(1 for name in arrays if name[0] == letter and name[1:].isdigit())
    return [arrays[f"{letter}{i}"] for i in range(count)]
