"""What can go wrong, as a table, and the plan that a seed makes of it.

A fault is a function with one `yield`: before it the fault begins, after it the fault is over; how long it lasts, what
it hits and its dice come from the plan. A plan is drawn before the start and begins each fault at a number of samples
that were shown, so that a seed can be run again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.e2e.chaos.path import BROKERS, DISKS, LINKS, ROOMS

if TYPE_CHECKING:
    from tests.e2e.chaos.run import Run


@dataclass(frozen=True)
class Planned:
    """One fault of a plan: begins when `at` samples were shown, hits `target`, lasts `lasts_s`."""

    number: int
    at: int
    kind: str
    target: str
    lasts_s: float
    seed: int

    @property
    def dice(self) -> random.Random:
        """Its own dice: the same each time it is run."""
        return random.Random(self.seed)

    @property
    def claims(self) -> set[str]:
        """What no other fault may touch while it lasts."""
        return {self.target, *KINDS[self.kind].claims}


Course = Iterator[None]


@dataclass(frozen=True)
class Kind:
    """A line of the table."""

    course: Callable[[Run, Planned], Course]
    targets: tuple[str, ...]
    lasts_s: tuple[float, float]
    claims: tuple[str, ...] = ()


KINDS: dict[str, Kind] = {}


def fault(
    name: str, targets: Sequence[str], lasts_s: tuple[float, float], claims: Sequence[str] = ()
) -> Callable[[Callable[[Run, Planned], Course]], Callable[[Run, Planned], Course]]:
    """Put a fault into the table."""

    def enter(course: Callable[[Run, Planned], Course]) -> Callable[[Run, Planned], Course]:
        KINDS[name] = Kind(course, tuple(targets), lasts_s, tuple(claims))
        return course

    return enter


@fault("kill", ROOMS, (0.0, 3.0))
def _kill(run: Run, planned: Planned) -> Course:
    """kill -9, and started again."""
    run.path.kill(planned.target)
    yield
    run.path.start(planned.target)


@fault("restart", ROOMS, (0.0, 2.0))
def _restart(run: Run, planned: Planned) -> Course:
    """Stopped in good order, and started again."""
    run.path.stop(planned.target)
    yield
    run.path.start(planned.target)


@fault("freeze", (*ROOMS, *BROKERS), (1.0, 14.0))
def _freeze(run: Run, planned: Planned) -> Course:
    """SIGSTOP, longer than a Kafka group waits for a member, at times; then SIGCONT."""
    run.path.freeze(planned.target)
    yield
    run.path.thaw(planned.target)


@fault("broker-kill", BROKERS, (0.0, 4.0))
def _broker_kill(run: Run, planned: Planned) -> Course:
    run.path.kill(planned.target)
    yield
    run.path.start(planned.target)


@fault("broker-restart", BROKERS, (0.0, 4.0))
def _broker_restart(run: Run, planned: Planned) -> Course:
    run.path.stop(planned.target)
    yield
    run.path.start(planned.target)


@fault("cut", LINKS, (1.0, 10.0))
def _cut(run: Run, planned: Planned) -> Course:
    """All connections end, new ones are refused."""
    run.path.links.by_name[planned.target].cut()
    run.path.cut.setdefault(planned.target, []).append(time.monotonic())
    yield
    run.path.links.by_name[planned.target].mend()


@fault("stall", LINKS, (1.0, 12.0))
def _stall(run: Run, planned: Planned) -> Course:
    """Connections stay, and nothing passes."""
    run.path.links.by_name[planned.target].stall()
    yield
    run.path.links.by_name[planned.target].mend()


@fault("slow", LINKS, (3.0, 10.0))
def _slow(run: Run, planned: Planned) -> Course:
    run.path.links.by_name[planned.target].slow(planned.dice.uniform(0.05, 0.8))
    yield
    run.path.links.by_name[planned.target].mend()


@fault("thin", LINKS, (3.0, 10.0))
def _thin(run: Run, planned: Planned) -> Course:
    """A few thousand bytes a second, both ways together."""
    run.path.links.by_name[planned.target].thin(planned.dice.uniform(1500, 12_000))
    yield
    run.path.links.by_name[planned.target].mend()


@fault("second-stage", ("stage-fog-2", "stage-cloud-2"), (4.0, 12.0))
def _second_stage(run: Run, planned: Planned) -> Course:
    """One more worker comes, and goes in good order or by kill -9."""
    name, like = planned.target, planned.target.removesuffix("-2")
    own = {"STAGE_TRANSACTIONAL_ID": name, "STAGE_DATA": str(run.path.folder / name)}
    run.path.join(name, like, own)
    yield
    (run.path.stop if planned.dice.random() < 0.5 else run.path.kill)(name)


@fault("second-gateway", ("gateway-2",), (4.0, 12.0))
def _second_gateway(run: Run, planned: Planned) -> Course:
    """One more gateway at the same broker comes, and goes in good order or by kill -9."""
    run.path.join(planned.target, "gateway", {"GATEWAY_NAME": planned.target})
    yield
    (run.path.stop if planned.dice.random() < 0.5 else run.path.kill)(planned.target)


@fault("full-disk", DISKS, (2.0, 8.0))
def _full_disk(run: Run, planned: Planned) -> Course:
    """Not a byte left for a device's store; for a stage, which must fetch its bundles anew just then."""
    stage = planned.target.startswith("stage")
    if stage:
        run.path.stop(planned.target)
        run.path.empty_bundles(planned.target)
    run.path.fill_disk(planned.target)
    if stage:
        run.path.start(planned.target)
    yield
    run.path.free_disk(planned.target)


@fault("clock", ROOMS, (3.0, 10.0))
def _clock(run: Run, planned: Planned) -> Course:
    """The wall clock jumps by seconds, hours or days, either way, and back."""
    dice, clocks = planned.dice, run.path.clocks
    assert clocks is not None
    clocks.set(planned.target, dice.choice((-1, 1)) * dice.choice((20, 7200, 3 * 86_400)))
    yield
    clocks.set(planned.target, 0)


@fault("rollout", ("bundle", "operating-point"), (0.0, 5.0), claims=("bundle", "operating-point"))
def _rollout(run: Run, planned: Planned) -> Course:
    """The other bundle, or another operating point, to all devices or one."""
    run.rollouts.begin(planned.target, planned.dice)
    yield
    while run.rollouts.under_way:
        yield


@fault("corrupt", ("mqtt", "kafka"), (0.0, 0.0), claims=("uplink", "sensor-b", "kafka"))
def _corrupt(run: Run, planned: Planned) -> Course:
    """Some broken messages on topics that the rooms read."""
    dice = planned.dice
    for _ in range(3):
        run.corruption.send(planned.target, dice)
    yield


FEW = (
    ("kill", "gateway"),
    ("kill", "stage-fog"),
    ("kill", "device-a"),
    ("broker-kill", "uplink"),
    ("broker-restart", "sensor-b"),
    ("broker-kill", "kafka"),
    ("cut", "device-b~uplink"),
    ("corrupt", "mqtt"),
    ("rollout", "bundle"),
)
"""The faults of the short form, each once."""


def draw(seed: int, count: int, samples: int, only: Sequence[tuple[str, str]] = ()) -> list[Planned]:
    """A plan: kinds by turns in an order of the seed's, so that `count` faults hold as many of each; or `only` these.

    They begin between the first twentieth and the last tenth of the samples.
    """
    dice = random.Random(seed)
    chosen: list[tuple[str, str]] = list(only)
    dice.shuffle(chosen)
    while not only and len(chosen) < count:
        kinds = list(KINDS)
        dice.shuffle(kinds)
        chosen += [(kind, dice.choice(KINDS[kind].targets)) for kind in kinds]
    chosen = chosen[:count]
    first, last = samples * 0.05, samples * 0.9
    step = (last - first) / max(len(chosen), 1)
    plan = []
    for i, (kind, target) in enumerate(chosen):
        at = int(first + (i + dice.random() * 0.8) * step)
        plan.append(
            Planned(i + 1, at, kind, target, round(dice.uniform(*KINDS[kind].lasts_s), 2), dice.getrandbits(32))
        )
    return plan
