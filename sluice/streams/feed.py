"""`python -m sluice.streams.feed FD`: reads a stream from Kafka for a job that may not know how to reach Kafka.

A job runs foreign code, and whoever can read the service's topics holds a secret. So the service starts two processes:
the job, shut in, and this one, which has Kafka's settings (its wish, one line on standard input) and hands the job
decoded batches through a socket that both were born with. `fed` is the job's side of it.

A frame is a line of JSON and, for a batch, the bytes of its arrays: `{"batch": {"x", "y", "ends"}}`, each array as
`{"dtype", "shape"}`, x then y; `{"end": {"bad", "first"}}`; or `{"failed": {"reason", "passing"}}`. Of a whole stream
nothing is read that a job writes into the socket. Of a live one (`live`), and of slices that the job counts itself, it
says where it begins and what it used, and a batch has `told`; of a live one it has two arrays more, `places` and
`offsets`. A job on a live stream that asks for it gets some of what its model was trained on first (`past`): batches
without `told`, then `{"past": {"records", "gone", "read", "bad", "reason"}}`. Whatever a job says can end this process,
nothing else.
"""

from __future__ import annotations

import json
import socket
import sys
from dataclasses import asdict
from typing import IO, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sluice.daemon.secrecy import keep_to_itself
from sluice.doors.kafka import KafkaCluster, KafkaWriter, TopicPartition
from sluice.streams.bad import BadRecords, letters_to
from sluice.streams.group import Group
from sluice.streams.live import TICK_S, Handing, Heard, Live
from sluice.streams.past import Found, Past, read_past
from sluice.streams.reader import BATCH, STALLED_S, Batch, read_rest, read_stream
from sluice.wire.errors import SluiceError, TemporaryError
from sluice.wire.slices import parse_slice
from sluice.wire.state import Announcement

LETTERS_S = 10.0
"""How long Kafka may take for the dead letters."""


class Wish(BaseModel):
    """What is to be read, and from where."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kafka: KafkaCluster
    """Where the stream is; the job is not told."""
    stream: Announcement
    """The stream, all of its slices."""
    bad_most: int = Field(default=0, ge=0)
    """Bad records that are left out, each to become a dead letter; one more ends it."""
    classes: int | None = Field(default=None, ge=1)
    """How many classes the job's model tells apart: a record with a label beyond them is bad."""
    batch: int = Field(default=BATCH, ge=1)
    """Most records in a batch."""
    live: Live | None = None
    """Read these topics as they grow, not the stream's slices; the stream says what their records are."""
    past: Past | None = None
    """Before a live stream the job may have a sample of this, which its model was trained on."""
    begins: bool = False
    """Of slices too the job says where it begins and what it used, and each record is handed out once."""
    stalled_s: float = Field(default=STALLED_S, gt=0)
    """How long Kafka may give nothing before reading is given up."""


def serve(wish: Wish, out: IO[bytes], own: socket.socket | None = None) -> None:
    """Write the whole stream to `out`, then how it ended. `own`: where the job speaks, of a live stream."""
    writer = KafkaWriter("feed", wish.kafka) if wish.bad_most else None
    bad = BadRecords(wish.bad_most, letters_to(writer, "streams") if writer else None)
    try:
        if wish.live is not None and own is not None:
            _serve_live(wish, wish.live, out, own, bad, writer)
            return
        if wish.begins and own is not None:
            _serve_rest(wish, out, own, bad, writer)
            return
        whole = read_stream(
            wish.kafka, wish.stream, batch=wish.batch, bad=bad, classes=wish.classes, stalled_s=wish.stalled_s
        )
        for batch in whole:
            _write_batch(out, batch)
        if writer is not None and writer.flush(LETTERS_S):
            raise TemporaryError("Kafka does not take the dead letters of bad records")
    except SluiceError as error:
        if writer is not None:
            writer.flush(LETTERS_S)  # as many letters as can be
        said = " ".join(str(error).split())
        _write_line(out, {"failed": {"reason": said, "passing": isinstance(error, TemporaryError)}})
    else:
        _write_line(out, {"end": _told(bad)})
    out.flush()


def _serve_live(
    wish: Wish, live: Live, out: IO[bytes], own: socket.socket, bad: BadRecords, writer: KafkaWriter | None
) -> None:
    heard = Heard(own)
    begin = heard.begin(live.topics)
    if heard.over:
        return
    if heard.past is not None:
        _hand_out_past(wish, live, out, begin, heard.past)

    def write(batch: Batch, told: dict[str, Any]) -> None:
        if writer is not None:
            writer.poll()
        _write_batch(out, batch, _told(bad) | told)
        out.flush()

    with Group(
        wish.kafka,
        live.topics,
        wish.stream.format,
        wish.stream.config,
        live.group,
        timeout_s=live.timeout_s,
        batch=live.batch,
        from_beginning=live.from_beginning,
        bad=bad,
        begin=begin,
        classes=wish.classes,
    ) as group:
        handing = Handing(group, heard, write)
        handing.run()
        if writer is not None and writer.flush(LETTERS_S):
            raise TemporaryError("Kafka does not take the dead letters of bad records")
        if not heard.over:
            _write_line(out, {"end": _told(bad)})
            out.flush()
            handing.settle()


def _hand_out_past(wish: Wish, live: Live, out: IO[bytes], begin: dict[TopicPartition, int], most: int) -> None:
    """What the job is reminded of; what its live stream begins with is not among it."""

    def before(place: TopicPartition) -> int | None:
        if place[0] not in live.topics:
            return None
        return begin.get(place, 0 if live.from_beginning else None)

    found = Found()
    if wish.past is not None:
        batches = read_past(
            wish.kafka,
            wish.past,
            most,
            found,
            like=wish.stream,
            before=before,
            classes=wish.classes,
            stalled_s=wish.stalled_s,
        )
        for batch in batches:
            _write_batch(out, batch)
    _write_line(out, {"past": asdict(found)})
    out.flush()


def _serve_rest(wish: Wish, out: IO[bytes], own: socket.socket, bad: BadRecords, writer: KafkaWriter | None) -> None:
    heard, given = Heard(own), 0
    begin = heard.begin({parse_slice(text).topic for text in wish.stream.slices})
    if heard.over:
        return
    rest = read_rest(
        wish.kafka, wish.stream, begin, batch=wish.batch, bad=bad, classes=wish.classes, stalled_s=wish.stalled_s
    )
    for batch in rest:
        if writer is not None:
            writer.poll()
        _write_batch(out, batch, _told(bad))
        out.flush()
        given += 1
        heard.used(given)
        if heard.over:
            return
    if writer is not None and writer.flush(LETTERS_S):
        raise TemporaryError("Kafka does not take the dead letters of bad records")
    _write_line(out, {"end": _told(bad)})
    out.flush()
    while not heard.over:  # nothing is committed; but a job that says something finds somebody who listens
        heard.used(given, TICK_S)


def _told(bad: BadRecords) -> dict[str, Any]:
    return {"bad": bad.count, "first": str(bad.first) if bad.first else None}


def _write_batch(out: IO[bytes], batch: Batch, told: dict[str, Any] | None = None) -> None:
    ends = [[topic, partition, offset] for (topic, partition), offset in batch.ends.items()]
    given = {"x": batch.x, "y": batch.y, "places": batch.places, "offsets": batch.offsets}
    arrays = {name: np.ascontiguousarray(array) for name, array in given.items() if array is not None}
    forms = {name: _form(array) for name, array in arrays.items()}
    _write_line(out, {"batch": {**forms, "ends": ends, **({"told": told} if told else {})}})
    for array in arrays.values():
        out.write(array.data.cast("B") if array.size else b"")


def _form(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"dtype": array.dtype.str, "shape": list(array.shape)}


def _write_line(out: IO[bytes], frame: dict[str, Any]) -> None:
    out.write(json.dumps(frame).encode() + b"\n")


def main() -> int:
    """Serve the wish on standard input to the socket whose number is the argument; 0 also when the job has gone."""
    keep_to_itself()
    wish = Wish.model_validate_json(sys.stdin.buffer.readline())
    try:
        with socket.socket(fileno=int(sys.argv[1])) as own, own.makefile("wb") as out:
            serve(wish, out, own)
    except (BrokenPipeError, ConnectionResetError):
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
