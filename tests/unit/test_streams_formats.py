"""Formats: what was encoded comes back; a record that is not exactly what the config says is named and refused."""

import io
from dataclasses import dataclass
from typing import Any

import fastavro
import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from sluice.streams.avro_columns import columns
from sluice.streams.formats import FORMATS, decode, format_named
from sluice.streams.samples import NONE, BadRecord, parse_config
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
    config = kind.config_of(x, y is not None, labels, ())
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
    assert read_y.dtype == np.int64
    np.testing.assert_array_equal(read_y, [NONE] * 4 if y is None else y)


def test_avro_of_another_producer() -> None:
    more = [{"name": "site", "type": ["null", "string"]}]
    schema = schema_of(NUMBERS, "string", *more)
    records = avro(schema, {"x": [1.5, 2], "y": "owl", "site": None}, {"x": [3, 4], "y": "cat", "site": "roof"})
    x, y = decode("avro", records, parse_config({"shape": [2], "labels": LABELS, "schema": schema}))
    np.testing.assert_array_equal(x, np.array([[1.5, 2], [3, 4]], np.float32))
    assert y.tolist() == [2, 0]


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
    records[1].key = b"mouse"
    assert "record t:0:1 has label 'mouse'" in refused("raw", records, config)
    records[1].key = b"\xff"
    assert "record t:0:1 has a key that is no text" in refused("raw", records, config)
    records[1].key = b"dog"
    _, labels = decode("raw", records, parse_config(config))
    assert labels.tolist() == [0, 1, 0]
    records[1].key = None
    assert decode("raw", records, parse_config(config))[1].tolist() == [0, NONE, 0]


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
    with pytest.raises(PermanentError, match="known: avro, csv, json, raw"):
        format_named("parquet")


FEATURES = [{"name": "kind", "categories": ["a", "b, c"]}, {"name": "size"}]


def table(name: str, x: Any, y: Any) -> tuple[list[Given], dict[str, object]]:
    kind = format_named(name)
    features = parse_config({"shape": [2], "features": FEATURES}).features
    config = kind.config_of(x, True, LABELS, features)
    parsed = parse_config(config)
    pairs = [kind.encode(x[i], int(y[i]), parsed) for i in range(len(x))]
    return [Given(value, key, offset=i) for i, (key, value) in enumerate(pairs)], config


@pytest.mark.parametrize("name", FORMATS)
def test_tables_with_categories_come_back(name: str) -> None:
    x = np.array([[0, 1.5], [1, -2.25], [1, 3e-7]], np.float32)
    records, config = table(name, x, [2, 0, 1])
    found, y = decode(name, records, parse_config(config))
    np.testing.assert_array_equal(found, x)
    assert y.tolist() == [2, 0, 1]


def test_rows_as_in_the_tutorial_of_tensorflow() -> None:
    """Numbers in the value, the label as the key: no names are needed."""
    rows = [Given(b"1.5,2e0,-3", b"1"), Given(b" 4, 5, 6 ", b"0"), Given(b'"7",8,9', None)]
    x, y = decode("csv", rows, parse_config({"shape": [3]}))
    assert x.tolist() == [[1.5, 2, -3], [4, 5, 6], [7, 8, 9]] and y.tolist() == [1, 0, NONE]


def test_rows_with_a_label_column_of_texts() -> None:
    config: dict[str, object] = {"shape": [2], "labels": LABELS, "columns": ["id", "w", "y", "h"], "delimiter": ";"}
    config["features"] = [{"name": "h"}, {"name": "w"}]
    x, y = decode("csv", [Given(b"7;1;owl;2"), Given(b"8;3;;4"), Given(b"9;5;1;6")], parse_config(config))
    assert x.tolist() == [[2, 1], [4, 3], [6, 5]] and y.tolist() == [2, NONE, 1]
    numbers = config | {"columns": ["w", "y", "h"]}
    x, y = decode("csv", [Given(b"1;2;0"), Given(b"3;1;0")], parse_config(numbers))
    assert x.tolist() == [[0, 1], [0, 3]] and y.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"1,2", "has 2 columns, not 3"),
        (b"1,2,3,4", "has 4 columns, not 3"),
        (b"", "has 0 columns, not 3"),
        (b"1,2,x", "has x2 'x', which is no number"),
        (b"1,,3", "has x1 '', which is no number"),
        (b"1,nan,3", "has a value that is not a finite float32"),
        (b"1,1e99,3", "has a value that is not a finite float32"),
        (b"1,2,3\n4,5,6", "no row of text"),
        (b'1,"2,3', "no row of text"),
        (b"1,2,\xff", "no row of text"),
        (b"1" * 2000, "at most are expected"),
    ],
)
def test_broken_rows_are_named(row: bytes, reason: str) -> None:
    good = Given(b"1,2,3")
    message = refused("csv", [good, Given(row, offset=1), good], {"shape": [3]})
    assert message.startswith("record t:0:1 ") and reason in message


def test_paths_in_json() -> None:
    config: dict[str, object] = {"shape": [2], "y": "meta.class", "labels": LABELS}
    config["features"] = [{"name": "a.0.v"}, {"name": "b", "categories": ["on", "off"]}]
    rows = [
        Given(b'{"a": [{"v": 1.5}], "b": "off", "meta": {"class": "owl"}}'),
        Given(b'{"a": [{"v": 2}, 0], "b": "on", "meta": {"class": null}}'),
        Given(b'{"a": [{"v": 3}], "b": "on"}', b"dog"),
    ]
    x, y = decode("json", rows, parse_config(config))
    assert x.tolist() == [[1.5, 1], [2, 0], [3, 0]] and y.tolist() == [2, NONE, 1]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b'{"x": [1, 2]', "is no JSON"),
        (b"\xff", "is no JSON"),
        (b"[" * 5000, "is no JSON"),
        (b"[1, 2]", "has nothing at 'x'"),
        (b'{"x": [1, 2, 3]}', "shape [3], not [2]"),
        (b'{"x": [1, [2]]}', "no array at 'x'"),
        (b'{"x": [true, false]}', "other things than numbers"),
        (b'{"x": ["1", "2"]}', "other things than numbers"),
        (b'{"x": [1, 1' + b"0" * 400 + b"]}", "other things than numbers"),
        (b'{"x": [1, NaN]}', "not a finite float32"),
        (b'{"x": [1, 2], "y": -1}', "has label -1"),
        (b'{"x": [1, 2], "y": 1.5}', "has label 1.5"),
    ],
)
def test_broken_json_is_named(value: bytes, reason: str) -> None:
    good = Given(b'{"x": [1, 2], "y": 1}')
    message = refused("json", [good, Given(value, offset=1), good], {"shape": [2]})
    assert message.startswith("record t:0:1 ") and reason in message


def test_class_numbers_as_others_write_them() -> None:
    """`1.0` of a table that was read as floats (TensorFlow's tutorial), true and false, a byte (Kafka-ML)."""
    rows = [Given(b"1.5,2", b"1.0"), Given(b"3,4", b"0."), Given(b"5,6", b"2.000")]
    assert decode("csv", rows, parse_config({"shape": [2]}))[1].tolist() == [1, 0, 2]
    assert "label '1.5'" in refused("csv", [Given(b"1,2", b"1.5")], {"shape": [2]})
    rows = [Given(b'{"x": [1, 2], "y": true}'), Given(b'{"x": [1, 2], "y": 2.0}')]
    assert decode("json", rows, parse_config({"shape": [2]}))[1].tolist() == [1, 2]
    config: dict[str, object] = {"shape": [2, 2], "dtype": "uint8", "label_dtype": "uint8"}
    images = [Given(bytes(4), b"\x07"), Given(bytes([1, 2, 3, 4]), b"\0"), Given(bytes(4))]
    x, y = decode("raw", images, parse_config(config))
    assert x[1].tolist() == [[1, 2], [3, 4]] and y.tolist() == [7, 0, NONE]
    assert "record t:0:3 has a key of 2 bytes" in refused("raw", [*images, Given(bytes(4), b"10", offset=3)], config)
    wide: dict[str, object] = {"shape": [1], "dtype": "uint8", "label_dtype": "float32"}
    keys = [np.float32(value).tobytes() for value in (3, 0.5, np.nan)]
    assert decode("raw", [Given(b"1", keys[0])], parse_config(wide))[1].tolist() == [3]
    for key in keys[1:]:
        assert "which is no class" in refused("raw", [Given(b"1", key)], wide)
    with pytest.raises(PermanentError, match="dtype 'string'"):
        parse_config({"shape": [1], "label_dtype": "string"})


def test_avro_with_two_schemas_as_kafka_ml_sends_it() -> None:
    """Data in one, the label in another, a boolean in the key: as its example for hcopd. No feature has to be named."""
    names = ["gender", "age", "smoking"]
    data = {"type": "record", "name": "HCOPD", "fields": [{"name": name, "type": "float"} for name in names]}
    label = {"type": "record", "name": "HCOPD", "fields": [{"name": "diagnosis", "type": "boolean"}]}
    records = avro(data, {"gender": 1, "age": 77, "smoking": 2}, {"gender": 0, "age": 72, "smoking": 3})
    for record, ill in zip(records, avro(label, {"diagnosis": True}, {"diagnosis": False}), strict=True):
        record.key = ill.value
    config: dict[str, object] = {
        "shape": [3],
        "schema": data,
        "label_schema": label,
        "y": "diagnosis",
        "labels": ["no", "yes"],
    }
    x, y = decode("avro", records, parse_config(config))
    assert x.tolist() == [[1, 77, 2], [0, 72, 3]] and y.tolist() == [1, 0]
    whole = {**data, "fields": [*data["fields"], *label["fields"]]}
    both = avro(whole, {"gender": 1, "age": 77, "smoking": 2, "diagnosis": True})
    x, y = decode("avro", both, parse_config({"shape": [3], "schema": whole, "y": "diagnosis"}))
    assert x.tolist() == [[1, 77, 2]] and y.tolist() == [1]


@pytest.mark.parametrize("kind", ["long", {"type": "record", "name": "L", "fields": [{"name": "y", "type": "long"}]}])
def test_avro_with_the_label_in_the_key(kind: Any) -> None:
    schema = {"type": "record", "name": "D", "fields": [{"name": n, "type": "float"} for n in "abc"]}
    config = {"shape": [3], "features": [{"name": n} for n in "cab"], "schema": schema, "label_schema": kind}
    records = avro(schema, {"a": 1, "b": 2, "c": 3}, {"a": 4, "b": 5, "c": 6}, {"a": 7, "b": 8, "c": 9})
    records[0].key, records[1].key = b"\x04", b"\x00"
    x, y = decode("avro", records, parse_config(config))
    assert x.tolist() == [[3, 1, 2], [6, 4, 5], [9, 7, 8]] and y.tolist() == [2, 0, NONE]
    records[1].key = b"\x00\x00"
    assert "record t:0:1 has 1 bytes after its end" in refused("avro", records, config)


TYPES = ["float", "double", "int", "long", "bytes", {"type": "array", "items": "float"}, ["null", "double"], "boolean"]


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_columns_are_what_fastavro_reads(data: st.DataObject) -> None:
    """Whatever is laid out alike is read as one by one; whatever is not is left to the reader of single records."""
    kinds = {
        f"f{i}": kind for i, kind in enumerate(data.draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=4)))
    }
    schema = {"type": "record", "name": "R", "fields": [{"name": n, "type": k} for n, k in kinds.items()]}
    values = {
        "float": st.floats(width=32, allow_nan=False),
        "double": st.floats(allow_nan=False),
        "int": st.integers(-(2**31), 2**31 - 1) | st.integers(0, 9),
        "long": st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9),
        "bytes": st.binary(max_size=3),
        "boolean": st.booleans(),
    }

    def value(kind: Any) -> st.SearchStrategy[Any]:
        if isinstance(kind, list):
            return st.none() | values["double"]
        return st.lists(values["float"], max_size=3) if isinstance(kind, dict) else values[kind]

    rows = data.draw(st.lists(st.fixed_dictionaries({n: value(k) for n, k in kinds.items()}), min_size=1, max_size=4))
    bodies = [record.value for record in avro(schema, *rows)]
    if len({len(body) for body in bodies}) != 1:
        return
    found = columns(kinds, bodies)
    event(f"columns: {found is not None}")
    for name, column in (found or {}).items():
        for row, got in zip(rows, column, strict=True):
            wanted = row[name]
            if isinstance(wanted, bytes):
                assert got.tobytes() == wanted
            else:
                np.testing.assert_array_equal(got, wanted)
    cut = [body[:-1] for body in bodies]
    assert columns(kinds, cut) is None


def test_bad_records_are_left_out_and_told() -> None:
    told: list[BadRecord] = []
    rows = [Given(b"1,2", b"0"), Given(b"1", b"1"), Given(b"3,4", b"x"), Given(b"5,6", b"1"), Given(b"nan,1", b"1")]
    for offset, row in enumerate(rows):
        row.offset = offset
    x, y = decode("csv", rows, parse_config({"shape": [2]}), told.append)
    assert x.tolist() == [[1, 2], [5, 6]] and y.tolist() == [0, 1]
    assert [error.record.offset for error in told] == [1, 2, 4], "in their order, whatever is wrong with each"
    x, y = decode("csv", [rows[1]], parse_config({"shape": [2]}), told.append)
    assert x.shape == (0, 2) and y.shape == (0,)


@pytest.mark.parametrize("name", FORMATS)
def test_labels_that_a_model_does_not_tell_apart_are_bad(name: str) -> None:
    records, config = encoded(name, np.zeros((4, 2), np.float32), np.array([0, 2, 1, 2]), LABELS)
    for offset, record in enumerate(records):
        record.offset = offset
    told: list[BadRecord] = []
    assert decode(name, records, parse_config(config), told.append, 2)[1].tolist() == [0, 1]
    assert [error.record.offset for error in told] == [1, 3]
    assert "has label 2, and the model tells 2 classes apart" in str(told[0])
    assert decode(name, records, parse_config(config), classes=3)[1].tolist() == [0, 2, 1, 2]


@pytest.mark.parametrize("spoilt", [[7], [0, 9], [3, 4, 5], list(range(10))])
def test_the_first_bad_record_is_the_one_that_is_named(spoilt: list[int]) -> None:
    """Though a batch is looked at for one kind of fault after the other: sizes, numbers, labels."""
    faults = [b"1,2,3", b"1,wet", b"nan,2"]
    rows = [Given(faults[i % 3] if i in spoilt else b"1,2", b"0", offset=i) for i in reversed(range(10))]
    assert f"record t:0:{max(spoilt)} " in refused("csv", rows, {"shape": [2]})
    told: list[BadRecord] = []
    x, _ = decode("csv", rows, parse_config({"shape": [2]}), told.append)
    assert [error.record.offset for error in told] == sorted(spoilt, reverse=True) and len(x) == 10 - len(spoilt)
