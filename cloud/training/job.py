"""Training as a job: the stream from Kafka, all exits trained together, metrics as they come, a `.keras` file.

The sum of the exits' losses is what is minimised, as in BranchyNet (Teerapittayanon et al., arXiv 1709.01686): the
early layers learn to serve the early exits and the later ones at once. The validation part of the stream is only ever
looked at: it decides nothing here, so that the partitioner may certify on it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from cloud.training.fit import Data, fit
from partitioner.anatomy.exits import Anatomy, anatomy
from partitioner.anatomy.models import load_model
from partitioner.events import Events, read_job
from sluice.streams.fed import Fed
from sluice.streams.reader import split_stream
from sluice.streams.samples import Array, Labels
from sluice.wire.errors import PermanentError
from sluice.wire.state import Announcement

MODEL = "model.keras"
"""The trained model in the job's folder."""


class TrainingSettings(BaseModel):
    """How to train."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    epochs: int = Field(default=30, ge=1, le=100_000)
    """Times that every sample is seen."""
    batch: int = Field(default=32, ge=1)
    """Samples in one step."""
    learning_rate: float = Field(default=0.001, gt=0, allow_inf_nan=False)
    """Step size of Adam."""
    exit_weights: dict[str, float] = {}
    """Weight of an exit's loss in the sum; 1 if not named."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Order of the samples, dropout, and what of the weights the model's source leaves to chance."""


class TrainingJob(BaseModel):
    """Train this model on that stream."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["training"]
    model: dict[str, str]
    stream: Announcement
    settings: TrainingSettings = TrainingSettings()


def work(folder: Path, events: Events, descriptor: int | None) -> dict[str, Any]:
    """Do the training in `folder`, on the stream that comes through `descriptor`.

    Returns the last metrics by exit, records and seconds.
    """
    begun = time.monotonic()
    job = read_job(folder, TypeAdapter(TrainingJob))
    keras.utils.set_random_seed(job.settings.seed)
    model = load_model(job.model, folder)
    found = anatomy(model, task="classification")
    events.progress("reading the stream", 0, job.stream.count)
    assert descriptor is not None
    x, y = Fed(descriptor).load(
        job.stream, folder, lambda done, total: events.progress("reading the stream", done, total)
    )
    x, y = check_data(found, x, y, job.stream.stream_id)
    train, held_out = split_stream(job.stream, y, len(x))
    if not len(train):
        raise PermanentError(f"stream {job.stream.stream_id!r} leaves nothing to train on")
    metrics = fit(
        model,
        found,
        Data(x[train], y[train]),
        Data(x[held_out], y[held_out]),
        epochs=job.settings.epochs,
        batch=job.settings.batch,
        learning_rate=job.settings.learning_rate,
        weights={one.name: job.settings.exit_weights.get(one.name, 1.0) for one in found.exits},
        seed=job.settings.seed,
        report=lambda epoch, values: events.say("metrics", epoch=epoch, epochs=job.settings.epochs, metrics=values),
    )
    model.save(folder / MODEL)
    return {"metrics": metrics, "records": len(x), "seconds": round(time.monotonic() - begun, 3)}


def check_data(found: Anatomy, x: Array, y: Labels | None, stream: str) -> tuple[Array, Labels]:
    """`x` in the model's dtype, and `y`; `PermanentError` when stream and model do not fit one another."""
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
    if not (y >= 0).all():
        raise PermanentError(f"stream {stream!r} has no labels: nothing can be learnt from it")
    if y.max() >= found.classes:
        raise PermanentError(f"stream {stream!r} has label {y.max()}, the model tells {found.classes} classes apart")
    return x.astype(dtype, copy=False), y
