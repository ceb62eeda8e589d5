"""A bundle over a link that is cut again and again, from the real control plane: what was fetched stays."""

import hashlib
import json
import runpy
import secrets
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud.settings import CloudSettings
from sluice.doors.http import HttpDoor
from sluice.doors.kafka import KafkaCluster
from sluice.wire import bundle as bundles
from sluice.wire.errors import PermanentError, TemporaryError
from tests.integration.cloud_support import Running, bundle_files, running

SIZE = 3_000_000


class Cutter:
    """A TCP proxy that lets `budget` bytes of each connection's answers pass and then cuts it; None: all of them."""

    def __init__(self, port: int) -> None:
        self._to = port
        self.budget: int | None = None
        self.passed = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._to))
            threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        left = self.budget if answers else None
        try:
            while data := source.recv(16_384):
                if left is not None:
                    data, left = data[:left], left - len(data)
                target.sendall(data)
                self.passed += len(data) * answers
                if left is not None and left <= 0:
                    break
        except OSError:
            pass  # the other side has closed it
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed already
            end.close()


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Running]:
    settings = CloudSettings(data=tmp_path / "data", port=0, kafka=KafkaCluster(bootstrap="127.0.0.1:9"))
    with running(settings, tmp_path) as service:
        yield service


@pytest.fixture
def cutter(cloud: Running) -> Iterator[Cutter]:
    cutter = Cutter(int(cloud.url.rpartition(":")[2]))
    yield cutter
    cutter.close()


@pytest.fixture
def digest(cloud: Running, tmp_path: Path) -> str:
    """A bundle at the control plane whose first segment has `SIZE` bytes."""
    folder = tmp_path / "bundle"
    runpy.run_path(str(tmp_path / "programs" / "bundle_maker.py"))["make_bundle"](folder, "digits", 1)
    content = secrets.token_bytes(SIZE)
    blob = bundles.write_blob(folder / "blobs", content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["segments"][0]["file"] = blob.model_dump()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    answer = cloud.http.post("/v1/bundles", files=bundle_files(folder))
    assert answer.status_code == 201, answer.text
    found: str = answer.json()["digest"]
    return found


def fetch(cloud: Running, url: str, digest: str, folder: Path) -> None:
    """One attempt, as after a restart: nothing is remembered but what is in `folder`."""
    door = HttpDoor(url, cloud.http.headers["authorization"].removeprefix("Bearer "))
    try:
        door.fetch_bundle(digest, folder, None, lambda _manifest: range(1))
    finally:
        door.close()


def large(folder: Path) -> list[Path]:
    return [path for path in (folder / "blobs").iterdir() if path.stat().st_size > 10_000]


def whole(folder: Path, digest: str) -> None:
    bundle = bundles.open_bundle(folder, digest)
    for blob in bundle.manifest.blobs(range(1)):
        bundle.read(blob)
    assert not list(folder.glob("**/*.part"))


def test_a_download_goes_on_where_it_was_cut(cloud: Running, cutter: Cutter, digest: str, tmp_path: Path) -> None:
    folder, sizes = tmp_path / "fetched", [0]
    cutter.budget = 400_000
    for _ in range(50):
        try:
            fetch(cloud, cutter.url, digest, folder)
        except TemporaryError as error:
            assert "control plane at" in str(error)
            (part,) = large(folder)
            assert part.suffix == ".part"
            sizes.append(part.stat().st_size)
        else:
            break
    whole(folder, digest)
    assert len(sizes) > 5 and sizes == sorted(set(sizes)), "each attempt adds to what there is"
    assert cutter.passed < SIZE * 1.2


def test_what_a_power_cut_made_of_half_a_blob_does_no_harm(
    cloud: Running, cutter: Cutter, digest: str, tmp_path: Path
) -> None:
    folder = tmp_path / "fetched"
    cutter.budget = SIZE // 2
    with pytest.raises(TemporaryError):
        fetch(cloud, cutter.url, digest, folder)
    cutter.budget = None
    (part,) = large(folder)
    content = bytearray(part.read_bytes())
    content[-5000:] = bytes(5000)
    part.write_bytes(content)
    with pytest.raises(TemporaryError, match="fetched anew"):
        fetch(cloud, cutter.url, digest, folder)
    fetch(cloud, cutter.url, digest, folder)
    whole(folder, digest)


def test_a_part_that_is_longer_than_the_blob_is_not_gone_on_with(cloud: Running, digest: str, tmp_path: Path) -> None:
    folder = tmp_path / "fetched"
    first = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["segments"][0]["file"]["sha256"]
    (folder / "blobs").mkdir(parents=True)
    (folder / "blobs" / f"{first}.part").write_bytes(bytes(SIZE + 1))
    fetch(cloud, cloud.url, digest, folder)
    whole(folder, digest)


def test_a_blob_that_is_damaged_at_the_control_plane_is_refused(cloud: Running, digest: str, tmp_path: Path) -> None:
    first = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["segments"][0]["file"]["sha256"]
    stored = cloud.service.blobs.path(first)
    stored.write_bytes(bytes(SIZE))
    with pytest.raises(PermanentError, match="is damaged"):
        fetch(cloud, cloud.url, digest, tmp_path / "fetched")
    stored.write_bytes(bytes(SIZE - 1))
    with pytest.raises(TemporaryError, match=f"ended after {SIZE - 1} of {SIZE} bytes"):
        fetch(cloud, cloud.url, digest, tmp_path / "fetched")


def test_a_download_is_not_held_in_memory_and_can_be_left(cloud: Running, digest: str, tmp_path: Path) -> None:
    door = HttpDoor(cloud.url, cloud.http.headers["authorization"].removeprefix("Bearer "))
    left = tmp_path / "left"
    with pytest.raises(TemporaryError, match="left for later"):
        door.fetch_bundle(digest, left, None, lambda _manifest: range(1), give_up=lambda: True)
    (part,) = large(left)
    assert 0 < part.stat().st_size < SIZE
    folder = tmp_path / "fetched"
    tracemalloc.start()
    door.fetch_bundle(digest, folder, None, lambda _manifest: range(1), elsewhere=[left])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    door.close()
    assert peak < SIZE // 2, "the control plane, which is in this process, does not hold it either"
    whole(folder, digest)


def test_the_control_plane_serves_parts_by_the_digest(cloud: Running, digest: str, tmp_path: Path) -> None:
    first = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["segments"][0]["file"]["sha256"]
    path = f"/v1/blobs/{first}"
    whole_answer = cloud.http.get(path)
    assert whole_answer.headers["etag"] == f'"{first}"'
    assert hashlib.sha256(whole_answer.content).hexdigest() == first
    part = cloud.http.get(path, headers={"Range": "bytes=10-", "If-Range": f'"{first}"'})
    assert part.status_code == 206 and part.content == whole_answer.content[10:]
    other = cloud.http.get(path, headers={"Range": "bytes=10-", "If-Range": '"another"'})
    assert other.status_code == 200 and len(other.content) == SIZE
    assert cloud.service.blobs.has(digest)
