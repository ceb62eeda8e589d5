"""The bundle's manifest: what a cut model is made of and how it may be run.

`manifest.json` names every other file of the bundle by its sha256, so its own sha256 is the bundle's digest. The
models here are the format: pydantic checks a manifest when it is read, and `Manifest` checks that segments fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sluice.wire.errors import PermanentError, in_short
from sluice.wire.names import TIERS, Int64, Name, Sha256, Tier

FORMAT = 1
MAX_MANIFEST_BYTES = 4_000_000
VALUES_MOST = 2**31 - 1
"""Values of one tensor."""


Quantize = Literal["float32", "float16", "int8"]


class Part(BaseModel):
    """Base of all parts: immutable, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Coarse(Part):
    """How codec coarse writes a tensor: clipped to `low`..`high`, in `levels` even steps, several in a byte, zstd."""

    low: float = Field(ge=-1e38, le=1e38)
    high: float = Field(ge=-1e38, le=1e38)
    levels: int = Field(ge=2, le=16)
    values: tuple[Annotated[float, Field(ge=-1e38, le=1e38)], ...] = ()
    """What each level is read as; empty: the even steps themselves."""
    per_byte: int = Field(default=2, ge=1, le=8)
    """Elements in a byte, the first as its least digit in base `levels`."""
    channels_first: bool = False
    """Elements in the order channels (the last axis), then positions; else as in memory."""
    dictionary: str = Field(default="", max_length=65_536)
    """Trained zstd dictionary, base64; empty: none."""

    @model_validator(mode="after")
    def _rises(self) -> Coarse:
        if not self.high - self.low >= 1e-30:
            raise ValueError(f"coarse range {self.low:g}..{self.high:g} does not rise")
        if self.values and len(self.values) != self.levels:
            raise ValueError(f"{len(self.values)} values for {self.levels} levels")
        if self.levels**self.per_byte > 256:
            raise ValueError(f"{self.per_byte} elements of {self.levels} levels do not fit into a byte")
        return self


class TensorSpec(Part):
    """A tensor at a cut: `shape` without the batch axis; `scale` and `zero_point` for codec int8."""

    name: str = Field(min_length=1, max_length=200)
    dtype: Literal["float32", "float16", "int8", "uint8", "int32", "int64", "bool"]
    shape: tuple[Annotated[int, Field(gt=0, le=VALUES_MOST)], ...] = Field(max_length=8)
    scale: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    zero_point: int | None = Field(default=None, ge=-128, le=127)
    coarse: Coarse | None = None
    """For codec coarse; a tensor without it cannot travel so."""

    @model_validator(mode="after")
    def _is_bounded(self) -> TensorSpec:
        if self.size > VALUES_MOST:
            raise ValueError(f"shape {list(self.shape)} has over {VALUES_MOST} values")
        return self

    @property
    def size(self) -> int:
        """Elements of one sample."""
        return math.prod(self.shape)

    @property
    def wire_dtype(self) -> np.dtype[Any]:
        """The dtype as it travels: little-endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def nbytes(self) -> int:
        """Bytes of one sample, uncompressed."""
        return self.size * np.dtype(self.dtype).itemsize

    @property
    def is_float(self) -> bool:
        """Whether the values are floating point (and so may be quantised on the wire)."""
        return self.dtype in ("float32", "float16")


class Blob(Part):
    """A file of the bundle, known by its content."""

    sha256: Sha256
    size: int = Field(gt=0, lt=2**63)


class ExitHead(Part):
    """A classifier at the end of a segment; `logits` is the name of the segment's float32 output that it makes."""

    name: str
    logits: str


class Segment(Part):
    """One TFLite artifact.

    `inputs` are what it reads, `outputs` what it makes for later segments (without its exit's logits), `passes` the
    names among the tensors crossing into it that later segments need and it does not change.
    """

    index: Int64
    name: str = Field(default="", max_length=200)
    """Where it ends: the layer before the split point, or the exit."""
    quantize: Quantize = "float32"
    """Of its weights and arithmetic; what crosses and the logits are floating point all the same."""
    file: Blob
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    passes: tuple[str, ...] = ()
    exit: ExitHead | None = None
    macs: int = Field(ge=0, lt=2**63)
    golden: Blob
    """An npz: `in.<tensor>` and `out.<tensor>` (logits too), each (n, *shape)."""
    tolerance: float = Field(gt=0, allow_inf_nan=False)
    """Largest absolute difference from the golden outputs; runtimes and CPUs differ in the last bit."""
    reference_us: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Median time of one sample on the machine that partitioned, one thread, µs."""

    @property
    def logits(self) -> set[str]:
        """The name of its exit's logits, or none."""
        return {self.exit.logits} if self.exit else set()


class ExitPolicy(Part):
    """When an exit may answer: confidence by `measure` after dividing logits by `temperature`, against `threshold`.

    Every measure is scaled to 0..1, larger is surer (entropy: 1 less its share of the maximum); at or above the
    threshold the exit answers.
    """

    measure: Literal["max_prob", "entropy", "margin"]
    threshold: float = Field(ge=0, allow_inf_nan=False)
    temperature: float = Field(gt=0, default=1.0, allow_inf_nan=False)


class Certificate(Part):
    """What was promised of an operating point, by which method, and what was seen.

    With probability 1 − `delta` over the `n` certifying samples, all the manifest's certified operating points
    (`points` of them) harm at most a share `epsilon` of new samples. Harm by `criterion`: another answer than the full
    model's (agreement), or a wrong one where the full model's is right (accuracy).
    """

    method: str
    criterion: Literal["agreement", "accuracy"]
    epsilon: float
    delta: float
    n: Int64
    violations: Int64
    points: int = Field(default=1, ge=1, lt=2**63)
    """Operating points that share `delta`; each was certified at `delta / points`."""
    scope: Literal["samples", "groups"] = "samples"
    """What is new: samples like those that certified (of the same groups, if there were any), or groups."""
    groups: Int64 | None = None
    """Groups (people, devices, sites) among the certifying samples, if they were told."""


class OperatingPoint(Part):
    """One choice of placement, codec and exit policy that a device may move to.

    `policies` has one entry an exit, the final exit last (which always answers; only its temperature counts).
    """

    id: Name
    placement: tuple[Tier, ...]
    codec: str
    policies: tuple[ExitPolicy, ...]
    certificate: Certificate | None = None
    expected: dict[str, float | list[float]] = {}


class Provenance(Part):
    """Where the bundle came from."""

    training: str | None = None
    slices: tuple[str, ...] = ()
    tools: dict[str, str] = {}
    created_at: str


class Manifest(Part):
    """The whole manifest; see the module."""

    format: Literal[1] = 1
    model: Name
    version: int = Field(ge=1, lt=2**63)
    task: Literal["classification", "tensors"] = "classification"
    """`tensors`: the answer is what the last segment makes, there are no labels and no exits."""
    labels: tuple[str, ...] = ()
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    segments: tuple[Segment, ...] = Field(min_length=1)
    operating_points: tuple[OperatingPoint, ...] = Field(min_length=1)
    provenance: Provenance

    @cached_property
    def exits(self) -> tuple[Segment, ...]:
        """The segments that end in an exit, in order; the last is the final exit."""
        return tuple(segment for segment in self.segments if segment.exit)

    def crossing(self, index: int) -> tuple[TensorSpec, ...]:
        """The tensors that cross into segment `index`; 0 gives the model's inputs."""
        return self._crossings[index]

    @cached_property
    def _crossings(self) -> tuple[tuple[TensorSpec, ...], ...]:
        specs, crossings = self.inputs, [self.inputs]
        for segment in self.segments:
            passes = set(segment.passes)
            specs = segment.outputs + tuple(spec for spec in specs if spec.name in passes)
            crossings.append(specs)
        return tuple(crossings)

    def operating_point(self, point_id: str) -> OperatingPoint:
        """The operating point of that id; `PermanentError` if the manifest has none."""
        for point in self.operating_points:
            if point.id == point_id:
                return point
        known = ", ".join(point.id for point in self.operating_points)
        raise PermanentError(f"operating point {point_id[:80]!r} is not in the manifest; it has {known}")

    def blobs(self, segments: range | None = None) -> list[Blob]:
        """The files that running `segments` (all by default) needs."""
        wanted = segments if segments is not None else range(len(self.segments))
        return [blob for i in wanted for blob in (self.segments[i].file, self.segments[i].golden)]

    @model_validator(mode="after")
    def _segments_fit(self) -> Manifest:
        if twice := _twice(spec.name for spec in self.inputs):
            raise ValueError(f"two inputs are called {twice!r}")
        for i, segment in enumerate(self.segments):
            if segment.index != i:
                raise ValueError(f"segment {i} says that it is {segment.index}")
            known = {spec.name: spec for spec in self.crossing(i)}
            for spec in segment.inputs:
                if known.get(spec.name) != spec:
                    raise ValueError(f"segment {i} reads {spec.name!r}, which does not cross into it as such")
            if missing := set(segment.passes) - known.keys():
                raise ValueError(f"segment {i} passes on {sorted(missing)}, which do not cross into it")
            made = [spec.name for spec in segment.outputs] + sorted(segment.logits)
            if twice := _twice((*made, *segment.passes)):
                raise ValueError(f"segment {i} gives two tensors called {twice!r}")
        if self.task == "classification":
            if self.segments[-1].exit is None:
                raise ValueError("the last segment has no exit")
            if len(self.labels) < 2:
                raise ValueError("labels: a classification has two at least")
        elif self.exits or self.labels:
            raise ValueError("exits and labels are for classification")
        elif not self.segments[-1].outputs:
            raise ValueError("the last segment makes nothing")
        return self

    @model_validator(mode="after")
    def _operating_points_fit(self) -> Manifest:
        if twice := _twice(point.id for point in self.operating_points):
            raise ValueError(f"two operating points are called {twice!r}")
        for point in self.operating_points:
            if len(point.placement) != len(self.segments):
                raise ValueError(f"operating point {point.id!r} places {len(point.placement)} segments")
            ranks = [TIERS.index(tier) for tier in point.placement]
            if ranks != sorted(ranks):
                raise ValueError(f"operating point {point.id!r} goes down a tier")
            if len(point.policies) != len(self.exits):
                raise ValueError(f"operating point {point.id!r} has {len(point.policies)} exit policies")
        return self


def _twice(names: Iterable[str]) -> str | None:
    """The first name that comes a second time."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def parse_manifest(data: bytes) -> Manifest:
    """The manifest in `data`; `PermanentError` with the first cause if it is none."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise PermanentError(f"manifest of {len(data)} bytes is over the limit of {MAX_MANIFEST_BYTES}")
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise PermanentError(f"manifest: {first_cause(error)}") from error


def first_cause(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, in one line of 300 characters at most: `where: what`."""
    cause = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(step) for step in cause["loc"])
    said = cause["msg"].removeprefix("Value error, ")
    what = f"{where}: {said}" if where else said
    return in_short(what, 300)
