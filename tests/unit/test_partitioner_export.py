"""Segments as TFLite files: they compute what Keras does, in float32, float16 and int8, or are refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sluice.wire.codec import encode_tensor, round_trip
from sluice.wire.errors import PermanentError

pytestmark = pytest.mark.tensorflow

IMAGES = """
x = keras.Input((12, 12, 3), dtype="uint8", name="picture")
h = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(layers.Rescaling(1 / 127.5, offset=-1)(x))
skip = layers.ReLU(6.0)(layers.BatchNormalization(name="stem")(h))
h = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(skip)
h = layers.Conv2D(8, 1)(layers.ReLU(6.0, name="inside")(layers.BatchNormalization()(h)))
h = layers.Add()([skip, h])
first = layers.Dense(4, activation="softmax", name="first")(layers.Flatten()(layers.AveragePooling2D(3)(h)))
h = layers.Dropout(0.5)(layers.Activation("swish")(layers.Conv2D(16, 3)(h)))
h = layers.Dense(12, activation="relu", use_bias=False)(layers.Flatten()(h))
h = layers.Concatenate()([h, layers.Flatten()(skip)])
model = keras.Model(x, [first, layers.Dense(4, name="final")(h)])
"""
SERIES = """
x = keras.Input((4, 5), name="series")
h = layers.Conv1D(8, 3, padding="same", activation="relu")(x)
h = layers.LSTM(6, return_sequences=True, unroll=True)(h)
first = layers.Dense(3, name="first")(layers.GlobalAveragePooling1D()(h))
h = layers.GRU(6, unroll=True)(layers.Bidirectional(layers.LSTM(4, return_sequences=True))(h))
model = keras.Model(x, [first, layers.Dense(3, name="final")(h)])
"""
TWO = """
a, b = keras.Input((8,), name="a"), keras.Input((5,), dtype="int32", name="b")
p = layers.Dense(10, activation="relu")(a)
first = layers.Dense(3, name="first")(p)
q = layers.Dense(6, activation="tanh")(p)
r = layers.Flatten()(layers.Embedding(9, 4)(b))
second = layers.Dense(3, name="second")(layers.Concatenate()([q, r]))
final = layers.Dense(3, name="final")(layers.Concatenate()([layers.Dense(6)(q), r, p]))
model = keras.Model([a, b], [first, second, final])
"""
RESULTS = """
x = keras.Input((8, 8, 1), name="x")
h = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="half")(x)
u = layers.Conv2DTranspose(4, 3, strides=2, padding="same", activation="relu")(h)
mask = layers.Conv2D(1, 1, activation="sigmoid", name="mask")(u)
model = keras.Model(x, {"mask": mask, "where": layers.Dense(2, name="where")(layers.Flatten()(h))})
"""
DENSE = """
x = keras.Input((6,))
model = keras.Model(x, layers.Dense(3, name="answer")(layers.Dense(40, activation="relu")(x)))
"""
MODES = ("float32", "float16", "int8")


@dataclass
class Made:
    """A model, cut and exported, and samples."""

    anatomy: Any
    cut: Any
    full: Any
    samples: dict[str, Any]
    exported: list[Any]

    def outputs(self) -> list[dict[str, Any]]:
        """What each segment makes of the samples."""
        tensors, made = dict(self.samples), []
        for one in self.exported:
            made.append(one.segment.run(tensors))
            tensors |= made[-1]
        return made

    def scaled(self) -> tuple[list[Any], list[list[Any]]]:
        """The segments with scales, and what crosses into each."""
        from partitioner.segments.chain import ranges_of, with_scales
        from partitioner.segments.export import tensor_spec

        ranges = ranges_of([one.segment for one in self.exported], self.samples)
        segments = with_scales([one.spec for one in self.exported], ranges)
        known = {spec.name: spec for one in segments for spec in (*one.inputs, *one.outputs)}
        crossings = [self.cut.inputs, *(piece.crossing for piece in self.cut.pieces[:-1])]
        return segments, [[known.get(one.name, tensor_spec(one)) for one in crossing] for crossing in crossings]


def prepare(source: str, points: tuple[str, ...] = (), n: int = 100) -> Made:
    """The model of `source` cut at its exits and `points`, and random samples of its inputs."""
    import keras

    from partitioner.anatomy.cut import cut, ends_of, logits_model
    from partitioner.anatomy.exits import anatomy
    from partitioner.anatomy.models import from_source
    from partitioner.anatomy.splits import find_split, split_points

    keras.utils.set_random_seed(1)
    found = anatomy(from_source(source))
    every = split_points(found)
    made = cut(found, ends_of(found, range(len(found.exits)), [find_split(every, name) for name in points]))
    random = np.random.default_rng(0)
    samples = {
        one.name: random.normal(size=(n, *one.shape)).astype(np.float32)
        if one.dtype == "float32"
        else random.integers(0, 9 if one.dtype == "int32" else 256, (n, *one.shape)).astype(one.dtype)
        for one in made.inputs
    }
    return Made(found, made, logits_model(made), samples, [])


def exported(source: str, quantize: str, points: tuple[str, ...] = ()) -> Made:
    from partitioner.segments.export import export

    made = prepare(source, points)
    made.exported = export(made.cut, made.full, made.samples, quantize)
    return made


@pytest.fixture(scope="module")
def images() -> Iterator[dict[str, Made]]:
    """The picture model in all modes, with a cut inside of a block: three tensors cross."""
    yield {quantize: exported(IMAGES, quantize, ("inside",)) for quantize in MODES}


@pytest.mark.parametrize("quantize", MODES)
def test_pictures_are_answered_as_by_keras(images: dict[str, Made], quantize: str) -> None:
    """uint8 in, preprocessing baked in, BatchNorm folded, a skip connection over both cuts, Dropout, swish."""
    made = images[quantize]
    pieces = [one.spec for one in made.exported]
    assert [(one.name, one.exit and one.exit.name) for one in pieces] == [
        ("inside", None),
        ("first", "first"),
        ("final", "final"),
    ]
    assert {one.quantize for one in pieces} == {quantize}
    assert pieces[0].inputs[0].dtype == "uint8" and len(pieces[0].outputs) == 2
    assert all(one.reference_us and one.reference_us > 0 for one in pieces)
    wanted = made.full([made.samples["x"]], training=False)
    for k, outputs in enumerate(made.outputs()):
        assert all(array.dtype == np.float32 for array in outputs.values()), "whatever the arithmetic inside"
        if pieces[k].exit:
            allowed = {"float32": 1e-5, "float16": 5e-3, "int8": 0.1}[quantize]
            np.testing.assert_allclose(outputs["logits"], np.asarray(wanted[f"logits{k}"]), atol=allowed)


@pytest.mark.parametrize("quantize", MODES)
def test_a_batch_is_answered_as_each_sample_alone(images: dict[str, Made], quantize: str) -> None:
    """No shape was baked in, nor a scale that depends on the batch."""
    made = images[quantize]
    whole = made.outputs()
    made = Made(made.anatomy, made.cut, made.full, {"x": made.samples["x"][7:8]}, made.exported)
    for one, all_of_them in zip(made.outputs(), whole, strict=True):
        for name, array in one.items():
            np.testing.assert_allclose(array, all_of_them[name][7:8], atol=1e-5)


def test_files_become_smaller() -> None:
    wide = DENSE.replace("(6,)", "(6000,)")
    whole, half, quarter = (len(exported(wide, quantize).exported[0].content) for quantize in MODES)
    assert whole / half == pytest.approx(2, rel=0.02) and whole / quarter == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize("quantize", ("float32", "int8"))
def test_recurrent_layers_convert(quantize: str) -> None:
    """Those that are told to unroll and those that are not."""
    made = exported(SERIES, quantize)
    wanted = np.asarray(made.full([made.samples["x"]], training=False)["logits1"])
    assert np.abs(made.outputs()[1]["logits"] - wanted).max() <= {"float32": 1e-5, "int8": 0.05}[quantize]


@pytest.mark.parametrize("quantize", ("float32", "int8"))
def test_several_inputs_and_several_crossing_tensors(quantize: str) -> None:
    made = exported(TWO, quantize)
    assert [len(one.spec.inputs) for one in made.exported] == [1, 2, 3]
    segments, crossings = made.scaled()
    assert segments[1].passes == ("h0",) and [spec.name for spec in crossings[2]] == ["h1", "h2", "h0"]


@pytest.mark.parametrize("quantize", MODES)
def test_a_model_that_does_not_classify(quantize: str) -> None:
    from partitioner.segments.chain import run_chain

    made = exported(RESULTS, quantize, ("half",))
    assert [one.spec.exit for one in made.exported] == [None, None]
    segments, crossings = made.scaled()
    running = [one.segment for one in made.exported]
    passage = run_chain(running, crossings, made.samples, ("edge", "cloud"), "raw")
    assert passage.logits == () and segments[0].outputs[0].scale is not None
    wanted = made.full([made.samples["x"]], training=False)
    for name, array in passage.results.items():
        allowed = {"float32": 1e-5, "float16": 2e-3, "int8": 0.05}[quantize]
        np.testing.assert_allclose(array, np.asarray(wanted[name]), atol=allowed)
        assert len(np.unique(array)) >= 200, "results are not rounded to 8 bits"


def test_int8_logits_are_finer_than_eight_bits(images: dict[str, Made], monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes the logits stays in float, unless it has very many weights."""
    from partitioner.segments import convert
    from partitioner.segments.tflite import File

    logits = images["int8"].outputs()[2]["logits"]
    assert len(np.unique(logits)) > 300
    assert "FULLY_CONNECTED" in {operation.name for operation in File(images["int8"].exported[2].content).operations}
    monkeypatch.setattr(convert, "LARGE_HEAD", 0)
    assert len(np.unique(exported(IMAGES, "int8").outputs()[1]["logits"])) <= 256


def test_int8_keeps_preprocessing_and_convolutions_of_few_channels_in_float(images: dict[str, Made]) -> None:
    from partitioner.segments.tflite import File

    file = File(images["int8"].exported[0].content)
    kinds = [operation.name for operation in file.operations]
    assert kinds[:4] == ["CAST", "MUL", "ADD", "CONV_2D"]
    assert kinds.index("QUANTIZE") < kinds.index("DEPTHWISE_CONV_2D")


def test_int8_weights_without_a_bias_have_one_scale(images: dict[str, Made]) -> None:
    """With one for each channel tflite-runtime 2.14 dies on ARM."""
    from ai_edge_litert.interpreter import Interpreter

    details = Interpreter(model_content=images["int8"].exported[2].content).get_tensor_details()
    weights = [one for one in details if one["dtype"] == np.int8 and one["shape"].tolist() == [12, 256]]
    assert [len(one["quantization_parameters"]["scales"]) for one in weights] == [1]


def test_codec_int8_loses_nothing_of_what_an_int8_segment_makes() -> None:
    """The scale in the manifest is the file's own, on both sides of the cut and wherever the tensor passes."""
    from partitioner.segments.chain import run_chain

    made = exported(TWO, "int8")
    fixed = {spec.name: spec for one in made.exported for spec in one.spec.outputs}
    for outputs in made.outputs():
        for name, array in outputs.items():
            if name in fixed:
                np.testing.assert_array_equal(round_trip(array, fixed[name], "int8"), array)
    segments, crossings = made.scaled()
    assert all(
        spec.scale and spec == fixed.get(spec.name, spec) for k in (1, 2) for spec in crossings[k] if spec.is_float
    )
    assert crossings[2][-1] == segments[0].outputs[0] == segments[2].inputs[-1], "it passed segment 1"
    running = [one.segment for one in made.exported]
    tiers = ("edge", "fog", "cloud")
    raw, coded = (run_chain(running, crossings, made.samples, tiers, codec) for codec in ("raw", "int8-zstd"))
    for one, other in zip(raw.logits, coded.logits, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_int8_gives_no_scale_gets_one_from_its_range(images: dict[str, Made]) -> None:
    """Here the output of a convolution that stays in float, under float32 every tensor."""
    for made in images.values():
        segments, crossings = made.scaled()
        assert any(spec.scale is None for spec in made.exported[0].spec.outputs)
        assert all(spec.scale for spec in (*segments[0].outputs, *crossings[1], *crossings[2]))
        assert segments[0].inputs[0].scale is None, "integers need none"


def test_int8_takes_its_ranges_from_what_the_converted_segments_before_it_make(monkeypatch: pytest.MonkeyPatch) -> None:
    from partitioner.segments import export as room

    right, seen = room.convert, []

    def watching(*arguments: Any) -> Any:
        seen.append(arguments[3])
        return right(*arguments)

    monkeypatch.setattr(room, "convert", watching)
    made = exported(TWO, "int8")
    order = np.random.default_rng(0).permutation(100)
    first = made.outputs()[0]["h0"]
    np.testing.assert_array_equal(seen[1]["h0"], first[order])
    keras_piece = made.full([made.samples["x0"], made.samples["x1"]], training=False)
    assert np.abs(np.asarray(keras_piece["logits0"]) - made.outputs()[0]["logits"]).max() > 0


def test_bytes_sent_are_those_of_each_message(images: dict[str, Made]) -> None:
    from partitioner.segments.chain import run_chain

    made = images["float32"]
    _, crossings = made.scaled()
    running = [one.segment for one in made.exported]
    few = {"x": made.samples["x"][:5]}
    passage = run_chain(running, crossings, few, ("edge", "fog", "fog"), "int8-zstd")
    tensors = dict(few)
    tensors |= running[0].run(tensors)
    wanted = [sum(len(encode_tensor(tensors[s.name][i], s, "int8-zstd").data) for s in crossings[1]) for i in range(5)]
    assert passage.sent[0].tolist() == wanted and passage.sent[1].tolist() == [0] * 5
    assert passage.results == {} and [logits.shape for logits in passage.logits] == [(5, 4), (5, 4)]


@pytest.mark.parametrize("quantize", ("float32", "int8"))
def test_nothing_is_printed(capfd: pytest.CaptureFixture[str], quantize: str) -> None:
    exported("x = keras.Input((4,))\nmodel = keras.Model(x, layers.Dense(3)(layers.Dense(5)(x)))", quantize)
    assert capfd.readouterr() == ("", "")


def refusal(source: str, quantize: str = "float32") -> str:
    with pytest.raises(PermanentError) as caught:
        exported(source, quantize)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_layer_that_tflite_cannot_express_is_named() -> None:
    said = refusal(
        "x = keras.Input((4,))\nh = layers.Dense(5, name='fine')(x)\nh = keras.ops.erfinv(keras.ops.tanh(h))\n"
        "model = keras.Model(x, layers.Dense(3, name='answer')(h))"
    )
    assert "segment 0 (answer) does not convert to TFLite: it cannot express layer 'erfinv' (Erfinv); use other" in said


@pytest.mark.parametrize(
    ("quantize", "change", "said"),
    [
        ("float32", lambda y: y * 1.01, r"segment 0 \(answer\): 'logits' is off by .* from Keras, 0.0001 is allowed"),
        ("float32", lambda y: y * float("nan"), "is off by inf"),
        ("float16", lambda y: y + 0.5, "is off by .* from Keras, 0.02 is allowed"),
        ("int8", lambda y: y * 1.5, "int8 makes 'logits' wrong by 50%, 30% is allowed: use float16"),
        ("int8", lambda y: y * float("nan"), "int8 makes 'logits' wrong by inf"),
    ],
)
def test_a_segment_that_computes_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, quantize: str, change: Any, said: str
) -> None:
    import keras

    from partitioner.segments import export as room

    right = room.convert

    def wrong(model: Any, *arguments: Any) -> Any:
        made = {name: change(tensor) for name, tensor in model._outputs_struct.items()}
        return right(keras.Model(model.inputs, made), *arguments)

    monkeypatch.setattr(room, "convert", wrong)
    with pytest.raises(PermanentError, match=said):
        exported(DENSE, quantize)


def test_a_batch_that_was_baked_in_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras
    from keras import layers

    from partitioner.segments import export as room

    right = room.convert

    def baked(model: Any, *arguments: Any) -> Any:
        h = keras.ops.reshape(keras.ops.reshape(model.inputs[0], (1, -1))[:, :6], (-1, 6))
        return right(keras.Model(model.inputs, {"logits": layers.Dense(3)(h)}), *arguments)

    monkeypatch.setattr(room, "convert", baked)
    with pytest.raises(PermanentError, match=r"segment 0 \(answer\)"):
        exported(DENSE, "float32")


def test_a_chain_that_is_put_together_wrongly_is_refused() -> None:
    """Each segment may be right and the whole wrong: here the full model is another one."""
    from partitioner.segments.export import export

    for quantize, said in (("float32", "'logits' is off by"), ("int8", "int8 makes 'logits' wrong")):
        made, other = prepare(DENSE), prepare(DENSE)
        for variable in other.full.variables:
            variable.assign(variable + 0.3)
        with pytest.raises(PermanentError, match=f"the chain of segments up to 'answer': {said}"):
            export(made.cut, other.full, made.samples, quantize)


def test_how_int8_is_judged() -> None:
    from partitioner.segments.export import agreement, difference, mean_error

    clear = np.array([[9, 0], [0, 9], [9, 0], [1, 0], [0, 1], [1, 0.0]])
    flipped = clear.copy()
    flipped[3:] = flipped[3:, ::-1]
    assert agreement(flipped, clear) == 1.0, "near ties do not count"
    flipped[0] = flipped[0, ::-1]
    assert agreement(flipped, clear) == pytest.approx(2 / 3)
    assert mean_error(clear * 1.1, clear) == pytest.approx(0.1)
    assert mean_error(clear * np.nan, clear) == mean_error(clear[:2], clear) == difference(clear[:2], clear) == np.inf


def test_operations_that_devices_do_not_have_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from partitioner.segments import convert

    for operation, said in (("FlexErfinv", "no device's runtime has"), ("VAR_HANDLE", "converted without its weights")):
        found = SimpleNamespace(name=operation, custom=operation.startswith("Flex"))
        monkeypatch.setattr(convert, "File", lambda _, found=found: SimpleNamespace(everywhere=[found]))
        assert said in refusal(DENSE)
