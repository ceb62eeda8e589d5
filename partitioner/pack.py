"""The bundle as a folder: manifest, segments and golden samples, whole or not at all.

It is written beside its place under a hidden name, its golden samples are run on every runtime that is installed, and
it is renamed when it is complete; a failure leaves nothing.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from partitioner.anatomy.exits import Task
from partitioner.quiet import held
from partitioner.segments.crosscheck import OTHER, crosscheck
from partitioner.segments.export import Exported
from sluice.stage.segment import Arrays
from sluice.wire import bundle
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Manifest, OperatingPoint, Provenance, Quantize, Segment, TensorSpec

GOLDEN = 8
"""Golden samples of each segment."""
TOLERANCE: Mapping[Quantize, float] = {"float32": 1e-4, "float16": 1e-3, "int8": 0.2}
"""How far another runtime or CPU may be from the golden samples, as a share of the largest value that a segment makes
(of 1, if that is more). Floats are summed in another order; int8 may round another way, and each step that does moves
what follows; the most seen between the two runtimes is 0.08, in a deep segment."""
TOOLS = ("sluice", "keras", "tensorflow", "tensorflow-cpu", "ai-edge-litert", "tflite-runtime", "numpy")


def pack(
    folder: Path,
    *,
    model: str,
    model_version: int,
    labels: Sequence[str],
    inputs: Sequence[TensorSpec],
    exported: Sequence[Exported],
    segments: Sequence[Segment],
    points: Sequence[OperatingPoint],
    golden: Arrays,
    task: Task = "classification",
    training: str | None = None,
    slices: Sequence[str] = (),
    sign: Callable[[bytes], str] | None = None,
    extras: Callable[[str], Mapping[str, bytes]] = lambda _: {},
    warn: Callable[[str], None] = lambda _: None,
) -> str:
    """Write the bundle to `folder`, which must not be there yet, and return its digest.

    `segments` are the manifest's, without their golden blob; `golden`: the model's inputs (n, *shape) that golden
    samples are made of. `sign` makes the signature (base64) of the manifest's bytes; unsigned without it. `extras`
    gives files to write beside the manifest, by name, once the digest is known; `warn` is told, in one line, when a
    runtime is installed that the segments could not be tried on. Raises `PermanentError` when the folder cannot be
    written, or when the golden samples fail on another runtime; nothing is left then.
    """
    with _appearing(folder) as draft, held():
        blobs = draft / bundle.BLOBS
        finished = []
        tensors = {name: array[:GOLDEN] for name, array in golden.items()}
        for one, spec in zip(exported, segments, strict=True):
            made = one.segment.run(tensors)
            finished.append(
                spec.model_copy(
                    update={
                        "file": bundle.write_blob(blobs, one.content),
                        "golden": bundle.write_blob(blobs, _npz(spec, tensors, made)),
                        "tolerance": TOLERANCE[spec.quantize] * _largest(made),
                    }
                )
            )
            tensors |= made
        manifest = Manifest(
            model=model,
            version=model_version,
            task=task,
            labels=tuple(labels),
            inputs=tuple(inputs),
            segments=tuple(finished),
            operating_points=tuple(points),
            provenance=_provenance(training, slices),
        )
        data = manifest.model_dump_json(indent=1).encode()
        bundle.write_atomically(draft / bundle.MANIFEST, data)
        if sign is not None:
            bundle.write_atomically(draft / bundle.SIGNATURE, sign(data).encode())
        if (skipped := crosscheck(draft).skipped) and OTHER in tools():
            warn(skipped)
        digest = bundle.sha256(data)
        for name, content in extras(digest).items():
            bundle.write_atomically(draft / name, content)
    return digest


def check_place(folder: Path) -> None:
    """`PermanentError` now, before hours of work, when `folder` is there already or could not be made."""
    if folder.exists():
        raise PermanentError(f"{folder} is there already: name a folder that is not")
    nearest = next(parent for parent in folder.absolute().parents if parent.exists())
    try:
        tempfile.TemporaryDirectory(dir=nearest).cleanup()
    except OSError as error:
        raise PermanentError(f"{folder} cannot be written: {error.strerror or error}") from error


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A hidden folder that becomes `folder` at the end, or goes away with whatever was written to it."""
    if folder.exists():
        raise PermanentError(f"{folder} is there already: name a folder that is not")
    new = [parent for parent in folder.parents if not parent.exists()]
    draft = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        yield draft
        draft.chmod(0o755)
        draft.rename(folder)
    except BaseException as error:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
        for parent in new:
            with suppress(OSError):
                parent.rmdir()
        if isinstance(error, OSError):
            raise PermanentError(f"{folder} cannot be written: {error.strerror or error}") from error
        raise


def _npz(spec: Segment, tensors: Arrays, made: Arrays) -> bytes:
    arrays = {f"in.{tensor.name}": tensors[tensor.name] for tensor in spec.inputs}
    arrays |= {f"out.{name}": array for name, array in made.items()}
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def _largest(made: Arrays) -> float:
    """The largest value in `made`, 1 at least."""
    return max(1.0, *(float(np.max(np.abs(a.astype(np.float64)), initial=0.0)) for a in made.values()))


def tools() -> dict[str, str]:
    """Versions of what made the bundle, as far as it is installed."""
    found = {}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except ModuleNotFoundError:  # tensorflow or tensorflow-cpu, by machine; the other runtime is rarely there
            continue
    return found


def _provenance(training: str | None, slices: Sequence[str]) -> Provenance:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Provenance(training=training, slices=tuple(slices), tools=tools(), created_at=now)
