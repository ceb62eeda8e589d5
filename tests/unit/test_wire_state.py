"""State and control: sealed for one device by a trusted key; what is none is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from sluice.wire.errors import PermanentError
from sluice.wire.signing import load_or_make_key, public_text, sign
from sluice.wire.state import (
    MAX_STATE_BYTES,
    Announcement,
    Bounds,
    DeadLetter,
    Desired,
    DeviceStatus,
    Receipt,
    Reported,
    Run,
    Running,
    Signed,
    State,
    parse_state,
    seal,
    unseal,
)
from tests.unit.wire_support import DIGEST, EPOCH, patient

RUN = Run(model="gate", bundle=DIGEST, operating_point="default")
OTHER = RUN.model_copy(update={"model": "door", "bounds": Bounds(samples=5)})
DESIRED = Desired(device_id="pi-1", revision=3, runs=(RUN,))


@pytest.fixture
def key(tmp_path: Path) -> Ed25519PrivateKey:
    return load_or_make_key(tmp_path / "key.pem")


def test_what_was_sealed_for_a_device_is_unsealed_by_it(key: Ed25519PrivateKey) -> None:
    assert unseal(seal(key, DESIRED), "pi-1", ["A" * 43 + "=", public_text(key)]) == DESIRED


def test_it_is_for_that_device_alone(key: Ed25519PrivateKey) -> None:
    with pytest.raises(PermanentError, match="desired state is for device 'pi-1'"):
        unseal(seal(key, DESIRED), "pi-2", [public_text(key)])


def test_another_key_is_refused(key: Ed25519PrivateKey, tmp_path: Path) -> None:
    stranger = load_or_make_key(tmp_path / "stranger.pem")
    with pytest.raises(PermanentError, match="desired state: signature was made by none of the trusted keys"):
        unseal(seal(stranger, DESIRED), "pi-1", [public_text(key)])
    with pytest.raises(PermanentError, match="none of the trusted keys"):
        unseal(seal(key, DESIRED), "pi-1", [])


def test_a_desired_state_from_before_profiles_could_be_requested_is_read(key: Ed25519PrivateKey) -> None:
    payload = json.dumps({name: value for name, value in DESIRED.model_dump().items() if name != "profile"})
    envelope = Signed(payload=payload, signature=sign(key, payload.encode()))
    assert unseal(envelope.model_dump_json().encode(), "pi-1", [public_text(key)]) == DESIRED
    assert DESIRED.profile is None
    asked = DESIRED.model_copy(update={"profile": "profile-1"})
    assert unseal(seal(key, asked), "pi-1", [public_text(key)]).profile == "profile-1"


@pytest.mark.parametrize(
    "change",
    [
        {"revision": 4},
        {"device_id": "pi-2"},
        {"runs": ()},
        {"runs": (RUN.model_copy(update={"operating_point": "other"}),)},
        {"runs": (RUN.model_copy(update={"bundle": "cd" * 32}),)},
    ],
)
def test_a_tampered_payload_is_refused(key: Ed25519PrivateKey, change: dict[str, Any]) -> None:
    envelope = json.loads(seal(key, DESIRED))
    envelope["payload"] = DESIRED.model_copy(update=change).model_dump_json()
    with pytest.raises(PermanentError, match="none of the trusted keys"):
        unseal(json.dumps(envelope).encode(), "pi-1", [public_text(key)])


def test_a_space_more_in_the_payload_is_another_payload(key: Ed25519PrivateKey) -> None:
    envelope = json.loads(seal(key, DESIRED))
    envelope["payload"] += " "
    with pytest.raises(PermanentError, match="none of the trusted keys"):
        unseal(json.dumps(envelope).encode(), "pi-1", [public_text(key)])


def test_a_trusted_key_can_still_sign_nonsense(key: Ed25519PrivateKey) -> None:
    envelope = Signed(payload='{"revision": 1}', signature=sign(key, b'{"revision": 1}'))
    with pytest.raises(PermanentError, match="Desired: device_id: Field required"):
        unseal(envelope.model_dump_json().encode(), "pi-1", [public_text(key)])


def test_what_is_over_the_limit_is_not_parsed(key: Ed25519PrivateKey) -> None:
    padded = seal(key, DESIRED).ljust(MAX_STATE_BYTES)
    assert unseal(padded, "pi-1", [public_text(key)]) == DESIRED
    with pytest.raises(PermanentError, match=f"Signed of {MAX_STATE_BYTES + 1} bytes is over the limit"):
        unseal(padded + b" ", "pi-1", [public_text(key)])


def test_unknown_fields_are_a_newer_writers(key: Ed25519PrivateKey) -> None:
    payload = json.dumps(DESIRED.model_dump() | {"mood": "fine"})
    envelope = Signed(payload=payload, signature=sign(key, payload.encode()))
    assert unseal(envelope.model_dump_json().encode(), "pi-1", [public_text(key)]) == DESIRED


@patient
@given(
    st.binary(max_size=200) | st.text(max_size=200).map(lambda s: json.dumps({"payload": s, "signature": s}).encode())
)
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with pytest.raises(PermanentError) as refused:
        unseal(data, "pi-1", [public_text(Ed25519PrivateKey.from_private_bytes(bytes(32)))])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "state",
    [
        DESIRED,
        DESIRED.model_copy(
            update={"runs": (RUN, RUN.model_copy(update={"model": "door", "bounds": Bounds(samples=5)}))}
        ),
        Reported(
            device_id="pi-1",
            agent_version="1",
            runs=(
                Running(model="gate", bundle=DIGEST, operating_point="p", revision=3),
                Running(model="m", error="no"),
            ),
            counters={"dropped": 2},
            last_error="none",
        ),
        DeviceStatus(device_id="pi-1", status="offline"),
        Receipt(epoch=EPOCH, seqs=[1, 2, 3]),
        DeadLetter(reason="broken", origin="sluice/pi-1/sensor/x", data="AAAA"),
        Announcement(stream_id="digits", slices=["t:0:0:9"], format="raw", validation_rate=0.2, count=9),
    ],
)
def test_it_reads_what_it_writes(state: State) -> None:
    assert parse_state(type(state), state.model_dump_json()) == state


def a_run(**change: Any) -> dict[str, Any]:
    return DESIRED.model_dump() | {"runs": [RUN.model_dump() | change]}


def test_a_run_is_of_the_revision_that_brought_it() -> None:
    """One that stands in a later state is still of its own, so that a device does not try again what it gave up."""
    assert DESIRED.run_of("gate") == RUN.model_copy(update={"revision": 3})
    older = RUN.model_copy(update={"revision": 2})
    assert DESIRED.model_copy(update={"runs": (older,)}).run_of("gate") == older
    assert DESIRED.run_of("door") is None


WRONG: list[tuple[type[State], dict[str, Any], str]] = [
    (Desired, DESIRED.model_dump() | {"revision": 0}, "Desired: revision: "),
    (Desired, DESIRED.model_dump() | {"device_id": "../pi"}, "Desired: device_id: "),
    (Desired, a_run(bundle="ab"), "Desired: runs.0.bundle: "),
    (Desired, a_run(operating_point="+"), "Desired: runs.0.operating_point: "),
    (Desired, a_run(revision=4), "Desired: a run is of a later revision than 3"),
    (Desired, a_run(bounds={"samples": 0}), "Desired: runs.0.bounds.samples: "),
    (Desired, a_run(bounds={"errors_most": 1.5}), "Desired: runs.0.bounds.errors_most: "),
    (Desired, a_run(bounds={"exit_share_least": 0.5, "exit_share_most": 0.4}), "exit share from 0.5 to 0.4 leaves no"),
    (Desired, DESIRED.model_dump() | {"runs": [RUN.model_dump()] * 2}, "Desired: two runs are of one model"),
    (Desired, DESIRED.model_dump() | {"runs": [a_run(model=f"m{i}")["runs"][0] for i in range(17)]}, "Desired: runs: "),
    (Desired, DESIRED.model_dump() | {"profile": "a b"}, "Desired: profile: "),
    (Reported, {"device_id": "d", "agent_version": "1", "measured": {"bundle": DIGEST}}, "Reported: measured.runtime"),
    (DeviceStatus, {"device_id": "pi-1", "status": "asleep"}, "DeviceStatus: status: "),
    (Receipt, {"epoch": "xyz", "seqs": []}, "Receipt: epoch: "),
    (Receipt, {"epoch": EPOCH, "seqs": [0] * 10_001}, "Receipt: seqs: "),
    (Receipt, {"epoch": EPOCH, "seqs": ["first"]}, "Receipt: seqs.0: "),
    (Receipt, {"epoch": EPOCH, "seqs": [2**63]}, "Receipt: seqs.0: "),
    (Reported, {"device_id": "d", "agent_version": "1", "revision": 2**63}, "Reported: revision: "),
    (Reported, {"device_id": "d", "agent_version": "1", "counters": {"readings": 10**300}}, "counters.readings: "),
    (DeadLetter, {"reason": "x" * 1001, "origin": "", "data": ""}, "DeadLetter: reason: "),
    (Announcement, {"stream_id": "s", "slices": [], "format": "raw", "validation_rate": 0, "count": 0}, "slices: "),
    (Announcement, {"stream_id": "s", "slices": ["t"], "format": "raw", "validation_rate": 1.1, "count": 0}, "rate: "),
]


@pytest.mark.parametrize(("kind", "parts", "reason"), WRONG)
def test_what_is_none_is_refused_in_one_line(kind: type[State], parts: dict[str, Any], reason: str) -> None:
    with pytest.raises(PermanentError, match=reason) as refused:
        parse_state(kind, json.dumps(parts))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 60_000])
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(PermanentError, match="Receipt: "):
        parse_state(Receipt, data)
