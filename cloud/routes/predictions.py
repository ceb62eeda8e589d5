"""Predictions: what the results writer brought into the database, one row a sample; and what audits say of exits."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, Table, case, func, select

from cloud.database import reading
from cloud.service import ServiceDep
from cloud.tables import audits, predictions
from cloud.watch.shares import share_of
from sluice.wire.names import Name, Tier

router = APIRouter(tags=["predictions"])


class Filter(BaseModel):
    """Which predictions; all that is given must hold. `since`: UTC microseconds by Kafka's clock."""

    model_config = ConfigDict(extra="forbid")

    device: Name | None = None
    model: Name | None = None
    since: int | None = Field(default=None, ge=0, lt=2**63)

    def conditions(self, table: Table = predictions) -> list[ColumnElement[bool]]:
        """The same as SQL."""
        found: list[ColumnElement[bool]] = []
        if self.device is not None:
            found.append(table.c.device_id == self.device)
        if self.model is not None:
            found.append(table.c.model == self.model)
        if self.since is not None:
            found.append(table.c.recorded_at >= self.since)
        return found


class Page(Filter):
    """Which part of them: `limit` rows after the row `after`, in order of arrival; or the `newest`, backwards."""

    after: int = Field(default=0, ge=0, lt=2**63)
    limit: int = Field(default=100, ge=1, le=1000)
    newest: bool = False


class PredictionView(BaseModel):
    """A prediction; fields as in the message. `records` counts how often it was on the topic, `repeats` in vain."""

    id: int
    device_id: str
    epoch: str
    seq: int
    source_id: str | None
    model: str
    bundle: str
    operating_point: str
    tier: Tier
    exit: int
    label: int
    confidence: float
    status: str
    reason: str
    captured_at: int
    produced_at: int
    compute_us: dict[str, int]
    bytes_sent: int
    recorded_at: int
    records: int
    repeats: int


_SHOWN = [predictions.c[name] for name in PredictionView.model_fields]


class PredictionsView(BaseModel):
    """A page; `next` is the `after` of the next one."""

    predictions: list[PredictionView]
    next: int


class Summary(BaseModel):
    """Counts of samples (`total` and by what), and of records on the topic that were behind them."""

    total: int
    records: int
    repeats: int
    by_tier: dict[str, int]
    by_status: dict[str, int]
    by_reason: dict[str, int]
    by_model: dict[str, int]
    by_device: dict[str, int]


class AuditView(BaseModel):
    """What audits say of an exit: how many of the samples that it answered the final exit would have answered alike.

    `low` to `high` holds the true share with 95 % confidence (Wilson's interval), if the audited samples were drawn at
    random, as they are.
    """

    model: str
    bundle: str
    exit: int
    audited: int
    agreeing: int
    share: float
    low: float
    high: float


@router.get("/predictions")
def list_predictions(service: ServiceDep, page: Annotated[Page, Query()]) -> PredictionsView:
    """Predictions in the order of arrival, a page at a time."""
    wanted = select(*_SHOWN).where(*page.conditions(), predictions.c.id > page.after).limit(page.limit)
    wanted = wanted.order_by(predictions.c.id.desc() if page.newest else predictions.c.id)
    with reading(service.engine) as connection:
        rows = connection.execute(wanted).mappings().all()
    last = max((row["id"] for row in rows), default=page.after)
    return PredictionsView(predictions=[PredictionView(**row) for row in rows], next=last)


@router.get("/predictions/summary")
def summarise(service: ServiceDep, chosen: Annotated[Filter, Query()]) -> Summary:
    """How many samples were answered by which tier, with which status, of which model and device."""
    c = predictions.c
    keys = {"by_tier": c.tier, "by_status": c.status, "by_reason": c.reason, "by_model": c.model}
    keys["by_device"] = c.device_id
    sums = (func.count(), func.coalesce(func.sum(c.records), 0), func.coalesce(func.sum(c.repeats), 0))
    counts: dict[str, Any] = {}
    with reading(service.engine) as connection:
        total, records, repeats = connection.execute(select(*sums).where(*chosen.conditions())).one()
        for name, column in keys.items():
            grouped = select(column, func.count()).where(*chosen.conditions()).group_by(column).order_by(column)
            counts[name] = dict(connection.execute(grouped).all())
    return Summary(total=total, records=int(records), repeats=int(repeats), **counts)


@router.get("/predictions/audits")
def audit(service: ServiceDep, chosen: Annotated[Filter, Query()]) -> list[AuditView]:
    """Whether early exits still say what the final exit says, by model, bundle and exit."""
    c = audits.c
    by = (c.model, c.bundle, c.exit)
    agreeing = func.sum(case((c.label == c.final_label, 1), else_=0)).label("agreeing")
    wanted = select(*by, func.count().label("audited"), agreeing).where(*chosen.conditions(audits))
    with reading(service.engine) as connection:
        rows = connection.execute(wanted.group_by(*by).order_by(*by)).mappings().all()
    return [AuditView(**row, **share_of(row["agreeing"], row["audited"])) for row in rows]
