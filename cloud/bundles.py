"""Bringing a bundle into the store: every file checked against the manifest, then signed by the service.

Whoever made the bundle, a job or a person offline, brings it unsigned: the key never leaves the service.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import BinaryIO

from sqlalchemy import Connection, insert, select

from cloud.database import reading
from cloud.problems import missing
from cloud.service import Service
from cloud.tables import bundles, now_us
from sluice.wire.bundle import check_manifest, sha256
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Manifest, parse_manifest
from sluice.wire.signing import sign


def store_bundle(
    service: Service, manifest: bytes, open_blob: Callable[[str], BinaryIO]
) -> Callable[[Connection], str]:
    """Store the manifest and its blobs; returns what writes the bundle's row and gives its digest.

    `open_blob` opens the file of that sha256. Raises `PermanentError` when the manifest is none, or a file is missing
    or not what its name says.
    """
    parsed = parse_manifest(manifest)
    for blob in set(parsed.blobs()):
        with open_blob(blob.sha256) as file:
            stored = service.blobs.add(file, blob.size, blob.sha256)
        if stored.size != blob.size:
            raise PermanentError(f"blob {blob.sha256[:12]}… has {stored.size} bytes, the manifest says {blob.size}")
    digest = sha256(manifest)
    path = service.blobs.path(digest)
    if not path.exists():
        with io.BytesIO(manifest) as file:
            service.blobs.add(file, len(manifest), digest)
    row = {
        "digest": digest,
        "model": parsed.model,
        "version": parsed.version,
        "signature": sign(service.key, manifest),
        "created_at": now_us(),
    }

    def write(connection: Connection) -> str:
        known = connection.execute(select(bundles.c.digest).where(bundles.c.digest == digest)).scalar()
        if known is None:
            connection.execute(insert(bundles).values(row))
        return digest

    return write


def find_bundle(service: Service, digest: str) -> dict[str, object]:
    """The row of a bundle; 404 if there is none."""
    with reading(service.engine) as connection:
        row = connection.execute(select(bundles).where(bundles.c.digest == digest)).mappings().first()
    if row is None:
        raise missing("bundle", digest)
    return dict(row)


def read_manifest(service: Service, digest: str) -> Manifest:
    """The manifest of a bundle; 404 if there is none, `PermanentError` if its file was damaged."""
    find_bundle(service, digest)
    return check_manifest(service.blobs.path(digest).read_bytes(), None, digest, None)
