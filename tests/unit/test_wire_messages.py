"""What is encoded comes back the same; what later code relies on is checked when it arrives."""

import math
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.wire import avro
from sluice.wire.errors import PermanentError, UnknownSchemaError
from sluice.wire.messages import (
    MAX_ID,
    MAX_TENSORS,
    REASONS,
    STATUSES,
    Belief,
    Offload,
    Outcome,
    Prediction,
    Tensor,
    decode,
    decode_all,
    encode,
    heads,
    sample_of,
)
from sluice.wire.names import TIERS
from tests.unit.wire_support import DIGEST, EPOCH, offload, patient, prediction

names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
counts = st.integers(0, 2**63 - 1)
times = st.integers(-(2**63), 2**63 - 1)
small = st.integers(0, 2**31 - 1)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=MAX_ID)
shares = st.floats(0, 1, width=32)
sample: dict[str, Any] = {
    "device_id": names,
    "epoch": st.binary(min_size=8, max_size=8).map(bytes.hex),
    "seq": counts,
    "source_id": st.none() | text,
    "model": names,
    "bundle": st.binary(min_size=32, max_size=32).map(bytes.hex),
    "operating_point": names,
    "tier": st.sampled_from(TIERS),
    "captured_at": times,
    "compute_us": st.dictionaries(st.sampled_from(TIERS), counts),
    "bytes_sent": counts,
    "trace": st.none() | text,
}
tensors = st.builds(
    Tensor,
    name=text,
    dtype=text,
    shape=st.lists(st.integers(1, 2**31 - 1), max_size=8).map(tuple),
    scale=st.floats(width=32, allow_nan=False, allow_infinity=False),
    zero_point=st.integers(-(2**31), 2**31 - 1),
    codec=text,
    data=st.binary(max_size=50),
)
beliefs = st.builds(Belief, exit=small, label=small, confidence=shares)
offloads = st.builds(
    Offload,
    **sample,
    next_segment=small,
    tensors=st.lists(tensors, max_size=3).map(tuple),
    beliefs=st.lists(beliefs, max_size=3).map(tuple),
    ttl_ms=times,
)
predictions = st.builds(
    Prediction,
    **sample,
    exit=small,
    label=small,
    confidence=shares,
    outputs=st.lists(st.floats(width=32), max_size=5).map(lambda values: struct.pack(f"<{len(values)}f", *values)),
    status=st.sampled_from(STATUSES),
    reason=st.sampled_from(REASONS),
    produced_at=times,
)


@pytest.mark.parametrize("outcome", [offload(), prediction()])
def test_the_examples_come_back_the_same(outcome: Outcome) -> None:
    assert decode(encode(outcome)) == outcome
    assert sample_of(outcome) == ("pi-1", EPOCH, 7)


@patient
@given(offloads | predictions)
def test_whatever_is_valid_comes_back_the_same(outcome: Outcome) -> None:
    assert decode(encode(outcome)) == outcome


@patient
@given(st.lists(predictions, min_size=1, max_size=4))
def test_several_predictions_share_a_payload(several: list[Prediction]) -> None:
    assert decode_all(b"".join(map(encode, several))) == several


def test_where_one_is_expected_two_are_refused() -> None:
    with pytest.raises(PermanentError, match="2 records where one is expected"):
        decode(encode(prediction()) + encode(prediction()))


def test_one_broken_prediction_spoils_its_payload() -> None:
    with pytest.raises(PermanentError, match="seq is negative"):
        decode_all(encode(prediction()) + encode(prediction(seq=-1)))


def test_a_payload_over_the_limit_is_refused() -> None:
    payload = encode(offload())
    assert decode(payload, len(payload)) == offload()
    with pytest.raises(PermanentError, match="over the limit"):
        decode(payload, len(payload) - 1)


OF_BOTH: list[tuple[dict[str, Any], str]] = [
    ({"device_id": "Pi"}, "device name 'Pi'"),
    ({"device_id": "a/b"}, "device name"),
    ({"device_id": ""}, "device name"),
    ({"model": "a" * 64}, "model name"),
    ({"model": "gate\n"}, "model name"),
    ({"operating_point": "-"}, "operating point name"),
    ({"seq": -1}, "seq is negative"),
    ({"source_id": "x" * (MAX_ID + 1)}, "source_id is too long"),
    ({"trace": "x" * (MAX_ID + 1)}, "trace is too long"),
    ({"tier": "moon"}, "tier 'moon' is not one of edge, fog, cloud"),
    ({"compute_us": {"moon": 1}}, "compute_us names an unknown tier"),
]
OF_PREDICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"exit": -1}, "exit or label is negative"),
    ({"label": -2}, "exit or label is negative"),
    ({"confidence": -0.1}, "confidence not in 0..1"),
    ({"confidence": 1.1}, "confidence not in 0..1"),
    ({"confidence": float("nan")}, "confidence not in 0..1"),
    ({"confidence": float("inf")}, "confidence not in 0..1"),
    ({"status": "perhaps"}, "status 'perhaps' is unknown"),
    ({"reason": "because"}, "reason 'because' is unknown"),
    ({"outputs": bytes(7)}, "outputs are not float32"),
]
TENSOR = offload().tensors[0]
OF_OFFLOADS: list[tuple[dict[str, Any], str]] = [
    ({"next_segment": -1}, "next_segment is negative"),
    ({"tensors": (TENSOR,) * (MAX_TENSORS + 1)}, "more than 64 tensors"),
    ({"beliefs": (Belief(0, 0, 0.5),) * (MAX_TENSORS + 1)}, "more than 64 beliefs"),
    ({"beliefs": (Belief(0, -1, 0.5),)}, "exit or label is negative"),
    ({"beliefs": (Belief(-1, 0, 0.5),)}, "exit or label is negative"),
    ({"beliefs": (Belief(0, 0, 1.5),)}, "confidence not in 0..1"),
    ({"tensors": (Tensor("h", "int8", (1,) * 9, 0, 0, "raw", b"x"),)}, "tensor rank over 8"),
    ({"tensors": (Tensor("h", "int8", (0,), 0, 0, "raw", b""),)}, "tensor dimension is not positive"),
    ({"tensors": (Tensor("h" * 257, "int8", (1,), 0, 0, "raw", b"x"),)}, "a tensor's name is too long"),
    ({"tensors": (Tensor("h", "int8", (1,), math.nan, 0, "raw", b"x"),)}, "a tensor's scale is not finite"),
    ({"tensors": (Tensor("h", "int8", (4, -1), 0, 0, "raw", b""),)}, "tensor dimension is not positive"),
]


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [(offload(**changes), reason) for changes, reason in OF_BOTH + OF_OFFLOADS]
    + [(prediction(**changes), reason) for changes, reason in OF_BOTH + OF_PREDICTIONS],
)
def test_every_field_is_checked(outcome: Outcome, reason: str) -> None:
    with pytest.raises(PermanentError, match=reason):
        heads(encode(outcome))
    with pytest.raises(PermanentError, match=reason) as refused:
        decode(encode(outcome))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 200


def test_the_largest_ids_and_counts_are_taken() -> None:
    most = offload(
        source_id="x" * MAX_ID,
        trace="x" * MAX_ID,
        tensors=(TENSOR,) * MAX_TENSORS,
        beliefs=(Belief(0, 0, 1.0),) * MAX_TENSORS,
        device_id="a" * 63,
    )
    assert decode(encode(most)) == most


def test_a_record_that_is_no_outcome_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    record = avro.decode_all(encode(prediction()), 10_000)[0][1]
    monkeypatch.setattr(avro, "decode_parts", lambda *_: [("weather", record, b"any")])
    with pytest.raises(PermanentError, match="a weather record is not an outcome"):
        decode_all(b"any")


def test_heads_are_those_of_what_is_decoded_and_each_has_its_own_bytes() -> None:
    sent: list[Outcome] = [prediction(seq=3), offload(seq=4), prediction(device_id="another")]
    payload = b"".join(map(encode, sent))
    found = heads(payload)
    assert [decode(head.value) for head in found] == sent
    assert [(h.message, h.device_id, h.epoch, h.seq, h.model, h.tier) for h in found] == [
        (type(o).__name__.lower(), o.device_id, o.epoch, o.seq, o.model, o.tier) for o in sent
    ]


@patient
@given(st.data())
def test_heads_are_as_strict_as_decoding(data: st.DataObject) -> None:
    """A payload with a byte changed, or cut: both take it, or both refuse it for the same kind of reason."""
    payload = bytearray(encode(offload()) + encode(prediction()))
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(payload[: data.draw(st.integers(1, len(payload)))])

    def verdict(read: Callable[[bytes], list[Any]]) -> list[int] | str:
        try:
            return [found.seq for found in read(damaged)]
        except (PermanentError, UnknownSchemaError) as error:
            return type(error).__name__

    assert verdict(heads) == verdict(decode_all)


def test_epoch_and_bundle_are_hex_for_people_and_bytes_on_the_wire() -> None:
    payload = encode(offload())
    assert bytes.fromhex(EPOCH) in payload and bytes.fromhex(DIGEST) in payload
    assert EPOCH.encode() not in payload and DIGEST.encode() not in payload
