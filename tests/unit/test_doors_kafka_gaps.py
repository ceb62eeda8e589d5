"""Which gaps in the offsets are retention's."""

from collections.abc import Callable

import pytest

from sluice.doors import kafka_gaps
from sluice.doors.kafka_gaps import LOOK_EVERY_S, Gaps

PLACE, OTHER = ("topic", 0), ("topic", 1)


class Log:
    """Where Kafka's records begin now, and how often that was asked."""

    def __init__(self) -> None:
        self.first: int | None = 0
        self.asked = 0
        self.now = 1000.0

    def __call__(self, _place: tuple[str, int]) -> int | None:
        self.asked += 1
        return self.first


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    log = Log()
    monkeypatch.setattr(kafka_gaps, "monotonic", lambda: log.now)
    return log


def reading(log: Callable[[tuple[str, int]], int | None], *offsets: int, begin: int | None) -> Gaps:
    gaps = Gaps(log)
    if begin is not None:
        gaps.begin(PLACE, begin)
    for offset in offsets:
        gaps.see(PLACE, offset)
    return gaps


def test_what_retention_took_before_the_first_record_is_counted_once(log: Log) -> None:
    log.first = 50
    gaps = reading(log, 50, 51, begin=20)
    assert gaps.lost() == {PLACE: 30}
    assert gaps.lost() == {}


def test_a_single_record_counts_where_reading_begins(log: Log) -> None:
    log.first = 21
    assert reading(log, 21, begin=20).lost() == {PLACE: 1}


@pytest.mark.parametrize("begin", [20, None])
def test_gaps_that_transactions_leave_are_not_retentions(log: Log, begin: int | None) -> None:
    log.first = 10
    assert reading(log, 25, 27, 40, begin=begin).lost() == {}


def test_the_end_of_a_transaction_is_no_question_to_kafka(log: Log) -> None:
    assert reading(log, 20, 22, 24, begin=20).lost() == {}
    assert log.asked == 0


def test_overtaken_in_the_middle_only_what_retention_took_counts(log: Log) -> None:
    gaps = reading(log, 20, 25, begin=20)  # an aborted transaction
    assert gaps.lost() == {}
    log.now += LOOK_EVERY_S
    log.first = 100
    gaps.see(PLACE, 110)  # 26 to 99 are gone, 100 to 109 never were to be read
    assert gaps.lost() == {PLACE: 74}


def test_kafka_is_not_asked_at_every_gap_and_asked_again_when_it_could_not_say(log: Log) -> None:
    gaps = reading(log, 0, begin=0)
    log.first = None
    for offset in range(10, 1000, 10):
        gaps.see(PLACE, offset)
        assert gaps.lost() == {}
    assert log.asked == 1
    log.now += LOOK_EVERY_S
    log.first = 500
    assert gaps.lost() == {PLACE: 9 * 50}


def test_a_topic_partition_that_went_away_is_forgotten(log: Log) -> None:
    log.first = 50
    gaps = reading(log, 50, begin=20)
    gaps.forget([PLACE])
    assert gaps.lost() == {}
    gaps.see(PLACE, 70)  # it is back, and nobody knows from where it is read
    assert gaps.lost() == {} and log.asked == 0
