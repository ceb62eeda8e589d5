"""Early exits attached to a model: they learn, the model stays as it was, and they cost little."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sluice.wire.errors import PermanentError

pytestmark = pytest.mark.tensorflow

CLASSES = 4


def blobs(n: int, seed: int) -> tuple[Any, Any]:
    """Images (n, 12, 12, 1) uint8 whose bright quarter is their label."""
    random = np.random.default_rng(seed)
    y = random.integers(0, CLASSES, n)
    x = random.normal(90, 30, (n, 12, 12, 1))
    for label in range(CLASSES):
        down, right = 6 * (label // 2), 6 * (label % 2)
        x[y == label, down : down + 6, right : right + 6] += 45
    return np.clip(x, 0, 255).astype(np.uint8), y


X, Y = blobs(400, 0)
X_TEST, Y_TEST = blobs(300, 1)

IMAGES = """
x = keras.Input((12, 12, 1), dtype="uint8", name="image")
h = layers.Normalization(mean=100.0, variance=1e4, name="scale")(x)
h = layers.Rescaling(1.1, name="again")(h)
h = layers.Conv2D(8, 3, activation="relu", padding="same", name="block1")(h)
h = layers.Conv2D(16, 3, strides=2, activation="relu", name="block2")(h)
h = layers.Conv2D(64, 3, activation="relu", padding="same", name="block3")(h)
h = layers.Conv2D(64, 3, activation="relu", name="block4")(h)
model = keras.Model(x, layers.Dense(4, activation="softmax", name="final")(layers.Flatten()(h)))
"""


def model_of(source: str) -> Any:
    import keras

    from partitioner.anatomy.models import from_source

    keras.utils.set_random_seed(0)
    return from_source(source)


def says(model: Any, *inputs: Any) -> dict[str, Any]:
    return {name: np.asarray(value) for name, value in model(list(inputs) if len(inputs) > 1 else inputs[0]).items()}


def accuracy(answers: Any) -> float:
    return float((answers.argmax(axis=1) == Y_TEST).mean())


@pytest.fixture(scope="module")
def full() -> Any:
    model = model_of(IMAGES)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(X, Y, epochs=3, batch_size=32, verbose=0)
    return model


@pytest.fixture(scope="module")
def frozen(full: Any) -> Any:
    from partitioner.early.attach import attach

    told: list[tuple[str, int, int]] = []
    made = attach(
        full, ["input", "input:mlp", "block2"], {"image": X}, Y, progress=lambda *step: told.append(step), seed=3
    )
    assert {what for what, _, _ in told} == {f"training exit-{name}" for name in ("input", "input-mlp", "block2")}
    assert all(1 <= done <= total for _, done, total in told)
    return made


def test_frozen_exits_learn_and_the_model_stays_as_it_was(full: Any, frozen: Any) -> None:
    before = np.asarray(full(X_TEST))
    assert accuracy(before) > 0.95
    made = says(frozen, X_TEST)
    np.testing.assert_allclose(made.pop("final"), before, atol=1e-6)
    for name, logits in made.items():
        assert accuracy(logits) > 0.9, name
        assert np.abs(logits.sum(axis=1) - 1).max() > 0.1, "logits, not probabilities"
    assert {id(weight) for weight in full.weights} <= {id(weight) for weight in frozen.weights}


def test_exits_come_where_they_were_asked_for_and_the_raw_input_crosses(frozen: Any) -> None:
    from partitioner.anatomy.cut import cut_at_exits
    from partitioner.anatomy.exits import anatomy

    found = anatomy(frozen)
    at = {one.name: found.position(k) for k, one in enumerate(found.exits)}
    assert at.pop("final") == len(found.trunk)
    assert at == {"exit-input": 0, "exit-input-mlp": 0, "exit-block2": 4}
    cut = cut_at_exits(found)
    crossing = {piece.name: [(t.dtype, t.shape) for t in piece.crossing] for piece in cut.pieces}
    assert crossing["exit-input"] == crossing["exit-input-mlp"] == [("uint8", (12, 12, 1))]
    assert crossing["exit-block2"] == [("float32", (5, 5, 16))]


def test_a_model_with_exits_can_be_saved(frozen: Any, tmp_path: Path) -> None:
    from partitioner.anatomy.models import from_file

    frozen.save(tmp_path / "exits.keras")
    loaded = says(from_file(tmp_path / "exits.keras"), X_TEST)
    for name, value in says(frozen, X_TEST).items():
        np.testing.assert_allclose(loaded[name], value, atol=1e-6)


def test_attached_exits_survive_cut_and_conversion(frozen: Any) -> None:
    from partitioner.anatomy.cut import cut_at_exits, logits_model
    from partitioner.anatomy.exits import anatomy
    from partitioner.segments.export import export

    cut = cut_at_exits(anatomy(frozen))
    for quantize in ("float32", "int8"):
        assert len(export(cut, logits_model(cut), {"x": X[:64]}, quantize)) == 4


def test_joint_training_improves_all_exits_together_and_copies_the_model(full: Any) -> None:
    import keras

    from partitioner.early.attach import attach

    before = full.get_weights()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    x, y = X[:200], Y[:200]
    alone = says(attach(full, ["block1:linear"], {"image": x}, y), X_TEST)
    joint = says(attach(full, ["block1:linear"], {"image": x}, y, train="joint"), X_TEST)
    assert float(loss(Y_TEST, joint["exit-block1-linear"])) < float(loss(Y_TEST, alone["exit-block1-linear"]))
    assert accuracy(joint["final"]) >= accuracy(alone["final"]) - 0.02
    for old, new in zip(before, full.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_without_labels_the_full_models_answers_are_learnt(full: Any) -> None:
    from partitioner.early.attach import attach

    made = says(attach(full, ["block2:linear"], {"image": X}), X_TEST)
    agree = made["exit-block2-linear"].argmax(axis=1) == made["final"].argmax(axis=1)
    assert agree.mean() > 0.9


def test_the_same_seed_gives_the_same_exit(full: Any) -> None:
    from partitioner.early.attach import attach

    once, again, other = (
        says(attach(full, ["input:linear"], {"image": X[:100]}, Y[:100], seed=seed), X_TEST)["exit-input-linear"]
        for seed in (7, 7, 8)
    )
    np.testing.assert_allclose(once, again, atol=1e-5)
    assert np.abs(once - other).max() > 1e-3


def test_nested_models_several_inputs_and_wild_scales() -> None:
    from partitioner.anatomy.exits import anatomy
    from partitioner.early.attach import attach

    model = model_of(
        "inner = keras.Sequential([keras.Input((6,)), layers.Dense(8, 'relu', name='dense')], name='inner')\n"
        "a = keras.Input((6,), name='a')\nb = keras.Input((3,), name='b')\n"
        "h = layers.Concatenate(name='both')([inner(a), b])\nh = layers.Dense(64, activation='relu', name='dense')(h)\n"
        "h = layers.Dense(64, activation='relu', name='last')(h)\nmodel = keras.Model([a, b], layers.Dense(3)(h))"
    )
    random = np.random.default_rng(0)
    x = {"b": random.normal(0, 1e4, (120, 3)), "a": random.normal(size=(120, 6))}
    made = attach(model, ["both:mlp"], x)
    early, final = says(made, x["a"], x["b"]).values()
    assert (early.argmax(axis=1) == final.argmax(axis=1)).mean() > 0.9
    assert anatomy(made).exits[0].name == "exit-both-mlp"
    with pytest.raises(PermanentError, match="'input': several inputs cross there; choose a later place"):
        attach(model, ["input"], x)


@pytest.mark.parametrize(
    ("places", "change", "reason"),
    [
        (["blok2"], {}, "no split point 'blok2'; the nearest name is 'block2'"),
        (["input:large"], {}, "head 'large' is unknown; known: auto, linear"),
        (["block2", "block2"], {}, "two exits called 'exit-block2'"),
        ([], {}, "no place"),
        (["input"], {"y": np.zeros(400, np.int64)}, "y says 0 for all samples"),
        (["input"], {"y": np.full(400, 4)}, "400 labels from 0 to 3 are needed"),
        (["input"], {"x": X[:3], "y": Y[:3]}, "3 samples cannot train an exit of 4 classes"),
        (["input"], {"x": X[:, :6]}, r"image: samples have shape \[6, 12, 1\], the model takes \[12, 12, 1\]"),
        (["block4:deep"], {}, "exit-block4-deep: its head takes more than what is left"),
    ],
)
def test_what_cannot_be_attached_is_refused_in_one_line(
    full: Any, places: list[str], change: dict[str, Any], reason: str
) -> None:
    from partitioner.early.attach import attach

    with pytest.raises(PermanentError, match=reason) as caught:
        attach(full, places, {"image": change.get("x", X)}, change.get("y", Y))
    assert "\n" not in str(caught.value)


def test_data_that_are_no_numbers_are_refused() -> None:
    from partitioner.early.attach import attach

    model = model_of(
        "x = keras.Input((5,), name='v')\nmodel = keras.Model(x, layers.Dense(3)(layers.Dense(99, name='h')(x)))"
    )
    x = np.ones((50, 5), np.float32)
    x[7, 2] = np.nan
    with pytest.raises(PermanentError, match="v: there are NaN or infinite values"):
        attach(model, ["h"], {"v": x})
    with pytest.raises(PermanentError, match="no array 'v'"):
        attach(model, ["h"], {"w": x})
    with pytest.raises(PermanentError, match=r"the model answers \d for all samples"):
        attach(model, ["h"], {"v": np.ones((50, 5), np.float32)})


def test_places_are_chosen_where_a_head_pays() -> None:
    from partitioner.anatomy.exits import anatomy
    from partitioner.early.places import choose_places

    blocks = "\n".join(
        f"h = layers.Conv2D({width}, 3, strides={stride}, padding='same', activation='relu', name='block{i}')(h)"
        for i, (width, stride) in enumerate([(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (64, 1)])
    )
    source = "x = keras.Input((32, 32, 3), name='x')\nh = x\n{}\n{}model = keras.Model(x, {})"
    wide = source.format(blocks, "h = layers.Dense(10, name='end')(layers.GlobalAveragePooling2D()(h))\n", "h")
    found = anatomy(model_of(wide))
    assert choose_places(found) == ["input", "block1", "block3"]
    regression = source.format(blocks, "h = layers.Dense(1)(layers.Flatten()(h))\n", "h")
    assert choose_places(anatomy(model_of(regression))) == []
    nothing = model_of("model = keras.Sequential([keras.Input((4,)), layers.Activation('softmax')])")
    assert choose_places(anatomy(nothing)) == []
    small = model_of("model = keras.Sequential([keras.Input((4,)), layers.Dense(5, 'relu'), layers.Dense(3)])")
    assert choose_places(anatomy(small)) == []


@pytest.mark.parametrize("shape", [(28, 28, 1), (96, 80, 3), (3, 5, 2), (128, 9), (5, 3), (20,), (2, 3, 4, 5)])
def test_every_head_takes_every_shape(shape: tuple[int, ...]) -> None:
    import keras

    from partitioner.early import heads

    for name, head in heads.HEADS.items():
        given = keras.Input(shape)
        assert head(given, 7, 0).shape == (None, 7), name
        assert heads.macs(name, shape, 7) > 0
