"""The door to the control plane over HTTP (httpx): JSON calls, and bundles fetched with every check.

A problem document (RFC 9457) becomes a `PermanentError` with its detail; no answer, 429 and 5xx a `TemporaryError`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx

from sluice.wire.bundle import (
    BLOBS,
    MANIFEST,
    SIGNATURE,
    check_blob,
    check_manifest,
    read_blob,
    write_atomically,
)
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.manifest import MAX_MANIFEST_BYTES, Blob, Manifest

MAX_BLOB_BYTES = 2_000_000_000


class HttpDoor:
    """A client of the control plane at `url` with a bearer `token`. Thread-safe, as httpx's client is."""

    def __init__(self, url: str, token: str | None, timeout_s: float = 30.0) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=timeout_s, trust_env=False)
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
        return answer.json() if answer.content else None

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
                if answer.status_code in (401, 403):  # a token can be mended; what waits for this must not be lost
                    raise TemporaryError(f"control plane at {self.url} refuses our token ({answer.status_code})", 5.0)
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
    ) -> Manifest:
        """Fetch into `folder` the manifest `digest` and the blobs of the segments that `wanted(manifest)` names.

        Digest and signature are checked before the manifest is parsed, each blob before it is stored; a blob that is
        there already and whole, or in one of the bundles `elsewhere`, is not fetched again. Raises `PermanentError`
        or `TemporaryError`, a full disk being one; what was fetched stays.
        """
        data = self.get_bytes(f"/v1/bundles/{digest}/manifest", MAX_MANIFEST_BYTES)
        signature = self.get_bytes(f"/v1/bundles/{digest}/signature", 1000).decode("ascii", "replace").strip()
        manifest = check_manifest(data, signature, digest, public_keys)
        for blob in manifest.blobs(wanted(manifest)):
            content = _on_hand(blob, [folder, *elsewhere])
            if content is None:
                content = self.get_bytes(f"/v1/blobs/{blob.sha256}", min(blob.size, MAX_BLOB_BYTES))
                check_blob(content, blob.sha256)
            _keep(folder / BLOBS / blob.sha256, content)
        _keep(folder / SIGNATURE, signature.encode())
        _keep(folder / MANIFEST, data)
        return manifest

    def _away(self, error: httpx.HTTPError) -> TemporaryError:
        return TemporaryError(f"control plane at {self.url}: {type(error).__name__} {error}".rstrip())

    def _check(self, answer: httpx.Response, content: bytes) -> None:
        if answer.is_success:
            return
        try:
            problem = json.loads(content)
            detail = str(problem.get("detail") or problem.get("title"))
        except (ValueError, AttributeError):
            detail = answer.reason_phrase
        message = f"control plane: {answer.status_code} {detail}"
        if answer.status_code >= 500 or answer.status_code == 429:
            raise TemporaryError(message)
        raise PermanentError(message)


def _on_hand(blob: Blob, folders: Iterable[Path]) -> bytes | None:
    """The content of `blob` if one of the bundles in `folders` has it whole."""
    for folder in folders:
        try:
            return read_blob(folder / BLOBS, blob)
        except PermanentError:
            continue
    return None


def _keep(file: Path, content: bytes) -> None:
    """Write it, when there is room."""
    try:
        write_atomically(file, content)
    except OSError as error:
        raise TemporaryError(f"{file} cannot be written: {error.strerror}") from error
