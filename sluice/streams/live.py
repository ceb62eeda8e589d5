"""The live half of `feed`: a consumer group, handed to a job batch by batch for as long as the job wants.

The job decides what is used. It says where it wants to begin, and then, now and then, how many of the batches it has
used and has in its checkpoint. Those ends are committed to the group, so that its lag can be read from outside. They
only follow: a job that was killed begins again where its checkpoint is, whatever the group says, and so each record is
used exactly once. A group of this kind has one member.

What a job says is foreign: lines of JSON, bounded. `{"from": [[topic, partition, offset], …]}` first and once, then
`{"used": N}` (of the batches handed out, how many) and `{"over": true}`. Anything else ends the feed. With the first
line it may ask for `"past": N` samples of what its model was trained on; they come before all else (`past`).
"""

from __future__ import annotations

import logging
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sluice.doors.kafka import TopicPartition
from sluice.streams.group import Group
from sluice.streams.reader import BATCH, Batch
from sluice.wire.errors import PermanentError, TemporaryError, in_short
from sluice.wire.manifest import first_cause

log = logging.getLogger(__name__)

LINE_BYTES = 1_000_000
UNUSED_MOST = 100_000
"""Batches that may be handed out without a word that they were used."""
TICK_S = 1.0
"""After so long without a record an empty batch is handed out, so that the job can look at its clock."""
LAG_EVERY_S = 5.0

Write = Callable[[Batch, dict[str, Any]], None]
"""Called with a batch to hand out, and what there is to tell besides."""


class Live(BaseModel):
    """Topics to be read as they grow, by a consumer group of the job's own."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    topics: tuple[str, ...] = Field(min_length=1, max_length=100)
    """What is read."""
    group: str = Field(min_length=1, max_length=200)
    """The consumer group that shows how far the job is; nobody else may be in it."""
    timeout_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """The stream is over when nothing came for so long; None: never."""
    batch: int = Field(default=BATCH, ge=1)
    """Most records in a batch."""
    from_beginning: bool = True
    """Where a topic partition begins of which neither the job nor the group says anything: with the first record that
    is there, or with the next one that comes."""


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Begin(_Said):
    at: list[tuple[str, int, int]] = Field(alias="from", max_length=10_000)
    past: int | None = Field(default=None, ge=0, le=2**31)


class _Later(_Said):
    used: int | None = Field(default=None, ge=0)
    over: bool = False


SaidT = TypeVar("SaidT", bound=_Said)


class Heard:
    """What a job says through its socket, line by line, each checked. `over`: nothing more will come; `past`: how much
    of what its model was trained on it asked for, None where it did not."""

    def __init__(self, own: socket.socket) -> None:
        self._own = own
        self._rest = b""
        self._used = 0
        self.over = False
        self.past: int | None = None

    def begin(self, topics: Collection[str]) -> dict[TopicPartition, int]:
        """Wait for the first line: where the job begins. Nothing when the job has gone."""
        line = self._line(None)
        if line is None:
            return {}
        said = _checked(_Begin, line)
        self.past = said.past
        found = {(topic, partition): offset for topic, partition, offset in said.at}
        for (topic, partition), offset in found.items():
            if topic not in topics or not 0 <= partition < 2**31 or not 0 <= offset < 2**63:
                raise PermanentError(
                    f"the job wants to begin at {in_short(topic, 80)}:{partition}:{offset}, which is not its own"
                )
        return found

    def used(self, given: int, wait_s: float | None = 0.0) -> int:
        """How many of the `given` batches the job has used, by what it said last."""
        while not self.over and (line := self._line(wait_s)) is not None:
            said, wait_s = _checked(_Later, line), 0.0
            if said.used is not None and not self._used <= said.used <= given:
                raise PermanentError(
                    f"the job says that it used {said.used} batches, of {given} and after {self._used}"
                )
            self._used = self._used if said.used is None else said.used
            self.over |= said.over
        return self._used

    def _line(self, wait_s: float | None) -> bytes | None:
        """The next line; None if there is no whole one within `wait_s` seconds (None: however long that takes)."""
        while b"\n" not in self._rest:
            if len(self._rest) > LINE_BYTES:
                raise PermanentError("the job said a line that is too long")
            if not select.select([self._own], [], [], wait_s)[0]:
                return None
            try:
                data = self._own.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                self.over = True
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def _checked(kind: type[SaidT], line: bytes) -> SaidT:
    try:
        return kind.model_validate_json(line)
    except ValidationError as error:
        raise PermanentError(f"the job said what it may not: {first_cause(error)}") from error


class Handing:
    """Hands batches out to a job, and commits those that it used. `write` raises `OSError` when the job has gone."""

    def __init__(self, group: Group, heard: Heard, write: Write) -> None:
        self._group, self._heard, self._write = group, heard, write
        self._given = 0
        self._unused: deque[Mapping[TopicPartition, int]] = deque()
        """The ends of the batches that the job has not used yet."""
        self._ends: dict[TopicPartition, int] = {}
        """What is used and not committed yet."""
        self._lag: int | None = None
        self._lag_at = 0.0

    def run(self) -> None:
        """Until the job has enough, or the stream is over."""
        tick = 0.0
        while not (self._heard.over or self._group.over):
            batch, now = self._group.take(), time.monotonic()
            if batch is not None or now >= tick:
                self._hand_out(batch or self._group.nothing(), now)
                tick = now + TICK_S
            self._commit()

    def settle(self) -> None:
        """The stream is over, and the job knows: commit what it says now, until it has nothing more to say."""
        while not self._heard.over:
            self._commit(TICK_S)

    def _hand_out(self, batch: Batch, now: float) -> None:
        if now >= self._lag_at or not len(batch.y):
            self._lag, self._lag_at = self._looked(), now + LAG_EVERY_S
        self._write(batch, {"lost": self._group.lost, "lag": self._lag})
        self._unused.append(batch.ends)
        self._given += 1
        if len(self._unused) > UNUSED_MOST:
            raise PermanentError(f"the job took {UNUSED_MOST} batches and did not say that it used them")

    def _looked(self) -> int | None:
        try:
            return sum(self._group.lag().values())
        except (PermanentError, TemporaryError):
            return None

    def _commit(self, wait_s: float = 0.0) -> None:
        used = self._heard.used(self._given, wait_s)
        while self._given - len(self._unused) < used:
            self._ends.update(self._unused.popleft())
        if not self._ends:
            return
        try:
            self._group.commit_ends(self._ends)  # what is someone else's for a moment is ours again, or nobody's loss
        except TemporaryError as error:
            log.debug("%s", error)  # tried again: until then the group looks further behind than the job is
        else:
            self._ends.clear()
