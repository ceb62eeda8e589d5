"""Trainings: models on a data stream, each by a job; metrics come as they learn.

Several models in one request are a comparison: the same stream, the same settings, one job each.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, Self

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field, model_validator
from sqlalchemy import Connection, RowMapping, insert, select, update

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
from cloud.tables import model_versions, trainings
from sluice.wire.names import Name
from sluice.wire.training import TrainingSettings

MOST_COMPARED = 20

router = APIRouter(tags=["trainings"])


class ModelVersion(BaseModel):
    """A model to train; `version` is the newest by default."""

    model: Name
    version: int | None = Field(default=None, ge=1, lt=2**31)


class NewTraining(BaseModel):
    """What to train on what: one `model` (and `version`), or several `models`, each by a job of its own."""

    model: Name | None = None
    version: int | None = Field(default=None, ge=1, lt=2**31)
    models: list[ModelVersion] = Field(default=[], max_length=MOST_COMPARED)
    stream_id: Name
    settings: TrainingSettings = TrainingSettings()

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.model is None) != bool(self.models) or (self.models and self.version is not None):
            raise ValueError("give either a model, and a version if it is not to be the newest, or models")
        return self


class TrainingView(JobView):
    """A training. `metrics` has one entry an epoch: `epoch`, `epochs`, `metrics` by exit.

    `result`, once it is done: `metrics` of the model that is kept, by exit; `confusion` on the validation part, by
    exit: `matrix` (rows: true label), `precision` and `recall` by class; `epoch` of the model that is kept; `records`,
    `unlabelled`, `bad` (left out), `first_bad`, `seconds`; and of a training in rounds `rounds`.
    """

    model: str
    version: int
    stream_id: str
    settings: dict[str, Any]
    metrics: list[dict[str, Any]]
    sha256: str | None
    """Of the trained model, once it is done."""
    comparison: str | None
    """The same for all trainings that one request began."""
    online: str | None
    """The online job whose candidate it is: then `version` is the one that it became."""


class ComparisonView(BaseModel):
    """Several models in training on one stream, in the order in which they were named."""

    comparison: str
    trainings: list[TrainingView]


@router.post("/trainings", status_code=202)
def start_training(service: ServiceDep, new: NewTraining) -> TrainingView | ComparisonView:
    """Start a training, or one for each of several models. 404: no such model or stream; 409: parts of the stream are
    missing; 410: Kafka no longer holds a slice of it. Then nothing was started."""
    wanted = new.models or [ModelVersion(model=str(new.model), version=new.version)]
    models = [find_model(service, one.model, one.version) for one in wanted]
    stream = find_stream(service, new.stream_id)
    require_parts(stream)
    announcement = stream["announcement"]
    require_whole(service, new.stream_id, announcement)
    comparison = f"comparison-{secrets.token_hex(6)}" if new.models else None
    jobs = [_job(service, model, new, announcement, comparison) for model in models]
    started = [get_training(service, one) for one in service.runner.begin("training", jobs)]
    return ComparisonView(comparison=comparison, trainings=started) if comparison else started[0]


def _job(
    service: Service,
    model: dict[str, Any],
    new: NewTraining,
    announcement: dict[str, Any],
    comparison: str | None,
) -> Job:
    spec, files = job_model(service, model)
    settings = new.settings.model_dump(mode="json")

    def record(connection: Connection, job_id: str) -> None:
        row = {
            "id": job_id,
            "model": model["model"],
            "version": model["version"],
            "stream_id": new.stream_id,
            "announcement": announcement,
            "settings": settings,
            "comparison": comparison,
        }
        connection.execute(insert(trainings).values(row))

    wish = wish_for(service, announcement, new.settings.bad_most, model["check"].get("classes"))
    return Job({"model": spec, "stream": announcement, "settings": settings}, files, record, wish)


def go_on(service: Service, job_id: str) -> str:
    """The stream of a training that goes on after a restart (an `Again`, see `cloud.jobs`)."""
    with reading(service.engine) as connection:
        training = connection.execute(select(trainings).where(trainings.c.id == job_id)).mappings().one()
        this = (model_versions.c.model == training["model"]) & (model_versions.c.version == training["version"])
        check = connection.execute(select(model_versions.c.check).where(this)).scalar_one()
    bad_most = training["settings"].get("bad_most", 0)
    return wish_for(service, training["announcement"], bad_most, check.get("classes"))


def keep_training(service: Service, job_id: str, folder: Path, _result: dict[str, Any]) -> Any:
    """Store the trained model (a `Keep`, see `cloud.jobs`)."""
    with open_output(folder, "model.keras") as file:
        stored = service.models.add(file, service.settings.job_output_mb * MB)

    def write(connection: Connection) -> None:
        connection.execute(update(trainings).where(trainings.c.id == job_id).values(sha256=stored.sha256))

    return write


@router.get("/trainings")
def list_trainings(service: ServiceDep, comparison: str | None = None) -> list[TrainingView]:
    """The newest 1000 trainings, or those of one comparison, newest first; without their confusion matrices."""
    where = [] if comparison is None else [trainings.c.comparison == comparison]
    return [TrainingView(**_brief(row)) for row in job_views.every(service, trainings, *where)]


def _brief(row: RowMapping) -> dict[str, Any]:
    """A row without its confusion matrices, which are large."""
    result = {name: value for name, value in (row["result"] or {}).items() if name != "confusion"}
    return {**row, "result": result or None}


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
