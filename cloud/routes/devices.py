"""Devices: registered once, with a token of their own; what they shall run and what they say that they run."""

from __future__ import annotations

import secrets
from typing import Any, Literal

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel
from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from cloud import tokens
from cloud.database import reading, writing
from cloud.desired import tell, without_model
from cloud.problems import missing
from cloud.service import ServiceDep
from cloud.tables import device_states, devices, now_us
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
def request_profile(service: ServiceDep, device_id: str, model: Name | None = None) -> ProfileRequest:
    """Tell a device to measure the segments that it runs (of `model`, or of the first), and to go on running them.

    404: no such device, or it does not run that model; 409: it was never told what to run; 503: Kafka is away.
    """
    profile = f"profile-{secrets.token_hex(6)}"

    def change(_connection: Connection, states: list[Desired]) -> list[Desired]:
        (state,) = states
        if not state.runs:
            raise HTTPException(409, f"device {device_id!r} runs nothing yet: roll out a bundle to it first")
        if model is not None and state.run_of(model) is None:
            raise missing(f"model on device {device_id!r} that is called", model)
        return [state.model_copy(update={"profile": profile, "profile_model": model})]

    (state,) = tell(service, [device_id], change)
    return ProfileRequest(device_id=device_id, revision=state.revision, profile=profile)


@router.delete("/devices/{device_id}/models/{model}")
def take_off(service: ServiceDep, device_id: str, model: Name) -> DeviceView:
    """Tell a device to run a model no longer; its others go on. 404: no such device or model; 503: Kafka is away."""
    tell(service, [device_id], lambda _connection, states: [without_model(state, model) for state in states])
    return get_device(service, device_id)
