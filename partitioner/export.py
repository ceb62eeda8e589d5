"""Each piece of a cut model as a TFLite file (float32, any batch size), checked against Keras before it may be used.

TensorFlow can convert a model to a file without its weights and say nothing; the runtime then answers NaN. So each
file is searched for variable operations and its outputs are compared with Keras' on real samples.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from partitioner.cut import LOGITS, Crossing, Cut, Piece, piece_model
from sluice.stage.segment import RunningSegment, load_segment
from sluice.wire import bundle
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Blob, ExitHead, Segment, TensorSpec

Array = NDArray[np.generic]
Arrays = dict[str, Array]

TOLERANCE = 1e-4
"""Largest difference between TFLite and Keras, absolute up to outputs of 1 and relative above."""
BATCHES = (1, 2, 8, 32)
"""Batch sizes that every segment is tried with."""
_NO_BLOB = Blob(sha256="0" * 64, size=1)


@dataclass(frozen=True, slots=True)
class Exported:
    """A converted piece: its TFLite file, loaded, and what the manifest says of it, but for scales and golden."""

    content: bytes
    spec: Segment
    segment: RunningSegment


def export(cut: Cut, full: keras.Model, samples: Arrays) -> list[Exported]:
    """All segments of `cut`, each compared with its Keras piece, and their chain with the `full` model's logits.

    `samples` are the model's inputs as they cross, name: (n, *shape). Raises `PermanentError` naming the segment when
    a piece does not convert or does not compute the same.
    """
    done = []
    tensors = dict(samples)
    whole = full([samples[crossing.name] for crossing in cut.inputs], training=False)
    for index, piece in enumerate(cut.pieces):
        model = piece_model(cut, piece)
        content = convert(model, piece.exit)
        spec = _spec(index, piece, content)
        exported = Exported(content, spec, load_segment(content, spec))
        _compare(exported, model, tensors)
        tensors |= exported.segment.run(tensors)
        off = difference(tensors[LOGITS], np.asarray(whole[f"{LOGITS}{index}"]))
        if not off <= TOLERANCE:
            raise PermanentError(
                f"exit {piece.exit!r} of the chain of segments is off by {off:.3g} from the full model"
            )
        done.append(exported)
    return done


def convert(model: keras.Model, exit_name: str) -> bytes:
    """`model` as a TFLite file with an open batch dimension; `PermanentError` when it cannot be one."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            converter = tf.lite.TFLiteConverter.from_keras_model(model)
            content: bytes = converter.convert()
    except Exception as error:
        cause = " ".join(str(error).split())[:300]
        raise PermanentError(
            f"the segment of exit {exit_name!r} does not convert to TFLite: {cause} (LSTM and GRU need unroll=True)"
        ) from error
    if found := _variables(content):
        raise PermanentError(f"the segment of exit {exit_name!r} was converted without its weights ({found[0]})")
    return content


def _variables(content: bytes) -> list[str]:
    """Names of the variable operations in a TFLite file."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        tf.lite.experimental.Analyzer.analyze(model_content=content)
    return re.findall(r"^ *Op#\d+ (VAR_HANDLE|READ_VARIABLE)\(", said.getvalue(), re.MULTILINE)


def tensor_spec(crossing: Crossing) -> TensorSpec:
    """The manifest's view of a crossing tensor, without a scale."""
    return TensorSpec(name=crossing.name, dtype=crossing.dtype, shape=crossing.shape)


def _spec(index: int, piece: Piece, content: bytes) -> Segment:
    return Segment(
        index=index,
        file=Blob(sha256=bundle.sha256(content), size=len(content)),
        inputs=tuple(tensor_spec(crossing) for crossing in piece.inputs),
        outputs=tuple(tensor_spec(crossing) for crossing in piece.outputs),
        passes=piece.passes,
        exit=ExitHead(name=piece.exit, logits=LOGITS),
        macs=piece.macs,
        golden=_NO_BLOB,
        tolerance=TOLERANCE,
    )


def _compare(exported: Exported, model: keras.Model, tensors: Arrays) -> None:
    spec = exported.spec
    inputs = [tensors[tensor.name] for tensor in spec.inputs]
    n = len(inputs[0])
    wanted = {name: np.asarray(value) for name, value in model(inputs, training=False).items()}
    for batch in (*BATCHES, n):
        rows = np.arange(batch) % n
        made = exported.segment.run({t.name: tensors[t.name][rows] for t in spec.inputs})
        for name, value in wanted.items():
            off = difference(made[name], value[rows])
            if not off <= TOLERANCE:
                raise PermanentError(
                    f"segment {spec.index} at batch {batch}: {name!r} is off by {off:.3g} from Keras, "
                    f"{TOLERANCE} is allowed"
                )


def difference(made: Array, wanted: Array) -> float:
    """Largest difference, relative to the largest wanted value where that is over 1; NaN counts as infinite."""
    if made.shape != wanted.shape:
        return math.inf
    a, b = made.astype(np.float64), wanted.astype(np.float64)
    off = float(np.max(np.abs(a - b), initial=0.0)) / max(1.0, float(np.max(np.abs(b), initial=0.0)))
    return off if math.isfinite(off) else math.inf
