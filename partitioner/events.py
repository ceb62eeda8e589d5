"""How a job speaks with who started it: JSON lines in `events.jsonl`, and the exit code.

`{"event": "progress", "what", "done", "total"}` and `{"event": "metrics", …}` while it works; at the end
`{"event": "done", "result"}` with exit code 0, or `{"event": "failed", "reason", "passing"}` with 2: one line for a
person, and whether it may be over by now. Any other exit code is a crash. `partitioner` and `cloud.training` are the
two jobs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from sluice.wire.errors import PermanentError, SluiceError, TemporaryError
from sluice.wire.manifest import first_cause

DONE, FAILED = 0, 2
MAX_JOB_BYTES = 10_000_000
FILE_BYTES = 4_000_000
"""At this size the file of events is begun anew."""

JobT = TypeVar("JobT", bound=BaseModel)


class Events:
    """The job's events, each written and flushed as it comes."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "events.jsonl"

    def say(self, event: str, **values: Any) -> None:
        """Append one event."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, **values}, allow_nan=False) + "\n")
            size = file.tell()
        if size > FILE_BYTES:  # of a job that runs for ever; whoever reads it has the old file open and goes on there
            new = self._path.with_suffix(".new")
            new.touch()
            new.replace(self._path)

    def progress(self, what: str, done: int, total: int) -> None:
        """What is being done, steps done, steps in all."""
        self.say("progress", what=what, done=done, total=total)


def run(folder: Path, work: Callable[[Path, Events], dict[str, Any]]) -> int:
    """Run `work(folder, events)` and report its result or its failure; returns the exit code."""
    events = Events(folder)
    try:
        result = work(folder, events)
    except SluiceError as error:
        events.say("failed", reason=" ".join(str(error).split()), passing=isinstance(error, TemporaryError))
        return FAILED
    events.say("done", result=result)
    return DONE


def read_job(folder: Path, adapter: TypeAdapter[JobT]) -> JobT:
    """The job in `folder/job.json`; `PermanentError` with the first cause when it is none."""
    try:
        data = (folder / "job.json").read_bytes()
    except OSError as error:
        raise PermanentError(f"job file: {error.strerror}") from error
    if len(data) > MAX_JOB_BYTES:
        raise PermanentError(f"job file of {len(data)} bytes is over the limit of {MAX_JOB_BYTES}")
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        raise PermanentError(f"job file: {first_cause(error)}") from error
