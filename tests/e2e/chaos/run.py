"""A run: start the path, show samples, begin and end faults as the plan says, wait until all is answered, judge.

The loop belongs to the main thread, since the kernel ends children with the thread that started them.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sluice.wire.errors import TemporaryError
from tests.e2e.chaos import evidence as evidences
from tests.e2e.chaos.bundles import make_bundles
from tests.e2e.chaos.corruption import Corruption
from tests.e2e.chaos.courses import Courses
from tests.e2e.chaos.faults import KINDS, Planned, draw
from tests.e2e.chaos.memory import Memory
from tests.e2e.chaos.path import SENSOR_BROKER, WholePath
from tests.e2e.chaos.rollouts import Rollouts
from tests.e2e.chaos.sensor import Sensor
from tests.e2e.chaos.verdict import Verdict, judge

TICK_S = 0.02
PATIENCE_S = 150.0
"""After so long without any further answer the run ends as it stands."""

KNOWN_ENDS = {
    "a call to librdkafka does not return": "stages ended because librdkafka did not return",
    "reading from Kafka stands still": "readers ended because librdkafka stood still",
}
"""Last words of a process that is right to end, and what it is counted as: no other help is known for it."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What is run; the same again with the same values."""

    seed: int
    faults: int
    samples: int
    delivery: str
    rate_hz: float
    only: Sequence[tuple[str, str]] = ()
    """Just these faults, in an order of the seed's; else `faults` of all kinds."""


class Run:
    """One run; `go` returns the verdict."""

    def __init__(self, options: Options, path: WholePath, folder: Path, say: Say) -> None:
        self.options, self.path, self.say = options, path, say
        images, self.chains = make_bundles(folder / "bundles")
        self.rollouts = Rollouts(path, self.chains)
        self.corruption = Corruption(path)
        self.memory = Memory()
        self.sensor = Sensor(
            {device: path.sensor_broker(device) for device in path.system.devices},
            images,
            run=f"r{secrets.token_hex(3)}",
            count=options.samples,
            rate_hz=options.rate_hz,
            broker_died=lambda device, begin, end: path.died_between(SENSOR_BROKER[device], begin - 5, end),
        )
        self._going = Courses()
        self.begun = 0
        """Faults that have begun: neither left out nor "not now"."""
        self._begun = time.monotonic()
        self._tick = threading.Event()

    def go(self) -> Verdict:
        """Show, hurt, wait, judge."""
        self.corruption.start()
        self.sensor.start()
        waiting = deque(self._possible(draw_plan(self.options)))
        answered, since = 0, time.monotonic()
        while waiting or self._going or not (self.sensor.all_shown and self.sensor.all_answered):
            self._watch()
            self._going.end()
            while waiting and len(self.sensor.shown) >= waiting[0].at and self._going.free(waiting[0]):
                self._begin(waiting.popleft())
            if self.sensor.answered != answered or self._going.in_time:
                answered, since = self.sensor.answered, time.monotonic()
            if time.monotonic() > since + PATIENCE_S:
                self.say(f"no further answer for {PATIENCE_S:g} s")
                break
            self._tick.wait(TICK_S)
        return self._judge()

    def _possible(self, plan: list[Planned]) -> list[Planned]:
        return [planned for planned in plan if planned.kind not in self.path.left_out]

    def _begin(self, planned: Planned) -> None:
        course = KINDS[planned.kind].course(self, planned)
        shown, sensor = len(self.sensor.shown), self.sensor
        self.say(
            f"{time.monotonic() - self._begun:6.0f} s  fault {planned.number}/{self.options.faults}  sample {shown}"
            f" ({shown - sensor.answered} open)  {planned.kind} {planned.target} {planned.lasts_s:g} s"
        )
        try:
            self._going.begin(planned, course)
        except TemporaryError as error:
            self.say(f"          not now: {error}")
            return
        self.begun += 1

    def _watch(self) -> None:
        for crash in self.path.supervise():
            self.say(f"          {crash.name} ended by itself, code {crash.code}: {crash.words}")
        pids = {name: room.child.pid for name, room in self.path.rooms.items() if room.running}
        self.memory.look(pids)

    def _judge(self) -> Verdict:
        """What can be asked while everything runs, then the rest."""
        end = time.monotonic() + PATIENCE_S
        self._going.end(all_of_them=True)
        while self._going and time.monotonic() < end:
            self._tick.wait(TICK_S)
            self._going.end(all_of_them=True)
        not_running = self.path.not_running()
        missed = self.rollouts.not_reached(30.0)
        self._settle()
        found = evidences.collect(self.path)
        self.sensor.stop()
        self.corruption.stop()
        verdict = judge(self.path, self.sensor, self.chains, found, self.corruption.sent)
        for name in not_running:
            verdict.breaks("everything runs at the end", name)
        for what in missed:
            verdict.breaks("every device runs at the end what it shall", what)
        for crash in self.path.crashes:
            known = next((why for words, why in KNOWN_ENDS.items() if words in crash.words), None)
            if known is not None:
                verdict.counts[known] += 1
            else:
                verdict.breaks("nothing ends by itself", f"{crash.name} at {crash.at - self._begun:.0f} s")
        for growth in self.memory.growths():
            verdict.counts["process lives with flat memory"] += growth.flat
            if not growth.flat:
                verdict.breaks("memory stays flat", str(growth))
        for device in self.path.system.devices:
            self.path.stop(device)
            for left in evidences.left_in_store(self.path, device):
                verdict.breaks("at the end nothing is left in an outbox", left)
        for what in self.sensor.broken:
            verdict.breaks("an observer hears answers to what was shown", what)
        verdict.counts["republished"] = self.sensor.republished
        verdict.counts["faults"] = self.begun
        return verdict

    def _settle(self) -> None:
        """Wait until all that was shown stands in the results, and the devices have reported since."""
        deadline = time.monotonic() + 60
        with self.path.system.client() as client:
            while time.monotonic() < deadline:
                summary = client.summary()
                if summary["by_status"].get("final", 0) >= len(self.sensor.shown):
                    break
                self._tick.wait(0.5)
        for _ in range(8):
            self._watch()
            self._tick.wait(1.0)


def draw_plan(options: Options) -> list[Planned]:
    """The plan of these options."""
    return draw(options.seed, options.faults, options.samples, options.only)


def run(options: Options, say: Say) -> Verdict:
    """A whole run in a folder of its own, which is kept if a promise was broken. Ends with one line."""
    folder = Path(tempfile.mkdtemp(prefix="sluice-chaos-"))
    verdict: Verdict | None = None
    begun = time.monotonic()
    logging.basicConfig(filename=folder / "harness.log", format="%(asctime)s %(name)s %(message)s", force=True)
    try:
        with WholePath(folder, options.delivery) as path:
            verdict = Run(options, path, folder, say).go()
            left_out = dict(path.left_out)
    finally:
        if verdict is None or verdict.broken:
            say(f"logs of all processes are kept in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    for line in verdict.lines():
        say(line)
    say(closing_line(options, verdict, left_out, time.monotonic() - begun))
    return verdict


def closing_line(options: Options, verdict: Verdict, left_out: dict[str, str], seconds: float) -> str:
    """The run in one line."""
    c = verdict.counts
    main = f"faults {c['faults']} of {options.faults} samples {options.samples} lost {len(verdict.lost)}"
    main += f" repeated {c['repeated']} mixed {c['mixed']}"
    causes = ", ".join(f"{name} {count}" for name, count in sorted(c.items()) if name not in MAIN and count)
    missing = f" | LEFT OUT: {', '.join(f'{kind} ({why})' for kind, why in left_out.items())}" if left_out else ""
    broken = f" | broken promises: {len(verdict.broken)}" if verdict.broken else " | all promises kept"
    how = f"seed {options.seed} {options.delivery} {options.rate_hz:g}/s in {seconds:.0f} s"
    return f"{main} | {how}{broken} | {causes or 'nothing else'}{missing}"


MAIN = ("faults", "repeated", "mixed")
