"""What a model that learns on is reminded of: a bounded buffer of samples that it has learnt from before.

`reservoir` keeps a fair sample of all that came (Vitter, "Random sampling with a reservoir", ACM TOMS 11, 1985).
`balanced` keeps about as many of every class, however rare (class-balancing reservoir sampling: Chrysakis and Moens,
"Online continual learning from imbalanced data", ICML 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sluice.streams.samples import Array, Labels

BYTES = 256_000_000
"""So much a buffer's samples may take."""


class Buffer:
    """Up to `size` samples (*shape) of `classes`. `born` of each: the number of its record in the stream."""

    def __init__(self, size: int, shape: Sequence[int], dtype: Any, classes: int, *, balanced: bool) -> None:
        each = max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        self.size = min(size, BYTES // each)
        self.balanced = balanced
        self.count = 0
        self._x = np.empty((self.size, *shape), dtype)
        self._y = np.empty(self.size, np.int64)
        self._born = np.empty(self.size, np.int64)
        self._seen = np.zeros(classes, np.int64)
        """Of each class, how many came."""
        self._full = np.zeros(classes, bool)
        """Classes that were once the largest in a full buffer."""
        self._slots: list[list[int]] = [[] for _ in range(classes)]
        """Of each class, where its samples are; kept while there is room, and of a balanced buffer ever after."""

    def add(self, x: Array, y: Labels, born: Labels, random: np.random.Generator) -> None:
        """Offer samples (n, *shape) with labels (n,): some are kept, in place of others where there is no room."""
        if not self.size:
            return
        for i, label in enumerate(y.tolist()):
            self._seen[label] += 1
            slot = self._slot(label, random)
            if slot is not None:
                self._x[slot], self._y[slot], self._born[slot] = x[i], label, born[i]

    def _slot(self, label: int, random: np.random.Generator) -> int | None:
        """Where a sample goes; None: it is not kept."""
        if self.count < self.size:
            slot = self.count
            self.count += 1
        elif not self.balanced:
            slot = int(random.integers(self._seen.sum()))
            return slot if slot < self.size else None
        else:
            sizes = np.array([len(slots) for slots in self._slots])
            largest = sizes == sizes.max()
            self._full |= largest
            if self._full[label] and (not sizes[label] or random.random() > sizes[label] / self._seen[label]):
                return None
            of = label if self._full[label] else int(random.choice(np.flatnonzero(largest)))
            slot = self._slots[of].pop(int(random.integers(sizes[of])))
        self._slots[label].append(slot)
        return slot

    def draw(self, n: int, random: np.random.Generator) -> tuple[Array, Labels]:
        """`n` samples, each once, or all that there are: x (≤ n, *shape), y."""
        rows = random.choice(self.count, min(n, self.count), replace=False) if self.count else np.empty(0, np.int64)
        return self._x[rows], self._y[rows]

    def forget(self, before: int) -> None:
        """Keep only samples that came from record number `before` on, as if nothing had been before."""
        kept = np.flatnonzero(self._born[: self.count] >= before)
        self._fill(self._x[kept], self._y[kept], self._born[kept])
        self._seen = np.bincount(self._y[: self.count], minlength=len(self._seen))
        self._full[:] = False

    def arrays(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        n = self.count
        return {"x": self._x[:n], "y": self._y[:n], "born": self._born[:n], "seen": self._seen, "full": self._full}

    def restore(self, arrays: dict[str, Any]) -> None:
        """The inverse of `arrays`."""
        self._fill(arrays["x"], arrays["y"], arrays["born"])
        self._seen, self._full = arrays["seen"].copy(), arrays["full"].copy()

    def _fill(self, x: Array, y: Labels, born: Labels) -> None:
        self.count = len(y)
        self._x[: self.count], self._y[: self.count], self._born[: self.count] = x, y, born
        self._slots = [np.flatnonzero(y == label).tolist() for label in range(len(self._slots))]
