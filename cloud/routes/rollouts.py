"""Rollouts: bring a bundle, at one of its operating points, to devices.

The order of a rollout: the topics that its tensors will need are there; each device gets a revision above its last;
the rollout is on record; the signed desired states are confirmed by Kafka (`cloud/desired.py: tell`). What fails leaves
nothing.
"""

from __future__ import annotations

import secrets
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, delete, insert, select

from cloud.bundles import read_manifest
from cloud.database import reading
from cloud.desired import tell, with_run
from cloud.problems import missing
from cloud.service import ServiceDep
from cloud.tables import bundles, device_states, devices, now_us, rollout_devices, rollouts
from cloud.topics import ensure_fixed_topics, offload_topics
from sluice.wire.names import Name, Sha256
from sluice.wire.state import Bounds, Desired, Run

router = APIRouter(tags=["rollouts"])

State = Literal["pending", "done", "failed", "superseded"]


class NewBounds(Bounds):
    """Bounds as a person asks for them: a name that there is not is an error, not a bound of a newer version."""

    model_config = ConfigDict(extra="forbid")


class NewRollout(BaseModel):
    """Which bundle at which of its operating points, to which devices."""

    bundle: Sha256
    operating_point: Name = "default"
    devices: list[Name] | Literal["all"] = Field(min_length=1)
    bounds: NewBounds | None = None
    """What the run has to keep to, or the device goes back to the run before; none given: those of `Bounds()`."""


class RolloutDevice(BaseModel):
    """How far one device is. `failed`: it refused, or went back by itself. `superseded`: it was told something else."""

    device_id: str
    revision: int
    state: State
    last_error: str | None


class RolloutView(BaseModel):
    """A rollout and all its devices."""

    id: str
    bundle: str
    operating_point: str
    bounds: Bounds | None
    created_at: int
    devices: list[RolloutDevice]


@router.post("/rollouts", status_code=201)
def start_rollout(service: ServiceDep, new: NewRollout) -> RolloutView:
    """Tell devices what to run. 404: no such bundle or device; 422: no such operating point; 503: Kafka is away."""
    manifest = read_manifest(service, new.bundle)
    manifest.operating_point(new.operating_point)
    ensure_fixed_topics(service.settings, offload_topics(manifest))
    rollout = f"rollout-{secrets.token_hex(6)}"
    run = Run(model=manifest.model, bundle=new.bundle, operating_point=new.operating_point, bounds=new.bounds)
    chosen = None if new.devices == "all" else list(dict.fromkeys(new.devices))

    def change(connection: Connection, states: list[Desired]) -> list[Desired]:
        states = [with_run(state, run) for state in states]
        _record(connection, rollout, new, states)
        return states

    tell(service, chosen, change, partial(_forget, rollout))
    return get_rollout(service, rollout)


def _record(connection: Connection, rollout: str, new: NewRollout, states: list[Desired]) -> None:
    row = {
        "id": rollout,
        "bundle": new.bundle,
        "operating_point": new.operating_point,
        "bounds": None if new.bounds is None else new.bounds.model_dump(),
        "created_at": now_us(),
    }
    connection.execute(insert(rollouts).values(row))
    for state in states:
        connection.execute(
            insert(rollout_devices).values(rollout=rollout, device_id=state.device_id, revision=state.revision)
        )


def _forget(rollout: str, connection: Connection) -> None:
    connection.execute(delete(rollout_devices).where(rollout_devices.c.rollout == rollout))
    connection.execute(delete(rollouts).where(rollouts.c.id == rollout))


@router.get("/rollouts")
def list_rollouts(service: ServiceDep) -> list[RolloutView]:
    """The newest 100 rollouts, newest first."""
    with reading(service.engine) as connection:
        rows = connection.execute(select(rollouts).order_by(rollouts.c.created_at.desc()).limit(100)).mappings()
        return [_view(connection, row) for row in rows.all()]


@router.get("/rollouts/{rollout_id}")
def get_rollout(service: ServiceDep, rollout_id: str) -> RolloutView:
    """One rollout: which devices run what it brought, which do not yet, which could not and why."""
    with reading(service.engine) as connection:
        row = connection.execute(select(rollouts).where(rollouts.c.id == rollout_id)).mappings().first()
        if row is None:
            raise missing("rollout", rollout_id)
        return _view(connection, row)


def _view(connection: Connection, rollout: Any) -> RolloutView:
    wanted = (
        select(rollout_devices, bundles.c.model, devices.c.desired, device_states.c.reported)
        .join(devices, devices.c.device_id == rollout_devices.c.device_id)
        .join(bundles, bundles.c.digest == rollout["bundle"])
        .outerjoin(device_states, device_states.c.device_id == rollout_devices.c.device_id)
        .where(rollout_devices.c.rollout == rollout["id"])
        .order_by(rollout_devices.c.device_id)
    )
    return RolloutView(**rollout, devices=[_device(row) for row in connection.execute(wanted).mappings()])


def _device(row: Any) -> RolloutDevice:
    desired, reported = Desired.model_validate(row["desired"]), row["reported"] or {}
    now = desired.run_of(row["model"])
    runs: dict[str, Any] = next((run for run in reported.get("runs", ()) if run["model"] == row["model"]), {})
    state: State
    error: str | None = None
    if now is None or now.revision > row["revision"]:
        state = "superseded"
    elif reported.get("revision", 0) < row["revision"]:
        state, error = "pending", reported.get("last_error")
    elif runs.get("revision") == row["revision"]:
        state = "done"
    else:
        state, error = "failed", runs.get("error") or reported.get("last_error")
    return RolloutDevice(device_id=row["device_id"], revision=row["revision"], state=state, last_error=error)
