"""The segments run one after the other as the tiers will run them: real TFLite, and the codec where a tier ends.

What a device, a fog stage and a cloud stage do to a sample is done here to many at once, through all exits, so that
calibration sees every loss that the sample will meet on its way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sluice.stage.segment import Array, Arrays, RunningSegment
from sluice.wire.codec import payload_sizes, round_trip
from sluice.wire.manifest import Segment, TensorSpec
from sluice.wire.names import Tier

BATCH = 256
LEVELS = 255
"""Steps of an int8 scale."""


@dataclass(frozen=True, slots=True)
class Passage:
    """What became of n samples.

    `logits`: (n, classes) float32 of each exit; `sent`: (n,) bytes of tensors' data at each cut, 0 where it lies
    inside a tier; `results`: what the last segment of a model that does not classify makes, name: (n, *shape).
    """

    logits: tuple[NDArray[np.float32], ...]
    sent: tuple[NDArray[np.int64], ...]
    results: Arrays = field(default_factory=dict)


def run_chain(
    segments: Sequence[RunningSegment],
    crossings: Sequence[Sequence[TensorSpec]],
    inputs: Arrays,
    placement: Sequence[Tier],
    codec: str,
) -> Passage:
    """Run `inputs` (name: (n, *shape)) through all segments; `crossings[k]` crosses into segment k.

    A model that begins above the edge is sent its raw input, by the same codec; it is not in `sent`, because nothing is
    cut there. Raises `PermanentError` for an unknown codec.
    """
    parts = [_run_batch(segments, crossings, batch, placement, codec) for batch in _batches(inputs)]
    return Passage(
        tuple(np.concatenate(logits) for logits in zip(*(part.logits for part in parts), strict=True)),
        tuple(np.concatenate(sent) for sent in zip(*(part.sent for part in parts), strict=True)),
        _joined([part.results for part in parts]),
    )


def _run_batch(
    segments: Sequence[RunningSegment],
    crossings: Sequence[Sequence[TensorSpec]],
    inputs: Arrays,
    placement: Sequence[Tier],
    codec: str,
) -> Passage:
    tensors: Mapping[str, Array] = inputs
    if placement[0] != "edge":
        tensors = {spec.name: round_trip(inputs[spec.name], spec, codec) for spec in crossings[0]}
    n = len(next(iter(inputs.values())))
    logits, sent = [], []
    made: Arrays = {}
    for k, segment in enumerate(segments):
        if k > 0:
            tensors = {spec.name: made.get(spec.name, tensors.get(spec.name)) for spec in crossings[k]}
            size = np.zeros(n, np.int64)
            if placement[k] != placement[k - 1]:
                for spec in crossings[k]:
                    size += payload_sizes(tensors[spec.name], spec, codec)
                tensors = {spec.name: round_trip(tensors[spec.name], spec, codec) for spec in crossings[k]}
            sent.append(size)
        made = segment.run(tensors)
        if segment.spec.exit is not None:
            logits.append(made[segment.spec.exit.logits].astype(np.float32, copy=False))
    last = segments[-1].spec
    return Passage(tuple(logits), tuple(sent), {spec.name: made[spec.name] for spec in last.outputs})


def _batches(inputs: Arrays) -> Iterator[Arrays]:
    n = len(next(iter(inputs.values())))
    for i in range(0, n, BATCH):
        yield {name: array[i : i + BATCH] for name, array in inputs.items()}


def _joined(parts: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def with_scales(specs: Sequence[Segment], ranges: Mapping[str, tuple[float, float]]) -> list[Segment]:
    """The segments with scale and zero point of every float tensor between them.

    What int8 has given a scale keeps it, wherever it goes; the others get theirs from the tensor's (least, largest)
    value.
    """
    fixed = {tensor.name: tensor for spec in specs for tensor in spec.outputs if tensor.scale is not None}

    def scaled(tensor: TensorSpec) -> TensorSpec:
        if tensor.name in fixed or not tensor.is_float:
            return fixed.get(tensor.name, tensor)
        scale, zero_point = affine(*ranges[tensor.name])
        return tensor.model_copy(update={"scale": scale, "zero_point": zero_point})

    return [
        spec.model_copy(update={"inputs": tuple(map(scaled, spec.inputs)), "outputs": tuple(map(scaled, spec.outputs))})
        for spec in specs
    ]


def affine(least: float, largest: float) -> tuple[float, int]:
    """(scale, zero point) of int8 for values from `least` to `largest`, widened to hold 0 exactly.

    Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
    arXiv 1712.05877, section 2.1.
    """
    least, largest = min(least, 0.0), max(largest, 0.0)
    scale = float(np.float32((largest - least) / LEVELS)) or 1.0
    return scale, int(np.clip(round(-128 - least / scale), -128, 127))


def ranges_of(segments: Sequence[RunningSegment], inputs: Arrays) -> dict[str, tuple[float, float]]:
    """(least, largest) value of the inputs (name: (n, *shape)) and of everything that segments make, uncoded."""
    found: dict[str, tuple[float, float]] = {}
    for batch in _batches(inputs):
        tensors = dict(batch)
        for segment in segments:
            tensors |= segment.run(tensors)
        for name, array in tensors.items():
            least, largest = found.get(name, (np.inf, -np.inf))
            found[name] = min(least, float(array.min())), max(largest, float(array.max()))
    return found
