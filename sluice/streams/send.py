"""Sending a data stream: its records to a topic, then its announcement on `sluice.control`.

A stream is announced only when Kafka has confirmed all of it; one that broke off is never seen by anyone. The slices
come from the offsets that Kafka gave the records, so another writer on the same topic does no harm. Several producers
may send one stream: each says which of how many parts is its own, and the stream is whole when all were announced.

`send_stream` sends arrays, `Sender` one record after the other. `announce_slices` sends nothing: it announces what is
on Kafka already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sluice.doors.kafka import KafkaCluster, KafkaReader, KafkaWriter, Record
from sluice.doors.kafka_topics import ensure_topics
from sluice.streams.formats import decode, format_named
from sluice.streams.reader import read_slices
from sluice.streams.samples import DTYPES, NONE, Array, BadRecord, Feature, StreamConfig, parse_config
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.names import CONTROL, check_name
from sluice.wire.slices import Slice, parse_slice
from sluice.wire.state import MAX_STATE_BYTES, Announcement

STALLED_S = 60.0
"""How long Kafka may confirm nothing before sending is given up."""
REPORT_EVERY = 200
"""Records between two calls of `progress`."""
COMPRESSION = "zstd"

Progress = Callable[[int, int], None]
"""Called with records confirmed and records in all."""


class Sender:
    """Sends a stream record by record; leaving the `with` block in good order announces it.

    `shape` and `dtype` are those of one sample; `labelled`: whether samples have labels; `labels`: names of the
    classes; `features`: the columns of tabular data. The topic is made with `partitions` topic partitions if it is
    missing. Raises `PermanentError` for what no format holds.
    """

    def __init__(
        self,
        cluster: KafkaCluster,
        topic: str,
        *,
        stream_id: str,
        shape: Sequence[int],
        dtype: str = "float32",
        labelled: bool = True,
        labels: Sequence[str] = (),
        features: Sequence[Feature] = (),
        format: str = "avro",
        validation_rate: float = 0.2,
        deployment: str | None = None,
        part: int = 1,
        parts: int = 1,
        partitions: int = 1,
        compression: str = COMPRESSION,
        stalled_s: float = STALLED_S,
    ) -> None:
        check_name("stream", stream_id)
        if dtype not in DTYPES:
            raise PermanentError(f"samples are {dtype[:40]}, which is not one of {', '.join(DTYPES)}")
        if not 1 <= part <= parts:
            raise PermanentError(f"part {part} of {parts}: parts are counted from 1")
        kind = format_named(format)
        config = kind.config_of(np.empty((0, *shape), dtype), labelled, labels, features)
        self._config = parse_config(config)
        self._encode = kind.encode
        self._announcement = Announcement(
            stream_id=stream_id,
            deployment=deployment,
            slices=[str(Slice(topic, 0, 0, 0))],
            format=format,
            config=config,
            validation_rate=validation_rate,
            count=0,
            part=part,
            parts=parts,
        )
        self.topic = topic
        self.confirmed = 0
        """Records that Kafka has."""
        self._offsets: dict[int, list[int]] = {}
        self._failures: list[Exception] = []
        self._stalled_s = stalled_s
        self._moved = time.monotonic()
        ensure_topics(cluster, {topic: partitions, CONTROL: 1})
        self._writer = KafkaWriter("send", cluster, linger_ms=5, compression=compression)

    def send(self, sample: Array, label: int | None = None) -> None:
        """One more sample (*shape), and its class number; waits while too many are on their way to Kafka.

        Raises `PermanentError` when Kafka refuses a record, `TemporaryError` when it confirms nothing for `stalled_s`.
        """
        key, value = self._encode(sample, label, self._config)
        while not self._failures:
            try:
                self._writer.write(self.topic, value, key=key, on_delivery=self._note, on_offset=self._place)
                break
            except TemporaryError as error:
                self._writer.poll(error.delay)
                self._look()
        self._writer.poll()
        if self._failures:
            raise self._failures[0]

    def announce(self) -> Announcement:
        """Wait until Kafka has all records, then announce them. Raises as `send`; nothing is announced then."""
        while self._writer.flush(0.2):
            self._look()
        if self._failures:
            raise self._failures[0]
        if not self.confirmed:
            raise PermanentError("there are no samples to send")
        slices = [str(piece) for piece in _slices(self.topic, self._offsets)]
        said = self._announcement.model_copy(update={"slices": slices, "count": self.confirmed})
        message = said.model_dump_json().encode()
        if len(message) > MAX_STATE_BYTES:
            raise PermanentError(
                f"topic {self.topic} has too many other writers: {len(slices)} slices are too many to announce"
            )
        self._writer.write_all(CONTROL, [(said.stream_id, message)], self._stalled_s)
        return said

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.announce()

    def _note(self, error: Exception | None) -> None:
        if error is not None:
            self._failures.append(error)

    def _place(self, partition: int, offset: int) -> None:
        self._offsets.setdefault(partition, []).append(offset)
        self.confirmed += 1
        self._moved = time.monotonic()

    def _look(self) -> None:
        if time.monotonic() - self._moved > self._stalled_s:
            raise TemporaryError(f"Kafka confirmed nothing for {self.topic} within {self._stalled_s:g} s")


def send_stream(
    cluster: KafkaCluster,
    topic: str,
    x: Array,
    y: NDArray[Any] | None,
    *,
    stream_id: str,
    labels: Sequence[str] = (),
    progress: Progress | None = None,
    **settings: Any,
) -> Announcement:
    """Write `x` (n, *shape) and `y` (n,), `NONE` where a sample has no label, to `topic`, and announce them.

    `settings` are those of `Sender`. Raises as its methods do; `PermanentError` for data that are not whole.
    """
    _check(x, y, labels)
    sender = Sender(
        cluster,
        topic,
        stream_id=stream_id,
        shape=x.shape[1:],
        dtype=x.dtype.name,
        labelled=y is not None,
        labels=labels,
        **settings,
    )
    told = 0
    for i in range(len(x)):
        sender.send(x[i], None if y is None or y[i] == NONE else int(y[i]))
        if progress is not None and sender.confirmed >= told + REPORT_EVERY:
            told = sender.confirmed
            progress(told, len(x))
    announcement = sender.announce()
    if progress is not None:
        progress(len(x), len(x))
    return announcement


def announce_slices(
    cluster: KafkaCluster,
    slices: Sequence[str],
    *,
    stream_id: str,
    format: str,
    config: dict[str, object],
    validation_rate: float = 0.2,
    deployment: str | None = None,
    timeout_s: float = STALLED_S,
) -> Announcement:
    """Announce records that are on Kafka already, whoever wrote them, as a stream; nothing is sent again.

    `slices`: `topic:partition:offset:length` (length counts records, or offsets where some are missing), or the name of
    a topic for all that it holds now. They are read through once, to count them and to see that the first ones are what
    `format` and `config` say. Raises as reading does: `PermanentError` naming the slice or the record that is no good.
    """
    check_name("stream", stream_id)
    pieces = [piece for text in slices for piece in _pieces(cluster, text, timeout_s)]
    parsed = parse_config(config)
    count = 0
    for records in read_slices(cluster, pieces, stalled_s=timeout_s):
        if not count:
            _require_some(format, records, parsed)
        count += len(records)
    if not count:
        raise PermanentError(f"there are no records in {', '.join(slices)[:200]}")
    said = Announcement(
        stream_id=stream_id,
        deployment=deployment,
        slices=[str(piece) for piece in pieces],
        format=format,
        config=config,
        validation_rate=validation_rate,
        count=count,
    )
    ensure_topics(cluster, {CONTROL: 1})
    writer = KafkaWriter("send", cluster)
    writer.write_all(CONTROL, [(stream_id, said.model_dump_json().encode())], timeout_s)
    return said


def _require_some(format: str, records: Sequence[Record], config: StreamConfig) -> None:
    """Raise what is wrong with the first record if none of them can be read: then it is not they who are wrong."""
    bad: list[BadRecord] = []
    x, _y = decode(format, records, config, bad.append)
    if not len(x):
        raise bad[0]


def _pieces(cluster: KafkaCluster, text: str, timeout_s: float) -> list[Slice]:
    """The slices that one text means."""
    if ":" in text:
        return [parse_slice(text)]
    reader = KafkaReader("announce", cluster, "sluice-slices")
    try:
        places = [(text, number) for number in range(reader.partitions(text))]
        ends = [reader.watermarks(place, timeout_s) for place in places]
    finally:
        reader.close()
    return [Slice(*place, low, high - low) for place, (low, high) in zip(places, ends, strict=True) if high > low]


def _check(x: Array, y: NDArray[Any] | None, labels: Sequence[str]) -> None:
    if not len(x):
        raise PermanentError("there are no samples to send")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise PermanentError("x has values that are not finite")
    if y is None:
        return
    if y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise PermanentError(f"y is {y.dtype}{list(y.shape)}, not {len(x)} whole numbers")
    if y.min() < NONE or (labels and y.max() >= len(labels)):
        raise PermanentError(f"y goes from {y.min()} to {y.max()}, there are {len(labels) or 'no negative'} classes")


def _slices(topic: str, offsets: dict[int, list[int]]) -> list[Slice]:
    """The slices, one for each run of neighbouring offsets."""
    found = []
    for partition in sorted(offsets):
        places = np.sort(np.array(offsets[partition]))
        for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
            found.append(Slice(topic, partition, int(run[0]), len(run)))
    return found
