"""Nets for benchmarks, and their pieces as segments: Keras to TFLite without the partitioner's choices in between.

A piece is a Keras model whose inputs and outputs have the names of the tensors that cross (`x`, `h0`, …), and
`logits` where it has an exit.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from typing import Any

from sluice.stage.segment import RunningSegment, load_segment
from sluice.wire.bundle import sha256
from sluice.wire.manifest import Blob, ExitHead, Segment, TensorSpec

LOGITS = "logits"


def quiet_keras() -> Any:
    """Keras, without TensorFlow's messages."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    return keras


def lenet() -> Any:
    """A LeNet for MNIST (28, 28, 1) uint8 with an exit after its first block (14, 14, 8): outputs `early`, `final`."""
    keras = quiet_keras()
    layers = keras.layers
    x = keras.Input((28, 28, 1), dtype="uint8", name="x")
    a = layers.Conv2D(8, 5, padding="same", use_bias=False)(layers.Rescaling(1 / 255)(x))
    a = layers.MaxPooling2D(2, name="block")(layers.ReLU()(layers.BatchNormalization()(a)))
    early = layers.Dense(10, name="early")(layers.Flatten()(layers.AveragePooling2D(2)(a)))
    b = layers.MaxPooling2D(2)(layers.Conv2D(16, 5, activation="relu")(a))
    b = layers.Dense(120, activation="relu")(layers.Flatten()(b))
    final = layers.Dense(10, name="final")(layers.Dense(84, activation="relu")(b))
    return keras.Model(x, {"early": early, "final": final})


def har_net() -> Any:
    """A 1-D CNN for UCI HAR (128, 9) float32 with an exit after its first block (64, 32): `early`, `final`."""
    keras = quiet_keras()
    layers = keras.layers
    x = keras.Input((128, 9), name="x")
    a = layers.Conv1D(32, 5, padding="same", use_bias=False)(x)
    a = layers.MaxPooling1D(2, name="block")(layers.ReLU()(layers.BatchNormalization()(a)))
    early = layers.Dense(6, name="early")(layers.Flatten()(layers.AveragePooling1D(8)(a)))
    b = layers.MaxPooling1D(4)(layers.Conv1D(64, 5, padding="same", activation="relu")(a))
    b = layers.GlobalAveragePooling1D()(layers.Conv1D(64, 5, padding="same", activation="relu")(b))
    b = layers.Dense(64, activation="relu")(layers.Dropout(0.3)(b))
    return keras.Model(x, {"early": early, "final": layers.Dense(6, name="final")(b)})


def train(model: Any, x: Any, y: Any, epochs: int, batch: int) -> None:
    """Train all exits at once."""
    keras = quiet_keras()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss=dict.fromkeys(model.output, loss))
    model.fit(x, dict.fromkeys(model.output, y), epochs=epochs, batch_size=batch, verbose=0)


def pieces(model: Any, layer: str) -> list[Any]:
    """A model with the outputs `early` and `final` in two pieces, cut at the output of `layer`, where `early` hangs."""
    keras = quiet_keras()
    block = model.get_layer(layer).output
    first = keras.Model(model.inputs, {"h0": block, LOGITS: model.output["early"]})
    rest = keras.Model(block, model.output["final"])
    h0 = keras.Input(block.shape[1:], dtype=block.dtype, name="h0")
    return [first, keras.Model(h0, {LOGITS: rest(h0)})]


def trunk_pieces(model: Any, layers: Sequence[str]) -> list[Any]:
    """A model with one output in pieces, cut at the outputs of `layers`; no exits."""
    keras = quiet_keras()
    ends = [*(model.get_layer(name).output for name in layers), model.output]
    made, start = [], model.inputs[0]
    for k, end in enumerate(ends):
        part = keras.Model(start, end)
        x = keras.Input(start.shape[1:], dtype=start.dtype, name="x" if k == 0 else f"h{k - 1}")
        made.append(keras.Model(x, {f"h{k}": part(x)}))
        start = end
    return made


def running(parts: Sequence[Any]) -> list[RunningSegment]:
    """The pieces of one model, converted and loaded."""
    return [load_segment(*segment_of(part, index)) for index, part in enumerate(parts)]


def segment_of(piece: Any, index: int) -> tuple[bytes, Segment]:
    """(TFLite file, what a manifest would say of it); nothing is proven here, so the golden samples are missing."""
    import tensorflow as tf

    with contextlib.redirect_stdout(io.StringIO()):
        content: bytes = tf.lite.TFLiteConverter.from_keras_model(piece).convert()
    blob = Blob(sha256=sha256(content), size=len(content))
    outputs = {name: tensor for name, tensor in piece.output.items() if name != LOGITS}
    spec = Segment(
        index=index,
        file=blob,
        inputs=tuple(_spec(tensor.name, tensor) for tensor in piece.inputs),
        outputs=tuple(_spec(name, tensor) for name, tensor in outputs.items()),
        exit=ExitHead(name=f"exit {index}", logits=LOGITS) if LOGITS in piece.output else None,
        macs=0,
        golden=blob,
        tolerance=1e-4,
    )
    return content, spec


def _spec(name: str, tensor: Any) -> TensorSpec:
    return TensorSpec(name=name, dtype=tensor.dtype, shape=tuple(tensor.shape[1:]))
