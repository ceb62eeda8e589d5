"""Sending a data stream: its records to a topic, then its announcement on `sluice.control`.

A stream is announced only when Kafka has confirmed all of it; one that broke off is never seen by anyone. The slices
come from the offsets that Kafka gave the records, so another writer on the same topic does no harm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sluice.doors.kafka import KafkaCluster, KafkaWriter
from sluice.doors.kafka_topics import ensure_topics
from sluice.streams.formats import format_named
from sluice.streams.samples import Array, parse_config
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.names import CONTROL, check_name
from sluice.wire.slices import Slice
from sluice.wire.state import MAX_STATE_BYTES, Announcement

STALLED_S = 60.0
"""How long Kafka may confirm nothing before sending is given up."""
REPORT_EVERY = 200
"""Records between two calls of `progress`."""

Progress = Callable[[int, int], None]
"""Called with records confirmed and records in all."""


def send_stream(
    cluster: KafkaCluster,
    topic: str,
    x: Array,
    y: NDArray[Any] | None,
    *,
    stream_id: str,
    format: str = "avro",
    validation_rate: float = 0.2,
    labels: Sequence[str] = (),
    deployment: str | None = None,
    partitions: int = 1,
    progress: Progress | None = None,
    stalled_s: float = STALLED_S,
) -> Announcement:
    """Write `x` (n, *shape) and `y` (n,) to `topic`, made with `partitions` topic partitions if it is missing, and
    announce them.

    Raises `PermanentError` for data that no format holds or a record that Kafka refuses, `TemporaryError` when Kafka
    confirms nothing for `stalled_s` seconds; nothing is announced then.
    """
    check_name("stream", stream_id)
    config = format_named(format).config_of(x, y is not None, labels, ())
    announcement = Announcement(
        stream_id=stream_id,
        deployment=deployment,
        slices=[str(Slice(topic, 0, 0, 0))],
        format=format,
        config=config,
        validation_rate=validation_rate,
        count=len(x),
    )
    _check(x, y, labels)
    ensure_topics(cluster, {topic: partitions, CONTROL: 1})
    writer = KafkaWriter("send", cluster, linger_ms=5)
    offsets = _write(writer, topic, _encoded(announcement, x, y), len(x), progress, stalled_s)
    slices = [str(piece) for piece in _slices(topic, offsets)]
    announcement = announcement.model_copy(update={"slices": slices})
    message = announcement.model_dump_json().encode()
    if len(message) > MAX_STATE_BYTES:
        raise PermanentError(f"topic {topic} has too many other writers: {len(slices)} slices are too many to announce")
    writer.write_all(CONTROL, [(stream_id, message)], stalled_s)
    return announcement


def _check(x: Array, y: NDArray[Any] | None, labels: Sequence[str]) -> None:
    if not len(x):
        raise PermanentError("there are no samples to send")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise PermanentError("x has values that are not finite")
    if y is None:
        return
    if y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise PermanentError(f"y is {y.dtype}{list(y.shape)}, not {len(x)} whole numbers")
    if y.min() < 0 or (labels and y.max() >= len(labels)):
        raise PermanentError(f"y goes from {y.min()} to {y.max()}, there are {len(labels) or 'no negative'} classes")


def _encoded(
    announcement: Announcement, x: Array, y: NDArray[Any] | None
) -> Callable[[int], tuple[bytes | None, bytes]]:
    config = parse_config(announcement.config)
    encode = format_named(announcement.format).encode
    return lambda i: encode(x[i], None if y is None else int(y[i]), config)


def _write(
    writer: KafkaWriter,
    topic: str,
    record: Callable[[int], tuple[bytes | None, bytes]],
    count: int,
    progress: Progress | None,
    stalled_s: float,
) -> dict[int, list[int]]:
    """Write `count` records; returns the offsets that they got, by topic partition."""
    offsets: dict[int, list[int]] = {}
    failures: list[Exception] = []
    clock = _Patience(stalled_s)

    def note(error: Exception | None) -> None:
        if error is not None:
            failures.append(error)

    def place(partition: int, offset: int) -> None:
        offsets.setdefault(partition, []).append(offset)
        clock.moved()
        done = sum(len(found) for found in offsets.values())
        if progress is not None and (done % REPORT_EVERY == 0 or done == count):
            progress(done, count)

    for i in range(count):
        key, value = record(i)
        while not failures:
            try:
                writer.write(topic, value, key=key, on_delivery=note, on_offset=place)
                break
            except TemporaryError as error:
                writer.poll(error.delay)
                clock.check(topic)
        writer.poll()
        if failures:
            raise failures[0]
    while writer.flush(0.2):
        clock.check(topic)
    if failures:
        raise failures[0]
    return offsets


class _Patience:
    """Gives up when nothing was confirmed for a while."""

    def __init__(self, stalled_s: float) -> None:
        self._stalled_s = stalled_s
        self._last = time.monotonic()

    def moved(self) -> None:
        self._last = time.monotonic()

    def check(self, topic: str) -> None:
        if time.monotonic() - self._last > self._stalled_s:
            raise TemporaryError(f"Kafka confirmed nothing for {topic} within {self._stalled_s:g} s")


def _slices(topic: str, offsets: dict[int, list[int]]) -> list[Slice]:
    """The slices, one for each run of neighbouring offsets."""
    found = []
    for partition in sorted(offsets):
        places = np.sort(np.array(offsets[partition]))
        for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
            found.append(Slice(topic, partition, int(run[0]), len(run)))
    return found
