"""Sensor payloads: every format, every kind of bad payload, and rubbish, which never does more than be refused."""

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.sensing import Sensor
from edge_agent.sensor import FORMATS, read
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
        ({}, b'{"values": null}', "nothing at 'values'"),
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
