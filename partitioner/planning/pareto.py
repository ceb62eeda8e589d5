"""What nothing else beats: the Pareto front of many candidates, exact, and a few of it that show its shape."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


def front(costs: Floats) -> Indices:
    """Indices of the rows of `costs` (n, d), less is better, that no other row dominates, the first of equal rows.

    Sort-filter-skyline (Chomicki et al., "Skyline with Presorting", ICDE 2003): in the order of a sum that rises with
    every cost a row can only be dominated by an earlier one, so what is left when its turn comes is final. The sum of
    logarithms puts those first that dominate most.
    """
    ranks = [_dense_rank(column) for column in costs.T]
    order = np.argsort(sum(np.log1p(rank) for rank in ranks), kind="stable")
    left = [rank[order] for rank in ranks]
    kept = []
    while len(order):
        kept.append(order[0])
        better = np.flatnonzero(np.logical_or.reduce([rank < rank[0] for rank in left]))
        left, order = [rank[better] for rank in left], order[better]
    return np.array(kept, np.int64)


def _dense_rank(column: Floats) -> NDArray[np.int32]:
    return np.unique(column, return_inverse=True)[1].astype(np.int32)


def thin(costs: Floats, keep: Iterable[int], most: int) -> Indices:
    """At most `most` rows of `costs` (n, d): those of `keep`, the least of each cost, then always the one that is
    farthest from all chosen so far, distances taken between ranks."""
    n = len(costs)
    chosen = list(dict.fromkeys([*keep, *costs.argmin(axis=0).tolist()]))
    ranks = np.stack([_dense_rank(column) / max(1, n - 1) for column in costs.T], axis=1)
    far = np.full(n, np.inf)
    for index in chosen:
        far = np.minimum(far, np.abs(ranks - ranks[index]).sum(axis=1))
    while len(chosen) < min(most, n) and far.max() > 0:
        chosen.append(int(far.argmax()))
        far = np.minimum(far, np.abs(ranks - ranks[chosen[-1]]).sum(axis=1))
    return np.array(chosen, np.int64)
