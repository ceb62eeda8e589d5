"""The certificate put to the test: does the promise hold as often as it says, and what does it cost?

Small nets with two early exits are trained; their logits on data that trained nothing are the *pool*. A drawing of n
samples from it, with replacement, is a calibration set: temperatures, path and certificate are made of it alone, as
`sluice partition` does. The pool's own risk at the thresholds that come out is exact, so whether the promise is broken
is counted, not estimated: it may be in a share δ of all drawings. What is saved is set against the thresholds which, in
hindsight, save most of all whose risk over the pool is at most ε; a drawing that saves more than those, because its
promise is broken, counts as if it saved as much. Saved: multiplications (MACs) a sample, exit heads counted.

By person, on HAR: calibrated on people who did not train the net, looked at on yet others. A promise for new people
takes hundreds of them, UCI HAR has 30. So that nothing is promised for new people is counted there, and how often new
people break what was promised for new samples of known ones. That promises for new groups hold where they are made is
tested on people drawn from the pool again and again, each time with other windows.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import binom

from bench import data
from bench.report import Report
from partitioner.promise.calibrate import confidences, temperature
from partitioner.promise.certify import Certified, certify, harm_of
from partitioner.promise.parts import split_parts
from partitioner.promise.thresholds import NEVER, exits_of, from_safe_start, greedy_path

SEEDS = (0, 1, 2)
"""Of training; the drawings differ as well."""
DRAWINGS = 400
EPSILON, DELTA = 0.01, 0.05
MOST_BROKEN = 28
"""Of 400: 5 %, and not quite two standard deviations of its noise."""
SPLITS = 200
TRAINING_PEOPLE, CERTIFYING_PEOPLE = 13, 10
GROUP_DRAWINGS, DRAWN_PEOPLE, WINDOWS = 200, 450, 20
MEASURE = "max_prob"
GRID = 1500
"""Thresholds of the first of two exits that are tried in hindsight; of the last all are."""

Keras = Any
Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pool:
    """What a net makes of samples that trained nothing: `logits` (n, classes) of each exit, `harm` (n,) whether its
    answer is not the last one's, `cost` in MACs of an answer there; `people` (n,) of whom each sample is."""

    logits: tuple[NDArray[np.float32], ...]
    harm: tuple[NDArray[np.bool_], ...]
    cost: tuple[float, ...]
    people: Labels

    @property
    def wanted(self) -> Labels:
        """The full model's answers (n,)."""
        answers: Labels = self.logits[-1].argmax(axis=1)
        return answers

    def seen(self, fit: Labels) -> list[Floats]:
        """Confidence (n,) of each early exit, with temperatures fitted on the samples `fit`."""
        early = self.logits[:-1]
        temperatures = [temperature(logits[fit], self.wanted[fit]) for logits in early]
        found: list[Floats] = confidences(MEASURE, early, temperatures)
        return found


def run(console: Console) -> Report:
    """All nets and sizes."""
    from partitioner.quiet import import_tensorflow

    import_tensorflow()
    report = Report(
        f"promise: at most {EPSILON:.0%} disagreement, {1 - DELTA:.0%} sure: how often broken, what saving is kept"
    )
    images, har = data.mnist(), _all_of(data.har())
    for seed in SEEDS:
        begun = time.monotonic()
        on_images, on_people = _mnist(images, seed), _har(har, seed)
        console.print(f"seed {seed}: trained in {time.monotonic() - begun:.0f} s")
        for name, nets, sizes in (("MNIST", on_images, (2500, 5000)), ("HAR", on_people, (2500,))):
            for (exits, pool), n in itertools.product(nets.items(), sizes):
                begun = time.monotonic()
                _drawings(report, f"{name}, {exits}, n = {n}", pool, n, seed)
                console.print(f"  {name}, {exits}, n = {n}: {time.monotonic() - begun:.0f} s")
        begun = time.monotonic()
        _by_person(report, on_people["one exit"], seed)
        _drawn_people(report, on_people["one exit"], seed)
        console.print(f"  by person: {time.monotonic() - begun:.0f} s")
    report.notes += [
        f"limits: {MOST_BROKEN} broken of {DRAWINGS}; ratio 0.90 at n = 2500, 0.95 on MNIST at n = 5000",
        "n: all samples given, of which temperatures, path and certificate have disjoint parts",
        f"a figure for each of {len(SEEDS)} seeds of training; saved: mean of all drawings, and the best in hindsight",
        "the most that could be proven: the best at the largest risk that so many certifying samples can pass with",
        f"HAR: {TRAINING_PEOPLE} of 30 people train the net, the others are the pool",
        f"by person: {CERTIFYING_PEOPLE} of them calibrate, too few to promise new ones anything; the others are new",
        f"people drawn: {DRAWN_PEOPLE} from the pool, with replacement, each with {WINDOWS} windows of theirs",
    ]
    return report


def _drawings(report: Report, what: str, pool: Pool, n: int, seed: int) -> None:
    """`DRAWINGS` calibrations with `n` samples each."""
    random = np.random.default_rng([seed, n])
    best, broken, saved = _best(pool, EPSILON), 0, []
    everything = np.arange(len(pool.people))
    for _ in range(DRAWINGS):
        certified, seen = _calibrate(pool, random.integers(0, len(everything), n), random, None)
        risk, here = _on(pool, seen, certified, everything)
        broken += risk > EPSILON
        saved.append(min(here, best))
    report.row(f"{what}: broken of {DRAWINGS}", "count").ours.append(broken)
    row = report.row(f"{what}: saved a sample", "MACs")
    row.ours.append(float(np.mean(saved)))
    row.baseline.append(best)
    row = report.row(f"{what}: the most that could be proven", "MACs")
    row.ours.append(_best(pool, _provable(len(split_parts(n, None, 0, train=False).certify))))
    row.baseline.append(best)


def _provable(n: int) -> float:
    """The largest share of `n` certifying samples that may be harmed: no bound can do better, whatever the path."""
    harmed = int(binom.ppf(DELTA, n, EPSILON))
    return (harmed - int(binom.cdf(harmed, n, EPSILON) > DELTA)) / n


def _by_person(report: Report, pool: Pool, seed: int) -> None:
    """Calibrated on some people, looked at on others, with and without saying who is who."""
    random = np.random.default_rng([seed, 1])
    everyone = np.unique(pool.people)
    promised = promised_broken = broken = 0
    for _ in range(SPLITS):
        known = np.isin(pool.people, random.permutation(everyone)[:CERTIFYING_PEOPLE])
        rows = np.flatnonzero(known)
        certified, seen = _calibrate(pool, rows, random, pool.people[rows])
        harmed = _on(pool, seen, certified, np.flatnonzero(~known))[0] > EPSILON
        if certified.scope == "groups" and certified.thresholds is not None:
            promised += 1
            promised_broken += harmed
        broken += harmed
    report.row(f"HAR by person: promised for new people, of {SPLITS}", "count").ours.append(promised)
    report.row(f"HAR by person: broken of those, of {SPLITS}", "count").ours.append(promised_broken)
    row = report.row(f"HAR by person: known people's certificate, broken by new people, of {SPLITS}", "count")
    row.ours.append(broken)


def _drawn_people(report: Report, pool: Pool, seed: int) -> None:
    """Enough groups for a promise to new ones: people of the pool, drawn with replacement, some windows of each."""
    random = np.random.default_rng([seed, 2])
    windows = [np.flatnonzero(pool.people == person) for person in np.unique(pool.people)]
    best, broken, promised, saved = _best(pool, EPSILON), 0, 0, []
    for _ in range(GROUP_DRAWINGS):
        drawn = random.integers(0, len(windows), DRAWN_PEOPLE)
        rows = np.concatenate([random.choice(windows[person], WINDOWS) for person in drawn])
        certified, seen = _calibrate(pool, rows, random, np.repeat(np.arange(DRAWN_PEOPLE), WINDOWS))
        figures = [_on(pool, seen, certified, theirs) for theirs in windows]
        risk, here = (math.fsum(one) / len(windows) for one in zip(*figures, strict=True))
        promised += certified.scope == "groups" and certified.thresholds is not None
        broken += risk > EPSILON
        saved.append(here)
    report.row(f"HAR, people drawn: promised for new people, of {GROUP_DRAWINGS}", "count").ours.append(promised)
    report.row(f"HAR, people drawn: broken of {GROUP_DRAWINGS}", "count").ours.append(broken)
    row = report.row("HAR, people drawn: saved a sample", "MACs")
    row.ours.append(float(np.mean(saved)))
    row.baseline.append(best)


def _calibrate(
    pool: Pool, rows: Labels, random: np.random.Generator, people: Labels | None
) -> tuple[Certified, list[Floats]]:
    """Everything that a promise takes, of the samples `rows` of the pool: the verdict, and confidences on all of it."""
    parts = split_parts(len(rows), people, int(random.integers(1 << 30)), train=False)
    seen = pool.seen(rows[parts.temperature])
    plan, test = rows[parts.chooses], rows[parts.certify]
    planned = [one[plan] for one in seen], [one[plan] for one in pool.harm]
    path = from_safe_start(greedy_path(*planned, pool.cost), *planned, EPSILON)
    tested = [one[test] for one in seen], [one[test] for one in pool.harm]
    groups = None if people is None else people[parts.certify]
    return certify(path, *tested, epsilon=EPSILON, delta=DELTA, groups=groups), seen


def _on(pool: Pool, seen: list[Floats], certified: Certified, rows: Labels) -> tuple[float, float]:
    """(Share that disagrees, MACs saved a sample) of the samples `rows`."""
    levels = certified.thresholds or (NEVER,) * len(seen)
    exits = exits_of([one[rows] for one in seen], levels, len(rows))
    disagrees = np.stack(pool.harm)[exits, rows]
    return float(disagrees.mean()), float(pool.cost[-1] - np.asarray(pool.cost)[exits].mean())


def _best(pool: Pool, most: float) -> float:
    """MACs a sample that the best thresholds save, of all whose risk over the pool is at most `most`.

    With temperatures fitted on the whole pool. Of two exits the first one's thresholds are tried at `GRID` quantiles.
    """
    seen = pool.seen(np.arange(len(pool.people)))
    none = np.zeros(len(pool.people), np.bool_)
    if len(seen) == 1:
        return _best_of_last(pool, seen[0], none, most)
    first, second = seen
    levels = (NEVER, *np.quantile(first, np.linspace(1, 0, GRID)).tolist())
    return max(_best_of_last(pool, second, first >= level, most) for level in levels)


def _best_of_last(pool: Pool, seen: Floats, gone: NDArray[np.bool_], most: float) -> float:
    """The most that any threshold of the last early exit saves, where those `gone` are answered by the first."""
    n, k = len(seen), len(pool.cost) - 2
    rows = np.flatnonzero(~gone)
    rows = rows[np.argsort(-seen[rows], kind="stable")]
    harmed = pool.harm[0][gone].sum() + np.append(0, np.cumsum(pool.harm[k][rows]))
    between = np.append(seen[rows][1:] < seen[rows][:-1], True) if len(rows) else np.zeros(0, np.bool_)
    taken = np.flatnonzero(np.append(True, between) & (harmed <= most * n))
    saved = gone.sum() * (pool.cost[-1] - pool.cost[0]) + taken * (pool.cost[-1] - pool.cost[k])
    return float(saved.max()) / n if len(taken) else 0.0


def _mnist(images: tuple[NDArray[np.uint8], Labels, NDArray[np.uint8], Labels], seed: int) -> dict[str, Pool]:
    """A LeNet; the pool are the 10 000 test images."""
    from keras import Input, layers

    x, y, x_test, _ = images
    inputs = Input((28, 28, 1))
    front = [layers.AveragePooling2D(2), layers.Flatten(), layers.Dense(96, activation="relu"), layers.Dense(10)]
    block = [layers.Conv2D(8, 5, strides=2, padding="same", activation="relu"), layers.MaxPooling2D(2)]
    middle = [layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dense(10)]
    rest = [
        layers.Conv2D(32, 5, padding="same", activation="relu"),
        layers.Conv2D(32, 5, padding="same", activation="relu"),
    ]
    rest += [layers.Flatten(), layers.Dense(84, activation="relu"), layers.Dense(10)]
    scale = np.float32(1 / 255)
    sides = (x[..., None] * scale, y), x_test[..., None] * scale
    return _pools(inputs, [front, block, middle, rest], *sides, np.zeros(len(x_test), np.int64), seed, epochs=3)


def _all_of(har: data.Har) -> tuple[NDArray[np.float32], Labels, Labels]:
    """All windows, their labels and people."""
    return (
        np.concatenate([har.x_train, har.x_test]),
        np.concatenate([har.y_train, har.y_test]),
        np.concatenate([har.subject_train, har.subject_test]),
    )


def _har(windows: tuple[NDArray[np.float32], Labels, Labels], seed: int) -> dict[str, Pool]:
    """A 1-D CNN; the pool are the windows of the people who did not train it."""
    from keras import Input, layers

    x, y, people = windows
    trains = np.isin(people, np.random.default_rng(seed).permutation(np.unique(people))[:TRAINING_PEOPLE])
    inputs = Input((128, 9))
    front = [layers.Conv1D(16, 8, strides=4, padding="same", activation="relu"), layers.MaxPooling1D(2)]
    front += [layers.Conv1D(24, 5, padding="same", activation="relu"), layers.AveragePooling1D(4)]
    front += [layers.Flatten(), layers.Dropout(0.3), layers.Dense(6)]
    block = [layers.Conv1D(32, 5, padding="same"), layers.BatchNormalization(), layers.ReLU(), layers.MaxPooling1D(2)]
    middle = [layers.MaxPooling1D(2), layers.Conv1D(32, 5, padding="same", activation="relu")]
    middle += [layers.AveragePooling1D(8), layers.Flatten(), layers.Dropout(0.3), layers.Dense(6)]
    rest = [layers.Conv1D(64, 5, padding="same", activation="relu"), layers.MaxPooling1D(2)]
    rest += [layers.Conv1D(64, 5, padding="same", activation="relu") for _ in range(2)]
    rest += [layers.GlobalAveragePooling1D(), layers.Dropout(0.3), layers.Dense(64, activation="relu"), layers.Dense(6)]
    sides = (x[trains], y[trains]), x[~trains]
    return _pools(inputs, [front, block, middle, rest], *sides, people[~trains], seed, epochs=20)


def _pools(
    inputs: Keras,
    steps: Sequence[Sequence[Keras]],
    train: tuple[NDArray[np.float32], Labels],
    x: NDArray[np.float32],
    people: Labels,
    seed: int,
    epochs: int,
) -> dict[str, Pool]:
    """Train with an exit at the input, one in the middle and the final one; what they make of `x`, with one early exit
    (the middle) and with both.

    `steps`: layers of the exit at the input; of the trunk before the exit in the middle; of that exit; of the rest.
    """
    import keras

    keras.utils.set_random_seed(seed)
    front, block, middle, rest = steps
    trunk = _through(inputs, block)
    model = keras.Model(inputs, [_through(inputs, front), _through(trunk, middle), _through(trunk, rest)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss=[loss] * 3)
    model.fit(train[0], [train[1]] * 3, epochs=epochs, batch_size=128, verbose=0)
    logits = [np.asarray(one) for one in model.predict(x, batch_size=1000, verbose=0)]
    labels = [one.argmax(axis=1) for one in logits]
    harm = harm_of("agreement", labels, labels[-1], None)
    at_input, before, at_middle, after = (float(sum(map(_macs, layers))) for layers in steps)
    one_exit = before + at_middle, before + at_middle + after
    both = at_input, at_input + one_exit[0], at_input + one_exit[1]
    return {
        "one exit": Pool(tuple(logits[1:]), tuple(harm[1:]), one_exit, people),
        "two exits": Pool(tuple(logits), tuple(harm), both, people),
    }


def _through(tensor: Keras, layers: Sequence[Keras]) -> Keras:
    for layer in layers:
        tensor = layer(tensor)
    return tensor


def _macs(layer: Keras) -> int:
    """Multiplications of a convolution or a dense layer, one sample."""
    positions = math.prod(layer.output.shape[1:-1])
    return positions * math.prod(layer.kernel.shape) if hasattr(layer, "kernel") else 0
