"""The segments run one after the other as the tiers will run them: real TFLite, and the codec where a tier ends.

What a device, a fog stage and a cloud stage do to a sample is done here to many at once, through all exits, so that
calibration sees every loss that the sample will meet on its way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sluice.stage.segment import Arrays, RunningSegment
from sluice.wire.codec import encode_tensor, round_trip
from sluice.wire.manifest import Segment, TensorSpec
from sluice.wire.names import Tier

BATCH = 256
LEVELS = 255
"""Steps of an int8 scale."""


@dataclass(frozen=True, slots=True)
class Passage:
    """`logits`: (n, classes) float32 of each exit; `sent`: (n,) bytes of each cut, 0 where it lies inside a tier."""

    logits: tuple[NDArray[np.float32], ...]
    sent: tuple[NDArray[np.int64], ...]


def run_chain(
    segments: Sequence[RunningSegment],
    crossings: Sequence[Sequence[TensorSpec]],
    inputs: Arrays,
    placement: Sequence[Tier],
    codec: str,
) -> Passage:
    """Run `inputs` (name: (n, *shape)) through all segments; `crossings[k]` crosses into segment k."""
    n = len(next(iter(inputs.values())))
    parts = [
        _run_batch(segments, crossings, {name: a[i : i + BATCH] for name, a in inputs.items()}, placement, codec)
        for i in range(0, n, BATCH)
    ]
    return Passage(
        tuple(np.concatenate(logits) for logits in zip(*(part.logits for part in parts), strict=True)),
        tuple(np.concatenate(sent) for sent in zip(*(part.sent for part in parts), strict=True)),
    )


def _run_batch(
    segments: Sequence[RunningSegment],
    crossings: Sequence[Sequence[TensorSpec]],
    inputs: Arrays,
    placement: Sequence[Tier],
    codec: str,
) -> Passage:
    tensors = dict(inputs)
    n = len(next(iter(inputs.values())))
    logits, sent = [], []
    for k, segment in enumerate(segments):
        if k > 0:
            size = np.zeros(n, np.int64)
            if placement[k] != placement[k - 1]:
                for spec in crossings[k]:
                    size += [len(encode_tensor(row, spec, codec).data) for row in tensors[spec.name]]
                    tensors[spec.name] = round_trip(tensors[spec.name], spec, codec)
            sent.append(size)
        made = segment.run(tensors)
        assert segment.spec.exit is not None
        logits.append(made[segment.spec.exit.logits].astype(np.float32))
        tensors |= made
    return Passage(tuple(logits), tuple(sent))


def with_scales(specs: Sequence[Segment], ranges: dict[str, tuple[float, float]]) -> list[Segment]:
    """The segments with scale and zero point of every float tensor between them from its (least, largest) value."""
    return [
        spec.model_copy(
            update={
                "inputs": tuple(_scaled(tensor, ranges) for tensor in spec.inputs),
                "outputs": tuple(_scaled(tensor, ranges) for tensor in spec.outputs),
            }
        )
        for spec in specs
    ]


def _scaled(spec: TensorSpec, ranges: dict[str, tuple[float, float]]) -> TensorSpec:
    if not spec.is_float:
        return spec
    least, largest = ranges[spec.name]
    scale, zero_point = affine(least, largest)
    return spec.model_copy(update={"scale": scale, "zero_point": zero_point})


def affine(least: float, largest: float) -> tuple[float, int]:
    """(scale, zero point) of int8 for values from `least` to `largest`, widened to hold 0 exactly.

    Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
    arXiv 1712.05877, section 2.1.
    """
    least, largest = min(least, 0.0), max(largest, 0.0)
    scale = float(np.float32((largest - least) / LEVELS)) or 1.0
    return scale, int(np.clip(round(-128 - least / scale), -128, 127))


def ranges_of(segments: Sequence[RunningSegment], inputs: Arrays) -> dict[str, tuple[float, float]]:
    """(least, largest) value of every tensor that crosses a cut, uncoded, over `inputs` (name: (n, *shape))."""
    tensors = dict(inputs)
    for segment in segments:
        tensors |= segment.run(tensors)
    return {name: (float(a.min()), float(a.max())) for name, a in tensors.items()}
