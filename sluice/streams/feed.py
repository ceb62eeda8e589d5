"""`python -m sluice.streams.feed FD`: reads a stream from Kafka for a job that may not know how to reach Kafka.

A job runs foreign code, and whoever can read the service's topics holds a secret. So the service starts two processes:
the job, shut in, and this one, which has Kafka's settings (its wish, one line on standard input) and hands the job
decoded batches through a socket that both were born with. `fed` is the job's side of it.

A frame is a line of JSON and, for a batch, the bytes of its arrays: `{"batch": {"x", "y", "ends"}}`, each array as
`{"dtype", "shape"}`, x then y; `{"end": {"bad", "first"}}`; or `{"failed": {"reason", "passing"}}`. What a job writes
into the socket is not read here: it can end this process, and nothing else.
"""

from __future__ import annotations

import json
import socket
import sys
from typing import IO, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sluice.doors.kafka import KafkaCluster, KafkaWriter
from sluice.streams.bad import BadRecords, letters_to
from sluice.streams.reader import BATCH, Batch, read_stream
from sluice.wire.errors import SluiceError, TemporaryError
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


def serve(wish: Wish, out: IO[bytes]) -> None:
    """Write the whole stream to `out`, then how it ended."""
    writer = KafkaWriter("feed", wish.kafka) if wish.bad_most else None
    bad = BadRecords(wish.bad_most, letters_to(writer, "streams") if writer else None)
    try:
        for batch in read_stream(wish.kafka, wish.stream, batch=wish.batch, bad=bad, classes=wish.classes):
            _write_batch(out, batch)
        if writer is not None and writer.flush(LETTERS_S):
            raise TemporaryError("Kafka does not take the dead letters of bad records")
    except SluiceError as error:
        said = " ".join(str(error).split())
        _write_line(out, {"failed": {"reason": said, "passing": isinstance(error, TemporaryError)}})
    else:
        _write_line(out, {"end": {"bad": bad.count, "first": str(bad.first) if bad.first else None}})
    out.flush()


def _write_batch(out: IO[bytes], batch: Batch) -> None:
    ends = [[topic, partition, offset] for (topic, partition), offset in batch.ends.items()]
    x, y = np.ascontiguousarray(batch.x), np.ascontiguousarray(batch.y)
    _write_line(out, {"batch": {"x": _form(x), "y": _form(y), "ends": ends}})
    out.write(x.data.cast("B") if x.size else b"")
    out.write(y.data.cast("B") if y.size else b"")


def _form(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"dtype": array.dtype.str, "shape": list(array.shape)}


def _write_line(out: IO[bytes], frame: dict[str, Any]) -> None:
    out.write(json.dumps(frame).encode() + b"\n")


def main() -> int:
    """Serve the wish on standard input to the socket whose number is the argument; 0 also when the job has gone."""
    wish = Wish.model_validate_json(sys.stdin.buffer.readline())
    with socket.socket(fileno=int(sys.argv[1])) as own, own.makefile("wb") as out:
        try:
            serve(wish, out)
        except (BrokenPipeError, ConnectionResetError):
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
