"""Late labels, few at a time, and what they say: accuracy. Many are better written to `sluice.labels` directly."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, Table, select
from starlette.exceptions import HTTPException

from cloud.bundles import read_manifest
from cloud.database import reading
from cloud.routes.predictions import Filter, Page
from cloud.service import Service, ServiceDep
from cloud.tables import now_us, predictions
from cloud.watch.accuracy import count_right, number_of
from cloud.watch.labelled import labelled
from cloud.watch.shares import share_of
from sluice.doors.kafka import KafkaWriter
from sluice.wire import names
from sluice.wire.labels import Label, time_of
from sluice.wire.names import Sha256, Tier

router = APIRouter(tags=["labels"])

LABELS_MOST = 1000


class Labels(BaseModel):
    """Labels to be written to `sluice.labels`."""

    model_config = ConfigDict(extra="forbid")

    labels: list[Label] = Field(min_length=1, max_length=LABELS_MOST)


class Written(BaseModel):
    """How many labels Kafka has confirmed; the results writer brings them in a moment later."""

    written: int


class Chosen(Filter):
    """Which answers, and in what times they are counted: `every_s` seconds by Kafka's clock, or all as one."""

    bundle: Sha256 | None = None
    tier: Tier | None = None
    exit: int | None = Field(default=None, ge=0, lt=2**31)
    until: int | None = Field(default=None, ge=0, lt=2**63)
    every_s: int | None = Field(default=None, ge=60, le=366 * 24 * 3600)

    def conditions(self, table: Table = predictions) -> list[ColumnElement[bool]]:
        """The same as SQL."""
        found = super().conditions(table)
        for name in ("bundle", "tier", "exit"):
            if (value := getattr(self, name)) is not None:
                found.append(table.c[name] == value)
        if self.until is not None:
            found.append(table.c.recorded_at < self.until)
        return found


class AccuracyView(BaseModel):
    """How many of the `labelled` among the `samples` that an exit answered were `right`.

    `unknown`: those with a label that the bundle does not have, neither right nor wrong. `low` to `high` holds the true
    share of right answers with 95 % confidence (Wilson's interval) if the samples that somebody labelled were drawn at
    random: if only doubtful ones were looked at, it says nothing of the others. None where nothing can be said.
    """

    begin: int | None
    """Of the time, in UTC µs; None: all time."""
    model: str
    bundle: str
    tier: Tier
    exit: int
    samples: int
    labelled: int
    right: int
    unknown: int
    share: float | None = None
    low: float | None = None
    high: float | None = None


@router.post("/labels", status_code=202)
def add_labels(service: ServiceDep, told: Labels) -> Written:
    """Write labels to `sluice.labels`, confirmed; 503 when Kafka does not confirm all of them in time.

    The same label again changes nothing, so after a 503 all of them may be sent again.
    """
    now = now_us()
    for label in told.labels:
        time_of(label, now)
    pairs = [(label.device_id, label.model_dump_json().encode()) for label in told.labels]
    writer = KafkaWriter("cloud-labels", service.settings.kafka)
    writer.write_all(names.LABELS, pairs, service.settings.kafka_timeout_s)
    return Written(written=len(pairs))


class LabelView(BaseModel):
    """An answered sample and what it really was: `told` is the class as its bundle numbers it, None: it has none such.

    `id` is that of the prediction, `label` the answer; `right` is None where `told` is.
    """

    id: int
    device_id: str
    epoch: str
    seq: int
    source_id: str | None
    model: str
    bundle: str
    label: int
    told: int | None
    right: bool | None


class LabelsView(BaseModel):
    """A page; `next` is the `after` of the next one."""

    labels: list[LabelView]
    next: int


@router.get("/labels")
def list_labels(service: ServiceDep, page: Annotated[Page, Query()]) -> LabelsView:
    """Answered samples that have a label, in the order of arrival of their answers, a page at a time."""
    p, found = predictions.c, labelled()
    told = found.c
    shown = (p.id, p.device_id, p.epoch, p.seq, p.source_id, p.model, p.bundle, p.label)
    wanted = select(*shown, told.told.label("number"), told.name).join(found, told.id == p.id)
    wanted = wanted.where(*page.conditions(), p.id > page.after).limit(page.limit)
    with reading(service.engine) as connection:
        order = p.id.desc() if page.newest else p.id
        rows = [dict(row) for row in connection.execute(wanted.order_by(order)).mappings()]
    classes = {bundle: classes_of(service, bundle) for bundle in {row["bundle"] for row in rows}}
    views = []
    for row in rows:
        number = number_of(row.pop("number"), row.pop("name"), classes[row["bundle"]])
        views.append(LabelView(**row, told=number, right=None if number is None else number == row["label"]))
    return LabelsView(labels=views, next=max((view.id for view in views), default=page.after))


@router.get("/accuracy")
def accuracy(service: ServiceDep, chosen: Annotated[Chosen, Query()]) -> list[AccuracyView]:
    """How many answers were right, as far as labels tell, by time, model, bundle, tier and exit."""
    bucket_us = chosen.every_s * 1_000_000 if chosen.every_s else None
    with reading(service.engine) as connection:
        found = count_right(connection, chosen.conditions(), bucket_us, lambda digest: classes_of(service, digest))
    views = []
    for (begin, model, bundle, tier, exit_), counts in found.items():
        judged = counts.labelled - counts.unknown
        views.append(
            AccuracyView(
                begin=begin if bucket_us else None,
                model=model,
                bundle=bundle,
                tier=tier,
                exit=exit_,
                samples=counts.samples,
                labelled=counts.labelled,
                right=counts.right,
                unknown=counts.unknown,
                **(share_of(counts.right, judged) if judged else {}),
            )
        )
    return views


def classes_of(service: Service, digest: str) -> tuple[str, ...] | None:
    """The names of a bundle's classes; None if the registry does not have the bundle."""
    try:
        return read_manifest(service, digest).labels
    except HTTPException:
        return None
