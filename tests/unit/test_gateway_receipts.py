"""Receipts gathered by device: none is lost, none waits longer than it must, and each can be read."""

import pytest

from gateway import receipts
from gateway.receipts import ENOUGH, EVERY_S, Receipts
from sluice.wire.errors import TemporaryError
from sluice.wire.state import MAX_STATE_BYTES, Receipt, parse_state
from tests.unit.edge_stand_ins import Clock
from tests.unit.wire_support import EPOCH


class Gathered:
    """Receipts, a clock, and what was published."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.published: list[tuple[str, list[int]]] = []
        self.away = False
        self.receipts = Receipts(self.publish)

    def publish(self, device: str, body: bytes) -> None:
        if self.away:
            raise TemporaryError("too many messages wait")
        assert len(body) <= MAX_STATE_BYTES
        self.published.append((device, parse_state(Receipt, body).seqs))

    def add(self, device: str, *seqs: int) -> None:
        for seq in seqs:
            self.receipts.add(device, EPOCH, seq)

    def sent(self, *, busy: bool = True) -> list[tuple[str, list[int]]]:
        self.receipts.send(busy=busy)
        published, self.published = self.published, []
        return published


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> Gathered:
    clock = Clock()
    monkeypatch.setattr(receipts, "monotonic", clock)
    return Gathered(clock)


def test_with_little_to_do_they_go_at_once(gathered: Gathered) -> None:
    assert not gathered.receipts
    for seq in range(3):
        gathered.add("a", seq)
        assert gathered.receipts
        assert gathered.sent(busy=False) == [("a", [seq])]
    assert gathered.sent(busy=False) == []


def test_under_load_they_go_together_and_none_waits_longer_than_a_round(gathered: Gathered) -> None:
    gathered.add("a", 1)
    assert gathered.sent() == [("a", [1])]
    gathered.add("a", 2, 3)
    gathered.add("b", 7)
    assert gathered.sent() == []
    gathered.clock.forward(EVERY_S)
    assert gathered.sent() == [("a", [2, 3]), ("b", [7])]
    gathered.add("b", 8)
    assert gathered.sent() == []
    assert gathered.sent(busy=False) == [("b", [8])]


def test_a_device_with_many_does_not_wait(gathered: Gathered) -> None:
    gathered.add("a", 0)
    assert gathered.sent() == [("a", [0])]
    gathered.add("b", 1)
    gathered.add("a", *range(1, ENOUGH))
    assert gathered.sent() == []
    gathered.add("a", ENOUGH)
    assert gathered.sent() == [("a", list(range(1, ENOUGH + 1)))]
    assert gathered.sent(busy=False) == [("b", [1])]


def test_each_is_small_enough_to_be_read(gathered: Gathered) -> None:
    """One message may hold thousands of predictions with the largest numbers there are."""
    highest = 2**63 - 1
    many = [highest - i for i in range(11_000)]
    gathered.add("a", *many)
    assert [seq for _, seqs in gathered.sent() for seq in seqs] == many


def test_a_client_that_takes_no_more_costs_receipts_and_no_memory(gathered: Gathered) -> None:
    gathered.away = True
    gathered.add("a", 1)
    assert gathered.sent() == [] and not gathered.receipts
    gathered.away = False
    gathered.add("a", 2)
    assert gathered.sent(busy=False) == [("a", [2])]
