"""A bundle as a folder: `manifest.json`, `manifest.sig` and `blobs/<sha256>`.

Nothing is read from a bundle before its digest, its signature (where keys are given) and the digest of the file in
question were checked.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sluice.wire import signing
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Blob, Manifest, parse_manifest

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
BLOBS = "blobs"


def sha256(data: bytes) -> str:
    """The sha256 of `data` as hex."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle whose manifest was checked."""

    folder: Path
    digest: str
    manifest: Manifest

    def read(self, blob: Blob) -> bytes:
        """The content of `blob`; `PermanentError` when it is missing or not what its name says."""
        return read_blob(self.folder / BLOBS, blob)


def check_manifest(
    data: bytes, signature: str | None, digest: str | None, public_keys: Iterable[str] | None
) -> Manifest:
    """The manifest in `data` after its digest and signature were checked, each where it is given.

    `public_keys` None means that no signature is asked for (a partitioner's own, unsigned output).
    Raises `PermanentError` that says which check failed.
    """
    found = sha256(data)
    if digest is not None and found != digest:
        raise PermanentError(f"manifest has digest {found[:12]}…, wanted is {digest[:12]}…")
    if public_keys is not None:
        if signature is None:
            raise PermanentError(f"bundle {found[:12]}… is not signed")
        try:
            signing.verify(public_keys, data, signature)
        except PermanentError as error:
            raise PermanentError(f"bundle {found[:12]}…: {error}") from error
    return parse_manifest(data)


def open_bundle(folder: Path, digest: str | None = None, public_keys: Iterable[str] | None = None) -> Bundle:
    """Open the bundle in `folder`; errors as in `check_manifest`, and `PermanentError` when it is not one."""
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise PermanentError(f"{folder} is not a bundle: {error.strerror} ({MANIFEST})") from error
    signature_file = folder / SIGNATURE
    signature = signature_file.read_bytes().decode("ascii", "replace").strip() if signature_file.exists() else None
    manifest = check_manifest(data, signature, digest, public_keys)
    return Bundle(folder, sha256(data), manifest)


def read_blob(folder: Path, blob: Blob) -> bytes:
    """The content of `blob` in a folder of blobs; `PermanentError` when missing or not what its name says."""
    try:
        data = (folder / blob.sha256).read_bytes()
    except OSError as error:
        raise PermanentError(f"blob {blob.sha256[:12]}… cannot be read: {error.strerror}") from error
    check_blob(data, blob.sha256)
    return data


def check_file(path: Path, digest: str) -> None:
    """Raise `PermanentError` unless the file at `path` is there and has that sha256; it is not held in memory."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PermanentError(f"blob {digest[:12]}… cannot be read: {error.strerror}") from error
    if found != digest:
        raise PermanentError(f"blob {digest[:12]}… is damaged: its content has digest {found[:12]}…")


def check_blob(data: bytes, digest: str) -> None:
    """Raise `PermanentError` unless `data` has that sha256."""
    if (found := sha256(data)) != digest:
        raise PermanentError(f"blob {digest[:12]}… is damaged: its content has digest {found[:12]}…")


def write_blob(folder: Path, data: bytes) -> Blob:
    """Store `data` under its sha256, whole or not at all."""
    blob = Blob(sha256=sha256(data), size=len(data))
    write_atomically(folder / blob.sha256, data)
    return blob


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` by `data` so that a crash or power cut leaves the old content or the new, never a mixture.

    A crash may leave a file beside it whose name begins with a dot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def move_in(part: Path, path: Path) -> None:
    """Make the whole file `part` durable under the name `path`."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make durable which files are in `folder`."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
