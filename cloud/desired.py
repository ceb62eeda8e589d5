"""What devices shall run: revisions that rise, signed states that Kafka has confirmed.

`tell` puts the states on record, then writes them to Kafka, and takes them off the record should Kafka not confirm
them; no transaction is open meanwhile, so that nobody who writes has to wait for Kafka. A service that ends in between
tells them when it is there again: at each start `tell_again` writes what is on record, and devices ignore what they
know. A device has one state for all its models; what changes one of them leaves the others as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from fastapi import HTTPException
from sqlalchemy import Connection, null, select, update

from cloud.database import reading, writing
from cloud.problems import missing
from cloud.service import Service
from cloud.tables import devices, now_us
from sluice.doors.kafka import KafkaWriter
from sluice.wire import names
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.state import MODELS_MOST, Desired, Run, seal


def tell(
    service: Service,
    chosen: list[str] | None,
    change: Callable[[Connection, list[Desired]], list[Desired]],
    undo: Callable[[Connection], None] = lambda _connection: None,
) -> list[Desired]:
    """Change what the chosen devices (None: all) run, on record and in Kafka; returns the new states.

    `change` makes them of those until now (see `next_states`) and puts on record what else there is; `undo` takes that
    off again. Raises `TemporaryError` when Kafka does not confirm all of them in time; then nothing is on record, but
    for the revisions, which are never given out twice.
    """
    if not service.telling.acquire(timeout=service.settings.kafka_timeout_s):
        raise TemporaryError("another change of what devices run still waits for Kafka")
    try:
        with writing(service.engine) as connection:
            states = change(connection, next_states(connection, chosen))
            named = [state.device_id for state in states]
            wanted = select(devices.c.device_id, devices.c.desired, devices.c.desired_at)
            before = connection.execute(wanted.where(devices.c.device_id.in_(named))).all()
            record(connection, states)
        try:
            publish(service, states)
        except Exception:
            with writing(service.engine) as connection:
                undo(connection)
                for row in before:
                    values = {"desired": row.desired or null(), "desired_at": row.desired_at}
                    connection.execute(update(devices).where(devices.c.device_id == row.device_id).values(values))
            raise
    finally:
        service.telling.release()
    return states


def tell_again(service: Service) -> None:
    """Write all states that are on record; `TemporaryError` when Kafka does not confirm all of them in time."""
    with service.telling:
        with reading(service.engine) as connection:
            known = connection.execute(select(devices.c.desired)).scalars().all()
        publish(service, [Desired.model_validate(state) for state in known if state])


def next_states(connection: Connection, chosen: list[str] | None) -> list[Desired]:
    """What each chosen device (None: all) runs as desired until now, under its next revision, to be changed.

    A revision is above the device's last and never below the time in ms, which serves should the table be lost. Raises
    404 for a device that is not there, or when there is none at all.
    """
    known = select(devices.c.device_id, devices.c.revision, devices.c.desired).order_by(devices.c.device_id)
    if chosen is not None:
        known = known.where(devices.c.device_id.in_(chosen))
    rows = connection.execute(known.with_for_update()).all()
    for name in chosen or ():
        if name not in {row.device_id for row in rows}:
            raise missing("device", name)
    if not rows:
        raise HTTPException(404, "there are no devices: register one first")
    now_ms = time.time_ns() // 1_000_000
    return [
        Desired(
            device_id=row.device_id,
            revision=max(row.revision + 1, now_ms),
            runs=Desired.model_validate(row.desired).runs if row.desired else (),
        )
        for row in rows
    ]


def with_run(state: Desired, run: Run) -> Desired:
    """`state` with `run` for its model, brought by this revision; `PermanentError` when the device has no room."""
    runs = {known.model: known for known in state.runs}
    runs[run.model] = run.model_copy(update={"revision": state.revision})
    if len(runs) > MODELS_MOST:
        raise PermanentError(f"device {state.device_id!r} runs {MODELS_MOST} models already: take one off first")
    return state.model_copy(update={"runs": tuple(runs.values())})


def without_model(state: Desired, model: str) -> Desired:
    """`state` without `model`; 404 when the device is not told to run it."""
    if state.run_of(model) is None:
        raise missing(f"model on device {state.device_id!r} that is called", model)
    return state.model_copy(update={"runs": tuple(run for run in state.runs if run.model != model)})


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
