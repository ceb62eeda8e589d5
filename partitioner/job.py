"""The partitioner as a job: `check` looks at a model, `partition` makes a bundle from a trained one.

The job file says what to do; events say how it goes (see `events`). The bundle goes to `bundle/` beside the job file,
unsigned: the key stays with the control plane.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import keras
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from partitioner.anatomy.cut import Cut, cut_at_exits
from partitioner.anatomy.exits import Anatomy, anatomy
from partitioner.anatomy.models import load_model
from partitioner.anatomy.splits import as_rows, split_points
from partitioner.events import Events, read_job
from partitioner.partition import Source, partition
from partitioner.settings import PartitionSettings
from sluice.wire.errors import PermanentError
from sluice.wire.state import Announcement

BUNDLE = "bundle"
"""Folder of the finished bundle in the job's folder."""


class Job(BaseModel):
    """Base of the jobs: strict."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CheckJob(Job):
    """Can this model be built, and cut?"""

    kind: Literal["check"]
    model: dict[str, str]


class PartitionProvenance(Job):
    """Where the model came from."""

    training: str | None = None


class PartitionJob(Job):
    """Make a bundle of a trained model, calibrated on the validation part of the stream."""

    kind: Literal["partition"]
    model: dict[str, str]
    name: str
    version: int = Field(ge=1)
    stream: Announcement
    settings: PartitionSettings = PartitionSettings()
    provenance: PartitionProvenance = PartitionProvenance()


_JOBS: TypeAdapter[CheckJob | PartitionJob] = TypeAdapter(
    Annotated[CheckJob | PartitionJob, Field(discriminator="kind")]
)


def work(folder: Path, events: Events, descriptor: int | None = None) -> dict[str, Any]:
    """Do the job in `folder`, on the stream that comes through `descriptor`; the result as it is reported."""
    job = read_job(folder, _JOBS)
    if isinstance(job, CheckJob):
        return check(load_model(job.model, folder))
    assert descriptor is not None
    return _partition(job, folder, events, descriptor)


def check(model: keras.Model) -> dict[str, Any]:
    """What a model takes and gives, and how it would be cut; `cut.ok` is false, with the reason, if it cannot be."""
    try:
        found = anatomy(model)
    except PermanentError as error:
        return _uncut(model, error)
    try:
        cut = cut_at_exits(found)
    except PermanentError as error:
        return _seen(found, model) | {"cut": {"ok": False, "reason": str(error), "segments": []}}
    return _seen(found, model) | {"cut": {"ok": True, "reason": None, "segments": _segments(cut)}}


def _uncut(model: keras.Model, error: PermanentError) -> dict[str, Any]:
    return {
        "inputs": [],
        "task": None,
        "exits": [],
        "split_points": [],
        "classes": 0,
        "parameters": model.count_params() if model.built else 0,
        "macs": 0,
        "cut": {"ok": False, "reason": str(error), "segments": []},
    }


def _seen(found: Anatomy, model: keras.Model) -> dict[str, Any]:
    graph = found.graph
    return {
        "inputs": [
            {"name": name, "dtype": str(graph.tensors[key].dtype), "shape": list(graph.shape(key))}
            for name, key in found.inputs.items()
        ],
        "task": found.task,
        "exits": [one.name for one in found.exits],
        "split_points": as_rows([point for point in split_points(found) if point.block_end]),
        "classes": found.classes,
        "parameters": model.count_params(),
        "macs": sum(node.macs for node in graph.nodes),
    }


def _segments(cut: Cut) -> list[dict[str, Any]]:
    return [
        {
            "name": piece.name,
            "exit": piece.exit,
            "macs": piece.macs,
            "crossing": [
                {"name": tensor.name, "shape": list(tensor.shape), "bytes": tensor.nbytes("int8")}
                for tensor in piece.crossing
            ],
        }
        for piece in cut.pieces
    ]


def _partition(job: PartitionJob, folder: Path, events: Events, descriptor: int) -> dict[str, Any]:
    from sluice.streams.fed import Fed
    from sluice.streams.reader import split_stream

    model = load_model(job.model, folder)
    events.progress("reading the stream", 0, job.stream.count)
    x, y = Fed(descriptor).load(
        job.stream, folder, lambda done, total: events.progress("reading the stream", done, total)
    )
    to_train, held_out = split_stream(job.stream, y, len(x))
    if not len(held_out):
        raise PermanentError(
            f"stream {job.stream.stream_id!r} keeps nothing from training (validation rate "
            f"{job.stream.validation_rate:g}): thresholds need samples that were not trained on"
        )
    labels = job.stream.config.get("labels")
    source = Source(
        model=job.name,
        version=job.version,
        labels=labels if isinstance(labels, list) and labels else None,
        training=job.provenance.training,
        slices=tuple(job.stream.slices),
    )

    def part(rows: Any) -> dict[str, Any]:
        known = rows[y[rows] >= 0]
        return {"x": x[known], "y": y[known]} if len(known) else {"x": x[rows]}

    return partition(
        model,
        part(held_out),
        folder / BUNDLE,
        source,
        job.settings,
        train=part(to_train) if len(to_train) else None,
        progress=events.progress,
    )
