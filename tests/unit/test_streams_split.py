"""The split into training and validation: stratified, and the same wherever and whenever it is made."""

import numpy as np

from sluice.streams.reader import split_stream, split_validation
from sluice.wire.state import Announcement

Y = np.repeat([0, 1, 2], [100, 50, 10])


def test_every_class_gives_its_share() -> None:
    train, validation = split_validation(Y, 0.3, seed=1)
    assert np.bincount(Y[validation]).tolist() == [30, 15, 3]
    assert sorted([*train, *validation]) == list(range(len(Y)))


def test_the_same_seed_gives_the_same_split_for_ever() -> None:
    _, validation = split_validation(Y, 0.05, seed=7)
    again = split_validation(Y.copy(), 0.05, seed=7)[1]
    assert validation.tolist() == again.tolist() == [6, 32, 37, 96, 98, 114, 120]
    assert validation.tolist() != split_validation(Y, 0.05, seed=8)[1].tolist()


def test_without_labels_and_at_the_edges() -> None:
    train, validation = split_validation(None, 0.25, seed=0, n=40)
    assert (len(train), len(validation)) == (30, 10)
    train, validation = split_validation(Y, 0.0, seed=0)
    assert (len(train), len(validation)) == (len(Y), 0)
    assert [len(part) for part in split_validation(np.array([4]), 0.3, seed=0)] == [1, 0]


def test_a_stream_is_split_by_its_own_name() -> None:
    def stream(name: str) -> Announcement:
        return Announcement(
            stream_id=name, slices=["t:0:0:160"], format="raw", config={}, validation_rate=0.3, count=160
        )

    one = split_stream(stream("one"), Y, len(Y))[1].tolist()
    assert one == split_stream(stream("one"), Y, len(Y))[1].tolist()
    assert one != split_stream(stream("two"), Y, len(Y))[1].tolist()


def test_what_has_no_label_stays_with_training_and_changes_nothing_for_the_others() -> None:
    bare = np.full(40, -1)
    mixed = np.concatenate([bare, Y, bare])
    train, validation = split_validation(mixed, 0.3, seed=1)
    np.testing.assert_array_equal(validation - 40, split_validation(Y, 0.3, seed=1)[1])
    assert np.count_nonzero(mixed[train] == -1) == 80
    np.testing.assert_array_equal(split_validation(bare, 0.25, 3)[1], split_validation(None, 0.25, 3, n=40)[1])
