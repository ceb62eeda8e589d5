"""The control plane as a device sees it, for tests of the device alone."""

import functools
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from sluice.wire import bundle as bundles


class ControlPlane:
    """The control plane as a device sees it: bundles and blobs over HTTP, and who asked for what."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        handler = functools.partial(_Handler, asked=self.asked, directory=str(folder))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def offer(self, folder: Path) -> None:
        """Lay out the bundle in `folder` as `/v1` does."""
        target = self.folder / "v1" / "bundles" / folder.name
        target.mkdir(parents=True)
        shutil.copyfile(folder / bundles.MANIFEST, target / "manifest")
        shutil.copyfile(folder / bundles.SIGNATURE, target / "signature")
        shutil.copytree(folder / bundles.BLOBS, self.folder / "v1" / "blobs", dirs_exist_ok=True)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: object, asked: list[str], directory: str) -> None:
        self._asked = asked
        super().__init__(*arguments, directory=directory)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        self._asked.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *arguments: object) -> None:
        pass
