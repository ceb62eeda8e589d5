"""What stands between a device and its control plane (a login page, a proxy) is waited out; what the control plane
itself says is believed."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from sluice.doors.http import HttpDoor
from sluice.wire import bundle as bundles
from sluice.wire.errors import PermanentError, TemporaryError
from tests.brokers.certificate import self_signed
from tests.unit.wire_support import manifest

LOGIN = b"<html><title>Log in to Airport Wifi</title></html>" * 100
MANIFEST = manifest().model_dump_json().encode()
DIGEST = bundles.sha256(MANIFEST)


class Server(ThreadingHTTPServer):
    """Answers with `status` and `content`, or as `pages` says for a path that ends so."""

    status, content = 200, LOGIN

    def __init__(self) -> None:
        self.pages: dict[str, bytes] = {}
        super().__init__(("127.0.0.1", 0), Answer)


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        found = next((page for end, page in self.server.pages.items() if self.path.endswith(end)), None)
        content = self.server.content if found is None else found
        self.send_response(self.server.status if found is None else 200)
        self.send_header("Location", "http://login.example/")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def door(server: Server) -> Iterator[HttpDoor]:
    door = HttpDoor(f"http://127.0.0.1:{server.server_port}", None)
    yield door
    door.close()


def fetch(door: HttpDoor, folder: Path) -> None:
    door.fetch_bundle(DIGEST, folder, None, lambda _manifest: range(1))


@pytest.mark.parametrize("status", [301, 302, 307, 401, 403, 407, 408, 425, 429, 500, 503, 511])
def test_a_bundle_is_not_refused_for_what_says_nothing_of_it(
    server: Server, door: HttpDoor, tmp_path: Path, status: int
) -> None:
    server.status = status
    with pytest.raises(TemporaryError, match=rf"control plane at http://127\.0\.0\.1.*{status}"):
        fetch(door, tmp_path)


@pytest.mark.parametrize("status", [400, 404, 410, 422])
def test_what_the_control_plane_refuses_is_refused(server: Server, door: HttpDoor, tmp_path: Path, status: int) -> None:
    server.status, server.content = status, b'{"title": "No", "detail": "no such bundle"}'
    with pytest.raises(PermanentError, match=rf"control plane: {status} no such bundle"):
        fetch(door, tmp_path)


def test_a_login_page_is_taken_for_no_bundle(server: Server, door: HttpDoor, tmp_path: Path) -> None:
    """Whichever of the requests gets it."""
    with pytest.raises(TemporaryError, match="something else than the manifest"):
        fetch(door, tmp_path)
    server.pages["/manifest"] = MANIFEST
    with pytest.raises(TemporaryError, match="something else than the signature"):
        fetch(door, tmp_path)
    server.pages["/signature"] = b"signature"
    for size in (1, 4000):
        server.content = LOGIN[:1] * size
        with pytest.raises(TemporaryError):
            fetch(door, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".part"]


def test_a_login_page_answers_no_call(server: Server, door: HttpDoor) -> None:
    server.status = 302
    with pytest.raises(TemporaryError, match="302"):
        door.call("GET", "/v1/devices/d")


def test_a_page_in_place_of_json_is_no_control_plane(server: Server, door: HttpDoor) -> None:
    server.content = LOGIN
    with pytest.raises(TemporaryError, match=r"is no control plane: /v1/devices/d is not JSON"):
        door.call("GET", "/v1/devices/d")


@pytest.mark.parametrize(("url", "token"), [("http://cloud:80a", None), ("http://127.0.0.1:9", "t\u00f6ken")])
def test_an_address_or_a_token_that_cannot_be_is_refused(url: str, token: str | None) -> None:
    with pytest.raises(PermanentError, match="cannot be used"):
        HttpDoor(url, token)


def test_a_control_plane_of_an_authority_of_ones_own(server: Server, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.content = b'{"device_id": "d"}'
    url = f"https://127.0.0.1:{server.server_port}"
    with closing(HttpDoor(url, None, str(certificate))) as knows:
        assert knows.call("GET", "/v1/devices/d") == {"device_id": "d"}
    with closing(HttpDoor(url, None)) as stranger, pytest.raises(TemporaryError, match="CERTIFICATE_VERIFY_FAILED"):
        stranger.call("GET", "/v1/devices/d")


def test_a_certificate_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    with pytest.raises(PermanentError, match=f"cloud_ca {file}: No such file"):
        HttpDoor("https://cloud.example", None, str(file))
    file.write_text("a diary")
    with pytest.raises(PermanentError, match=f"cloud_ca {file}: .*(?i:certificate)"):
        HttpDoor("https://cloud.example", None, str(file))


def test_two_processes_that_share_a_folder_fetch_a_blob_one_at_a_time(
    server: Server, door: HttpDoor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both at once would write into one file."""
    blob = bundles.write_blob(tmp_path / "elsewhere", bytes(range(256)) * 4000)
    content = (tmp_path / "elsewhere" / blob.sha256).read_bytes()
    server.pages |= {"/manifest": b"a manifest", "/signature": b"signature", blob.sha256: content}
    digest = bundles.sha256(b"a manifest")
    monkeypatch.setattr("sluice.doors.http.check_manifest", lambda *_: SimpleNamespace(blobs=lambda _: [blob]))
    other = HttpDoor(door.url, None)
    tried: list[str] = []

    def look() -> bool:
        """In the middle of a download another process begins its own."""
        if not tried:
            with pytest.raises(TemporaryError) as waits:
                other.fetch_bundle(digest, tmp_path / "shared", None, lambda _: range(1))
            tried.append(str(waits.value))
        return False

    door.fetch_bundle(digest, tmp_path / "shared", None, lambda _: range(1), give_up=look)
    assert "another process is fetching" in tried[0]
    assert (tmp_path / "shared" / bundles.BLOBS / blob.sha256).read_bytes() == content
    other.fetch_bundle(digest, tmp_path / "shared", None, lambda _: range(1))
    other.close()
