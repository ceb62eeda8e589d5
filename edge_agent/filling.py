"""What stands in for values that are missing, and how readings come onto a grid in time: pure, NumPy throughout.

Positions `x` are row numbers or nanoseconds, rising; `values` is (n, channels), NaN where one is missing.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def fill(x: Floats, values: NDArray[Any], how: Literal["hold", "interpolate"], most: float) -> tuple[Floats, Any]:
    """(`values` with what is missing filled in, which of them later readings may still fill; both (n, channels)).

    `hold`: the channel's last value, if it is no further back than `most`. `interpolate`: a line between the
    channel's values before and after, if these are no further apart than `most`. What cannot be filled stays NaN.
    """
    there = ~np.isnan(values)
    rows = np.arange(len(x))[:, None]
    before = np.maximum.accumulate(np.where(there, rows, -1), axis=0)
    x_before = np.where(before >= 0, x[before], -np.inf)
    filled = np.array(values, np.float64)
    if how == "hold":
        near = ~there & (x[:, None] - x_before <= most)
        filled[near] = np.take_along_axis(filled, before, axis=0)[near]
        return filled, np.zeros_like(there)
    after = np.minimum.accumulate(np.where(there, rows, len(x))[::-1], axis=0)[::-1]
    x_after = np.where(after < len(x), x[np.minimum(after, len(x) - 1)], np.inf)
    near = ~there & (x_after - x_before <= most)
    for channel in np.flatnonzero(near.any(axis=0)):
        known, wanted = there[:, channel], near[:, channel]
        filled[wanted, channel] = np.interp(x[wanted], x[known], filled[known, channel])
    return filled, ~there & np.isinf(x_after) & (x[-1] - x_before < most)


def onto_grid(grid: Floats, x: Floats, values: NDArray[Any], how: Literal["linear", "hold"]) -> Floats:
    """`values` at the points of `grid` (m,), as (m, channels); the first x is not after the first point.

    `linear`: NaN where one of the two neighbours is. `hold`: the last one at or before the point.
    """
    if how == "hold":
        return np.asarray(values[np.searchsorted(x, grid, side="right") - 1], np.float64)
    return np.stack([np.interp(grid, x, values[:, channel]) for channel in range(values.shape[1])], axis=1)
