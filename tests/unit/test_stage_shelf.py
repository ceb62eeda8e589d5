"""The shelf answers at once, whatever a bundle is waiting for; one that cannot be had keeps no other waiting."""

import gc
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sluice.doors.http import HttpDoor, RefusedError
from sluice.stage.segment import RunningSegment
from sluice.stage.shelf import AGAIN_S, Shelf, tidy
from sluice.stage.step import Stage
from sluice.wire.bundle import MANIFEST, sha256, write_atomically
from sluice.wire.errors import PermanentError, TemporaryError, UnknownSchemaError
from sluice.wire.names import Tier
from tests.unit.wire_support import manifest

EDGE_ALONE = manifest().operating_points[0].model_copy(update={"placement": ("edge",) * 3})


class Door(HttpDoor):
    """A control plane that is away when asked for `away`, and does not know any other bundle."""

    away = "a" * 64
    unknown = "b" * 64

    def get_bytes(self, path: str, limit: int) -> bytes:
        del limit
        if self.away in path:
            raise TemporaryError("control plane: 503")
        raise RefusedError("control plane: 404 no such bundle")


def make(folder: Path, tier: Tier = "fog", **settings: Any) -> Shelf:
    return Shelf(tier, Door("http://127.0.0.1:9", None), folder, [], **settings)


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


def test_a_bundle_that_the_control_plane_did_not_have_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What says no is often put right: a backup that is brought back, a proxy. What is wrong with a bundle stays."""
    now = 1000.0
    monkeypatch.setattr("sluice.stage.shelf.time.monotonic", lambda: now)
    nothing_here = in_folder(tmp_path, operating_points=(EDGE_ALONE,))
    shelf = make(tmp_path)
    try:
        for digest in (Door.unknown, nothing_here):
            assert shelf.get(digest) is None
            wait_for(shelf, digest)
        now += AGAIN_S - 1
        with pytest.raises(PermanentError, match="404 no such bundle"):
            shelf.get(Door.unknown)
        now += 1
        assert shelf.get(Door.unknown) is None, "it is asked for"
        with pytest.raises(PermanentError, match="places nothing on tier fog"):
            shelf.get(nothing_here)
        wait_for(shelf, Door.unknown)
        with pytest.raises(PermanentError, match="404 no such bundle"):
            shelf.get(Door.unknown)
    finally:
        shelf.close()


def in_folder(folder: Path, **changes: Any) -> str:
    """The digest of a bundle that is in the folder, as far as its manifest goes."""
    data = manifest().model_copy(update=changes).model_dump_json().encode()
    write_atomically(folder / sha256(data) / MANIFEST, data)
    return sha256(data)


@pytest.fixture
def no_blobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The segments themselves are another test's matter."""
    monkeypatch.setattr("sluice.stage.shelf.load_segments", lambda *_: [])
    monkeypatch.setattr("sluice.wire.bundle.read_blob", lambda *_: b"")


@pytest.mark.usefixtures("no_blobs")
def test_it_holds_the_bundles_that_were_used_last(tmp_path: Path) -> None:
    """What has to go comes back from the folder."""
    digests = [in_folder(tmp_path, version=version) for version in range(1, 6)]
    shelf = make(tmp_path, most=4)
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
    with pytest.raises(TemporaryError, match=r"cannot be kept in .*full"):
        There("http://127.0.0.1:9", None).fetch_bundle(sha256(data), tmp_path / "full", None, lambda _: range(0))


@pytest.mark.tensorflow
def test_what_is_idle_gives_its_memory_back_and_is_there_again_when_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.unit.bundle_support import make_bundle

    now = 1000.0
    monkeypatch.setattr("sluice.stage.shelf.time.monotonic", lambda: now)
    bundle = make_bundle(tmp_path / "new")
    (tmp_path / "new").rename(tmp_path / bundle.digest)

    def in_memory() -> int:
        gc.collect()
        return sum(isinstance(one, RunningSegment) for one in gc.get_objects())

    before = in_memory()
    shelf = make(tmp_path, "cloud", idle_s=100.0)
    try:
        for _ in range(2):
            assert shelf.get(bundle.digest) is None
            wait_for(shelf, bundle.digest)
            assert isinstance(shelf.get(bundle.digest), Stage)
            now += 99
            shelf.arrived()
            assert isinstance(shelf.get(bundle.digest), Stage), "it was used in between"
            assert in_memory() == before + 1
            now += 126  # a quarter more until it is looked at
            shelf.arrived()
            assert in_memory() == before
    finally:
        shelf.close()


@pytest.mark.usefixtures("no_blobs")
def test_the_folder_keeps_what_is_used_and_what_was_used_lately(tmp_path: Path) -> None:
    """Whichever of the processes that share it uses it."""
    keep_s = 1000.0
    old, held, fresh, loaded, broken = (in_folder(tmp_path, version=version) for version in range(1, 6))
    other = tmp_path / "not-a-bundle"
    other.mkdir()
    (tmp_path / broken).rename(tmp_path / f"{broken}.gone")  # killed while it was removed
    for name in (old, held, loaded, other.name):
        os.utime(tmp_path / name, (time.time() - 2 * keep_s,) * 2)
    shelf = make(tmp_path, keep_s=3 * keep_s)  # another process
    try:
        assert shelf.get(loaded) is None
        wait_for(shelf, loaded)
        tidy(tmp_path, frozenset({held}), keep_s)
        assert {one.name for one in tmp_path.iterdir()} == {held, fresh, loaded, other.name}
        tidy(tmp_path, frozenset(), keep_s)
        assert (tmp_path / held).exists(), "it was in use just now"
    finally:
        shelf.close()


@pytest.mark.usefixtures("no_blobs")
def test_it_tidies_its_folder_by_itself(tmp_path: Path) -> None:
    old, new = in_folder(tmp_path, version=1), in_folder(tmp_path, version=2)
    os.utime(tmp_path / old, (time.time() - 100,) * 2)
    shelf = make(tmp_path, keep_s=50.0)
    try:
        assert shelf.arrived() == set()
        assert shelf.get(new) is None
        wait_for(shelf, new)  # the thread does one thing after the other
        assert not (tmp_path / old).exists()
    finally:
        shelf.close()


@pytest.mark.usefixtures("no_blobs")
def test_a_codec_that_is_newer_than_the_stage_is_held_and_not_refused(tmp_path: Path) -> None:
    known = manifest().operating_points
    newer = tuple(point.model_copy(update={"codec": "of-tomorrow"}) for point in known)
    digest = in_folder(tmp_path, operating_points=newer)
    shelf = make(tmp_path)
    try:
        assert shelf.get(digest) is None
        wait_for(shelf, digest)
        with pytest.raises(UnknownSchemaError, match=r"codec 'of-tomorrow'.*bring this stage up to date"):
            shelf.get(digest)
    finally:
        shelf.close()


def test_stages_that_share_a_folder_tidy_it_at_once(tmp_path: Path) -> None:
    """Each of them finds that the other one was faster, here or there."""
    for turn in range(40):
        for i in range(5):
            blobs = tmp_path / sha256(b"%d %d" % (turn, i)) / "blobs"
            blobs.mkdir(parents=True)
            for name in "abcde":
                (blobs / name).write_bytes(b"x")
            os.utime(blobs.parent, (0, 0))
        begin = threading.Barrier(2)

        def go(begin: threading.Barrier = begin) -> None:
            begin.wait()
            tidy(tmp_path, frozenset(), 10.0)

        with ThreadPoolExecutor(2) as both:
            for done in [both.submit(go), both.submit(go)]:
                done.result()
        tidy(tmp_path, frozenset(), 10.0)
        assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_blobs")
def test_a_folder_that_cannot_be_tidied_ends_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-in for one that is read-only, which is nothing to root: a disk that refuses."""

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("not yours")

    digest = in_folder(tmp_path)
    monkeypatch.setattr("sluice.stage.shelf.os.utime", refuse)
    monkeypatch.setattr("sluice.stage.shelf.shutil.rmtree", refuse)
    (tmp_path / f"{Door.away}.gone").mkdir()
    shelf = make(tmp_path)
    try:
        shelf.arrived()  # has it tidied
        assert shelf.get(digest) is None
        wait_for(shelf, digest)
        assert isinstance(shelf.get(digest), Stage)
    finally:
        shelf.close()


@pytest.mark.usefixtures("no_blobs")
def test_a_bundle_that_another_process_removes_in_the_middle_is_fetched_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = in_folder(tmp_path)
    asked = threading.Event()

    def load(folder: Path, *_: Any) -> None:
        shutil.rmtree(folder)
        raise PermanentError("blob cannot be read: No such file or directory")

    def ask(*_: Any) -> None:
        asked.set()
        raise TemporaryError("control plane: 503")

    monkeypatch.setattr("sluice.stage.shelf.load_segments", load)
    monkeypatch.setattr(Door, "get_bytes", ask)
    shelf = make(tmp_path)
    try:
        assert shelf.get(digest) is None
        assert asked.wait(30)
        assert not shelf.arrived() and shelf.get(digest) is None
    finally:
        shelf.close()
