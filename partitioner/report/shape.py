"""What a report is made of: the form of `report.json`.

Fields that may be missing are those that a model or the data do not have: exits of a model that does not classify,
accuracy without labels, a plan where everything was fixed. A field that is not known here is a mistake of whoever
wrote it, and so is NaN: both are refused.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from sluice.wire.manifest import Certificate
from sluice.wire.names import Tier


class Part(BaseModel):
    """Base of all parts: immutable, strict about unknown fields, no NaN (nor null in its place)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="constants")


class Tensor(Part):
    """What crosses; `shape` without the batch axis."""

    shape: tuple[int, ...]
    dtype: str
    name: str = ""


class ExitOf(Part):
    """The exit at the end of a segment, as the first operating point uses it.

    `share`: of all samples, answered here. `accuracy`, `agreement` (with the full model): of this exit's answers.
    """

    name: str
    share: float
    agreement: float | None = None
    accuracy: float | None = None
    temperature: float | None = None
    threshold: float | None = None


class Segment(Part):
    """A segment and what crosses INTO it (0: the model's inputs); `crossing_bytes`: mean of a sample that crosses."""

    index: int
    name: str
    macs: int
    tier: Tier
    file_bytes: int | None = None
    reference_us: float | None = None
    exit: ExitOf | None = None
    crossing: tuple[Tensor, ...] = ()
    crossing_bytes: float | None = None


class Expected(Part):
    """Figures of an operating point: measured shares, and what the plan expects of time and bytes of a mean sample."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    agreement: float | None = None
    accuracy: float | None = None
    full_model_accuracy: float | None = None
    exit_share: tuple[float, ...] = ()
    crossing_bytes: tuple[float, ...] = ()
    latency_ms: float | None = None
    bytes: float | None = None
    device_us: float | None = None


class Point(Part):
    """An operating point; the report's first is the one that was decided on."""

    id: str
    placement: tuple[Tier, ...]
    codec: str
    thresholds: tuple[float, ...] = ()
    """Of each early exit that is left; above 1: never."""
    certificate: Certificate | None = None
    uncertified_because: str | None = None
    expected: Expected = Expected()


class Swept(Part):
    """One threshold of an exit by itself: the `share` of samples at or above it, how good its answers to them are."""

    threshold: float
    share: float
    agreement: float | None = None
    accuracy: float | None = None


class Bin(Part):
    """Samples of about one confidence: its mean, the share that is right, how many they are."""

    confidence: float
    right: float
    count: int


class Reliability(Part):
    """How far confidence can be taken at its word; `ece`: expected calibration error (Guo et al., arXiv 1706.04599)."""

    bins: tuple[Bin, ...]
    ece: float


class Exit(Part):
    """An exit by itself, used or not; the final one has no sweep."""

    name: str
    sweep: tuple[Swept, ...] = ()
    reliability: Reliability | None = None


class Choice(Part):
    """A way to run the model that the plan looked at, with figures of a mean sample."""

    name: str
    agreement: float | None = None
    latency_ms: float
    bytes: float
    device_us: float
    chosen: bool = False
    baseline: bool = False


class Uplink(Part):
    """The link that was planned for; `delay_s`: one way."""

    rate_bps: float = Field(gt=0)
    delay_s: float


class Strategy(Part):
    """Mean latency at each of the links' `rates_bps`."""

    name: str
    latency_ms: tuple[float, ...]
    chosen: bool = False


class Links(Part):
    """Latency by speed of the uplink."""

    uplink: Uplink
    rates_bps: tuple[float, ...]
    strategies: tuple[Strategy, ...]


class SplitPoint(Part):
    """A place where the model can be cut; `bytes` of a sample by codec (and by dtype: before any codec)."""

    name: str
    tensors: tuple[Tensor, ...]
    bytes: dict[str, float]
    macs_before: int
    macs_after: int
    block_end: bool = False
    chosen: bool = False
    exit: bool = False


class Groups(Part):
    """Share of harmed samples by group (person, device, site), and what is promised of new ones in words."""

    risk: dict[str, float]
    n: dict[str, int] = {}
    promise: str


class Data(Part):
    """Samples and what each part of them was used for; `groups`: how many there are."""

    n: int
    parts: dict[str, int] = {}
    groups: int | None = None


class Report(Part):
    """The whole of it; the first of `points` is what was decided."""

    model: str
    version: int
    task: Literal["classification", "tensors"] = "classification"
    digest: str = ""
    created_at: str = ""
    verdict: str
    warnings: tuple[str, ...] = ()
    segments: tuple[Segment, ...] = ()
    points: tuple[Point, ...] = ()
    exits: tuple[Exit, ...] = ()
    pareto: tuple[Choice, ...] = ()
    links: Links | None = None
    split_points: tuple[SplitPoint, ...] = ()
    groups: Groups | None = None
    data: Data | None = None
    settings: dict[str, Any] = {}
    tools: dict[str, str] = {}
