"""A small bundle of real TFLite segments, made without the partitioner: what runs segments is tested apart from what
cuts them. Its model is not trained, which is nothing to the runtime."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from sluice.stage.segment import load_segment
from sluice.wire import bundle as bundles
from sluice.wire.manifest import Manifest, Segment

SHAPE = (4, 4, 1)
GOLDEN = 8


def make_bundle(folder: Path) -> bundles.Bundle:
    """Two segments with an exit each (TensorFlow): x -> h0, logits; x, h0 -> logits. `x` passes segment 0."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(3)
    x = keras.Input(SHAPE, name="x")
    a = layers.Conv2D(2, 3, padding="same", activation="tanh")(x)
    first = keras.Model([x], {"h0": a, "logits": layers.Dense(3)(layers.Flatten()(a))})
    x, h0 = keras.Input(SHAPE, name="x"), keras.Input((4, 4, 2), name="h0")
    both = layers.Concatenate()([layers.Conv2D(3, 3, padding="same", activation="tanh")(h0), x])
    second = keras.Model([x, h0], {"logits": layers.Dense(3)(layers.Flatten()(both))})

    image, hidden = _tensor("x", SHAPE), _tensor("h0", (4, 4, 2))
    tensors: dict[str, Any] = {"x": np.random.default_rng(0).normal(size=(GOLDEN, *SHAPE)).astype(np.float32)}
    segments = []
    for index, (model, inputs, outputs) in enumerate([(first, [image], [hidden]), (second, [image, hidden], [])]):
        content = _convert(model)
        parts: dict[str, Any] = {
            "index": index,
            "file": bundles.write_blob(folder / bundles.BLOBS, content),
            "inputs": inputs,
            "outputs": outputs,
            "passes": ["x"] if index == 0 else [],
            "exit": {"name": f"exit {index}", "logits": "logits"},
            "macs": 1000 * (index + 1),
            "tolerance": 1e-4,
            "reference_us": 2.5 if index == 0 else None,
        }
        spec = Segment.model_validate(parts | {"golden": parts["file"]})
        made = load_segment(content, spec).run(tensors)
        golden = {f"in.{tensor['name']}": tensors[tensor["name"]] for tensor in inputs}
        golden |= {f"out.{name}": array for name, array in made.items()}
        packed = io.BytesIO()
        np.savez(packed, **golden)
        segments.append(parts | {"golden": bundles.write_blob(folder / bundles.BLOBS, packed.getvalue())})
        tensors |= made
    policy = {"measure": "max_prob", "threshold": 0.9}
    point = {"id": "default", "placement": ["edge", "cloud"], "codec": "raw", "policies": [policy, policy]}
    manifest = Manifest.model_validate(
        {
            "model": "small",
            "version": 1,
            "labels": ["a", "b", "c"],
            "inputs": [image],
            "segments": segments,
            "operating_points": [point],
            "provenance": {"created_at": "2026-11-20T00:00:00+00:00"},
        }
    )
    bundles.write_atomically(folder / bundles.MANIFEST, manifest.model_dump_json().encode())
    return bundles.open_bundle(folder)


def _tensor(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"name": name, "dtype": "float32", "shape": shape}


def _convert(model: Any) -> bytes:
    import contextlib

    import tensorflow as tf

    with contextlib.redirect_stdout(io.StringIO()):
        content: bytes = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    return content
