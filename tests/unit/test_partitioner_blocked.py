"""A narrow first convolution in blocks computes what it did, and nothing else is touched."""

from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.tensorflow

BLOCK = """
x = keras.Input({shape}, name="x")
h = layers.Conv2D({filters}, {kernel}, padding="{padding}", activation="{activation}", bias_initializer="normal")(x)
h = layers.MaxPooling2D({pool}, padding="same")(h)
model = keras.Model([x], {{"h0": h}})
"""


def model_of(**change: Any) -> Any:
    from partitioner.anatomy.models import from_source

    told = {"shape": (12, 12, 1), "filters": 5, "kernel": 5, "padding": "same", "activation": "relu", "pool": 2}
    return from_source(BLOCK.format(**told | change))


def operations(content: bytes) -> list[str]:
    from partitioner.segments.tflite import File

    return [operation.name for operation in File(content).operations]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"padding": "valid", "shape": (34, 34, 1)},
        {"kernel": 4, "filters": 3},
        {"kernel": "(3, 2)", "shape": (8, 20, 1), "activation": "tanh"},
        {"filters": 16},
    ],
)
def test_blocks_give_the_same(change: dict[str, Any]) -> None:
    from partitioner.segments.convert import convert
    from sluice.stage.segment import load_segment
    from sluice.wire.manifest import Blob, Segment, TensorSpec

    model = model_of(**change)
    shape, made = model.inputs[0].shape[1:], model.outputs[0].shape[1:]
    content = convert(model, "block")
    assert "RESHAPE" in operations(content)
    blob = Blob(sha256="0" * 64, size=1)
    spec = Segment(
        index=0,
        file=blob,
        inputs=(TensorSpec(name="x", dtype="float32", shape=shape),),
        outputs=(TensorSpec(name="h0", dtype="float32", shape=made),),
        macs=0,
        golden=blob,
        tolerance=1e-4,
    )
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    found = load_segment(content, spec).run({"x": x})["h0"]
    assert np.abs(found.astype(np.float64) - np.asarray(model([x])["h0"])).max() < 1e-5


@pytest.mark.parametrize(
    "change",
    [{"shape": (12, 12, 2)}, {"filters": 17}, {"shape": (11, 11, 1)}, {"pool": 3}],
)
def test_other_convolutions_stay_as_they_are(change: dict[str, Any]) -> None:
    from partitioner.anatomy.graph import walk
    from partitioner.segments.blocked import blocked

    assert blocked(walk(model_of(**change))) == {}


def test_a_convolution_that_something_else_reads_stays_as_it_is() -> None:
    from partitioner.anatomy.graph import walk
    from partitioner.anatomy.models import from_source
    from partitioner.segments.blocked import blocked

    narrow = "x = keras.Input((8, 8, 1))\nc = layers.Conv2D(4, 3, padding='same')(x)\np = layers.MaxPooling2D(2)(c)\n"
    for outputs in ("{'p': p, 'c': c}", "{'p': p, 'q': layers.Flatten()(c)}"):
        assert blocked(walk(from_source(f"{narrow}model = keras.Model([x], {outputs})"))) == {}
    assert len(blocked(walk(from_source(f"{narrow}model = keras.Model([x], {{'p': p}})")))) == 2
