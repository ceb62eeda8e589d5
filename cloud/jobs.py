"""Long work: jobs wait in line, run a few at a time, and their rows in the database tell how far they are.

What a kind of job brings into the world is the business of the module that asked for it (`trainings`, `partitions`):
it hands in a `Keep`, which stores a finished job's files and returns what to write in the same transaction that calls
the job done. So a job that is done has all its records, and any other has none.

A kind of job that keeps a checkpoint in its folder goes on from there when something killed it, or the service, or when
what it needs was away (Kafka, for longer than reading waits): its module hands in an `Again`. Each run of a job tells
all of its metrics, those of the checkpoint first.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import queue
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, insert, select, update

from cloud.database import reading, writing
from cloud.job_process import EVENTS, JOB, LOG, Event, Limits, Program, Report, run_job
from cloud.tables import jobs, now_us
from sluice.daemon.life import Backoff
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.thinning import thin

log = logging.getLogger(__name__)

PROGRAMS = {
    "check": Program("partitioner"),
    "training": Program("cloud.training"),
    "evaluation": Program("cloud.training"),
    "live-evaluation": Program("cloud.training"),
    "partition": Program("partitioner"),
    "online": Program("cloud.training"),
}
LIVE = ("online", "live-evaluation")
"""Kinds of job that may run for ever: they have places of their own, and no end by time."""
LIVE_EVENTS_BYTES_S = 20_000
"""What such a job may report in a second, on top of what any job may in all."""
PROGRESS_EVERY_S = 0.5
MAX_METRICS = 5000
"""Entries of a job's metrics; those of a live one are thinned out (`sluice.wire.thinning`)."""
MOST_RUNS = 3
"""Runs of a job in a row that were killed, or missed what they need, and came no further: then it has failed."""
AGAIN_S = 2.0
"""Between two of them."""
FINISH = "finish"
"""A file that tells a live job to end well."""
GOES_ON_WITH = (JOB, "input.keras", "segment-*.tflite", "checkpoint.npz", FINISH)
"""What is left in the folder of a job that goes on; a job runs foreign code, so nothing else, and no links."""

Keep = Callable[[str, Path, dict[str, Any]], Callable[[Connection], None]]
"""Called with a finished job's id, folder and result; stores files, returns what to write into the database.

Raises `PermanentError` when the job's output is not what it should be: the job has failed then.
"""

Hear = Callable[[str, Path, Event], Callable[[Connection], None]]
"""Called with a running job's id, folder and an event that is neither progress nor metrics; as `Keep` otherwise.

Raises `PermanentError` when it may not say that: the job has failed then.
"""

Again = Callable[[str], str | None]
"""Called with the id of a job that goes on; returns its wish (see `Task`), made anew: secrets are kept nowhere.

Raises `PermanentError` when it cannot go on.
"""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it is handed in.

    `spec` is for its `job.json`; `files` are copied into its folder under their names; `record` writes what belongs to
    its row; `wish` is the stream that it is fed with.
    """

    spec: Mapping[str, Any]
    files: Mapping[str, Path]
    record: Callable[[Connection, str], None]
    wish: str | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """A job in line."""

    job_id: str
    kind: str
    cancelled: threading.Event
    wish: str | None = None
    """The stream that it works on (`sluice.streams.feed.Wish`), which its own file does not tell it how to reach."""


class Runner:
    """Runs jobs in threads of its own, `at_once` at the same time; checks run in the thread that asks."""

    def __init__(
        self,
        engine: Engine,
        data: Path,
        limits: Limits,
        check_time_s: float,
        *,
        at_once: int = 1,
        live_at_once: int = 1,
        waiting: int = 100,
        programs: Mapping[str, Program] = PROGRAMS,
    ) -> None:
        self._engine = engine
        self._data = data.resolve()
        self.folder = self._data / "jobs"
        self._limits = limits
        self._check_limits = replace(limits, time_s=check_time_s)
        self._at_once = {False: at_once, True: live_at_once}
        """How many jobs run at the same time: those that end, and live ones."""
        self._programs = programs
        self._keeps: dict[str, Keep] = {}
        self._again: dict[str, Again] = {}
        self._waiting = waiting
        self._hears: dict[str, Hear] = {}
        self._lines: dict[bool, queue.Queue[Task | None]] = {live: queue.Queue() for live in self._at_once}
        self._tasks: dict[str, Task] = {}
        self._stopping = threading.Event()
        self._interrupted: set[str] = set()
        self._check_slot = threading.Semaphore(1)
        self._threads: list[threading.Thread] = []

    def start(
        self,
        keeps: Mapping[str, Keep],
        again: Mapping[str, Again] | None = None,
        hears: Mapping[str, Hear] | None = None,
    ) -> None:
        """Begin, with what an earlier service left unfinished: jobs of a kind in `again` go in line, others failed."""
        self._keeps, self._again, self._hears = dict(keeps), dict(again or {}), dict(hears or {})
        left = select(jobs.c.id, jobs.c.kind).where(jobs.c.state.in_(("queued", "running")))
        with reading(self._engine) as connection:
            found = connection.execute(left.order_by(jobs.c.created_at, jobs.c.id)).all()
        for job_id, kind in found:
            self._take_up(job_id, kind)
        for live, count in self._at_once.items():
            for number in range(count):
                name = f"{'live-' if live else ''}job-{number}"
                thread = threading.Thread(target=self._work, args=(self._lines[live],), name=name, daemon=True)
                thread.start()
                self._threads.append(thread)

    def _take_up(self, job_id: str, kind: str) -> None:
        try:
            if kind not in self._again:
                raise PermanentError("the service was restarted")
            task = Task(job_id, kind, threading.Event(), self._again[kind](job_id))
            _clear(self.folder / job_id, GOES_ON_WITH)
        except (PermanentError, OSError) as error:
            self._set(job_id, state="failed", reason=str(error), ended_at=now_us())
            return
        self._set(job_id, state="queued")
        self._tasks[job_id] = task
        self._lines[kind in LIVE].put(task)
        log.info("job goes on after a restart", extra={"job": job_id})

    def stop(self) -> None:
        """End all jobs, checks too; no more begin. Returns at once; `join` waits."""
        self._stopping.set()
        for task in list(self._tasks.values()):
            if not task.cancelled.is_set():
                self._interrupted.add(task.job_id)
            task.cancelled.set()
        for line in self._lines.values():
            for _ in self._threads:
                line.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait until the job threads have ended, `timeout_s` at most for each."""
        for thread in self._threads:
            thread.join(timeout_s)

    def begin(self, kind: str, new: Sequence[Job]) -> list[str]:
        """Put jobs in line, all or none, and return their ids: their folders, then their rows, then their turns.

        Raises `TemporaryError` when too many jobs wait or the database is away; then nothing of them is there.
        """
        line = self._lines[kind in LIVE]
        if line.qsize() + len(new) > self._waiting or self._stopping.is_set():
            raise TemporaryError("too many jobs are waiting", 10)
        tasks = [Task(f"{kind}-{secrets.token_hex(6)}", kind, threading.Event(), one.wish) for one in new]
        try:
            for task, one in zip(tasks, new, strict=True):
                self._write_folder(self.folder / task.job_id, {"kind": kind, **one.spec}, one.files)
            with writing(self._engine) as connection:
                for task, one in zip(tasks, new, strict=True):
                    row = {"id": task.job_id, "kind": kind, "state": "queued", "metrics": [], "created_at": now_us()}
                    connection.execute(insert(jobs).values(row))
                    one.record(connection, task.job_id)
        except BaseException:
            for task in tasks:
                shutil.rmtree(self.folder / task.job_id, ignore_errors=True)
            raise
        for task in tasks:
            self._tasks[task.job_id] = task
            line.put(task)
        return [task.job_id for task in tasks]

    def cancel(self, job_id: str) -> None:
        """End a job that waits or runs; nothing happens to one that has ended."""
        task = self._tasks.get(job_id)
        if task is not None:
            task.cancelled.set()
            with writing(self._engine) as connection:
                waiting = (jobs.c.id == job_id) & (jobs.c.state == "queued")
                ended = {"state": "cancelled", "reason": "cancelled", "ended_at": now_us()}
                connection.execute(update(jobs).where(waiting).values(ended))

    def finish(self, job_id: str) -> None:
        """Tell a live job that waits or runs to come to its end, with what it has."""
        if job_id in self._tasks:
            path = self.folder / job_id / FINISH
            with contextlib.suppress(FileExistsError):  # told already; a link of the job's making is not followed
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o644))

    def check(self, spec: Mapping[str, Any], files: Mapping[str, Path]) -> dict[str, Any]:
        """Run a check job now and return its result; nothing of it stays.

        Raises `PermanentError` with the cause when the model is no good, `TemporaryError` when no check can run now.
        """
        if not self._check_slot.acquire(timeout=self._check_limits.time_s):
            raise TemporaryError("other models are being checked", 10)
        job_id = f"check-{secrets.token_hex(6)}"
        folder = self.folder / job_id
        task = Task(job_id, "check", threading.Event())
        self._tasks[job_id] = task
        try:
            if self._stopping.is_set():
                raise TemporaryError("the service is stopping")
            self._write_folder(folder, {"kind": "check", **spec}, files)
            report = self._run(task, self._check_limits)
        finally:
            del self._tasks[job_id]
            self._check_slot.release()
            with contextlib.suppress(RecursionError):
                shutil.rmtree(folder, ignore_errors=True)
        if report.state == "cancelled":
            raise TemporaryError("the service is stopping")
        if report.state == "failed":
            raise PermanentError(report.reason or "the check failed")
        return report.result

    def _write_folder(self, folder: Path, spec: Mapping[str, Any], files: Mapping[str, Path]) -> None:
        folder.mkdir(parents=True)
        for name, source in files.items():
            shutil.copyfile(source, folder / name)
        (folder / JOB).write_text(json.dumps(spec))

    def _work(self, line: queue.Queue[Task | None]) -> None:
        while (task := line.get()) is not None and not self._stopping.is_set():
            try:
                self._do(task)
            finally:
                self._tasks.pop(task.job_id, None)

    def _do(self, task: Task) -> None:
        if task.cancelled.is_set():
            return
        self._set(task.job_id, state="running", started_at=now_us())
        log.info("job begins", extra={"job": task.job_id})
        report = self._run_on(task)
        if task.job_id in self._interrupted and report.state == "cancelled":
            if task.kind in self._again:
                self._set(task.job_id, state="queued")
                return
            report = Report("failed", "the service was stopped")
        self._finish(task, report)

    def _run_on(self, task: Task) -> Report:
        """Run a job to its end; one of a kind that goes on also when what ended it may be over (see `Report`)."""
        limits = self._limits
        if task.kind in LIVE:
            limits = replace(limits, time_s=math.inf, events_s=LIVE_EVENTS_BYTES_S)
        left_s, vain, reached = limits.time_s, 0, 0
        while True:
            begun = time.monotonic()
            writer = _Progress(lambda values: self._set(task.job_id, **values), task.kind in LIVE)
            report = self._run(
                task, replace(limits, time_s=left_s), partial(self._hear, task, writer), writer.write_when_due
            )
            writer.write()
            left_s -= time.monotonic() - begun
            if not report.passing or task.kind not in self._again or task.cancelled.is_set() or left_s <= 0:
                return report
            vain = 1 if writer.count > reached else vain + 1
            reached = max(reached, writer.count)
            if vain >= MOST_RUNS:
                return report
            log.warning("job goes on after %s", report.reason, extra={"job": task.job_id})
            try:
                _clear(self.folder / task.job_id, GOES_ON_WITH)
            except OSError as error:
                return Report("failed", f"{report.reason}, and cannot go on: {error}")
            task.cancelled.wait(AGAIN_S)

    def _hear(self, task: Task, writer: _Progress, event: Event) -> None:
        if event["event"] in writer.KINDS:
            writer.take(event)
        elif hear := self._hears.get(task.kind):
            write = hear(task.job_id, self.folder / task.job_id, event)
            self._set(task.job_id, write, state="running")

    def _run(
        self,
        task: Task,
        limits: Limits,
        on_event: Callable[[Event], None] = lambda _event: None,
        on_look: Callable[[], None] = lambda: None,
    ) -> Report:
        folder = self.folder / task.job_id
        try:
            program = self._programs[task.kind]
            return run_job(program, folder, self._data, limits, task.cancelled, on_event, task.wish, on_look)
        except (OSError, RecursionError) as error:
            return Report("failed", f"the job could not run: {error}")

    def _finish(self, task: Task, report: Report) -> None:
        folder = self.folder / task.job_id
        write: Callable[[Connection], None] | None = None
        if report.state == "done" and (keep := self._keeps.get(task.kind)):
            try:
                write = keep(task.job_id, folder, report.result)
            except (PermanentError, OSError) as error:
                report = Report("failed", str(error))
        self._set(
            task.job_id,
            write,
            state=report.state,
            reason=report.reason,
            result=report.result or None,
            ended_at=now_us(),
        )
        log.info("job ended", extra={"job": task.job_id, "state": report.state, "reason": report.reason})
        try:
            _clear(folder, (JOB, EVENTS, LOG))
        except (OSError, RecursionError) as error:  # it shut a folder, or made one without end: others have their turn
            log.warning("what the job left stays where it is: %s", error, extra={"job": task.job_id})

    def _set(self, job_id: str, write: Callable[[Connection], None] | None = None, **values: Any) -> None:
        """Update a job's row, and write what else belongs to it; waits for a database that is away."""
        backoff = Backoff()
        while True:
            try:
                with writing(self._engine) as connection:
                    connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values))
                    if write is not None:
                        write(connection)
            except TemporaryError as error:
                log.warning("job cannot be recorded: %s", error, extra={"job": job_id})
                if self._stopping.wait(backoff.wait_s()):
                    return  # the next service takes it up, or calls it failed
            else:
                return


class _Progress:
    """Gathers what a job reports and writes it now and then."""

    KINDS = ("progress", "metrics")

    def __init__(self, write: Callable[[dict[str, Any]], None], live: bool = False) -> None:
        self._write = write
        self._live = live
        self._values: dict[str, Any] = {}
        self._metrics: list[Event] = []
        self._next_s = 0.0
        self.count = 0
        """How far the job came: how many metrics it told; of a live job, of how many records."""

    def take(self, event: Event) -> None:
        """One progress or metrics event."""
        event = dict(event)
        if event.pop("event") == "progress":
            self._values["progress"] = event
        elif self._live:
            records = event.get("records")
            self.count = max(self.count, records) if isinstance(records, int) else self.count
            self._metrics.append(event)
            thin(self._metrics)
            self._values["metrics"] = self._metrics
        elif self.count < MAX_METRICS:
            self.count += 1
            self._metrics.append(event)
            self._values["metrics"] = self._metrics
        self.write_when_due()

    def write_when_due(self) -> None:
        """Write what is new, if the last time is long enough ago."""
        if time.monotonic() >= self._next_s:
            self.write()

    def write(self) -> None:
        """Write what is new."""
        if self._values:
            self._write(self._values)
            self._values = {}
        self._next_s = time.monotonic() + PROGRESS_EVERY_S


def _clear(folder: Path, kept: Sequence[str]) -> None:
    """Remove all that a job left in its folder but the files named `kept` (`*`: anything)."""
    for entry in folder.iterdir():
        mode = entry.lstat().st_mode
        if not any(fnmatch(entry.name, name) for name in kept) or not stat.S_ISREG(mode):
            shutil.rmtree(entry) if stat.S_ISDIR(mode) else entry.unlink()


def state_of(engine: Engine, job_id: str) -> dict[str, Any] | None:
    """The row of a job; None if there is none."""
    with reading(engine) as connection:
        row = connection.execute(select(jobs).where(jobs.c.id == job_id)).mappings().first()
    return dict(row) if row else None
