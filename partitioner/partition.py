"""From a model and held-out samples to a bundle and a report: the whole of partitioning on one page.

Exits (the model's own, or new ones, trained) -> everything that a plan may choose from, measured -> the plan -> TFLite
segments, checked -> temperatures, thresholds, certificates -> bundle and report. The samples are split once: what
trains exits, fits temperatures, plans, and certifies are four parts that share nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from partitioner import reference
from partitioner.anatomy.exits import Anatomy, anatomy
from partitioner.anatomy.models import in_float32
from partitioner.anatomy.splits import split_points
from partitioner.early.equip import equip
from partitioner.early.heads import HEADS
from partitioner.operate import operate
from partitioner.pack import check_place, pack
from partitioner.planning.decide import decide, settle
from partitioner.planning.plan import Scene
from partitioner.planning.scene import candidate_points, measure
from partitioner.report import findings, page
from partitioner.samples import Array, Samples, fitting
from partitioner.settings import AUTO, PartitionSettings
from sluice.wire.errors import PermanentError
from sluice.wire.names import check_name

Progress = Callable[[str, int, int], None]
"""Called with what is being done, steps done, steps in all."""


@dataclass(frozen=True, slots=True)
class Source:
    """What the bundle says of its model: name, version, labels (None: the numbers of the classes), provenance."""

    model: str
    version: int = 1
    labels: Sequence[str] | None = None
    training: str | None = None
    slices: Sequence[str] = field(default_factory=tuple)


def partition(
    model: keras.Model,
    arrays: Mapping[str, Array],
    folder: Path,
    source: Source,
    settings: PartitionSettings | None = None,
    *,
    train: Mapping[str, Array] | None = None,
    sign: Callable[[bytes], str] | None = None,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Cut `model` where it pays, certify its exits on `arrays`, write bundle, report.json and report.html to `folder`.

    `arrays`, none of it trained on: `x` (n, *shape) or one array for each input under its name; maybe `y` (n,) labels
    and `groups` (n,) whom each sample is of. `train`: the same for training attached exits; part of `arrays` if None.
    `sign` makes the signature (base64) of the manifest's bytes. Returns `digest`, `verdict`, `summary`, `warnings`.
    Raises `PermanentError` when the model cannot be cut or the data do not fit it; nothing is left in `folder` then.
    """
    settings = settings or PartitionSettings()
    check_name("model", source.model)
    check_place(folder)
    progress("looking at the model", 0, 1)
    model = in_float32(model)
    given = anatomy(model, None if settings.task == "auto" else settings.task)
    samples = _samples(given, arrays)
    labels = _labels(source.labels, given)
    _check_promise(samples, settings)
    wanted = reference.answers(given, samples, progress)
    equipped = equip(model, given, samples, settings, _samples(given, train) if train else None, progress)
    found, parts, warnings = equipped.anatomy, equipped.parts, list(equipped.warnings)

    def of(rows: Any) -> tuple[Samples, Any]:
        return samples.rows(rows), None if wanted is None else wanted[rows]

    every = split_points(found)
    points = candidate_points(found, every, settings)
    settle(found, points, settings)  # what does not fit is said before anything is measured
    shuffled = np.random.default_rng(settings.seed).permutation(parts.plan)  # samples may come sorted
    measured = measure(found, points, *of(parts.temperature), *of(shuffled), settings, progress)
    warnings += _foreign(measured.scene, settings)
    groups = None if samples.groups is None else len(np.unique(samples.groups[parts.certify]))
    without: frozenset[str] = frozenset()
    given_up = ""
    while True:
        decided = decide(found, measured, parts, equipped.compulsory, settings, groups, without, given_up)
        operated = operate(found, measured, decided, samples, wanted, parts, settings, progress)
        if operated.lossy is not None and settings.codec == AUTO:
            without |= {operated.lossy}
            warnings.append(
                f"codec {operated.lossy} loses more here than its samples foretold: planned again without it"
            )
        elif operated.refused and not given_up:
            given_up = f"{operated.refused}: planned again without early exits"
        else:
            break
    warnings += [*decided.warnings, *operated.warnings]
    told = findings.gather(
        source, found, every, measured, decided, operated, samples, wanted, parts, settings, warnings
    )
    progress("packing", 0, 1)
    digest = pack(
        folder,
        model=source.model,
        model_version=source.version,
        task=found.task,
        labels=labels,
        inputs=operated.inputs,
        exported=operated.exported,
        segments=operated.segments,
        points=[one.point for one in operated.points],
        golden=samples.rows(np.arange(min(len(samples), 64))).inputs,
        training=source.training,
        slices=source.slices,
        sign=sign,
        warn=warnings.append,
        extras=lambda digest: page.files({**told, "digest": digest, "warnings": warnings}),
    )
    return {
        "digest": digest,
        "verdict": told["verdict"],
        "warnings": warnings,
        "summary": findings.summary(operated),
    }


def _check_promise(samples: Samples, settings: PartitionSettings) -> None:
    """Raise `PermanentError` where the samples lack what the promise is about."""
    if settings.promise == "groups" and samples.groups is None:
        raise PermanentError("a promise for new groups needs groups: say of which each sample is")
    if settings.head not in (AUTO, *HEADS):
        raise PermanentError(f"exit head {settings.head[:40]!r} is unknown; known: {', '.join((AUTO, *HEADS))}")
    if settings.criterion == "accuracy" and samples.y is None:
        raise PermanentError("criterion 'accuracy' needs true labels: give y, or promise agreement with the full model")


def _foreign(scene: Scene, settings: PartitionSettings) -> list[str]:
    """A warning where the device's profile is of another model, going by its multiplications."""
    if settings.device is None:
        return []
    profiled = sum(one.macs for one in settings.device.segments)
    own = int(scene.trunk_macs.sum()) + sum(one.macs for one in scene.exits)
    if own / 1.5 <= profiled <= own * 1.5:
        return []
    return [
        f"the device profile is of another model ({profiled:,} MACs, this one has {own:,}): only how fast the "
        "device is was taken from it, and that differs from one kind of layer to another"
    ]


def _samples(given: Anatomy, arrays: Mapping[str, Array]) -> Samples:
    inputs = reference.whole(given).inputs
    return fitting(arrays, list(given.inputs), inputs, given.classes or None)


def _labels(labels: Sequence[str] | None, given: Anatomy) -> Sequence[str]:
    if not given.exits:
        return []
    if labels is None or not len(labels):
        return [str(number) for number in range(given.classes)]
    if len(labels) != given.classes:
        raise PermanentError(f"{len(labels)} labels for a model of {given.classes} classes")
    return [str(label) for label in labels]
