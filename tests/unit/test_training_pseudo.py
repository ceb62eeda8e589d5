"""Semi-supervised training: what the model labels itself, whether that helps, and what is kept of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud.training.pseudo import Pseudo, surest
from sluice.streams.samples import NONE
from sluice.wire.state import Announcement
from sluice.wire.training import EarlyStopping, TrainingSettings

KINDS, SIZE, N = 3, 50, 2000
LABELLED = 45
"""Of the first part of the data; the others have no label."""
MODEL = f"""
x = keras.Input(({SIZE},))
a = layers.Dense(32, activation="relu")(x)
b = layers.Dense(32, activation="relu")(a)
early = layers.Dense({KINDS}, activation="softmax", name="early")(a)
model = keras.Model(x, [early, layers.Dense({KINDS}, name="final")(b)])
"""


def test_who_is_sure_enough_and_of_each_class_the_surest() -> None:
    labels = np.array([0, 1, 0, 0, 1, 2, 0])
    confidence = np.array([0.9, 0.99, 0.97, 0.99, 0.98, 0.5, 0.95])
    assert surest(labels, confidence, 0.95).tolist() == [1, 2, 3, 4, 6]
    assert surest(labels, confidence, 0.95, 1).tolist() == [1, 3]
    assert surest(labels, confidence, 0.95, 2).tolist() == [1, 2, 3, 4]
    assert surest(labels, confidence, 0.999).tolist() == []
    assert surest(labels, confidence, 0.999, 3).tolist() == []


def test_what_was_labelled_is_counted_by_class() -> None:
    told = Pseudo(np.array([4, 7, 9]), np.array([2, 0, 2]), 1.5).told(4)
    assert told == {"labelled": 3, "by_class": [1, 0, 2, 0], "temperature": 1.5}
    assert Pseudo().told(100_000) == {"labelled": 0, "by_class": None, "temperature": None}


def test_rounds_are_judged_so_early_stopping_is_there_with_them() -> None:
    assert TrainingSettings.model_validate({"pseudo_labels": {}}).early_stopping == EarlyStopping()
    given = {"pseudo_labels": {}, "early_stopping": {"patience": 2}}
    assert TrainingSettings.model_validate(given).early_stopping == EarlyStopping(patience=2)
    again = TrainingSettings.model_validate(TrainingSettings.model_validate(given).model_dump(mode="json"))
    assert again.early_stopping == EarlyStopping(patience=2)
    assert TrainingSettings.model_validate({}).early_stopping is None


def groups(seed: int = 0, apart: float = 3.5) -> tuple[Any, Any, Any]:
    """x (n, SIZE), what each sample is (n,), and its label (n,), which few have."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(KINDS, SIZE))
    centres *= apart / np.linalg.norm(centres, axis=1, keepdims=True)
    kinds = random.integers(0, KINDS, N)
    x = (centres[kinds] + random.normal(size=(N, SIZE))).astype(np.float32)
    y = np.full(N, NONE)
    y[:LABELLED] = kinds[:LABELLED]
    return x, kinds, y


def trained(
    y: Any, folder: Path | None = None, report: Any = lambda *_: None, seed: int = 0, **values: Any
) -> tuple[Any, Any]:
    """(accuracy of the final exit on what has no label, outcome): trained on those that have one, and maybe on all."""
    import keras

    from cloud.training.fit import fit
    from cloud.training.parts import parts_of
    from partitioner.anatomy.exits import anatomy
    from partitioner.anatomy.models import from_source

    keras.utils.set_random_seed(seed)
    x, kinds, _ = groups(seed)
    stream = Announcement(
        stream_id="s", slices=[f"t:0:0:{N}"], format="raw", config={}, validation_rate=0.2, count=N, deployment=None
    )
    stopping = {"patience": 10, "share": 0.25}
    given = {"epochs": 40, "batch": 128, "learning_rate": 0.01, "early_stopping": stopping, "seed": seed, **values}
    settings = TrainingSettings.model_validate(given)
    model = from_source(MODEL)
    outcome = fit(model, anatomy(model), x, y, parts_of(stream, y, settings), settings, folder=folder, report=report)
    answers = np.asarray(model(x[y == NONE])[1]).argmax(axis=1)
    return float((answers == kinds[y == NONE]).mean()), outcome


@pytest.mark.tensorflow
def test_what_has_no_label_is_learnt_from() -> None:
    """In each of two drawings, and clearly in their mean: few labels alone do not tell the groups apart so well."""
    pairs = []
    for seed in range(2):
        y = groups(seed)[2]
        alone, _ = trained(y, seed=seed)
        both, outcome = trained(y, seed=seed, pseudo_labels={"confidence": 0.9, "weight": 1, "rounds": 3})
        assert outcome.rounds[0]["labelled"] == 0 and outcome.rounds[0]["gain"] == 0
        assert all(one["labelled"] > 500 for one in outcome.rounds[1:])
        pairs.append((alone, both))
    assert all(both > alone for alone, both in pairs), pairs
    assert np.mean([both - alone for alone, both in pairs]) > 0.015, pairs


@pytest.mark.tensorflow
def test_the_best_round_by_what_was_set_aside_is_kept() -> None:
    y = groups()[2]
    told: list[Any] = []
    wanted = {"confidence": 0.8, "rounds": 3, "most_per_class": 100}
    _, outcome = trained(y, report=lambda *one: told.append(one), pseudo_labels=wanted)
    assert [one["round"] for one in outcome.rounds] == [0, 1, 2, 3]
    values = [one["value"] for one in outcome.rounds]
    (kept,) = [one for one in outcome.rounds if one["kept"]]
    assert kept["round"] == int(np.argmin(values))
    assert outcome.epoch == kept["epoch"] and outcome.metrics == kept["metrics"] == told[kept["epoch"] - 1][2]
    assert kept["metrics"]["final"]["stop_loss"] == kept["value"]
    for one in outcome.rounds[1:]:
        assert one["labelled"] == sum(one["by_class"]) and max(one["by_class"]) <= 100
    rounds = [in_round["round"] for *_, in_round in told]
    assert rounds == sorted(rounds) and set(rounds) == {0, 1, 2, 3}
    assert {in_round["labelled"] for *_, in_round in told if in_round["round"] == 2} == {outcome.rounds[2]["labelled"]}
    matrix = np.array(outcome.confusion["final"]["matrix"])
    assert matrix.sum() == round(LABELLED * 0.2), "of true labels only"
    right = np.diagonal(matrix).sum() / matrix.sum()
    assert right == pytest.approx(outcome.metrics["final"]["val_accuracy"], abs=1e-6), "the model is that of the round"


@pytest.mark.tensorflow
def test_another_exit_labels_and_a_round_that_labels_nothing_is_the_last() -> None:
    y = groups()[2]
    _, outcome = trained(y, epochs=5, pseudo_labels={"exit": "early", "confidence": 0.6, "rounds": 1})
    assert outcome.rounds[1]["labelled"] > 0
    _, outcome = trained(y, epochs=5, pseudo_labels={"confidence": 1 - 1e-12})
    assert [one["round"] for one in outcome.rounds] == [0]


class Killed(BaseException):
    """What ends a run in the middle."""


@pytest.mark.tensorflow
@pytest.mark.parametrize("at", [3, 6, 8])
def test_rounds_go_on_after_a_kill_as_if_nothing_had_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Killed in the first round, at the end of one, and in the middle of one: the same labels are given again."""
    from cloud.training import fit

    monkeypatch.setattr(fit, "CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(fit, "CHECKPOINT_REST", 0)
    y = groups()[2]
    values: dict[str, Any] = {"epochs": 3, "pseudo_labels": {"confidence": 0.5, "rounds": 3}}
    whole: list[Any] = []
    right, outcome = trained(y, report=lambda *one: whole.append(one), **values)
    assert len(whole) == 12

    def killed(epoch: int, *_: Any) -> None:
        if epoch == at:
            raise Killed

    with pytest.raises(Killed):
        trained(y, tmp_path, killed, **values)
    again: list[Any] = []
    same, other = trained(y, tmp_path, lambda *one: again.append(one), **values)
    assert again == whole
    assert (same, other) == (right, outcome)
