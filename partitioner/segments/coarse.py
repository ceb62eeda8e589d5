"""Codec coarse, fitted to what crosses a cut: where to clip, how many levels, how to lay them out, and a dictionary.

After Cohen, Choi and Bajić, "Lightweight Compression of Intermediate Neural Network Features for Collaborative
Intelligence", arXiv 2105.06002: activations are clipped and rounded to very few even levels, without retraining, and
0.6 to 0.8 bits an element remain at less than one point of accuracy. What is different here: the range comes from
quantiles of the calibration tensors themselves, by least squared error, where the paper models activations as an
asymmetric Laplace distribution; and zstd with a small trained dictionary takes the place of the paper's adaptive
binary arithmetic coder. A dictionary brings the entropy tables that a frame of 200 bytes has no room for, zstd finds
repeats which a coder of single elements does not see, and both ends run it in a few µs.

Everything is deterministic. Neighbour: `sluice/wire/codec.py`, which does what is decided here.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable

import numpy as np
import zstandard
from numpy.typing import NDArray

from sluice.wire.codec import packed, payload_sizes, round_trip
from sluice.wire.manifest import Coarse, TensorSpec

Array = NDArray[np.generic]
Loss = Callable[[Array], float]

LEVELS = (2, 3, 4, 5, 6, 8, 11, 16)
"""Numbers of levels that are tried, the fewest first."""
TAILS = (0.0, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1)
"""Shares of the elements beyond the range that are tried."""
ERROR_MOST = 0.2
"""Squared error over the variance that is taken where no loss can be asked for."""
LOSS_MOST = 0.005
RANGES_TRIED = 3
"""Of the ranges with the least squared error, how many are tried where a loss can be asked for."""
DICTIONARY_BYTES = 4096
DICTIONARY_PAYS = 0.98
"""A dictionary is kept when the sizes with it are at most this share of those without."""
ROWS_MOST = 1000
ELEMENTS_MOST = 2_000_000
VALUES_MOST = 200_000
"""Elements that the range is taken from."""
HELD_OUT = 4
"""Every so many-th sample judges the dictionary, which the others train."""


def fit_coarse(
    arrays: Array, spec: TensorSpec, levels: int | None = None, *, loss: Loss | None = None, most: float = LOSS_MOST
) -> TensorSpec:
    """`spec` with its codec coarse, fitted to calibration tensors (n, *shape); integers come back as they are.

    `loss` is told the calibration tensors as they would arrive, in the same order (n, *shape), and says what is lost by
    that: the share of answers that differ, or the mean Kullback-Leibler divergence of the final probabilities, which
    is steadier. Ranges and readings with nearly the least squared error are tried, and the one with the least loss is
    taken. Without it, the least squared error decides. `levels` (2 to 16) fixes how many there are; else the fewest
    are taken whose loss is at most `most`, or whose squared error is at most 0.2 of the variance.
    """
    if not spec.is_float:
        return spec
    sample = _some(arrays)
    values = np.sort(sample.reshape(-1)[:: max(1, sample.size // VALUES_MOST)])
    fitted = spec
    for count in LEVELS if levels is None else (levels,):
        choices = _choices(values, count)
        fitted, measured = spec.model_copy(update={"coarse": choices[0][1][0]}), choices[0][0]
        if loss is not None:
            tried = [spec.model_copy(update={"coarse": one}) for _, all_ in choices[:RANGES_TRIED] for one in all_]
            losses = [loss(round_trip(arrays, one, "coarse")) for one in tried]
            measured = min(losses)
            fitted = tried[losses.index(measured)]
        if measured <= (ERROR_MOST if loss is None else most):
            break
    return _laid_out(sample, fitted)


def _some(arrays: Array) -> NDArray[np.float32]:
    """At most `ROWS_MOST` samples and `ELEMENTS_MOST` elements, evenly spread, as float32."""
    most = max(1, min(ROWS_MOST, len(arrays), ELEMENTS_MOST // math.prod(arrays.shape[1:])))
    rows = np.unique(np.linspace(0, len(arrays) - 1, most).astype(np.int64))
    return arrays[rows].astype(np.float32)


def _choices(values: NDArray[np.float32], levels: int) -> list[tuple[float, list[Coarse]]]:
    """Ranges for so many levels, by their squared error over the variance, each with the ways to read its levels.

    `values` are sorted. Where none is below 0, as after ReLU, the range begins there. A level is read as the mean of
    what falls on it (Lloyd, "Least Squares Quantization in PCM", IEEE Trans. Inf. Theory 28, 1982), which costs no
    bit; but zeros that became a little more than nothing add up in layers that take means. So the first way, and the
    one whose error counts, leaves 0 as it is; then come all means, and the even steps themselves.
    """
    least, variance = float(values[0]), float(values.var(dtype=np.float64))
    found = []
    for tail in TAILS:
        cut = round(tail * (len(values) - 1))
        high = float(values[len(values) - 1 - cut])
        low = 0.0 if least >= 0 else float(values[cut])
        if high - low < 1e-30 or not variance:
            continue
        steps = np.linspace(low, high, levels).astype(np.float32)
        level = np.rint((np.clip(values, low, high) - low) * ((levels - 1) / (high - low))).astype(np.int64)
        means = _means(values, level, steps)
        kept = np.where(steps == 0, steps, means)
        error = float(np.square(kept[level] - values).mean(dtype=np.float64)) / variance
        plain = Coarse(low=low, high=high, levels=levels)
        ways = {tuple(way.astype(np.float64).tolist()): None for way in (kept, means)}
        found.append((error, [*(plain.model_copy(update={"values": way}) for way in ways), plain]))
    if not found:  # all are the same: any range that begins there
        low = min(least, 0.0)
        return [(0.0, [Coarse(low=low, high=max(low + 1.0, least), levels=levels)])]
    return sorted(found, key=lambda one: one[0])


def _means(values: NDArray[np.float32], level: NDArray[np.int64], steps: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of the values on each level; of one that is empty, its step."""
    count = np.bincount(level, minlength=len(steps))
    total = np.bincount(level, weights=values, minlength=len(steps))
    means: NDArray[np.float32] = np.where(count > 0, total / np.maximum(count, 1), steps).astype(np.float32)
    return means


def _laid_out(sample: NDArray[np.float32], spec: TensorSpec) -> TensorSpec:
    """`spec` with the order of elements, the elements in a byte and the dictionary that make the least bytes."""
    assert spec.coarse is not None
    fit = int(math.log(256.5, spec.coarse.levels))
    judge = np.arange(len(sample)) % HELD_OUT == HELD_OUT - 1
    if not judge.any():
        judge[:] = True
    best, smallest = spec, math.inf
    for channels_first in (False, True) if _has_channels(spec) else (False,):
        for per_byte in sorted({fit, 1 << (fit.bit_length() - 1)}, reverse=True):
            plain = _with(spec, channels_first=channels_first, per_byte=per_byte)
            bare = float(payload_sizes(sample[judge], plain, "coarse").mean())
            found = [(plain, bare)]
            dictionary = _dictionary(sample[~judge], plain)
            if dictionary:
                trained = _with(plain, dictionary=dictionary)
                size = float(payload_sizes(sample[judge], trained, "coarse").mean())
                if size <= DICTIONARY_PAYS * bare:
                    found.append((trained, size))
            for one, size in found:
                if size < smallest:
                    best, smallest = one, size
    return best


def _has_channels(spec: TensorSpec) -> bool:
    """Whether channels (the last axis) and positions can be told apart."""
    return bool(spec.shape) and 1 < spec.shape[-1] < spec.size


def _with(spec: TensorSpec, **changes: object) -> TensorSpec:
    assert spec.coarse is not None
    return spec.model_copy(update={"coarse": spec.coarse.model_copy(update=changes)})


def _dictionary(sample: NDArray[np.float32], spec: TensorSpec) -> str:
    """A zstd dictionary (base64) trained on how `sample` is packed; empty when there is too little to train on."""
    try:
        trained = zstandard.train_dictionary(DICTIONARY_BYTES, packed(sample, spec, "coarse"))
    except zstandard.ZstdError:
        return ""
    return base64.b64encode(trained.as_bytes()).decode()
