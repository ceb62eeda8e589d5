"""Models: handed in as a few lines of Keras or as a `.keras` file, checked by a job, kept by version.

What a training made can become a version too, to be trained on from there.

A model is code, so the service itself never loads it: what it knows of a model is what the check job reports.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, BinaryIO, Literal

from fastapi import APIRouter, HTTPException, Request, Response
from pydantic import BaseModel, Field, ValidationError
from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from cloud.artifacts import Stored
from cloud.database import reading, writing
from cloud.problems import missing
from cloud.service import Service, ServiceDep
from cloud.settings import MB
from cloud.tables import candidates, model_versions, now_us, online_jobs, trainings
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.manifest import first_cause
from sluice.wire.names import Name, check_name

router = APIRouter(tags=["models"])

INPUT = "input.keras"
"""The name of a model's file in a job's folder."""


class NewModel(BaseModel):
    """A model as Python source that makes `model`, a `keras.Model`."""

    name: Name
    source: str = Field(min_length=1, max_length=500_000)


class NewVersion(BaseModel):
    """A version that is the result of a training."""

    training: str = Field(min_length=1, max_length=40)


class ModelView(BaseModel):
    """One version of a model. `check`: inputs, exits, classes, parameters, macs, whether and where it can be cut.

    `training`: the one that it is the result of, if it was not handed in.
    """

    name: str
    version: int
    kind: Literal["source", "keras"]
    sha256: str
    size: int
    check: dict[str, Any]
    created_at: int
    training: str | None


def job_model(service: Service, row: dict[str, Any]) -> tuple[dict[str, str], dict[str, Path]]:
    """(what `job.json` says of this model version, the files that the job needs)."""
    path = service.models.path(row["sha256"])
    if row["kind"] == "source":
        return {"source": path.read_text()}, {}
    return {"file": INPUT}, {INPUT: path}


def find_model(service: Service, name: str, version: int | None = None) -> dict[str, Any]:
    """The row of that version of the model, the newest by default; 404 if there is none."""
    wanted = select(model_versions).where(model_versions.c.model == name)
    if version is not None:
        wanted = wanted.where(model_versions.c.version == version)
    with reading(service.engine) as connection:
        row = connection.execute(wanted.order_by(model_versions.c.version.desc())).mappings().first()
    if row is None:
        raise missing("model", name if version is None else f"{name} version {version}")
    return dict(row)


def _view(row: Any) -> ModelView:
    values = dict(row)
    return ModelView(name=values.pop("model"), **values)


@router.post(
    "/models",
    status_code=201,
    response_model=ModelView,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": NewModel.model_json_schema()},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["name", "file"],
                        "properties": {
                            "name": {"type": "string"},
                            "file": {"type": "string", "format": "binary"},
                        },
                    }
                },
            },
        }
    },
)
async def add_model(service: ServiceDep, request: Request, response: Response) -> ModelView:
    """Check a model and keep it as the next version of its name; 200 if the newest version is this very model.

    422 with the cause when it is broken, and then nothing of it is kept.
    """
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with request.form(max_files=1, max_fields=4) as form:
            name, file = form.get("name"), form.get("file")
            if not isinstance(name, str) or not isinstance(file, UploadFile):
                raise PermanentError("send the fields 'name' and 'file'")
            check_name("model", name)
            known, view = await run_in_threadpool(_add, service, name, "keras", file.file)
    else:
        try:
            new = NewModel.model_validate_json(await request.body())
        except ValidationError as error:
            raise PermanentError(first_cause(error)) from error
        content = io.BytesIO(new.source.encode())
        known, view = await run_in_threadpool(_add, service, new.name, "source", content)
    if known:
        response.status_code = 200
    return view


@router.post("/models/{name}/versions", status_code=201)
def add_version(service: ServiceDep, name: str, new: NewVersion, response: Response) -> ModelView:
    """Make the model that a training made the next version of a name, new or known, so that it can be trained on.

    200 if the newest version is this very model; 404: no such training; 409: it has no model, or not yet.
    """
    check_name("model", name)
    with reading(service.engine) as connection:
        found = connection.execute(select(trainings).where(trainings.c.id == new.training)).mappings().first()
    if found is None:
        raise missing("training", new.training)
    if found["sha256"] is None:
        raise HTTPException(409, f"training {new.training!r} is not done: there is no model of it")
    known, view = add_trained(service, name, found["sha256"], new.training)
    if known:
        response.status_code = 200
    return view


def add_trained(service: Service, name: str, sha256: str, training: str) -> tuple[bool, ModelView]:
    """Check a stored model that a training made, and keep it as the next version of `name`; whether it was the newest
    already. Raises `PermanentError` when it is broken, `TemporaryError` when it cannot be checked now."""
    with service.models.path(sha256).open("rb") as content:
        return _add(service, name, "keras", content, service.settings.job_output_mb * MB, training)


def _add(
    service: Service,
    name: str,
    kind: Literal["source", "keras"],
    content: BinaryIO,
    limit: int | None = None,
    training: str | None = None,
) -> tuple[bool, ModelView]:
    stored = service.models.add(content, limit or service.settings.upload_mb * MB)
    with reading(service.engine) as connection:
        newest = _newest(connection, name)
    if newest is not None and (newest["sha256"], newest["kind"]) == (stored.sha256, kind):
        return True, _view(newest)
    try:
        spec, files = job_model(service, {"sha256": stored.sha256, "kind": kind})
        check = service.runner.check({"model": spec}, files)
        return False, _record(service, name, kind, stored, check, training)
    except BaseException:
        _forget(service, stored)
        raise


def _newest(connection: Any, name: str) -> Any:
    wanted = select(model_versions).where(model_versions.c.model == name)
    return connection.execute(wanted.order_by(model_versions.c.version.desc())).mappings().first()


def _record(
    service: Service, name: str, kind: str, stored: Stored, check: dict[str, Any], training: str | None
) -> ModelView:
    try:
        with writing(service.engine) as connection:
            newest = _newest(connection, name)
            row = {
                "model": name,
                "version": newest["version"] + 1 if newest else 1,
                "kind": kind,
                "sha256": stored.sha256,
                "size": stored.size,
                "check": check,
                "created_at": now_us(),
                "training": training,
            }
            connection.execute(insert(model_versions).values(row))
    except IntegrityError as error:
        raise TemporaryError("another version of this model was added at the same time") from error
    return _view(row)


def _forget(service: Service, stored: Stored) -> None:
    """Remove the content of a model that was refused, unless something else on record is the same."""
    with reading(service.engine) as connection:
        for table in (model_versions, trainings, online_jobs, candidates):
            same = select(func.count()).select_from(table).where(table.c.sha256 == stored.sha256)
            if connection.execute(same).scalar():
                return
    service.models.path(stored.sha256).unlink(missing_ok=True)


@router.get("/models")
def list_models(service: ServiceDep) -> list[ModelView]:
    """The newest version of every model."""
    newest = (
        select(model_versions.c.model, func.max(model_versions.c.version).label("version"))
        .group_by(model_versions.c.model)
        .subquery()
    )
    wanted = select(model_versions).join(
        newest,
        (model_versions.c.model == newest.c.model) & (model_versions.c.version == newest.c.version),
    )
    with reading(service.engine) as connection:
        rows = connection.execute(wanted.order_by(model_versions.c.model)).mappings().all()
    return [_view(row) for row in rows]


@router.get("/models/{name}")
def get_model(service: ServiceDep, name: str) -> list[ModelView]:
    """All versions of one model, newest first."""
    wanted = select(model_versions).where(model_versions.c.model == name)
    with reading(service.engine) as connection:
        rows = connection.execute(wanted.order_by(model_versions.c.version.desc())).mappings().all()
    if not rows:
        raise missing("model", name)
    return [_view(row) for row in rows]


@router.get("/models/{name}/{version}")
def get_version(service: ServiceDep, name: str, version: int) -> ModelView:
    """One version of one model."""
    if not 0 < version < 2**31:
        raise HTTPException(404, f"there is no version {version}")
    return _view(find_model(service, name, version))
