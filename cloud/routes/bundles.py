"""Bundles and their files: what devices and workers fetch, and what a person may bring who cut a model offline."""

from __future__ import annotations

from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import FileResponse, PlainTextResponse
from pydantic import BaseModel
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from cloud.bundles import find_bundle, read_manifest, store_bundle
from cloud.database import reading, writing
from cloud.problems import missing
from cloud.service import Service, ServiceDep, admin
from cloud.tables import bundles
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import MAX_MANIFEST_BYTES
from sluice.wire.signing import public_text

router = APIRouter(tags=["bundles"])
open_router = APIRouter(tags=["keys"])

MAX_FILES = 1000
Digest = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]


class BundleView(BaseModel):
    """A bundle: what the registry knows of it, and the operating points that its manifest lists."""

    digest: str
    model: str
    version: int
    created_at: int
    operating_points: list[str]
    segments: int
    bytes: int
    """Size of all its files."""


class Keys(BaseModel):
    """The public keys (base64, Ed25519) that devices should trust."""

    public_keys: list[str]


@open_router.get("/keys")
def get_keys(service: ServiceDep) -> Keys:
    """The public keys of this service; no token needed."""
    return Keys(public_keys=[public_text(service.key)])


def _view(service: Service, row: dict[str, Any]) -> BundleView:
    manifest = read_manifest(service, row["digest"])
    return BundleView(
        digest=row["digest"],
        model=row["model"],
        version=row["version"],
        created_at=row["created_at"],
        operating_points=[point.id for point in manifest.operating_points],
        segments=len(manifest.segments),
        bytes=sum(blob.size for blob in manifest.blobs()),
    )


@router.get("/bundles", dependencies=[Depends(admin)])
def list_bundles(service: ServiceDep) -> list[BundleView]:
    """The newest 1000 bundles, newest first."""
    with reading(service.engine) as connection:
        rows = connection.execute(select(bundles).order_by(bundles.c.created_at.desc()).limit(1000)).mappings()
        found = [dict(row) for row in rows]
    return [_view(service, row) for row in found]


@router.post("/bundles", status_code=201, dependencies=[Depends(admin)])
async def add_bundle(service: ServiceDep, request: Request) -> BundleView:
    """Bring a bundle that was made offline: multipart, one file `manifest`, the others `blobs`.

    The service checks every file against the manifest and signs it. 422 with the cause when it does not fit.
    """
    async with request.form(max_files=MAX_FILES, max_fields=1) as form:
        given = form.get("manifest")
        files = [file for file in form.getlist("blobs") if isinstance(file, UploadFile)]
        if not isinstance(given, UploadFile) or not files:
            raise PermanentError("send the files 'manifest' and 'blobs'")
        manifest = await given.read(MAX_MANIFEST_BYTES + 1)
        return await run_in_threadpool(_add, service, manifest, {str(f.filename): f.file for f in files})


def _add(service: Service, manifest: bytes, blobs: dict[str, BinaryIO]) -> BundleView:
    def open_blob(digest: str) -> BinaryIO:
        if digest not in blobs:
            raise PermanentError(f"blob {digest[:12]}… is missing")
        return blobs.pop(digest)

    record = store_bundle(service, manifest, open_blob)
    with writing(service.engine) as connection:
        digest = record(connection)
    return _view(service, find_bundle(service, digest))


@router.get("/bundles/{digest}")
def get_bundle(service: ServiceDep, digest: Digest) -> BundleView:
    """One bundle."""
    return _view(service, find_bundle(service, digest))


@router.get("/bundles/{digest}/manifest", response_class=Response)
def get_manifest(service: ServiceDep, digest: Digest) -> Response:
    """The manifest, byte for byte as it was signed."""
    find_bundle(service, digest)
    return FileResponse(service.blobs.path(digest), media_type="application/json")


@router.get("/bundles/{digest}/signature", response_class=PlainTextResponse)
def get_signature(service: ServiceDep, digest: Digest) -> str:
    """The signature of the manifest (base64, Ed25519)."""
    return str(find_bundle(service, digest)["signature"])


@router.get("/blobs/{sha256}", response_class=FileResponse)
def get_blob(service: ServiceDep, sha256: Digest) -> FileResponse:
    """A file of some bundle, or a part of it (`Range`; its entity tag is its sha256)."""
    if not service.blobs.has(sha256):
        raise missing("blob", sha256)
    headers = {"etag": f'"{sha256}"'}
    return FileResponse(service.blobs.path(sha256), headers=headers, media_type="application/octet-stream")
