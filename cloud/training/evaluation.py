"""Evaluation as a job: a trained model or a bundle, on slices of a stream or a live group, each record counted once.

Records are not kept: a batch comes, every exit answers, the answers are counted (`counts`), and the batch is gone. How
far that is stands in the checkpoint, which holds the counts too; the feed is told where to begin, and hands out the
rest. Running figures are told less and less often, so that an evaluation may run for ever.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from cloud.training.answers import Asked
from cloud.training.chain import chain
from cloud.training.counts import Counts
from cloud.training.keras_asked import keras_model
from partitioner.events import Events, read_job
from sluice.streams.fed import Fed
from sluice.streams.samples import parse_config
from sluice.wire.errors import PermanentError
from sluice.wire.evaluation import EvaluationSettings
from sluice.wire.slices import Slice, merged, parse_slice
from sluice.wire.state import Announcement

FINISH = "finish"
"""A file that tells a live evaluation to end well."""
KEEP_EVERY_S = 1.0
KEEP_REST = 20
"""A checkpoint is written after this time, and after so many times as long as the last one took."""
TELL_EVERY_S = 1.0
TELL_SHARE = 0.01
"""Running figures come after this time, and after this share of all the time so far: some 1400 in a year."""


class EvaluationJob(BaseModel):
    """Count how right this model, or bundle, is on that stream."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["evaluation", "live-evaluation"]
    model: dict[str, str]
    """As `load_model` takes it; or `manifest` (JSON) and `operating_point` of a bundle."""
    stream: Announcement
    settings: EvaluationSettings = EvaluationSettings()


def work(folder: Path, events: Events, descriptor: int | None) -> dict[str, Any]:
    """Do the evaluation in `folder`, on the stream that comes through `descriptor`, from where its checkpoint is.

    Returns by exit `metrics` (loss in nats, accuracy) and `confusion`, and how many records they are of; of a bundle
    also those of its operating point, and `exit_share`.
    """
    assert descriptor is not None
    fed = Fed(descriptor)
    job = read_job(folder, TypeAdapter(EvaluationJob))
    asked = _asked(job.model, folder)
    asked.require(parse_config(job.stream.config), job.stream.stream_id)
    counts = Counts(asked.exits, asked.classes, asked.more)
    counts.load(folder)
    fed.begin(counts.ends)
    keeping = _Keeping(job, folder, events, counts)
    missed = counts.tally.bad, counts.tally.lost
    batch = None
    for batch in () if _is_enough(job, counts, folder) else fed:
        counts.add(asked.answer(batch.x), batch.y, batch.ends)
        counts.miss(missed[0] + fed.bad, fed.first_bad, missed[1] + fed.lost)
        _require_few_bad(job, counts)
        if keeping.due:
            keeping.keep()
            fed.used(batch)
        if _is_enough(job, counts, folder):
            break
    keeping.keep(last=True)
    if batch is not None:
        fed.used(batch)
    fed.close()
    _require_all(job, counts)
    return {"confusion": counts.confusion(), **counts.figures()}


def _asked(model: dict[str, str], folder: Path) -> Asked:
    if "manifest" in model:
        return chain(model["manifest"], model["operating_point"], folder)
    return keras_model(model, folder)


class _Keeping:
    """Writes the checkpoint now and then, and tells running figures now and then, those of earlier runs first."""

    def __init__(self, job: EvaluationJob, folder: Path, events: Events, counts: Counts) -> None:
        self._folder, self._events, self._counts = folder, events, counts
        self._slices = [] if job.settings.live else merged(parse_slice(text) for text in job.stream.slices)
        self._begun_s = time.monotonic() - counts.tally.seconds
        self._next_s = time.monotonic()
        self._tell_at_s = 0.0
        for entry in counts.tally.told:
            events.say("metrics", **entry)

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() >= self._next_s

    def keep(self, last: bool = False) -> None:
        """Write the checkpoint if there is something new; then tell running figures if it is time. The `last` ones are
        always told."""
        begun, counts = time.monotonic(), self._counts
        self._next_s = begun + KEEP_EVERY_S
        if not (counts.changed or last):
            return
        tally = counts.tally
        tally.seconds = begun - self._begun_s
        told = None
        if last or tally.seconds >= self._tell_at_s:
            self._tell_at_s = tally.seconds + max(TELL_EVERY_S, TELL_SHARE * tally.seconds)
            told = counts.figures()
            tally.told.append(told)
        counts.save(self._folder)
        now = time.monotonic()
        self._next_s = now + max(KEEP_EVERY_S, KEEP_REST * (now - begun))
        if told is not None:
            self._events.say("metrics", **told)
            if self._slices:
                done = sum(_covered(counts, piece) for piece in self._slices)
                self._events.progress("counting records", done, sum(piece.length for piece in self._slices))


def _covered(counts: Counts, piece: Slice) -> int:
    """How many offsets of a slice are counted."""
    reached = counts.ends.get((piece.topic, piece.partition), 0)
    return min(max(reached - piece.offset, 0), piece.length)


def _is_enough(job: EvaluationJob, counts: Counts, folder: Path) -> bool:
    """Whether a live evaluation has its records, or was told to come to an end."""
    live = job.settings.live
    if live is None:
        return False
    return (live.records is not None and counts.tally.records >= live.records) or (folder / FINISH).exists()


def _require_few_bad(job: EvaluationJob, counts: Counts) -> None:
    """The feed bears so many in each run of the job; this is of all runs."""
    tally = counts.tally
    if tally.bad > job.settings.bad_most:
        raise PermanentError(
            f"{tally.bad} records are bad, {job.settings.bad_most} would be left out; the first: {tally.first_bad}"
        )


def _require_all(job: EvaluationJob, counts: Counts) -> None:
    """Of a whole stream it is known how many records there are."""
    read = counts.tally.records + counts.tally.bad
    whole = not job.settings.slices and job.settings.live is None
    if whole and read != job.stream.count:
        raise PermanentError(
            f"stream {job.stream.stream_id!r} has {read} records where {job.stream.count} were announced"
        )
