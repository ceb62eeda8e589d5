"""Reading slices of data streams again, exactly, in batches, the same each time.

A slice is read by its offsets, without a consumer group. Not every offset holds a record (transactions leave markers,
compaction leaves gaps), so the end of a slice is a position, not a count; what Kafka no longer has is an error that
says what is left.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sluice.doors.kafka import Block, KafkaCluster, KafkaReader, TopicPartition
from sluice.streams.bad import BadRecords
from sluice.streams.formats import decode
from sluice.streams.samples import NONE, Array, Labels, StreamConfig, parse_config
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.slices import Slice, merged, parse_slice
from sluice.wire.state import Announcement

BATCH = 1000
"""Records in one batch, at most."""
MEMORY_BYTES = 2_000_000_000
"""So much of samples is kept in memory, unless told otherwise."""
ALIGNED = 64
"""Bytes of which a multiple is the address of samples in memory, so that TensorFlow can use them where they are."""
STALLED_S = 30.0
"""How long Kafka may give nothing before reading is given up."""
IDLE_MS = 5
"""So soon Kafka answers at the end of a slice's topic partition, where it would keep the next slice waiting."""

Progress = Callable[[int, int], None]
"""Called with records read and records to read."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples as they stood on a topic: x (n, *shape) uint8 or float32, y (n,) int64, `NONE` where there is no label.

    n may be 0, where all records of the batch were left out.
    """

    x: Array
    y: Labels
    ends: Mapping[TopicPartition, int]
    """Of each topic partition that it is of, the offset after its last record."""
    places: NDArray[np.int64] | None = None
    """Of a live feed: (n,) which of the topic partitions in `ends`, counted in their order, each sample stood in."""
    offsets: NDArray[np.int64] | None = None
    """Of a live feed: (n,) at which offset."""
    number: int = 0
    """Of a live feed: which of its batches this is, from 1."""


def read_slices(
    cluster: KafkaCluster, slices: Sequence[Slice], *, batch: int = BATCH, stalled_s: float = STALLED_S
) -> Iterator[Block]:
    """The records of `slices`, slice by slice in the order given, in blocks of up to `batch`.

    Raises `PermanentError` naming the slice that is not whole in Kafka and what is left of it, `TemporaryError` when
    Kafka gives nothing for `stalled_s` seconds.
    """
    ends: dict[TopicPartition, int] = {}
    reader = KafkaReader("slices", cluster, "sluice-slices", on_end=ends.__setitem__, idle_ms=IDLE_MS)
    try:
        for piece in slices:
            check_slice(reader, piece, stalled_s)
        for piece in slices:
            yield from _read(reader, piece, ends, batch, stalled_s)
    finally:
        reader.close()


def _require(cluster: KafkaCluster, slices: Sequence[Slice]) -> None:
    reader = KafkaReader("slices", cluster, "sluice-slices")
    try:
        for piece in slices:
            check_slice(reader, piece)
    finally:
        reader.close()


def check_slice(reader: KafkaReader, piece: Slice, timeout_s: float = STALLED_S) -> None:
    """Raise `PermanentError` if a part of the slice is no longer, or was never, in Kafka (open transactions count as
    not there)."""
    try:
        low, high = reader.watermarks((piece.topic, piece.partition), timeout_s)
    except PermanentError as error:
        raise PermanentError(f"slice {piece} is not in Kafka: {error}") from error
    if low > piece.offset:
        left = max(0, piece.end - low)
        raise PermanentError(
            f"slice {piece} is no longer in Kafka: retention left {left} of {piece.length} records "
            f"(offsets from {low} on)"
        )
    if high < piece.end:
        raise PermanentError(f"slice {piece} goes beyond {high}, where what is committed to its topic partition ends")


def _read(
    reader: KafkaReader, piece: Slice, ends: dict[TopicPartition, int], batch: int, stalled_s: float
) -> Iterator[Block]:
    where = (piece.topic, piece.partition)
    ends.pop(where, None)
    reader.assign({where: piece.offset})
    position = piece.offset
    patience = time.monotonic() + stalled_s
    while position < piece.end:
        found = reader.read_block(where, batch, 0.2)
        if inside := found.within(piece.offset, piece.end):
            yield inside
        reached = max(ends.get(where, 0), found.offsets[-1] + 1 if found else 0)
        if reached > position:
            position = reached
            patience = time.monotonic() + stalled_s
        elif time.monotonic() > patience:
            raise TemporaryError(f"slice {piece}: Kafka gave nothing for {stalled_s:g} s at offset {position}")


def read_stream(
    cluster: KafkaCluster,
    announcement: Announcement,
    *,
    batch: int = BATCH,
    bad: BadRecords | None = None,
    classes: int | None = None,
    stalled_s: float = STALLED_S,
) -> Iterator[Batch]:
    """The samples of an announced stream, slice by slice, in the same order each time; `classes` as in `decode`.

    Raises as `read_slices` and `sluice.streams.formats.decode`, but for records that `bad` bears; `PermanentError` too
    when there are fewer or more records than were announced.
    """
    config = parse_config(announcement.config)
    slices = [parse_slice(text) for text in announcement.slices]
    done = 0
    for records in read_slices(cluster, slices, batch=batch, stalled_s=stalled_s):
        x, y = decode(announcement.format, records, config, bad, classes)
        done += len(records)
        last = records[-1]
        yield Batch(x, y, {(last.topic, last.partition): last.offset + 1})
    if done != announcement.count or not done:
        _require(cluster, slices)  # what retention took while we read is what is missing
        raise PermanentError(
            f"stream {announcement.stream_id!r} has {done} records where {announcement.count} were announced"
        )


def read_rest(
    cluster: KafkaCluster,
    announcement: Announcement,
    begin: Mapping[TopicPartition, int],
    *,
    batch: int = BATCH,
    bad: BadRecords | None = None,
    classes: int | None = None,
    stalled_s: float = STALLED_S,
) -> Iterator[Batch]:
    """The samples of an announced stream that do not stand before `begin`, each once: topic partition by topic
    partition, offsets rising. One that is not in `begin` is read from its first slice on.

    Raises as `read_stream`, but does not know how many records there are to be.
    """
    config = parse_config(announcement.config)
    slices = []
    for piece in merged(parse_slice(text) for text in announcement.slices):
        first = max(piece.offset, begin.get((piece.topic, piece.partition), 0))
        if first < piece.end:
            slices.append(Slice(piece.topic, piece.partition, first, piece.end - first))
    done = 0
    for records in read_slices(cluster, slices, batch=batch, stalled_s=stalled_s):
        x, y = decode(announcement.format, records, config, bad, classes)
        done += len(records)
        last = records[-1]
        yield Batch(x, y, {(last.topic, last.partition): last.offset + 1})
    if done < sum(piece.length for piece in slices):
        _require(cluster, slices)  # what retention took while we read is what is missing


def load_stream(
    cluster: KafkaCluster,
    announcement: Announcement,
    *,
    batch: int = BATCH,
    bad: BadRecords | None = None,
    folder: Path | None = None,
    memory_bytes: int = MEMORY_BYTES,
    progress: Progress | None = None,
) -> tuple[Array, Labels]:
    """All samples of an announced stream: x (n, *shape) uint8 or float32, y (n,) int64, `NONE` where there is no label.

    With `folder`, samples that take more than `memory_bytes` are kept in a file there (`numpy.memmap`), removed with
    the folder by the caller. Raises as `read_stream`; `PermanentError` too when no record could be read, or when the
    samples are too many for memory and there is no folder.
    """
    config = parse_config(announcement.config)
    batches = read_stream(cluster, announcement, batch=batch, bad=bad)
    return gather(batches, config, announcement.count, folder=folder, memory_bytes=memory_bytes, progress=progress)


def gather(
    batches: Iterable[Batch],
    config: StreamConfig,
    count: int,
    *,
    folder: Path | None = None,
    memory_bytes: int = MEMORY_BYTES,
    progress: Progress | None = None,
) -> tuple[Array, Labels]:
    """All samples of `batches`, at most `count`, as `load_stream` returns and raises."""
    dtype = np.dtype(np.uint8 if config.dtype == "uint8" else np.float32)
    size = count * config.size * dtype.itemsize
    x: Array
    if size <= memory_bytes:
        room = np.empty(size + ALIGNED, np.uint8)
        begin = -room.ctypes.data % ALIGNED
        x = room[begin : begin + size].view(dtype).reshape(count, *config.shape)
    elif folder is not None:
        x = np.lib.format.open_memmap(folder / "samples.npy", "w+", dtype, (count, *config.shape))
    else:
        raise PermanentError(f"{count} samples take {size / 1e6:.0f} MB, over the limit of {memory_bytes / 1e6:.0f} MB")
    y = np.empty(count, np.int64)
    done = 0
    for one in batches:
        end = done + len(one.y)
        if end > count:
            raise PermanentError(f"the stream has more records than the {count} that were announced")
        x[done:end], y[done:end] = one.x, one.y
        done = end
        if progress is not None:
            progress(done, count)
    if not done:
        raise PermanentError("the stream has no record that can be read")
    return x[:done], y[:done]


def split_validation(
    y: NDArray[Any] | None, rate: float, seed: int, n: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(train, validation) indices, each rising: the share `rate` of every class of `y` (n,) goes to validation.

    The same for the same labels, rate and seed, on every machine. Samples without a label (`NONE`) all stay with
    training, and change nothing for the others. Where none has one, or without `y`, the samples (`n`) are split as one
    class. A class of which the share is less than half a sample stays with training.
    """
    classes = np.zeros(n or 0, np.int64) if y is None else np.asarray(y)
    random = np.random.Generator(np.random.PCG64(seed))
    chosen = [np.empty(0, np.int64)]
    labelled = classes[classes != NONE]
    for label in np.unique(labelled if len(labelled) else classes):
        members = np.flatnonzero(classes == label)
        # drawn as numbers and sorted: NumPy promises streams of random(), not of shuffle()
        drawn = random.random(len(members))
        if count := round(len(members) * rate):
            chosen.append(members[np.argsort(drawn, kind="stable")[:count]])
    held_out = np.zeros(len(classes), bool)
    held_out[np.concatenate(chosen)] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def split_stream(
    announcement: Announcement, y: NDArray[Any] | None, n: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`split_validation` of an announced stream of `n` samples, always the same: training and calibration must agree
    on it, whatever their own seeds are, or a model would be certified on what it was trained on."""
    seed = int.from_bytes(hashlib.sha256(announcement.stream_id.encode()).digest()[:8], "big")
    return split_validation(y, announcement.validation_rate, seed, n)
