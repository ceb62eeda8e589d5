"""One job as a child process: start it, watch it, hear what it reports, end it.

A job is a program that runs foreign code (a model is code). It gets a folder with `job.json`, a clean environment and
limits on time, memory and output, and says what it does in `events.jsonl`, one JSON object a line. `run_job` returns
when no process of it is left. The thread that calls it must live until then: the kernel ends the job with that thread.

A job that works on a stream does not read it from Kafka: a second process does, which knows how to, and hands it over
(`sluice.streams.feed`). The job gets the number of its end of the socket as its second argument.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import selectors
import signal
import socket
import stat
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import psutil

import cloud
from cloud.artifacts import open_output
from sluice.wire.errors import PermanentError

JOB, EVENTS, LOG = "job.json", "events.jsonl", "log.txt"
TICK_S = 0.1
MAX_EVENTS_BYTES = 16_000_000
MAX_EVENT_BYTES = 1_000_000
TAIL_BYTES = 4000
START = Path(__file__).parent / "job_start.py"
INSTALLED = Path(cloud.__file__).resolve().parents[1]
OWN = ("cloud", "partitioner", "sluice", "sluice.egg-info")
"""Of an installation, what a job works with: packages, and which version they are of; beside them, in a checkout, there
may be anything."""
MOST_PROCESSES = 256
"""Of one job, at the same time."""
FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Event = dict[str, Any]
Ended = Literal["done", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one job may use: seconds, bytes of resident memory (with its children), of files, of log, and threads.

    `events_s`: bytes that it may report in a second, on top of what any job may in all.
    """

    time_s: float
    memory: int
    output: int
    log: int
    threads: int = 0
    events_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Program:
    """A module with a `__main__`, and where to find it if not in the service's own installation."""

    module: str
    path: Path | None = None


@dataclass(slots=True)
class Report:
    """How a job ended: `result` of a job that is done, `reason` of any other.

    `passing`: it failed for what says nothing of the job itself and may be over: a signal from outside, Kafka away.
    """

    state: Ended
    reason: str | None = None
    result: dict[str, Any] = field(default_factory=dict)
    passing: bool = False


def run_job(
    program: Program,
    folder: Path,
    hidden: Path,
    limits: Limits,
    cancelled: threading.Event,
    on_event: Callable[[Event], None],
    wish: str | None = None,
    on_look: Callable[[], None] = lambda: None,
) -> Report:
    """Run `program` in `folder` to its end, and report. `hidden` is the folder that it must not read.

    `on_event` hears progress and metrics as they come, `on_look` is called each time that they were looked for. Setting
    `cancelled` ends the job. `wish` (JSON, see `sluice.streams.feed.Wish`) is the stream that it is fed with.
    """
    folder, hidden = folder.resolve(), hidden.resolve()
    with contextlib.ExitStack() as ends:
        fed: socket.socket | None = None
        if wish is not None:
            fed, feeding = socket.socketpair()
            with feeding:
                ends.callback(_end, _start_feed(feeding, wish, folder))
        with fed or contextlib.nullcontext():
            process = _start(program, folder, hidden, limits, fed)
        ends.callback(_end, process)
        return _watch(process, folder, limits, cancelled, on_event, on_look)


def _start_feed(feeding: socket.socket, wish: str, folder: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "sluice.streams.feed", str(feeding.fileno())],
        env=environment(Program("sluice.streams.feed"), folder, 1),
        stdin=subprocess.PIPE,
        pass_fds=(feeding.fileno(),),
        start_new_session=True,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:  # it ended already: the job will hear of that
        process.stdin.write(wish.encode() + b"\n")
    return process


def _start(
    program: Program, folder: Path, hidden: Path, limits: Limits, fed: socket.socket | None
) -> subprocess.Popen[bytes]:
    (folder / "tmp").mkdir(exist_ok=True)
    walls = {"parent": os.getpid(), "folder": str(folder), "hidden": str(hidden), "output": limits.output}
    confine = [sys.executable, "-I", "-S", str(START), json.dumps(walls | _readable(program))]
    # -P: what lies in the job's folder is no part of the program
    more = [] if fed is None else [str(fed.fileno())]
    return subprocess.Popen(
        [*confine, sys.executable, "-P", "-m", program.module, str(folder), *more],
        cwd=folder,
        env=environment(program, folder, limits.threads),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=() if fed is None else (fed.fileno(),),
    )


def environment(program: Program, folder: Path, threads: int) -> dict[str, str]:
    """The environment of a job: nothing of the service's own."""
    clean = {
        "PATH": os.defpath,
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
    }
    paths = [program.path] if program.path else []
    if not INSTALLED.is_relative_to(sysconfig.get_path("purelib")):
        paths.append(INSTALLED)  # run from a checkout
    if paths:
        clean["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    if threads:
        clean["OMP_NUM_THREADS"] = clean["TF_NUM_INTRAOP_THREADS"] = str(threads)
    return clean


def _readable(program: Program) -> dict[str, list[str]]:
    """What a job may read beside what any program reads: Python, what is installed for it, and the program."""
    readable = [*_of_python(), *(str(INSTALLED / name) for name in OWN)]
    if program.path:
        readable.append(str(program.path))
    return {"readable": readable, "listed": [str(INSTALLED)]}


@functools.cache
def _of_python() -> tuple[str, ...]:
    """Where a job finds Python and its packages: as an interpreter says that nobody told where it is."""
    ask = [sys.executable, "-I", "-c", "import json, sys; print(json.dumps(sys.path))"]
    told = json.loads(subprocess.run(ask, capture_output=True, check=True).stdout)
    found = {
        sys.prefix,
        sys.base_prefix,
        *(path for path in told if Path(path).is_absolute() and Path(path) != INSTALLED),
    }
    return tuple(sorted(found))


def _watch(
    process: subprocess.Popen[bytes],
    folder: Path,
    limits: Limits,
    cancelled: threading.Event,
    on_event: Callable[[Event], None],
    on_look: Callable[[], None],
) -> Report:
    log = _Log(process, folder / LOG, limits.log)
    events = _Events(folder, on_event, limits.events_s)
    given = _size(folder)
    deadline = time.monotonic() + limits.time_s
    next_look = 0.0
    try:
        while process.poll() is None:
            log.copy(TICK_S)
            if cancelled.is_set():
                return Report("cancelled", "cancelled")
            if (now := time.monotonic()) < next_look:
                continue
            next_look = now + TICK_S
            events.read()
            on_look()
            if now > deadline:
                return Report("failed", f"the job took longer than {limits.time_s:g} s and was ended")
            if reason := _over_limit(process.pid, folder, given, limits):
                return Report("failed", reason)
        log.copy(0.0)
        events.read()
    except PermanentError as error:
        return Report("failed", str(error))
    finally:
        log.close()
        events.close()
    return _judged(process.returncode, events.last, log.tail)


def _judged(code: int, last: Event, tail: bytes) -> Report:
    """How a program ended that was not stopped by us: what it said itself, if its exit code agrees."""
    if code == 0 and last.get("event") == "done" and isinstance(last.get("result"), dict):
        return Report("done", result=last["result"])
    if code == 2 and last.get("event") == "failed":
        return Report("failed", str(last.get("reason"))[:2000], passing=last.get("passing") is True)
    lines = tail.decode(errors="replace").replace("\0", "\ufffd").strip().splitlines()
    how = f"signal {_name_of(-code)}" if code < 0 else f"exit code {code}"
    reason = f"the job ended by {how}" + (f": {lines[-1][:500]}" if lines else "")
    return Report("failed", reason, passing=-code in FROM_OUTSIDE)


def _name_of(number: int) -> str:
    """The name of a signal; its number where it has none (those from 32 on)."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _over_limit(pid: int, folder: Path, given: int, limits: Limits) -> str | None:
    family = _family(pid)
    if len(family) > MOST_PROCESSES:
        return f"the job ran {len(family)} processes and was ended; its limit is {MOST_PROCESSES}"
    if (used := _resident(family)) > limits.memory:
        limit = limits.memory / 1e6
        return f"the job held {used / 1e6:.0f} MB of memory and was ended; its limit is {limit:.0f} MB"
    if (written := _size(folder) - given + _nameless(family)) > limits.output:
        limit = limits.output / 1e6
        return f"the job wrote {written / 1e6:.0f} MB and was ended; its limit is {limit:.0f} MB"
    return None


def _family(pid: int) -> list[psutil.Process]:
    """A process and all that it started; empty when it has gone."""
    try:
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _resident(family: list[psutil.Process]) -> int:
    """Bytes that they hold in memory."""
    total = 0
    for process in family:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def _nameless(family: list[psutil.Process]) -> int:
    """Bytes on disk of files that they have open and removed: no folder shows them."""
    found: dict[tuple[int, int], int] = {}
    for process in family:
        try:
            with os.scandir(f"/proc/{process.pid}/fd") as opened:
                for file in (one.stat() for one in opened):
                    if stat.S_ISREG(file.st_mode) and not file.st_nlink:
                        found[file.st_dev, file.st_ino] = file.st_blocks * 512
        except OSError:  # it has gone, or closed the one that was looked at: there is a next time
            continue
    return sum(found.values())


def _size(folder: Path) -> int:
    total = 0
    for parent, _folders, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size  # noqa: PTH118 - many files, ten times a second
            except FileNotFoundError:
                continue
    return total


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left of the job's process group, and wait for the program itself."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()


class _Log:
    """Copies what the job prints into a file, up to a bound; keeps the end of it all."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path, limit: int) -> None:
        assert process.stdout is not None
        self._process = process
        self._pipe = process.stdout
        os.set_blocking(self._pipe.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pipe, selectors.EVENT_READ)
        self._file = path.open("wb", buffering=0)
        self._left = limit
        self._open = True
        self.tail = b""

    def copy(self, wait_s: float) -> None:
        """Copy what is there; with `wait_s` only one piece, waiting that long for it."""
        if not self._open:  # the job closed its output and goes on
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(wait_s)
            return
        while self._selector.select(wait_s):
            chunk = os.read(self._pipe.fileno(), 1 << 16)
            if not chunk:
                self._open = False
                return
            self._file.write(chunk[: self._left])
            self._left -= min(len(chunk), self._left)
            self.tail = (self.tail + chunk)[-TAIL_BYTES:]
            if wait_s:
                return

    def close(self) -> None:
        """Close the pipe and the file."""
        self._selector.close()
        self._file.close()
        self._pipe.close()


class _Events:
    """Reads the lines that are complete in `events.jsonl`, each once; and goes on where the job began it anew."""

    def __init__(self, folder: Path, on_event: Callable[[Event], None], bytes_s: float) -> None:
        self._folder = folder
        self._on_event = on_event
        self._bytes_s, self._begun = bytes_s, time.monotonic()
        self._file: BinaryIO | None = None
        self._rest = b""
        self._read = 0
        self.last: Event = {}

    def read(self) -> None:
        """Take in what is new. Raises `PermanentError` for more or other than a job may say."""
        if self._file is None:
            if not (self._folder / EVENTS).exists():
                return
            self._file = open_output(self._folder, EVENTS)
        self._drain(self._file)
        if self._is_another():
            self._drain(self._file)  # what came into the old one last
            self._file.close()
            self._file = open_output(self._folder, EVENTS)
            self._drain(self._file)

    def _is_another(self) -> bool:
        """Whether the file of that name is not the one that is open."""
        assert self._file is not None
        try:
            there = os.lstat(self._folder / EVENTS)
        except FileNotFoundError:
            return False
        return there.st_ino != os.fstat(self._file.fileno()).st_ino

    def _drain(self, file: BinaryIO) -> None:
        while data := file.read(MAX_EVENT_BYTES):
            self._read += len(data)
            if self._read > MAX_EVENTS_BYTES + self._bytes_s * (time.monotonic() - self._begun):
                raise PermanentError("the job reported more than it may")
            *lines, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > MAX_EVENT_BYTES:
                raise PermanentError("the job reported a line that is too long")
            for line in lines:
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            event = json.loads(line)
            said = json.dumps(event, allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:  # NaN, half characters, and nesting without end as well
            raise PermanentError(f"the job's report is not JSON: {line[:80]!r}") from error
        if rb"\u0000" in said:  # no database takes it
            raise PermanentError(f"the job's report has a zero character: {line[:80]!r}")
        if not isinstance(event, dict):
            raise PermanentError(f"the job's report is not an object: {line[:80]!r}")
        self.last = event
        if event.get("event") in ("progress", "metrics", "candidate"):
            self._on_event(event)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
