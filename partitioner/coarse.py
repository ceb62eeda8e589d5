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
ERROR_MOST = 0.22
"""Squared error over the variance that is taken where no loss can be asked for."""
LOSS_MOST = 0.005
DICTIONARY_BYTES = 4096
DICTIONARY_PAYS = 0.98
"""A dictionary is kept when the sizes with it are at most this share of those without."""
ROWS_MOST = 1000
ELEMENTS_MOST = 2_000_000
HELD_OUT = 4
"""Every so many-th sample judges the dictionary, which the others train."""


def fit_coarse(
    arrays: Array, spec: TensorSpec, levels: int | None = None, *, loss: Loss | None = None, most: float = LOSS_MOST
) -> TensorSpec:
    """`spec` with its codec coarse, fitted to calibration tensors (n, *shape); integers come back as they are.

    `levels` (2 to 16) fixes how many; else the fewest are taken whose `loss` is at most `most`. `loss` is told the
    calibration tensors as they arrive, in the same order (n, *shape), and says what is lost by that (the share of
    answers that differ, say). Without it the measure is the squared error, at most 0.22 of the variance.
    """
    if not spec.is_float:
        return spec
    sample = _some(arrays)
    for count in LEVELS if levels is None else (levels,):
        coarse, error = _clip(sample, count)
        fitted = spec.model_copy(update={"coarse": coarse})
        if loss is not None and levels is None:
            good = loss(round_trip(arrays, fitted, "coarse")) <= most
        else:
            good = error <= ERROR_MOST
        if good:
            break
    return _laid_out(sample, fitted)


def _some(arrays: Array) -> NDArray[np.float32]:
    """At most `ROWS_MOST` samples and `ELEMENTS_MOST` elements, evenly spread, as float32."""
    most = max(1, min(ROWS_MOST, len(arrays), ELEMENTS_MOST // math.prod(arrays.shape[1:])))
    rows = np.unique(np.linspace(0, len(arrays) - 1, most).astype(np.int64))
    return arrays[rows].astype(np.float32)


def _clip(sample: NDArray[np.float32], levels: int) -> tuple[Coarse, float]:
    """The range for so many levels with the least squared error, and that error over the variance.

    Where nothing is below 0, as after ReLU, the range begins there, so that zeros stay zeros.
    """
    values = np.sort(sample, axis=None)
    least, variance = float(values[0]), float(values.var(dtype=np.float64))
    best: tuple[float, float, float] | None = None
    for tail in TAILS:
        cut = round(tail * (len(values) - 1))
        high = float(values[len(values) - 1 - cut])
        low = 0.0 if least >= 0 else float(values[cut])
        if high - low < 1e-30:
            continue
        step = (high - low) / (levels - 1)
        made = np.rint((np.clip(values, low, high) - low) / step) * step + low
        error = float(np.square(made - values).mean(dtype=np.float64))
        if best is None or error < best[0]:
            best = (error, low, high)
    if best is None:  # all are the same: any range that begins there
        low = min(least, 0.0)
        return Coarse(low=low, high=max(low + 1.0, least), levels=levels), 0.0
    return Coarse(low=best[1], high=best[2], levels=levels), best[0] / variance if variance else 0.0


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
