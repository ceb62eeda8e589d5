"""Early exits next to the whole model, one sample at a time: what they save when everything is counted.

The whole LeNet of BranchyNet (Teerapittayanon et al., arXiv 1709.01686: 1.14 M MACs) as one TFLite file is the
baseline. Ours is the same net, trained the same way, with exits attached by `partitioner.attach`, cut there, exported
and run as a device does: each segment, then the gate, then maybe the next segment. Both go through the same runtime on
one thread, sample after sample over the whole test set, in turns. Thresholds come from a part of the training data by
the certificate's own code; the test set is looked at to count, never to choose.

The paired 95 % bound on lost accuracy is one-sided: mean and standard error of (full right) − (ours right) over the
test set. On UCI HAR the test set is other people than those whose windows trained and calibrated.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bench import data
from bench.report import Report
from sluice.stage.policy import decide
from sluice.stage.segment import RunningSegment
from sluice.wire.manifest import ExitPolicy

SEEDS = (0, 1, 2, 3, 4)
MODES = ("float32", "int8")
DELTA = 0.05
BLOCK = 250
"""Samples that one runs before the other has its turn."""
ROUNDS = 5
"""Times that the whole test set is run; each block counts with its median."""
CALIBRATION = 10_000
EPOCHS = 8
TURN = 10

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
Keras = Any


@dataclass(frozen=True, slots=True)
class Sets:
    """What trains the model, what else trains exits, what calibrates, and what is counted."""

    x_train: Floats
    y_train: Labels
    x_more: Floats
    """Training samples, changed a little."""
    y_more: Labels
    x_calibration: Floats
    y_calibration: Labels
    x_test: Floats
    y_test: Labels


@dataclass(frozen=True, slots=True)
class Variant:
    """Which of the attached exits are used, and the share ε of answers that may differ from the full model's."""

    what: str
    exits: tuple[str, ...]
    epsilon: float
    goal: str


@dataclass(frozen=True, slots=True)
class Chain:
    """Segments in a row and the policy of the exit at the end of each."""

    segments: Sequence[RunningSegment]
    policies: Sequence[ExitPolicy]

    def answer(self, x: Floats) -> int:
        """The label of one sample (1, *shape), as a device finds it."""
        tensors: dict[str, Any] = {"x": x}
        last = len(self.segments) - 1
        for k, segment in enumerate(self.segments):
            made = segment.run(tensors)
            labels, _, answers = decide(self.policies[k], made["logits"], last=k == last)
            if answers[0]:
                return labels[0]
            tensors |= made
        raise AssertionError("the last exit always answers")


def run(console: Console, seeds: Sequence[int] = SEEDS) -> Report:
    """Both data sets, all seeds."""
    from partitioner.quiet import import_tensorflow

    import_tensorflow()
    report = Report(
        "early exits against the whole model in one file; batch 1, one thread, all test samples, heads and gates timed"
    )
    images, har = _mnist(), _har()
    for seed in seeds:
        begun = time.monotonic()
        for name, sets, make, rate, variants in (
            ("MNIST", images, lenet, 2e-3, ON_IMAGES),
            ("HAR", har, har_cnn, 1e-3, ON_HAR),
        ):
            model = _trained(make(), sets, rate, seed)
            with_exits = _with_exits(model, sets, variants, seed)
            for mode in MODES:
                _measure(report, name, sets, model, with_exits, variants, mode, seed)
            for row in report.rows:
                if row.what.startswith(name):
                    console.print(f"  seed {seed}, {row.what}: {row.ours[-1]:.4g} {row.unit}")
        console.print(f"  seed {seed} took {time.monotonic() - begun:.0f} s")
    return report


ON_IMAGES = (
    Variant("exit on the trunk", ("relu1:conv",), 0.006, "3 (float32), 1.8 (int8)"),
    Variant("exit at the input", ("input:deep",), 0.006, "5.5 (float32), 4.5 (int8)"),
    Variant("two exits at the input", ("input:mlp", "input:deep"), 0.006, "5.5 and 4.5, aim 8 and 6"),
)
ON_HAR = (
    Variant("exit at the input", ("input:conv",), 0.01, "5 (float32)"),
    Variant("two exits at the input", ("input:conv", "input:deep"), 0.01, "5 (float32)"),
)


def lenet() -> Keras:
    """BranchyNet's LeNet, without its branch: images (28, 28, 1) to 10 logits."""
    import keras
    from keras import layers

    steps: list[Any] = [keras.Input((28, 28, 1), name="x")]
    for number, filters in enumerate((5, 10, 20), 1):
        steps += [
            layers.ZeroPadding2D(3, name=f"pad{number}"),
            layers.Conv2D(filters, 5, name=f"conv{number}"),
            layers.MaxPooling2D(2, padding="same", name=f"pool{number}"),
            layers.ReLU(name=f"relu{number}"),
        ]
    steps += [layers.Flatten(), layers.Dense(84, activation="relu", name="fc1"), layers.Dense(10, name="final")]
    return keras.Sequential(steps)


def har_cnn() -> Keras:
    """A plain 1-D CNN: windows (128, 9) to 6 logits."""
    import keras
    from keras import layers

    steps: list[Any] = [keras.Input((128, 9), name="x")]
    for number, filters in enumerate((64, 64, 64), 1):
        steps += [
            layers.Conv1D(filters, 5, padding="same", activation="relu", name=f"conv{number}"),
            layers.MaxPooling1D(2, name=f"pool{number}"),
        ]
    steps += [layers.Flatten(), layers.Dropout(0.4), layers.Dense(64, activation="relu"), layers.Dropout(0.4)]
    return keras.Sequential([*steps, layers.Dense(6, name="final")])


def _mnist() -> Sets:
    """The last `CALIBRATION` training images calibrate; exits also learn from copies moved by up to 2 pixels."""
    x_train, y_train, x_test, y_test = data.mnist()
    x, test = ((images[..., None] / np.float32(255)).astype(np.float32) for images in (x_train, x_test))
    known = len(x) - CALIBRATION
    random = np.random.default_rng(0)
    moved = np.concatenate([_moved(x[:known], random) for _ in range(2)])
    return Sets(
        x[:known], y_train[:known], moved, np.tile(y_train[:known], 2), x[known:], y_train[known:], test, y_test
    )


def _moved(x: Floats, random: np.random.Generator) -> Floats:
    padded = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    by = random.integers(0, 5, (len(x), 2))
    made = np.empty_like(x)
    for down, right in np.ndindex(5, 5):
        rows = (by == (down, right)).all(axis=1)
        made[rows] = padded[rows, down : down + x.shape[1], right : right + x.shape[2]]
    return made


def _har() -> Sets:
    """Six of the 21 training people calibrate; exits also learn from windows as if the sensor sat a little turned."""
    har = data.har()
    held = np.isin(har.subject_train, np.unique(har.subject_train)[::4])
    x, y = har.x_train[~held], har.y_train[~held]
    random = np.random.default_rng(0)
    turned = np.concatenate([_turned(x, random) for _ in range(3)])
    return Sets(x, y, turned, np.tile(y, 3), har.x_train[held], har.y_train[held], har.x_test, har.y_test)


def _turned(x: Floats, random: np.random.Generator) -> Floats:
    """Each window (n, steps, 9) turned about an axis of its own by about `TURN` degrees, and up to a tenth stronger.

    Um et al., "Data Augmentation of Wearable Sensor Data", arXiv 1706.00527.
    """
    axis = random.normal(size=(len(x), 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    angle = random.normal(0, math.radians(TURN), (len(x), 1, 1))
    across = np.cross(np.eye(3)[None], axis[:, None, :])
    turn = np.eye(3) + np.sin(angle) * across + (1 - np.cos(angle)) * across @ across  # Rodrigues
    turned = (x.reshape(*x.shape[:2], 3, 3) @ turn[:, None]).reshape(x.shape)
    return (turned * random.normal(1, 0.1, (len(x), 1, 1))).astype(np.float32)


def _measure(
    report: Report,
    about: str,
    sets: Sets,
    model: Keras,
    with_exits: Keras,
    variants: Sequence[Variant],
    mode: str,
    seed: int,
) -> None:
    """Add this seed's figures of all variants in one mode."""
    chains = [_chain(with_exits, sets, mode, variant, seed) for variant in variants]
    taken, labels = _run([_chain(model, sets, mode, None, seed), *chains], sets.x_test)
    for k, variant in enumerate(variants, 1):
        name = f"{about}, {variant.what}, {mode}"
        row = report.row(name, "µs a sample")
        row.ours.append(taken[k])
        row.baseline.append(taken[0])
        lost, bound = _lost(labels[0], labels[k], sets.y_test)
        report.row(f"{name}: full over ours, reach {variant.goal}", "times").ours.append(taken[0] / taken[k])
        report.row(f"{name}: accuracy lost, 95 % bound", "points").ours.append(100 * bound)
        report.row(f"{name}: accuracy lost", "points").ours.append(100 * lost)
    report.row(f"{about}, whole model, {mode}: accuracy", "%").ours.append(
        100 * float((labels[0] == sets.y_test).mean())
    )


def _trained(model: Keras, sets: Sets, rate: float, seed: int) -> Keras:
    import keras

    keras.utils.set_random_seed(seed)
    for layer in model.layers:
        if hasattr(layer, "kernel_initializer"):
            layer.kernel.assign(keras.initializers.GlorotUniform()(layer.kernel.shape))
    batch = 128
    epochs = EPOCHS if len(sets.x_train) > 20_000 else 3 * EPOCHS
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(rate, epochs * math.ceil(len(sets.x_train) / batch))
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(sets.x_train, sets.y_train, batch_size=batch, epochs=epochs, verbose=0)
    return model


def _with_exits(model: Keras, sets: Sets, variants: Sequence[Variant], seed: int) -> Keras:
    """The model with all exits that the variants use, each trained once."""
    from partitioner.early.attach import attach

    x = np.concatenate([sets.x_train, sets.x_more])
    y = np.concatenate([sets.y_train, sets.y_more])
    places = sorted({place for variant in variants for place in variant.exits})
    return attach(model, places, {"x": x}, y, seed=seed)


def _chain(model: Keras, sets: Sets, mode: str, variant: Variant | None, seed: int) -> Chain:
    """`model` cut at the variant's exits and exported, with thresholds certified on the calibration samples."""
    from partitioner.anatomy.cut import cut, ends_of, logits_model
    from partitioner.anatomy.exits import anatomy
    from partitioner.promise import calibrate, certify, thresholds
    from partitioner.promise.parts import split_parts
    from partitioner.segments.export import export

    found = anatomy(model)
    names = [f"exit-{place.replace(':', '-')}" for place in (variant.exits if variant else ())]
    pieces = cut(found, ends_of(found, [k for k, one in enumerate(found.exits) if one.name in names]))
    x, y = sets.x_calibration, sets.y_calibration
    parts = split_parts(len(x), None, seed, train=False)
    exported = export(pieces, logits_model(pieces), {"x": x[parts.temperature]}, mode)
    segments = [one.segment for one in exported]
    if variant is None:
        return Chain(segments, [ExitPolicy(measure="max_prob", threshold=0.0)])
    logits = _logits(segments, x)
    temperatures = [calibrate.temperature(one[parts.temperature], y[parts.temperature]) for one in logits]
    sure = calibrate.confidences("max_prob", logits, temperatures)[:-1]
    labels = [one.argmax(axis=1).astype(np.int64) for one in logits]
    harm = certify.harm_of("agreement", labels, labels[-1], None)
    cost = np.cumsum([one.spec.reference_us for one in exported])

    def part(rows: NDArray[np.int64]) -> tuple[list[NDArray[np.float64]], list[NDArray[np.bool_]]]:
        return [one[rows] for one in sure], [one[rows] for one in harm]

    path = thresholds.greedy_path(*part(parts.plan), cost)
    found = certify.certify(path, *part(parts.certify), epsilon=variant.epsilon, delta=DELTA)
    chosen = found.thresholds or path[0]
    return Chain(
        segments,
        [
            ExitPolicy(measure="max_prob", threshold=threshold, temperature=t)
            for threshold, t in zip((*chosen, 0.0), temperatures, strict=True)
        ],
    )


def _logits(segments: Sequence[RunningSegment], x: Floats) -> list[Floats]:
    """What every exit says of every sample."""
    parts: list[list[Floats]] = [[] for _ in segments]
    for i in range(0, len(x), BLOCK):
        tensors: dict[str, Any] = {"x": x[i : i + BLOCK]}
        for k, segment in enumerate(segments):
            tensors |= segment.run(tensors)
            parts[k].append(tensors["logits"])
    return [np.concatenate(one) for one in parts]


def _run(chains: Sequence[Chain], x: Floats) -> tuple[list[float], list[Labels]]:
    """Mean µs a sample and the labels (n,) of each chain, all over `x`, block by block in turns."""
    taken: list[list[list[float]]] = [[] for _ in chains]
    labels = [np.zeros(len(x), np.int64) for _ in chains]
    samples = [x[i : i + 1] for i in range(len(x))]
    for begin in range(0, len(x), BLOCK):
        block = samples[begin : begin + BLOCK]
        for times in taken:
            times.append([])
        for turn in range(ROUNDS):
            for k in (*range(turn % len(chains), len(chains)), *range(turn % len(chains))):
                answer = chains[k].answer
                begun = time.perf_counter_ns()
                made = [answer(one) for one in block]
                taken[k][-1].append((time.perf_counter_ns() - begun) / 1000)
                labels[k][begin : begin + BLOCK] = made
    return [sum(map(statistics.median, times)) / len(x) for times in taken], labels


def _lost(full: Labels, ours: Labels, y: Labels) -> tuple[float, float]:
    """Accuracy lost and its one-sided 95 % bound, paired by sample."""
    difference = (full == y).astype(np.float64) - (ours == y)
    error = float(difference.std(ddof=1)) / math.sqrt(len(y))
    return float(difference.mean()), float(difference.mean()) + 1.645 * error
