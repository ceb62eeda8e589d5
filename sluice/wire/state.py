"""State and control, as JSON: desired, reported, status, receipts, announced streams.

pydantic checks them when they arrive and produces their JSON schema (`model_json_schema`). Desired state travels in a
`Signed` envelope, because a device must not obey its broker.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from sluice.wire import signing
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import first_cause
from sluice.wire.names import Int64, Name, Sha256
from sluice.wire.profile import Profile

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAX_STATE_BYTES = 64_000
MODELS_MOST = 16
"""Models on one device."""
Epoch = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]


class Part(BaseModel):
    """Base: immutable; unknown fields are ignored, so that a newer writer does not stop an older reader."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class State(Part):
    """Base of what is a message of its own."""


class Bounds(Part):
    """What a new run has to keep to; a device on which it leaves them goes back to the run before by itself.

    Judged over the last `samples` samples: as soon as so many of them are bad that the whole window cannot keep to the
    bound any more, the bound is left.
    """

    samples: int = Field(default=100, ge=1, le=100_000)
    """Samples that are judged together."""
    watch_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """How long after the switch (or the device's restart) it is watched; None: as long as it runs."""
    errors_most: float = Field(default=0.1, ge=0, le=1)
    """Largest share of samples that could not be worked on."""
    latency_p95_most_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Largest 95th percentile of the device's own processing of a sample, ms: 5 % of the samples may take longer."""
    exit_share_least: float | None = Field(default=None, ge=0, le=1)
    """Least share of samples that are answered on the device."""
    exit_share_most: float | None = Field(default=None, ge=0, le=1)
    """Largest share of samples that are answered on the device."""

    @model_validator(mode="after")
    def _leaves_room(self) -> Bounds:
        least, most = self.exit_share_least, self.exit_share_most
        if least is not None and most is not None and least > most:
            raise ValueError(f"exit share from {least:g} to {most:g} leaves no room")
        return self


class Run(Part):
    """One model on one device: which bundle, at which of its operating points, within which bounds."""

    model: Name
    bundle: Sha256
    operating_point: Name
    bounds: Bounds | None = None
    """None: those of `Bounds()`."""
    revision: int = Field(default=0, ge=0, lt=2**63)
    """The desired revision that brought it, which a device tries once; 0: the one that it stands in."""


class Desired(State):
    """What one device shall run. Revisions rise; a device ignores what is not above the last it obeyed."""

    device_id: Name
    revision: int = Field(ge=1, lt=2**63)
    runs: tuple[Run, ...] = Field(max_length=MODELS_MOST)
    """One for each model; none at all: the device rests."""
    profile: Name | None = None
    """A request to measure the segments of a bundle on the device; one that it has answered is not repeated."""
    profile_model: Name | None = None
    """The model whose bundle is to be measured; None: the first of `runs`."""

    @model_validator(mode="after")
    def _runs_fit(self) -> Desired:
        models = [run.model for run in self.runs]
        if len(set(models)) < len(models):
            raise ValueError("two runs are of one model")
        if any(run.revision > self.revision for run in self.runs):
            raise ValueError(f"a run is of a later revision than {self.revision}")
        return self

    def run_of(self, model: str) -> Run | None:
        """The run of `model`, with the revision that brought it."""
        for run in self.runs:
            if run.model == model:
                return run if run.revision else run.model_copy(update={"revision": self.revision})
        return None


class Signed(State):
    """`payload` exactly as it was signed, and the Ed25519 signature (base64) over its UTF-8 bytes."""

    payload: str
    signature: str


class Running(Part):
    """What a device runs of one model, and what went wrong with what it was told to run."""

    model: Name
    bundle: Sha256 | None = None
    """None: it could never run what it was told to."""
    operating_point: Name | None = None
    since_us: Int64 = 0
    """UTC microseconds by the device's clock, for people."""
    revision: Int64 = 0
    """The desired revision that brought it; after going back, that of the run before."""
    error: str | None = Field(default=None, max_length=1000)
    """Why a later revision was refused, or why the device went back from it."""


class Reported(State):
    """What one device runs: the answer to `Desired`."""

    device_id: Name
    revision: Int64 = 0
    """The last desired revision that was looked at, whether it could be obeyed or not."""
    runs: tuple[Running, ...] = Field(default=(), max_length=2 * MODELS_MOST)
    """By model: those that it runs, and those that it was told to run and could not."""
    last_error: str | None = None
    """The last thing that went wrong, whatever it concerned."""
    agent_version: str
    profile: dict[str, str] = {}
    """What runs segments there: runtime, machine, Python."""
    measured: Profile | None = None
    """The answer to the last request for a profile; `measured.request` says to which."""
    counters: dict[str, Int64] = {}

    def run_of(self, model: str) -> Running | None:
        """What it says of `model`; None if it was never told to run it."""
        return next((run for run in self.runs if run.model == model), None)


class DeviceStatus(State):
    """Whether the device is connected; `offline` is its last will."""

    device_id: Name
    status: Literal["online", "offline"]


class Receipt(State):
    """The gateway's word that these samples of one device are in Kafka."""

    epoch: Epoch
    seqs: list[Int64] = Field(max_length=10_000)


class DeadLetter(State):
    """What a device could not read, sent up because a device has no Kafka; `data` is base64."""

    reason: str = Field(max_length=1000)
    origin: str = Field(max_length=300)
    data: str


class Announcement(State):
    """A data stream on a Kafka topic, said once on `sluice.control` when it is complete.

    `slices` are `topic:partition:offset:length`; `config` is the format's (see `sluice.streams.formats`).
    """

    stream_id: Name
    deployment: str | None = None
    """The deployment that it is meant for; None: for anyone."""
    slices: list[str] = Field(min_length=1)
    format: str
    config: dict[str, object] = {}
    validation_rate: float = Field(ge=0, le=1)
    """Share that is not trained on; all of it, where only the partitioner shall have it."""
    count: int = Field(ge=0, lt=2**63)
    part: int = Field(default=1, ge=1)
    """Which part of the stream this is, where several producers send it."""
    parts: int = Field(default=1, ge=1, le=1000)
    """How many parts there are; the stream is whole when all of them were announced."""


StateT = TypeVar("StateT", bound=State)


def parse_state(kind: type[StateT], data: bytes | str) -> StateT:
    """`data` as a `kind`; `PermanentError` with the first cause when it is none or too large."""
    if len(data) > MAX_STATE_BYTES:
        raise PermanentError(f"{kind.__name__} of {len(data)} bytes is over the limit of {MAX_STATE_BYTES}")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise PermanentError(f"{kind.__name__}: {first_cause(error)}") from error


def seal(key: Ed25519PrivateKey, state: Desired) -> bytes:
    """The signed envelope of `state`."""
    payload = state.model_dump_json()
    return Signed(payload=payload, signature=signing.sign(key, payload.encode())).model_dump_json().encode()


def unseal(data: bytes, device_id: str, public_keys: Iterable[str]) -> Desired:
    """The desired state in a signed envelope, if it was signed by a trusted key for this very device.

    Raises `PermanentError` otherwise. Whether its revision is new is the caller's to check.
    """
    envelope = parse_state(Signed, data)
    try:
        signing.verify(public_keys, envelope.payload.encode(), envelope.signature)
    except PermanentError as error:
        raise PermanentError(f"desired state: {error}") from error
    desired = parse_state(Desired, envelope.payload)
    if desired.device_id != device_id:
        raise PermanentError(f"desired state is for device {desired.device_id!r}")
    return desired
