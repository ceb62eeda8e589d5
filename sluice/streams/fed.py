"""The job's side of `feed`: a stream from the socket that the job was born with, in batches or as a whole."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sluice.streams.reader import Batch, Progress, gather
from sluice.streams.samples import Array, Labels, parse_config
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.state import Announcement

LINE_BYTES = 1_000_000


class Fed:
    """A stream, once. `bad` and `first_bad`: how many records were left out, and the first; known at the end."""

    def __init__(self, descriptor: int) -> None:
        with socket.socket(fileno=descriptor) as own:
            self._in = own.makefile("rb")
        self.bad = 0
        self.first_bad: str | None = None

    def __iter__(self) -> Iterator[Batch]:
        """The batches. Raises as reading does, `TemporaryError` too when the feed ends before the stream."""
        while True:
            frame = self._frame()
            if (batch := frame.get("batch")) is not None:
                ends = {(topic, partition): offset for topic, partition, offset in batch["ends"]}
                yield Batch(self._array(batch["x"]), self._array(batch["y"]), ends)
            elif (failed := frame.get("failed")) is not None:
                raise (TemporaryError if failed["passing"] else PermanentError)(failed["reason"])
            else:
                self.bad, self.first_bad = frame["end"]["bad"], frame["end"]["first"]
                return

    def load(
        self, announcement: Announcement, folder: Path | None = None, progress: Progress | None = None
    ) -> tuple[Array, Labels]:
        """All samples of the announced stream: x (n, *shape), y (n,), as `sluice.streams.reader.load_stream`."""
        config = parse_config(announcement.config)
        return gather(self, config, announcement.count, folder=folder, progress=progress)

    def _frame(self) -> dict[str, Any]:
        line = self._in.readline(LINE_BYTES)
        if not line.endswith(b"\n"):
            raise TemporaryError("whoever reads the stream from Kafka ended before it did")
        frame: dict[str, Any] = json.loads(line)
        return frame

    def _array(self, form: dict[str, Any]) -> np.ndarray[Any, Any]:
        array = np.empty(form["shape"], np.dtype(form["dtype"]))
        if array.size and self._in.readinto(array.data.cast("B")) != array.nbytes:
            raise TemporaryError("whoever reads the stream from Kafka ended in the middle of a batch")
        return array
