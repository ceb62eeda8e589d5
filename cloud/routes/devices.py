"""Devices: registered once, with a token of their own; what they shall run and what they say that they run."""

from __future__ import annotations

import secrets
from typing import Any, Literal

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel
from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from cloud import tokens
from cloud.database import reading, writing
from cloud.desired import next_revisions, publish, record
from cloud.problems import missing
from cloud.service import ServiceDep
from cloud.tables import device_states, devices, now_us, rollout_devices
from sluice.wire.names import Name
from sluice.wire.signing import public_text
from sluice.wire.state import Desired

router = APIRouter(tags=["devices"])


class NewDevice(BaseModel):
    """The name that the device will use everywhere."""

    device_id: Name


class Registered(BaseModel):
    """What the device has to be told, once: its token is not stored and cannot be shown again."""

    device_id: str
    token: str
    public_keys: list[str]


class DeviceView(BaseModel):
    """A device. `desired` and `reported` as in `sluice.wire.state`; times in UTC microseconds."""

    device_id: str
    registered_at: int
    revision: int
    """Of the last desired state; 0: none yet."""
    desired: dict[str, Any] | None
    desired_at: int | None
    reported: dict[str, Any] | None
    reported_at: int | None
    status: Literal["online", "offline", "unknown"]
    status_at: int | None


@router.post("/devices", status_code=201)
def register(service: ServiceDep, new: NewDevice) -> Registered:
    """Register a device; 409 if there is one of that name."""
    try:
        with writing(service.engine) as connection:
            number, token = tokens.create(connection, "device", new.device_id)
            row = {"device_id": new.device_id, "token": number, "revision": 0, "registered_at": now_us()}
            connection.execute(insert(devices).values(row))
    except IntegrityError as error:
        raise HTTPException(409, f"there is a device {new.device_id!r} already") from error
    return Registered(device_id=new.device_id, token=token, public_keys=[public_text(service.key)])


_WANTED = select(
    *[column for column in devices.c if column.name != "token"],
    *[column for column in device_states.c if column.name != "device_id"],
).outerjoin(device_states, device_states.c.device_id == devices.c.device_id)


def _view(row: Any) -> DeviceView:
    return DeviceView(**{**row, "status": row["status"] or "unknown"})


@router.get("/devices")
def list_devices(service: ServiceDep) -> list[DeviceView]:
    """All registered devices, by name."""
    with reading(service.engine) as connection:
        rows = connection.execute(_WANTED.order_by(devices.c.device_id)).mappings().all()
    return [_view(row) for row in rows]


@router.get("/devices/{device_id}")
def get_device(service: ServiceDep, device_id: str) -> DeviceView:
    """One registered device."""
    with reading(service.engine) as connection:
        row = connection.execute(_WANTED.where(devices.c.device_id == device_id)).mappings().first()
    if row is None:
        raise missing("device", device_id)
    return _view(row)


class ProfileRequest(BaseModel):
    """A request to a device: its answer is `reported.measured` where `measured.request` is `profile`."""

    device_id: str
    revision: int
    profile: Name


@router.post("/devices/{device_id}/profile", status_code=202)
def request_profile(service: ServiceDep, device_id: str) -> ProfileRequest:
    """Tell a device to measure the segments that it runs, and to go on running them.

    404: no such device; 409: it was never told what to run; 503: Kafka is away.
    """
    profile = f"profile-{secrets.token_hex(6)}"
    with writing(service.engine) as connection:
        revision = next_revisions(connection, [device_id])[device_id]
        known = select(devices.c.desired, devices.c.revision).where(devices.c.device_id == device_id)
        before = connection.execute(known).mappings().one()
        if before["desired"] is None:
            raise HTTPException(409, f"device {device_id!r} runs nothing yet: roll out a bundle to it first")
        state = Desired.model_validate(before["desired"] | {"revision": revision, "profile": profile})
        # it shall run what its rollout brought, so it is that rollout's still
        connection.execute(
            update(rollout_devices)
            .where(rollout_devices.c.device_id == device_id, rollout_devices.c.revision == before["revision"])
            .values(revision=revision)
        )
        record(connection, [state])
        publish(service, [state])
    return ProfileRequest(device_id=device_id, revision=revision, profile=profile)
