"""`make fuzz`: all decoders fuzzed, `INPUTS` inputs in all, in processes that are watched.

    make fuzz INPUTS=1000000 SEED=1

Inputs are dealt out in tasks of one decoder each, with seeds of their own; two processes work on them. One that ends by
itself, or takes too long over an input, is taken note of and the rest of its task goes on behind that input. What went
wrong is kept as a file in `build/fuzz/<decoder>/`; copied into `tests/fuzz/corpus/<decoder>/` it is part of the unit
tests (`tests/unit/test_fuzz.py`) from then on. With atheris installed (extra `fuzz`), a share goes to `guided.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import mmap
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.fuzz import guided
from tests.fuzz.targets import targets
from tests.fuzz.worker import HEAD, SHARED_BYTES, shared

TASK = 25_000
HANG_S = 60.0
"""Of one input by the clock, on a machine that may be busy; CPU time is bounded in `feed.py`."""
START_S = 120.0
GUIDED_SHARE = 0.1
MAKE = "import sys, pathlib; from tests.unit import bundle_support as b; b.make_bundle(pathlib.Path(sys.argv[1]))"
"""A bundle of real segments, made in a process of its own, because that takes TensorFlow."""


@dataclass(slots=True)
class Seen:
    """What all processes saw."""

    inputs: int = 0
    slowest_s: float = 0.0
    most_bytes: int = 0
    troubles: dict[tuple[str, str], tuple[str, Path]] = field(default_factory=dict)
    """By decoder and kind: (words, the smallest input)."""
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True, slots=True)
class Task:
    """Some inputs of one decoder; done by `guided` if `guide`."""

    target: str
    seed: int
    count: int
    guide: bool = False


def deal(inputs: int, seed: int, names: dict[str, int], guide: bool) -> list[Task]:
    """The tasks: `inputs` dealt out to the decoders by their shares."""
    tasks: list[Task] = []
    left = inputs
    if guide:
        each = int(inputs * GUIDED_SHARE) // len(guided.TARGETS)
        tasks += [Task(name, seed, each, guide=True) for name in guided.TARGETS if each]
        left -= sum(task.count for task in tasks)
    parts, turns = sum(names.values()), list(names.items())
    for number, (name, share) in enumerate(turns):
        rest = left * share // parts if number < len(turns) - 1 else left - sum(t.count for t in tasks if not t.guide)
        while rest > 0:
            tasks.append(Task(name, seed * 1_000_000 + len(tasks), min(TASK, rest)))
            rest -= TASK
    return tasks


class Run:
    """One run: its folder, what it saw, and the bar that shows how far it is."""

    def __init__(self, folder: Path, out: Path, advance: threading.Event) -> None:
        self.folder, self.out, self.moved = folder, out, advance
        self.seen = Seen()
        self.bundle = folder / "bundle"

    def note(self, target: str, kind: str, words: str, data: bytes) -> None:
        """Keep an input that must not do what it did; the smallest of its kind."""
        with self.seen.lock:
            known = self.seen.troubles.get((target, kind))
            if known is not None and known[1].stat().st_size <= len(data):
                return
            place = self.out / target / hashlib.sha256(data).hexdigest()[:16]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
            if known is not None and known[1] != place:
                known[1].unlink(missing_ok=True)
            self.seen.troubles[(target, kind)] = (words, place)

    def count(self, inputs: int) -> None:
        """Some more inputs are through."""
        with self.seen.lock:
            self.seen.inputs += inputs
        self.moved.set()

    def work_on(self, task: Task) -> None:
        """All inputs of a task, in as many processes as it takes."""
        seed, left = task.seed, task.count
        while left > 0:
            done = self._process(task.target, seed, left)
            left -= done
            seed += 500_009

    def _process(self, target: str, seed: int, count: int) -> int:
        """One process; the number of inputs that it dealt with."""
        with tempfile.NamedTemporaryFile(dir=self.folder) as file:
            file.truncate(SHARED_BYTES)
            command = [sys.executable, "-m", "tests.fuzz.worker", target, str(seed), str(count), file.name]
            if target == "golden":
                command.append(f"--bundle={self.bundle}")
            log = self.folder / f"{target}-{seed}.log"
            with shared(Path(file.name)) as place, log.open("wb") as errors:
                child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
                assert child.stdout is not None
                told: queue.SimpleQueue[bytes] = queue.SimpleQueue()
                threading.Thread(target=lambda out: told.put(out.read()), args=(child.stdout,), daemon=True).start()
                hung = self._watch(child, place)
                inputs, begun_ns, length = HEAD.unpack_from(place, 0)
                at_hand = bytes(place[HEAD.size : HEAD.size + length])
                said = told.get()
                child.stdout.close()
            if child.returncode == 0:
                self._take_in(target, json.loads(said))
                return count
            if not begun_ns:
                raise SystemExit(f"fuzzing {target} (seed {seed}) did not work:\n{log.read_text()[-3000:]}")
            words = f"hang: over {HANG_S:.0f} s" if hung else f"process ended with {child.returncode}"
            self.note(target, words, words, at_hand)
            self.count(1)
            return int(inputs) + 1

    def _watch(self, child: subprocess.Popen[bytes], place: mmap.mmap) -> bool:
        """Wait for a process; True if it had to be killed because of the input at hand."""
        counted, started = 0, time.monotonic()
        while True:
            try:
                child.wait(0.5)
            except subprocess.TimeoutExpired:
                pass
            inputs, begun_ns, _ = HEAD.unpack_from(place, 0)
            self.count(inputs - counted)
            counted = inputs
            if child.returncode is not None:
                return False
            stuck = begun_ns and time.monotonic_ns() - begun_ns > HANG_S * 1e9
            if stuck or (not inputs and time.monotonic() - started > START_S + HANG_S):
                child.kill()
                child.wait()
                return True

    def _take_in(self, target: str, said: dict[str, Any]) -> None:
        with self.seen.lock:
            self.seen.slowest_s = max(self.seen.slowest_s, said["slowest_s"])
            self.seen.most_bytes = max(self.seen.most_bytes, said["most_bytes"])
        for kind, (words, data) in said["troubles"].items():
            self.note(target, kind, words, bytes.fromhex(data))

    def guided(self, task: Task) -> None:
        """A task of `guided.py`."""
        for words, data in guided.run(task.target, task.seed, task.count, self.folder):
            self.note(task.target, words.split(":")[0], words, data)
        self.count(task.count)


def main() -> None:
    """Deal out, work, tell; exit code 1 if anything went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="these decoders alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"))
    args = parser.parse_args()
    console = Console()
    guide = importlib.util.find_spec("atheris") is not None
    if not guide:
        console.print("atheris is not installed (extra `fuzz`): nothing is guided by coverage")
    with tempfile.TemporaryDirectory(prefix="sluice-fuzz-") as temporary:
        folder, begun = Path(temporary), time.monotonic()
        subprocess.run([sys.executable, "-c", MAKE, str(folder / "bundle")], check=True, capture_output=True)
        shares = {name: target.share for name, target in targets(folder / "bundle").items()}
        if args.only:
            shares = {name: shares[name] for name in args.only}
        moved = threading.Event()
        run = Run(folder, args.out.resolve(), moved)
        tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        dealt = deal(args.inputs, args.seed, shares, guide and not args.only)
        for task in [*dealt, *[None] * args.jobs]:
            tasks.put(task)
        _work(run, tasks, args.jobs, args.inputs, console)
        seen, took = run.seen, time.monotonic() - begun
    for (target, _), (words, place) in sorted(seen.troubles.items()):
        console.print(f"{target}: {words}\n  {place}", markup=False)
    console.print(
        f"inputs {seen.inputs}, crashes {len(seen.troubles)}, slowest {seen.slowest_s * 1000:.0f} ms, "
        f"peak memory {seen.most_bytes / 1e6:.0f} MB, seed {args.seed}, {took:.0f} s"
    )
    sys.exit(1 if seen.troubles else 0)


def _work(run: Run, tasks: queue.SimpleQueue[Task | None], jobs: int, inputs: int, console: Console) -> None:
    failed: list[BaseException] = []

    def take() -> None:
        try:
            while (task := tasks.get()) is not None:
                (run.guided if task.guide else run.work_on)(task)
        except BaseException as error:
            failed.append(error)
        run.moved.set()

    threads = [threading.Thread(target=take, daemon=True) for _ in range(jobs)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        shown = bar.add_task("inputs", total=inputs)
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) and not failed:
            run.moved.wait(1.0)
            run.moved.clear()
            crashes = f"inputs, {len(run.seen.troubles)} crashes" if run.seen.troubles else "inputs"
            bar.update(shown, completed=run.seen.inputs, description=crashes)
    if failed:
        raise failed[0]


if __name__ == "__main__":
    main()
