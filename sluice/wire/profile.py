"""What a device measured of itself: the times of a bundle's segments, its memory, its processor.

`sluice profile` writes it as JSON, a device reports it, and the partitioner plans with it. Measuring is done in
`sluice/stage/profile.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from sluice.wire.errors import PermanentError
from sluice.wire.manifest import first_cause
from sluice.wire.names import Name, Sha256

MAX_PROFILE_BYTES = 64_000
SEGMENTS_MOST = 128
BATCH_MOST = 4096

Batch = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,3}$")]
Microseconds = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
Words = Annotated[str, Field(max_length=200)]
ByBatch = Annotated[dict[Batch, Microseconds], Field(min_length=1, max_length=8)]


class _Part(BaseModel):
    """Base: immutable; unknown fields are a newer writer's."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class SegmentProfile(_Part):
    """One segment, known by its place and the sha256 of its file. Times are of the whole batch, one thread's or all."""

    index: int = Field(ge=0, le=10_000)
    sha256: Sha256
    macs: int = Field(ge=0, lt=2**63)
    reference_us: Microseconds | None = None
    """Of one sample on the machine that partitioned, from the manifest."""
    us: ByBatch
    """Median time by batch size, µs."""
    p90_us: ByBatch
    """The time that nine of ten runs keep to, by batch size, µs."""


class Profile(_Part):
    """What runs the segments of a bundle here, and how fast."""

    bundle: Sha256
    runtime: Words
    machine: Words
    cpu: Words
    python: Words
    threads: int = Field(default=1, ge=1, le=1024)
    memory_mb: float = Field(gt=0, le=1e9, allow_inf_nan=False)
    """Largest resident memory of the process so far, with what was measured loaded, MiB."""
    request: Name | None = None
    """What the control plane called its request; None: nobody asked from afar."""
    segments: tuple[SegmentProfile, ...] = Field(max_length=SEGMENTS_MOST)


def parse_profile(data: bytes) -> Profile:
    """The profile in `data` (JSON); `PermanentError` with the first cause if it is none."""
    if len(data) > MAX_PROFILE_BYTES:
        raise PermanentError(f"profile of {len(data)} bytes is over the limit of {MAX_PROFILE_BYTES}")
    try:
        return Profile.model_validate_json(data)
    except ValidationError as error:
        raise PermanentError(f"profile: {first_cause(error)}") from error


def read_profile(file: Path) -> Profile:
    """The profile in a file; errors as in `parse_profile`, with the file's name."""
    try:
        return parse_profile(file.read_bytes())
    except OSError as error:
        raise PermanentError(f"{file} cannot be read: {error.strerror}") from error
    except PermanentError as error:
        raise PermanentError(f"{file}: {error}") from error
