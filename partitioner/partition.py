"""From a trained model and held-out samples to a bundle: the whole of partitioning on one page.

exits -> cut -> TFLite segments, checked -> scales, temperatures, certified thresholds -> bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from partitioner.calibrate import Calibrated, Goal, calibrate
from partitioner.cut import LOGITS, Cut, cut_at_exits, logits_model
from partitioner.exits import anatomy
from partitioner.export import export, tensor_spec
from partitioner.pack import pack
from sluice.stage.policy import MEASURES
from sluice.wire.codec import CODECS
from sluice.wire.errors import PermanentError
from sluice.wire.names import Tier, check_name

LEAST_SAMPLES = 20
"""Samples below which not even ranges and temperatures mean anything."""
COMPARED = 64
"""Samples on which segments are compared with Keras."""
BATCH = 256
STEPS = 5
"""Steps that are told to `progress`."""

Array = NDArray[np.generic]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, steps done, steps in all."""


class PartitionSettings(BaseModel):
    """How to cut and what to promise."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    max_accuracy_loss: float = Field(default=0.02, gt=0, lt=1)
    """ε: largest share of samples whose answer may differ from the full model's."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    """1 − δ: how sure that must be."""
    codec: str = "int8-zstd"
    """How tensors travel between tiers."""
    measure: str = "max_prob"
    """Confidence measure of the exits."""
    placement: tuple[Tier, ...] | None = None
    """Tier of each segment; None: the first on the edge, the last in the cloud, the others on the fog."""
    seed: int = Field(default=0, ge=0)
    """Splits the samples into those that fit and those that certify."""


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
    x: Array,
    y: NDArray[np.int64] | None,
    folder: Path,
    source: Source,
    settings: PartitionSettings,
    *,
    sign: Callable[[bytes], str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Cut `model` at its exits, certify it on `x` (n, *shape) and `y` (n,), write the bundle to `folder`.

    Returns `{"digest": …, "summary": …}`. Raises `PermanentError` when the model cannot be cut or the data do not fit
    it; nothing is left in `folder` then.
    """
    check_name("model", source.model)

    def at(step: int, what: str) -> None:
        if progress is not None:
            progress(what, step, STEPS)

    at(0, "cutting at the exits")
    _check_settings(settings)
    model_anatomy = anatomy(model)
    cut = cut_at_exits(model_anatomy, settings.codec)
    placement = placement_of(len(cut.pieces), settings.placement)
    labels = _labels(source.labels, model_anatomy.classes)
    x, y = _fitting(cut, x, y, model_anatomy.classes)

    at(1, "asking the full model")
    full = logits_model(cut)
    name = cut.inputs[0].name
    wanted = _answers(full, x, f"{LOGITS}{len(cut.pieces) - 1}")

    at(2, "converting the segments")
    samples = {name: x}
    exported = export(cut, full, {name: x[:COMPARED]})

    at(3, "calibrating")
    crossings = [tuple(tensor_spec(c) for c in cut.inputs)]
    crossings += [tuple(tensor_spec(c) for c in piece.crossing) for piece in cut.pieces[:-1]]
    goal = Goal(settings.max_accuracy_loss, settings.confidence, settings.codec, settings.measure, placement)
    calibrated = calibrate(exported, crossings, samples, y, wanted, goal, settings.seed)

    at(4, "packing")
    digest = pack(
        folder,
        model=source.model,
        model_version=source.version,
        labels=labels,
        inputs=calibrated.inputs,
        exported=exported,
        segments=calibrated.segments,
        points=calibrated.points,
        golden=samples,
        training=source.training,
        slices=source.slices,
        sign=sign,
    )
    at(STEPS, "packed")
    return {"digest": digest, "summary": _summary(cut, calibrated)}


def placement_of(segments: int, wanted: Sequence[Tier] | None) -> tuple[Tier, ...]:
    """The tier of each of `segments` segments; `PermanentError` if `wanted` does not fit them."""
    if wanted is None:
        if segments == 1:
            return ("edge",)
        return ("edge", *["fog"] * (segments - 2), "cloud")
    tiers: tuple[Tier, ...] = get_args(Tier)
    if len(wanted) != segments:
        raise PermanentError(f"placement names {len(wanted)} tiers, the model has {segments} segments")
    ranks = [tiers.index(tier) for tier in wanted]
    if ranks != sorted(ranks):
        raise PermanentError(f"placement {', '.join(wanted)} goes down a tier")
    return tuple(wanted)


def _check_settings(settings: PartitionSettings) -> None:
    if settings.codec not in CODECS:
        raise PermanentError(f"codec {settings.codec[:40]!r} is unknown; known: {', '.join(CODECS)}")
    if settings.measure not in MEASURES:
        raise PermanentError(f"measure {settings.measure[:40]!r} is unknown; known: {', '.join(MEASURES)}")


def _labels(labels: Sequence[str] | None, classes: int) -> Sequence[str]:
    if labels is None or not len(labels):
        return [str(number) for number in range(classes)]
    if len(labels) != classes:
        raise PermanentError(f"{len(labels)} labels for a model of {classes} classes")
    return [str(label) for label in labels]


def _fitting(cut: Cut, x: Array, y: NDArray[np.int64] | None, classes: int) -> tuple[Array, NDArray[np.int64] | None]:
    """`x` in the model's dtype, `y` as int64; `PermanentError` when they do not fit the model."""
    if len(cut.inputs) != 1:
        raise PermanentError(f"the model has {len(cut.inputs)} inputs: a stream carries one tensor a sample")
    wanted = cut.inputs[0]
    if x.shape[1:] != wanted.shape:
        raise PermanentError(f"samples have shape {list(x.shape[1:])}, the model takes {list(wanted.shape)}")
    if not np.can_cast(x.dtype, wanted.dtype, "same_kind"):
        raise PermanentError(f"samples are {x.dtype}, the model takes {wanted.dtype}")
    if len(x) < LEAST_SAMPLES:
        raise PermanentError(f"{len(x)} samples to calibrate on: {LEAST_SAMPLES} at least")
    if y is not None:
        if len(y) != len(x):
            raise PermanentError(f"{len(y)} labels for {len(x)} samples")
        if len(y) and not (y.min() >= 0 and y.max() < classes):
            raise PermanentError(f"labels go from {y.min()} to {y.max()}, the model has {classes} classes")
        y = y.astype(np.int64)
    return x.astype(wanted.dtype, copy=False), y


def _answers(full: keras.Model, x: Array, output: str) -> NDArray[np.int64]:
    """Labels (n,) of the full float model."""
    parts = [np.asarray(full([x[i : i + BATCH]], training=False)[output]) for i in range(0, len(x), BATCH)]
    logits = np.concatenate(parts)
    if not np.isfinite(logits).all():
        raise PermanentError("the full model answers NaN or infinity on the samples")
    return logits.argmax(axis=1)


def _summary(cut: Cut, calibrated: Calibrated) -> dict[str, Any]:
    default = calibrated.points[0]
    return {
        "exits": [piece.exit for piece in cut.pieces],
        "macs": [piece.macs for piece in cut.pieces],
        "placement": list(default.placement),
        "thresholds": [policy.threshold for policy in default.policies[:-1]],
        "temperatures": [policy.temperature for policy in default.policies],
        "certificate": default.certificate.model_dump() if default.certificate else None,
        "uncertified_because": calibrated.reason or None,
        **default.expected,
    }
