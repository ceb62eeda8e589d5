"""The plan tells the truth: what it predicts against what is measured, and the plan chosen against all others.

A CNN with two early exits on MNIST, cut and calibrated as `sluice partition` does, in many settings of split, exits,
thresholds, codec and uplink. Test images that the plan never saw travel one at a time, as it assumes: the stages of
`sluice.stage.step` run the segments, messages are encoded and decoded as they travel. The clock is made of what was
spent: compute counts with the processor time that the thread took (so that it does not matter who else is at work on
the machine), on the device `SLOW` times; a link holds a message up, packet by packet, for its bytes and its delay.

Settings that are to keep the promise compete: the plan's own choice, what is best by the plan at every other split
point, and no split at all. All take the same samples, block by block in turns; a ratio is of two blocks of the same
samples. Besides: how long planning takes for a model with 80 split points and 3 exits, on made-up measurements.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bench import data
from bench.chains import quiet_keras, train
from bench.report import Report
from sluice.stage.step import Stage, Work, step, unpack
from sluice.wire.codec import CODECS, encode_tensor
from sluice.wire.manifest import Manifest, Provenance
from sluice.wire.messages import Offload, Outcome, decode, encode
from sluice.wire.names import TIERS, Tier
from sluice.wire.profile import Profile, SegmentProfile

SLOW = 20
UPLINKS = ("100Mbit/s,0.3ms", "10Mbit/s,1ms", "1Mbit/s,5ms", "100kbit/s,20ms")
BACKHAUL = "200Mbit/s,1ms"
EPSILON, DELTA = 0.02, 0.05
TRAINED, EPOCHS = 20_000, 4
KNOWN = 6000
"""Test images that are calibrated and planned with; the others are measured."""
SAMPLES, BLOCK, ROUNDS = 1500, 75, 3
"""Samples that are measured in each setting, how many before the next has its turn, and how often: each sample counts
with its median."""
PACKET, MQTT_BYTES, TCP_BYTES = 1400, 30, 40
"""Payload of a packet; what a message and a packet bring along."""
FIXED = (((0.9, 0.9), "int8-zstd"), ((0.6, 2.0), "float16"), ((2.0, 0.7), "raw"))
"""Thresholds of the two early exits and codec: settings that are only predicted, whatever they promise."""
WITHIN = 0.15
DIGEST = "ab" * 32

Choice = Any
Labels = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Wire:
    """A link, emulated."""

    rate_bps: float
    delay_s: float

    def carry(self, payload: bytes) -> float:
        """Seconds until all of `payload` is there."""
        free = 0.0
        for begin in range(0, len(payload), PACKET):
            size = min(PACKET, len(payload) - begin) + TCP_BYTES + (0 if begin else MQTT_BYTES)
            free += 8 * size / self.rate_bps
        return free + self.delay_s


Wires = dict[tuple[Tier, Tier], list[Wire]]
"""What lies between two tiers."""


class Clock:
    """Adds up what a sample takes: `spent` in seconds."""

    def __init__(self) -> None:
        self.spent = 0.0
        self._since = time.thread_time_ns()

    def computed(self, times: float = 1.0) -> None:
        """The processor time since the last call, so many times."""
        now = time.thread_time_ns()
        self.spent += (now - self._since) * times / 1e9
        self._since = time.thread_time_ns()

    def waited(self, seconds: float) -> None:
        """On a link; what it took to say how long does not count."""
        self.spent += seconds
        self._since = time.thread_time_ns()


@dataclass(frozen=True, slots=True)
class Setting:
    """A choice over an uplink, ready to run; `competes`: whether it is to keep the promise, as the plan sees it."""

    name: str
    choice: Choice
    competes: bool
    begins: Tier
    """Where the first segment runs."""
    manifest: Manifest
    stages: dict[Tier, Stage]

    @property
    def predicted_ms(self) -> float:
        """What the manifest says."""
        told = self.manifest.operating_points[0].expected["latency_ms"]
        assert isinstance(told, float)
        return told

    def answer(self, sample: Offload, tensors: Any, wires: Wires) -> float:
        """Seconds from the sample to its answer at the device."""
        clock = Clock()
        tier: Tier = "edge"
        outcome = self._on_device(sample, tensors)
        payload = encode(outcome)
        clock.computed(SLOW)
        while isinstance(outcome, Offload):
            clock.waited(sum(wire.carry(payload) for wire in wires[tier, outcome.tier]))
            got = decode(payload)
            assert isinstance(got, Offload)
            tier = got.tier
            (outcome,) = step(self.stages[tier], [unpack(got, self.manifest)])
            payload = encode(outcome)
            clock.computed()
        if tier != "edge":
            clock.waited(sum(wire.carry(payload) for wire in wires["edge", tier]))
            decode(payload)
            clock.computed(SLOW)
        return clock.spent

    def _on_device(self, sample: Offload, tensors: Any) -> Outcome:
        if self.begins == "edge":
            return step(self.stages["edge"], [Work(sample, tensors)])[0]
        sent = tuple(encode_tensor(tensors[spec.name], spec, self.choice.codec) for spec in self.manifest.inputs)
        return replace(sample, tier=self.begins, tensors=sent)


@dataclass(frozen=True, slots=True)
class Known:
    """The model, trained, and what the partitioner found out about it; `measured` by uplink."""

    anatomy: Any
    samples: Any
    wanted: Labels
    parts: Any
    measured: dict[str, Any]
    new: NDArray[np.uint8]
    """Samples that are measured."""


def run(console: Console, uplinks: Sequence[str] = UPLINKS) -> Report:
    """Measure."""
    report = Report(f"predicted against measured latency, on a device {SLOW} times slower than this machine")
    known = learn(console, uplinks)
    for link in uplinks:
        run_link(known, link, report, console)
    off = sorted(abs(ratio - 1) for row in report.rows if row.what.startswith("predicted") for ratio in row.ratios())
    report.notes.append(
        f"of {len(off)} settings {sum(one <= WITHIN for one in off)} are predicted within {WITHIN:.0%} (wanted: all); "
        f"the median is off by {statistics.median(off):.1%}, the worst by {off[-1]:.1%}"
    )
    plan_time(report)
    return report


def learn(console: Console, uplinks: Sequence[str]) -> Known:
    """Train the model, and measure it as `sluice partition` does."""
    from partitioner import reference
    from partitioner.anatomy.exits import anatomy
    from partitioner.anatomy.splits import split_points
    from partitioner.planning.link import parse_link
    from partitioner.planning.scene import candidate_points, measure
    from partitioner.promise.parts import split_parts
    from partitioner.samples import Samples

    x_train, y_train, x_test, y_test = data.mnist()
    order = np.random.default_rng(0).permutation(len(x_test))  # its second half is harder than its first
    x_test, y_test = x_test[order, ..., None], y_test[order]
    model = narrow_net()
    train(model, x_train[:TRAINED, ..., None], y_train[:TRAINED], EPOCHS, 64)
    found = anatomy(model)
    samples = Samples({"x": x_test[:KNOWN]}, y_test[:KNOWN])
    wanted = reference.answers(found, samples, lambda *_: None)
    assert wanted is not None
    parts = split_parts(KNOWN, None, 0, train=False)
    settings = settings_for(uplinks[0])
    points = candidate_points(found, split_points(found), settings)
    console.print(f"measuring the model at {len(points)} points")
    fit, planned = ((samples.rows(part), wanted[part]) for part in (parts.temperature, parts.plan))
    measured = measure(found, points, *fit, *planned, settings, lambda *_: None)
    by_link = {link: replace(measured, scene=replace(measured.scene, uplink=parse_link(link))) for link in uplinks}
    return Known(found, samples, wanted, parts, by_link, x_test[KNOWN : KNOWN + SAMPLES])


def narrow_net() -> Any:
    """A CNN for MNIST with a narrow place after its second block: outputs `first`, `second`, `final`."""
    keras = quiet_keras()
    layers = keras.layers
    keras.utils.set_random_seed(0)
    x = keras.Input((28, 28, 1), dtype="uint8", name="x")
    a = layers.Conv2D(16, 5, padding="same", activation="relu", name="conv1")(layers.Rescaling(1 / 255)(x))
    a = layers.MaxPooling2D(2, name="block1")(a)
    first = layers.Dense(10, name="first")(layers.Flatten()(layers.AveragePooling2D(2)(a)))
    b = layers.Conv2D(48, 3, padding="same", activation="relu", name="conv2")(a)
    b = layers.Conv2D(6, 1, activation="relu", name="block2")(layers.MaxPooling2D(2, name="pool2")(b))
    second = layers.Dense(10, name="second")(layers.Flatten()(b))
    c = layers.Conv2D(96, 3, padding="same", activation="relu", name="conv3")(b)
    c = layers.Conv2D(96, 3, padding="same", activation="relu", name="conv4")(c)
    c = layers.Flatten()(layers.MaxPooling2D(2, name="block3")(c))
    final = layers.Dense(10, name="final")(layers.Dense(96, activation="relu", name="wide")(c))
    return keras.Model(x, {"first": first, "second": second, "final": final})


def settings_for(uplink: str, **more: Any) -> Any:
    """What `sluice partition` is told."""
    from partitioner.settings import PartitionSettings

    one = SegmentProfile(index=0, sha256=DIGEST, macs=1, reference_us=1.0, us={"1": SLOW}, p90_us={"1": SLOW})
    device = Profile(
        bundle=DIGEST, runtime="", machine="", cpu="this one, slowed down", python="", memory_mb=1.0, segments=(one,)
    )
    promise = {"max_accuracy_loss": EPSILON, "confidence": 1 - DELTA}
    return PartitionSettings(uplink=uplink, backhaul=BACKHAUL, device=device, **promise, **more)


def settings_of(known: Known, link: str) -> Iterator[tuple[str, Choice, bool]]:
    """(name, choice, whether it competes): the plan's own first, then what else might have been."""
    from partitioner.planning.plan import Wish, plan

    scene = known.measured[link].scene
    wish = Wish("latency", EPSILON, DELTA, len(known.parts.certify), tuple(CODECS))
    done = plan(scene, wish)
    yield "the plan's choice", done.best, True
    for name, choice in done.baselines.items():
        yield name, choice, True
    for point in scene.points[1:-1]:
        yield f"split at {point.name}", plan(scene, replace(wish, edge_points=[point.name])).best, True
    for thresholds, codec in FIXED:
        fixed = replace(wish, thresholds=thresholds, codecs=(codec,), edge_points=["block1", "block2"])
        yield f"thresholds {thresholds}, {codec}", plan(scene, fixed).best, False


def make(known: Known, name: str, choice: Choice, competes: bool, link: str) -> Setting:
    """`choice`, cut, converted and calibrated as `sluice partition` would, its thresholds as they are."""
    from partitioner.anatomy.cut import ends_of
    from partitioner.operate import operate
    from partitioner.planning.decide import DEFAULT, Decided

    measured = known.measured[link]
    cuts = [measured.points[i] for i in sorted({choice.edge_end, choice.fog_end}) if i < len(measured.points)]
    ends = tuple(ends_of(known.anatomy, choice.exits, cuts))
    decided = Decided(None, {DEFAULT: choice}, ends, measured.points, ())
    settings = settings_for(link, thresholds=choice.thresholds)
    made = operate(
        known.anatomy, measured, decided, known.samples, known.wanted, known.parts, settings, lambda *_: None
    )
    manifest = Manifest(
        model="digits",
        version=1,
        labels=tuple("0123456789"),
        inputs=made.inputs,
        segments=tuple(made.segments),
        operating_points=(made.points[0].point,),
        provenance=Provenance(created_at=""),
    )
    running = [one.segment for one in made.exported]
    stages = {tier: Stage(tier, DIGEST, manifest, 0, running) for tier in TIERS}
    begins = made.points[0].point.placement[0]
    return Setting(name, choice, competes, begins, manifest, stages)


def run_link(known: Known, link: str, report: Report, console: Console) -> None:
    """All settings over one uplink."""
    from partitioner.planning.link import parse_link

    settings: list[Setting] = []
    for name, choice, competes in settings_of(known, link):
        if all(choice != other.choice for other in settings):
            settings.append(make(known, name, choice, competes, link))
    up, back = (Wire(one.rate_bps, one.delay_s) for one in map(parse_link, (link, BACKHAUL)))
    wires: Wires = {("edge", "fog"): [up], ("edge", "cloud"): [up, back], ("fog", "cloud"): [back]}
    ms = np.zeros((ROUNDS, len(settings), SAMPLES))
    for begin in range(0, SAMPLES, BLOCK):
        for turn in range(ROUNDS):
            for k in np.roll(np.arange(len(settings)), begin // BLOCK + turn):
                for number in range(begin, begin + BLOCK):
                    taken = settings[k].answer(offload(number), {"x": known.new[number]}, wires)
                    ms[turn, k, number] = 1000 * taken
    judge(link, settings, np.median(ms, axis=0), report, console)


def offload(number: int) -> Offload:
    """A sample that nobody has looked at."""
    return Offload(
        device_id="pi-1",
        epoch="00" * 8,
        seq=number,
        source_id=None,
        model="digits",
        bundle=DIGEST,
        operating_point="default",
        tier="edge",
        next_segment=0,
        tensors=(),
        beliefs=(),
        captured_at=0,
        ttl_ms=60_000,
    )


def judge(link: str, settings: Sequence[Setting], ms: Floats, report: Report, console: Console) -> None:
    """Rows for the settings of one link; `ms`: (settings, samples)."""
    for setting, taken in zip(settings, ms, strict=True):
        row = report.row(f"predicted against measured, one pair a setting, {link}", "ms")
        row.ours.append(setting.predicted_ms)
        row.baseline.append(float(taken.mean()))
        point = setting.manifest.operating_points[0]
        console.print(
            f"{link}, {setting.name} ({', '.join(point.placement)}; {point.codec}): "
            f"{setting.predicted_ms:.2f} predicted, {taken.mean():.2f} ms measured, {row.ratios()[-1]:.2f}"
        )
    blocks = ms.reshape(len(settings), -1, BLOCK).mean(axis=2)
    others = [k for k, setting in enumerate(settings) if setting.competes]
    best = min(others, key=lambda k: float(np.median(blocks[k])))
    row = report.row(f"the plan's choice against the best of {len(others)}, {link}: {settings[best].name}", "ms")
    row.ours, row.baseline = blocks[0].tolist(), blocks[best].tolist()


def plan_time(report: Report) -> None:
    """How long planning takes."""
    from partitioner.planning.plan import Wish, plan

    made = made_up(points=81, at=(0, 20, 45), n=800)
    row = report.row("planning a model with 80 split points, 3 exits, 7 codecs (wanted: ≤ 10 s)", "s")
    for objective in ("latency", "bytes", "device-compute") * 2:
        begun = time.perf_counter()
        done = plan(made, Wish(objective, 0.01, 0.05, 5000, tuple(CODECS)))
        row.ours.append(time.perf_counter() - begun)
    report.notes.append(f"planning goes through {done.considered / 1e6:.0f} million candidates")


def made_up(points: int, at: Sequence[int], n: int) -> Any:
    """Measurements of a model that there is not: exits at the points `at`, `n` samples."""
    from partitioner.planning.handling import Handling
    from partitioner.planning.link import Link
    from partitioner.planning.plan import EarlyExit, Point, Scene

    random = np.random.default_rng(0)
    speed: dict[Tier, float] = {"edge": SLOW, "fog": 1.0, "cloud": 0.3}
    share = dict(zip(CODECS, np.geomspace(1, 0.03, len(CODECS)), strict=True))
    sizes = 4 * np.exp(random.normal(8, 0.8, points)) * np.linspace(1, 0.1, points)
    places = [
        Point(
            name=f"point {index}",
            bytes={codec: float(size * part * random.uniform(0.9, 1.1)) for codec, part in share.items()},
            loss={codec: random.random(256) < 0.01 for codec in CODECS if "int8" in codec or codec == "coarse"},
            encode_us={codec: float(random.uniform(5, 40)) for codec in CODECS},
            decode_us={codec: float(random.uniform(5, 40)) for codec in CODECS},
        )
        for index, size in enumerate(sizes)
    ]
    macs = np.exp(random.normal(13, 1, points - 1))
    skill = random.normal(2, 2, n)
    sure = [1 / (1 + np.exp(-(skill + k + random.normal(0, 0.5, n)))) for k in range(len(at))]
    return Scene(
        points=places,
        trunk_us={tier: macs / macs.sum() * 3000 * times for tier, times in speed.items()},
        trunk_macs=np.rint(macs).astype(np.int64),
        exits=[
            EarlyExit(f"exit {k}", point, {tier: 60 * times for tier, times in speed.items()}, 50_000)
            for k, point in enumerate(at)
        ],
        confidence=sure,
        harm=[*(random.random(n) > one for one in sure), random.random(n) < 0.001],
        uplink=Link(1e6, 0.02),
        backhaul=Link(1e8, 0.01),
        header_bytes=250,
        answer_bytes=190,
        codec_scale=speed,
        handling=Handling(10.0, 4.0, 12.0, 20.0),
    )
