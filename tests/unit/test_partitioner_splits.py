"""Wherever a model is cut, the segments together compute what the model computes; and where it can be cut is told."""

import time
from typing import Any

import numpy as np
import pytest

from sluice.wire.errors import PermanentError
from tests.unit.partitioner_zoo import ZOO, build, flow, model_outputs, samples, softmax

pytestmark = pytest.mark.tensorflow


@pytest.mark.filterwarnings("ignore:.*does not support masking")
@pytest.mark.parametrize("name", ZOO)
def test_the_segments_compute_what_the_model_computes_wherever_it_is_cut(name: str) -> None:
    from partitioner.anatomy.cut import cut, ends_of
    from partitioner.anatomy.exits import anatomy, gives_logits
    from partitioner.anatomy.splits import split_points

    model = build(ZOO[name])
    inputs = samples(model)
    found = anatomy(model)
    outputs = [np.asarray(value) for value in model_outputs(model, inputs)]
    wanted = dict(zip(found.results, outputs, strict=True))
    points = split_points(found)
    early = range(len(found.exits) - 1)
    rng = np.random.default_rng(2)
    some = [[point for point in points if rng.random() < 0.4] for _ in range(2)]
    for exits, chosen in [(early, points), (early, []), ([], points), *(([*early][:1], part) for part in some)]:
        made = cut(found, ends_of(found, exits, chosen))
        every, logits = flow(made, inputs)
        names = [piece.exit for piece in made.pieces if piece.exit]
        for one, values in zip(names, logits, strict=True):
            own = next(e for e in found.exits if e.name == one)
            given = values if gives_logits(found.graph, own.output) else softmax(values)
            np.testing.assert_allclose(given, wanted[one], atol=1e-5)
        if found.task == "tensors":
            assert names == []
            for tensor, value in zip(made.pieces[-1].outputs, wanted.values(), strict=True):
                np.testing.assert_allclose(every[tensor.name], value, atol=1e-5)
        else:
            assert names == [found.exits[k].name for k in exits] + [found.exits[-1].name]


def found_of(source: str, **settings: Any) -> tuple[Any, list[Any]]:
    from partitioner.anatomy.exits import anatomy
    from partitioner.anatomy.splits import split_points

    found = anatomy(build(source), **settings)
    return found, split_points(found)


BLOCKS = """
x = keras.Input((8, 8, 3), dtype="uint8")
h = layers.Rescaling(1 / 255, name="scale")(x)
h = layers.Conv2D(4, 3, padding="same", use_bias=False, name="conv1")(h)
h = layers.BatchNormalization(name="bn1")(h)
h = layers.ReLU(name="relu1")(h)
a = layers.Conv2D(4, 3, padding="same", name="conv2")(h)
h = layers.Add(name="add")([a, h])
h = layers.ReLU(name="relu2")(h)
h = layers.MaxPooling2D(name="pool")(h)
h = layers.Dropout(0.5, name="drop")(h)
h = layers.ZeroPadding2D(name="pad")(h)
h = layers.Conv2D(2, 3, strides=2, activation="relu", name="conv3")(h)
h = layers.Flatten(name="flat")(h)
model = keras.Model(x, layers.Softmax()(layers.Dense(3, name="last")(h)))
"""


def test_split_points_say_what_crosses_and_what_is_left_to_do() -> None:
    found, points = found_of(BLOCKS)
    by_name = {point.name: point for point in points}
    assert " ".join(by_name) == "input scale conv1 bn1 relu1 conv2 add relu2 pool drop pad conv3 flat"
    assert [point.position for point in points] == list(range(13))
    macs = [64 * 4 * 27, 64 * 4 * 36, 4 * 2 * 36, 8 * 3]
    assert {point.macs_before + point.macs_after for point in points} == {sum(macs)}
    assert [by_name[name].macs_before for name in ("input", "conv1", "relu2", "flat")] == [
        0,
        macs[0],
        sum(macs[:2]),
        sum(macs[:3]),
    ]
    raw, inside = by_name["input"], by_name["conv2"]
    assert [(t.name, t.dtype, t.shape) for t in raw.tensors] == [("x", "uint8", (8, 8, 3))]
    assert [t.shape for t in inside.tensors] == [(8, 8, 4), (8, 8, 4)], "the skip connection crosses as well"
    sizes = {codec: inside.nbytes(codec) for codec in ("raw", "zstd", "float16", "int8", "int8-zstd", "coarse")}
    assert sizes == {"raw": 2048, "zstd": 2048, "float16": 1024, "int8": 512, "int8-zstd": 512, "coarse": 256}
    assert raw.nbytes("int8") == raw.nbytes("raw") == raw.nbytes("coarse") == 192
    assert found.position(0) == len(found.trunk) == 13


def test_block_ends_are_not_inside_of_what_a_runtime_does_in_one_step() -> None:
    _, points = found_of(BLOCKS)
    assert [point.name for point in points if point.block_end] == ["input", "relu1", "relu2", "pool", "conv3"]


def test_block_ends_of_a_model_whose_skip_connections_lie_across() -> None:
    _, points = found_of(
        """
x = keras.Input((16, 16, 1))
h, skips = x, []
for n in (4, 8):
    h = layers.Conv2D(n, 3, padding="same", activation="relu", name=f"down{n}")(h)
    skips.append(h)
    h = layers.MaxPooling2D(name=f"pool{n}")(h)
h = layers.Conv2D(8, 3, padding="same", activation="relu", name="bottom")(h)
for n in (8, 4):
    h = layers.Concatenate(name=f"join{n}")([layers.UpSampling2D()(h), skips.pop()])
    h = layers.Conv2D(n, 3, padding="same", activation="relu", name=f"up{n}")(h)
model = keras.Model(x, layers.Conv2D(1, 1, activation="sigmoid")(h))
"""
    )
    ends = {point.name: len(point.keys) for point in points if point.block_end}
    assert ends["down4"] == ends["join4"] == 1
    assert ends["pool4"] == ends["up8"] == 2, "too few have one tensor only"
    assert "bottom" not in ends or ends["bottom"] == 3


def test_names_tell_calls_of_one_name_apart_and_the_nearest_one_is_suggested() -> None:
    from partitioner.anatomy.splits import find_split

    _, points = found_of(ZOO["nested, twice and in one another"])
    names = [point.name for point in points]
    assert names[:3] == ["input", "d", "d@2"] and len(set(names)) == len(names)
    assert find_split(points, "d@3").name == "d@3"
    _, points = found_of(BLOCKS)
    with pytest.raises(PermanentError, match="no split point 'conf1'; the nearest name is 'conv1'"):
        find_split(points, "conf1")


def test_an_exit_at_the_input_does_the_preprocessing_itself() -> None:
    from partitioner.anatomy.cut import cut, ends_of

    found, points = found_of(ZOO["exit at the input"])
    assert found.position(0) == 0
    made = cut(found, ends_of(found, [0], [points[0]]))
    assert [(t.name, t.dtype) for t in made.pieces[0].crossing] == [("x", "uint8")], "not what it was scaled to"
    assert made.pieces[0].macs == 9 * 3


def test_an_exit_that_shares_more_than_preprocessing_does_not_sit_at_the_input() -> None:
    source = ZOO["exit at the input"].replace("f = layers.Rescaling(1 / 255)(x)", "f = layers.MaxPooling2D(2)(x)")
    found, _ = found_of(source.replace("uint8", "float32").replace("AveragePooling2D(2)", "AveragePooling2D(1)"))
    assert found.position(0) == 1, "pooled is less than raw"


def test_ends_come_in_order_and_one_place_is_one_end() -> None:
    from partitioner.anatomy.cut import End, cut, ends_of
    from partitioner.anatomy.splits import find_split

    found, points = found_of(ZOO["a layer called three times"])
    first = next(point for point in points if point.position == found.position(0))
    later = points[-1]
    one, two = found.exits[0].name, found.exits[1].name
    assert ends_of(found, [0, 1], [later, first, points[0]]) == [
        End(first.position, 0, one),
        End(later.position, None, later.name),
        End(len(found.trunk), 1, two),
    ]
    assert [piece.name for piece in cut(found, ends_of(found, [], [later])).pieces] == [later.name, two]
    with pytest.raises(PermanentError, match="'twice' has nothing to do"):
        cut(found, [End(1, None, "once"), End(1, None, "twice"), End(len(found.trunk), 1, two)])
    assert find_split(points, first.name) is first


def test_an_exit_that_is_left_out_leaves_nothing_behind() -> None:
    from partitioner.anatomy.cut import cut, ends_of, logits_model, piece_model

    found, points = found_of(ZOO["skip"])
    with_it, without = (cut(found, ends_of(found, exits, points[2:3])) for exits in ([0], []))
    assert sum(p.macs for p in with_it.pieces) - sum(p.macs for p in without.pieces) == 8 * 3
    layers_left = {layer.name for piece in without.pieces for layer in piece_model(without, piece).layers}
    assert found.graph.maker(found.exits[0].output).name not in layers_left
    assert set(logits_model(without).output) == {"logits1"}
    only, _ = found_of(ZOO["skip"], keep=[])
    assert [one.name for one in only.exits] == ["last"]


def test_an_exit_whose_logits_the_trunk_uses() -> None:
    from partitioner.anatomy.cut import End, cut
    from partitioner.anatomy.exits import anatomy

    model = build(
        "x = keras.Input((4,))\na = layers.Dense(3)(x)\nb = layers.Dense(3)(layers.Dense(5, 'relu')(x))\n"
        "model = keras.Model(x, {'a': layers.Softmax()(a), 'mean': layers.Softmax()(layers.Average()([a, b]))})"
    )
    found = anatomy(model)
    at = found.position(0)
    made = cut(found, [End(at, None, "trunk"), End(at, 0, "a"), End(len(found.trunk), 1, "mean")])
    inputs = samples(model)
    _, logits = flow(made, inputs)
    for one, wanted in zip(logits, model_outputs(model, inputs), strict=True):
        np.testing.assert_allclose(softmax(one), wanted, atol=1e-5)


def converted_against_keras(model: Any, given: dict[str, Any]) -> None:
    from ai_edge_litert.interpreter import Interpreter

    from partitioner.segments.convert import convert

    runner = Interpreter(model_content=convert(model, "the segment")).get_signature_runner()
    wanted = model(list(given.values()), training=False)
    np.testing.assert_allclose(runner(**given)["logits"], wanted["logits"], atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*does not support masking")
@pytest.mark.parametrize("name", ["masks", "masks into a nested model"])
def test_masks_cross_and_recurrent_segments_convert(name: str) -> None:
    from partitioner.anatomy.cut import cut, ends_of, piece_model

    found, points = found_of(ZOO[name])
    half = next(point for point in points if "bool" in {tensor.dtype for tensor in point.tensors})
    made = cut(found, ends_of(found, [], [half]))
    rng = np.random.default_rng(0)
    given = {t.name: (rng.normal(size=(3, *t.shape)) > 0).astype(t.dtype) for t in made.pieces[1].inputs}
    converted_against_keras(piece_model(made, made.pieces[1]), given)


def test_pixels_are_resized_without_rounding() -> None:
    from partitioner.anatomy.cut import cut, ends_of, piece_model
    from partitioner.anatomy.exits import anatomy

    model = build("""
x = keras.Input((8, 8, 3), dtype="uint8")
h = layers.Normalization(mean=[1.0, 2.0, 3.0], variance=[1.0, 2.0, 3.0])(layers.Resizing(6, 6)(x))
model = keras.Model(x, layers.Dense(3)(layers.Flatten()(h)))
""")
    found = anatomy(model)
    made = cut(found, ends_of(found, ()))
    (inputs,) = samples(model)
    whole = piece_model(made, made.pieces[0])
    np.testing.assert_allclose(whole([inputs])["logits"], model.predict_on_batch(inputs), atol=1e-5)
    converted_against_keras(whole, {"x": inputs})


def test_a_position_where_rows_are_no_samples_is_no_split_point() -> None:
    found, points = found_of(ZOO["windows as rows"])
    left_out = set(range(len(found.trunk))) - {point.position for point in points}
    assert left_out == {2, 3}, "after the reshape into windows, and the dense layer on them"


def test_what_crosses_has_to_fit_into_a_message() -> None:
    from partitioner.anatomy.cut import check_size, cut, ends_of

    found, points = found_of("""
x = keras.Input((1000, 1000, 1), dtype="uint8")
h = layers.ZeroPadding2D(10, name="large")(layers.Rescaling(1.0)(x))
model = keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling2D()(h)))
""")
    (large,) = [point for point in points if point.name == "large"]
    first, _ = cut(found, ends_of(found, [], [large])).pieces
    check_size(first, "coarse")
    with pytest.raises(PermanentError, match="1040400 bytes would cross after 'large', a message holds"):
        check_size(first, "int8")


def test_it_is_quick() -> None:
    from partitioner.anatomy.splits import split_points

    layers = (
        "h = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 1)(layers.Add()([h, layers.ReLU()(h)]))))\n"
    )
    source = f"x = keras.Input((2, 2, 4))\nh = x\n{layers * 31}model = keras.Model(x, layers.Flatten()(h))"
    found, points = found_of(source)
    assert len(points) > 150
    taken = []
    for _ in range(5):
        begun = time.perf_counter()
        split_points(found)
        taken.append(time.perf_counter() - begun)
    assert sorted(taken)[2] < 0.05
