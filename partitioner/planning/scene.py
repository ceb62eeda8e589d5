"""Everything that the plan chooses from, measured: the model cut as finely as a tier might end, and run.

The trunk is cut at every candidate point and each early exit is a segment of its own, so that what they take can be
timed apart. A chain of so many segments takes a little longer than the few that will be made of it; the times of the
trunk are scaled to the whole trunk in one file. Bytes and the loss of each codec come from the tensors that really
cross, decoded again and run to the end.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from partitioner.anatomy.cut import Cut, End, cut, logits_model
from partitioner.anatomy.exits import Anatomy
from partitioner.anatomy.splits import SplitPoint, find_split
from partitioner.planning.handling import measure_handling, without_cuts
from partitioner.planning.link import parse_link
from partitioner.planning.plan import EarlyExit, Point, Scene
from partitioner.promise.calibrate import confidences, labels_of, temperature
from partitioner.promise.certify import harm_of
from partitioner.samples import Arrays, Samples
from partitioner.segments.chain import ranges_of, with_scales
from partitioner.segments.coarse import fit_coarse
from partitioner.segments.export import Exported, export, tensor_spec
from partitioner.settings import AUTO, PartitionSettings
from sluice.stage.segment import RunningSegment
from sluice.wire.codec import CODECS, decode_tensor, encode_tensor, round_trip
from sluice.wire.manifest import TensorSpec
from sluice.wire.messages import MAX_MESSAGE_BYTES
from sluice.wire.names import Tier
from sluice.wire.profile import Profile

LOSSLESS = ("raw", "zstd")
FAITHFUL = (*LOSSLESS, "float16", "float16-zstd")
"""Codecs whose loss is taken as none; the final calibration sees what there is."""
HEADER_BYTES = 250
"""Of an `Offload` without tensors' data: Avro, names, beliefs, MQTT topic."""
ANSWER_BYTES = 190
"""Of a `Prediction` of ten classes, with its topic."""
SIZED = 64
"""Samples whose encoded size is averaged."""
LOSS_SAMPLES = (32, 2000)
"""Least and most samples that are decoded and run to the end, within `LOSS_SECONDS`."""
LOSS_SECONDS = 40.0
PROVEN = 0.9
MOST_POINTS = 40
END = "end"
"""Name of the point where nothing is left to do."""
BATCH = 64
TIMED_SECONDS = 0.15
TIMED_RUNS = (5, 200)

Labels = NDArray[np.int64]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Measured:
    """The `scene`, the split point of each of its points but the last, and what the segments were measured with."""

    scene: Scene
    points: tuple[SplitPoint, ...]
    specs: Mapping[str, Sequence[TensorSpec]]
    """What crosses at each point, by its name."""


@dataclass(frozen=True, slots=True)
class _Fine:
    """The finely cut model: `trunk[i]` leads from point i to the next, `heads[k]` hangs at `at[k]`."""

    cut: Cut
    exported: Sequence[Exported]
    trunk: Sequence[int]
    heads: Sequence[int]
    at: Sequence[int]


def measure(
    anatomy: Anatomy,
    points: Sequence[SplitPoint],
    fit: Samples,
    fit_wanted: Labels | None,
    plan: Samples,
    plan_wanted: Labels | None,
    settings: PartitionSettings,
    progress: Progress,
) -> Measured:
    """Cut at `points` (in order, the first the raw input), time and run everything.

    `fit`: samples for ranges, dictionaries and temperatures; `plan`: samples that are looked at to choose; `…_wanted`:
    the full model's answers to them, None where it does not classify.
    """
    fine = _cut_finely(anatomy, points, fit, settings, progress)
    running = [one.segment for one in fine.exported]
    ranges = ranges_of(running, fit.inputs)
    scaled = {
        t.name: t for one in with_scales([e.spec for e in fine.exported], ranges) for t in (*one.outputs, *one.inputs)
    }
    crossings = [fine.cut.inputs, *(fine.cut.pieces[i].crossing for i in fine.trunk[:-1])]
    progress("looking at what would cross", 0, len(points))
    n_loss = _samples_for_loss(running, plan, len(points))
    tensors = _all_tensors(running, plan.rows(np.arange(min(len(plan), n_loss))).inputs)
    coarse_wanted = settings.codec in (AUTO, "coarse") and plan_wanted is not None
    specs: dict[str, tuple[TensorSpec, ...]] = {}
    fitting = _all_tensors(running, fit.inputs) if coarse_wanted else {}
    for point, crossing in zip(points, crossings, strict=True):
        found = [scaled.get(one.name, tensor_spec(one)) for one in crossing]
        specs[point.name] = tuple(
            fit_coarse(fitting[one.name], one) if coarse_wanted and one.is_float and one.coarse is None else one
            for one in found
        )
    us = [time_us(segment, tensors) for segment in running]
    whole = _whole_trunk_us(anatomy, fit, tensors, settings)
    crossed = np.array([sum(spec.nbytes for spec in specs[point.name]) for point in points[1:]], np.float64)
    trunk, cuts = without_cuts(np.array([us[i] for i in fine.trunk]), whole, crossed)

    made = []
    for index, point in enumerate(points):
        progress("looking at what would cross", index, len(points))
        tail = [running[i] for i in fine.trunk[index:]]
        codecs = codecs_of(settings, plan_wanted is not None)
        made.append(_point(point.name, specs[point.name], tensors, tail, codecs, cuts[index - 1] if index else 0.0))
    end = Point(
        END,
        dict.fromkeys(CODECS, 0.0),
        dict.fromkeys(CODECS, 0.0),
        dict.fromkeys(CODECS, 0.0),
        dict.fromkeys(CODECS, 0.0),
    )

    confidence, harm = _seen(fine, running, fit, plan, fit_wanted, plan_wanted, settings)
    heaviest = running[int(np.argmax(us))]
    row = {spec.name: tensors[spec.name][:1] for spec in heaviest.spec.inputs}
    speed = edge_speed(settings.device)
    scale: dict[Tier, float] = {"edge": speed, "fog": 1.0, "cloud": 1.0}
    exits = tuple(
        EarlyExit(
            anatomy.exits[k].name,
            fine.at[k],
            {tier: us[i] * factor for tier, factor in scale.items()},
            fine.cut.pieces[i].macs,
        )
        for k, i in enumerate(fine.heads)
    )
    scene = Scene(
        points=(*made, end),
        trunk_us={tier: trunk * factor for tier, factor in scale.items()},
        trunk_macs=np.array([fine.cut.pieces[i].macs for i in fine.trunk]),
        exits=exits,
        confidence=confidence,
        harm=harm,
        uplink=parse_link(settings.uplink),
        backhaul=parse_link(settings.backhaul),
        header_bytes=HEADER_BYTES,
        answer_bytes=ANSWER_BYTES,
        results_sent=settings.results_sent,
        codec_scale={"edge": speed},
        handling=measure_handling(anatomy.classes, lambda: heaviest.run(row)),
    )
    return Measured(scene, tuple(points), specs)


def candidate_points(anatomy: Anatomy, every: Sequence[SplitPoint], settings: PartitionSettings) -> list[SplitPoint]:
    """Where a tier may end: the raw input, block ends, where early exits hang, what the user named.

    Of more than `MOST_POINTS` block ends those are taken that the fewest bytes cross. Raises `PermanentError` for a
    name that is none of `every`.
    """
    named = () if isinstance(settings.split, str) else settings.split
    at = {anatomy.position(k) for k in range(len(anatomy.exits) - 1)} | {0}
    at |= {find_split(every, name).position for name in named}
    ends = sorted((point for point in every if point.block_end), key=lambda point: point.nbytes("int8"))
    at |= {point.position for point in ends[:MOST_POINTS]}
    return [point for point in every if point.position in at]


def _cut_finely(
    anatomy: Anatomy, points: Sequence[SplitPoint], fit: Samples, settings: PartitionSettings, progress: Progress
) -> _Fine:
    """Cut and convert; at each position first the trunk ends, then each exit that hangs there."""
    early = range(max(0, len(anatomy.exits) - 1))
    ends, heads, trunk, at = [], [], [], []
    for index, point in enumerate(points):
        if index > 0:
            trunk.append(len(ends))
            ends.append(End(position=point.position, exit=None, name=point.name))
        for k in early:
            if anatomy.position(k) == point.position:
                heads.append(len(ends))
                at.append(index)
                ends.append(End(position=point.position, exit=k, name=anatomy.exits[k].name))
    trunk.append(len(ends))
    last = len(anatomy.exits) - 1 if anatomy.exits else None
    ends.append(End(position=len(anatomy.trunk), exit=last, name=END))
    fine = cut(anatomy, ends)
    compared = settings.quantize != "int8"  # a cut at which int8 does badly is not taken, not the model refused
    exported = export(fine, logits_model(fine), fit.inputs, settings.quantize, progress=progress, compared=compared)
    return _Fine(fine, exported, trunk, heads, at)


def _whole_trunk_us(anatomy: Anatomy, fit: Samples, tensors: Arrays, settings: PartitionSettings) -> float:
    last = len(anatomy.exits) - 1 if anatomy.exits else None
    whole = cut(anatomy, [End(position=len(anatomy.trunk), exit=last, name=END)])
    (only,) = export(whole, logits_model(whole), fit.inputs, settings.quantize, compared=False)
    return time_us(only.segment, tensors)


def time_us(segment: RunningSegment, tensors: Arrays) -> float:
    """Median time of one sample, µs: the thread's own, so that it does not matter who else is at work."""
    names = [spec.name for spec in segment.spec.inputs]
    n = len(tensors[names[0]])
    rows = [{name: tensors[name][i : i + 1] for name in names} for i in range(min(n, 16))]
    for row in rows[:3]:
        segment.run(row)
    taken: list[float] = []
    begun = time.perf_counter()
    while len(taken) < TIMED_RUNS[0] or (len(taken) < TIMED_RUNS[1] and time.perf_counter() - begun < TIMED_SECONDS):
        row = rows[len(taken) % len(rows)]
        start = time.thread_time_ns()
        segment.run(row)
        taken.append((time.thread_time_ns() - start) / 1000)
    return statistics.median(taken)


def _samples_for_loss(running: Sequence[RunningSegment], plan: Samples, points: int) -> int:
    first = {name: array[:1] for name, array in plan.inputs.items()}
    _all_tensors(running, first)
    begun = time.perf_counter()
    _all_tensors(running, first)
    each = (time.perf_counter() - begun) / 2
    return int(np.clip(LOSS_SECONDS / max(each * points * 2, 1e-9), *LOSS_SAMPLES))


def _all_tensors(running: Sequence[RunningSegment], inputs: Arrays) -> Arrays:
    """Every tensor that crosses anywhere, and the results of the last segment, for all samples."""
    n = len(next(iter(inputs.values())))
    parts: dict[str, list[NDArray[np.generic]]] = {}
    for i in range(0, n, BATCH):
        tensors = {name: array[i : i + BATCH] for name, array in inputs.items()}
        for segment in running:
            tensors |= segment.run(tensors)
        for name, array in tensors.items():
            parts.setdefault(name, []).append(array)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def codecs_of(settings: PartitionSettings, classifies: bool) -> list[str]:
    """Those that the plan may use: what loses is not chosen unasked where nobody could say how much it harms."""
    if settings.codec != AUTO:
        return [settings.codec]
    return list(CODECS) if classifies else list(FAITHFUL)


def _point(
    name: str,
    specs: Sequence[TensorSpec],
    tensors: Arrays,
    tail: Sequence[RunningSegment],
    codecs: Iterable[str],
    cut_us: float,
) -> Point:
    """What crossing here costs by codec, the cut itself included; one that does not fit into a message is left out."""
    size: dict[str, float] = {}
    loss: dict[str, float | NDArray[np.bool_]] = {}
    packing: dict[str, float] = {}
    unpacking: dict[str, float] = {}
    uncoded = _results(tail, {spec.name: tensors[spec.name] for spec in specs})
    losses: dict[str, float | NDArray[np.bool_]] = {}
    for codec in codecs:
        if codec == "coarse" and not any(spec.coarse for spec in specs):
            continue
        sizes, packed_us, unpacked_us = _coded(specs, tensors, codec)
        if max(sizes) > MAX_MESSAGE_BYTES - 2_000:
            continue
        size[codec] = statistics.fmean(sizes)
        packing[codec], unpacking[codec] = packed_us + cut_us / 2, unpacked_us + cut_us / 2
        kind = codec.removesuffix("-zstd")
        if kind not in losses:
            losses[kind] = 0.0
            if codec not in FAITHFUL:
                coded = {s.name: round_trip(tensors[s.name], s, codec) for s in specs}
                if any(not np.array_equal(coded[s.name], tensors[s.name]) for s in specs):
                    losses[kind] = _taken_as(codec, _results(tail, coded) != uncoded)
        loss[codec] = losses[kind]
    return Point(name, size, loss, packing, unpacking)


def _taken_as(codec: str, changed: NDArray[np.bool_]) -> float:
    """The share of answers that the plan takes a codec to change, of which `changed` (n,) tells some samples.

    Of many points and codecs the plan picks one that looks harmless, and among so many some only look so: a codec that
    loses on purpose has to show that it does not lose too much (Clopper and Pearson's bound, at `PROVEN`), int8 that it
    is as likely as not (the bound's median).
    """
    sure = PROVEN if codec == "coarse" else 0.5
    count = int(changed.sum())
    return float(beta.ppf(sure, count + 1, len(changed) - count)) if count < len(changed) else 1.0


def _coded(specs: Sequence[TensorSpec], tensors: Arrays, codec: str) -> tuple[list[int], float, float]:
    """(bytes of each sample, median µs to encode, median µs to decode) of all tensors of a sample together."""
    sizes, packed, unpacked = [], [], []
    for row in range(min(SIZED, len(next(iter(tensors.values()))))):
        begun = time.thread_time_ns()
        made = [encode_tensor(tensors[spec.name][row], spec, codec) for spec in specs]
        between = time.thread_time_ns()
        for one, spec in zip(made, specs, strict=True):
            decode_tensor(one, spec)
        unpacked.append((time.thread_time_ns() - between) / 1000)
        packed.append((between - begun) / 1000)
        sizes.append(sum(len(one.data) for one in made))
    return sizes, statistics.median(packed), statistics.median(unpacked)


def _results(tail: Sequence[RunningSegment], crossing: Arrays) -> Labels:
    """The labels (n,) of the final exit; zeros where the model does not classify."""
    n = len(next(iter(crossing.values())))
    labels = []
    for i in range(0, n, BATCH):
        tensors = {name: array[i : i + BATCH] for name, array in crossing.items()}
        for segment in tail:
            tensors |= segment.run(tensors)
        exit_head = tail[-1].spec.exit
        size = min(BATCH, n - i)
        labels.append(labels_of(tensors[exit_head.logits]) if exit_head else np.zeros(size, np.int64))
    return np.concatenate(labels)


def _seen(
    fine: _Fine,
    running: Sequence[RunningSegment],
    fit: Samples,
    plan: Samples,
    fit_wanted: Labels | None,
    plan_wanted: Labels | None,
    settings: PartitionSettings,
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.bool_]]]:
    """Confidence of each early exit and harm of every exit on the plan's samples."""
    if plan_wanted is None or fit_wanted is None:
        return [], [np.zeros(len(plan), bool)]
    order = [*fine.heads, fine.trunk[-1]]
    fitted, seen = (exit_logits(running, order, part.inputs) for part in (fit, plan))
    truth = fit_wanted if fit.y is None else fit.y
    temperatures = [temperature(logits, truth) for logits in fitted]
    labels = [labels_of(logits) for logits in seen]
    return confidences(settings.measure, seen, temperatures)[:-1], harm_of(
        settings.criterion, labels, plan_wanted, plan.y
    )


def exit_logits(running: Sequence[RunningSegment], order: Sequence[int], inputs: Arrays) -> list[NDArray[np.float32]]:
    """Logits (n, classes) of the segments `order`, uncoded."""
    n = len(next(iter(inputs.values())))
    parts: list[list[NDArray[np.float32]]] = [[] for _ in order]
    for i in range(0, n, BATCH):
        tensors = {name: array[i : i + BATCH] for name, array in inputs.items()}
        for index, segment in enumerate(running):
            made = segment.run(tensors)
            if index in order:
                assert segment.spec.exit is not None
                parts[order.index(index)].append(made[segment.spec.exit.logits].astype(np.float32, copy=False))
            tensors |= made
    return [np.concatenate(part) for part in parts]


def edge_speed(device: Profile | None) -> float:
    """How many times longer the device takes than this machine: the geometric mean over its profile's segments."""
    if device is None:
        return 1.0
    ratios = [one.us["1"] / one.reference_us for one in device.segments if one.reference_us and "1" in one.us]
    return math.exp(statistics.fmean(math.log(ratio) for ratio in ratios)) if ratios else 1.0
