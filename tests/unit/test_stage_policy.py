"""The gate: every measure goes from 0 to 1, larger is surer, and at the threshold the exit answers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from numpy.typing import NDArray

from sluice.stage.policy import MEASURES, decide, gate, passes, probabilities
from sluice.wire.manifest import ExitPolicy
from tests.unit.wire_support import patient

Floats = NDArray[np.float32]
array_shapes = arrays_of.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=12)
logits = arrays_of.arrays(
    np.float32,
    array_shapes,
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)
measures = st.sampled_from(sorted(MEASURES))


def test_these_are_the_manifests_measures() -> None:
    for measure in MEASURES:
        ExitPolicy.model_validate({"measure": measure, "threshold": 0.5})
    assert set(MEASURES) == {"max_prob", "entropy", "margin"}


@patient
@given(measures, logits, st.floats(0.01, 100))
def test_confidence_is_in_0_to_1_and_probabilities_add_up(measure: str, values: Floats, temperature: float) -> None:
    before = values.copy()
    labels, confidence = gate(measure, values, temperature)
    p = probabilities(values, temperature)
    assert (labels.shape, confidence.shape, p.shape) == ((len(values),), (len(values),), values.shape)
    assert (str(labels.dtype), str(confidence.dtype), str(p.dtype)) == ("int64", "float64", "float32")
    assert (confidence >= 0).all() and (confidence <= 1).all()
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    assert (p[np.arange(len(p)), labels] == p.max(axis=1)).all()
    np.testing.assert_array_equal(values, before)  # the caller's array is not touched


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_nothing_known_and_everything_known(measure: str, classes: int) -> None:
    """Equal logits give the least confidence that there is, and it is never below 0; one far above all gives 1."""
    least = {"max_prob": 1 / classes, "entropy": 0.0, "margin": 0.0}
    equal = np.zeros((1, classes), np.float32)
    sure = equal.copy()
    sure[0, 1] = 200
    labels, confidence = gate(measure, np.concatenate([equal, sure]), 1.0)
    assert labels[1] == 1
    assert confidence[0] >= 0 and confidence.tolist() == pytest.approx([least[measure], 1.0], abs=1e-6)


@patient
@given(measures, st.integers(2, 10), st.lists(st.floats(0, 20), min_size=2, max_size=8, unique=True))
def test_a_larger_lead_is_surer(measure: str, classes: int, leads: list[float]) -> None:
    values = np.zeros((len(leads), classes), np.float32)
    values[:, 0] = sorted(leads)
    confidence = gate(measure, values, 1.0)[1]
    assert (np.diff(confidence) >= -1e-6).all()


def test_the_measures_are_what_their_names_say() -> None:
    values = np.log(np.array([[0.5, 0.3, 0.2]], np.float32))
    found = {measure: float(gate(measure, values, 1.0)[1][0]) for measure in MEASURES}
    entropy = -(0.5 * np.log(0.5) + 0.3 * np.log(0.3) + 0.2 * np.log(0.2))
    assert found == pytest.approx({"max_prob": 0.5, "margin": 0.2, "entropy": 1 - entropy / np.log(3)}, abs=1e-6)


def test_a_margin_of_two_that_are_equal_is_0() -> None:
    assert gate("margin", np.array([[5, 5, 0], [0, 5, 5]], np.float32), 1.0)[1].tolist() == [0, 0]


@patient
@given(measures, logits)
def test_temperature_changes_confidence_and_never_the_label(measure: str, values: Floats) -> None:
    values = np.clip(values, -50, 50)
    hot, mild, cold = (gate(measure, values, temperature) for temperature in (10.0, 1.0, 0.1))
    assert (hot[1] <= mild[1] + 1e-5).all() and (mild[1] <= cold[1] + 1e-5).all()
    top = values[np.arange(len(values)), hot[0]]
    np.testing.assert_allclose(top, values.max(axis=1), atol=1e-4)


def test_temperature_divides_the_logits() -> None:
    values = np.array([[3.0, 1.0, -2.0]], np.float32)
    np.testing.assert_array_equal(probabilities(values, 2.0), probabilities(values / np.float32(2), 1.0))


@pytest.mark.parametrize("measure", MEASURES)
def test_at_the_threshold_the_exit_answers(measure: str) -> None:
    values = np.array([[1.0, 0.2]], np.float32)
    confidence = gate(measure, values, 1.0)[1]
    at = float(confidence[0])
    for threshold, answered in [(0.0, True), (at, True), (float(np.nextafter(at, 2)), False), (2.0, False)]:
        policy = ExitPolicy.model_validate({"measure": measure, "threshold": threshold})
        assert passes(policy, confidence).tolist() == [answered]
        assert decide(policy, values) == ([0], [at], [answered])
        assert decide(policy, values, last=True) == ([0], [at], [True])
        assert decide(policy, np.tile(values, (3, 1))) == ([0] * 3, [at] * 3, [answered] * 3)


@pytest.mark.parametrize("measure", MEASURES)
def test_logits_that_are_not_numbers_are_never_sure_and_harm_no_neighbour(measure: str) -> None:
    values = np.array([[np.nan, 1.0], [9.0, 0.0]], np.float32)
    labels, confidence = gate(measure, values, 1.0)
    assert confidence[0] == 0 and labels[0] == 0
    assert labels[1] == 0 and confidence[1] == gate(measure, values[1:], 1.0)[1][0]


odd = arrays_of.arrays(
    np.float32,
    array_shapes,
    elements=st.sampled_from([0.0, -0.0, 1.0, 5.0, -3e38, 3e38, np.inf, -np.inf, np.nan])
    | st.floats(-30, 30, width=32),
)


@patient
@given(measures, odd, st.floats(0.01, 100))
def test_one_sample_is_answered_as_in_a_batch(measure: str, values: Floats, temperature: float) -> None:
    """Plain Python for one, NumPy for many: the same label, also among equals, and the same confidence."""
    labels, confidence = gate(measure, np.concatenate([values, values]), temperature)
    p = probabilities(np.concatenate([values, values]), temperature)
    for row in range(len(values)):
        label, sure = gate(measure, values[row : row + 1], temperature)
        assert label.tolist() == [labels[row]]
        np.testing.assert_allclose(sure, confidence[row], rtol=0, atol=1e-12)
        alone = probabilities(values[row : row + 1], temperature)
        np.testing.assert_allclose(alone[0], p[row], rtol=1e-6)
