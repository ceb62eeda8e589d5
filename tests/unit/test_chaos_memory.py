"""A chaos run lets a step in memory pass and finds a leak."""

from collections.abc import Callable

import pytest

from tests.e2e.chaos.memory import EVERY_S, WARM_S, Growth, Memory


def life(held: Callable[[float], float], seconds: float = 150.0) -> Growth:
    """What is found of a process that held so many MB, by seconds after its warm-up."""
    memory = Memory()
    times = [EVERY_S * i for i in range(int((seconds + WARM_S) / EVERY_S) + 1)]
    memory._lives["stage", 1] = [(at, held(at - WARM_S)) for at in times]
    (growth,) = memory.growths()
    return growth


@pytest.mark.parametrize("at_s", [10, 60, 75, 90, 140])
def test_a_step_is_let_pass_wherever_it_is(at_s: float) -> None:
    assert life(lambda t: 82 if t < at_s else 99).flat


@pytest.mark.parametrize("mb_per_minute", [0.0, 0.9])
def test_slow_growth_is_let_pass(mb_per_minute: float) -> None:
    assert life(lambda t: 82 + t / 60 * mb_per_minute, 1800).flat


@pytest.mark.parametrize(("seconds", "mb_per_minute"), [(150, 12), (600, 3), (1800, 1.2)])
def test_a_leak_is_found(seconds: float, mb_per_minute: float) -> None:
    assert not life(lambda t: 82 + t / 60 * mb_per_minute, seconds).flat


def test_a_leak_in_steps_is_found() -> None:
    """As of something that a restart of Kafka leaves behind."""
    assert not life(lambda t: 82 + 6 * (max(t, 0) // 30), 300).flat


def test_a_step_has_a_bound() -> None:
    assert not life(lambda t: 82 if t < 75 else 130).flat
