"""What the formats share: what an announcement says of its samples, and what is wrong with a record.

`avro` and `raw` are the formats, `formats` is their table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sluice.wire.errors import PermanentError, in_short
from sluice.wire.manifest import first_cause

Array = NDArray[Any]
Labels = NDArray[np.int64]

DTYPES = ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
MAX_VALUES = 10_000_000
"""Values in one record, at most."""


class Encoded(Protocol):
    """A record as read from Kafka (`sluice.doors.kafka.Record`)."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes: ...


class StreamConfig(BaseModel):
    """What an announcement's `config` says, the same keys for every format."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    shape: tuple[int, ...] = Field(max_length=8)
    """Shape of one sample."""
    dtype: str = "float32"
    """Type of the values on the wire, little-endian."""
    labels: tuple[str, ...] = ()
    """Names of the classes; empty: the classes are numbers."""
    avro_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    """avro: the schema that the records were written with."""
    x: str = "x"
    """avro: the field of the values: an array of numbers, or bytes."""
    y: str = "y"
    """avro: the field of the label, if the schema has one."""

    @property
    def size(self) -> int:
        """Values of one sample."""
        return math.prod(self.shape)

    @property
    def wire_dtype(self) -> np.dtype[Any]:
        """The dtype on the wire."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def nbytes(self) -> int:
        """Bytes of one sample's values."""
        return self.size * self.wire_dtype.itemsize


def parse_config(config: dict[str, object]) -> StreamConfig:
    """The `config` of an announcement; `PermanentError` with the first cause when it cannot be worked with."""
    try:
        parsed = StreamConfig.model_validate(config)
    except ValidationError as error:
        raise PermanentError(f"stream config: {first_cause(error)}") from error
    if parsed.dtype not in DTYPES:
        raise PermanentError(f"stream config: dtype {parsed.dtype[:20]!r} is not one of {', '.join(DTYPES)}")
    if any(size < 1 for size in parsed.shape) or parsed.size > MAX_VALUES:
        raise PermanentError(f"stream config: shape {in_short(list(parsed.shape))} has no or too many values")
    return parsed


def bad(record: Encoded, reason: str) -> PermanentError:
    """The error of one record, with its place."""
    return PermanentError(f"record {record.topic}:{record.partition}:{record.offset} {reason}")


def label_of(record: Encoded, value: int | str, config: StreamConfig) -> int:
    """A class number, from a number, its text, or its name; `PermanentError` when it is none of these."""
    if isinstance(value, str):
        if value in config.labels:
            return config.labels.index(value)
        if not (value.isascii() and value.isdigit() and len(value) < 10):
            raise bad(record, f"has label {value[:40]!r}, which is no class")
    return int(value)


def from_bytes(values: Sequence[bytes], config: StreamConfig) -> Array:
    """Samples (n, *shape) from the bytes of each, which have the right length."""
    return np.frombuffer(b"".join(values), config.wire_dtype).reshape(len(values), *config.shape)


def to_bytes(sample: Array, config: StreamConfig) -> bytes:
    """The inverse of `from_bytes` for one sample."""
    return np.ascontiguousarray(sample, config.wire_dtype).tobytes()
