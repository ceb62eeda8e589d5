"""When a reader stands still, and when there is just nothing to read."""

import pytest

from sluice.doors import kafka_stalls
from sluice.doors.kafka_stalls import JOIN_LOOKS, LOOK_EVERY_S, LOOKS, Stalls

A, B = ("t", 0), ("t", 1)
ROOM_S = 60.0
LETS_IN = JOIN_LOOKS + ROOM_S / LOOK_EVERY_S
"""After so many looks a group should have let a reader in."""


class World:
    """A clock, where topic partitions end, and whether Kafka answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(kafka_stalls, "monotonic", lambda: self.now)
        self.ends: dict[tuple[str, int], int | None] = {A: 5, B: 5}
        self.answers = True
        self.asked = 0
        self.stalls = Stalls(self._end_of, ROOM_S)

    def _end_of(self, place: tuple[str, int]) -> int | None:
        self.asked += 1
        return self.ends[place]

    def look(self, joined: bool = True) -> bool:
        """One more look, when it is time to."""
        self.now += LOOK_EVERY_S
        return self.stalls.look(joined, lambda: [A, B], lambda: self.answers)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def grow(world: World) -> None:
    world.ends[B] = (world.ends[B] or 0) + 1


def test_an_end_that_goes_on_rising_while_nothing_is_read_is_a_stall(world: World) -> None:
    found = []
    for _ in range(LOOKS + 1):
        found.append(world.look())
        grow(world)
    assert found == [False] * LOOKS + [True]


def test_nothing_to_read_is_none(world: World) -> None:
    world.ends[B] = 500  # behind an end that does not rise may lie markers alone
    assert not any(world.look() for _ in range(50))


def test_what_is_read_begins_it_anew(world: World) -> None:
    for _ in range(10):
        for _ in range(LOOKS):
            assert not world.look()
            grow(world)
        world.stalls.moves()


def test_kafka_that_does_not_answer_is_away_and_not_stuck(world: World) -> None:
    world.ends = {A: None, B: None}
    assert not any(world.look() for _ in range(10))
    world.answers = False
    assert not any(world.look(joined=False) for _ in range(100))


def test_a_group_that_lets_nobody_in_is_a_stall(world: World) -> None:
    assert next(turn for turn in range(1, 100) if world.look(joined=False)) == LETS_IN
    assert world.asked == 0


def test_kafka_is_asked_now_and_then(world: World) -> None:
    for _ in range(100):
        world.now += LOOK_EVERY_S / 10
        world.stalls.look(True, lambda: [A, B], lambda: True)
    assert world.asked == 2 * 10
