"""The job's side of `feed`: a stream from the socket that the job was born with, in batches or as a whole.

Of a live stream (`live`), or of slices of which each record counts once (`begins` in the wish), the job says where it
begins, and which batches it has used once its checkpoint says so too:

    fed.begin(checkpoint.ends)  # with past=N, and no checkpoint: then come fed.past() first
    for batch in fed:  # empty ones too, now and then, so that the job can look at its clock
        …
        checkpoint.ends.update(batch.ends)
        checkpoint.save(), fed.used(batch)
    fed.close()
"""

from __future__ import annotations

import json
import socket
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sluice.doors.kafka import TopicPartition
from sluice.streams.reader import Batch, Progress, gather
from sluice.streams.samples import Array, Labels, parse_config
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.state import Announcement

LINE_BYTES = 1_000_000
GONE = "whoever reads the stream from Kafka ended before it did"


class Fed:
    """A stream, once. `bad` and `first_bad`: how many records were left out, and the first; known at the end.

    Of a live stream they are known up to the batch at hand; `lost`: how many records retention took before they were
    read, `lag`: how many offsets there were behind the batch, a moment ago, None where Kafka did not say. All count
    from where this run of the job began.
    """

    def __init__(self, descriptor: int) -> None:
        with socket.socket(fileno=descriptor) as own:
            self._in = own.makefile("rb")
            self._out = own.makefile("wb")
        self._given = 0
        self.bad = 0
        self.first_bad: str | None = None
        self.lost = 0
        self.lag: int | None = None
        self.found: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Batch]:
        """The batches. Raises as reading does, `TemporaryError` too when the feed ends before the stream."""
        last = yield from self._batches()
        self._hear(last["end"])

    def past(self) -> Iterator[Batch]:
        """What was asked for of what the model was trained on: x (n, *shape), y (n,) each, and no more than that.

        To be read before anything else. Afterwards `found` tells of it as `sluice.streams.past.Found`. Raises as above.
        """
        last = yield from self._batches()
        self.found = last["past"]

    def _batches(self) -> Generator[Batch, None, dict[str, Any]]:
        """Batches, and the frame that ends them."""
        while (batch := (frame := self._frame()).get("batch")) is not None:
            yield self._batch(batch)
        if (failed := frame.get("failed")) is not None:
            raise (TemporaryError if failed["passing"] else PermanentError)(failed["reason"])
        return frame

    def begin(self, positions: Mapping[TopicPartition, int], past: int | None = None) -> None:
        """Say, first of all, where a live stream is to begin: the offset of the first record of each topic partition.

        Of those not named: where the group stands, or as the wish says. With `past` so many samples of what the model
        was trained on, at most, come first.
        """
        begin = [[topic, partition, offset] for (topic, partition), offset in positions.items()]
        self._say({"from": begin} if past is None else {"from": begin, "past": past})

    def used(self, batch: Batch) -> None:
        """This batch of a live stream and all before it were used, and will not be asked for again."""
        self._say({"used": batch.number})

    def close(self) -> None:
        """Enough of a live stream. Returns when what was used is committed; after its end too."""
        self._say({"over": True})
        with _whoever_reads_goes():
            while self._in.read(1 << 16):
                pass  # what was under way

    def load(
        self, announcement: Announcement, folder: Path | None = None, progress: Progress | None = None
    ) -> tuple[Array, Labels]:
        """All samples of the announced stream: x (n, *shape), y (n,), as `sluice.streams.reader.load_stream`."""
        config = parse_config(announcement.config)
        return gather(self, config, announcement.count, folder=folder, progress=progress)

    def _batch(self, form: dict[str, Any]) -> Batch:
        ends = {(topic, partition): offset for topic, partition, offset in form["ends"]}
        x, y = self._array(form["x"]), self._array(form["y"])
        if "told" not in form:
            return Batch(x, y, ends)
        self._given += 1
        self._hear(form["told"])
        if "offsets" not in form:
            return Batch(x, y, ends, number=self._given)
        return Batch(x, y, ends, self._array(form["places"]), self._array(form["offsets"]), self._given)

    def _hear(self, told: dict[str, Any]) -> None:
        self.bad, self.first_bad = told["bad"], told["first"]
        self.lost, self.lag = told.get("lost", self.lost), told.get("lag", self.lag)

    def _say(self, line: dict[str, Any]) -> None:
        with _whoever_reads_goes():
            self._out.write(json.dumps(line).encode() + b"\n")
            self._out.flush()

    def _frame(self) -> dict[str, Any]:
        with _whoever_reads_goes():
            line = self._in.readline(LINE_BYTES)
        if not line.endswith(b"\n"):
            raise TemporaryError(GONE)
        frame: dict[str, Any] = json.loads(line)
        return frame

    def _array(self, form: dict[str, Any]) -> np.ndarray[Any, Any]:
        array = np.empty(form["shape"], np.dtype(form["dtype"]))
        with _whoever_reads_goes():
            whole = not array.size or self._in.readinto(array.data.cast("B")) == array.nbytes
        if not whole:
            raise TemporaryError(f"{GONE}, in the middle of a batch")
        return array


@contextmanager
def _whoever_reads_goes() -> Iterator[None]:
    """An error of the socket is the end of the feed: one that had not read all we said resets it when it is killed."""
    try:
        yield
    except OSError as error:
        raise TemporaryError(GONE) from error
