"""Format `avro`: a record's value is the bare Avro body of a record with the values and maybe the label.

The schema that it was written with stands in the announcement, so that any producer of Avro may send a stream. The
values are one field (bytes, or an array of numbers), or one field a feature; the label is a field, or the record's key
in a schema of its own. Only schemas of plain fields are taken: with nested ones a few bytes could claim billions of
items.

A batch is decoded column by column where its records are laid out alike (`avro_columns.py`); the others go through
fastavro one by one.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fastavro
import numpy as np

from sluice.streams import avro_columns
from sluice.streams.samples import (
    NONE,
    Array,
    Encoded,
    Feature,
    Labels,
    StreamConfig,
    bad,
    category_numbers,
    check_sizes,
    from_bytes,
    in_wire_dtype,
    label_of,
    labels_of_keys,
    number_of,
    to_bytes,
    values_of,
)
from sluice.wire.errors import PermanentError, in_short

VALUE_BYTES = 10
"""Bytes that one value may take: a long as a variable-length number."""
OVERHEAD = 1_000
"""Bytes that a record may take beside its values."""
NAME = 80
"""Characters of a name that an error says."""
TEXT_BYTES = 200
"""Bytes that the text of a category may take on the average."""
_PLAIN = {"null", "boolean", "int", "long", "float", "double", "bytes", "string"}
_NUMBERS = {"int", "long", "float", "double"}
_LABELS = {"null", "boolean", "int", "long", "string"}
_DECODE_ERRORS = (EOFError, IndexError, KeyError, MemoryError, OverflowError, TypeError, ValueError, struct.error)


@dataclass(frozen=True, slots=True)
class Schema:
    """A schema that was looked at: `kinds` are the types of its fields by name; None: it is a plain type itself."""

    parsed: Any
    kinds: dict[str, Any] | None


def decode(records: Sequence[Encoded], config: StreamConfig) -> tuple[Array, Labels]:
    """As `sluice.streams.formats.decode`, in the dtype of the wire."""
    schema = _value_schema(config)
    assert schema.kinds is not None
    values = values_of(records)
    check_sizes(records, values, config.size * (TEXT_BYTES if config.features else VALUE_BYTES) + OVERHEAD)
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    known = np.unique(lengths)
    if len(known) == 1:
        x, y = _in_columns(values, schema, config) or _one_by_one(records, schema, config)
    else:
        x = np.empty((len(values), config.size), _dtype(schema, config))
        y = np.full(len(values), NONE, np.int64)
        for length in known:
            rows = np.flatnonzero(lengths == length).tolist()
            found = _in_columns([values[i] for i in rows], schema, config)
            x[rows], y[rows] = found or _one_by_one([records[i] for i in rows], schema, config)
    if config.y not in schema.kinds:
        y = _labels_of_keys(records, config)
    return in_wire_dtype(records, x, config).reshape(len(records), *config.shape), y


def encode(sample: Array, label: int | None, config: StreamConfig) -> tuple[bytes | None, bytes]:
    """(key, value) of one sample (*shape) and its label, in the schema that `own` announces."""
    values: dict[str, object] = {config.x: to_bytes(sample, config)}
    if config.features:
        values = {
            feature.name: feature.categories[int(value)] if feature.categories else value
            for feature, value in zip(config.features, sample.tolist(), strict=True)
        }
    values[config.y] = label
    out = io.BytesIO()
    fastavro.schemaless_writer(out, _value_schema(config).parsed, values)
    return None, out.getvalue()


def own(dtype: np.dtype[Any], labelled: bool, features: Sequence[Feature]) -> dict[str, object]:
    """What is announced for this format alone: the schema, with values as bytes or by feature, the label a number."""
    kind = "long" if dtype.kind in "iu" else "float" if dtype.itemsize <= 4 else "double"
    fields: list[dict[str, Any]] = [
        {"name": feature.name, "type": "string" if feature.categories else kind} for feature in features
    ]
    fields = fields or [{"name": "x", "type": "bytes"}]
    if labelled:
        fields.append({"name": "y", "type": ["null", "long"]})
    return {"schema": {"type": "record", "name": "Sample", "fields": fields}}


def _value_schema(config: StreamConfig) -> Schema:
    """The schema of the value; `PermanentError` for what is not plain, or does not hold what the config says."""
    definition = config.avro_schema or {}
    if definition.get("type") != "record" or not isinstance(definition.get("fields"), list):
        raise PermanentError("stream config: format avro needs the record 'schema' that was written with")
    schema = _parsed(repr(definition), definition)
    kinds = schema.kinds or {}
    whole = not config.features
    values = [feature.name for feature in config.features] or [config.x]
    for name, kind in kinds.items():
        if name == config.y:
            _check_label(name, kind)
        elif name == config.x and whole:
            numbers = isinstance(kind, dict) and kind.get("type") == "array" and str(kind.get("items")) in _NUMBERS
            if kind != "bytes" and not numbers:
                raise PermanentError(
                    f"stream config: field {in_short(name, NAME)!r} is neither bytes nor an array of numbers"
                )
        elif not all(isinstance(part, str) and part in _PLAIN for part in _parts(kind)):
            raise PermanentError(f"stream config: field {in_short(name, NAME)!r} has a type that is not plain")
    missing = next((name for name in values if name not in kinds), None)
    if missing is not None:
        raise PermanentError(f"stream config: the schema has no field {in_short(missing, NAME)!r}")
    return schema


def _key_schema(config: StreamConfig) -> Schema:
    definition = config.label_schema
    schema = _parsed(repr(definition), definition)
    if schema.kinds is None:
        _check_label("label_schema", definition["type"] if isinstance(definition, dict) else definition)
    else:
        for name, kind in schema.kinds.items():
            _check_label(name, kind)
        if config.y not in schema.kinds:
            raise PermanentError(f"stream config: label_schema has no field {in_short(config.y, NAME)!r}")
    return schema


def _check_label(name: str, kind: object) -> None:
    if not all(isinstance(part, str) and part in _LABELS for part in _parts(kind)):
        raise PermanentError(
            f"stream config: label field {in_short(name, NAME)!r} is neither boolean, int, long nor string"
        )


def _parts(kind: object) -> list[object]:
    return kind if isinstance(kind, list) else [kind]


_known: dict[str, Schema] = {}


def _parsed(key: str, definition: Any) -> Schema:
    """Schemas are looked at once; the few that a process reads are kept."""
    found = _known.get(key)
    if found is None:
        try:
            fields = definition.get("fields") if isinstance(definition, dict) else None
            kinds = {field["name"]: field["type"] for field in fields} if fields is not None else None
            found = Schema(fastavro.parse_schema(definition), kinds)
        except Exception as error:
            raise PermanentError(f"stream config: schema: {type(error).__name__} {in_short(error)}") from error
        if len(_known) > 100:
            _known.clear()
        _known[key] = found
    return found


def _dtype(schema: Schema, config: StreamConfig) -> np.dtype[Any]:
    """What holds all values before they are looked at: the wire's own if they come as bytes."""
    assert schema.kinds is not None
    return config.wire_dtype if not config.features and schema.kinds[config.x] == "bytes" else np.dtype(np.float64)


def _in_columns(values: Sequence[bytes], schema: Schema, config: StreamConfig) -> tuple[Array, Labels] | None:
    """(x (n, size), y (n,)) of bodies of equal length; None where they are not laid out alike."""
    assert schema.kinds is not None
    if any(feature.categories for feature in config.features):
        return None
    columns = avro_columns.columns(schema.kinds, values)
    if columns is None:
        return None
    y = columns.get(config.y)
    if y is not None and (y.dtype.kind != "i" or (y < 0).any()):
        return None
    if config.features:
        x = np.stack([columns[feature.name] for feature in config.features], axis=1)
    elif schema.kinds[config.x] == "bytes":
        found = columns[config.x]
        if found.shape[1] != config.nbytes:
            return None
        x = np.ascontiguousarray(found).view(config.wire_dtype)
    else:
        x = columns[config.x]
    if x.ndim != 2 or x.shape[1] != config.size:
        return None
    return x, np.full(len(values), NONE, np.int64) if y is None else y.astype(np.int64)


def _one_by_one(records: Sequence[Encoded], schema: Schema, config: StreamConfig) -> tuple[Array, Labels]:
    known = category_numbers(config.features)
    as_bytes = _dtype(schema, config) == config.wire_dtype and not config.features
    wanted = config.nbytes if as_bytes else config.size
    xs: list[Any] = []
    ys: list[int] = []
    for record in records:
        fields = _fields(record, record.value, schema.parsed)
        ys.append(label_of(record, fields.get(config.y), config))
        if config.features:
            values = zip((fields[feature.name] for feature in config.features), config.features, known, strict=True)
            xs.append([number_of(record, *of) for of in values])
            continue
        found = fields[config.x]
        if len(found) != wanted:
            raise bad(record, f"has {len(found)} {'bytes' if as_bytes else 'values'}, not {wanted}")
        xs.append(found)
    x = from_bytes(xs, config) if as_bytes else np.array(xs, np.float64)
    return x.reshape(len(records), config.size), np.array(ys, np.int64)


def _labels_of_keys(records: Sequence[Encoded], config: StreamConfig) -> Labels:
    """Of each record the label that its key holds; `NONE` without a key."""
    if config.label_schema is None:
        return labels_of_keys(records, config)
    schema = _key_schema(config)

    def in_schema(record: Encoded, config: StreamConfig) -> int:
        if record.key is None:
            return NONE
        label = _fields(record, record.key, schema.parsed)
        return label_of(record, label if schema.kinds is None else label[config.y], config)

    return labels_of_keys(records, config, in_schema)


def _fields(record: Encoded, body: bytes, schema: Any) -> Any:
    stream = io.BytesIO(body)
    try:
        fields = fastavro.schemaless_reader(stream, schema, None)
    except _DECODE_ERRORS as error:
        raise bad(record, f"is no whole Avro record: {type(error).__name__} {in_short(error)}") from error
    if stream.tell() != len(body):
        raise bad(record, f"has {len(body) - stream.tell()} bytes after its end")
    return fields
