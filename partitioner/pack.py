"""The bundle as a folder: manifest, segments and golden samples, whole or not at all.

It is written beside its place under a hidden name and renamed when it is complete; a failure leaves nothing.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from partitioner.export import TOLERANCE, Exported
from sluice.stage.segment import Arrays
from sluice.wire import bundle
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Manifest, OperatingPoint, Provenance, Segment, TensorSpec

GOLDEN = 8
"""Golden samples of each segment."""
TOOLS = ("sluice", "keras", "tensorflow", "tensorflow-cpu", "ai-edge-litert", "numpy")


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
    training: str | None = None,
    slices: Sequence[str] = (),
    sign: Callable[[bytes], str] | None = None,
) -> str:
    """Write the bundle to `folder`, which must not be there yet, and return its digest.

    `segments` are the manifest's, without their golden blob; `golden`: the model's inputs (n, *shape) that golden
    samples are made of. `sign` makes the signature (base64) of the manifest's bytes; unsigned without it.
    """
    with _appearing(folder) as draft:
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
                        "tolerance": _tolerance(made),
                    }
                )
            )
            tensors |= made
        manifest = Manifest(
            model=model,
            version=model_version,
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
    return bundle.sha256(data)


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A hidden folder that becomes `folder` at the end, or goes away with whatever was written to it."""
    if folder.exists():
        raise PermanentError(f"{folder} is there already: name a folder that is not")
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield draft
        draft.chmod(0o755)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft)
        raise


def _npz(spec: Segment, tensors: Arrays, made: Arrays) -> bytes:
    arrays = {f"in.{tensor.name}": tensors[tensor.name] for tensor in spec.inputs}
    arrays |= {f"out.{name}": array for name, array in made.items()}
    file = io.BytesIO()
    np.savez_compressed(file, allow_pickle=False, **arrays)
    return file.getvalue()


def _tolerance(made: Arrays) -> float:
    """As between TFLite and Keras: another runtime or CPU is no worse than that."""
    return TOLERANCE * max(1.0, *(float(np.max(np.abs(a.astype(np.float64)), initial=0.0)) for a in made.values()))


def _provenance(training: str | None, slices: Sequence[str]) -> Provenance:
    tools = {}
    for name in TOOLS:
        try:
            tools[name] = version(name)
        except ModuleNotFoundError:  # tensorflow or tensorflow-cpu, by machine
            continue
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Provenance(training=training, slices=tuple(slices), tools=tools, created_at=now)
