"""What is fuzzed: every decoder as a function of bytes, with valid messages to begin from.

A target returns nothing, or raises one of the errors that decoders document: `PermanentError`, `UnknownSchemaError`. It
also checks what it let pass, for instance that what was decoded can be encoded again. Where a decoder needs more than
bytes (a spec, a config), the first byte chooses it from a list.
"""

from __future__ import annotations

import base64
import io
import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import strategies as st

from edge_agent import sensor as sensors
from edge_agent.sensing import Sensor
from edge_agent.sensor_avro import schema_of
from sluice.stage.segment import RunningSegment, load_segments, prove
from sluice.stage.step import unpack
from sluice.streams import formats
from sluice.streams.live import Heard
from sluice.streams.samples import NONE, parse_config
from sluice.wire import avro, messages, signing, state
from sluice.wire.bundle import open_bundle
from sluice.wire.codec import CODECS, decode_tensor, encode_tensor
from sluice.wire.errors import PermanentError
from sluice.wire.labels import Label
from sluice.wire.manifest import Manifest, TensorSpec, parse_manifest
from sluice.wire.messages import REASONS, STATUSES, Belief, Offload, Outcome, Prediction, Tensor
from sluice.wire.names import TIERS, MqttTopics, check_name
from sluice.wire.profile import parse_profile
from sluice.wire.slices import parse_slice
from tests.unit import wire_support

Valid = st.SearchStrategy[list[bytes]]
"""Some valid messages, which damage is then done to."""


@dataclass(frozen=True, slots=True)
class Target:
    """`feed` decodes; `valid` draws messages to begin from; `share` of the inputs, in parts."""

    feed: Callable[[bytes], None]
    valid: Valid
    share: int = 1


def _some(seeds: Sequence[bytes]) -> Valid:
    return st.lists(st.sampled_from(list(seeds)), min_size=2, max_size=4)


# Messages: Avro, several records in a payload, every schema version.

_name = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
_hex8 = st.binary(min_size=8, max_size=8).map(bytes.hex)
_hex32 = st.binary(min_size=32, max_size=32).map(bytes.hex)
_long = st.integers(0, 2**63 - 1)
_int = st.integers(0, 2**31 - 1)
_text = st.none() | st.text(max_size=40)
_share = st.floats(0, 1, width=32)
_common = {
    "device_id": _name, "epoch": _hex8, "seq": _long, "source_id": _text, "model": _name, "bundle": _hex32,
    "operating_point": _name, "tier": st.sampled_from(TIERS), "captured_at": _long, "trace": _text, "bytes_sent": _long,
    "compute_us": st.dictionaries(st.sampled_from(TIERS), _long),
}  # fmt: skip
_tensor = st.builds(
    Tensor, name=st.text(max_size=10), dtype=st.text(max_size=8), codec=st.sampled_from(list(CODECS)),
    shape=st.lists(st.integers(1, 64), max_size=4).map(tuple), scale=_share, zero_point=st.integers(-128, 127),
    data=st.binary(max_size=200),
)  # fmt: skip
_belief = st.builds(Belief, exit=_int, label=_int, confidence=_share)
_offload = st.builds(
    Offload, **_common, next_segment=_int, tensors=st.lists(_tensor, max_size=3).map(tuple),
    beliefs=st.lists(_belief, max_size=3).map(tuple), ttl_ms=_long,
)  # fmt: skip
_prediction = st.builds(
    Prediction, **_common, exit=_int, label=st.integers(-1, 2**31 - 1), confidence=_share, produced_at=_long,
    outputs=st.binary(max_size=16).map(lambda b: b * 4), status=st.sampled_from(STATUSES),
    reason=st.sampled_from(REASONS),
)  # fmt: skip


def _in_schema(outcome: Outcome, schema: avro.Schema) -> bytes:
    """The outcome as a writer of that schema version would write it."""
    newest, body = messages.encode(outcome), io.BytesIO()
    parsed = avro.newest(schema.message).parsed
    record = fastavro.schemaless_reader(io.BytesIO(newest[avro.HEADER_SIZE :]), parsed, None)
    fastavro.schemaless_writer(body, schema.parsed, record)
    return schema.header + body.getvalue()


@st.composite
def _payload(draw: st.DrawFn) -> bytes:
    """One to three records of any version."""
    versions = sorted(avro._known().values(), key=lambda s: (s.message, s.version))
    records = []
    for _ in range(draw(st.integers(1, 3))):
        schema = draw(st.sampled_from([s for s in versions if s.message in ("offload", "prediction")]))
        outcome: Outcome = draw(_offload) if schema.message == "offload" else draw(_prediction)
        records.append(_in_schema(outcome, schema))
    return b"".join(records)


def _messages(data: bytes) -> None:
    for outcome in messages.decode_all(data):
        again = messages.encode(outcome)
        assert messages.decode(again) == outcome, "what was decoded is not what is encoded"


# Tensors: every codec against a manifest's spec, and whole offloads against a whole manifest.

_DICTIONARY = base64.b64encode(
    zstandard.train_dictionary(1024, [bytes((i % 7, i % 5)) * 40 for i in range(400)]).as_bytes()
).decode()
_COARSE: tuple[dict[str, Any], ...] = (
    {"low": -1.0, "high": 1.0, "levels": 3, "per_byte": 5},
    {"low": 0.0, "high": 4.0, "levels": 4, "per_byte": 4, "channels_first": True, "dictionary": _DICTIONARY},
    {"low": 0.0, "high": 4.0, "levels": 16, "per_byte": 2, "values": [float(i) for i in range(16)]},
)
_SPECS: tuple[dict[str, Any], ...] = (
    {"dtype": "float32", "shape": (4,)},
    {"dtype": "float32", "shape": ()},
    {"dtype": "float16", "shape": (3, 5)},
    {"dtype": "int8", "shape": (7, 7, 2)},
    {"dtype": "uint8", "shape": (28, 28, 1)},
    {"dtype": "int64", "shape": (2,)},
    {"dtype": "bool", "shape": (9,)},
    {"dtype": "float32", "shape": (512, 512, 4)},
    *({"dtype": "float32", "shape": (5, 3), "coarse": coarse} for coarse in _COARSE),
)
SPECS = tuple(TensorSpec.model_validate({"name": "h", "scale": 0.5, "zero_point": 3, **spec}) for spec in _SPECS)
CASES = [(spec, codec) for spec in SPECS for codec in CODECS if codec != "coarse" or spec.coarse or not spec.is_float]


def _tensor_of(data: bytes) -> None:
    spec, codec = CASES[(data[0] if data else 0) % len(CASES)]
    array = decode_tensor(Tensor("h", spec.dtype, tuple(spec.shape), 0.0, 0, codec, data[1:]), spec)
    assert array.dtype == np.dtype(spec.dtype)
    assert array.shape == spec.shape
    with np.errstate(all="ignore"):  # NaN and infinity are a segment's to bear
        encode_tensor(array, spec, codec)


@cache
def _bomb() -> bytes:
    """50 MB of zeros as a zstd frame."""
    return zstandard.ZstdCompressor().compress(bytes(50_000_000))


def _frames() -> list[bytes]:
    """Tensors, and zstd frames that lie about what is in them."""
    found = []
    for number, (spec, codec) in enumerate(CASES):
        for values in (np.zeros(spec.shape), np.arange(spec.size).reshape(spec.shape) % 2):
            good = encode_tensor(np.asarray(values, spec.dtype), spec, codec).data
            lies = [good, good + good]
            if CODECS[codec].zstd:
                stream = zstandard.ZstdCompressor(write_content_size=False).compressobj()
                lies += [
                    stream.compress(bytes(spec.nbytes)) + stream.flush(),  # says nothing of its size
                    _bomb(),
                    _with_size(_bomb(), spec.nbytes),
                    b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + good,  # a frame to skip
                ]
            found += [bytes((number,)) + lie for lie in lies]
    return found


def _with_size(frame: bytes, size: int) -> bytes:
    """A zstd frame whose header claims `size` bytes of content (RFC 8878, 3.1.1.1)."""
    return frame[:4] + b"\xa0" + size.to_bytes(4, "little") + frame[9:]


@cache
def _manifest() -> Manifest:
    return wire_support.manifest()


def _unpack(data: bytes) -> None:
    for outcome in messages.decode_all(data):
        if isinstance(outcome, Offload):
            work = unpack(outcome, _manifest())
            for spec in _manifest().crossing(outcome.next_segment):
                assert work.tensors[spec.name].shape == spec.shape


def _offloads() -> list[bytes]:
    made = []
    for segment in range(3):
        for codec in ("raw", "zstd", "int8", "int8-zstd", "float16"):
            tensors = tuple(
                encode_tensor(np.ones(spec.shape, np.float32), spec, codec) for spec in _manifest().crossing(segment)
            )
            made.append(messages.encode(wire_support.offload(next_segment=segment, tensors=tensors)))
    return made


# State, manifests, profiles: JSON.

_DIGEST = "ab" * 32
_PROFILE: dict[str, Any] = {
    "bundle": _DIGEST, "runtime": "ai-edge-litert 2.3.0", "machine": "aarch64", "cpu": "Cortex-A72", "python": "3.11.7",
    "memory_mb": 56.5, "request": "r-1",
    "segments": [{"index": 0, "sha256": _DIGEST, "macs": 100, "us": {"1": 19.5, "8": 80}, "p90_us": {"1": 22.0}}],
}  # fmt: skip
STATES: dict[type[state.State], dict[str, Any]] = {
    state.Desired: {
        "device_id": "pi-1", "revision": 7, "profile": "r-1", "profile_model": "gate",
        "runs": [
            {"model": "gate", "bundle": _DIGEST, "operating_point": "default", "revision": 5,
             "bounds": {"samples": 50, "watch_s": 60.0, "errors_most": 0.1, "latency_p95_most_ms": 5.0,
                        "exit_share_least": 0.2, "exit_share_most": 0.9}},
            {"model": "door", "bundle": _DIGEST, "operating_point": "all-edge"},
        ],
    },
    state.Signed: {"payload": "{}", "signature": base64.b64encode(bytes(64)).decode()},
    state.Reported: {
        "device_id": "pi-1", "revision": 7,
        "runs": [{"model": "gate", "bundle": _DIGEST, "operating_point": "default",
                  "since_us": 1_700_000_000_000_000, "revision": 5, "error": "went back"}],
        "last_error": "no", "agent_version": "0.1.0", "profile": {"os": "linux"},
        "measured": _PROFILE, "counters": {"readings": 5},
    },
    state.DeviceStatus: {"device_id": "pi-1", "status": "online"},
    state.Receipt: {"epoch": "0123456789abcdef", "seqs": [1, 2, 3, 2**40]},
    state.DeadLetter: {"reason": "no JSON", "origin": "sluice/pi-1/sensor/a", "data": "AAAA"},
    state.Announcement: {
        "stream_id": "digits-1", "deployment": "d", "slices": ["digits:0:0:358"], "format": "avro", "count": 358,
        "config": {"shape": [8, 8], "dtype": "uint8"}, "validation_rate": 0.3,
    },
    Label: {"device_id": "pi-1", "source_id": "frame-1", "model": "gate", "label": "seven", "told_at": 2**50},
}  # fmt: skip
"""A valid one of each."""
KINDS = list(STATES)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = [signing.public_text(KEY)]


def _state(data: bytes) -> None:
    """A state message; the places after the kinds are signed desired states, and the payload of one."""
    chosen, body = (data[0] if data else 0) % (len(KINDS) + 2), data[1:]
    if chosen < len(KINDS):
        parsed = state.parse_state(KINDS[chosen], body)
        _small_integers(parsed.model_dump(exclude={"config"}))
        parsed.model_dump_json().encode()
        return
    if chosen == len(KINDS):
        state.unseal(body, "pi-1", PUBLIC)
        return
    envelope = state.Signed(
        payload=(text := body.decode("utf-8", "replace")), signature=signing.sign(KEY, text.encode())
    )
    _small_integers(state.unseal(envelope.model_dump_json().encode(), "pi-1", PUBLIC).model_dump())


def _small_integers(value: object) -> None:
    """What comes after takes integers of 64 bits: SQL, SQLite, struct."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            _small_integers(item)
    assert not isinstance(value, int) or -(2**63) <= value < 2**63, "an integer of more than 64 bits"


def _states() -> list[bytes]:
    made = [bytes((number,)) + json.dumps(STATES[kind]).encode() for number, kind in enumerate(KINDS)]
    desired = state.Desired.model_validate(STATES[state.Desired])
    sealed = state.seal(KEY, desired)
    return [*made, bytes((len(KINDS),)) + sealed, bytes((len(KINDS) + 1,)) + desired.model_dump_json().encode()]


def _manifest_of(data: bytes) -> None:
    parsed = parse_manifest(data)
    for index in range(len(parsed.segments)):
        parsed.crossing(index)
    _small_integers(parsed.model_dump())
    parsed.blobs()


def _manifests() -> list[bytes]:
    coarse = wire_support.manifest_dict()
    coarse["inputs"][0]["coarse"] = coarse["segments"][0]["inputs"][0]["coarse"] = _COARSE[1]
    tensors = wire_support.manifest_dict() | {"task": "tensors", "labels": []}
    for segment in tensors["segments"]:
        segment["exit"] = None
    tensors["segments"][-1]["outputs"] = [wire_support.tensor_spec("y", 2)]
    for point in tensors["operating_points"]:
        point["policies"] = []
    wide = wire_support.manifest_dict()
    wide["segments"][2]["inputs"] = wide["segments"][2]["inputs"][:1]
    wide["inputs"] += [wire_support.tensor_spec(f"x{i}", 1) for i in range(50)]
    wide["segments"][0]["passes"] = [tensor["name"] for tensor in wide["inputs"]]
    return [json.dumps(m).encode() for m in (wire_support.manifest_dict(), coarse, tensors, wide)]


# Names, slices, readings, streams, golden samples.


def _names(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for kind in ("device", "model"):
        try:
            check_name(kind, text)
        except PermanentError:
            continue
        assert len(text) <= 63
    device, kind = MqttTopics().split(text)
    assert MqttTopics().of(device, kind) == text


def _slices(data: bytes) -> None:
    found = parse_slice(data.decode("utf-8", "surrogateescape"))
    assert parse_slice(str(found)) == found
    assert found.end < 2**63


_AVSC = Path(__file__).with_name("reading.avsc")
SENSORS = (
    Sensor(),
    Sensor(values_path="a.b.c", source_id_path="a.id"),
    Sensor(values_path=["a.b", "a.c.0", "a.d"], time_path="t", time_unit="iso"),
    Sensor(time_path="t", time_unit="ns"),
    Sensor(time_path="t"),
    Sensor(format="csv"),
    Sensor(format="csv", columns=[2, 1], source_id_column=0, time_column=3, separator=";", time_unit="ms"),
    *(Sensor(format="raw", dtype=dtype) for dtype in ("uint8", "int16", "float32", "float64")),
    Sensor(format="avro", schema_file=_AVSC, values_path=["acc.x", "acc.y"], time_path="at", time_unit="ms"),
    Sensor(format="avro", schema_file=_AVSC, values_path="samples", framing="bare"),
    Sensor(format="avro", schema_file=_AVSC, values_path="more.a", framing="bare"),
)


def _avro_reading() -> bytes:
    record = {
        "id": "r-1", "at": 1_700_000_000_000, "acc": {"x": 1.0, "y": 2.0}, "samples": [1.0, None, 2.0],
        "more": {"a": [1, 2, 3], "b": []}, "mood": "good",
    }  # fmt: skip
    body, known = io.BytesIO(), schema_of(_AVSC)
    fastavro.schemaless_writer(body, known.parsed, record)
    return known.header + body.getvalue()


READINGS = (
    b'{"id": "r-1", "values": [1, 2.5, -3e2], "t": 17}', b'{"values": 7, "t": 1.5}', b'{"values": [[1], [3]], "id": 1}',
    b'{"a": {"b": {"c": [1, 2]}, "id": "x"}}', b'{"a": {"b": 1, "c": [2], "d": [null]}, "t": "2026-11-20T10:00:00Z"}',
    b'\xef\xbb\xbf{"values": [1]}', b"1,2,3.5", b" 1 , nan, 1e5\n", b"r-7;2;,3;1700000000000", b'"a;b";1;2;3',
    bytes(16), np.arange(8, dtype="<f4").tobytes(), json.dumps({"values": [0.5] * 3000}).encode(),
    _avro_reading(), _avro_reading()[avro.HEADER_SIZE:],
)  # fmt: skip


def _reading(data: bytes) -> None:
    settings = SENSORS[(data[0] if data else 0) % len(SENSORS)]
    read = sensors.read(data[1:], settings)
    assert read.values.ndim == 1
    assert not np.isinf(read.values).any()
    assert read.missing == bool(np.isnan(read.values).any())
    assert read.source_id is None or 0 < len(read.source_id.encode()) <= 4 * messages.MAX_ID
    assert read.at_ns is None or -(2**63) <= read.at_ns < 2**63


@dataclass(frozen=True, slots=True)
class _Record:
    """As read from Kafka."""

    value: bytes
    key: bytes | None = b"1"
    topic: str = "digits"
    partition: int = 0
    offset: int = 5


def _schema_of(*of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": "Sample", "fields": list(of)}


_X, _Y = {"name": "x", "type": "bytes"}, {"name": "y", "type": "long"}
_XS = {"name": "x", "type": {"type": "array", "items": "double"}}
_OTHERS = ({"name": "n", "type": "null"}, {"name": "t", "type": ["null", "string"]}, {"name": "y", "type": "string"})
STREAMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("raw", {"shape": [2, 2], "dtype": "uint8", "labels": ["a", "b"]}),
    ("raw", {"shape": [3], "dtype": "float64"}),
    ("avro", {"shape": [2, 2], "dtype": "int16", "schema": _schema_of(_X, _Y)}),
    ("avro", {"shape": [4], "dtype": "float32", "schema": _schema_of(_XS, *_OTHERS), "labels": ["a", "b"]}),
    ("avro", {"shape": [4], "dtype": "int32", "schema": _schema_of(_XS)}),
    ("avro", {"shape": [1000], "dtype": "int64", "schema": _schema_of(_X)}),
)


def _stream(data: bytes) -> None:
    """A record under a known config; after the configs: a config, with a few records to read by it."""
    chosen, body = (data[0] if data else 0) % (len(STREAMS) + 2), data[1:]
    if chosen < len(STREAMS):
        name, config = STREAMS[chosen]
        key, cut, value = body.rpartition(b"\xff\xfe") if name == "raw" else (b"", b"", body)
        _decoded(name, [_Record(value, key if cut else b"1")], config)
        return
    try:
        config = json.loads(body)
    except (ValueError, RecursionError):
        return
    if isinstance(config, dict):
        _decoded(("avro", "raw")[chosen - len(STREAMS)], [_Record(bytes(8)), _Record(b"\x08" + bytes(40))], config)


def _decoded(name: str, records: Sequence[_Record], config: dict[str, Any]) -> None:
    known = parse_config(config)
    x, y = formats.decode(name, records, known)
    assert x.shape == (len(records), *known.shape)
    assert y.shape == (len(records),) and (y >= NONE).all()


def _stream_records() -> list[bytes]:
    made = [
        b"\x00" + b"a\xff\xfe" + bytes(4),
        b"\x01" + bytes(24),
        b"\x02\x10" + bytes(8) + b"\x06",
        b"\x03\x08" + np.arange(4.0).tobytes() + b"\x00\x02\x06abc\x02b",
        b"\x04\x08" + np.arange(4.0).tobytes() + b"\x00",
        b"\x05\x80\x7d" + bytes(8000),
    ]
    configs = [config for _, config in STREAMS]
    for where in (len(STREAMS), len(STREAMS) + 1):
        made += [bytes((where,)) + json.dumps(config).encode() for config in configs]
    return made


class Golden:
    """Golden samples of a real segment, from the bundle in a folder (`bundle_support.make_bundle`)."""

    def __init__(self, folder: Path) -> None:
        bundle = open_bundle(folder)
        self.segment: RunningSegment = load_segments(folder, bundle.manifest, range(1))[0]
        good = bundle.read(self.segment.spec.golden)
        with np.load(io.BytesIO(good)) as arrays:
            samples = {name: arrays[name] for name in arrays.files}
        self.seeds = [
            good,
            *(_packed(samples | lie) for lie in self._lies(samples)),
            b"not a zip",
            b"PK\x05\x06" + bytes(18),
        ]
        deflated = io.BytesIO()
        np.savez_compressed(deflated, **samples, more=np.zeros(200_000_000, np.uint8))
        self.seeds.append(deflated.getvalue())

    def _lies(self, samples: dict[str, Any]) -> list[dict[str, Any]]:
        first = next(iter(samples))
        return [
            {first: samples[first][:0]},
            {first: samples[first].astype(np.float64)},
            {first: samples[first].astype("U5")},
            {first: np.float32(1)},
            {"more": np.zeros((2, 2), "c16")},
            {first: samples[first][:3]},
        ]

    def feed(self, data: bytes) -> None:
        """Prove the segment on `data`."""
        prove(self.segment, data)


def _packed(samples: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    np.savez(out, **samples)
    return out.getvalue()


def _choosing(seeds: Sequence[bytes], count: int) -> list[bytes]:
    return [bytes((number,)) + seed for number in range(count) for seed in seeds]


def _heard(data: bytes) -> None:
    """What a job says to the process that reads Kafka for it."""
    job, own = socket.socketpair()
    with own:
        with job:
            job.sendall(data[:60_000])
        heard = Heard(own)
        begin = heard.begin(["t"])
        assert all(topic == "t" and 0 <= offset < 2**63 for (topic, _), offset in begin.items())
        assert heard.past is None or 0 <= heard.past <= 2**31
        while not heard.over:
            assert 0 <= heard.used(3, None) <= 3


def targets(bundle: Path | None = None) -> dict[str, Target]:
    """All targets by name; `golden` only where a folder with the bundle is given."""
    profile = [json.dumps(_PROFILE).encode()]
    made = {
        "messages": Target(_messages, st.lists(_payload(), min_size=1, max_size=2), 8),
        "unpack": Target(_unpack, _some(_offloads()), 4),
        "tensor": Target(_tensor_of, _some(_frames()), 6),
        "state": Target(_state, _some(_states()), 6),
        "manifest": Target(_manifest_of, _some(_manifests()), 4),
        "profile": Target(lambda data: _ignore(parse_profile(data)), _some(profile), 1),
        "names": Target(_names, _some([b"sluice/pi-1/sensor/a", b"pi-1", b"sluice/pi-1/offload", "ü".encode()]), 1),
        "slices": Target(_slices, _some([b"digits:0:0:358", b"[a.b_c:12:3:999999999999999999]"]), 1),
        "heard": Target(
            _heard, _some([b'{"from": [["t", 0, 7]], "past": 9}\n{"used": 2}\n{"used": 3, "over": true}\n']), 1
        ),
        "sensor": Target(_reading, _some(_choosing(READINGS, len(SENSORS))), 5),
        "stream": Target(_stream, _some(_stream_records()), 3),
    }
    if bundle is not None:
        golden = Golden(bundle)
        made["golden"] = Target(golden.feed, _some(golden.seeds), 1)
    return made


def _ignore(_value: object) -> None:
    """What was decoded is of no further interest."""
