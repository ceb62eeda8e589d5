"""The graph of a model, its exits in order, and where it is cut. Leans on Keras' private attributes, on purpose."""

from typing import Any

import numpy as np
import pytest

from sluice.wire.errors import PermanentError

pytestmark = pytest.mark.tensorflow

SKIP = """
x = keras.Input((6,), name="reading")
a = layers.Dense(8, activation="relu", name="a")(x)
first = layers.Dense(3, name="first")(a)
b = layers.Dense(5, activation="relu", name="b")(a)
second = layers.Dense(3, name="second")(b)
c = layers.Dense(7, name="c")(layers.Concatenate()([a, b]))
final = layers.Dense(3, name="final")(c)
model = keras.Model(x, {"z1": first, "a3": final, "m2": second})
"""


def anatomy_of(source: str) -> Any:
    from partitioner.anatomy.exits import anatomy
    from partitioner.anatomy.models import from_source

    return anatomy(from_source(source))


def cut_of(source: str) -> Any:
    from partitioner.anatomy.cut import cut_at_exits

    return cut_at_exits(anatomy_of(source))


def run(model: Any, *inputs: Any) -> dict[str, Any]:
    return {name: np.asarray(value) for name, value in model(list(inputs)).items()}


def refusal(source: str) -> str:
    with pytest.raises(PermanentError) as caught:
        cut_of(source)
    return str(caught.value)


def test_exits_come_in_the_order_of_the_trunk_not_of_their_names() -> None:
    assert [one.name for one in anatomy_of(SKIP).exits] == ["z1", "m2", "a3"]
    listed = SKIP.replace('{"z1": first, "a3": final, "m2": second}', "[final, second, first]")
    assert [one.name for one in anatomy_of(listed).exits] == ["first", "second", "final"]


def test_a_large_early_classifier_does_not_move_its_exit() -> None:
    large = SKIP.replace(
        'first = layers.Dense(3, name="first")(a)',
        "h = layers.Dense(500)(layers.Dense(500)(layers.Dense(500)(a)))\nfirst = layers.Dense(3, name='first')(h)",
    )
    assert [one.name for one in anatomy_of(large).exits] == ["z1", "m2", "a3"]


def test_a_skip_connection_crosses_as_a_tensor_of_its_own() -> None:
    from partitioner.anatomy.cut import logits_model, piece_model

    cut = cut_of(SKIP)
    one, two, three = cut.pieces
    assert [[t.name for t in piece.inputs] for piece in cut.pieces] == [["x"], ["h0"], ["h1", "h0"]]
    assert [t.shape for t in one.crossing] == [(8,)]
    assert ([t.name for t in two.outputs], two.passes) == (["h1"], ("h0",))
    assert [t.name for t in two.crossing] == ["h1", "h0"]
    assert three.crossing == ()
    assert [piece.macs for piece in cut.pieces] == [6 * 8 + 8 * 3, 8 * 5 + 5 * 3, 13 * 7 + 7 * 3]

    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    whole = run(logits_model(cut), x)
    tensors: dict[str, Any] = {"x": x}
    for k, piece in enumerate(cut.pieces):
        made = run(piece_model(cut, piece), *[tensors[t.name] for t in piece.inputs])
        np.testing.assert_allclose(made["logits"], whole[f"logits{k}"], atol=1e-6)
        tensors |= made


def test_a_cut_that_misses_the_skip_connection_names_the_operation() -> None:
    from partitioner.anatomy.graph import rebuild

    cut = cut_of(SKIP)
    final = cut.pieces[2]
    with pytest.raises(PermanentError, match="misses a connection: 'a' still reads input 'reading'"):
        rebuild(cut.graph, {"h1": final.inputs[0].key}, {"logits": final.logits})


@pytest.mark.parametrize(
    "ending",
    [
        'layers.Dense(3, activation="softmax")(h)',
        "layers.Softmax()(layers.Dense(3)(h))",
        'layers.Activation("softmax")(layers.Dense(3)(h))',
        "keras.ops.softmax(layers.Dense(3)(h))",
    ],
)
def test_a_final_softmax_is_taken_off(ending: str) -> None:
    from partitioner.anatomy.cut import cut_at_exits, logits_model
    from partitioner.anatomy.exits import anatomy
    from partitioner.anatomy.models import from_source

    model = from_source(f"x = keras.Input((6,))\nh = layers.Dense(8)(x)\nmodel = keras.Model(x, {ending})")
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    logits = run(logits_model(cut_at_exits(anatomy(model))), x)["logits0"]
    assert (logits < 0).any()
    powers = np.exp(logits)
    np.testing.assert_allclose(powers / powers.sum(axis=1, keepdims=True), np.asarray(model(x)), atol=1e-6)


def test_a_layer_used_on_both_sides_of_a_cut() -> None:
    from partitioner.anatomy.cut import logits_model, piece_model

    cut = cut_of(
        "shared = layers.Dense(6, activation='tanh')\nx = keras.Input((6,))\na = shared(x)\n"
        "first = layers.Dense(3)(a)\nmodel = keras.Model(x, [first, layers.Dense(3)(shared(a))])"
    )
    x = np.ones((2, 6), np.float32)
    first = run(piece_model(cut, cut.pieces[0]), x)
    second = run(piece_model(cut, cut.pieces[1]), first["h0"])
    np.testing.assert_allclose(second["logits"], run(logits_model(cut), x)["logits1"], atol=1e-6)


def test_an_exit_at_the_input_lets_the_input_pass() -> None:
    cut = cut_of(
        "x = keras.Input((4, 4, 1), dtype='uint8')\nf = layers.Rescaling(1 / 16)(x)\n"
        "first = layers.Dense(3)(layers.Flatten()(layers.Rescaling(1 / 8)(x)))\n"
        "h = layers.Conv2D(8, 3)(f)\nmodel = keras.Model(x, [layers.Dense(3)(layers.Flatten()(h)), first])"
    )
    assert (cut.pieces[0].outputs, cut.pieces[0].passes) == ((), ("x",))
    assert [(t.name, t.dtype, t.nbytes("int8")) for t in cut.pieces[0].crossing] == [("x", "uint8", 16)]


def test_models_without_early_exits() -> None:
    sequential = cut_of("model = keras.Sequential([keras.Input((4,)), layers.Dense(5), layers.Dense(3)])")
    assert len(sequential.pieces) == 1 and sequential.pieces[0].macs == 20 + 15
    nested = cut_of(
        "inner = keras.Sequential([keras.Input((4,)), layers.Dense(5), layers.Dense(6)])\n"
        "x = keras.Input((4,))\nmodel = keras.Model(x, layers.Dense(3)(inner(x)))"
    )
    assert nested.pieces[0].macs == 20 + 30 + 18


def test_macs_of_convolutions() -> None:
    cut = cut_of(
        "x = keras.Input((8, 8, 4))\nh = layers.Conv2D(6, 3, padding='same')(x)\n"
        "h = layers.DepthwiseConv2D(3, padding='same')(h)\nh = layers.SeparableConv2D(5, 3, padding='same')(h)\n"
        "h = layers.Conv2D(6, 1, strides=2)(h)\nh = layers.Reshape((16, 6))(h)\n"
        "h = layers.Conv1D(2, 3, padding='same')(h)\n"
        "model = keras.Model(x, layers.Dense(3)(layers.Flatten()(h)))"
    )
    separable = 64 * 6 * 9 + 64 * 6 * 5
    assert cut.pieces[0].macs == 64 * 6 * 9 * 4 + 64 * 6 * 9 + separable + 16 * 6 * 5 + 16 * 2 * 3 * 6 + 32 * 3


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            "x = keras.Input((4,))\nmodel = keras.Model(x, layers.Lambda(lambda v: v[:, :2], name='odd')(x))",
            "'odd': a Lambda",
        ),
        (
            "class Mine(layers.Layer):\n    def call(self, x):\n        return x\n"
            "x = keras.Input((4,))\nmodel = keras.Model(x, Mine(name='own')(x))",
            "'own' of class Mine",
        ),
        (
            "class Whole(keras.Model):\n    def call(self, x):\n        return x\nmodel = Whole()",
            "Whole is a subclassed model",
        ),
        ("model = keras.Sequential([layers.Dense(3)])", "no input shape"),
        (
            "x = keras.Input((None, 4))\nmodel = keras.Model(x, layers.Dense(3)(layers.GlobalMaxPooling1D()(x)))",
            "open shape",
        ),
        ("x = keras.Input((4,))\nd = layers.Dense(3)(x)\nmodel = keras.Model(x, {'a': d, 'b': d})", "are the same"),
        (
            "x = keras.Input((1200, 1200, 1))\nf = layers.Dense(3)(layers.Flatten()(layers.AveragePooling2D(100)(x)))\n"
            "h = layers.Conv2D(1, 3, padding='same')(x)\nmodel = keras.Model(x, [f, layers.Dense(3)(layers.Flatten()"
            "(layers.MaxPooling2D(100)(h)))])",
            "1440000 bytes would cross",
        ),
        (
            "x = keras.Input((4,))\nd = layers.Dense(3)(x)\nmodel = keras.Model(x, {'a': d, 'b': layers.Softmax()(d)})",
            "exits 'a' and 'b' are the same",
        ),
        (
            "class Inner(keras.Model):\n    def call(self, x):\n        return x\n"
            "x = keras.Input((4,))\nmodel = keras.Model(x, layers.Dense(3)(Inner(name='mine')(x)))",
            "layer 'mine': Inner is a subclassed model",
        ),
        (
            "class Other(keras.Model):\n    def call(self, x):\n        return self.get_layer('d')(x) * 2\n"
            "x = keras.Input((4,))\nmodel = Other(x, layers.Dense(3, name='d')(x))",
            "Other is a subclassed model",
        ),
        (
            "class Mine(layers.Dense):\n    pass\ninner = keras.Sequential([keras.Input((4,)), Mine(3, name='own')], "
            "name='deep')\nx = keras.Input((4,))\nmodel = keras.Model(x, layers.ReLU()(inner(x)))",
            "layer 'deep/own' of class Mine",
        ),
        (
            "class Mine(layers.Dense):\n    pass\nx = keras.Input((4, 2))\n"
            "model = keras.Model(x, layers.TimeDistributed(Mine(3, name='own'), name='each')(x))",
            "layer 'own' in 'each' of class Mine",
        ),
        (
            "x, y = keras.Input((4,)), keras.Input((2,), name='idle')\nmodel = keras.Model([x, y], layers.Dense(3)(x))",
            "input 'idle' is not used by any output",
        ),
        (
            "x = keras.Input((300, 2))\nmodel = keras.Model(x, layers.Bidirectional(layers.LSTM(3), name='b')(x))",
            "takes 300 steps, for TFLite 256 at most",
        ),
        (
            "x = keras.Input((4, 2), batch_size=1)\nmodel = keras.Model(x, layers.GRU(3, stateful=True, name='g')(x))",
            "layer 'g' remembers the sample before",
        ),
        (
            "x = keras.Input((4, 6))\nmodel = keras.Model(x, {'w': keras.ops.reshape(layers.Dense(6)(x), (-1, 6))})",
            "output 'w' does not have one row a sample",
        ),
        (
            "x = keras.Input((4,))\np = layers.Dense(3, activation='softmax', name='p')(x)\n"
            "model = keras.Model(x, [p, layers.Dense(3)(p)])",
            "probabilities of 'p' are used further",
        ),
    ],
)
def test_models_that_cannot_be_cut(source: str, reason: str) -> None:
    assert reason in refusal(source)


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ("layers.Dense(3)(layers.Reshape((2, 2))(x))", "is float32[2, 3]: an exit gives (batch, classes)"),
        ("layers.Dense(1)(x)", "2 at least"),
        ("layers.Dense(3, activation='sigmoid', name='s')(x)", "output 's' ends in sigmoid"),
        ("keras.ops.tanh(layers.Dense(3)(x))", "ends in tanh"),
        ("layers.Flatten()(layers.ReLU()(layers.Dense(3)(x)))", "ends in relu"),
        ("layers.UnitNormalization()(layers.Dense(3)(x))", "ends in a norm"),
        ("keras.ops.argmax(layers.Dense(3)(x), axis=-1, keepdims=True)", "is int32[1]"),
        ("[layers.Dense(3, name='a')(x), layers.Dense(2, name='b')(x)]", "outputs 'a' and 'b' have 3 and 2 classes"),
    ],
)
def test_outputs_that_are_no_exits_are_results(outputs: str, reason: str) -> None:
    from partitioner.anatomy.exits import anatomy
    from partitioner.anatomy.models import from_source

    model = from_source(f"x = keras.Input((4,))\nmodel = keras.Model(x, {outputs})")
    found = anatomy(model)
    assert (found.task, found.exits, found.classes) == ("tensors", (), 0)
    assert list(found.results.values()) == list(found.graph.outputs)
    with pytest.raises(PermanentError) as caught:
        anatomy(model, task="classification")
    assert reason in str(caught.value)


def test_a_regression_that_looks_like_logits_can_be_told_apart() -> None:
    from partitioner.anatomy.exits import anatomy
    from partitioner.anatomy.models import from_source

    model = from_source("x = keras.Input((4,))\nmodel = keras.Model(x, layers.Dense(2)(x))")
    assert anatomy(model).task == "classification"
    assert anatomy(model, task="tensors").exits == ()


def test_outputs_of_one_layer_get_names_of_their_own() -> None:
    found = anatomy_of(
        "x = keras.Input((4, 2))\nmodel = keras.Model(x, layers.LSTM(3, return_state=True, name='l')(x), name='m')"
    )
    assert list(found.results) == ["l", "l_1", "l_2"]
    found = anatomy_of(
        "x = keras.Input((4,))\nd = layers.Dense\nmodel = keras.Model(x, {'a': [d(1)(x), d(2)(x)], 'b': d(3)(x)})"
    )
    assert list(found.results) == ["a.0", "a.1", "b"]


def test_a_subclass_that_only_adds_training_is_functional_all_the_same() -> None:
    found = anatomy_of(
        "class Trained(keras.Model):\n    def train_step(self, data):\n        return {}\n"
        "x = keras.Input((4,))\nmodel = Trained(x, layers.Dense(3)(x))"
    )
    assert found.classes == 3


def test_layers_of_one_name_go_together_and_keep_their_names() -> None:
    from partitioner.anatomy.cut import logits_model

    cut = cut_of(
        "inner = keras.Sequential([keras.Input((4, 2)), layers.GRU(2, return_sequences=True, name='x')])\n"
        "x = keras.Input((4, 2))\nh = layers.Flatten(name='f')(inner(inner(x)))\n"
        "model = keras.Model(x, layers.Dense(3, activation='softmax', name='d')(h))"
    )
    full = logits_model(cut)
    assert [one.name for one in full.inputs] == ["x"]
    assert [node.operation.name for node in cut.graph.nodes[1:]] == ["x", "x", "f", "d"]


@pytest.mark.parametrize(
    ("layer", "shapes", "macs"),
    [
        ("layers.LSTM(4)", [(5, 3)], 5 * (3 * 16 + 4 * 16)),
        ("layers.GRU(4)", [(5, 3)], 5 * (3 * 12 + 4 * 12)),
        ("layers.Bidirectional(layers.SimpleRNN(4))", [(5, 3)], 2 * 5 * (3 * 4 + 4 * 4)),
        ("layers.ConvLSTM2D(4, 3, padding='same')", [(5, 8, 8, 3)], 5 * 64 * (9 * 3 * 16 + 9 * 4 * 16)),
        ("layers.MultiHeadAttention(2, 4)", [(5, 6), (7, 8)], 5 * 6 * 8 + 2 * 7 * 8 * 8 + 2 * 5 * 7 * 8 + 5 * 8 * 6),
        ("layers.TimeDistributed(layers.Conv2D(4, 3))", [(5, 8, 8, 3)], 5 * 36 * 4 * 27),
        ("layers.Conv2DTranspose(4, 3, strides=2)", [(8, 8, 3)], 64 * 3 * 9 * 4),
        ("layers.EinsumDense('abc,cde->abde', output_shape=(5, 2, 4))", [(5, 3)], 5 * 3 * 8),
        ("keras.ops.matmul", [(5, 3), (3, 7)], 5 * 3 * 7),
        ("lambda q, k: keras.ops.einsum('bqd,bkd->bqk', q, k)", [(5, 3), (7, 3)], 5 * 3 * 7),
        ("lambda a, b: layers.Dot(axes=(2, 1))([a, b])", [(5, 3), (3, 7)], 5 * 3 * 7),
        ("lambda q, v: layers.Attention()([q, v])", [(5, 3), (7, 3)], 5 * 7 * 6),
        ("layers.BatchNormalization()", [(8, 8, 3)], 0),
    ],
)
def test_macs_of_layers_that_multiply(layer: str, shapes: list[tuple[int, ...]], macs: int) -> None:
    found = anatomy_of(
        f"inputs = [keras.Input(shape) for shape in {shapes}]\nmade = ({layer})(*inputs)\n"
        "model = keras.Model(inputs, {'result': made})"
    )
    assert sum(node.macs for node in found.graph.nodes) == macs
