"""The samples, divided: what is chosen and what certifies it never share one, nor a group (person, device, site).

The part that certifies gets most: a bound from few samples costs more saving than a path from few. Of 2500 samples
150 for the temperatures and 375 for the plan keep 1 to 4 points more of the saving than 250 and 875 do, and what is
fitted gains little from more, so that these parts grow with the square root.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sluice.wire.errors import PermanentError

TRAIN_SHARE = 0.5
"""Of all samples, where exits have to be trained; the others divide the rest."""
TEMPERATURE_SIZE, PLAN_SIZE = 3.0, 8.0
"""Samples for temperatures (and ranges), and for the plan, over the square root of all."""
TEMPERATURE_MOST, PLAN_MOST = 0.1, 0.15
"""Their largest shares."""
FEW_GROUPS = 20
"""Below so many groups their sizes decide where they go; from here on chance alone does."""

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Parts:
    """Indices of samples, sorted, in no two parts: what trains exits (may be empty), fits temperatures, is planned
    on, certifies."""

    train: Indices
    temperature: Indices
    plan: Indices
    certify: Indices

    @property
    def chooses(self) -> Indices:
        """All that thresholds may be chosen on: everything that neither trains exits nor certifies."""
        return np.union1d(self.temperature, self.plan)


def split_parts(n: int, groups: NDArray[np.generic] | None, seed: int, *, train: bool) -> Parts:
    """Divide `n` samples at random by `seed`; of each of `groups` (n,), if they are told, all go to the same part.

    From `FEW_GROUPS` groups on the number of groups in each part is fixed and chance alone says which, whatever their
    size, so that the certifying ones stand for new ones. Of fewer, the larger ones are placed first, each where most
    samples are missing: parts of about the right size matter more then, and nothing can be promised for new groups.

    `train`: whether exits are to be trained. Raises `PermanentError` for fewer samples or groups than parts.
    """
    random = np.random.default_rng(seed)
    shares = _shares(n, train)
    units = n if groups is None else len(np.unique(groups))
    if units < np.count_nonzero(shares):
        what = "samples" if groups is None else "groups"
        advice = "more are needed" if groups is None else "give more, or none to calibrate by samples"
        raise PermanentError(
            f"{units} {what} for {np.count_nonzero(shares)} parts that share none (to fit, plan, certify): {advice}"
        )
    if groups is None:
        part_of = _by_count(n, shares, random)
    else:
        names, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        few = len(names) < FEW_GROUPS
        placed = _by_size(sizes, shares, random) if few else _by_count(len(names), shares, random)
        part_of = placed[inverse]
    return Parts(*(np.flatnonzero(part_of == part) for part in range(len(shares))))


def _shares(n: int, train: bool) -> NDArray[np.float64]:
    """Of training, temperature, plan and certificate; they sum to 1."""
    rest = 1 - TRAIN_SHARE if train else 1.0
    root = math.sqrt(max(n * rest, 1))
    temperature, plan = min(TEMPERATURE_SIZE / root, TEMPERATURE_MOST), min(PLAN_SIZE / root, PLAN_MOST)
    return np.array([1 - rest, *(rest * np.array([temperature, plan, 1 - temperature - plan]))])


def _by_count(n: int, shares: NDArray[np.float64], random: np.random.Generator) -> Indices:
    """The part (n,) of each of `n` things: as many as its share, one at least, picked by chance."""
    counts = np.round(shares * n).astype(int)
    counts[(shares > 0) & (counts == 0)] = 1
    counts[-1] = n - counts[:-1].sum()
    while counts[-1] < 1:
        counts[counts[:-1].argmax()] -= 1
        counts[-1] += 1
    return random.permutation(np.repeat(np.arange(len(shares)), counts))


def _by_size(sizes: Indices, shares: NDArray[np.float64], random: np.random.Generator) -> Indices:
    """The part of each group, the larger first (equals in random order), each to where most samples are missing."""
    order = random.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    missing = np.where(shares > 0, shares * sizes.sum(), -np.inf)
    empty = set(np.flatnonzero(shares > 0).tolist())
    placed = np.zeros(len(sizes), np.int64)
    for left, group in zip(range(len(sizes), 0, -1), order, strict=True):
        open_to = sorted(empty) if left <= len(empty) else range(len(shares))
        part = max(open_to, key=lambda one: missing[one])
        placed[group] = part
        missing[part] -= sizes[group]
        empty.discard(part)
    return placed
