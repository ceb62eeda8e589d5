"""Data streams: what was announced on `sluice.control`, and what retention left of it."""

from __future__ import annotations

import json
from typing import Any, Literal

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel
from sqlalchemy import select

from cloud.database import reading
from cloud.problems import missing
from cloud.service import Service, ServiceDep
from cloud.tables import streams
from cloud.topics import Left, what_is_left
from sluice.wire.errors import TemporaryError
from sluice.wire.state import Announcement

router = APIRouter(tags=["streams"])


class SliceView(BaseModel):
    """One slice, `topic:partition:offset:length`, and what Kafka still holds of it."""

    slice: str
    left: Left | Literal["unknown"]


class StreamView(BaseModel):
    """An announced stream; `left` is that of its worst slice, `unknown` while Kafka is away."""

    stream_id: str
    announcement: Announcement
    announced_at: int
    left: Left | Literal["unknown"]
    slices: list[SliceView]


_WORSE: tuple[Left | Literal["unknown"], ...] = ("whole", "partly expired", "gone", "unknown")


def find_stream(service: Service, stream_id: str) -> Any:
    """The row of a stream; 404 if it was never announced."""
    with reading(service.engine) as connection:
        row = connection.execute(select(streams).where(streams.c.stream_id == stream_id)).mappings().first()
    if row is None:
        raise missing("stream", stream_id)
    return row


def require_whole(service: Service, stream_id: str, announcement: dict[str, Any]) -> None:
    """Return if Kafka still holds every slice of the stream; 410 that names the first that it does not hold."""
    slices = announcement["slices"]
    for text, left in zip(slices, what_is_left(service.settings, slices), strict=True):
        if left != "whole":
            raise HTTPException(410, f"slice {text} of stream {stream_id!r} is {left}: send the data again")


def wish_for(service: Service, announcement: dict[str, Any], bad_most: int = 0) -> str:
    """The stream that a job is to be fed with, and how to reach it (`sluice.streams.feed.Wish`), as JSON."""
    kafka = service.settings.kafka.model_dump()
    return json.dumps({"kafka": kafka, "stream": announcement, "bad_most": bad_most})


def _view(service: Service, rows: list[Any]) -> list[StreamView]:
    """All slices of all rows are looked at together."""
    texts = [text for row in rows for text in row["announcement"]["slices"]]
    found: list[Left | Literal["unknown"]]
    try:
        found = [*what_is_left(service.settings, texts)] if texts else []
    except TemporaryError:
        found = ["unknown"] * len(texts)
    left = iter(found)
    views = []
    for row in rows:
        slices = [SliceView(slice=text, left=next(left)) for text in row["announcement"]["slices"]]
        worst = max((s.left for s in slices), key=_WORSE.index)
        views.append(StreamView(**row, left=worst, slices=slices))
    return views


@router.get("/streams")
def list_streams(service: ServiceDep) -> list[StreamView]:
    """All announced streams (the newest 1000), newest first."""
    with reading(service.engine) as connection:
        rows = connection.execute(select(streams).order_by(streams.c.announced_at.desc()).limit(1000)).mappings()
        found = list(rows)
    return _view(service, found)


@router.get("/streams/{stream_id}")
def get_stream(service: ServiceDep, stream_id: str) -> StreamView:
    """One announced stream."""
    return _view(service, [find_stream(service, stream_id)])[0]
