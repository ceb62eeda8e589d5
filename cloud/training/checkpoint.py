"""Where a training stands, kept after each epoch in one file, so that a job that was killed goes on from there.

What an epoch does depends on nothing but this: weights, the optimizer's state, the state of dropout's random numbers,
how many epochs are done (the order of the samples is drawn from seed and epoch), and the best epoch so far.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sluice.wire.training import EarlyStopping

FILE = "checkpoint.npz"


@dataclass(slots=True)
class Standing:
    """How far a training is: `history` has the metrics of each epoch that is done, in order.

    `best` is the number of the best epoch, from 1 (0: none yet), `best_value` its judged metric, `over` whether early
    stopping has ended it.
    """

    steps: int = 0
    history: list[Any] = field(default_factory=list)
    best: int = 0
    best_value: float | None = None
    over: bool = False

    def judge(self, stopping: EarlyStopping, value: float) -> bool:
        """Whether the last epoch in `history`, with this value of the judged metric, is the best so far."""
        sign = 1 if stopping.metric == "loss" else -1
        if self.best_value is None or sign * value < sign * self.best_value:
            self.best, self.best_value = len(self.history), value
            return True
        self.over = len(self.history) - self.best >= stopping.patience
        return False


def save(folder: Path, standing: Standing, state: Sequence[Any], best: Sequence[Any]) -> None:
    """Write the file, whole or not at all: `state` all variables' values in order, `best` those of the best epoch."""
    arrays = {f"s{i}": np.asarray(value) for i, value in enumerate(state)}
    arrays |= {f"b{i}": np.asarray(value) for i, value in enumerate(best)}
    arrays["standing"] = np.frombuffer(json.dumps(asdict(standing)).encode(), np.uint8)
    new = folder / f"{FILE}.new"
    with new.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())
    new.replace(folder / FILE)


def load(folder: Path) -> tuple[Standing, list[Any], list[Any]] | None:
    """(standing, state, best) as they were saved; None if there is no checkpoint, or none that can be read."""
    try:
        with (folder / FILE).open("rb") as whole, np.load(whole, allow_pickle=False) as file:
            standing = Standing(**json.loads(file["standing"].tobytes()))
            names = set(file.files)
            state, best = (_in_order(file, names, letter) for letter in "sb")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    return standing, state, best


def _in_order(file: Any, names: set[str], letter: str) -> list[Any]:
    count = sum(1 for name in names if name[0] == letter and name[1:].isdigit())
    return [file[f"{letter}{i}"] for i in range(count)]
