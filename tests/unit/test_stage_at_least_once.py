"""Offsets move when Kafka has confirmed all that came of the records before them, and not earlier: with a writer whose
confirmations the test holds back. On a real Kafka: `tests/integration/test_stage_delivery.py`."""

import threading
from typing import Any

import pytest

from sluice.daemon.settings import load
from sluice.doors.kafka import Delivered, Record
from sluice.stage.delivery import AtLeastOnce
from sluice.stage.settings import StageSettings
from sluice.wire import names
from sluice.wire.errors import PermanentError, TemporaryError
from tests.unit.wire_support import prediction

PLACE = ("sluice.offload.fog.gate", 0)


class Writer:
    """Keeps what Kafka would have to confirm."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, Delivered]] = []

    def write(self, topic: str, value: bytes, *, on_delivery: Delivered, **_: Any) -> None:
        assert value
        self.waiting.append((topic, on_delivery))

    def confirm(self, index: int, error: Exception | None = None) -> None:
        self.waiting.pop(index)[1](error)

    def poll(self, timeout_s: float = 0.0) -> None:
        pass

    def flush(self, _timeout_s: float) -> int:
        return len(self.waiting)


class Reader:
    def __init__(self) -> None:
        self.committed: dict[tuple[str, int], int] = {}

    def commit(self, offsets: dict[tuple[str, int], int]) -> None:
        self.committed |= offsets


class Delivery(AtLeastOnce):
    """A worker's turns over records 0, 1, 2 …, one a batch."""

    def __init__(self) -> None:
        settings = load(StageSettings, tier="fog", commit_interval_s=0.0)
        self.committer, self.held = Reader(), Writer()
        super().__init__(settings, self.committer, lambda _: None)  # type: ignore[arg-type]
        self.writer = self.held  # type: ignore[assignment]
        self._next = 0

    def turn(self, *, dead: bool = False) -> None:
        self.settle(threading.Event(), idle=False)
        record = Record(*PLACE, self._next, b"pi-1", b"an offload", 0, [])
        self._next += 1
        letters, outcomes = ([(record, "broken")], []) if dead else ([], [(record, prediction())])
        self.take(outcomes, letters, {PLACE: self._next})

    def moved(self) -> int | None:
        """The offset that is committed now."""
        self.settle(threading.Event(), idle=True)
        return self.committer.committed.get(PLACE)


def test_offsets_wait_for_what_came_of_their_records_and_of_those_before() -> None:
    delivery = Delivery()
    for _ in range(3):
        delivery.turn()
    assert delivery.moved() is None, "nothing is confirmed"
    delivery.held.confirm(1)
    assert delivery.moved() is None, "the first is not"
    delivery.held.confirm(0)
    assert delivery.moved() == 2
    delivery.held.confirm(0)
    assert delivery.moved() == 3


def test_neither_the_end_nor_a_rebalance_moves_what_is_not_confirmed() -> None:
    delivery = Delivery()
    delivery.turn()
    delivery.stop()
    assert delivery.committer.committed == {}
    delivery.turn()
    delivery.held.confirm(0)
    delivery.lost([PLACE])
    assert delivery.committer.committed == {PLACE: 1}
    delivery.held.confirm(0)
    assert delivery.moved() == 1, "it is someone else's now"


def test_dead_letters_are_waited_for_as_well() -> None:
    delivery = Delivery()
    delivery.turn(dead=True)
    assert delivery.moved() is None
    delivery.turn()
    delivery.held.confirm(1, PermanentError("too large"))
    assert [topic for topic, _ in delivery.held.waiting] == [names.DEAD_LETTER] * 2
    delivery.held.confirm(0)
    assert delivery.moved() == 1, "the letter of what was refused is under way"
    delivery.held.confirm(0)
    assert delivery.moved() == 2


def test_what_is_lost_for_good_moves_nothing_and_ends_the_process() -> None:
    delivery = Delivery()
    delivery.turn()
    delivery.held.confirm(0, TemporaryError("timed out"))
    with pytest.raises(RuntimeError, match="Kafka lost a record for good: timed out"):
        delivery.moved()
    assert delivery.committer.committed == {}
