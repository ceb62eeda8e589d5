"""What a model was trained on, as far as Kafka still has it: a fair sample of it, for one that learns on.

Where there is more than is wanted, blocks of a few neighbouring records are read, one at a place drawn by chance from
each of as many equal parts of the whole, so that every record is as likely as any other and none of the past is
missing as a whole. What retention took is fewer, never an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sluice.doors.kafka import KafkaCluster, KafkaReader, TopicPartition
from sluice.streams.bad import BadRecords
from sluice.streams.formats import decode
from sluice.streams.reader import BATCH, STALLED_S, Batch, read_slices
from sluice.streams.samples import parse_config
from sluice.wire.errors import PermanentError
from sluice.wire.slices import Slice, merged, parse_slice
from sluice.wire.state import Announcement

BLOCK = 8
"""Neighbouring records that are read at a time, at least: those of one device, one after the other, are much alike."""
BLOCKS = 256
"""Places that are gone to, at most."""
MOST = 1_000_000


class Past(BaseModel):
    """What a job's model was trained on, of which it may have a sample before its live stream begins."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    stream: Announcement
    """The stream that it was trained on; its slices need not be there any more."""
    most: int = Field(ge=0, le=MOST)
    """Records that may be handed out."""
    seed: int = Field(default=0, ge=0)
    """Decides which."""


@dataclass(slots=True)
class Found:
    """What there was: `records` that the model was trained on, those of them that are `gone` from Kafka, how many were
    `read`, of which `bad` ones could not be. `reason`: why there is none at all, where that is not for retention."""

    records: int = 0
    gone: int = 0
    read: int = 0
    bad: int = 0
    reason: str | None = None


def read_past(
    cluster: KafkaCluster,
    past: Past,
    most: int,
    found: Found,
    *,
    like: Announcement,
    before: Callable[[TopicPartition], int | None],
    classes: int | None = None,
    stalled_s: float = STALLED_S,
) -> Iterator[Batch]:
    """A fair sample of up to `most` records, whose samples are as those of the stream `like`; `found` tells of it.

    Only what stands `before` this offset of its topic partition is taken (None: all), since the rest comes live.
    Records that cannot be read are left out. Raises `TemporaryError` when Kafka is away.
    """
    config, other = parse_config(past.stream.config), parse_config(like.config)
    if (config.shape, config.dtype == "uint8") != (other.shape, other.dtype == "uint8"):
        found.reason = f"samples of stream {past.stream.stream_id!r} are not like those of {like.stream_id!r}"
        return
    slices = _clipped(merged(map(parse_slice, past.stream.slices)), before)
    found.records = sum(piece.length for piece in slices)
    left = _left(cluster, slices, stalled_s)
    found.gone = found.records - sum(piece.length for piece in left)
    bad = BadRecords(found.records)
    try:
        for block in read_slices(
            cluster, chosen(left, min(most, past.most), past.seed), batch=BATCH, stalled_s=stalled_s
        ):
            x, y = decode(past.stream.format, block, config, bad, classes)
            found.read, found.bad = found.read + len(block), bad.count
            yield Batch(x, y, {})
    except PermanentError as error:  # retention took more of it meanwhile
        found.reason = str(error)


def chosen(slices: Sequence[Slice], most: int, seed: int) -> list[Slice]:
    """The slices, or blocks of them that have at most `most` records in all, spread over the whole."""
    total = sum(piece.length for piece in slices)
    if total <= most:
        return list(slices)
    if not most:
        return []
    blocks = max(1, min(BLOCKS, most // BLOCK))
    edges = np.arange(blocks + 1) * total // blocks
    sizes = np.minimum(np.diff(np.arange(blocks + 1) * most // blocks), np.diff(edges))
    random = np.random.Generator(np.random.PCG64(seed))
    begins = edges[:-1] + random.integers(0, np.diff(edges) - sizes + 1)
    ends = begins + sizes
    found: list[Slice] = []
    first = 0
    for piece in slices:
        last = first + piece.length
        here = (begins < last) & (ends > first)
        for begin, end in zip(begins[here].tolist(), ends[here].tolist(), strict=True):
            low, high = max(begin, first), min(end, last)
            found.append(Slice(piece.topic, piece.partition, piece.offset + low - first, high - low))
        first = last
    return found


def _clipped(slices: Sequence[Slice], before: Callable[[TopicPartition], int | None]) -> list[Slice]:
    found = []
    for piece in slices:
        bound = before((piece.topic, piece.partition))
        end = piece.end if bound is None else min(piece.end, bound)
        if end > piece.offset:
            found.append(Slice(piece.topic, piece.partition, piece.offset, end - piece.offset))
    return found


def _left(cluster: KafkaCluster, slices: Sequence[Slice], timeout_s: float) -> list[Slice]:
    """What of them is in Kafka."""
    reader = KafkaReader("past", cluster, "sluice-slices")
    found = []
    try:
        for piece in slices:
            try:
                low, high = reader.watermarks((piece.topic, piece.partition), timeout_s)
            except PermanentError:
                continue  # no such topic any more
            first, end = max(piece.offset, low), min(piece.end, high)
            if end > first:
                found.append(Slice(piece.topic, piece.partition, first, end - first))
    finally:
        reader.close()
    return found
