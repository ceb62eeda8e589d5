"""How trainings and partitions show the job behind them, its log, and its cancelling."""

from __future__ import annotations

from typing import Any, Literal

from fastapi.responses import FileResponse, PlainTextResponse
from pydantic import BaseModel
from sqlalchemy import ColumnElement, RowMapping, Table, select

from cloud.database import reading
from cloud.job_process import LOG
from cloud.problems import missing
from cloud.service import Service
from cloud.tables import jobs


class JobView(BaseModel):
    """The job part of a training or partition; times in UTC microseconds."""

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    progress: dict[str, Any] | None
    """`what`, `done`, `total`."""
    reason: str | None
    """Why it failed."""
    result: dict[str, Any] | None
    created_at: int
    started_at: int | None
    ended_at: int | None


JOB_COLUMNS = [column for column in jobs.c if column.name != "metrics"]


def find(service: Service, table: Table, kind: str, job_id: str) -> RowMapping:
    """The row of `table` with its job's; 404 if there is none."""
    own = [column for column in table.c if column.name != "id"]
    wanted = select(*own, *JOB_COLUMNS, jobs.c.metrics).join(jobs, jobs.c.id == table.c.id)
    with reading(service.engine) as connection:
        row = connection.execute(wanted.where(table.c.id == job_id)).mappings().first()
    if row is None:
        raise missing(kind, job_id)
    return row


def every(service: Service, table: Table, *where: ColumnElement[bool]) -> list[RowMapping]:
    """The newest 1000 rows of `table` (those that are as `where` says) with their jobs', newest first."""
    own = [column for column in table.c if column.name != "id"]
    wanted = select(*own, *JOB_COLUMNS, jobs.c.metrics).join(jobs, jobs.c.id == table.c.id)
    with reading(service.engine) as connection:
        return list(connection.execute(wanted.where(*where).order_by(jobs.c.created_at.desc()).limit(1000)).mappings())


def log_of(service: Service, job_id: str) -> FileResponse | PlainTextResponse:
    """The log of a job that is known to exist, as far as it got."""
    path = service.runner.folder / job_id / LOG
    if not path.is_file():
        return PlainTextResponse("")
    return FileResponse(path, media_type="text/plain; charset=utf-8")
