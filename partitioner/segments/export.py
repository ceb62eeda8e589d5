"""Each piece of a cut model as a TFLite file, checked against Keras before it may be used.

Segments read what the earlier *converted* segments make: under int8 the ranges of a segment come from tensors with the
losses that it will meet. What crosses and the logits are float32 whatever the arithmetic inside. The int8 scale of a
crossing tensor is the one that its segment's file gives it, so codec int8 loses nothing that is not already lost, and
the next segment's file requantises by itself.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import keras
import numpy as np
from numpy.typing import NDArray

from partitioner.anatomy.cut import LOGITS, Cut, Piece, piece_model
from partitioner.anatomy.splits import Crossing
from partitioner.quiet import held
from partitioner.segments.convert import convert
from partitioner.segments.tflite import File
from sluice.stage.segment import RunningSegment, load_segment
from sluice.wire import bundle
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Blob, ExitHead, Quantize, Segment, TensorSpec

Array = NDArray[np.generic]
Arrays = dict[str, Array]
Progress = Callable[[str, int, int], None]

TOLERANCE: Mapping[Quantize, float] = {"float32": 1e-4, "float16": 2e-2}
"""Largest difference of a segment from Keras, relative to the largest value where that is over 1. float16 keeps 11 bits
of each weight, so each is off by 5e-4 at worst; deep segments make up to 20 times that of it."""
INT8_ERROR = 0.3
"""Largest root mean square of an int8 segment's differences from Keras, over that of Keras' values. 8 bits lose 0.01 to
0.1; what was converted wrongly is off by 1 and more."""
INT8_AGREEMENT = 0.9
"""Least share of answers of an int8 exit like Keras', among the half of the samples where Keras' two best logits are
farthest apart: near ties say nothing about a conversion, and what they cost the certificate sees."""
INT8_BATCH = 0.05
"""Largest difference between batch sizes under int8, as for `TOLERANCE`: kernels may round in different ways."""
CHAIN_TOLERANCE: Mapping[Quantize, float] = {"float32": 1e-3, "float16": 1e-1, "int8": 0.5}
"""The chain of segments may differ so much from the full model: each makes more of the differences of those before."""
WAY_OUT = "use float16, or calibration samples like those of use"
BATCHES = (1, 2, 8, 32)
"""Batch sizes that every segment is tried with."""
COMPARED = 64
"""Samples on which segments are compared with Keras."""
CALIBRATED = 300
"""Samples that int8 takes its ranges from."""
TIMED = 30
"""Runs of one sample whose median is a segment's `reference_us`."""
_NO_BLOB = Blob(sha256="0" * 64, size=1)


@dataclass(frozen=True, slots=True)
class Exported:
    """A converted piece: its TFLite file, loaded, and what the manifest says of it.

    `spec` has no golden blob yet, and scales only where int8 fixes them; `chain.with_scales` gives the others.
    """

    content: bytes
    spec: Segment
    segment: RunningSegment


def export(
    cut: Cut,
    full: keras.Model,
    samples: Mapping[str, Array],
    quantize: Quantize = "float32",
    progress: Progress | None = None,
    *,
    compared: bool = True,
) -> list[Exported]:
    """All segments of `cut`, each compared with its Keras piece, and their chain with `full` (`cut.logits_model`).

    Not `compared`: pieces that are only to be measured, not deployed.

    `samples` are the model's inputs as they cross, name: (n, *shape); some of them are compared, and int8 takes its
    ranges from them. Raises `PermanentError` naming the segment when a piece does not convert or does not compute the
    same.
    """
    tensors = _chosen(samples, CALIBRATED if quantize == "int8" else COMPARED)
    wanted = _outputs(full, [tensors[crossing.name][:COMPARED] for crossing in cut.inputs])
    done: list[Exported] = []
    known = {crossing.name: tensor_spec(crossing) for crossing in cut.inputs}
    for index, piece in enumerate(cut.pieces):
        if progress is not None:
            progress(f"converting segment {piece.name}", index, len(cut.pieces))
        exported, made = _export(index, piece, piece_model(cut, piece), tensors, known, quantize, compared)
        known |= {tensor.name: tensor for tensor in exported.spec.outputs}
        tensors = {crossing.name: (tensors | made)[crossing.name] for crossing in piece.crossing}
        done.append(exported)
        results = {LOGITS: f"{LOGITS}{index}"} if piece.exit else {}
        if index == len(cut.pieces) - 1:
            results |= {crossing.name: crossing.name for crossing in piece.outputs}
        for name, whole in results.items() if compared else ():
            what = f"the chain of segments up to {piece.name!r}"
            allowed = CHAIN_TOLERANCE[quantize]
            _check(what, name, made[name][:COMPARED], wanted[whole], quantize, allowed, name == LOGITS)
    return done


def _chosen(samples: Mapping[str, Array], most: int) -> Arrays:
    """At most so many of the samples, from everywhere among them: they may be sorted by class."""
    n = len(next(iter(samples.values())))
    rows = np.random.default_rng(0).permutation(n)[:most]
    return {name: array[rows] for name, array in samples.items()}


@held()
def _export(
    index: int,
    piece: Piece,
    model: keras.Model,
    tensors: Arrays,
    known: Mapping[str, TensorSpec],
    quantize: Quantize,
    compared: bool,
) -> tuple[Exported, Arrays]:
    """The segment, and what it makes of all samples."""
    answers = {LOGITS} if piece.exit else () if piece.crossing else [crossing.name for crossing in piece.outputs]
    content = convert(model, f"segment {index} ({piece.name})", quantize, tensors, answers)
    spec = _spec(index, piece, content, known, quantize)
    inputs = {tensor.name: tensors[tensor.name] for tensor in spec.inputs}
    if compared:
        _compare(load_segment(content, spec), model, inputs)
    segment = load_segment(content, spec)  # without the memory of the batches that were tried
    made = run_all(segment, inputs)
    return Exported(content, spec.model_copy(update={"reference_us": time_us(segment, inputs)}), segment), made


def tensor_spec(crossing: Crossing) -> TensorSpec:
    """The manifest's view of a crossing tensor, without a scale."""
    return TensorSpec(name=crossing.name, dtype=crossing.dtype, shape=crossing.shape)


def _spec(index: int, piece: Piece, content: bytes, known: Mapping[str, TensorSpec], quantize: Quantize) -> Segment:
    return Segment(
        index=index,
        name=piece.name[:200],
        quantize=quantize,
        file=Blob(sha256=bundle.sha256(content), size=len(content)),
        inputs=tuple(known[crossing.name] for crossing in piece.inputs),
        outputs=_output_specs(piece, content),
        passes=piece.passes,
        exit=ExitHead(name=piece.exit, logits=LOGITS) if piece.exit else None,
        macs=piece.macs,
        golden=_NO_BLOB,
        tolerance=1.0,
    )


def _output_specs(piece: Piece, content: bytes) -> tuple[TensorSpec, ...]:
    file = File(content)
    specs = []
    for crossing in piece.outputs:
        spec = tensor_spec(crossing)
        if found := file.scale(file.outputs[crossing.name]):
            spec = spec.model_copy(update=dict(zip(("scale", "zero_point"), found, strict=True)))
        specs.append(spec)
    return tuple(specs)


def _compare(segment: RunningSegment, model: keras.Model, inputs: Arrays) -> None:
    """Compare with Keras, and each batch size with all samples at once: a shape may have been baked in."""
    spec = segment.spec
    inputs = {name: array[:COMPARED] for name, array in inputs.items()}
    n = len(next(iter(inputs.values())))
    what = f"segment {spec.index} ({spec.name})"
    whole = _run(what, segment, inputs)
    allowed = TOLERANCE.get(spec.quantize, INT8_ERROR)
    for name, value in _outputs(model, [inputs[tensor.name] for tensor in spec.inputs]).items():
        _check(what, name, whole[name], value, spec.quantize, allowed, name in spec.logits)
    for batch in BATCHES:
        rows = np.arange(batch) % n
        made = _run(what, segment, {name: array[rows] for name, array in inputs.items()})
        for name, value in made.items():
            off = difference(value, whole[name][rows])
            if not off <= TOLERANCE.get(spec.quantize, INT8_BATCH):
                raise PermanentError(f"{what}: {name!r} at batch {batch} is off by {off:.3g} from batch {n}")


def _run(what: str, segment: RunningSegment, inputs: Arrays) -> Arrays:
    try:
        return segment.run(inputs)
    except (RuntimeError, ValueError) as error:
        n = len(next(iter(inputs.values())))
        raise PermanentError(f"{what} does not run at batch {n}: {' '.join(str(error).split())[:200]}") from error


def _check(what: str, name: str, made: Array, wanted: Array, quantize: Quantize, allowed: float, logits: bool) -> None:
    """`PermanentError` unless `made` (n, *shape) is what Keras `wanted`, as far as `quantize` lets it."""
    if quantize != "int8":
        if not (off := difference(made, wanted)) <= allowed:
            way_out = ": use float32" if quantize == "float16" else ""
            raise PermanentError(f"{what}: {name!r} is off by {off:.3g} from Keras, {allowed:g} is allowed{way_out}")
        return
    if not (off := mean_error(made, wanted)) <= allowed:
        raise PermanentError(f"{what}: int8 makes {name!r} wrong by {off:.0%}, {allowed:.0%} is allowed: {WAY_OUT}")
    if logits and not (same := agreement(made, wanted)) >= INT8_AGREEMENT:
        raise PermanentError(
            f"{what}: int8 answers like Keras on {same:.0%} of the clear samples, {INT8_AGREEMENT:.0%} is needed: "
            f"{WAY_OUT}"
        )


def difference(made: Array, wanted: Array) -> float:
    """Largest difference, relative to the largest wanted value where that is over 1; NaN counts as infinite."""
    if made.shape != wanted.shape:
        return math.inf
    a, b = made.astype(np.float64), wanted.astype(np.float64)
    off = float(np.max(np.abs(a - b), initial=0.0)) / max(1.0, float(np.max(np.abs(b), initial=0.0)))
    return off if math.isfinite(off) else math.inf


def mean_error(made: Array, wanted: Array) -> float:
    """Root mean square of the differences over that of the wanted values; NaN counts as infinite."""
    if made.shape != wanted.shape:
        return math.inf
    a, b = made.astype(np.float64), wanted.astype(np.float64)
    off = math.sqrt(np.mean((a - b) ** 2)) / max(math.sqrt(np.mean(b**2)), 1e-9)
    return off if math.isfinite(off) else math.inf


def agreement(made: Array, wanted: Array) -> float:
    """Share of equal answers among the half of the samples whose two best `wanted` logits are farthest apart."""
    best = np.sort(wanted.astype(np.float64), axis=1)
    margin = best[:, -1] - best[:, -2]
    clear = margin >= np.median(margin)
    return float((made.argmax(axis=1) == wanted.argmax(axis=1))[clear].mean())


def run_all(segment: RunningSegment, inputs: Arrays) -> Arrays:
    """What the segment makes of all samples, `COMPARED` at a time."""
    n = len(next(iter(inputs.values())))
    parts = [segment.run({name: a[i : i + COMPARED] for name, a in inputs.items()}) for i in range(0, n, COMPARED)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def time_us(segment: RunningSegment, inputs: Arrays, runs: int = TIMED) -> float:
    """Median time of one sample, µs; the first run, which makes the interpreter, is not counted."""
    one = {name: array[:1] for name, array in inputs.items()}
    taken = []
    for _ in range(runs + 1):
        begun = time.perf_counter_ns()
        segment.run(one)
        taken.append((time.perf_counter_ns() - begun) / 1000)
    return statistics.median(taken[1:])


def _outputs(model: keras.Model, inputs: list[Array]) -> Arrays:
    return {name: np.asarray(value) for name, value in model(inputs, training=False).items()}
