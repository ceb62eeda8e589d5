"""Codec coarse is fitted to the tensors: few levels where they lose little, a layout and a dictionary that pay."""

import base64
from typing import Any

import numpy as np
import pytest

from partitioner.segments.coarse import DICTIONARY_BYTES, fit_coarse
from sluice.wire.codec import payload_sizes, round_trip
from sluice.wire.manifest import TensorSpec


def spec_of(*shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec.model_validate({"name": "h", "dtype": dtype, "shape": shape})


def relu(n: int = 300, positions: int = 64, channels: int = 8) -> Any:
    """Activations after ReLU: smooth over positions, different by channel, a third of them zero."""
    random = np.random.default_rng(3)
    phase = random.uniform(0, 6, (n, 1, channels))
    waves = np.sin(np.linspace(0, 9, positions)[None, :, None] + phase) * np.linspace(0.5, 2, channels)
    return np.maximum(waves + 0.3, 0).astype(np.float32)


def bits(arrays: Any, spec: TensorSpec) -> float:
    return float(payload_sizes(arrays, spec, "coarse").mean()) * 8 / spec.size


def error(arrays: Any, spec: TensorSpec) -> float:
    return float(np.square(round_trip(arrays, spec, "coarse") - arrays).mean() / arrays.var())


def test_few_levels_are_enough_and_take_about_a_bit() -> None:
    arrays = relu()
    fitted = fit_coarse(arrays[:200], spec_of(64, 8))
    coarse = fitted.coarse
    assert coarse is not None and coarse.low == 0 and coarse.levels <= 4
    assert error(arrays[200:], fitted) < 0.25
    assert bits(arrays[200:], fitted) < 1.2
    assert coarse.channels_first, "neighbours in time are alike, neighbouring channels are not"
    assert 0 < len(base64.b64decode(coarse.dictionary)) <= DICTIONARY_BYTES
    bare = fitted.model_copy(update={"coarse": coarse.model_copy(update={"dictionary": ""})})
    assert bits(arrays[200:], fitted) < bits(arrays[200:], bare)


def test_the_same_tensors_give_the_same_codec() -> None:
    arrays = relu()
    assert fit_coarse(arrays, spec_of(64, 8)) == fit_coarse(arrays.copy(), spec_of(64, 8))


@pytest.mark.parametrize("levels", [2, 3, 7, 16])
def test_more_levels_are_more_exact(levels: int) -> None:
    arrays = relu()
    fitted = fit_coarse(arrays, spec_of(64, 8), levels)
    assert fitted.coarse is not None and fitted.coarse.levels == levels
    assert error(arrays, fitted) < {2: 0.4, 3: 0.15, 7: 0.02, 16: 0.005}[levels]


def test_a_loss_decides_how_many_levels() -> None:
    arrays = relu()

    def loss(arrived: Any) -> float:
        assert arrived.shape == arrays.shape and arrived.dtype == np.float32
        return 0.005 if len(np.unique(arrived)) >= 5 else 0.0051

    fitted = fit_coarse(arrays, spec_of(64, 8), loss=loss)
    assert fitted.coarse is not None and fitted.coarse.levels == 5, "the fewest that lose little enough"
    never = fit_coarse(arrays, spec_of(64, 8), loss=lambda _: 1.0)
    assert never.coarse is not None and never.coarse.levels == 16, "the most there are"


def test_among_as_many_levels_the_least_loss_is_taken() -> None:
    """A sum that runs over all elements does not bear zeros that became a little more."""
    arrays = relu()
    whole = arrays.sum(axis=(1, 2))
    by_error = fit_coarse(arrays, spec_of(64, 8), 3)
    by_sum = fit_coarse(
        arrays, spec_of(64, 8), 3, loss=lambda arrived: float(np.abs(arrived.sum(axis=(1, 2)) - whole).mean())
    )
    off = [np.abs(round_trip(arrays, one, "coarse").sum(axis=(1, 2)) - whole).mean() for one in (by_error, by_sum)]
    assert off[1] < off[0]
    assert by_error.coarse is not None and by_error.coarse.values[0] == 0, "zeros stay zeros unless that loses more"


def test_outliers_are_clipped() -> None:
    arrays = relu()
    arrays[::7, 3, 2] = 1000
    coarse = fit_coarse(arrays, spec_of(64, 8), 4).coarse
    assert coarse is not None and coarse.high > 100, "squared error cares for them"
    arrays[:, 3, 2] = 0
    arrays[0, 3, 2] = 8
    coarse = fit_coarse(arrays, spec_of(64, 8), 4).coarse
    assert coarse is not None and coarse.high < 3


def test_values_on_both_sides_of_0_are_clipped_on_both() -> None:
    arrays = np.random.default_rng(0).normal(size=(200, 50)).astype(np.float32)
    coarse = fit_coarse(arrays, spec_of(50), 8).coarse
    assert coarse is not None
    assert -3.5 < coarse.low < -1.5 and 1.5 < coarse.high < 3.5 and not coarse.channels_first


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_few_samples_make_no_dictionary_and_still_a_codec(n: int) -> None:
    arrays = relu(n)
    fitted = fit_coarse(arrays, spec_of(64, 8))
    assert fitted.coarse is not None
    assert round_trip(arrays, fitted, "coarse").shape == arrays.shape


@pytest.mark.parametrize("value", [0.0, 5.0, -5.0])
def test_a_tensor_that_is_always_the_same_comes_back(value: float) -> None:
    arrays = np.full((20, 6), value, np.float32)
    fitted = fit_coarse(arrays, spec_of(6))
    np.testing.assert_array_equal(round_trip(arrays, fitted, "coarse"), arrays)


def test_integers_need_no_levels() -> None:
    spec = spec_of(28, dtype="uint8")
    assert fit_coarse(np.zeros((5, 28), np.uint8), spec) is spec
