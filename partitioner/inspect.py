"""Looking at a finished bundle and checking it, without TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from sluice.stage.segment import load_segments, runtime
from sluice.wire.bundle import open_bundle
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Manifest, TensorSpec


@dataclass(frozen=True, slots=True)
class Checked:
    """A bundle that is whole; `proved`: its golden samples were run."""

    digest: str
    proved: bool


def check_bundle(folder: Path, public_keys: Iterable[str] | None) -> Checked:
    """Check manifest, signature (if keys are given) and every file; run the golden samples if a runtime is there.

    Raises `PermanentError` that names what is wrong.
    """
    opened = open_bundle(folder, public_keys=list(public_keys) if public_keys else None)
    for blob in opened.manifest.blobs():
        opened.read(blob)
    try:
        runtime()
    except PermanentError:
        return Checked(opened.digest, proved=False)
    load_segments(folder, opened.manifest, range(len(opened.manifest.segments)))
    return Checked(opened.digest, proved=True)


def tables(manifest: Manifest) -> list[Table]:
    """Segments and operating points as tables."""
    segments = Table("segment", "exit", "MACs", "size", "reads", "makes", "passes on", title="segments")
    for one in manifest.segments:
        segments.add_row(
            str(one.index),
            one.exit.name if one.exit else "",
            f"{one.macs:,}",
            f"{one.file.size:,} B",
            _tensors(one.inputs),
            _tensors(one.outputs),
            ", ".join(one.passes),
        )
    points = Table("operating point", "placement", "codec", "thresholds", "exit share", "agreement", "certificate")
    points.title = "operating points"
    for point in manifest.operating_points:
        certificate = point.certificate
        points.add_row(
            point.id,
            ", ".join(point.placement),
            point.codec,
            ", ".join(f"{policy.threshold:.4g}" for policy in point.policies[:-1]),
            _figures(point.expected.get("exit_share")),
            _figures(point.expected.get("agreement")),
            f"≤ {certificate.epsilon:.2%}, {1 - certificate.delta:.0%} sure, n = {certificate.n}"
            if certificate
            else "",
        )
    return [segments, points]


def _tensors(specs: Iterable[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in specs)


def _figures(value: float | list[float] | None) -> str:
    values = value if isinstance(value, list) else [] if value is None else [value]
    return ", ".join(f"{one:.1%}" for one in values)
