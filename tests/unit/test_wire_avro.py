"""Single-object encoding as the Avro specification has it, schema resolution, and nothing but whole records."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import pytest
from fastavro.schema import fingerprint, to_parsing_canonical_form
from hypothesis import given
from hypothesis import strategies as st

from sluice.wire import avro, messages
from sluice.wire.errors import PermanentError, UnknownSchemaError
from tests.unit.wire_support import offload, patient, prediction

SCHEMAS = Path(avro.__file__).parent / "schemas"
EMPTY = 0xC15D213AA4D7A795
LIMIT = 100_000
WHOLE = [messages.encode(offload()), messages.encode(prediction())]


def crc64(data: bytes) -> int:
    """The fingerprint of the specification ("Schema Fingerprints"), written down again from its Java."""
    table = []
    for entry in range(256):
        for _ in range(8):
            entry = (entry >> 1) ^ (EMPTY & -(entry & 1))
        table.append(entry)
    found = EMPTY
    for byte in data:
        found = (found >> 8) ^ table[(found ^ byte) & 0xFF]
    return found


def test_the_fingerprint_is_the_specifications() -> None:
    assert crc64(b'"null"') == 0x63DD24E7CC258F8A  # the value that Avro's own tests have for it
    assert fingerprint('"null"', "CRC-64-AVRO") == (0x63DD24E7CC258F8A).to_bytes(8, "little").hex()


@pytest.mark.parametrize("message", ["offload", "prediction"])
def test_the_header_is_marker_and_fingerprint(message: str) -> None:
    definition = json.loads((SCHEMAS / f"{message}.v2.avsc").read_text())
    mark = crc64(to_parsing_canonical_form(definition).encode()).to_bytes(8, "little")
    assert avro.newest(message).header == b"\xc3\x01" + mark
    assert messages.encode(offload() if message == "offload" else prediction())[:10] == b"\xc3\x01" + mark


@pytest.fixture
def tomorrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[bytes]:
    """A version 3 of the prediction's schema is known: it has a field more, with a default."""
    (tmp_path / "schemas").mkdir()
    for file in SCHEMAS.iterdir():
        (tmp_path / "schemas" / file.name).write_text(file.read_text())
    definition = json.loads((SCHEMAS / "prediction.v2.avsc").read_text())
    definition["fields"].append({"name": "room", "type": "string", "default": "kitchen"})
    old = messages.encode(prediction())
    with monkeypatch.context() as patch:
        (tmp_path / "schemas" / "prediction.v3.avsc").write_text(json.dumps(definition))
        patch.setattr("importlib.resources.files", lambda _package: tmp_path)
        forget()
        yield old
    forget()


def forget() -> None:
    avro._known.cache_clear()
    avro.newest.cache_clear()


def test_a_new_reader_reads_an_old_writer_with_the_new_fields_default(tomorrow: bytes) -> None:
    [(message, record)] = avro.decode_all(tomorrow, LIMIT)
    assert (message, record["device_id"], record["room"]) == ("prediction", "pi-1", "kitchen")


@pytest.mark.parametrize("message", [offload(), prediction()], ids=["offload", "prediction"])
def test_what_was_written_before_there_were_audits_is_none(message: messages.Outcome) -> None:
    name = type(message).__name__.lower()
    first = json.loads((SCHEMAS / f"{name}.v1.avsc").read_text())
    body = io.BytesIO(b"\xc3\x01" + crc64(to_parsing_canonical_form(first).encode()).to_bytes(8, "little"))
    body.seek(10)
    [(_, record)] = avro.decode_all(messages.encode(message), LIMIT)
    fastavro.schemaless_writer(body, fastavro.parse_schema(first), record)
    assert messages.decode(body.getvalue()) == message and message.audit is None


def test_old_and_new_records_lie_side_by_side(tomorrow: bytes) -> None:
    record: dict[str, Any] = avro.decode_all(tomorrow, LIMIT)[0][1]
    new = avro.encode("prediction", record | {"room": "hall"})
    assert new[:10] != tomorrow[:10]
    assert [found["room"] for _, found in avro.decode_all(tomorrow + new, LIMIT)] == ["kitchen", "hall"]


def test_an_old_reader_holds_what_a_new_writer_sends(tomorrow: bytes, tmp_path: Path) -> None:
    new = avro.encode("prediction", avro.decode_all(tomorrow, LIMIT)[0][1])
    (tmp_path / "schemas" / "prediction.v3.avsc").unlink()
    forget()
    with pytest.raises(UnknownSchemaError, match=new[2:10].hex()):
        avro.decode_all(new, LIMIT)


@pytest.mark.parametrize("payload", WHOLE)
def test_truncated_at_every_byte_it_is_refused(payload: bytes) -> None:
    for size in range(len(payload)):
        with pytest.raises(PermanentError):
            avro.decode_all(payload[:size], LIMIT)


@pytest.mark.parametrize("payload", WHOLE)
@pytest.mark.parametrize("rest", [b"\0", b"\xc3", b"\xc3\x01", b"and more bytes than a header has"])
def test_trailing_bytes_are_refused(payload: bytes, rest: bytes) -> None:
    with pytest.raises(PermanentError, match="not an Avro single-object record"):
        avro.decode_all(payload + rest, LIMIT)


def test_a_wrong_marker_is_no_record_and_an_unknown_fingerprint_may_be_a_newer_one() -> None:
    payload = WHOLE[0]
    with pytest.raises(PermanentError, match="not an Avro single-object record"):
        avro.decode_all(b"\xc3\x02" + payload[2:], LIMIT)
    with pytest.raises(UnknownSchemaError, match="0000000000000000 is not known"):
        avro.decode_all(b"\xc3\x01" + bytes(8) + payload[10:], LIMIT)


def test_the_limit_is_looked_at_first() -> None:
    assert len(avro.decode_all(WHOLE[0], len(WHOLE[0]))) == 1
    with pytest.raises(PermanentError, match=f"over the limit of {len(WHOLE[0]) - 1}"):
        avro.decode_all(WHOLE[0], len(WHOLE[0]) - 1)
    with pytest.raises(PermanentError, match="over the limit"):
        avro.decode_all(bytes(11), 10)
    with pytest.raises(PermanentError, match="empty message"):
        avro.decode_all(b"", 10)


@patient
@given(st.sampled_from([b"", *(payload[:10] for payload in WHOLE)]), st.binary(max_size=300))
def test_no_bytes_raise_anything_else(header: bytes, body: bytes) -> None:
    only_our_errors(header + body)


@patient
@given(st.sampled_from(WHOLE), st.data())
def test_no_damage_raises_anything_else(payload: bytes, data: st.DataObject) -> None:
    damaged = bytearray(payload)
    for place in data.draw(st.lists(st.integers(10, len(payload) - 1), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    only_our_errors(bytes(damaged))


def only_our_errors(payload: bytes) -> None:
    for decode in (lambda: avro.decode_all(payload, LIMIT), lambda: messages.decode_all(payload)):
        try:
            decode()
        except (PermanentError, UnknownSchemaError) as error:
            assert "\n" not in str(error)
