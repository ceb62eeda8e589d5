"""The two messages that a sample travels in: `Offload` (go on with this) and `Prediction` (the answer).

Both are plain frozen records; `encode` and `decode` are the only way to and from bytes. Decoding checks every field
that later code relies on, so that nothing behind it has to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from sluice.wire import avro
from sluice.wire.errors import PermanentError
from sluice.wire.names import TIERS, Tier, check_name

Status = Literal["provisional", "final"]
Reason = Literal["exit", "last", "expired", "offline", "timeout"]
STATUSES = ("provisional", "final")
REASONS = ("exit", "last", "expired", "offline", "timeout")

MAX_MESSAGE_BYTES = 1_000_000
"""Bound of one message; brokers are commonly set to 1 MB, and the partitioner refuses cuts above it."""
MAX_TENSORS = 64
MAX_RANK = 8
MAX_ID = 256
_TIERS = frozenset(TIERS)


class HasSample(Protocol):
    """Whatever knows its sample."""

    @property
    def device_id(self) -> str: ...
    @property
    def epoch(self) -> str: ...
    @property
    def seq(self) -> int: ...


SampleKey = tuple[str, str, int]
"""(device_id, epoch, seq)"""


def sample_of(message: HasSample) -> SampleKey:
    """The name under which a sample is known everywhere."""
    return (message.device_id, message.epoch, message.seq)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as it travels: `data` is what `codec` made of an array of `dtype` and `shape` (no batch axis)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float
    zero_point: int
    codec: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Belief:
    """What an earlier exit thought: exit index, label index, calibrated confidence (0 to 1)."""

    exit: int
    label: int
    confidence: float


@dataclass(frozen=True, slots=True)
class Audit:
    """What an early exit has answered: the sample's seq, exit index, label index.

    A message that has one is no sample of its own: its seq is the device's for the receipt alone, and where a stage
    made it the sample's. Stages run it through to the final exit, and nobody takes what comes of it for an answer.
    """

    of: int
    exit: int
    label: int


@dataclass(frozen=True, slots=True)
class Offload:
    """What the next segment needs; fields as in `schemas/offload.v2.avsc`. `epoch` and `bundle` are hex."""

    device_id: str
    epoch: str
    seq: int
    source_id: str | None
    model: str
    bundle: str
    operating_point: str
    tier: Tier
    next_segment: int
    tensors: tuple[Tensor, ...]
    beliefs: tuple[Belief, ...]
    captured_at: int
    ttl_ms: int
    compute_us: dict[str, int] = field(default_factory=dict)
    bytes_sent: int = 0
    trace: str | None = None
    audit: Audit | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer; fields as in `schemas/prediction.v2.avsc`. `outputs` is little-endian float32.

    `label` is -1 where the model does not classify; its results, one after the other, are in `outputs`.
    """

    device_id: str
    epoch: str
    seq: int
    source_id: str | None
    model: str
    bundle: str
    operating_point: str
    tier: Tier
    exit: int
    label: int
    confidence: float
    outputs: bytes
    status: Status
    reason: Reason
    captured_at: int
    produced_at: int
    compute_us: dict[str, int] = field(default_factory=dict)
    bytes_sent: int = 0
    trace: str | None = None
    audit: Audit | None = None


Outcome = Offload | Prediction


def encode(outcome: Outcome) -> bytes:
    """The outcome as one Avro single-object record."""
    record: dict[str, Any] = {name: getattr(outcome, name) for name in outcome.__slots__}
    record["epoch"] = bytes.fromhex(outcome.epoch)
    record["bundle"] = bytes.fromhex(outcome.bundle)
    if (audit := outcome.audit) is not None:
        record["audit"] = {"of": audit.of, "exit": audit.exit, "label": audit.label}
    if isinstance(outcome, Prediction):
        return avro.encode("prediction", record)
    record["tensors"] = [{n: getattr(t, n) for n in t.__slots__} for t in outcome.tensors]
    record["beliefs"] = [{n: getattr(b, n) for n in b.__slots__} for b in outcome.beliefs]
    return avro.encode("offload", record)


def decode_all(payload: bytes, limit: int = MAX_MESSAGE_BYTES) -> list[Outcome]:
    """All outcomes of a payload; several predictions may share one.

    Raises `PermanentError` when any of them is broken, `UnknownSchemaError` when one may be newer than this version.
    """
    return [_made(message, record) for message, record, _ in _records(payload, limit)]


@dataclass(slots=True)
class Head:
    """What whoever passes an outcome on has to know of it; `value` is its own part of the payload."""

    message: Literal["offload", "prediction"]
    device_id: str
    epoch: str
    seq: int
    model: str
    tier: Tier
    value: bytes


def heads(payload: bytes, limit: int = MAX_MESSAGE_BYTES) -> list[Head]:
    """The heads of all outcomes of a payload, which is decoded and checked as by `decode_all`, with the same errors."""
    return [
        Head(message, r["device_id"], r["epoch"].hex(), r["seq"], r["model"], r["tier"], value)  # type: ignore[arg-type]
        for message, r, value in _records(payload, limit)
    ]


def _records(payload: bytes, limit: int) -> list[tuple[str, dict[str, Any], bytes]]:
    """(message, record, its bytes), checked."""
    records = avro.decode_parts(payload, limit)
    for message, record, _ in records:
        _check(message, record)
    return records


def decode(payload: bytes, limit: int = MAX_MESSAGE_BYTES) -> Outcome:
    """The single outcome of a payload; errors as in `decode_all`, and `PermanentError` if there are several."""
    outcomes = decode_all(payload, limit)
    if len(outcomes) != 1:
        raise PermanentError(f"{len(outcomes)} records where one is expected")
    return outcomes[0]


def _check(message: str, record: dict[str, Any]) -> None:
    """Raise for what later code must not meet. Every message goes through here: words are made only when needed."""
    check_name("device", record["device_id"])
    check_name("model", record["model"])
    check_name("operating point", record["operating_point"])
    _require(record["seq"] >= 0, "seq is negative")
    _require(record["source_id"] is None or len(record["source_id"]) <= MAX_ID, "source_id is too long")
    _require(record["trace"] is None or len(record["trace"]) <= MAX_ID, "trace is too long")
    if record["tier"] not in TIERS:
        raise PermanentError(f"tier {record['tier'][:20]!r} is not one of {', '.join(TIERS)}")
    _require(record["compute_us"].keys() <= _TIERS, "compute_us names an unknown tier")
    if (audit := record["audit"]) is not None:
        _require(min(audit.values()) >= 0, "audit of a negative seq, exit or label")
    if message == "prediction":
        _check_belief(record, label_from=-1)
        if record["status"] not in STATUSES:
            raise PermanentError(f"status {record['status'][:20]!r} is unknown")
        if record["reason"] not in REASONS:
            raise PermanentError(f"reason {record['reason'][:20]!r} is unknown")
        _require(len(record["outputs"]) % 4 == 0, "outputs are not float32")
        return
    if message != "offload":
        raise PermanentError(f"a {message} record is not an outcome")
    _require(record["next_segment"] >= 0, "next_segment is negative")
    for field_name in ("tensors", "beliefs"):
        if len(record[field_name]) > MAX_TENSORS:
            raise PermanentError(f"more than {MAX_TENSORS} {field_name}")
    for belief in record["beliefs"]:
        _check_belief(belief)
    for tensor in record["tensors"]:
        shape = tensor["shape"]
        _require(len(tensor["name"]) <= MAX_ID, "a tensor's name is too long")
        _require(math.isfinite(tensor["scale"]), "a tensor's scale is not finite")
        if len(shape) > MAX_RANK:
            raise PermanentError(f"tensor rank over {MAX_RANK}")
        _require(not shape or (min(shape) > 0 and max(shape) < 2**31), "tensor dimension is not positive")


def _made(message: str, record: dict[str, Any]) -> Outcome:
    """The outcome that a checked record is."""
    record["epoch"] = record["epoch"].hex()
    record["bundle"] = record["bundle"].hex()
    if record["audit"] is not None:
        record["audit"] = Audit(**record["audit"])
    if message == "prediction":
        return Prediction(**record)
    for tensor in record["tensors"]:
        tensor["shape"] = tuple(tensor["shape"])
    record["tensors"] = tuple(Tensor(**tensor) for tensor in record["tensors"])
    record["beliefs"] = tuple(Belief(**belief) for belief in record["beliefs"])
    return Offload(**record)


def _check_belief(record: dict[str, Any], label_from: int = 0) -> None:
    _require(record["exit"] >= 0 and record["label"] >= label_from, "exit or label is negative")
    # float32 softmax may end a hair over 1
    _require(math.isfinite(record["confidence"]) and 0 <= record["confidence"] <= 1.001, "confidence not in 0..1")


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise PermanentError(reason)
