"""While a transaction ends, batches are worked on and wait; what fails is read again: with a writer whose commits the
test holds back. On a real Kafka: `tests/integration/test_stage_delivery.py`."""

import threading
import time
from queue import Queue
from typing import Any

import pytest

from sluice.daemon.settings import load
from sluice.doors.kafka import Record
from sluice.doors.kafka_transactions import FencedError, TransactionFailedError
from sluice.stage import exactly_once
from sluice.stage.exactly_once import WAITING_MOST, ExactlyOnce
from sluice.stage.settings import StageSettings
from sluice.wire import names
from sluice.wire.errors import TemporaryError
from tests.unit.wire_support import prediction

PLACE, OTHER = ("sluice.offload.fog.gate", 0), ("sluice.offload.fog.gate", 1)
WITHIN_S = 20.0


class Writer:
    """One transaction at a time; each commit ends as the test says."""

    def __init__(self) -> None:
        self.open: list[str] | None = None
        self.committed: list[tuple[list[str], dict[tuple[str, int], int]]] = []
        self.aborted = self.renewed = 0
        self.fenced = self.known = False
        self.commits: Queue[Exception | None] = Queue()
        self.begun = threading.Event()

    def init(self) -> None:
        self.known = True

    def begin(self) -> None:
        assert self.known and self.open is None
        self.open = []

    def write(self, topic: str, value: bytes, **_: Any) -> None:
        assert self.open is not None and not self.begun.is_set(), "nothing is written while a transaction ends"
        assert value
        self.open.append(topic)

    def commit(self, offsets: dict[tuple[str, int], int], group: object) -> None:
        assert group == "group" and self.open is not None
        self.begun.set()
        error = self.commits.get(timeout=WITHIN_S)
        self.begun.clear()
        if error is not None:
            raise error
        self.committed.append((self.open, offsets))
        self.open = None

    def abort(self) -> None:
        assert self.open is not None
        self.aborted += 1
        self.open = None
        if self.fenced:
            raise FencedError("fenced")

    def renew(self) -> None:
        self.renewed += 1
        self.open, self.known = None, False

    def poll(self, timeout_s: float = 0.0) -> None:
        pass


class Reader:
    def __init__(self) -> None:
        self.sought: list[dict[tuple[str, int], int]] = []
        self.done: list[dict[tuple[str, int], int]] = []

    def group(self) -> object:
        return "group"

    def has_committed(self, offsets: dict[tuple[str, int], int]) -> None:
        self.done.append(dict(offsets))

    def assignment(self) -> set[tuple[str, int]]:
        return {PLACE, OTHER}

    def seek(self, offsets: dict[tuple[str, int], int]) -> None:
        self.sought.append(dict(offsets))


class Delivery(ExactlyOnce):
    """A worker's turns over records 0, 1, 2 … of a topic partition, one a batch."""

    def __init__(self, **settings: Any) -> None:
        self.asked, self.held = Reader(), Writer()
        own = load(StageSettings, tier="fog", transaction_interval_s=1e-9, **settings)
        self.rewinds: list[set[tuple[str, int]]] = []
        super().__init__(own, self.asked, lambda places: self.rewinds.append(set(places)))  # type: ignore[arg-type]
        self.writer = self.held  # type: ignore[assignment]
        self._next: dict[tuple[str, int], int] = {}

    def turn(self, place: tuple[str, int] = PLACE) -> None:
        self.settle(threading.Event(), idle=False)
        self.work(place)

    def work(self, place: tuple[str, int] = PLACE) -> None:
        at = self._next.get(place, 0)
        self._next[place] = at + 1
        record = Record(*place, at, b"pi-1", b"an offload", 0, [])
        self.take([(record, prediction())], [], {place: at + 1})

    def rest(self) -> None:
        """A turn without records, after what was under way."""
        if self._ending is not None:
            self._ending.exception(WITHIN_S)
        self.settle(threading.Event(), idle=True)

    def ends(self, error: Exception | None = None) -> None:
        """The commit under way."""
        assert self.held.begun.wait(WITHIN_S)
        self.held.commits.put(error)

    def offsets(self) -> list[dict[tuple[str, int], int]]:
        return [offsets for _, offsets in self.held.committed]


@pytest.fixture
def delivery(monkeypatch: pytest.MonkeyPatch) -> Delivery:
    monkeypatch.setattr(exactly_once, "KafkaTransactions", lambda *_: None)
    return Delivery()


def test_batches_that_come_while_a_transaction_ends_are_the_next_one(delivery: Delivery) -> None:
    for _ in range(4):
        delivery.turn()  # the second finds the first's to be over, and begins to end it
    assert delivery.offsets() == []
    delivery.ends()
    delivery.rest()
    assert delivery.offsets() == [{PLACE: 1}]
    delivery.ends()
    delivery.rest()
    assert [(len(written), offsets) for written, offsets in delivery.held.committed] == [
        (1, {PLACE: 1}),
        (3, {PLACE: 4}),
    ]
    assert delivery.patience_s is None and not delivery.asked.sought
    assert delivery.asked.done == delivery.offsets()


def test_what_failed_is_read_again_with_all_that_waited(delivery: Delivery) -> None:
    for place in (PLACE, PLACE, OTHER, PLACE):
        delivery.turn(place)
    delivery.ends(TransactionFailedError("fenced by a rebalance"))
    delivery.rest()
    assert delivery.asked.sought == [{PLACE: 0, OTHER: 0}] and delivery.rewinds == [{PLACE, OTHER}]
    assert (delivery.held.aborted, delivery.held.open, delivery.offsets()) == (1, None, [])


def test_a_commit_that_kafka_could_not_answer_is_begun_once_more_before_anything_else(delivery: Delivery) -> None:
    delivery.turn()
    delivery.turn()
    delivery.ends(TemporaryError("Kafka is away"))
    with pytest.raises(TemporaryError, match="away"):
        delivery.rest()
    delivery.settle(threading.Event(), idle=True)
    delivery.ends()
    delivery.rest()
    assert delivery.offsets() == [{PLACE: 1}]
    delivery.ends()
    delivery.rest()
    assert delivery.offsets() == [{PLACE: 1}, {PLACE: 2}]


def test_no_more_than_so_many_batches_wait(delivery: Delivery) -> None:
    """The turn after them waits for Kafka, or for the word to stop."""
    for _ in range(WAITING_MOST + 1):
        delivery.turn()
    stop = threading.Event()
    waiting = threading.Thread(target=lambda: delivery.settle(stop, idle=False))
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    delivery.ends()
    waiting.join(WITHIN_S)
    assert not waiting.is_alive() and len(delivery.held.open or ()) == WAITING_MOST
    delivery.ends()


def test_topic_partitions_are_given_away_with_all_that_was_made_of_them(delivery: Delivery) -> None:
    for _ in range(3):
        delivery.turn()
    for _ in range(2):
        delivery.held.commits.put(None)
    delivery.lost([PLACE])
    assert delivery.offsets() == [{PLACE: 1}, {PLACE: 3}]
    delivery.rest()
    assert delivery.held.open is None and not delivery.asked.sought


def test_what_could_not_be_committed_is_left_to_the_next_reader(delivery: Delivery) -> None:
    for place in (PLACE, PLACE, OTHER):
        delivery.turn(place)
    delivery.held.commits.put(TransactionFailedError("not a member any more"))
    delivery.lost([PLACE])
    delivery.rest()
    assert delivery.asked.sought == [{OTHER: 0}], "only what is still ours"
    assert delivery.offsets() == []


def test_the_end_takes_along_what_waits(delivery: Delivery) -> None:
    for _ in range(3):
        delivery.turn()
    for _ in range(2):
        delivery.held.commits.put(None)
    delivery.stop()
    assert delivery.offsets() == [{PLACE: 1}, {PLACE: 3}]


def test_fenced_by_kafka_itself_it_goes_on_as_a_new_one(delivery: Delivery) -> None:
    """Nobody else has its name."""
    delivery.turn()
    delivery.turn()
    delivery.held.fenced = True
    delivery.ends(TransactionFailedError("timed out"))
    delivery.rest()
    assert delivery.held.renewed == 1 and delivery.asked.sought == [{PLACE: 0}]
    delivery.work()
    assert delivery.held.open == [names.PREDICTIONS]


def test_fenced_by_whoever_has_its_name_now_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exactly_once, "KafkaTransactions", lambda *_: None)
    delivery = Delivery(transactional_id="stage-1")
    delivery.turn()
    delivery.turn()
    delivery.held.fenced = True
    delivery.ends(TransactionFailedError("timed out"))
    with pytest.raises(FencedError):
        delivery.rest()
    assert not delivery.held.renewed


def test_what_has_outlasted_its_transaction_was_fenced_by_kafka_whatever_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exactly_once, "KafkaTransactions", lambda *_: None)
    delivery = Delivery(transactional_id="stage-1", transaction_timeout_s=1.0)
    delivery.turn()
    delivery.turn()
    delivery.held.fenced = True
    later = time.monotonic() + 1.5
    monkeypatch.setattr("sluice.stage.exactly_once.time.monotonic", lambda: later)
    delivery.ends(TransactionFailedError("timed out"))
    delivery.rest()
    assert delivery.held.renewed == 1
