"""Evaluations: how right a trained model is on the slices of a stream, or on a live group, counted by a job.

Each record counts exactly once, also where the job or the service is killed in between: see `cloud.training.counts`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from fastapi import APIRouter, HTTPException, Response
from pydantic import BaseModel, Field, model_validator
from sqlalchemy import Connection, RowMapping, insert, select

from cloud.bundles import find_bundle, read_manifest
from cloud.database import reading
from cloud.jobs import Job
from cloud.routes import job_views
from cloud.routes.job_views import JobView
from cloud.routes.models import INPUT, find_model, job_model
from cloud.routes.streams import find_stream, require_parts, require_whole, wish_for
from cloud.service import Service, ServiceDep
from cloud.tables import evaluations, trainings
from sluice.wire.evaluation import EvaluationSettings
from sluice.wire.names import Name
from sluice.wire.slices import merged, parse_slice

router = APIRouter(tags=["evaluations"])


class NewEvaluation(BaseModel):
    """What to evaluate on what: a `model` (its newest `version` by default), what a `training` made, or a `bundle` at
    one of its operating points."""

    model: Name | None = None
    version: int | None = Field(default=None, ge=1, lt=2**31)
    training: str | None = Field(default=None, max_length=40)
    bundle: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    operating_point: Name = "default"
    stream_id: Name
    settings: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [one for one in (self.model, self.training, self.bundle) if one is not None]
        if len(given) != 1 or (self.model is None and self.version is not None):
            raise ValueError("give a model, and a version if it is not to be the newest, or a training, or a bundle")
        return self


class EvaluationView(JobView):
    """An evaluation. `metrics` has the running figures, ever less often: `records`, `labelled` and `unlabelled` ones,
    `bad` (left out), `lost` (of a live group: to retention), `seconds`, and by exit `metrics` (`loss`, `accuracy`).

    Of a bundle, `metrics` has its operating point too, and `exit_share` says which exit answers how many.

    `result`, once it is done: the same, and by exit `confusion`.
    """

    model: str
    version: int
    training: str | None
    """The one that made what is evaluated, if that is it."""
    bundle: str | None
    """What is evaluated, if it is one, and at which operating point."""
    operating_point: str | None
    stream_id: str
    settings: dict[str, Any]
    metrics: list[dict[str, Any]]


@router.post("/evaluations", status_code=202)
def start_evaluation(service: ServiceDep, new: NewEvaluation) -> EvaluationView:
    """Start an evaluation. 404: no such model, training, bundle or stream; 409: the training is not done, or parts of
    the stream are missing; 410: Kafka no longer holds a slice of it; 422: the bundle has no such operating point."""
    asked = _asked(service, new)
    stream = find_stream(service, new.stream_id)
    announcement: dict[str, Any] = stream["announcement"]
    live = new.settings.live
    if live is None:
        if new.settings.slices:
            given = merged(parse_slice(text) for text in new.settings.slices)
            announcement = announcement | {"slices": [str(piece) for piece in given]}
        else:
            require_parts(stream)
        require_whole(service, new.stream_id, announcement)
    settings = new.settings.model_dump(mode="json")
    if live is not None and live.group is None:
        settings["live"]["group"] = f"sluice-evaluation-{secrets.token_hex(6)}"
    row = {
        "model": asked.model,
        "version": asked.version,
        "training": new.training,
        "bundle": new.bundle,
        "operating_point": new.operating_point if new.bundle else None,
        "stream_id": new.stream_id,
        "announcement": announcement,
        "settings": settings,
    }

    def record(connection: Connection, job_id: str) -> None:
        connection.execute(insert(evaluations).values(row | {"id": job_id}))

    wish = _wish(service, row)
    job = Job({"model": asked.spec, "stream": announcement, "settings": settings}, asked.files, record, wish)
    (started,) = service.runner.begin("evaluation" if live is None else "live-evaluation", [job])
    return get_evaluation(service, started)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What is evaluated: its model and version, what the job is told of it, and the files that go with that."""

    model: str
    version: int
    spec: Mapping[str, str]
    files: Mapping[str, Path]


def _asked(service: Service, new: NewEvaluation) -> _Asked:
    if new.bundle is not None:
        find_bundle(service, new.bundle)
        manifest = read_manifest(service, new.bundle)
        point = manifest.operating_point(new.operating_point)
        files = {f"segment-{one.index}.tflite": service.blobs.path(one.file.sha256) for one in manifest.segments}
        spec = {"manifest": service.blobs.path(new.bundle).read_text(), "operating_point": point.id}
        return _Asked(manifest.model, manifest.version, spec, files)
    if new.training is None:
        row = find_model(service, str(new.model), new.version)
        return _Asked(row["model"], row["version"], *job_model(service, row))
    training = job_views.find(service, trainings, "training", new.training)
    if training["sha256"] is None:
        raise HTTPException(409, f"training {new.training!r} is {training['state']}, not done")
    files = {INPUT: service.models.path(training["sha256"])}
    return _Asked(training["model"], training["version"], {"file": INPUT}, files)


def go_on(service: Service, job_id: str) -> str:
    """The stream of an evaluation that goes on after a restart (an `Again`, see `cloud.jobs`)."""
    with reading(service.engine) as connection:
        row = connection.execute(select(evaluations).where(evaluations.c.id == job_id)).mappings().one()
    return _wish(service, dict(row))


def _wish(service: Service, row: Mapping[str, Any]) -> str:
    if row["bundle"] is not None:
        classes = len(read_manifest(service, row["bundle"]).labels)
    else:
        classes = find_model(service, row["model"], row["version"])["check"].get("classes")
    settings = EvaluationSettings.model_validate(row["settings"])
    made = json.loads(wish_for(service, row["announcement"], settings.bad_most, classes))
    if settings.live is None:
        return json.dumps(made | {"begins": True})
    own = {parse_slice(text).topic for text in row["announcement"]["slices"]}
    live = {
        "topics": settings.live.topics or sorted(own),
        "group": settings.live.group,
        "timeout_s": settings.live.timeout_s,
        "from_beginning": settings.live.from_beginning,
    }
    return json.dumps(made | {"live": live})


@router.get("/evaluations")
def list_evaluations(service: ServiceDep) -> list[EvaluationView]:
    """The newest 1000 evaluations, newest first; with their last running figures, and without confusion matrices."""
    return [EvaluationView(**_brief(row)) for row in job_views.every(service, evaluations)]


def _brief(row: RowMapping) -> dict[str, Any]:
    result = {name: value for name, value in (row["result"] or {}).items() if name != "confusion"}
    return {**row, "result": result or None, "metrics": row["metrics"][-1:]}


@router.get("/evaluations/{evaluation_id}")
def get_evaluation(service: ServiceDep, evaluation_id: str) -> EvaluationView:
    """One evaluation: its state, and its figures so far."""
    return EvaluationView(**job_views.find(service, evaluations, "evaluation", evaluation_id))


@router.post("/evaluations/{evaluation_id}/finish")
def finish_evaluation(service: ServiceDep, evaluation_id: str) -> EvaluationView:
    """Let a live evaluation come to its end: it is done within seconds, with what it counted; 409: it is not live."""
    if get_evaluation(service, evaluation_id).settings["live"] is None:
        raise HTTPException(409, f"evaluation {evaluation_id!r} ends with its slices: cancel it, or wait")
    service.runner.finish(evaluation_id)
    return get_evaluation(service, evaluation_id)


@router.post("/evaluations/{evaluation_id}/cancel")
def cancel_evaluation(service: ServiceDep, evaluation_id: str) -> EvaluationView:
    """End an evaluation that waits or runs; its figures so far stay. One that has ended stays as it is."""
    get_evaluation(service, evaluation_id)
    service.runner.cancel(evaluation_id)
    return get_evaluation(service, evaluation_id)


@router.get("/evaluations/{evaluation_id}/log", response_class=Response)
def get_log(service: ServiceDep, evaluation_id: str) -> Response:
    """What the job printed."""
    get_evaluation(service, evaluation_id)
    return job_views.log_of(service, evaluation_id)
