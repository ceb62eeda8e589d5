"""Looking at a finished bundle and checking it, without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from partitioner.quiet import held
from sluice.stage.segment import load_segments, runtime
from sluice.wire.bundle import Bundle, open_bundle
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Certificate, Manifest, TensorSpec


@dataclass(frozen=True, slots=True)
class Checked:
    """A bundle that is whole; `proved`: its golden samples were run."""

    digest: str
    proved: bool


def check_bundle(folder: Path, public_keys: Iterable[str] | None) -> Checked:
    """Check manifest, signature (if keys are given) and every file; run the golden samples if a runtime is there.

    Nothing is written: the bundle may be read-only. Raises `PermanentError` that names what is wrong.
    """
    try:
        opened = open_bundle(folder, public_keys=list(public_keys) if public_keys else None)
    except OSError as error:
        raise PermanentError(f"{folder} cannot be read: {error.strerror or error}") from error
    try:
        proved = _whole(opened, folder)
    except PermanentError as error:
        raise PermanentError(f"{folder}: {error}") from error
    return Checked(opened.digest, proved=proved)


def _whole(opened: Bundle, folder: Path) -> bool:
    """Check every file and the golden samples; whether these were run."""
    for blob in opened.manifest.blobs():
        size = len(opened.read(blob))
        if size != blob.size:
            raise PermanentError(f"blob {blob.sha256[:12]}… has {size} bytes, the manifest says {blob.size}")
    try:
        runtime()
    except PermanentError:
        return False
    with held():
        load_segments(folder, opened.manifest, range(len(opened.manifest.segments)))
    return True


def tables(manifest: Manifest) -> list[Table]:
    """Segments and operating points as tables."""
    segments = Table("ends at", "as", "MACs", "bytes", "µs", "reads", "makes", "passes on")
    segments.title = "segments (µs: one sample, on the machine that partitioned)"
    for one in manifest.segments:
        segments.add_row(
            one.name if one.exit is None else f"exit {one.exit.name}",
            one.quantize,
            f"{one.macs:,}",
            f"{one.file.size:,}",
            f"{one.reference_us:.3g}" if one.reference_us else "",
            _tensors(one.inputs),
            _tensors(one.outputs),
            ", ".join(one.passes),
        )
    points = Table("operating point", "placement", "codec", "thresholds", "exit share", "agreement", "certificate")
    points.title = "operating points"
    for point in manifest.operating_points:
        points.add_row(
            point.id,
            ", ".join(point.placement),
            point.codec,
            ", ".join(f"{policy.threshold:.4g}" for policy in point.policies[:-1]),
            _figures(point.expected.get("exit_share")),
            _figures(point.expected.get("agreement")),
            _promise(point.certificate) if point.certificate else "",
        )
    return [segments, points]


def _promise(certificate: Certificate) -> str:
    """What is promised for whom, and from how much."""
    kind = "unlike the full model" if certificate.criterion == "agreement" else "wrong where the full model is right"
    whom = "new groups" if certificate.scope == "groups" else "samples of known groups" if certificate.groups else ""
    seen = f"n = {certificate.n}" + (f" of {certificate.groups} groups" if certificate.groups else "")
    sure = f"≤ {certificate.epsilon:.2%} {kind}, {1 - certificate.delta:.0%} sure, {seen}"
    return f"{sure}, for {whom}" if whom else sure


def _tensors(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} {'×'.join(map(str, spec.shape))}" for spec in specs)


def _figures(value: float | list[float] | None) -> str:
    values = value if isinstance(value, list) else [] if value is None else [value]
    return ", ".join(f"{one:.1%}" for one in values)
