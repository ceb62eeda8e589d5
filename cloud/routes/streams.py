"""Data streams: what was announced on `sluice.control`, and what retention left of it."""

from __future__ import annotations

import json
from typing import Any, Literal

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel
from sqlalchemy import func, select

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
    """An announced stream, all of its parts as one; `left` is that of its worst slice, `unknown` while Kafka is away.

    `missing`: parts that nobody announced yet, or that do not agree with the newest in what their records are.
    """

    stream_id: str
    announcement: Announcement
    announced_at: int
    missing: list[int]
    left: Left | Literal["unknown"]
    slices: list[SliceView]


_AGREED = ("format", "config", "validation_rate", "deployment", "parts")
"""What all parts of a stream have to say alike."""
_WORSE: tuple[Left | Literal["unknown"], ...] = ("whole", "partly expired", "gone", "unknown")


def _whole(parts: list[Any]) -> dict[str, Any]:
    """The rows of one stream as one announcement. What the newest says of format and number of parts is what counts."""
    newest = max(parts, key=lambda row: row["announced_at"])
    said = newest["announcement"]

    def agrees(row: Any) -> bool:
        return all(row["announcement"].get(name) == said.get(name) for name in _AGREED)

    rows = sorted((row for row in parts if agrees(row)), key=lambda row: row["part"])
    announcement = said | {
        "slices": [piece for row in rows for piece in row["announcement"]["slices"]],
        "count": sum(row["announcement"]["count"] for row in rows),
        "part": 1,
        "parts": 1,
    }
    there = {row["part"] for row in rows}
    return {
        "stream_id": newest["stream_id"],
        "announcement": announcement,
        "announced_at": newest["announced_at"],
        "missing": [part for part in range(1, said.get("parts", 1) + 1) if part not in there],
    }


def find_stream(service: Service, stream_id: str) -> dict[str, Any]:
    """A stream, its parts as one; 404 if it was never announced."""
    with reading(service.engine) as connection:
        rows = list(connection.execute(select(streams).where(streams.c.stream_id == stream_id)).mappings())
    if not rows:
        raise missing("stream", stream_id)
    return _whole(rows)


def require_parts(stream: dict[str, Any]) -> None:
    """Return if all parts of the stream were announced; else 409."""
    if stream["missing"]:
        parts = ", ".join(map(str, stream["missing"][:10]))
        raise HTTPException(409, f"stream {stream['stream_id']!r} is not whole yet: part {parts} is missing")


def require_whole(service: Service, stream_id: str, announcement: dict[str, Any]) -> None:
    """Return if Kafka still holds every slice of the stream; 410 that names the first that it does not hold."""
    slices = announcement["slices"]
    for text, left in zip(slices, what_is_left(service.settings, slices), strict=True):
        if left != "whole":
            raise HTTPException(410, f"slice {text} of stream {stream_id!r} is {left}: send the data again")


def wish_for(
    service: Service,
    announcement: dict[str, Any],
    bad_most: int = 0,
    classes: int | None = None,
    live: dict[str, Any] | None = None,
    past: dict[str, Any] | None = None,
) -> str:
    """The stream that a job is to be fed with, and how to reach it (`sluice.streams.feed.Wish`), as JSON."""
    kafka = service.settings.kafka.model_dump()
    wish = {"kafka": kafka, "stream": announcement, "bad_most": bad_most, "classes": classes or None, "live": live}
    return json.dumps(wish | {"past": past, "stalled_s": service.settings.stream_away_s})


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
    newest = func.max(streams.c.announced_at)
    which = select(streams.c.stream_id).group_by(streams.c.stream_id).order_by(newest.desc()).limit(1000)
    parts: dict[str, list[Any]] = {}
    with reading(service.engine) as connection:
        for row in connection.execute(select(streams).where(streams.c.stream_id.in_(which))).mappings():
            parts.setdefault(row["stream_id"], []).append(row)
    found = sorted((_whole(rows) for rows in parts.values()), key=lambda stream: -stream["announced_at"])
    return _view(service, found)


@router.get("/streams/{stream_id}")
def get_stream(service: ServiceDep, stream_id: str) -> StreamView:
    """One announced stream."""
    return _view(service, [find_stream(service, stream_id)])[0]
