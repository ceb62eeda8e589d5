"""Avro single-object encoding: 2-byte marker, 8-byte schema fingerprint (CRC-64-AVRO), body.

Every schema version that ever travelled stands as a file under `schemas/` (`<message>.v<number>.avsc`); a record is
read with the schema it was written with and resolved to the newest one, so that old and new agents live side by
side. The specification: Apache Avro 1.11, "Single-object encoding".
"""

from __future__ import annotations

import io
import json
import struct
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form

from sluice.wire.errors import PermanentError, UnknownSchemaError, in_short

MARKER = b"\xc3\x01"
HEADER_SIZE = 10
DECODE_ERRORS = (
    EOFError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    RecursionError,
    TypeError,
    UnicodeDecodeError,
    ValueError,
    struct.error,
)
"""What fastavro raises for bytes that are no record of their schema."""


@dataclass(frozen=True, slots=True)
class Schema:
    """One version of one message: its parsed schema and the header that its records begin with."""

    message: str
    version: int
    parsed: Any
    header: bytes


@cache
def _known() -> dict[bytes, Schema]:
    schemas = {}
    for file in resources.files("sluice.wire").joinpath("schemas").iterdir():
        message, version, extension = file.name.split(".")
        if extension != "avsc":
            continue
        definition = json.loads(file.read_text())
        mark = bytes.fromhex(fingerprint(to_parsing_canonical_form(definition), "CRC-64-AVRO"))
        parsed = fastavro.parse_schema(definition)
        schemas[mark] = Schema(message, int(version.removeprefix("v")), parsed, MARKER + mark)
    return schemas


@cache
def newest(message: str) -> Schema:
    """The newest known schema of `message` (the file name before the first dot)."""
    return max((s for s in _known().values() if s.message == message), key=lambda s: s.version)


def encode(message: str, record: dict[str, Any]) -> bytes:
    """`record` in the newest schema of `message`, with its header."""
    schema = newest(message)
    out = io.BytesIO()
    out.write(schema.header)
    fastavro.schemaless_writer(out, schema.parsed, record)
    return out.getvalue()


def decode_all(payload: bytes, limit: int) -> list[tuple[str, dict[str, Any]]]:
    """The (message, record) pairs of a payload; errors as in `decode_parts`."""
    return [(message, record) for message, record, _ in decode_parts(payload, limit)]


def decode_parts(payload: bytes, limit: int) -> list[tuple[str, dict[str, Any], bytes]]:
    """(message, record, its bytes) of each record of a payload that holds one or more of them back to back.

    `limit` bounds the payload in bytes and is checked before anything is decoded. Raises `PermanentError` for what
    is not a sequence of whole records, `UnknownSchemaError` for a fingerprint that this version does not know.
    """
    if len(payload) > limit:
        raise PermanentError(f"message of {len(payload)} bytes is over the limit of {limit}")
    if not payload:
        raise PermanentError("empty message")
    stream = io.BytesIO(payload)
    records = []
    begin = 0
    while begin < len(payload):
        header = stream.read(HEADER_SIZE)
        if header[:2] != MARKER or len(header) < HEADER_SIZE:
            raise PermanentError(f"not an Avro single-object record: begins with {header.hex()}")
        schema = _known().get(header[2:])
        if schema is None:
            raise UnknownSchemaError(f"schema fingerprint {header[2:].hex()} is not known to this version")
        try:
            record = fastavro.schemaless_reader(stream, schema.parsed, newest(schema.message).parsed)
        except DECODE_ERRORS as error:
            raise PermanentError(f"broken {schema.message} record: {type(error).__name__} {in_short(error)}") from error
        if not isinstance(record, dict):
            raise PermanentError(f"{schema.message} record is not a record")
        end = stream.tell()
        records.append((schema.message, record, payload[begin:end]))
        begin = end
    return records
