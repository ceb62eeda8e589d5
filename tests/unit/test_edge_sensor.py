"""Sensor payloads: every format, every kind of bad payload, and rubbish, which never does more than be refused."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest
from fastavro.schema import fingerprint, to_parsing_canonical_form
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent import sensor as sensor_module
from edge_agent.sensing import Sensor
from edge_agent.sensor import FORMATS, read
from edge_agent.sensor_avro import schema_of
from edge_agent.window import as_input
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import TensorSpec
from sluice.wire.state import DeadLetter


@pytest.mark.parametrize(
    ("sensor", "payload", "values", "source_id"),
    [
        ({}, b'{"values": [1, 2.5, -3]}', [1, 2.5, -3], None),
        ({}, b'{"values": 7, "id": "a-1", "more": {}}', [7], "a-1"),
        ({}, b'{"values": 7, "id": ""}', [7], None),
        ({}, b'{"values": [[1, 2], [3, 4]], "id": 12}', [1, 2, 3, 4], "12"),
        ({}, '{"values": [1], "id": "größe"}'.encode(), [1], "größe"),
        ({"values_path": "data.acc.x", "source_id_path": "meta.n"}, b'{"data": {"acc": {"x": [5]}}}', [5], None),
        ({"values_path": "d", "source_id_path": "meta.n"}, b'{"d": 1, "meta": {"n": "z"}}', [1], "z"),
        ({"format": "csv"}, b"1,2.5,-3\r\n", [1, 2.5, -3], None),
        ({"format": "csv"}, b" 1 , 1e3", [1, 1000], None),
        ({"format": "raw"}, struct.pack("<3f", 1, 2.5, -3), [1, 2.5, -3], None),
        ({"format": "raw", "dtype": "int16"}, struct.pack("<2h", -2, 300), [-2, 300], None),
        ({"format": "raw", "dtype": "uint8"}, b"\x00\xff", [0, 255], None),
        ({"format": "raw", "dtype": "float64"}, struct.pack("<d", 1e-300), [1e-300], None),
    ],
)
def test_formats(sensor: dict[str, Any], payload: bytes, values: list[float], source_id: str | None) -> None:
    found = read(payload, Sensor(**sensor))
    assert found.values.tolist() == values and found.values.ndim == 1
    assert (found.source_id, found.at_ns, found.missing) == (source_id, None, False)


@pytest.mark.parametrize(
    ("sensor", "payload", "reason"),
    [
        ({"limit_bytes": 9}, b'{"values":1}', "12 bytes is over the limit of 9"),
        ({}, b"", "not JSON"),
        ({}, b"\xff\xfe\x00", "not JSON"),
        ({}, b'{"values": [1', "not JSON"),
        ({}, b"[" * 100_000, "not JSON"),
        ({}, b"[1, 2]", "nothing at 'values'"),
        ({}, b'{"value": 1}', "nothing at 'values'"),
        ({"values_path": ["a", "b.c"]}, b'{"b": 1}', "nothing at a, b.c"),
        ({"values_path": "a.1"}, b'{"a": [1]}', "nothing at 'a.1'"),
        ({}, b'{"values": 1, "id": [2]}', "neither text nor number"),
        ({"values_path": "a.b"}, b'{"a": [1]}', "nothing at 'a.b'"),
        ({}, b'{"values": []}', "no values"),
        ({}, b'{"values": "many"}', "no numbers"),
        ({}, b'{"values": {"x": 1}}', "no numbers"),
        ({}, b'{"values": "' + b"many\\n" * 9000 + b'"}', "^reading has values that are no numbers: .{1,200}$"),
        ({}, b'{"values": [1, [2, 3]]}', "no numbers"),
        ({}, b'{"values": [1' + b"0" * 400 + b"]}", "no numbers"),
        ({}, b'{"values": [1e999]}', "infinite"),
        ({}, b'{"values": ' + b"[" * 80 + b"1" + b"]" * 80 + b"}", "no numbers"),
        ({}, json.dumps({"values": 1, "id": "x" * 257}).encode(), "257 characters is over 256"),
        ({}, b'{"values": 1, "id": "\\ud800"}', "not Unicode text"),
        ({"format": "csv"}, "1,é".encode(), "no numbers"),
        ({"format": "csv"}, b"", "no values"),
        ({"format": "csv"}, b"\xff,1", "not CSV"),
        ({"format": "csv"}, b"1,2\n3,4", "2 lines"),
        ({"format": "csv"}, b'"1', "not CSV"),
        ({"format": "csv", "columns": [0, 2]}, b"1,2", "2 columns, too few"),
        ({"format": "csv", "source_id_column": 2}, b"1,2", "2 columns, too few"),
        ({"format": "csv"}, b"1;2", "no numbers"),
        ({"format": "csv"}, b"1,inf", "infinite"),
        ({"format": "raw"}, b"\0" * 7, "no whole number of float32"),
        ({"format": "raw"}, b"", "no values"),
        ({"format": "raw"}, struct.pack("<f", float("-inf")), "infinite"),
    ],
)
def test_bad_payloads_are_refused_with_their_reason(sensor: dict[str, Any], payload: bytes, reason: str) -> None:
    with pytest.raises(PermanentError, match=reason):
        read(payload, Sensor(**sensor))


def refused_or_whole(payload: bytes, sensor: Sensor) -> None:
    """What the agent does with a payload: take it, or make a dead letter of it. Nothing else may be raised."""
    try:
        values, source_id, at_ns, missing = read(payload, sensor)
    except PermanentError as error:
        DeadLetter(reason=str(error)[:1000], origin="t", data="").model_dump_json()
        return
    assert values.size and not np.isinf(values).any() and missing == np.isnan(values).any()
    assert at_ns is None or abs(at_ns) < 2**62
    assert source_id is None or source_id.encode()
    assert values.astype("<f8").size == values.size


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["values", "id", "x"]), inner),
)


@given(payload=st.binary(max_size=200), form=st.sampled_from(sorted({*FORMATS} - {"avro"})))
@settings(max_examples=400, deadline=None)
def test_rubbish_is_refused_and_no_more(payload: bytes, form: Any) -> None:
    refused_or_whole(payload, Sensor(format=form))


@given(document=ANY_JSON)
@settings(max_examples=400, deadline=None)
def test_any_json_is_read_or_refused(document: Any) -> None:
    refused_or_whole(json.dumps(document).encode(), Sensor())


@given(values=st.lists(st.integers() | st.floats(), max_size=5), source_id=st.integers() | st.floats() | st.text())
@settings(max_examples=400, deadline=None)
def test_the_fast_parser_reads_what_pythons_own_does(values: list[Any], source_id: Any) -> None:
    payload = json.dumps({"values": values, "id": source_id}).encode()
    found: list[Any] = []
    for loads in (sensor_module.fast_loads, json.loads):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sensor_module, "fast_loads", loads)
            try:
                reading = read(payload, Sensor())
                found.append((reading.values.tobytes(), *reading[1:]))
            except PermanentError as error:
                found.append(str(error))
    assert found[0] == found[1]


@given(values=ANY_JSON, source_id=ANY_JSON)
@settings(max_examples=400, deadline=None)
def test_any_values_and_any_id_are_read_or_refused(values: Any, source_id: Any) -> None:
    refused_or_whole(json.dumps({"values": values, "id": source_id}).encode(), Sensor())


@pytest.mark.parametrize(
    ("dtype", "values", "reason"),
    [
        ("uint8", [0, 256], "do not fit uint8"),
        ("uint8", [-1, 0], "do not fit uint8"),
        ("int8", [127, 128], "do not fit int8"),
        ("float32", [0, 1e39], "do not fit float32"),
        ("float16", [0, -70_000], "do not fit float16"),
        ("uint8", [1], "1 values where input 'x' takes 2"),
    ],
)
def test_what_does_not_fit_the_models_input_is_refused(dtype: Any, values: list[float], reason: str) -> None:
    with pytest.raises(PermanentError, match=reason):
        as_input(np.asarray(values, np.float64), TensorSpec(name="x", dtype=dtype, shape=(2,)))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "float16", "float32", "bool"])
def test_input_has_dtype_and_shape_of_the_model(dtype: Any) -> None:
    made = as_input(np.asarray([0.0, 1.0, 1.0, 0.0]), TensorSpec(name="x", dtype=dtype, shape=(2, 2, 1)))
    assert made.dtype == dtype and made.shape == (2, 2, 1)
    assert made.reshape(-1).tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("written", "reason"),
    [("NaN", "no finite number"), ("Infinity", "no finite number"), ("true", "neither text nor number")],
)
def test_what_would_make_readings_repeats_of_one_another_is_no_id(written: str, reason: str) -> None:
    with pytest.raises(PermanentError, match=reason):
        read(b'{"values": 1, "id": %s}' % written.encode(), Sensor())


@pytest.mark.parametrize(
    ("sensor", "payload", "values", "source_id", "at_ns"),
    [
        ({"values_path": ["acc.x", "acc.y", "t.0"]}, b'{"acc": {"y": 2, "x": 1}, "t": [3]}', [1, 2, 3], None, None),
        ({"values_path": ["a", "b"]}, b'{"a": [1, 2], "b": 3}', [1, 2, 3], None, None),
        ({"values_path": "d.1.v"}, b'{"d": [{"v": 1}, {"v": [4, 5]}]}', [4, 5], None, None),
        ({"time_path": "t"}, b'{"values": 1, "t": 1700000000.02}', [1], None, 1_700_000_000_020_000_000),
        ({"time_path": "t", "time_unit": "us"}, b'{"values": 1, "t": 5}', [1], None, 5000),
        ({"time_path": "t", "time_unit": "ns"}, b'{"values": 1, "t": 1700000000000000001}', [1], None, 17 * 10**17 + 1),
        (
            {"time_path": "t", "time_unit": "iso"},
            b'{"values": 1, "t": "2023-11-14T23:13:20.5+01:00"}',
            [1],
            None,
            1_700_000_000_500_000_000,
        ),
        ({"time_path": "t", "time_unit": "iso"}, b'{"values": 1, "t": "1970-01-01"}', [1], None, 0),
        (
            {"format": "csv", "columns": [3, 1], "source_id_column": 0, "time_column": 2, "time_unit": "ms"},
            "größe; 2 ;7;9".replace(";", ",").encode(),
            [9, 2],
            "größe",
            7_000_000,
        ),
        ({"format": "csv", "source_id_column": 1, "separator": ";"}, b'1;"a;b";3', [1, 3], "a;b", None),
    ],
)
def test_paths_columns_and_times(
    sensor: dict[str, Any], payload: bytes, values: list[float], source_id: str | None, at_ns: int | None
) -> None:
    found = read(payload, Sensor(**sensor))
    assert (found.values.tolist(), found.source_id, found.at_ns, found.missing) == (values, source_id, at_ns, False)


@pytest.mark.parametrize(
    ("sensor", "payload", "there"),
    [
        ({}, b'{"values": [null, 1]}', [False, True]),
        ({}, b'{"values": null}', [False]),
        ({}, b'{"values": [NaN]}', [False]),
        ({"values_path": ["a", "b", "c"]}, b'{"b": 1, "c": null}', [False, True, False]),
        ({"format": "csv"}, b"1,, nan", [True, False, False]),
        ({"format": "raw"}, b"\x00\x00\x80\x3f\x00\x00\x81\x7f", [True, False]),
    ],
)
def test_a_value_that_is_missing_is_nan(sensor: dict[str, Any], payload: bytes, there: list[bool]) -> None:
    found = read(payload, Sensor(**sensor))
    assert (~np.isnan(found.values)).tolist() == there and found.missing


@pytest.mark.parametrize("time", ["1e30", "NaN", "1e999", "true", "null", '"soon"', "[1]", str(2**62)])
@pytest.mark.parametrize("unit", ["s", "ns", "iso"])
def test_a_time_that_is_none_is_refused(time: str, unit: Any) -> None:
    with pytest.raises(PermanentError, match="time"):
        read(b'{"values": 1, "t": %s}' % time.encode(), Sensor(time_path="t", time_unit=unit))


SCHEMA = {
    "type": "record",
    "name": "Reading",
    "namespace": "of.a.user",
    "fields": [
        {"name": "serial", "type": ["null", "string"]},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {
            "name": "acc",
            "type": {"type": "record", "name": "Acc", "fields": [{"name": n, "type": "float"} for n in "xy"]},
        },
        {"name": "more", "type": {"type": "array", "items": ["null", "double"]}},
        {"name": "before", "type": ["null", "Acc"]},
    ],
}
RECORD = {"serial": "r-1", "at": 5, "acc": {"x": 1.5, "y": -2.0}, "more": [3.0, None], "before": None}


def avro_sensor(folder: Path, schema: Any = SCHEMA, **more: Any) -> Sensor:
    file = folder / "reading.avsc"
    file.write_text(json.dumps(schema))
    return Sensor(format="avro", schema_file=file, **more)


def avro_bytes(record: Any = RECORD, schema: Any = SCHEMA, header: bool = True) -> bytes:
    out = io.BytesIO()
    if header:
        out.write(b"\xc3\x01" + bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO")))
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), record)
    return out.getvalue()


@pytest.mark.parametrize("framing", ["single-object", "bare"])
def test_avro_with_the_users_schema(tmp_path: Path, framing: Any) -> None:
    paths: dict[str, Any] = {"source_id_path": "serial", "time_path": "at", "time_unit": "ms", "framing": framing}
    sensor = avro_sensor(tmp_path, values_path=["acc.y", "acc.x", "more.0"], **paths)
    payload = avro_bytes(header=framing == "single-object")
    found = read(payload, sensor)
    assert (found.values.tolist(), found.source_id, found.at_ns) == ([-2, 1.5, 3], "r-1", 5_000_000)
    assert read(payload, avro_sensor(tmp_path, values_path="more", **paths)).missing
    for cut in range(len(payload)):
        with pytest.raises(PermanentError, match="Avro"):
            read(payload[:cut], sensor)
    with pytest.raises(PermanentError, match="1 bytes after"):
        read(payload + b"\0", sensor)


def test_avro_of_another_schema_is_refused(tmp_path: Path) -> None:
    other = {**SCHEMA, "name": "Other"}
    with pytest.raises(PermanentError, match=r"no Avro record of schema reading\.avsc"):
        read(avro_bytes(schema=other), avro_sensor(tmp_path, values_path="more"))


@given(payload=st.binary(max_size=200))
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rubbish_in_avro_is_refused_and_no_more(tmp_path: Path, payload: bytes) -> None:
    sensor = avro_sensor(tmp_path, values_path=["acc.x", "more.0"], framing="bare", time_path="at", time_unit="ns")
    refused_or_whole(payload, sensor)


def record(*types: Any, name: str = "R") -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": f"f{i}", "type": t} for i, t in enumerate(types)]}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (record(["null", "R"]), "R stands within itself"),
        (record({"type": "array", "items": record("R", name="Inner")}), "R stands within itself"),
        (record({"type": "array", "items": "null"}), "items that take no bytes"),
        (record({"type": "array", "items": record("null", name="Nothing")}), "items that take no bytes"),
        (record({"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}}), "items that take no bytes"),
        (record("no-such-type"), "UnknownType"),
        ({"type": "record", "fields": []}, "schema"),
        ({}, "schema"),
        (None, "schema"),
    ],
)
def test_schemas_that_would_let_few_bytes_do_much_are_refused(tmp_path: Path, schema: Any, reason: str) -> None:
    sensor = avro_sensor(tmp_path, schema)
    with pytest.raises(PermanentError, match=reason):
        schema_of(sensor.schema_file or tmp_path)


def test_a_schema_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"no\.avsc: No such file"):
        schema_of(tmp_path / "no.avsc")
