"""Readings in Avro, with the user's own schema: decoded by fastavro, bounded by the size of the payload.

fastavro trusts its schema, so the schema is looked at first: what would let a few bytes stand for any amount of work
(lists of items that take no bytes) or of stack (a type within itself) is refused. Logical types are taken as the
numbers and texts that they are written as: a `timestamp-millis` is a number, `time_unit = "ms"` says of what.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import fastavro
from fastavro.schema import SchemaParseException, UnknownType, fingerprint, to_parsing_canonical_form

from sluice.wire.avro import DECODE_ERRORS, HEADER_SIZE, MARKER
from sluice.wire.errors import PermanentError, in_short

SCHEMA_BYTES = 1_000_000
"""Largest schema file that is read."""
_NO_BYTES = "null"
_SIZED = {"boolean", "int", "long", "float", "double", "bytes", "string", "enum"}


@dataclass(frozen=True, slots=True)
class ReadingSchema:
    """A schema, ready to read with, and the header of single-object records that were written with it."""

    parsed: Any
    header: bytes


@lru_cache(maxsize=64)
def schema_of(file: Path) -> ReadingSchema:
    """The schema in `file`; `PermanentError` says what is wrong with it."""
    try:
        with file.open("rb") as opened:
            text = opened.read(SCHEMA_BYTES + 1)
        if len(text) > SCHEMA_BYTES:
            raise PermanentError(f"schema {file} is over {SCHEMA_BYTES} bytes")
        definition = json.loads(text)
        mark = bytes.fromhex(fingerprint(to_parsing_canonical_form(definition), "CRC-64-AVRO"))
        parsed = fastavro.parse_schema(_plain(definition))
        _takes_bytes(parsed, {}, ())
    except OSError as error:
        raise PermanentError(f"schema {file}: {error.strerror or error}") from error
    except (SchemaParseException, UnknownType, *DECODE_ERRORS) as error:
        raise PermanentError(f"schema {file}: {type(error).__name__} {in_short(error)}") from error
    return ReadingSchema(parsed, MARKER + mark)


def _plain(schema: Any) -> Any:
    """The schema without logical types."""
    if isinstance(schema, dict):
        return {key: _plain(value) for key, value in schema.items() if key != "logicalType"}
    return [_plain(one) for one in schema] if isinstance(schema, list) else schema


def _takes_bytes(schema: Any, known: dict[str, bool], within: tuple[str, ...]) -> bool:
    """Whether a value takes a byte at least. `ValueError` for a type within itself and for lists of nothing."""
    if isinstance(schema, list):
        for one in schema:
            _takes_bytes(one, known, within)
        return True  # the index of the branch
    if isinstance(schema, str):
        if schema in _SIZED or schema == _NO_BYTES:
            return schema != _NO_BYTES
        if schema in within:
            raise ValueError(f"type {schema} stands within itself")
        return known[schema]
    kind = schema["type"]
    if kind in ("array", "map"):
        takes = _takes_bytes(schema["items" if kind == "array" else "values"], known, within)
        if kind == "array" and not takes:
            raise ValueError("an array has items that take no bytes")
        return True
    if kind not in ("record", "error", "fixed", "enum"):
        return _takes_bytes(kind, known, within)
    name = schema["name"]  # the full one, parse_schema sees to it
    if kind in ("record", "error"):
        fields = [_takes_bytes(field["type"], known, (*within, name)) for field in schema["fields"]]
        known[name] = any(fields)
    else:
        known[name] = kind == "enum" or schema["size"] > 0
    return known[name]


def decode_reading(payload: bytes, file: Path, *, header: bool) -> Any:
    """The record in `payload`, with (`header`) or without the header of single-object encoding.

    Raises `PermanentError` for what is not one whole record of the schema in `file`.
    """
    schema = schema_of(file)
    stream = io.BytesIO(payload)
    if header and stream.read(HEADER_SIZE) != schema.header:
        raise PermanentError(f"reading is no Avro record of schema {file.name}: begins with {payload[:10].hex()}")
    try:
        record = fastavro.schemaless_reader(stream, schema.parsed, None)
    except DECODE_ERRORS as error:
        raise PermanentError(f"reading is a broken Avro record: {type(error).__name__} {in_short(error)}") from error
    if stream.tell() != len(payload):
        raise PermanentError(f"reading has {len(payload) - stream.tell()} bytes after its Avro record")
    return record
