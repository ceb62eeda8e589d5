"""What devices shall run: revisions that rise, signed states that Kafka has confirmed.

Used inside a transaction: a state is on record only when it was published, and what fails leaves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from fastapi import HTTPException
from sqlalchemy import Connection, select, update

from cloud.problems import missing
from cloud.service import Service
from cloud.tables import devices, now_us
from sluice.doors.kafka import KafkaWriter
from sluice.wire import names
from sluice.wire.state import Desired, seal


def next_revisions(connection: Connection, chosen: list[str] | None) -> dict[str, int]:
    """The next revision of each chosen device (None: of all), above its last and never below the time in ms.

    The time serves should the table be lost. Raises 404 for a device that is not there, or when there is none at all.
    """
    known = select(devices.c.device_id, devices.c.revision).order_by(devices.c.device_id).with_for_update()
    if chosen is not None:
        known = known.where(devices.c.device_id.in_(chosen))
    last: dict[str, int] = dict(connection.execute(known).all())
    for name in chosen or ():
        if name not in last:
            raise missing("device", name)
    if not last:
        raise HTTPException(404, "there are no devices: register one first")
    now_ms = time.time_ns() // 1_000_000
    return {name: max(revision + 1, now_ms) for name, revision in last.items()}


def record(connection: Connection, states: Iterable[Desired]) -> None:
    """Each state is what its device shall run from now on."""
    for state in states:
        connection.execute(
            update(devices)
            .where(devices.c.device_id == state.device_id)
            .values(revision=state.revision, desired=state.model_dump(), desired_at=now_us())
        )


def publish(service: Service, states: Iterable[Desired]) -> None:
    """Write the signed states, confirmed; `TemporaryError` when Kafka does not confirm all of them in time."""
    writer = KafkaWriter("cloud-desired", service.settings.kafka)
    pairs = [(state.device_id, seal(service.key, state)) for state in states]
    writer.write_all(names.DESIRED, pairs, service.settings.kafka_timeout_s)
