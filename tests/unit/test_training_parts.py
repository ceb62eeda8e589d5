"""What a training needs no TensorFlow for: settings, parts of a stream, order, weights, checkpoints, confusion."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from cloud.training import checkpoint
from cloud.training.checkpoint import Standing
from cloud.training.confusion import MOST_COUNTS, confusion, summary
from cloud.training.parts import class_weights, parts_of, shuffled
from sluice.streams.reader import split_stream
from sluice.wire.errors import PermanentError
from sluice.wire.state import Announcement
from sluice.wire.training import EarlyStopping, TrainingSettings


def settings(**values: Any) -> TrainingSettings:
    return TrainingSettings.model_validate(values)


def announced(rate: float = 0.2) -> Announcement:
    return Announcement(
        stream_id="s", slices=["t:0:0:100"], format="raw", config={}, validation_rate=rate, count=100, deployment=None
    )


KINDS = np.repeat([0, 1, 2], [60, 30, 10])


def test_what_was_announced_before_there_were_more_settings_still_says_the_same() -> None:
    old = {"epochs": 3, "batch": 8, "learning_rate": 0.01, "exit_weights": {"early": 0.3}, "seed": 4}
    assert settings(**old).model_dump(exclude_defaults=True) == old


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"optimizer": "lion"}, "optimizer"),
        ({"exit_weights": {"a": float("nan")}}, "exit_weights"),
        ({"class_weights": "even"}, "class_weights"),
        ({"early_stopping": {"patience": 0}}, "patience"),
        ({"distillation": {"temperature": 0}}, "temperature"),
        ({"epoch": 3}, "epoch"),
    ],
)
def test_settings_that_mean_nothing_are_refused(values: dict[str, Any], where: str) -> None:
    with pytest.raises(ValidationError, match=where):
        settings(**values)


def test_early_stopping_is_judged_by_samples_that_are_neither_trained_on_nor_certified_on() -> None:
    plain = parts_of(announced(), KINDS, settings())
    assert len(plain.stop) == 0
    parts = parts_of(announced(), KINDS, settings(early_stopping={"share": 0.25}))
    np.testing.assert_array_equal(parts.held_out, split_stream(announced(), KINDS, 100)[1])
    np.testing.assert_array_equal(np.sort([*parts.train, *parts.stop]), plain.train)
    assert [int((KINDS[parts.stop] == label).sum()) for label in range(3)] == [12, 6, 2], (
        "the same share of every class"
    )
    again = parts_of(announced(), KINDS, settings(early_stopping={"share": 0.25}))
    np.testing.assert_array_equal(parts.stop, again.stop)


def test_what_has_no_label_is_a_part_of_its_own() -> None:
    y = np.concatenate([np.full(50, -1), KINDS])
    parts = parts_of(announced(), y, settings(pseudo_labels={}, early_stopping={"share": 0.25}))
    np.testing.assert_array_equal(parts.unlabelled, np.arange(50))
    same = parts_of(announced(), KINDS, settings(early_stopping={"share": 0.25}))
    for part, wanted in ((parts.train, same.train), (parts.stop, same.stop), (parts.held_out, same.held_out)):
        np.testing.assert_array_equal(part - 50, wanted)


def test_a_stream_with_nothing_to_train_on_or_to_judge_by() -> None:
    with pytest.raises(PermanentError, match="nothing to train on"):
        parts_of(announced(0.99), np.zeros(10, np.int64), settings())
    with pytest.raises(PermanentError, match="sets none aside"):
        parts_of(announced(), np.arange(100) % 50, settings(early_stopping={"share": 0.1}))


def test_the_order_hangs_on_seed_and_epoch_alone() -> None:
    rows = np.arange(50)
    first = shuffled(rows, 1, 1)
    np.testing.assert_array_equal(first, shuffled(rows, 1, 1))
    np.testing.assert_array_equal(np.sort(first), rows)
    assert (first != shuffled(rows, 1, 2)).any() and (first != shuffled(rows, 2, 1)).any()


def test_balanced_classes_count_alike() -> None:
    weights = class_weights(settings(class_weights="balanced"), KINDS, 4, None)
    assert weights is not None and weights.dtype == np.float32
    sums = [weights[label] * np.count_nonzero(label == KINDS) for label in range(3)]
    assert sums == pytest.approx([100 / 3] * 3)
    assert weights[3] == 1, "a class that there is no sample of"


def test_weights_by_label() -> None:
    given = settings(class_weights={"dog": 2, "2": 0.5})
    np.testing.assert_array_equal(
        class_weights(given, KINDS, 3, ["cat", "dog", "fox"]), np.array([1, 2, 0.5], np.float32)
    )
    with pytest.raises(PermanentError, match="no label 'dog' among 0, 1, 2"):
        class_weights(given, KINDS, 3, None)
    assert class_weights(settings(), KINDS, 3, None) is None


@pytest.mark.parametrize(("metric", "values"), [("loss", [3, 2, 2, 4, 1]), ("accuracy", [1, 2, 2, 0, 3])])
def test_early_stopping_waits_as_long_as_it_was_told(metric: Any, values: list[float]) -> None:
    for patience, over_after in ((2, 4), (3, None)):
        standing, better = Standing(), []
        for value in values:
            standing.history.append({})
            better.append(standing.judge(EarlyStopping(patience=patience, metric=metric), value))
            if standing.over:
                break
        assert better == [True, True, False, False, True][: over_after or 5]
        assert standing.over == (over_after is not None)
        assert standing.best == (2 if over_after else 5)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path) is None
    state = [np.arange(6, dtype=np.float32).reshape(2, 3), np.int64(7), np.zeros(0, np.uint32)]
    for epoch in (1, 2):
        standing = Standing(steps=3 * epoch, history=[{"final": {"loss": 0.1}}] * epoch, best=1, best_value=0.1)
        checkpoint.save(tmp_path, standing, state, state[:1])
    found = checkpoint.load(tmp_path)
    assert found is not None and found[0] == standing
    assert [np.asarray(value).dtype for value in found[1]] == [np.asarray(value).dtype for value in state]
    for kept, was in zip([*found[1], *found[2]], [*state, state[0]], strict=True):
        np.testing.assert_array_equal(kept, was)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE], "no half of one beside it"


def test_a_checkpoint_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    file = tmp_path / checkpoint.FILE
    checkpoint.save(tmp_path, Standing(), [np.ones(1000)], [])
    whole = file.read_bytes()
    pickled = np.array([{}], dtype=object)
    np.savez(tmp_path / "other.npz", allow_pickle=True, standing=pickled)
    for content in (b"", b"no zip", whole[:2000], (tmp_path / "other.npz").read_bytes()):
        file.write_bytes(content)
        assert checkpoint.load(tmp_path) is None


def test_confusion_counts_each_pair_and_tells_shares_by_class() -> None:
    matrix = confusion(np.array([0, 0, 0, 1, 1, 3]), np.array([0, 0, 1, 1, 0, 1]), 4)
    assert matrix.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    told = summary(matrix)
    assert told["matrix"] == matrix.tolist()
    assert told["precision"] == [pytest.approx(2 / 3, abs=1e-6), pytest.approx(1 / 3, abs=1e-6), None, None]
    assert told["recall"] == [pytest.approx(2 / 3, abs=1e-6), 0.5, None, 0.0]
    assert summary(matrix, MOST_COUNTS // 16)["matrix"] is not None
    many = summary(matrix, MOST_COUNTS // 16 + 1)
    assert many["matrix"] is None and many["recall"] == told["recall"]
