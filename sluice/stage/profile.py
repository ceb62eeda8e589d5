"""Measuring the segments of a bundle on the very machine that shall run them; see `sluice.wire.profile`.

Each segment is loaded and proven, then runs its golden samples, tiled to each batch size, again and again: the median
is what a run takes, the 90th percentile what one can count on. A device that works meanwhile measures itself as it is:
busy.
"""

from __future__ import annotations

import io
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sluice.stage.segment import Arrays, RunningSegment, load_segments, profile
from sluice.wire import bundle as bundles
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Segment
from sluice.wire.names import Name
from sluice.wire.profile import BATCH_MOST, SEGMENTS_MOST, Profile, SegmentProfile

BATCHES = (1, 8, 32)
WARM_UP = 3
REPEATS = 10
"""Least number of runs that are timed."""
REPEATS_MOST = 2000
SECONDS = 0.25
"""Time for the runs of one segment at one batch size, unless `REPEATS` take longer."""

OnStep = Callable[[int, int], None]
"""Hears of steps done and steps in all."""


class GivenUp(Exception):
    """Measuring was given up, as it was told."""


def measure(
    folder: Path,
    batches: Sequence[int] = BATCHES,
    *,
    indices: range | None = None,
    threads: int = 1,
    request: Name | None = None,
    on_step: OnStep = lambda _done, _total: None,
    give_up: Callable[[], bool] = lambda: False,
) -> Profile:
    """The profile of the segments `indices` (all by default) of the bundle in `folder`, at each of `batches`.

    Takes about a quarter of a second a segment and batch size. Raises `PermanentError` when the bundle or a segment is
    not what it should be, `GivenUp` as soon as `give_up` says so between two steps.
    """
    _check(batches)
    bundle = bundles.open_bundle(folder)
    manifest = bundle.manifest
    wanted = range(len(manifest.segments)) if indices is None else indices
    if len(wanted) > SEGMENTS_MOST:
        raise PermanentError(f"{len(wanted)} segments; a profile holds {SEGMENTS_MOST}")
    measured, done, total = [], 0, len(wanted) * len(batches)
    for index in wanted:
        spec = manifest.segments[index]
        (segment,) = load_segments(folder, manifest, range(index, index + 1), threads)
        golden = _golden(bundle.read(spec.golden), spec)
        times = {}
        for batch in batches:
            if give_up():
                raise GivenUp
            on_step(done, total)
            try:
                times[str(batch)] = _times_us(segment, golden, batch)
            except (ValueError, RuntimeError) as error:
                raise PermanentError(f"segment {index} cannot run at batch {batch}: {error}") from error
            done += 1
        measured.append(
            SegmentProfile(
                index=index,
                sha256=spec.file.sha256,
                macs=spec.macs,
                reference_us=spec.reference_us,
                us={batch: round(float(np.median(us)), 2) for batch, us in times.items()},
                p90_us={batch: round(float(np.percentile(us, 90)), 2) for batch, us in times.items()},
            )
        )
    on_step(total, total)
    here = profile()
    return Profile(
        bundle=bundle.digest,
        runtime=here["runtime"],
        machine=here["machine"],
        cpu=cpu_model(),
        python=here["python"],
        threads=threads,
        memory_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        request=request,
        segments=tuple(measured),
    )


def _check(batches: Sequence[int]) -> None:
    if not 1 <= len(set(batches)) == len(batches) <= 8:
        raise PermanentError(f"batch sizes {', '.join(map(str, batches)) or 'none'}: name one to eight, each once")
    for batch in batches:
        if not 1 <= batch <= BATCH_MOST:
            raise PermanentError(f"batch size {batch} is not between 1 and {BATCH_MOST}")


def _golden(content: bytes, spec: Segment) -> Arrays:
    """The inputs of the golden samples, by the names of the tensors; they were read before, when they proved it."""
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return {tensor.name: arrays[f"in.{tensor.name}"] for tensor in spec.inputs}


def _times_us(segment: RunningSegment, golden: Arrays, batch: int) -> list[float]:
    """Times of many runs of `batch` samples, µs."""
    tensors = {name: array[np.arange(batch) % len(array)] for name, array in golden.items()}
    for _ in range(WARM_UP):
        segment.run(tensors)
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < REPEATS or (time.perf_counter() < end and len(times) < REPEATS_MOST):
        begun = time.perf_counter_ns()
        segment.run(tensors)
        times.append((time.perf_counter_ns() - begun) / 1000)
    return times


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the kernel calls the processor or the board; empty where it does not say."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    named = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    for name in ("model name", "Model", "Hardware", "cpu model", "uarch"):
        if named.get(name):
            return named[name][:200]
    return ""
