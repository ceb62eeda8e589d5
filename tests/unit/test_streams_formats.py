"""Formats: what was encoded comes back; a record that is not exactly what the config says is named and refused."""

import io
from dataclasses import dataclass
from typing import Any

import fastavro
import numpy as np
import pytest

from sluice.streams.formats import FORMATS, decode, format_named
from sluice.streams.samples import parse_config
from sluice.wire.errors import PermanentError

LABELS = ["cat", "dog", "owl"]


@dataclass
class Given:
    value: bytes
    key: bytes | None = None
    topic: str = "t"
    partition: int = 0
    offset: int = 0


def encoded(name: str, x: Any, y: Any, labels: list[str]) -> tuple[list[Given], dict[str, object]]:
    kind = format_named(name)
    config = kind.config_of(x, y is not None, labels)
    parsed = parse_config(config)
    pairs = [kind.encode(x[i], None if y is None else int(y[i]), parsed) for i in range(len(x))]
    return [Given(value, key, offset=i) for i, (key, value) in enumerate(pairs)], config


def avro(schema: dict[str, Any], *records: dict[str, Any]) -> list[Given]:
    values = []
    for offset, record in enumerate(records):
        out = io.BytesIO()
        fastavro.schemaless_writer(out, schema, record)
        values.append(Given(out.getvalue(), offset=offset))
    return values


def schema_of(x: Any, y: Any = "long", *more: dict[str, Any]) -> dict[str, Any]:
    fields = [{"name": "x", "type": x}, {"name": "y", "type": y}, *more]
    return {"type": "record", "name": "Reading", "fields": fields}


NUMBERS = {"type": "array", "items": "double"}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "int16", "float64"])
@pytest.mark.parametrize("labelled", [True, False])
def test_what_was_sent_is_read(name: str, dtype: str, labelled: bool) -> None:
    x = np.arange(2 * 3 * 4).reshape(4, 2, 3).astype(dtype)
    y = np.array([0, 2, 1, 1]) if labelled else None
    records, config = encoded(name, x, y, LABELS)
    read_x, read_y = decode(name, records, parse_config(config))
    assert read_x.dtype == (np.uint8 if dtype == "uint8" else np.float32)
    np.testing.assert_array_equal(read_x, x)
    if y is None:
        assert read_y is None
    else:
        assert read_y is not None and read_y.dtype == np.int64
        np.testing.assert_array_equal(read_y, y)


def test_avro_of_another_producer() -> None:
    more = [{"name": "site", "type": ["null", "string"]}]
    schema = schema_of(NUMBERS, "string", *more)
    records = avro(schema, {"x": [1.5, 2], "y": "owl", "site": None}, {"x": [3, 4], "y": "cat", "site": "roof"})
    x, y = decode("avro", records, parse_config({"shape": [2], "labels": LABELS, "schema": schema}))
    np.testing.assert_array_equal(x, np.array([[1.5, 2], [3, 4]], np.float32))
    assert y is not None and y.tolist() == [2, 0]


def refused(name: str, records: list[Given], config: dict[str, object]) -> str:
    with pytest.raises(PermanentError) as caught:
        decode(name, records, parse_config(config))
    return str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda v: v[:-1], "no whole Avro record"),
        (lambda v: v + b"\0", "1 bytes after its end"),
        (lambda _: b"", "no whole Avro record"),
        (lambda v: v * 1000, "at most are expected"),
        (lambda _: b"\xff" * 12, "no whole Avro record"),
    ],
)
def test_broken_avro_records_are_named(spoil: Any, reason: str) -> None:
    records, config = encoded("avro", np.zeros((3, 4), np.uint8), np.zeros(3, np.int64), LABELS)
    records[1].value = spoil(records[1].value)
    message = refused("avro", records, config)
    assert message.startswith("record t:0:1 ") and reason in message


def test_wrong_sizes_and_values_are_named() -> None:
    schema = schema_of(NUMBERS)
    config: dict[str, object] = {"shape": [2], "schema": schema}
    good = {"x": [1, 2], "y": 0}
    assert "record t:0:1 has 3 values, not 2" in refused("avro", avro(schema, good, {"x": [1, 2, 3], "y": 0}), config)
    nan = avro(schema, good, {"x": [1, float("nan")], "y": 0})
    assert "record t:0:1 has a value that is not a finite" in refused("avro", nan, config)
    huge = avro(schema, good, {"x": [1, 1e300], "y": 0})
    assert "record t:0:1 has a value that is not a finite" in refused("avro", huge, config)
    for value in (256.0, -1.0, 1.5, float("nan")):
        wrong = avro(schema, good, {"x": [1, value], "y": 0})
        assert "no uint8" in refused("avro", wrong, config | {"dtype": "uint8"})
    below = avro(schema, good, {"x": [1, 2], "y": -1})
    assert "record t:0:1 has label -1" in refused("avro", below, config)
    above = avro(schema, good, {"x": [1, 2], "y": 3})
    assert "record t:0:1 has label 3" in refused("avro", above, config | {"labels": LABELS})


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (None, "needs the record 'schema'"),
        ({"type": "string"}, "needs the record 'schema'"),
        ({"type": "record", "name": "R", "fields": [{"name": "y", "type": "long"}]}, "no field 'x'"),
        (schema_of("string"), "neither bytes nor an array of numbers"),
        (schema_of({"type": "array", "items": "null"}), "neither bytes nor an array of numbers"),
        (schema_of({"type": "array", "items": ["int", "null"]}), "neither bytes nor an array of numbers"),
        (schema_of("bytes", "float"), "label field 'y'"),
        (schema_of("bytes", "long", {"name": "z", "type": {"type": "array", "items": "null"}}), "not plain"),
        ({"type": "record", "name": "R", "fields": [{"name": "x"}]}, "schema: KeyError"),
    ],
)
def test_schemas_that_cannot_be_trusted(schema: Any, reason: str) -> None:
    assert reason in refused("avro", [Given(b"\0")], {"shape": [2], "schema": schema})


def test_broken_raw_records_are_named() -> None:
    x, y = np.zeros((3, 4), np.uint8), np.zeros(3, np.int64)
    records, config = encoded("raw", x, y, LABELS)
    records[2].value = b"123"
    assert "record t:0:2 has 3 bytes, not 4" in refused("raw", records, config)
    records, _ = encoded("raw", x, y, LABELS)
    records[1].key = None
    assert "record t:0:1 has no label" in refused("raw", records, config)
    records[1].key = b"mouse"
    assert "record t:0:1 has label 'mouse'" in refused("raw", records, config)
    records[1].key = b"\xff"
    assert "record t:0:1 has a key that is no text" in refused("raw", records, config)
    records[1].key = b"dog"
    _, labels = decode("raw", records, parse_config(config))
    assert labels is not None and labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"shape": [0]},
        {"shape": [100_000, 100_000]},
        {"shape": [2], "dtype": "object"},
        {"shape": "large"},
    ],
)
def test_configs_that_make_no_sense(config: dict[str, object]) -> None:
    with pytest.raises(PermanentError, match="stream config"):
        parse_config(config)


def test_unknown_format() -> None:
    with pytest.raises(PermanentError, match="known: avro, raw"):
        format_named("parquet")
