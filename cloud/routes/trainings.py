"""Trainings: one model on one data stream, by a job; its metrics come as it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, insert, select, update

from cloud.artifacts import open_output
from cloud.database import reading
from cloud.jobs import Job
from cloud.problems import missing
from cloud.routes import job_views
from cloud.routes.job_views import JobView
from cloud.routes.models import find_model, job_model
from cloud.routes.streams import find_stream, require_parts, require_whole, wish_for
from cloud.service import Service, ServiceDep
from cloud.settings import MB
from cloud.tables import trainings
from sluice.wire.names import Name

router = APIRouter(tags=["trainings"])


class TrainingSettings(BaseModel):
    """How to train."""

    model_config = ConfigDict(extra="forbid")

    epochs: int = Field(default=30, ge=1, le=10_000)
    batch: int = Field(default=32, ge=1, le=65_536)
    learning_rate: float = Field(default=1e-3, gt=0, le=10, allow_inf_nan=False)
    exit_weights: dict[str, float] = {}
    """Weight of an exit's loss in the sum; 1 if not named."""
    seed: int = Field(default=0, ge=0, lt=2**31)


class NewTraining(BaseModel):
    """What to train on what; `version` is the newest by default."""

    model: Name
    version: int | None = Field(default=None, ge=1, lt=2**31)
    stream_id: Name
    settings: TrainingSettings = TrainingSettings()


class TrainingView(JobView):
    """A training. `metrics` has one entry an epoch: `epoch`, `epochs`, `metrics` by exit."""

    model: str
    version: int
    stream_id: str
    settings: dict[str, Any]
    metrics: list[dict[str, Any]]
    sha256: str | None
    """Of the trained model, once it is done."""


@router.post("/trainings", status_code=202)
def start_training(service: ServiceDep, new: NewTraining) -> TrainingView:
    """Start a training. 404: no such model or stream; 409: parts of the stream are missing; 410: Kafka no
    longer holds a slice of it."""
    model = find_model(service, new.model, new.version)
    stream = find_stream(service, new.stream_id)
    require_parts(stream)
    announcement = stream["announcement"]
    require_whole(service, new.stream_id, announcement)
    job, files = job_model(service, model)
    settings = new.settings.model_dump()
    spec = {"model": job, "stream": announcement, "settings": settings}

    def record(connection: Connection, job_id: str) -> None:
        row = {
            "id": job_id,
            "model": new.model,
            "version": model["version"],
            "stream_id": new.stream_id,
            "announcement": announcement,
            "settings": settings,
        }
        connection.execute(insert(trainings).values(row))

    (started,) = service.runner.begin("training", [Job(spec, files, record, wish_for(service, announcement))])
    return get_training(service, started)


def go_on(service: Service, job_id: str) -> str:
    """The stream of a training that goes on after a restart (an `Again`, see `cloud.jobs`)."""
    with reading(service.engine) as connection:
        announcement = connection.execute(select(trainings.c.announcement).where(trainings.c.id == job_id)).scalar_one()
    return wish_for(service, announcement)


def keep_training(service: Service, job_id: str, folder: Path, _result: dict[str, Any]) -> Any:
    """Store the trained model (a `Keep`, see `cloud.jobs`)."""
    with open_output(folder, "model.keras") as file:
        stored = service.models.add(file, service.settings.job_output_mb * MB)

    def write(connection: Connection) -> None:
        connection.execute(update(trainings).where(trainings.c.id == job_id).values(sha256=stored.sha256))

    return write


@router.get("/trainings")
def list_trainings(service: ServiceDep) -> list[TrainingView]:
    """The newest 1000 trainings, newest first."""
    return [TrainingView(**row) for row in job_views.every(service, trainings)]


@router.get("/trainings/{training_id}")
def get_training(service: ServiceDep, training_id: str) -> TrainingView:
    """One training: its state, progress, and metrics so far."""
    return TrainingView(**job_views.find(service, trainings, "training", training_id))


@router.post("/trainings/{training_id}/cancel")
def cancel_training(service: ServiceDep, training_id: str) -> TrainingView:
    """End a training that waits or runs; one that has ended stays as it is."""
    get_training(service, training_id)
    service.runner.cancel(training_id)
    return get_training(service, training_id)


@router.get("/trainings/{training_id}/log", response_class=Response)
def get_log(service: ServiceDep, training_id: str) -> Response:
    """What the job printed."""
    get_training(service, training_id)
    return job_views.log_of(service, training_id)


@router.get("/trainings/{training_id}/model", response_class=FileResponse)
def get_trained(service: ServiceDep, training_id: str) -> FileResponse:
    """The trained model as a `.keras` file; 404 until the training is done."""
    training = get_training(service, training_id)
    if training.sha256 is None:
        raise missing("trained model of training", training_id)
    return FileResponse(
        service.models.path(training.sha256),
        media_type="application/octet-stream",
        filename=f"{training.model}.keras",
    )
