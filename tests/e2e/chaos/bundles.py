"""Two bundles of one model with different weights, and what each of them must answer.

Their segments are real TFLite files of untrained layers: a tensor that one bundle made and the other finished gives
numbers that neither gives, for every image and every cut (`_telling` chooses the images so). Made in a process of its
own, `python -m tests.e2e.chaos.bundles FOLDER`, so that TensorFlow does not stay in the memory of the run.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sluice.stage.policy import probabilities
from sluice.stage.segment import load_segments
from sluice.wire import bundle as bundles
from sluice.wire.manifest import Manifest, Segment
from sluice.wire.messages import Prediction

MODEL = "shapes"
SHAPE, CLASSES, IMAGES = (4, 4, 1), 4, 64
POINTS = {
    "default": ["edge", "fog", "cloud"],
    "no-fog": ["edge", "cloud", "cloud"],
    "raw-up": ["cloud", "cloud", "cloud"],
}
"""Operating points and their placements."""
APART = 0.02
"""Least difference between what two bundles, or a mixture of them, say of an image."""
TOLERANCE = 0.002

Images = NDArray[np.float32]


@dataclass(frozen=True)
class Chain:
    """All segments of a bundle in a row: `expected[exit][image]` is the probability of each class."""

    folder: Path
    digest: str
    manifest: Manifest
    expected: list[Images]

    def made(self, image: int, prediction: Prediction) -> bool:
        """Whether the prediction for that image is what this chain alone makes of it."""
        expected = self.expected[prediction.exit][image]
        if prediction.outputs:
            found = np.frombuffer(prediction.outputs, "<f4")
            return found.shape == expected.shape and bool(np.abs(found - expected).max() <= TOLERANCE)
        sure = abs(prediction.confidence - float(expected.max())) <= TOLERANCE
        return sure and prediction.label == int(expected.argmax())

    def placed(self, prediction: Prediction) -> bool:
        """Whether the tier that answered is the one that the operating point places this exit on."""
        if prediction.reason not in ("exit", "last"):
            return True
        return prediction.tier == self.manifest.operating_point(prediction.operating_point).placement[prediction.exit]


def make_bundles(folder: Path) -> tuple[Images, list[Chain]]:
    """What the sensor shows, and the chains of both bundles, made in another process."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, str(folder)],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the bundles could not be made:\n{done.stderr[-2000:]}")
    images = np.load(folder / "images.npy")
    return images, [_open_chain(folder / name, images) for name in ("one", "two")]


def _open_chain(folder: Path, images: Images) -> Chain:
    bundle = bundles.open_bundle(folder)
    tensors: dict[str, Any] = {"x": images}
    expected = []
    for segment in load_segments(folder, bundle.manifest, range(len(bundle.manifest.segments))):
        tensors |= segment.run(tensors)
        expected.append(probabilities(tensors["logits"], 1.0).astype(np.float32))
    return Chain(folder, bundle.digest, bundle.manifest, expected)


def make(folder: Path) -> None:
    """Write both bundles (TensorFlow) and the images."""
    layers = [_layers(seed) for seed in (1, 2)]
    images = _telling(layers)
    for name, own in zip(("one", "two"), layers, strict=True):
        _write(folder / name, own, images)
    np.save(folder / "images.npy", images)


def _telling(layers: list[list[tuple[bytes, Segment]]]) -> Images:
    """Images for which every way through the segments of the two bundles ends in an answer of its own."""
    from sluice.stage.segment import load_segment

    loaded = [[load_segment(content, spec) for content, spec in own] for own in layers]
    images = np.random.default_rng(0).normal(size=(5000, *SHAPE)).astype(np.float32)
    telling = np.ones(len(images), dtype=bool)
    for length in (1, 2, 3):
        answers = []
        for way in itertools.product((0, 1), repeat=length):
            tensors: dict[str, Any] = {"x": images}
            for i, which in enumerate(way):
                tensors |= loaded[which][i].run(tensors)
            answers.append(probabilities(tensors["logits"], 1.0))
        for one, other in itertools.combinations(answers, 2):
            telling &= np.abs(one - other).max(axis=1) > APART
    assert telling.sum() >= IMAGES, f"only {telling.sum()} images tell all ways apart"
    return images[telling][:IMAGES]


def _layers(seed: int) -> list[tuple[bytes, Segment]]:
    """Three segments: x -> h0, logits -> h1, logits -> logits."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    wide = keras.initializers.RandomNormal(stddev=0.8, seed=seed)
    made = []
    shapes = [SHAPE, (6,), (6,)]
    for i, shape in enumerate(shapes):
        entry = keras.Input(shape, name="x" if i == 0 else f"h{i - 1}")
        hidden = layers.Dense(6, activation="tanh", kernel_initializer=wide, bias_initializer=wide)(
            layers.Flatten()(entry)
        )
        outputs = {"logits": layers.Dense(CLASSES, kernel_initializer=wide, bias_initializer=wide)(hidden)}
        if i < 2:
            outputs[f"h{i}"] = hidden
        content = _convert(keras.Model([entry], outputs))
        parts = {
            "index": i,
            "file": {"sha256": bundles.sha256(content), "size": len(content)},
            "golden": {"sha256": bundles.sha256(content), "size": len(content)},
            "inputs": [{"name": entry.name, "dtype": "float32", "shape": shape}],
            "outputs": [{"name": f"h{i}", "dtype": "float32", "shape": (6,)}] if i < 2 else [],
            "exit": {"name": f"exit {i}", "logits": "logits"},
            "macs": 100 * (i + 1),
            "tolerance": 1e-4,
        }
        made.append((content, Segment.model_validate(parts)))
    return made


def _convert(model: Any) -> bytes:
    import tensorflow as tf

    with contextlib.redirect_stdout(io.StringIO()):
        content: bytes = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    return content


def _write(folder: Path, layers: list[tuple[bytes, Segment]], images: Images) -> None:
    """A bundle of these segments; half of the images leave at each of the first two exits."""
    from sluice.stage.segment import load_segment

    tensors: dict[str, Any] = {"x": images}
    segments, policies, left = [], [], np.ones(IMAGES, dtype=bool)
    for content, spec in layers:
        before = {tensor.name: tensors[tensor.name] for tensor in spec.inputs}
        made = load_segment(content, spec).run(before)
        golden = {f"in.{name}": array[:8] for name, array in before.items()}
        golden |= {f"out.{name}": array[:8] for name, array in made.items()}
        packed = io.BytesIO()
        np.savez(packed, **golden)
        blobs = folder / bundles.BLOBS
        stored = {
            "file": bundles.write_blob(blobs, content),
            "golden": bundles.write_blob(blobs, packed.getvalue()),
        }
        segments.append({**spec.model_dump(), **stored})
        sure = probabilities(made["logits"], 1.0).max(axis=1)
        threshold = float(np.median(sure[left]))
        left &= sure < threshold
        policies.append({"measure": "max_prob", "threshold": threshold})
        tensors |= made
    points = [
        {"id": name, "placement": placement, "codec": "raw", "policies": policies} for name, placement in POINTS.items()
    ]
    manifest = Manifest.model_validate(
        {
            "model": MODEL,
            "version": 1,
            "labels": [f"class {i}" for i in range(CLASSES)],
            "inputs": [{"name": "x", "dtype": "float32", "shape": SHAPE}],
            "segments": segments,
            "operating_points": points,
            "provenance": {"created_at": "2026-11-25T00:00:00+00:00"},
        }
    )
    bundles.write_atomically(folder / bundles.MANIFEST, manifest.model_dump_json().encode())


if __name__ == "__main__":
    make(Path(sys.argv[1]))
