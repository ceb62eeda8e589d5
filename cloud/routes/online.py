"""Online jobs: a model learns on from a live stream; when it is better than what runs, it is proposed as a candidate.

What becomes of a candidate, a version and a bundle, is the business of `cloud.candidates`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from sqlalchemy import Connection, RowMapping, insert, select, update

from cloud.artifacts import open_output
from cloud.database import reading
from cloud.job_process import Event
from cloud.jobs import Job
from cloud.problems import missing
from cloud.routes import job_views
from cloud.routes.job_views import JobView
from cloud.routes.models import INPUT, find_model, job_model
from cloud.routes.partitions import PartitionSettings
from cloud.routes.streams import find_stream, wish_for
from cloud.service import Service, ServiceDep
from cloud.settings import MB
from cloud.tables import candidates, now_us, online_jobs, partitions, trainings
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import first_cause
from sluice.wire.names import Name
from sluice.wire.online import OnlineSettings
from sluice.wire.slices import parse_slice

router = APIRouter(tags=["online"])

BATCH = 256
"""Most records that a job is handed at once."""
MOST_CANDIDATES = 1000
TopicName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,249}$")]


class NewOnline(BaseModel):
    """What to begin from (a version of `model`, the newest by default, or the result of a `training`), and where the
    records come from: the topics of an announced stream, which says what they are, or others with the same format.

    `partition`: how candidates are cut; null: they become versions, not bundles.
    """

    model_config = ConfigDict(extra="forbid")

    model: Name | None = None
    version: int | None = Field(default=None, ge=1, lt=2**31)
    training: str | None = Field(default=None, max_length=40)
    stream_id: Name
    topics: list[TopicName] = Field(default=[], max_length=100)
    settings: OnlineSettings = OnlineSettings()
    partition: PartitionSettings | None = PartitionSettings()


class CandidateView(BaseModel):
    """A candidate: why it was proposed (`told`: `accuracy` on judging records, `accuracy_before` of what ran, `judged`,
    `wealth` of who bet on it), and what came of it."""

    number: int
    told: dict[str, Any]
    proposed_at: int
    training: str | None
    """The training as which it is on record."""
    version: int | None
    partition: str | None
    bundle: str | None
    """Ready to be rolled out."""
    reason: str | None
    """Why nothing more comes of it."""


class OnlineView(JobView):
    """An online job. `metrics` has an entry every now and then, older ones thinned out: `records`, `labelled`, `lag`,
    `drifts`, `remembered` (samples of what the model was trained on that the buffer began with), `metrics` by exit
    before learning (`accuracy` and `loss` of late, `whole_…` from the beginning), and `drift`, where one was found."""

    model: str
    version: int
    training: str | None
    stream_id: str
    topics: list[str]
    consumers: str
    """Its consumer group: what is committed there has been used."""
    settings: dict[str, Any]
    metrics: list[dict[str, Any]]
    sha256: str | None
    """Of the model, once it is done."""
    candidates: list[CandidateView]


class Proposed(BaseModel):
    """What a job says of a candidate; its model is in a file of its folder."""

    model_config = ConfigDict(extra="ignore")

    number: int = Field(ge=1, le=MOST_CANDIDATES)
    slices: list[str] = Field(max_length=100_000)
    told: dict[str, float] = Field(max_length=20)


@router.post("/online", status_code=202)
def start_online(service: ServiceDep, new: NewOnline) -> OnlineView:
    """Begin to learn on.

    404: no such model, training or stream; 409: the training is not done; 422: name either a model or a training.
    """
    if (new.model is None) == (new.training is None) or (new.training and new.version):
        raise PermanentError("name either a model, and a version if it is not to be the newest, or a training")
    stream = find_stream(service, new.stream_id)["announcement"]
    model, spec, files = _model(service, new)
    known = _trained_on(service, new.training or model["training"])
    trained_on = [] if known is None else known["slices"]
    topics = list(new.topics or dict.fromkeys(parse_slice(text).topic for text in stream["slices"]))
    row: dict[str, Any] = {
        "model": model["model"],
        "version": model["version"],
        "training": new.training,
        "stream_id": new.stream_id,
        "announcement": stream,
        "topics": topics,
        "consumers": f"sluice-online-{secrets.token_hex(6)}",
        "trained_on": trained_on,
        "settings": new.settings.model_dump(mode="json"),
        "partition": None if new.partition is None else new.partition.model_dump(mode="json"),
    }

    def record(connection: Connection, job_id: str) -> None:
        connection.execute(insert(online_jobs).values({"id": job_id, **row}))

    told = {"model": spec, "stream": stream, "trained_on": trained_on, "settings": row["settings"]}
    (started,) = service.runner.begin("online", [Job(told, files, record, _wish(service, row))])
    return get_online(service, started)


def _model(service: Service, new: NewOnline) -> tuple[dict[str, Any], dict[str, str], dict[str, Path]]:
    """(the row of the version that it is of, what `job.json` says of the model, the files that the job needs)."""
    if new.training is None:
        model = find_model(service, str(new.model), new.version)
        return (model, *job_model(service, model))
    training = job_views.find(service, trainings, "training", new.training)
    if training["sha256"] is None:
        raise HTTPException(409, f"training {new.training!r} is {training['state']}, not done")
    model = find_model(service, training["model"], training["version"])
    return model, {"file": INPUT}, {INPUT: service.models.path(training["sha256"])}


def _trained_on(service: Service, training: str | None) -> dict[str, Any] | None:
    """The stream that a training has learnt from, as far as it is known: nothing in it may certify its model.

    A candidate's stream is what it did not learn from: of it, what the model that its job began from was trained on.
    """
    while True:
        with reading(service.engine) as connection:
            found = connection.execute(select(trainings).where(trainings.c.id == training)).mappings().first()
            if found is None or found["online"] is None:
                return None if found is None else dict(found["announcement"])
            job = connection.execute(select(online_jobs).where(online_jobs.c.id == found["online"])).mappings().one()
        training = job["training"] or find_model(service, job["model"], job["version"])["training"]


def _wish(service: Service, row: dict[str, Any] | RowMapping) -> str:
    settings = OnlineSettings.model_validate(row["settings"])
    model = find_model(service, row["model"], row["version"])
    known = _trained_on(service, row["training"] or model["training"]) if settings.replay_trained_on else None
    past = None if known is None else {"stream": known, "most": settings.buffer, "seed": settings.seed}
    live = {
        "topics": row["topics"],
        "group": row["consumers"],
        "timeout_s": settings.timeout_s,
        "batch": max(BATCH, settings.batch),
        "from_beginning": settings.begin != "end",
    }
    return wish_for(service, row["announcement"], settings.bad_most, model["check"].get("classes"), live, past)


def go_on(service: Service, job_id: str) -> str:
    """The stream of an online job that goes on after a restart (an `Again`, see `cloud.jobs`)."""
    with reading(service.engine) as connection:
        row = connection.execute(select(online_jobs).where(online_jobs.c.id == job_id)).mappings().one()
    return _wish(service, row)


def keep_online(service: Service, job_id: str, folder: Path, _result: dict[str, Any]) -> Callable[[Connection], None]:
    """Store the model of a job that is done (a `Keep`, see `cloud.jobs`)."""
    with open_output(folder, "model.keras") as file:
        stored = service.models.add(file, service.settings.job_output_mb * MB)

    def write(connection: Connection) -> None:
        connection.execute(update(online_jobs).where(online_jobs.c.id == job_id).values(sha256=stored.sha256))

    return write


def hear_candidate(service: Service, job_id: str, folder: Path, event: Event) -> Callable[[Connection], None]:
    """Put a candidate on record (a `Hear`, see `cloud.jobs`); one that is told again changes nothing.

    A job is foreign: it may propose slices of its own topics alone, and not more often than its settings say.
    """
    try:
        told = Proposed.model_validate(event)
    except ValidationError as error:
        raise PermanentError(f"the job's candidate: {first_cause(error)}") from error
    with reading(service.engine) as connection:
        job = connection.execute(select(online_jobs).where(online_jobs.c.id == job_id)).mappings().one()
        of_job = select(candidates).where(candidates.c.online == job_id).order_by(candidates.c.number.desc())
        last = connection.execute(of_job).mappings().first()
    if last is not None and told.number <= last["number"]:
        return lambda _connection: None
    if foreign := {parse_slice(text).topic for text in told.slices} - set(job["topics"]):
        raise PermanentError(f"the job's candidate names topic {min(foreign)!r}, which is not its own")
    pause_us = 0.5e6 * job["settings"]["candidate_every_s"]  # what its clock says may differ a little
    if last is not None and now_us() < last["proposed_at"] + pause_us:
        raise PermanentError("the job proposes candidates more often than it may")
    with open_output(folder, f"candidate-{told.number}.keras") as file:
        stored = service.models.add(file, service.settings.job_output_mb * MB)
    row = {
        "online": job_id,
        "number": told.number,
        "sha256": stored.sha256,
        "slices": told.slices,
        "told": told.told,
        "proposed_at": now_us(),
    }

    def write(connection: Connection) -> None:
        connection.execute(insert(candidates).values(row))

    return write


def _candidates(service: Service, *job_ids: str) -> dict[str, list[CandidateView]]:
    """By job, what it proposed, newest first."""
    wanted = (
        select(candidates, trainings.c.version, partitions.c.bundle)
        .outerjoin(trainings, trainings.c.id == candidates.c.training)
        .outerjoin(partitions, partitions.c.id == candidates.c.partition)
        .where(candidates.c.online.in_(job_ids))
        .order_by(candidates.c.number.desc())
    )
    found: dict[str, list[CandidateView]] = {}
    with reading(service.engine) as connection:
        for row in connection.execute(wanted).mappings():
            found.setdefault(row["online"], []).append(CandidateView.model_validate(dict(row)))
    return found


@router.get("/online")
def list_online(service: ServiceDep) -> list[OnlineView]:
    """The newest 1000 online jobs, newest first; of their metrics the last entry."""
    rows = job_views.every(service, online_jobs)
    proposed = _candidates(service, *(row["id"] for row in rows))
    return [
        OnlineView(**{**row, "metrics": row["metrics"][-1:]}, candidates=proposed.get(row["id"], [])) for row in rows
    ]


@router.get("/online/{online_id}")
def get_online(service: ServiceDep, online_id: str) -> OnlineView:
    """One online job: how it does, and its candidates."""
    row = job_views.find(service, online_jobs, "online job", online_id)
    return OnlineView(**row, candidates=_candidates(service, online_id).get(online_id, []))


@router.post("/online/{online_id}/finish")
def finish_online(service: ServiceDep, online_id: str) -> OnlineView:
    """Let an online job come to its end: it is done within seconds, and what it has learnt is its model."""
    get_online(service, online_id)
    service.runner.finish(online_id)
    return get_online(service, online_id)


@router.post("/online/{online_id}/cancel")
def cancel_online(service: ServiceDep, online_id: str) -> OnlineView:
    """End an online job without a model; its candidates stay. One that has ended stays as it is."""
    get_online(service, online_id)
    service.runner.cancel(online_id)
    return get_online(service, online_id)


@router.get("/online/{online_id}/log", response_class=Response)
def get_log(service: ServiceDep, online_id: str) -> Response:
    """What the job printed."""
    get_online(service, online_id)
    return job_views.log_of(service, online_id)


@router.get("/online/{online_id}/model", response_class=FileResponse)
def get_learnt(service: ServiceDep, online_id: str) -> FileResponse:
    """The model of an online job that is done, as a `.keras` file; 404 until then. Candidates: by their trainings."""
    job = get_online(service, online_id)
    if job.sha256 is None:
        raise missing("model of online job", online_id)
    path = service.models.path(job.sha256)
    return FileResponse(path, media_type="application/octet-stream", filename=f"{job.model}.keras")
