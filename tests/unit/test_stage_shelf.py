"""The shelf answers at once, whatever a bundle is waiting for; one that cannot be had keeps no other waiting."""

import threading
from pathlib import Path

import pytest

from sluice.doors.http import HttpDoor
from sluice.stage.shelf import MOST_HELD, Shelf
from sluice.stage.step import Stage
from sluice.wire.bundle import MANIFEST, sha256, write_atomically
from sluice.wire.errors import PermanentError, TemporaryError
from tests.unit.wire_support import manifest


class Door(HttpDoor):
    """A control plane that is away when asked for `away`, and does not know any other bundle."""

    away = "a" * 64
    unknown = "b" * 64

    def get_bytes(self, path: str, limit: int) -> bytes:
        del limit
        if self.away in path:
            raise TemporaryError("control plane: 503")
        raise PermanentError("control plane: 404 no such bundle")


def make(folder: Path) -> Shelf:
    return Shelf("fog", Door("http://127.0.0.1:9", None), folder, [])


def wait_for(shelf: Shelf, digest: str) -> None:
    tick = threading.Event()
    for _ in range(3000):
        if digest in shelf.arrived():
            return
        tick.wait(0.01)
    raise AssertionError("nothing arrived within 30 s")


def test_a_bundle_that_cannot_be_had_now_does_not_keep_another_waiting(tmp_path: Path) -> None:
    shelf = make(tmp_path)
    try:
        assert shelf.get(Door.away) is None and shelf.get(Door.unknown) is None
        wait_for(shelf, Door.unknown)
        with pytest.raises(PermanentError, match="404 no such bundle"):
            shelf.get(Door.unknown)
        assert shelf.get(Door.away) is None
    finally:
        shelf.close()


def test_it_holds_the_bundles_that_were_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has to go comes back from the folder; the segments themselves are another test's matter."""
    monkeypatch.setattr("sluice.stage.shelf.load_segments", lambda *_: [])
    monkeypatch.setattr("sluice.wire.bundle.read_blob", lambda *_: b"")
    digests = []
    for version in range(1, MOST_HELD + 2):
        data = manifest().model_copy(update={"version": version}).model_dump_json().encode()
        digests.append(sha256(data))
        write_atomically(tmp_path / digests[-1] / MANIFEST, data)
    shelf = make(tmp_path)
    try:
        for digest in digests[:-1]:
            assert shelf.get(digest) is None
            wait_for(shelf, digest)
        assert isinstance(shelf.get(digests[0]), Stage), "used again, so it is not the next to go"
        assert shelf.get(digests[-1]) is None
        wait_for(shelf, digests[-1])
        held = [digest for digest in digests if isinstance(shelf.get(digest), Stage)]
        assert held == [digests[0], *digests[2:]]
        wait_for(shelf, digests[1])
        stage = shelf.get(digests[1])
        assert stage is not None and (stage.digest, stage.manifest.version) == (digests[1], 2)
    finally:
        shelf.close()


def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    """Stand-in for a disk that takes nothing: a file where the folder should be."""

    class There(HttpDoor):
        def get_bytes(self, path: str, limit: int) -> bytes:
            del limit
            return data if path.endswith("manifest") else b"signature"

    data = manifest().model_dump_json().encode()
    (tmp_path / "full").write_bytes(b"")
    with pytest.raises(TemporaryError, match=r"full.* cannot be written"):
        There("http://127.0.0.1:9", None).fetch_bundle(sha256(data), tmp_path / "full", None, lambda _: range(0))
