"""Faults end whatever order their ends come in, one that waits for another too."""

from collections.abc import Iterator

from tests.e2e.chaos.courses import Courses
from tests.e2e.chaos.faults import Planned


def planned(target: str, lasts_s: float = 0.0) -> Planned:
    return Planned(1, 0, "restart", target, lasts_s, seed=0)


def test_one_that_waits_for_another_holds_nobody_up() -> None:
    """A rollout that was begun before the control plane went ends after it is back."""
    there = True

    def rollout() -> Iterator[None]:
        yield
        while not there:
            yield

    def restart() -> Iterator[None]:
        nonlocal there
        there = False
        yield
        there = True

    going = Courses()
    going.begin(planned("devices"), rollout())
    going.begin(planned("cloud"), restart())
    assert not going.free(planned("cloud")) and going.free(planned("gateway"))
    going.end()
    assert going, "the rollout was asked first, and waits"
    going.end()
    assert not going and going.free(planned("cloud"))


def test_one_that_has_time_left_is_not_ended_but_at_the_end() -> None:
    def course() -> Iterator[None]:
        yield

    going = Courses()
    going.begin(planned("cloud", 3600.0), course())
    going.end()
    assert going and going.in_time
    going.end(all_of_them=True)
    assert not going
