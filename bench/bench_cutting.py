"""Cutting is free: a chain of segments against the same net in one TFLite file, both run by `RunningSegment`.

Nets of about 20, 90 and 350 µs and MobileNetV2 at 96 × 96, each cut once and twice, at block ends. Exit heads are in
neither: what is compared is the trunk. One thread, random weights and inputs, batch 1 and 32; the two take turns. A
figure is the thread's own processor time, so that those who are at work on the machine beside it count less. Each turn
begins with some passes that do not count: the other's weights are in the caches then, and whoever had two turns in a
row would be up to 10 % better off.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from rich.console import Console

from bench.chains import quiet_keras, running, trunk_pieces
from bench.report import Report
from sluice.stage.segment import RunningSegment

REPETITIONS = 32
TURN_S = 0.03
"""Length of one turn, about."""
WANTED = {1: "≤ 1.25 for nets under 50 µs, ≤ 1.07 above", 32: "≤ 1.05"}


def small(width: int, size: int) -> Any:
    """A plain CNN: three blocks of convolution and pooling and a classifier; blocks end in `block0`, `block1`, …"""
    keras = quiet_keras()
    layers = keras.layers
    a = x = keras.Input((size, size, 1), name="image")
    for block in range(3):
        a = layers.Conv2D(width << block, 3, padding="same", activation="relu")(a)
        a = layers.MaxPooling2D(2, name=f"block{block}")(a)
    return keras.Model(x, layers.Dense(10)(layers.Flatten()(a)))


def mobile_net() -> Any:
    """MobileNetV2, 96 × 96."""
    return quiet_keras().applications.MobileNetV2(input_shape=(96, 96, 3), weights=None, classes=100)


NETS: list[tuple[str, Any, tuple[str, str]]] = [
    ("CNN of 20 µs", lambda: small(6, 32), ("block0", "block1")),
    ("CNN of 90 µs", lambda: small(12, 44), ("block0", "block1")),
    ("CNN of 350 µs", lambda: small(20, 60), ("block0", "block1")),
    ("MobileNetV2-96", mobile_net, ("block_3_project_BN", "block_13_project_BN")),
]


def run_all(segments: list[RunningSegment], tensors: Any) -> Any:
    """Through all segments; returns the last one's outputs."""
    for segment in segments:
        tensors = segment.run(tensors, lent=True)
    return tensors


def turn_us(segments: list[RunningSegment], tensors: Any, runs: int) -> float:
    """Processor time of one pass, the mean of a turn of so many, µs."""
    for _ in range(max(2, runs // 3)):
        run_all(segments, tensors)
    begun = time.thread_time_ns()
    for _ in range(runs):
        run_all(segments, tensors)
    return (time.thread_time_ns() - begun) / 1000 / runs


def difference(whole: list[RunningSegment], chain: list[RunningSegment], x: Any) -> float:
    """Largest difference of what the two make of `x`."""
    once, made = (np.array(*run_all(segments, {"x": x}).values()) for segments in (whole, chain))
    return float(np.abs(once - made).max())


def run(console: Console) -> Report:
    """Measure."""
    report = Report("two and three segments in a row against the whole net in one file, heads in neither")
    for name, make, layers in NETS:
        quiet_keras().utils.set_random_seed(0)
        model = make()
        whole = running(trunk_pieces(model, ()))
        for cuts, word in ((1, "once"), (2, "twice")):
            chain = running(trunk_pieces(model, layers[:cuts]))
            for batch in (1, 32):
                x = np.random.default_rng(0).normal(size=(batch, *model.input_shape[1:])).astype(np.float32)
                row = report.row(f"{name}, cut {word}, batch {batch}", "µs")
                runs = max(1, round(TURN_S * 1e6 / turn_us(whole, {"x": x}, 5)))
                off = difference(whole, chain, x)
                console.print(f"{row.what}: {REPETITIONS} pairs of {runs} runs, difference of results {off:.2g}")
                if off > 1e-5:
                    raise RuntimeError(f"{row.what}: the chain computes something else")
                turns = [(chain, row.ours), (whole, row.baseline)]
                for repetition in range(REPETITIONS):
                    for segments, times in turns if repetition % 2 else reversed(turns):
                        times.append(turn_us(segments, {"x": x}, runs))
    report.notes += [f"wanted at batch {batch}: {text}" for batch, text in WANTED.items()]
    return report
