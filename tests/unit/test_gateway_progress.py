"""What may be committed on the way down: only up to the first record that is not through."""

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.progress import Progress
from sluice.doors.kafka import Record


def record(offset: int, partition: int = 0) -> Record:
    return Record("sluice.predictions", partition, offset, None, b"", 0, [])


PLACE = ("sluice.predictions", 0)
OTHER = ("sluice.predictions", 1)


def test_offsets_move_only_up_to_the_first_unfinished() -> None:
    progress = Progress()
    for offset in range(5):
        progress.begin(record(offset))
    for offset in (1, 2, 4):
        progress.done(PLACE, offset)
    assert progress.pop_offsets() == {} and len(progress) == 5
    progress.done(PLACE, 0)
    assert progress.pop_offsets() == {PLACE: 3} and len(progress) == 2
    assert progress.pop_offsets() == {}
    progress.done(PLACE, 3)
    assert progress.pop_offsets() == {PLACE: 5} and len(progress) == 0


def test_topic_partitions_do_not_wait_for_one_another() -> None:
    progress = Progress()
    for partition in (0, 1):
        for offset in (7, 9):  # offsets have gaps where there were transactions
            progress.begin(record(offset, partition))
    progress.done(OTHER, 7)
    progress.done(OTHER, 9)
    assert progress.pop_offsets() == {OTHER: 10}


def test_what_was_taken_away_is_forgotten() -> None:
    progress = Progress()
    for partition in (0, 1):
        progress.begin(record(3, partition))
    progress.forget([PLACE, ("never", 0)])
    progress.done(PLACE, 3)
    progress.done(OTHER, 3)
    assert progress.pop_offsets() == {OTHER: 4} and len(progress) == 0


def test_a_topic_partition_that_comes_back_is_read_from_further_back() -> None:
    """What was begun before counts no more: it may not let the offset jump over what is read again."""
    progress = Progress()
    progress.begin(record(10))
    for offset in (6, 7):
        progress.begin(record(offset))
    progress.done(PLACE, 10)
    progress.done(PLACE, 7)
    assert progress.pop_offsets() == {}
    progress.done(PLACE, 6)
    assert progress.pop_offsets() == {PLACE: 8}


@given(st.lists(st.integers(0, 30), unique=True), st.data())
@settings(max_examples=200, deadline=None)
def test_in_any_order_no_offset_passes_an_unfinished_one(offsets: list[int], data: st.DataObject) -> None:
    progress = Progress()
    for offset in sorted(offsets):
        progress.begin(record(offset))
    left, committed = set(offsets), 0
    for offset in data.draw(st.permutations(offsets)):
        progress.done(PLACE, offset)
        left.remove(offset)
        committed = progress.pop_offsets().get(PLACE, committed)
        assert committed <= min(left, default=31)
    if offsets:
        assert committed == max(offsets) + 1
