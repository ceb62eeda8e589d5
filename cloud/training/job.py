"""Training as a job: the stream as it is fed, all exits trained together, metrics as they come, a `.keras` file.

The validation part of the stream is only ever looked at: it decides nothing here, so that the partitioner may certify
on it. Early stopping asks samples that are set aside from the training part. A job that is run again in its folder goes
on from the checkpoint there, and tells the metrics of all epochs once more, so that they stand once.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter

from cloud.training.fit import fit
from cloud.training.parts import parts_of
from partitioner.anatomy.exits import Anatomy, anatomy
from partitioner.anatomy.models import load_model
from partitioner.events import Events, read_job
from sluice.streams.fed import Fed
from sluice.streams.samples import NONE, Array, Labels
from sluice.wire.errors import PermanentError
from sluice.wire.state import Announcement
from sluice.wire.training import TrainingSettings

MODEL = "model.keras"
"""The trained model in the job's folder."""


class TrainingJob(BaseModel):
    """Train this model on that stream."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["training"]
    model: dict[str, str]
    stream: Announcement
    settings: TrainingSettings = TrainingSettings()


def work(folder: Path, events: Events, descriptor: int | None) -> dict[str, Any]:
    """Do the training in `folder`, on the stream that comes through `descriptor`.

    Returns, of the model that is kept: metrics and confusion by exit, its epoch; and records, those of them without a
    label, `bad` ones that were left out and the first of them, the rounds of a training in rounds, seconds (of the last
    run, if the job was killed).
    """
    begun = time.monotonic()
    job = read_job(folder, TypeAdapter(TrainingJob))
    keras.utils.set_random_seed(job.settings.seed)
    model = load_model(job.model, folder)
    found = anatomy(model, task="classification")
    events.progress("reading the stream", 0, job.stream.count)
    assert descriptor is not None
    fed = Fed(descriptor)
    x, y = fed.load(job.stream, folder, lambda done, total: events.progress("reading the stream", done, total))
    check_data(found, x, y, job.stream.stream_id)
    check_labels(y, job.stream.stream_id, job.settings.pseudo_labels is not None)
    labels = job.stream.config.get("labels")
    outcome = fit(
        model,
        found,
        x,
        y,
        parts_of(job.stream, y, job.settings),
        job.settings,
        labels=[str(name) for name in labels] if isinstance(labels, list) else None,
        folder=folder,
        report=lambda epoch, epochs, values, in_round: events.say(
            "metrics", epoch=epoch, epochs=epochs, metrics=values, **in_round
        ),
    )
    model.save(folder / MODEL)
    return {
        "metrics": outcome.metrics,
        "confusion": outcome.confusion,
        "epoch": outcome.epoch,
        "records": len(x),
        "unlabelled": int((y == NONE).sum()),
        "rounds": outcome.rounds,
        "bad": fed.bad,
        "first_bad": fed.first_bad,
        "seconds": round(time.monotonic() - begun, 3),
    }


def check_data(found: Anatomy, x: Array, y: Labels, stream: str) -> None:
    """Raise `PermanentError` when stream and model do not fit one another."""
    if len(found.inputs) != 1:
        raise PermanentError(f"the model has {len(found.inputs)} inputs: a stream carries one tensor a sample")
    (key,) = found.inputs.values()
    shape, dtype = found.graph.shape(key), np.dtype(str(found.graph.tensors[key].dtype))
    if x.shape[1:] != shape:
        raise PermanentError(
            f"stream {stream!r} has samples of shape {list(x.shape[1:])}, the model takes {list(shape)}"
        )
    if not np.can_cast(x.dtype, dtype, "same_kind"):
        raise PermanentError(f"stream {stream!r} has {x.dtype} samples, the model takes {dtype}")
    if len(y) and y.max() >= found.classes:
        raise PermanentError(f"stream {stream!r} has label {y.max()}, the model tells {found.classes} classes apart")


def check_labels(y: Labels, stream: str, pseudo: bool) -> None:
    """Raise `PermanentError` when the labels are not enough to learn from; `pseudo`: most of them may be missing."""
    bare = int((y == NONE).sum())
    if bare == len(y):
        raise PermanentError(f"stream {stream!r} has no labels: nothing can be learnt from that")
    if bare and not pseudo:
        raise PermanentError(
            f"stream {stream!r} has {bare} of {len(y)} records without a label: pseudo_labels learns from these too"
        )
