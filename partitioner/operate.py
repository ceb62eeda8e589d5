"""From what was decided to what is deployed: segments, and operating points whose promise was put to the test.

Each operating point is run as the tiers will run it, codec and all. Temperatures are fitted on one part of the samples,
the way through the thresholds is laid out on that and the plan's part, and a part of its own certifies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from partitioner import reference
from partitioner.anatomy.cut import check_size, cut, logits_model
from partitioner.anatomy.exits import Anatomy
from partitioner.planning.decide import DEFAULT, Decided
from partitioner.planning.plan import Choice, figures, hopeful_harm
from partitioner.planning.scene import LOSSLESS, Measured
from partitioner.promise.calibrate import confidences, expected, labels_of, temperature
from partitioner.promise.certify import Certified, as_certificate, certify, given_thresholds, harm_of
from partitioner.promise.parts import Parts
from partitioner.promise.thresholds import NEVER, exits_of, from_safe_start, greedy_path
from partitioner.samples import Arrays, Samples
from partitioner.segments.chain import Passage, ranges_of, run_chain, with_scales
from partitioner.segments.coarse import fit_coarse
from partitioner.segments.export import Exported, export, tensor_spec
from partitioner.settings import PartitionSettings
from sluice.stage.segment import RunningSegment
from sluice.wire.manifest import ExitPolicy, OperatingPoint, Segment, TensorSpec

NO_EXIT = "no-exit"
INT8_HINT = "; int8 is part of it: float16 and float32 segments harm less"
FITTED = 1000
"""Most samples that int8's ranges, the scales and the coarse codec are fitted to, none of those that certify."""
COMPARED = 256
"""Samples on which the results of a model that does not classify are compared."""

Progress = Callable[[str, int, int], None]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tested:
    """An operating point with what was seen of it: its `passage` on the certifying samples, and what the test said.

    `choice` has the thresholds and the expected figures of what is deployed.
    """

    point: OperatingPoint
    choice: Choice
    passage: Passage
    confidence: Sequence[NDArray[np.float64]]
    """(n,) of each exit, the final one last."""
    certified: Certified | None
    lossy: bool = False
    """Whether the samples that were planned on are harmed too much at the safest thresholds, and the codec does it."""


@dataclass(frozen=True, slots=True)
class Operated:
    """What goes into the bundle."""

    inputs: tuple[TensorSpec, ...]
    exported: Sequence[Exported]
    segments: Sequence[Segment]
    crossings: Sequence[Sequence[TensorSpec]]
    points: Sequence[Tested]
    warnings: tuple[str, ...]
    lossy: str | None
    """The default's codec, if the plan's own samples show more harm than was promised whatever the thresholds."""
    refused: str
    """Why the default could not be certified although that was hoped for."""


@dataclass(frozen=True, slots=True)
class _Chain:
    running: Sequence[RunningSegment]
    crossings: Sequence[Sequence[TensorSpec]]

    @property
    def exits_before(self) -> list[int]:
        """Of each cut: how many exits a sample has passed."""
        has = [segment.spec.exit is not None for segment in self.running]
        return [sum(has[:k]) for k in range(1, len(has))]


def operate(
    found: Anatomy,
    measured: Measured,
    decided: Decided,
    samples: Samples,
    wanted: Labels | None,
    parts: Parts,
    settings: PartitionSettings,
    progress: Progress,
) -> Operated:
    """Convert the segments and calibrate every operating point on them.

    `wanted`: (n,) the full model's labels of all `samples`; None where it does not classify. Raises `PermanentError`
    when more would cross than a message holds, or a segment does not compute what Keras does.
    """
    made = cut(found, decided.ends)
    placements = {name: decided.placement(choice) for name, choice in decided.choices.items()}
    for name, placement in placements.items():
        for k, piece in enumerate(made.pieces[:-1]):
            if placement[k] != placement[k + 1]:
                check_size(piece, decided.choices[name].codec)
    seen = parts.chooses
    fit = samples.rows(seen[np.unique(np.linspace(0, len(seen) - 1, FITTED).astype(int))]).inputs
    exported = export(made, logits_model(made), fit, settings.quantize, progress=progress)
    running = [one.segment for one in exported]
    segments = with_scales([one.spec for one in exported], ranges_of(running, fit))
    if any(choice.codec == "coarse" for choice in decided.choices.values()):
        segments = _with_coarse(segments, running, fit)
    scaled = {t.name: t for one in segments for t in (*one.inputs, *one.outputs)}
    crossings = [tuple(scaled.get(one.name, tensor_spec(one)) for one in made.inputs)]
    crossings += [tuple(scaled[one.name] for one in piece.crossing) for piece in made.pieces[:-1]]
    chain = _Chain(running, crossings)
    tested: list[Tested] = []
    warnings: list[str] = []
    for number, (name, choice) in enumerate(decided.choices.items()):
        progress(f"calibrating operating point {name}", number, len(decided.choices))
        if wanted is None:
            tested.append(_unclassified(chain, name, choice, placements[name], found, samples.rows(parts.certify)))
            continue
        tests = _tested(chain, measured, decided, name, placements[name], samples, wanted, parts, settings)
        tested += tests
        if tests[0].certified is not None and tests[0].certified.reason not in ("", decided.given_up):
            hint = INT8_HINT if settings.quantize == "int8" and tests[0].certified.thresholds is None else ""
            warnings.append(f"operating point {name}: {tests[0].certified.reason}{hint}")
    first = tested[0]
    certified = first.certified
    refused = certified.reason if certified and certified.thresholds is None and not decided.plan.no_promise else ""
    lossy = first.point.codec if first.lossy else None
    return Operated(crossings[0], exported, segments, crossings, tested, tuple(warnings), lossy, refused)


def _tested(
    chain: _Chain,
    measured: Measured,
    decided: Decided,
    name: str,
    placement: Sequence[Any],
    samples: Samples,
    wanted: Labels,
    parts: Parts,
    settings: PartitionSettings,
) -> list[Tested]:
    """The operating point `name` and, beside the default, the same without early exits."""
    choice, points = decided.choices[name], len(decided.choices)
    chooses, certifies = parts.chooses, parts.certify
    passages = [
        run_chain(chain.running, chain.crossings, samples.rows(part).inputs, placement, choice.codec)
        for part in (chooses, certifies)
    ]
    fits = np.isin(chooses, parts.temperature)
    truth = wanted if samples.y is None else samples.y
    temperatures = [temperature(logits[fits], truth[parts.temperature]) for logits in passages[0].logits]
    planning, certifying = (confidences(settings.measure, passage.logits, temperatures) for passage in passages)
    plan_harm, harm = (
        harm_of(
            settings.criterion,
            [labels_of(logits) for logits in passage.logits],
            wanted[part],
            None if samples.y is None else samples.y[part],
        )
        for passage, part in zip(passages, (chooses, certifies), strict=True)
    )
    groups = None if samples.groups is None else samples.groups[parts.certify]
    never = (NEVER,) * len(choice.exits)
    lossy = False
    if settings.thresholds is not None:
        thresholds = settings.thresholds
        certified = given_thresholds(thresholds, certifying[:-1], harm, groups=groups)
    elif decided.given_up:
        thresholds = never
        certified = replace(
            given_thresholds(never, certifying[:-1], harm, groups=groups), thresholds=None, reason=decided.given_up
        )
    else:
        path = greedy_path(planning[:-1], plan_harm, _costs(measured, choice, settings))
        path = from_safe_start(path, planning[:-1], plan_harm, settings.max_accuracy_loss)
        delta = round(1 - settings.confidence, 12) / points
        safest = exits_of(planning[:-1], path[0], len(chooses))
        most = hopeful_harm(settings.max_accuracy_loss, delta, len(parts.certify))
        if choice.codec not in LOSSLESS and _share(plan_harm, safest) > most >= 0:
            plain = run_chain(chain.running, chain.crossings, samples.rows(chooses).inputs, placement, LOSSLESS[0])
            y = None if samples.y is None else samples.y[chooses]
            without = harm_of(settings.criterion, list(map(labels_of, plain.logits)), wanted[chooses], y)
            lossy = _share(without, safest) <= most
        certified = certify(
            path,
            certifying[:-1],
            harm,
            epsilon=settings.max_accuracy_loss,
            delta=delta,
            groups=groups,
            promise=settings.promise,
            total=len(samples),
        )
        thresholds = never if certified.thresholds is None else certified.thresholds

    def one(point_id: str, levels: Sequence[float], verdict: Certified | None) -> Tested:
        policies = [
            ExitPolicy.model_validate({"measure": settings.measure, "threshold": level, "temperature": t})
            for level, t in zip((*levels, 0.0), temperatures, strict=True)
        ]
        exits = exits_of(certifying[:-1], levels, len(parts.certify))
        y = None if samples.y is None else samples.y[parts.certify]
        seen = expected(passages[1], exits, wanted[parts.certify], y, chain.exits_before)
        share = seen["exit_share"]
        planned = figures(measured.scene, replace(choice, thresholds=tuple(levels)), exit_share=share)
        seen |= {"latency_ms": planned.latency_ms, "bytes": planned.bytes, "device_us": planned.device_us}
        point = OperatingPoint(
            id=point_id,
            placement=tuple(placement),
            codec=choice.codec,
            policies=tuple(policies),
            certificate=as_certificate(
                verdict, settings.criterion, settings.max_accuracy_loss, settings.confidence, points
            )
            if verdict
            else None,
            expected=seen,
        )
        deployed = replace(choice, thresholds=tuple(levels), figures=planned)
        return Tested(point, deployed, passages[1], certifying, verdict, lossy)

    made = [one(name, thresholds, certified)]
    if name == DEFAULT and choice.exits:
        made.append(one(NO_EXIT, never, certified.at_the_start() if certified else None))
    return made


def _share(harm: Sequence[NDArray[np.bool_]], exits: NDArray[np.int64]) -> float:
    """Of the samples, those that are harmed where `exits` (n,) answer them; `harm`: (n,) of each exit."""
    return float(np.stack(harm)[exits, np.arange(len(exits))].mean())


def _costs(measured: Measured, choice: Choice, settings: PartitionSettings) -> list[float]:
    """What an answer at each exit costs by the objective, the final one last; by another where the exits do not differ
    in it (bytes, when everything runs on the device)."""
    early = range(len(choice.exits))
    found = [
        figures(measured.scene, replace(choice, thresholds=tuple(0.0 if k == other else NEVER for other in early)))
        for k in range(len(choice.exits) + 1)
    ]
    by_objective = {
        "latency": [one.latency_ms for one in found],
        "bytes": [one.bytes for one in found],
        "device-compute": [one.device_us for one in found],
    }
    costs = by_objective[settings.objective]
    return costs if max(costs) > min(costs) else by_objective["latency"]


def _unclassified(
    chain: _Chain, name: str, choice: Choice, placement: Sequence[Any], found: Anatomy, samples: Samples
) -> Tested:
    """The operating point of a model that does not classify: how far its results are from the full model's."""
    few = samples.rows(np.arange(min(len(samples), COMPARED)))
    passage = run_chain(chain.running, chain.crossings, few.inputs, placement, choice.codec)
    full = reference.results(found, few.inputs)
    off = [_relative(made, wanted) for made, wanted in zip(passage.results.values(), full.values(), strict=True)]
    sent = [float(size.mean()) for size in passage.sent]
    planned = choice.figures
    point = OperatingPoint(
        id=name,
        placement=tuple(placement),
        codec=choice.codec,
        policies=(),
        expected={
            "relative_error": max(off),
            "crossing_bytes": sent,
            "latency_ms": planned.latency_ms,
            "bytes": planned.bytes,
            "device_us": planned.device_us,
        },
    )
    return Tested(point, choice, passage, (), None)


def _relative(made: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Root mean square of the difference over that of the wanted values."""
    difference = made.astype(np.float64) - wanted.astype(np.float64)
    scale = float(np.sqrt(np.mean(np.square(wanted, dtype=np.float64))))
    return float(np.sqrt(np.mean(np.square(difference)))) / max(scale, 1e-12)


def _with_coarse(segments: Sequence[Segment], running: Sequence[RunningSegment], inputs: Arrays) -> list[Segment]:
    """The segments with the coarse codec fitted to every float tensor between them."""
    tensors = dict(inputs)
    fitted: dict[str, TensorSpec] = {}
    for segment, live in zip(segments, running, strict=True):
        for spec in segment.inputs:
            if spec.is_float and spec.name not in fitted:
                fitted[spec.name] = fit_coarse(tensors[spec.name], spec)
        tensors |= live.run(tensors)
    return [
        segment.model_copy(
            update={
                side: tuple(fitted.get(spec.name, spec) for spec in getattr(segment, side))
                for side in ("inputs", "outputs")
            }
        )
        for segment in segments
    ]
