"""Small models of every kind that the partitioner takes, and what they and their segments compute."""

from typing import Any

import numpy as np

ZOO = {
    "plain": """
model = keras.Sequential([keras.Input((6,)), layers.Dense(8, "relu"), layers.Dropout(0.5), layers.Dense(3)])
""",
    "skip": """
x = keras.Input((6,))
a = layers.Dense(8, activation="relu")(x)
b = layers.Dense(8, activation="relu")(a)
c = layers.Dense(7)(layers.Concatenate()([a, b, x]))
model = keras.Model(x, {"one": layers.Dense(3)(a), "last": layers.Dense(3, activation="softmax")(c)})
""",
    "exit inside of a residual block": """
x = keras.Input((6, 6, 3), dtype="uint8")
h = layers.Conv2D(4, 3, padding="same", use_bias=False)(layers.Rescaling(1 / 255)(x))
h = keras.ops.relu(layers.BatchNormalization()(h))
a = layers.Conv2D(4, 3, padding="same")(h)
early = layers.Dense(5)(layers.GlobalAveragePooling2D()(layers.Concatenate()([a, h])))
h = layers.Add()([layers.Conv2D(4, 3, padding="same")(layers.ReLU()(a)), h])
model = keras.Model(x, [layers.Dense(5)(layers.Flatten()(h)), early])
""",
    "exit at the input": """
x = keras.Input((6, 6, 1), dtype="uint8")
f = layers.Rescaling(1 / 255)(x)
early = layers.Dense(3, activation="softmax")(layers.Flatten()(layers.AveragePooling2D(2)(f)))
h = layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(f))
model = keras.Model(x, [layers.Softmax()(layers.Dense(3)(h)), early])
""",
    "a layer called three times": """
shared = layers.Dense(6, activation="tanh")
x = keras.Input((6,))
a = shared(x)
model = keras.Model(x, [layers.Dense(3)(a), layers.Dense(3)(layers.Add()([shared(shared(a)), a]))])
""",
    "nested, twice and in one another": """
small = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="d"), layers.BatchNormalization()], name="small")
i = keras.Input((4,))
inner = keras.Model(i, layers.Add()([small(layers.Dense(4, name="d")(i)), i]), name="inner")
x = keras.Input((4,), name="d")
h = inner(inner(x), training=False)
model = keras.Model(x, [layers.Dense(3, name="h0")(h), layers.Dense(3)(small(h))])
""",
    "nested, of another dtype": """
i = keras.Input((5, 1))
inner = keras.Model(i, {"f": layers.Flatten()(layers.Conv1D(2, 2)(i)), "m": layers.GlobalMaxPooling1D()(i)})
x = keras.Input((5, 1), dtype="uint8")
made = inner(x)
model = keras.Model(x, layers.Dense(3)(layers.Concatenate()([made["f"], made["m"]])))
""",
    "several inputs": """
a, b = keras.Input((4,), name="left"), keras.Input((3,), name="right")
p, q = keras.Input((8,), name="p"), keras.Input((8,), name="q")
join = keras.Model([q, p], layers.Subtract()([p, q]))
h = layers.Dense(8, activation="relu")(a)
e = layers.Dense(3)(h)
g = layers.Dense(8)(b)
model = keras.Model([a, b], [e, layers.Dense(3)(join({"p": h, "q": g}))])
""",
    "a layer with several outputs": """
x = keras.Input((4, 3))
seq, last, state = layers.LSTM(5, return_sequences=True, return_state=True)(x)
h = layers.Concatenate()([layers.GlobalAveragePooling1D()(seq), last, state])
model = keras.Model(x, layers.Dense(3)(h))
""",
    "masks": """
x = keras.Input((6,), dtype="int32")
h = layers.Embedding(9, 4, mask_zero=True)(x)
h = layers.LSTM(5, return_sequences=True)(layers.Dense(4)(h))
a = layers.MultiHeadAttention(2, 3)(h, h)
model = keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling1D()(layers.Add()([a, h]))))
""",
    "masks into a nested model": """
i = keras.Input((6, 4))
inner = keras.Model(i, layers.GRU(5)(layers.Dense(4)(i)))
x = keras.Input((6,), dtype="int32")
model = keras.Model(x, layers.Dense(3)(inner(layers.Embedding(9, 4, mask_zero=True)(x))))
""",
    "windows as rows": """
x = keras.Input((4, 6))
h = keras.ops.reshape(layers.Dense(6)(x), (-1, 6))
model = keras.Model(x, layers.Dense(3)(layers.Flatten()(keras.ops.reshape(layers.Dense(3)(h), (-1, 4, 3)))))
""",
    "results of several kinds": """
x = keras.Input((8, 8, 2))
down = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(x)
count = layers.Dense(1, name="count")(layers.GlobalAveragePooling2D()(down))
up = layers.Conv2DTranspose(2, 3, strides=2, padding="same")(layers.Conv2D(4, 3, padding="same")(down))
mask = layers.Conv2D(1, 1, activation="sigmoid")(layers.Concatenate()([up, x]))
model = keras.Model(x, {"mask": mask, "count": count})
""",
}


def build(source: str) -> Any:
    """The model, with weights that let no path through it vanish."""
    from partitioner.anatomy.models import from_source

    model = from_source(source)
    rng = np.random.default_rng(1)
    model.set_weights([rng.uniform(-0.6, 0.6, w.shape).astype(np.float32) ** 2 + 0.05 for w in model.get_weights()])
    return model


def samples(model: Any, n: int = 3) -> list[Any]:
    rng = np.random.default_rng(0)
    return [
        (rng.normal(size=(n, *t.shape[1:])) if t.dtype == "float32" else rng.integers(0, 9, (n, *t.shape[1:]))).astype(
            t.dtype
        )
        for t in model.inputs
    ]


def flow(cut: Any, inputs: list[Any]) -> tuple[dict[str, Any], list[Any]]:
    """All tensors, and the logits of each exit, of the pieces one after the other; a piece sees what crosses to it."""
    from partitioner.anatomy.cut import piece_model

    every = dict(zip([t.name for t in cut.inputs], inputs, strict=True))
    crossed = dict(every)
    logits = []
    for piece in cut.pieces:
        made = piece_model(cut, piece)([crossed[t.name] for t in piece.inputs], training=False)
        made = {name: np.asarray(value) for name, value in made.items()}
        if piece.exit:
            logits.append(made.pop("logits"))
        assert set(made) == {t.name for t in piece.outputs}
        for tensor in piece.outputs:
            assert (made[tensor.name].dtype, made[tensor.name].shape[1:]) == (tensor.dtype, tensor.shape)
        every |= made
        if piece is not cut.pieces[-1]:
            assert set(piece.passes) <= crossed.keys()
            crossed = made | {name: crossed[name] for name in piece.passes}
            assert list(crossed) == [t.name for t in piece.crossing]
    return every, logits


def softmax(logits: Any) -> Any:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def model_outputs(model: Any, inputs: list[Any]) -> list[Any]:
    import keras

    return list(keras.tree.flatten(model(inputs if len(inputs) > 1 else inputs[0], training=False)))
