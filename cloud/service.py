"""What the REST service has open while it runs: settings, database, signing key, stores, jobs."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Engine

from cloud import tokens
from cloud.artifacts import Store
from cloud.database import open_database, reading, wait_for_database, writing
from cloud.job_process import Limits
from cloud.jobs import Runner
from cloud.settings import MB, CloudSettings
from cloud.tokens import Holder
from sluice.wire.signing import load_or_make_key


@dataclass(frozen=True, slots=True)
class Service:
    """Everything that a request may need; see the module."""

    settings: CloudSettings
    engine: Engine
    key: Ed25519PrivateKey
    models: Store
    blobs: Store
    runner: Runner
    telling: threading.Lock = field(default_factory=threading.Lock)
    """Held while desired states are changed and told: they reach Kafka in the order of their revisions."""


def open_service(settings: CloudSettings, stop: threading.Event) -> Service | None:
    """Open database, key and stores; waits for a database that is away. None if `stop` was set meanwhile.

    The first start makes an admin token and prints it, once, to standard output.
    """
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = open_database(settings.database_url)
    if not wait_for_database(engine, stop):
        return None
    with writing(engine) as connection:
        if not tokens.any_admin(connection):
            _number, token = tokens.create(connection, "admin", "first-start")
            print(f"Admin token, shown only now: {token}", flush=True)
    limits = Limits(
        time_s=settings.job_time_s,
        memory=settings.job_memory_mb * MB,
        output=settings.job_output_mb * MB,
        log=settings.job_log_mb * MB,
        threads=settings.job_threads,
    )
    runner = Runner(
        engine,
        settings.data,
        limits,
        settings.check_time_s,
        at_once=settings.jobs_at_once,
        live_at_once=settings.live_jobs_at_once,
        waiting=settings.jobs_waiting,
    )
    data = settings.data.resolve()
    key = load_or_make_key(data / "keys" / "signing.pem")
    return Service(settings, engine, key, Store(data / "models"), Store(data / "blobs"), runner)


def service_of(request: Request) -> Service:
    """The service that this request came to."""
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(service_of)]
_bearer = HTTPBearer(auto_error=False, description="A token made by `sluice token create` or on first start")


def anyone(service: ServiceDep, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Holder:
    """Let in whoever has a token that works."""
    if given is not None:
        with reading(service.engine) as connection:
            holder = tokens.holder_of(connection, given.credentials)
        if holder is not None:
            return holder
    detail = "this needs a bearer token" if given is None else "this token is unknown or was revoked"
    raise HTTPException(401, detail, {"WWW-Authenticate": "Bearer"})


def admin(holder: Annotated[Holder, Depends(anyone)]) -> None:
    """Let in whoever has an admin token."""
    if holder.role != "admin":
        raise HTTPException(403, f"this needs an admin token, not one of role {holder.role!r}")


def the_device(device_id: str, holder: Annotated[Holder, Depends(anyone)]) -> None:
    """Let in the device that the path names, and admins."""
    if holder.role != "admin" and holder.name != device_id:
        raise HTTPException(403, f"this is for device {device_id!r} alone, and this token is for {holder.name!r}")
