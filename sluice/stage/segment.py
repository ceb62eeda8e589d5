"""A segment, running: the TFLite runtime behind one small function. No other module imports the runtime.

`ai-edge-litert` where it is installed, else `tflite-runtime` (32-bit ARM). A segment takes any batch: each batch size
up to the next power of two has an interpreter of its own, made on first use, because resizing one costs more than a
run; the surplus rows are zeros and cut off again.
"""

from __future__ import annotations

import io
import platform
import zipfile
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sluice.wire import bundle as bundles
from sluice.wire.errors import PermanentError, in_short
from sluice.wire.manifest import Manifest, Segment

Array = NDArray[np.generic]
Arrays = dict[str, Array]

GOLDEN_MOST = 256
"""Golden samples of one segment; they are run as one batch."""
GOLDEN_ROOM_BYTES = 4_000_000
"""Bytes that golden samples may take beside the tensors that the manifest knows: logits, headers."""
LENT_BYTES = 4096
"""From this size on lending a tensor is faster than copying it."""


def runtime() -> tuple[str, type]:
    """(name, Interpreter class) of the installed runtime; `PermanentError` if there is none."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tflite_runtime.interpreter import Interpreter
        except ImportError:
            raise PermanentError("no TFLite runtime: install ai-edge-litert, or tflite-runtime on 32-bit ARM") from None
        return "tflite-runtime", Interpreter
    return "ai-edge-litert", Interpreter


@cache
def profile() -> dict[str, str]:
    """What runs segments here: runtime, machine, Python."""
    from importlib.metadata import version

    name, _ = runtime()
    return {
        "runtime": f"{name} {version(name)}",
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


class _Interpreter:
    """One interpreter at one batch size, its tensors addressed by their names in the signature.

    `at_hand` is what a run needs, looked up here once, because a small segment takes no longer than a few lines of
    Python: inputs as (name, put, (batch, *shape), dtype), outputs as (name, get) that give copies, outputs as (name,
    get) of which the large ones give the runtime's own memory, and the function that runs.
    """

    def __init__(self, content: bytes, batch: int, spec: Segment, threads: int) -> None:
        _, interpreter_class = runtime()
        core: Any = interpreter_class(model_content=content, num_threads=threads)
        runner = core.get_signature_runner()
        inputs = {name: detail["index"] for name, detail in runner.get_input_details().items()}
        self.outputs = {name: detail["index"] for name, detail in runner.get_output_details().items()}
        del runner  # the interpreter refuses to work while anyone else refers to its core
        known = {tensor.name: tensor for tensor in spec.inputs}
        if known.keys() != inputs.keys():
            raise PermanentError(f"segment reads {sorted(inputs)}, its manifest says {sorted(known)}")
        for name, index in inputs.items():
            core.resize_tensor_input(index, (batch, *known[name].shape), strict=False)
        core.allocate_tensors()
        large = {tensor.name for tensor in spec.outputs if tensor.nbytes * batch >= LENT_BYTES}
        copies = [(name, partial(core.get_tensor, index)) for name, index in self.outputs.items()]
        self.at_hand = (
            [
                (name, partial(core.set_tensor, index), (batch, *known[name].shape), np.dtype(known[name].dtype))
                for name, index in inputs.items()
            ],
            copies,
            [(name, core.tensor(self.outputs[name]) if name in large else copy) for name, copy in copies],
            core.invoke,
        )


class RunningSegment:
    """A loaded segment; `run` is its only use. Not for several threads at once."""

    def __init__(self, content: bytes, spec: Segment, threads: int = 1) -> None:
        self.spec = spec
        self._content = content
        self._threads = threads
        self._by_batch: dict[int, _Interpreter] = {}
        single = self._at(1)
        if missing := ({output.name for output in spec.outputs} | spec.logits) - single.outputs.keys():
            raise PermanentError(f"segment {spec.index} does not make {sorted(missing)}")
        self._at_hand = single.at_hand

    def _at(self, batch: int) -> _Interpreter:
        found = self._by_batch.get(batch)
        if found is None:
            found = self._by_batch[batch] = _Interpreter(self._content, batch, self.spec, self._threads)
        return found

    def forget(self) -> None:
        """Let go of all interpreters but the one for single samples; others are made anew when they are needed."""
        self._by_batch = {1: self._at(1)}
        self._at_hand = self._at(1).at_hand

    def run(self, tensors: Mapping[str, Array], *, lent: bool = False) -> Arrays:
        """All outputs, each (n, *shape), for inputs (n, *shape) of the dtypes of the spec.

        Other tensors in `tensors` are left alone. What is returned is the caller's own; with `lent`, large tensors are
        the runtime's own memory, for a caller that is through with them before the next run: the runtime raises
        `RuntimeError` then if one is still there. Raises `PermanentError` for a wrong shape or dtype: the runtime
        itself would take it without complaint.
        """
        inputs, copies, views, invoke = self._at_hand
        for name, put, shape, dtype in inputs:
            array = tensors[name]
            if array.shape != shape or (array.dtype is not dtype and array.dtype != dtype):
                return self._resized(tensors, lent)
            put(array)
        invoke()
        made = {}
        for name, get in views if lent else copies:
            made[name] = get()
        return made

    def _resized(self, tensors: Mapping[str, Array], lent: bool) -> Arrays:
        """Run what does not fit the interpreter that ran last; the one that it fits is then at hand."""
        n = len(tensors[self.spec.inputs[0].name])
        batch = 1 if n <= 1 else 1 << (n - 1).bit_length()
        interpreter = self._at(batch)
        whole = {}
        for name, _, shape, dtype in interpreter.at_hand[0]:
            array = tensors[name]
            if array.shape != (n, *shape[1:]) or array.dtype != dtype:
                raise PermanentError(
                    f"segment {self.spec.index}, tensor {name!r}: {array.dtype}{list(array.shape)} where "
                    f"{dtype}{[n, *shape[1:]]} is expected"
                )
            if n != batch:  # the surplus rows are zeros and cut off again
                padded = np.zeros(shape, dtype)
                padded[:n] = array
                array = padded
            whole[name] = array
        self._at_hand = interpreter.at_hand
        made = self.run(whole, lent=lent)
        return made if n == batch else {name: array[:n] for name, array in made.items()}


def load_segment(content: bytes, spec: Segment, threads: int = 1) -> RunningSegment:
    """The segment whose TFLite file is `content`; `PermanentError` when the runtime cannot take it."""
    try:
        return RunningSegment(content, spec, threads)
    except (ValueError, RuntimeError) as error:
        raise PermanentError(f"segment {spec.index} cannot be loaded: {error}") from error


def load_segments(folder: Path, manifest: Manifest, indices: range, threads: int = 1) -> list[RunningSegment]:
    """Read from the bundle's `folder`, check, load and prove the segments `indices` on their golden samples.

    Raises `PermanentError` that names the segment and what is wrong.
    """
    loaded = []
    for index in indices:
        spec = manifest.segments[index]
        segment = load_segment(bundles.read_blob(folder / bundles.BLOBS, spec.file), spec, threads)
        prove(segment, bundles.read_blob(folder / bundles.BLOBS, spec.golden))
        segment.forget()  # golden samples are a batch that may never come again
        loaded.append(segment)
    return loaded


def prove(segment: RunningSegment, golden: bytes) -> None:
    """Run the golden samples and compare every output.

    Raises `PermanentError` when one is off by more than the tolerance, or when there is nothing to compare it with.
    """
    spec = segment.spec
    samples = _read_golden(golden, spec)
    inputs = {name.removeprefix("in."): a for name, a in samples.items() if name.startswith("in.")}
    wanted = {name.removeprefix("out."): a for name, a in samples.items() if name.startswith("out.")}
    shapes = {output.name: output.shape for output in spec.outputs}
    if not inputs.keys() >= {s.name for s in spec.inputs} or not wanted.keys() >= shapes.keys() | spec.logits:
        raise PermanentError(f"segment {spec.index}: golden samples are incomplete")
    if not all(array.ndim and len(array) for array in samples.values()):
        raise PermanentError(f"segment {spec.index}: there are no golden samples")
    if any(len(array) > GOLDEN_MOST for array in samples.values()):
        raise PermanentError(f"segment {spec.index}: over {GOLDEN_MOST} golden samples")
    try:
        made = segment.run(inputs)
    except (ValueError, RuntimeError) as error:
        raise PermanentError(f"segment {spec.index} cannot run its golden samples: {error}") from error
    for name, expected in wanted.items():
        if expected.dtype.kind not in "biuf":
            raise PermanentError(f"segment {spec.index}: golden output {name!r} is not of numbers")
        shape = (expected.shape[0], *shapes.get(name, expected.shape[1:]))
        if name not in made or not made[name].shape == expected.shape == shape:
            raise PermanentError(f"segment {spec.index}: golden output {name!r} has another shape")
        off = float(np.max(np.abs(made[name].astype(np.float64) - expected.astype(np.float64)), initial=0.0))
        if not off <= spec.tolerance:
            raise PermanentError(
                f"segment {spec.index} fails its golden samples: {name!r} is off by {off:.3g}, "
                f"tolerance {spec.tolerance:.3g}"
            )


def _read_golden(golden: bytes, spec: Segment) -> Arrays:
    """The arrays of an npz; `PermanentError` when it is none, or claims more than golden samples of `spec` can be."""
    most = GOLDEN_MOST * sum(tensor.nbytes for tensor in (*spec.inputs, *spec.outputs)) + GOLDEN_ROOM_BYTES
    try:
        with zipfile.ZipFile(io.BytesIO(golden)) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
        if claimed > most:
            raise ValueError(f"{claimed} bytes unpacked, {most} at most are expected")
        with np.load(io.BytesIO(golden), allow_pickle=False) as arrays:
            samples = {name: arrays[name] for name in arrays.files}
        if not all(isinstance(array, np.ndarray) for array in samples.values()):
            raise ValueError("not all members are arrays")
    except Exception as error:  # zip, deflate and npy find many words for what is broken
        raise PermanentError(f"segment {spec.index}: golden samples cannot be read: {in_short(error)}") from error
    return samples
