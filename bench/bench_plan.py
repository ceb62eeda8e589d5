"""The plan tells the truth: what it predicts against what is measured, and the plan chosen against all others.

A CNN with two early exits on MNIST. Its segments run here, in the stages of `sluice.stage.step`, one sample at a time,
as the plan assumes. The device is this machine made `SLOW` times slower: it does all its work so many times. A link is
emulated: messages, encoded as they travel, cross a pair of sockets and are held up packet by packet for as long as
their bytes take at its rate, and for its delay. Samples are new to the plan, and every setting gets the same ones.

Besides: how long it takes to plan a model with 80 split points and 3 exits, on made-up measurements.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bench import data
from bench.chains import quiet_keras, train
from bench.report import Report
from sluice.stage.step import Stage, Work, share_of, step, unpack
from sluice.wire.codec import CODECS, encode_tensor
from sluice.wire.manifest import Manifest, Provenance
from sluice.wire.messages import MAX_MESSAGE_BYTES, Offload, Outcome, decode, encode
from sluice.wire.names import TIERS, Tier
from sluice.wire.profile import Profile, SegmentProfile

SLOW = 20
TRAINED, EPOCHS = 20_000, 4
UPLINKS = ("100Mbit/s,0.2ms", "20Mbit/s,1ms", "2Mbit/s,3ms", "250kbit/s,10ms")
BACKHAUL = "200Mbit/s,1ms"
EPSILON, DELTA = 0.02, 0.05
KNOWN = 6000
"""Test images that are calibrated and planned with; the others are measured."""
SAMPLES, BLOCK = 320, 20
"""Samples that are measured in each setting, and how many before the next has its turn."""
PACKET = 1400
TOPIC_BYTES = 30
"""What MQTT adds to a message."""
DIGEST = "ab" * 32
SPIN_S = 0.0004
"""Last part of a wait, which is not slept."""

Choice = Any
Labels = NDArray[np.int64]


class Wire:
    """A link with a rate and a delay between two sockets of this process."""

    def __init__(self, rate_bps: float, delay_s: float) -> None:
        self.rate_bps, self.delay_s = rate_bps, delay_s
        self.near, self.far = socket.socketpair()
        for end in (self.near, self.far):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_MESSAGE_BYTES)

    def carry(self, payload: bytes) -> bytes:
        """What arrives of `payload`, once it would have arrived."""
        free = time.perf_counter()
        for begin in range(0, len(payload), PACKET):
            packet = payload[begin : begin + PACKET]
            self.near.sendall(packet)
            free += 8 * (len(packet) + (TOPIC_BYTES if begin == 0 else 0)) / self.rate_bps
        wait_until(free + self.delay_s)
        parts, missing = [], len(payload)
        while missing:
            parts.append(self.far.recv(missing))
            missing -= len(parts[-1])
        return b"".join(parts)

    def close(self) -> None:
        """Both ends."""
        self.near.close()
        self.far.close()


def wait_until(moment: float) -> None:
    """Sleep, and spin at the end, because a sleep is late by more than a segment takes."""
    left = moment - time.perf_counter()
    if left > SPIN_S:
        time.sleep(left - SPIN_S)
    while time.perf_counter() < moment:
        pass


Wires = dict[tuple[Tier, Tier], list[Wire]]
"""What lies between two tiers, on the way up."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A choice over an uplink, ready to run; `promised`: whether the plan expects it to keep the promise."""

    name: str
    choice: Choice
    promised: bool
    manifest: Manifest
    stages: dict[Tier, Stage]

    def answer(self, sample: Offload, tensors: Any, wires: Wires) -> tuple[float, int]:
        """(seconds from the sample to its answer at the device, bytes sent up for it)."""
        begun = time.perf_counter()
        tier: Tier = "edge"
        for _ in range(SLOW):
            outcome = self._on_device(sample, tensors)
            payload = encode(outcome)
        sent = len(payload) + TOPIC_BYTES
        if not isinstance(outcome, Offload):
            return time.perf_counter() - begun, sent
        while isinstance(outcome, Offload):
            for wire in wires[tier, outcome.tier]:
                payload = wire.carry(payload)
            got = decode(payload)
            assert isinstance(got, Offload)
            tier = got.tier
            (outcome,) = step(self.stages[tier], [unpack(got, self.manifest)])
            payload = encode(outcome)
        for wire in reversed(wires["edge", tier]):
            payload = wire.carry(payload)
        for _ in range(SLOW):
            decode(payload)
        return time.perf_counter() - begun, sent

    def _on_device(self, sample: Offload, tensors: Any) -> Outcome:
        point = self.manifest.operating_points[0]
        if share_of(point, "edge"):
            return step(self.stages["edge"], [Work(sample, tensors)])[0]
        sent = tuple(encode_tensor(tensors[spec.name], spec, point.codec) for spec in self.manifest.inputs)
        return replace(sample, tier=point.placement[0], tensors=sent)


@dataclass(frozen=True, slots=True)
class Known:
    """The model, trained, and what the partitioner found out about it; `measured` by uplink."""

    anatomy: Any
    samples: Any
    wanted: Labels
    parts: Any
    measured: dict[str, Any]


def learn(console: Console) -> Known:
    """Train the model, and measure it as `sluice partition` does."""
    from partitioner import reference
    from partitioner.exits import anatomy
    from partitioner.link import parse_link
    from partitioner.parts import split_parts
    from partitioner.samples import Samples
    from partitioner.scene import candidate_points, measure
    from partitioner.splits import split_points

    x_train, y_train, x_test, y_test = data.mnist()
    model = narrow_net()
    train(model, x_train[:TRAINED, ..., None], y_train[:TRAINED], EPOCHS, 64)
    found = anatomy(model)
    samples = Samples({"x": x_test[:KNOWN, ..., None]}, y_test[:KNOWN])
    wanted = reference.answers(found, samples, lambda *_: None)
    parts = split_parts(KNOWN, None, 0, train=False)
    settings = settings_for(UPLINKS[0], device=device_of(SLOW))
    points = candidate_points(found, split_points(found), settings)
    console.print(f"measuring the model at {len(points)} points")
    rows = [(samples.rows(part), wanted[part]) for part in (parts.temperature, parts.plan)]
    measured = measure(found, points, *rows[0], *rows[1], settings, lambda *_: None)
    by_link = {link: replace(measured, scene=replace(measured.scene, uplink=parse_link(link))) for link in UPLINKS}
    return Known(found, samples, wanted, parts, by_link)


def narrow_net() -> Any:
    """A CNN for MNIST with a narrow place after its second block: outputs `first`, `second`, `final`."""
    keras = quiet_keras()
    layers = keras.layers
    keras.utils.set_random_seed(0)
    x = keras.Input((28, 28, 1), dtype="uint8", name="x")
    a = layers.Conv2D(16, 5, padding="same", activation="relu", name="conv1")(layers.Rescaling(1 / 255)(x))
    a = layers.MaxPooling2D(2, name="block1")(a)
    first = layers.Dense(10, name="first")(layers.Flatten()(layers.AveragePooling2D(2)(a)))
    b = layers.MaxPooling2D(2)(layers.Conv2D(48, 3, padding="same", activation="relu", name="conv2")(a))
    b = layers.Conv2D(6, 1, activation="relu", name="block2")(b)
    second = layers.Dense(10, name="second")(layers.Flatten()(b))
    c = layers.Conv2D(96, 3, padding="same", activation="relu", name="conv3")(b)
    c = layers.MaxPooling2D(2, name="block3")(layers.Conv2D(96, 3, padding="same", activation="relu", name="conv4")(c))
    final = layers.Dense(10, name="final")(layers.Dense(96, activation="relu", name="wide")(layers.Flatten()(c)))
    return keras.Model(x, {"first": first, "second": second, "final": final})


def device_of(slow: float) -> Profile:
    """The profile of a device so many times slower than this machine."""
    one = SegmentProfile(index=0, sha256=DIGEST, macs=1, reference_us=1.0, us={"1": slow}, p90_us={"1": slow})
    return Profile(
        bundle=DIGEST, runtime="", machine="", cpu="this one, slowed down", python="", memory_mb=1.0, segments=(one,)
    )


def settings_for(uplink: str, **more: Any) -> Any:
    """What `sluice partition` is told."""
    from partitioner.settings import PartitionSettings

    promise = {"max_accuracy_loss": EPSILON, "confidence": 1 - DELTA}
    return PartitionSettings(uplink=uplink, backhaul=BACKHAUL, **promise, **more)


def settings_of(known: Known, link: str) -> Iterator[tuple[str, Choice, bool]]:
    """(name, choice, whether it is to keep the promise): the plan's own first, then what else might have been."""
    from partitioner.plan import Wish, plan

    scene = known.measured[link].scene
    wish = Wish("latency", EPSILON, DELTA, len(known.parts.certify), tuple(CODECS))
    done = plan(scene, wish)
    yield "chosen", done.best, True
    for name, choice in done.baselines.items():
        yield name, choice, True
    for point in scene.points[1:-1]:
        yield f"best split at {point.name}", plan(scene, replace(wish, edge_points=[point.name])).best, True
    for thresholds, codec in (((0.9, 0.9), "int8-zstd"), ((0.6, 2.0), "float16"), ((2.0, 0.7), "raw")):
        fixed = replace(wish, thresholds=thresholds, codecs=(codec,), edge_points=["block1", "block2"])
        yield f"thresholds {thresholds}, {codec}", plan(scene, fixed).best, False


def make(known: Known, name: str, choice: Choice, promised: bool, link: str) -> Setting:
    """`choice`, cut, converted and calibrated as `sluice partition` would, its thresholds as they are."""
    from partitioner.cut import ends_of
    from partitioner.decide import DEFAULT, Decided
    from partitioner.operate import operate

    measured = known.measured[link]
    cuts = [measured.points[i] for i in sorted({choice.edge_end, choice.fog_end}) if i < len(measured.points)]
    decided = Decided(None, {DEFAULT: choice}, tuple(ends_of(known.anatomy, choice.exits, cuts)), measured.points, ())
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
    return Setting(name, choice, promised, manifest, {tier: Stage(tier, DIGEST, manifest, 0, running) for tier in TIERS})


def run_link(known: Known, link: str, x: NDArray[np.uint8], report: Report, console: Console) -> None:
    """All settings over one uplink."""
    from partitioner.link import parse_link

    settings: list[Setting] = []
    for name, choice, promised in settings_of(known, link):
        if all(choice != other.choice for other in settings):
            settings.append(make(known, name, choice, promised, link))
    up, back = (Wire(one.rate_bps, one.delay_s) for one in map(parse_link, (link, BACKHAUL)))
    wires: Wires = {("edge", "fog"): [up], ("edge", "cloud"): [up, back], ("fog", "cloud"): [back]}
    taken = np.zeros((len(settings), SAMPLES))
    sent = np.zeros((len(settings), SAMPLES))
    order = np.arange(len(settings))
    for warm in range(-3, SAMPLES // BLOCK):
        for k in np.roll(order, warm):
            for number in range(max(warm, 0) * BLOCK, (max(warm, 0) + 1) * BLOCK):
                tensors = {"x": x[number]}
                taken[k, number], sent[k, number] = settings[k].answer(sample(number), tensors, wires)
    for wire in (up, back):
        wire.close()
    judge(link, settings, taken * 1000, sent, report, console)


def sample(number: int) -> Offload:
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


def judge(
    link: str, settings: Sequence[Setting], ms: NDArray[np.float64], sent: NDArray[np.float64], report: Report, console: Console
) -> None:
    """Rows for the settings of one link."""
    for setting, row, size in zip(settings, ms, sent, strict=True):
        told = setting.manifest.operating_points[0].expected
        share = [round(float(one), 2) for one in told["exit_share"]]
        console.print(
            f"{link} {setting.name}: predicted {told['latency_ms']:.2f} measured {row.mean():.2f} ms "
            f"({told['latency_ms'] / row.mean():.3f}); bytes {told['bytes']:.0f} {size.mean():.0f}; {setting.choice.exits} {setting.manifest.operating_points[0].placement} {setting.choice.codec} {share}"
        )


def run(console: Console) -> Report:
    """Measure."""
    report = Report("plan")
    _, _, x_test, _ = data.mnist()
    known = learn(console)
    for link in UPLINKS:
        run_link(known, link, x_test[KNOWN:, ..., None], report, console)
    return report
