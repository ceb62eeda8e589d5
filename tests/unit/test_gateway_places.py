"""Places bounded in messages and in bytes: who waits, who goes on, and that nobody waits at the end."""

import threading
from collections.abc import Iterator

import pytest

from gateway.places import Places


class Taker:
    """A thread that takes places for messages of these sizes, one after the other."""

    def __init__(self, places: Places, *sizes: int) -> None:
        self.got: list[bool] = []
        self.moved = threading.Condition()
        self.thread = threading.Thread(target=self._take, args=(places, sizes), daemon=True)
        self.thread.start()

    def _take(self, places: Places, sizes: tuple[int, ...]) -> None:
        for size in sizes:
            got = places.take(size)
            with self.moved:
                self.got.append(got)
                self.moved.notify_all()

    def wait(self, count: int) -> list[bool]:
        with self.moved:
            assert self.moved.wait_for(lambda: len(self.got) >= count, 20)
        return self.got


@pytest.fixture
def places() -> Iterator[Places]:
    places = Places(3, 100)
    yield places
    places.close()


def test_bounded_in_messages(places: Places) -> None:
    taker = Taker(places, 1, 1, 1, 1)
    taker.wait(3)
    assert (places.taken, places.bytes, len(taker.got)) == (3, 3, 3)
    places.free([1])
    assert taker.wait(4) == [True] * 4 and places.taken == 3


def test_bounded_in_bytes(places: Places) -> None:
    taker = Taker(places, 60, 40, 1)
    taker.wait(2)
    assert (places.taken, places.bytes, len(taker.got)) == (2, 100, 2)
    places.free([40])
    taker.wait(3)
    assert (places.taken, places.bytes) == (2, 61)


def test_one_larger_than_the_bound_passes_alone(places: Places) -> None:
    taker = Taker(places, 5, 1000, 5)
    taker.wait(1)
    assert places.bytes == 5
    places.free([5])
    taker.wait(2)
    assert (places.taken, places.bytes) == (1, 1000)
    places.free([1000])
    taker.wait(3)
    assert (places.taken, places.bytes) == (1, 5)


def test_at_the_end_nobody_waits(places: Places) -> None:
    taker = Taker(places, 100, 1, 1)
    taker.wait(1)
    places.close()
    assert taker.wait(3) == [True, False, False]
