"""Our own cost per segment and gate, over the bare interpreter call: set_tensor, invoke, get_tensor of every output.

A small net with two exits at batch 1, one thread. Ours is `RunningSegment.run` and `policy.decide` for both exits (the
first never answers, so both run). What `step` costs in all, messages and time stamps and a codec included, stands below
without a baseline.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console

from bench.chains import LOGITS, lenet, pieces, quiet_keras, segment_of
from bench.report import Report
from sluice.stage.policy import decide
from sluice.stage.segment import load_segment, runtime
from sluice.stage.step import Stage, Work, step
from sluice.wire.manifest import ExitPolicy, Manifest, OperatingPoint, Provenance
from sluice.wire.messages import Offload

REPETITIONS = 41
RUNS = 200
BATCHES = (1, 32)
WANTED_US = 5.0


class Bare:
    """One TFLite file on a bare interpreter."""

    def __init__(self, content: bytes) -> None:
        _, interpreter = runtime()
        self.core: Any = interpreter(model_content=content, num_threads=1)
        runner = self.core.get_signature_runner()
        self.inputs = [(name, detail["index"]) for name, detail in runner.get_input_details().items()]
        self.outputs = [(name, detail["index"]) for name, detail in runner.get_output_details().items()]
        del runner
        self.core.allocate_tensors()

    def __call__(self, tensors: Any) -> Any:
        core = self.core
        for name, index in self.inputs:
            core.set_tensor(index, tensors[name])
        core.invoke()
        return {name: core.get_tensor(index) for name, index in self.outputs}


def median_us(what: Callable[[], object]) -> float:
    """Median time of one call in one turn, µs."""
    times = []
    for _ in range(RUNS):
        begun = time.perf_counter_ns()
        what()
        times.append(time.perf_counter_ns() - begun)
    return statistics.median(times) / 1000


def run(console: Console) -> Report:
    """Measure."""
    quiet_keras().utils.set_random_seed(0)
    made = [segment_of(piece, index) for index, piece in enumerate(pieces(lenet(), "block"))]
    segments = [load_segment(*one) for one in made]
    bare = [Bare(content) for content, _ in made]
    x = np.random.default_rng(0).integers(0, 256, (1, 28, 28, 1)).astype(np.uint8)
    never = ExitPolicy(measure="max_prob", threshold=2.0, temperature=1.5)

    def ours() -> None:
        tensors: Any = {"x": x}
        for segment in segments:
            tensors = segment.run(tensors)
            decide(never, tensors[LOGITS])

    def baseline() -> None:
        tensors: Any = {"x": x}
        for segment in bare:
            tensors = segment(tensors)

    report = Report("two segments with a gate each at batch 1, against the bare interpreter calls")
    pair = report.row("both segments and gates, 10 classes", "µs")
    own = report.row("our own cost per segment and gate", "µs")
    turns = [(ours, pair.ours), (baseline, pair.baseline)]
    for repetition in range(REPETITIONS):
        for what, times in turns if repetition % 2 else reversed(turns):
            times.append(median_us(what))
    own.ours = [(a - b) / len(segments) for a, b in zip(pair.ours, pair.baseline, strict=True)]
    console.print(f"{REPETITIONS} pairs of {RUNS} runs")

    specs = tuple(spec for _, spec in made)
    for label, threshold in (("answered at the first exit", 0.0), ("offloaded after the first", 2.0)):
        stage = Stage("edge", "ab" * 32, _manifest(specs, threshold), 0, segments)
        for batch in BATCHES:
            works = [Work(_offload(seq), {"x": x[0]}) for seq in range(batch)]
            row = report.row(f"step(), a sample of {batch}, {label}", "µs")
            row.ours = [median_us(partial(step, stage, works)) / batch for _ in range(REPETITIONS // 4)]
    report.notes.append(f"wanted: our own cost ≤ {WANTED_US:g} µs; median {statistics.median(own.ours):.2f} µs")
    return report


def _manifest(segments: Any, threshold: float) -> Manifest:
    policy = ExitPolicy(measure="max_prob", threshold=threshold)
    point = OperatingPoint(id="default", placement=("edge", "cloud"), codec="raw", policies=(policy, policy))
    return Manifest(
        model="digits",
        version=1,
        labels=tuple("0123456789"),
        inputs=segments[0].inputs,
        segments=segments,
        operating_points=(point,),
        provenance=Provenance(created_at=""),
    )


def _offload(seq: int) -> Offload:
    return Offload(
        device_id="pi-1",
        epoch="00" * 8,
        seq=seq,
        source_id=None,
        model="digits",
        bundle="ab" * 32,
        operating_point="default",
        tier="edge",
        next_segment=0,
        tensors=(),
        beliefs=(),
        captured_at=0,
        ttl_ms=60_000,
    )
