"""Models of `keras.applications` as segments: the chain of TFLite files answers as Keras does."""

from typing import Any

import numpy as np
import pytest

from tests.models.backbones import NAMES, SIZE, get_used_to, images

pytestmark = [pytest.mark.tensorflow, pytest.mark.models]

ALLOWED = {"float32": 1e-3, "float16": 0.3}


def calm(name: str, x: Any) -> Any:
    """The model, used to `x` (n, 96, 96, 3) float32: its answers differ, but do not hang on the last bit of everything.

    A random network is chaos: it makes a thousandth of noise a third of its answer. With activations in the middle of
    their range it is nearly linear, and what is compared is what the converter did.
    """
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, name)(weights=None, input_shape=SIZE, classes=10)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.beta.assign(layer.beta + 2.0)
    get_used_to(model, x)
    head = model.layers[-1]
    features = np.asarray(keras.Model(model.input, head.input)(x, training=False))
    kernel = np.random.default_rng(0).normal(size=head.kernel.shape)
    kernel /= features.std(axis=0).mean() * np.sqrt(len(kernel))
    head.set_weights([kernel, -features.mean(axis=0) @ kernel])
    return model


@pytest.mark.parametrize(
    ("name", "quantize"), [*((name, "float32") for name in NAMES), ("MobileNetV2", "float16"), ("MobileNetV2", "int8")]
)
def test_the_chain_of_segments_answers_as_keras(name: str, quantize: str) -> None:
    from partitioner.anatomy.cut import cut, ends_of, logits_model
    from partitioner.anatomy.exits import anatomy
    from partitioner.anatomy.splits import split_points
    from partitioner.segments.chain import ranges_of, run_chain, with_scales
    from partitioner.segments.export import agreement, export, tensor_spec

    x = images(48, "float32")
    x = x / 127.5 - 1 if name == "MobileNetV2" else x
    model = calm(name, x)
    found = anatomy(model)
    ends = [point for point in split_points(found) if point.block_end and point.position]
    made = cut(found, ends_of(found, [], [ends[len(ends) // 3], ends[2 * len(ends) // 3]]))
    full = logits_model(made)
    exported = export(made, full, {"x": x}, quantize)
    assert len(exported) == 3 and sum(one.spec.macs for one in exported) == sum(node.macs for node in found.graph.nodes)

    wanted = np.asarray(full([x], training=False)["logits2"])
    assert len(np.unique(wanted.argmax(axis=1))) >= 8, "the answers differ"
    running = [one.segment for one in exported]
    segments = with_scales([one.spec for one in exported], ranges_of(running, {"x": x}))
    known = {spec.name: spec for one in segments for spec in (*one.inputs, *one.outputs)}
    crossings = [[known.get(one.name, tensor_spec(one)) for one in piece.crossing] for piece in made.pieces[:-1]]
    tiers = ("edge", "fog", "cloud")
    passage = run_chain(running, [[], *crossings], {"x": x}, tiers, "int8" if quantize == "int8" else "raw")
    if quantize == "int8":
        assert agreement(passage.logits[0], wanted) >= 0.9
    else:
        assert np.abs(passage.logits[0] - wanted).max() <= ALLOWED[quantize]
