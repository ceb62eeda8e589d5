"""What a device refuses: the running bundle goes on running, and `reported` says why."""

import io
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sluice.dev import demo as acts
from sluice.doors.http import HttpDoor
from sluice.doors.kafka import KafkaWriter
from sluice.wire import bundle as bundles
from sluice.wire import names, signing, state
from sluice.wire.manifest import Manifest
from tests.e2e.conftest import Whole

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(300)]

WAIT_S = 30.0


def reported(whole: Whole, device: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """What the device reports once `wanted` holds."""
    deadline = time.monotonic() + WAIT_S
    with whole.system.client() as client:
        while True:
            said: dict[str, Any] = client.device(device)["reported"] or {}
            if wanted(said):
                return said
            assert time.monotonic() < deadline, said
            time.sleep(0.1)


def another_bundle(whole: Whole, folder: Path, change: Callable[[Manifest, Path], Manifest]) -> str:
    """The running bundle, changed and brought to the control plane; returns its digest."""
    door = HttpDoor(whole.system.url, whole.system.token)
    manifest = door.fetch_bundle(whole.digest, folder, None, lambda m: range(len(m.segments)))
    door.close()
    changed = change(manifest.model_copy(update={"version": secrets.randbelow(10**6) + 2}), folder / bundles.BLOBS)
    (folder / bundles.MANIFEST).write_bytes(changed.model_dump_json().encode())
    with whole.system.client() as client:
        digest: str = client.upload_bundle(folder)["digest"]
    return digest


def desire(whole: Whole, device: str, envelope: bytes) -> None:
    KafkaWriter("test", whole.system.brokers.kafka).write_all(names.DESIRED, [(device, envelope)], 10)


def runs_on(whole: Whole, said: dict[str, Any]) -> None:
    assert said["runs"][0]["bundle"] == whole.digest
    sensor = acts.infer(whole.system, whole.held, whole.console, samples=20)
    assert all(told.finals and told.finals[0].bundle == whole.digest for told in sensor.told)


def a_desire(whole: Whole, device: str, revision: int) -> state.Desired:
    run = state.Run(model=acts.MODEL, bundle=whole.digest, operating_point="no-exit")
    return state.Desired(device_id=device, revision=revision, runs=(run,))


def test_a_desired_state_that_someone_else_signed(whole: Whole, tmp_path: Path) -> None:
    device = whole.system.devices[0]
    stranger = signing.load_or_make_key(tmp_path / "stranger.pem")
    desire(whole, device, state.seal(stranger, a_desire(whole, device, 10**15)))
    said = reported(whole, device, lambda said: "none of the trusted keys" in (said.get("last_error") or ""))
    runs_on(whole, said)
    assert said["runs"][0]["operating_point"] == "default"


def test_an_older_revision_and_another_device_s(whole: Whole) -> None:
    device, other = whole.system.devices
    key = signing.load_or_make_key(whole.system.folder / "cloud" / "keys" / "signing.pem")
    desire(whole, device, state.seal(key, a_desire(whole, device, 1)))
    said = reported(whole, device, lambda said: "older than" in (said.get("last_error") or ""))
    runs_on(whole, said)
    desire(whole, device, state.seal(key, a_desire(whole, other, 10**15)))
    said = reported(whole, device, lambda said: f"for device '{other}'" in (said.get("last_error") or ""))
    runs_on(whole, said)


def test_a_bundle_whose_golden_samples_fail(whole: Whole, tmp_path: Path) -> None:
    def spoil(manifest: Manifest, blobs: Path) -> Manifest:
        first = manifest.segments[0]
        with np.load(blobs / first.golden.sha256) as arrays:
            samples = {name: arrays[name] for name in arrays.files}
        assert first.exit is not None
        samples[f"out.{first.exit.logits}"] = samples[f"out.{first.exit.logits}"] + np.float32(0.5)
        out = io.BytesIO()
        np.savez(out, **samples)
        golden = bundles.write_blob(blobs, out.getvalue())
        segments = (first.model_copy(update={"golden": golden}), *manifest.segments[1:])
        return manifest.model_copy(update={"segments": segments})

    refused(whole, another_bundle(whole, tmp_path, spoil), "fails its golden samples")


def test_a_blob_with_one_byte_flipped(whole: Whole, tmp_path: Path) -> None:
    """Flipped where it is stored, after the control plane has checked it; the device has no copy of its own."""

    def renew(manifest: Manifest, blobs: Path) -> Manifest:
        first = manifest.segments[0]
        with np.load(blobs / first.golden.sha256) as arrays:
            samples = {name: arrays[name][:3] for name in arrays.files}
        out = io.BytesIO()
        np.savez(out, **samples)
        golden = bundles.write_blob(blobs, out.getvalue())
        segments = (first.model_copy(update={"golden": golden}), *manifest.segments[1:])
        return manifest.model_copy(update={"segments": segments})

    digest = another_bundle(whole, tmp_path, renew)
    golden = bundles.open_bundle(tmp_path).manifest.segments[0].golden.sha256
    stored = next((whole.system.folder / "cloud").rglob(golden))
    content = bytearray(stored.read_bytes())
    content[len(content) // 2] ^= 1
    stored.write_bytes(bytes(content))
    refused(whole, digest, "damaged")


def refused(whole: Whole, digest: str, reason: str) -> None:
    device = whole.system.devices[0]
    with whole.system.client() as client:
        rollout = client.roll_out(digest, [device])
        said = reported(whole, device, lambda said: reason in (said.get("last_error") or ""))
        runs_on(whole, said)
        state_of = {d["device_id"]: d for d in client.wait_for_rollout(rollout["id"], WAIT_S)["devices"]}
        assert state_of[device]["state"] == "failed"
        assert reason in state_of[device]["last_error"]
        acts.roll_out(client, whole.digest, whole.system, whole.console)
