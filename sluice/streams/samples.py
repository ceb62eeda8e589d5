"""What the formats share: what an announcement says of its samples, and what is wrong with a record.

`avro`, `csv`, `json` and `raw` are the formats, `formats` is their table. A sample is one tensor: values in a shape,
or, of tabular data, one number a feature, where a category stands as its number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sluice.doors.kafka import Block
from sluice.wire.errors import PermanentError, in_short
from sluice.wire.manifest import first_cause

Array = NDArray[Any]
Labels = NDArray[np.int64]

DTYPES = ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
NONE = -1
"""The class number of a record that has no label."""
MAX_VALUES = 10_000_000
"""Values in one record, at most."""
_WHOLE = re.compile(r"(\d{1,9})(?:\.0*)?", re.ASCII)
"""A class number as text; `1.0` is how tables that were read as floats write it."""


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


def values_of(records: Sequence[Encoded]) -> list[bytes]:
    """The value of each."""
    return records.values if isinstance(records, Block) else [record.value for record in records]


def keys_of(records: Sequence[Encoded]) -> list[bytes | None]:
    """The key of each."""
    return records.keys if isinstance(records, Block) else [record.key for record in records]


class Feature(BaseModel):
    """One column of tabular data."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str = Field(min_length=1, max_length=200)
    """csv: the column; avro: the field; json: the path, names and numbers with dots between them."""
    categories: tuple[str, ...] = Field(default=(), max_length=100_000)
    """The texts that it may hold; in a sample each is its number in this order. Empty: it holds numbers."""


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
    label_schema: dict[str, Any] | str | None = None
    """avro: the schema of the record's key, if that holds the label: a plain type, or a record with field `y`."""
    features: tuple[Feature, ...] = Field(default=(), max_length=100_000)
    """Where a sample's values stand one by one; empty: all together at `x` (csv: all columns but the label's)."""
    columns: tuple[str, ...] = Field(default=(), max_length=100_000)
    """csv: the columns in their order; empty: the features, or as many as the shape has values, and no other."""
    delimiter: str = Field(default=",", min_length=1, max_length=1)
    """csv: what stands between columns."""
    x: str = "x"
    """avro, json: the field or path of all values: an array of numbers, or (avro) bytes."""
    y: str = "y"
    """avro, csv, json: field, column or path of the label; where there is none, the record's key is it."""
    label_dtype: str = ""
    """Where the key is the label: the dtype of the number that its bytes are, little-endian; empty: it is text."""

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
    for dtype in (parsed.dtype, parsed.label_dtype or parsed.dtype):
        if dtype not in DTYPES:
            raise PermanentError(f"stream config: dtype {dtype[:20]!r} is not one of {', '.join(DTYPES)}")
    if not parsed.features:
        parsed = parsed.model_copy(update={"features": _fields_of_a_schema(parsed)})
    if parsed.features and parsed.shape != (len(parsed.features),):
        raise PermanentError(f"stream config: {len(parsed.features)} features do not make shape {list(parsed.shape)}")
    if any(size < 1 for size in parsed.shape) or parsed.size > MAX_VALUES:
        raise PermanentError(f"stream config: shape {in_short(list(parsed.shape))} has no or too many values")
    return parsed


def _fields_of_a_schema(config: StreamConfig) -> tuple[Feature, ...]:
    """The features of an Avro stream that names none and whose schema has no field of all values: all but the label."""
    fields = (config.avro_schema or {}).get("fields")
    names = [field.get("name") for field in fields if isinstance(field, dict)] if isinstance(fields, list) else []
    rest = [name for name in names if isinstance(name, str) and name != config.y and 0 < len(name) <= 200]
    if config.x in names or config.shape != (len(rest),):
        return ()
    return tuple(Feature(name=name) for name in rest)


class BadRecord(PermanentError):
    """One record that is not what the config says. The text begins with its place."""

    def __init__(self, record: Encoded, reason: str) -> None:
        super().__init__(f"record {record.topic}:{record.partition}:{record.offset} {reason}")
        self.record = record
        self.reason = reason


def bad(record: Encoded, reason: str) -> BadRecord:
    """The error of one record, with its place."""
    return BadRecord(record, reason)


def label_of(record: Encoded, value: object, config: StreamConfig) -> int:
    """A class number, from a whole number (1, 1.0, true), its text, or its name; `NONE` for None and empty text.

    Raises `BadRecord` when it is none of these.
    """
    if value is None or value == "":
        return NONE
    if isinstance(value, str):
        if value in config.labels:
            return config.labels.index(value)
        if whole := _WHOLE.fullmatch(value):
            return int(whole[1])
    elif isinstance(value, int | float) and 0 <= value < 2**63 and value == int(value):
        return int(value)
    said = repr(value[:40]) if isinstance(value, str) else str(value)[:40]
    raise bad(record, f"has label {said}, which is no class")


def label_of_key(record: Encoded, config: StreamConfig) -> int:
    """The class number that the record's key tells; `NONE` without a key."""
    if config.label_dtype and record.key:
        dtype = np.dtype(config.label_dtype).newbyteorder("<")
        if len(record.key) != dtype.itemsize:
            raise bad(record, f"has a key of {len(record.key)} bytes, which is no {config.label_dtype}")
        return label_of(record, np.frombuffer(record.key, dtype)[0].item(), config)
    try:
        text = (record.key or b"").decode()
    except UnicodeDecodeError as error:
        raise bad(record, "has a key that is no text") from error
    return label_of(record, text, config)


def labels_of_keys(
    records: Sequence[Encoded], config: StreamConfig, of: Callable[[Encoded, StreamConfig], int] = label_of_key
) -> Labels:
    """The class numbers (n,) that the keys tell: few keys are many records', and each is looked at once."""
    keys = keys_of(records)
    known: dict[bytes | None, int] = {}
    at = 0
    for key in dict.fromkeys(keys):
        at = keys.index(key, at)
        known[key] = of(records[at], config)
    return np.fromiter(map(known.__getitem__, keys), np.int64, len(keys))


def check_sizes(records: Sequence[Encoded], values: Sequence[bytes], most: int) -> None:
    """Raise `BadRecord` for the first of the values that takes more than `most` bytes."""
    if values and max(map(len, values)) > most:
        at = next(i for i, value in enumerate(values) if len(value) > most)
        raise bad(records[at], f"has {len(values[at])} bytes, {most} at most are expected")


def number_of(record: Encoded, value: object, feature: Feature, known: Mapping[str, int]) -> float:
    """The number that a feature's value is in a sample; `known` are the numbers of its categories."""
    if feature.categories:
        found = known.get(str(value))
        if found is None:
            raise bad(record, f"has {feature.name} {str(value)[:40]!r}, which is none of its categories")
        return found
    said = f"has {feature.name} {str(value)[:40]!r}, which is no number"
    if not isinstance(value, str | bytes | int | float):
        raise bad(record, said)
    try:
        return float(value)
    except (ValueError, OverflowError) as error:
        raise bad(record, said) from error


def category_numbers(features: Sequence[Feature]) -> list[dict[str, int]]:
    """Of each feature the numbers of its categories, by their texts."""
    return [{text: i for i, text in enumerate(feature.categories)} for feature in features]


def in_wire_dtype(records: Sequence[Encoded], values: NDArray[Any], config: StreamConfig) -> Array:
    """`values` (n, …) in the dtype of the wire; one that it cannot hold is an error, not another number."""
    dtype = np.dtype(config.dtype)
    if dtype.kind in "iu" and values.dtype != dtype:
        limits = np.iinfo(dtype)
        with np.errstate(invalid="ignore"):
            whole = (values >= limits.min) & (values <= limits.max) & (values == np.trunc(values))
        fit = whole.reshape(len(values), -1).all(axis=1)
        if not fit.all():
            raise bad(records[int(np.argmin(fit))], f"has a value that is no {config.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold is looked for later, by all formats
        return values.astype(dtype, copy=False)


def from_bytes(values: Sequence[bytes], config: StreamConfig) -> Array:
    """Samples (n, *shape) from the bytes of each, which have the right length."""
    return np.frombuffer(b"".join(values), config.wire_dtype).reshape(len(values), *config.shape)


def to_bytes(sample: Array, config: StreamConfig) -> bytes:
    """The inverse of `from_bytes` for one sample."""
    return np.ascontiguousarray(sample, config.wire_dtype).tobytes()
