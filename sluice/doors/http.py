"""The door to the control plane over HTTP (httpx): JSON calls, and bundles fetched with every check.

A blob is written to disk piece by piece, and a download that was cut off goes on where it was (RFC 9110, range
requests, `If-Range` with the blob's sha256 as its entity tag): over a thin link a bundle arrives at some time.

A problem document (RFC 9457) becomes a `RefusedError` with its detail. No answer is a `TemporaryError`, and so is
whatever says nothing of what was asked for: 429 and 5xx, a redirect, a proxy's own errors, a login page where a bundle
should be.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx

from sluice.wire.bundle import (
    BLOBS,
    MANIFEST,
    SIGNATURE,
    check_file,
    check_manifest,
    move_in,
    sha256,
    write_atomically,
)
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.manifest import MAX_MANIFEST_BYTES, Blob, Manifest

MAX_BLOB_BYTES = 2_000_000_000
PIECE_BYTES = 65_536
"""What is held of a download in memory."""
SIGNATURE_BYTES = 1000
"""No signature is longer."""
PASSING = frozenset({407, 408, 425, 429})
"""Among 4xx: what speaks of the way to the control plane, or of the moment."""


class RefusedError(PermanentError):
    """The control plane's own no. It may say yes tomorrow, as of a bundle that was put back."""


class HttpDoor:
    """A client of the control plane at `url` with a bearer `token`. Thread-safe, as httpx's client is.

    `ca`: a file of certificate authorities, one of which must have signed the control plane's certificate; None: those
    that browsers trust. Raises `PermanentError` when one of the three cannot be used.
    """

    def __init__(self, url: str, token: str | None, ca: str | None = None, timeout_s: float = 30.0) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            trusted = ssl.create_default_context(cafile=ca) if ca is not None else True
        except OSError as error:  # an SSLError is one, too
            raise PermanentError(f"cloud_ca {ca}: {error.strerror or error}") from error
        try:
            self._client = httpx.Client(
                base_url=url, headers=headers, timeout=timeout_s, trust_env=False, verify=trusted
            )
        except (httpx.InvalidURL, UnicodeError) as error:
            raise PermanentError(f"control plane at {url}: its address or our token cannot be used: {error}") from error
        self.url = url

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def call(self, method: str, path: str, body: object | None = None, **options: Any) -> Any:
        """One JSON call; `options` go to httpx (`params`, `files`, `timeout`). Returns the decoded answer."""
        if body is not None:
            options["json"] = body
        try:
            answer = self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise self._away(error) from error
        self._check(answer, answer.content)
        try:
            return answer.json() if answer.content else None
        except ValueError as error:
            raise TemporaryError(f"what answers at {self.url} is no control plane: {path} is not JSON") from error

    def get_bytes(self, path: str, limit: int) -> bytes:
        """The content at `path`; `PermanentError` if it is over `limit` bytes, `TemporaryError` for a wrong token."""
        parts, size = [], 0
        try:
            with self._client.stream("GET", path) as answer:
                for part in answer.iter_bytes():
                    parts.append(part)
                    if (size := size + len(part)) > limit:
                        raise PermanentError(f"{path} is over {limit} bytes")
                content = b"".join(parts)
                self._check_token(answer)
                self._check(answer, content)
        except httpx.HTTPError as error:
            raise self._away(error) from error
        return content

    def fetch_bundle(
        self,
        digest: str,
        folder: Path,
        public_keys: Iterable[str] | None,
        wanted: Callable[[Manifest], range | None],
        elsewhere: Iterable[Path] = (),
        give_up: Callable[[], bool] = lambda: False,
    ) -> Manifest:
        """Fetch into `folder` the manifest `digest` and the blobs of the segments that `wanted(manifest)` names.

        Digest and signature are checked before the manifest is parsed, each blob before it gets its name; a blob that
        is there already and whole, or in one of the bundles `elsewhere`, is not fetched again. Raises `PermanentError`
        or `TemporaryError` (also when `give_up()` says so in the middle, and for a disk that is full); what was
        fetched stays, half a blob as `<sha256>.part` (where there is room), and the next call goes on from there.
        """
        data = self.get_bytes(f"/v1/bundles/{digest}/manifest", MAX_MANIFEST_BYTES)
        if sha256(data) != digest:
            raise self._other(f"the manifest of bundle {digest[:12]}…")
        signed = self.get_bytes(f"/v1/bundles/{digest}/signature", MAX_MANIFEST_BYTES)
        if len(signed) > SIGNATURE_BYTES:
            raise self._other(f"the signature of bundle {digest[:12]}…")
        signature = signed.decode("ascii", "replace").strip()
        manifest = check_manifest(data, signature, digest, public_keys)
        others = list(elsewhere)
        try:
            (folder / BLOBS).mkdir(parents=True, exist_ok=True)
            for blob in manifest.blobs(wanted(manifest)):
                if not _on_hand(blob, folder, others):
                    self._fetch_blob(blob, folder / BLOBS, give_up)
            write_atomically(folder / SIGNATURE, signature.encode())
            write_atomically(folder / MANIFEST, data)
        except OSError as error:
            for part in (folder / BLOBS).glob("*.part"):  # others need the room meanwhile, the outbox above all
                part.unlink(missing_ok=True)
            reason = f"bundle {digest[:12]}… cannot be kept in {folder}: {error.strerror or error}"
            raise TemporaryError(reason, 5.0) from error
        return manifest

    def _fetch_blob(self, blob: Blob, folder: Path, give_up: Callable[[], bool]) -> None:
        """Fetch a blob into `folder`, from where the last attempt was cut off; one process at a time."""
        if blob.size > MAX_BLOB_BYTES:
            raise PermanentError(f"blob {blob.sha256[:12]}… of {blob.size} bytes is over {MAX_BLOB_BYTES}")
        part = folder / f"{blob.sha256}.part"
        with part.open("ab") as ours:
            try:
                fcntl.flock(ours, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise TemporaryError(f"another process is fetching blob {blob.sha256[:12]}…") from error
            begun = part.stat().st_size
            if begun > blob.size:
                begun = 0
            if begun < blob.size:
                begun = self._download(blob, part, begun, give_up)
            try:
                check_file(part, blob.sha256)
            except PermanentError as error:
                part.unlink()
                if begun:  # what was there before may be to blame, as after a power cut
                    raise TemporaryError(f"{error}; it is fetched anew", 0.0) from error
                raise
            move_in(part, folder / blob.sha256)

    def _download(self, blob: Blob, part: Path, begun: int, give_up: Callable[[], bool]) -> int:
        """The rest of a blob, from byte `begun` on; returns from where on it really came."""
        path, etag = f"/v1/blobs/{blob.sha256}", f'"{blob.sha256}"'
        headers = {"Accept-Encoding": "identity"}
        if begun:
            headers |= {"Range": f"bytes={begun}-", "If-Range": etag}
        try:
            with self._client.stream("GET", path, headers=headers) as answer:
                if not answer.is_success:
                    self._check_token(answer)
                    self._check(answer, answer.read())
                if answer.status_code != 206:
                    begun = 0
                elif not answer.headers.get("content-range", "").startswith(f"bytes {begun}-"):
                    raise TemporaryError(f"control plane at {self.url} sent another part of {path} than was asked for")
                size = begun
                with part.open("r+b" if begun else "wb") as file:
                    file.truncate(begun)
                    file.seek(begun)
                    for piece in answer.iter_raw(PIECE_BYTES):
                        if (size := size + len(piece)) > blob.size:
                            raise self._other(f"blob {blob.sha256[:12]}…")
                        file.write(piece)
                        if give_up():
                            raise TemporaryError(f"{path} is left for later", 0.0)
        except httpx.HTTPError as error:
            raise self._away(error) from error
        if size < blob.size:
            raise TemporaryError(f"control plane at {self.url}: {path} ended after {size} of {blob.size} bytes")
        return begun

    def _check_token(self, answer: httpx.Response) -> None:
        if answer.status_code in (401, 403):  # a token can be mended; what waits for this must not be lost
            raise TemporaryError(f"control plane at {self.url} refuses our token ({answer.status_code})", 5.0)

    def _away(self, error: httpx.HTTPError) -> TemporaryError:
        return TemporaryError(f"control plane at {self.url}: {type(error).__name__} {error}".rstrip())

    def _other(self, wanted: str) -> TemporaryError:
        """What is named by its content is that content: anything else came from someone on the way."""
        return TemporaryError(
            f"control plane at {self.url} sent something else than {wanted}: is a login page between?"
        )

    def _check(self, answer: httpx.Response, content: bytes) -> None:
        if answer.is_success:
            return
        try:
            problem = json.loads(content)
            detail = str(problem.get("detail") or problem.get("title"))
        except (ValueError, AttributeError):
            detail = answer.reason_phrase
        status = answer.status_code
        if 400 <= status < 500 and status not in PASSING:
            raise RefusedError(f"control plane: {status} {detail}")
        raise TemporaryError(f"control plane at {self.url}: {status} {detail}")


def _on_hand(blob: Blob, folder: Path, others: Iterable[Path]) -> bool:
    """Whether `blob` is in the bundle in `folder`, whole; it is copied there if one of the `others` has it."""
    own = folder / BLOBS / blob.sha256
    for source in (own, *(other / BLOBS / blob.sha256 for other in others)):
        try:
            check_file(source, blob.sha256)
        except PermanentError:
            continue
        if source != own:
            part = own.with_name(f"{blob.sha256}.part")
            shutil.copyfile(source, part)
            move_in(part, own)
        return True
    return False
