"""Format `avro`: a record's value is the bare Avro body of a record with a field of values and maybe one of the label.

The schema that it was written with stands in the announcement, so that any producer of Avro may send a stream. Only
schemas of plain fields are taken: with nested ones a few bytes could claim billions of items.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import Any

import fastavro
import numpy as np

from sluice.streams.samples import Array, Encoded, Labels, StreamConfig, bad, from_bytes, label_of, to_bytes
from sluice.wire.errors import PermanentError, in_short

VALUE_BYTES = 10
"""Bytes that one value may take: a long as a variable-length number."""
OVERHEAD = 1_000
"""Bytes that a record may take beside its values."""
_PLAIN = {"null", "boolean", "int", "long", "float", "double", "bytes", "string"}
_NUMBERS = {"int", "long", "float", "double"}
_DECODE_ERRORS = (EOFError, IndexError, KeyError, MemoryError, OverflowError, TypeError, ValueError, struct.error)


def decode(records: Sequence[Encoded], config: StreamConfig) -> tuple[Array, Labels | None]:
    """As `sluice.streams.formats.decode`, in the dtype of the wire."""
    schema, as_bytes, labelled = _schema(config)
    limit = config.size * VALUE_BYTES + OVERHEAD
    wanted = config.nbytes if as_bytes else config.size
    xs: list[Any] = []
    ys: list[int] = []
    for record in records:
        fields = _fields(record, schema, limit)
        values = fields[config.x]
        if len(values) != wanted:
            raise bad(record, f"has {len(values)} {'bytes' if as_bytes else 'values'}, not {wanted}")
        xs.append(values if as_bytes else _numbers(record, values, config))
        if labelled:
            ys.append(label_of(record, fields[config.y], config))
    x = from_bytes(xs, config) if as_bytes else np.stack(xs).reshape(len(xs), *config.shape)
    return x, np.array(ys, np.int64) if labelled else None


def encode(sample: Array, label: int | None, config: StreamConfig) -> tuple[bytes | None, bytes]:
    """(key, value) of one sample (*shape) and its label, in the schema that `config_of` announces."""
    record = {config.x: to_bytes(sample, config)} | ({} if label is None else {config.y: label})
    out = io.BytesIO()
    fastavro.schemaless_writer(out, config.avro_schema or {}, record)
    return None, out.getvalue()


def config_of(x: Array, labelled: bool, labels: Sequence[str]) -> dict[str, object]:
    """What to announce for samples like `x` (n, *shape): values as bytes, the label as a number."""
    fields = [{"name": "x", "type": "bytes"}, *([{"name": "y", "type": "long"}] if labelled else [])]
    return {
        "shape": list(x.shape[1:]),
        "dtype": x.dtype.name,
        "labels": list(labels),
        "schema": {"type": "record", "name": "Sample", "fields": fields},
        "x": "x",
        "y": "y",
    }


def _schema(config: StreamConfig) -> tuple[Any, bool, bool]:
    """(parsed schema, whether values are bytes, whether there is a label); `PermanentError` for what is not plain."""
    definition = config.avro_schema or {}
    fields = definition.get("fields")
    if definition.get("type") != "record" or not isinstance(fields, list):
        raise PermanentError("stream config: format avro needs the record 'schema' that was written with")
    try:
        kinds = {field["name"]: field["type"] for field in fields}
        parsed = fastavro.parse_schema(definition)
    except Exception as error:
        raise PermanentError(f"stream config: schema: {type(error).__name__} {in_short(error)}") from error
    for name, kind in kinds.items():
        if name == config.x:
            numbers = isinstance(kind, dict) and kind.get("type") == "array" and str(kind.get("items")) in _NUMBERS
            if kind != "bytes" and not numbers:
                raise PermanentError(f"stream config: field {name!r} is neither bytes nor an array of numbers")
        elif name == config.y:
            if kind not in ("int", "long", "string"):
                raise PermanentError(f"stream config: label field {name!r} is neither int, long nor string")
        elif not all(isinstance(part, str) and part in _PLAIN for part in (kind if isinstance(kind, list) else [kind])):
            raise PermanentError(f"stream config: field {name!r} has a type that is not plain")
    if config.x not in kinds:
        raise PermanentError(f"stream config: the schema has no field {config.x!r}")
    return parsed, kinds[config.x] == "bytes", config.y in kinds


def _fields(record: Encoded, schema: Any, limit: int) -> dict[str, Any]:
    body = record.value
    if len(body) > limit:
        raise bad(record, f"has {len(body)} bytes, {limit} at most are expected")
    stream = io.BytesIO(body)
    try:
        fields: Any = fastavro.schemaless_reader(stream, schema, None)
    except _DECODE_ERRORS as error:
        raise bad(record, f"is no whole Avro record: {type(error).__name__} {in_short(error)}") from error
    if stream.tell() != len(body):
        raise bad(record, f"has {len(body) - stream.tell()} bytes after its end")
    found: dict[str, Any] = fields
    return found


def _numbers(record: Encoded, values: list[float], config: StreamConfig) -> Array:
    """Values (size,) in the dtype of the wire; one that it cannot hold is an error, not another number."""
    dtype = np.dtype(config.dtype)
    found = np.array(values)
    with np.errstate(over="ignore", invalid="ignore"):  # NaN of the signalling kind
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            if found.min() < limits.min or found.max() > limits.max or (found != np.trunc(found)).any():
                raise bad(record, f"has a value that is no {config.dtype}")
        return found.astype(dtype)
