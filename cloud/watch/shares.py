"""Shares with their interval."""

from __future__ import annotations

from math import sqrt

Z = 1.959964
"""The normal distribution's quantile for 95 % in the middle."""


def share_of(part: int, whole: int) -> dict[str, float]:
    """`share`, and its interval of 95 %, `low` to `high`, after Wilson (1927), right for few samples and near 1 too.

    `whole` is above 0. It holds the true share if what was counted was drawn at random.
    """
    share, more = part / whole, Z * Z / whole
    middle, width = share + more / 2, Z * sqrt((share * (1 - share) + more / 4) / whole)
    return {
        "share": share,
        "low": max(0.0, (middle - width) / (1 + more)),
        "high": min(1.0, (middle + width) / (1 + more)),
    }
