"""`sluice edge-agent --check`: is everything there that the agent needs? Nothing is changed, nothing else is disturbed.

The brokers are asked under a client name of the check's own, so that an agent at work keeps its connection; its store
is locked while it works, and is then not looked into.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from edge_agent.intake import check_schemas
from edge_agent.running import read_kept
from edge_agent.settings import EdgeSettings
from edge_agent.updates import prepare_local
from sluice.doors.http import HttpDoor
from sluice.doors.mqtt import MqttBroker, MqttDoor
from sluice.stage.segment import profile
from sluice.wire.errors import PermanentError, SluiceError, TemporaryError

PATIENCE_S = 5.0
"""How long a broker or the control plane has to answer."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was looked at, whether it is all right, and what is there or what is wrong."""

    what: str
    right: bool
    said: str


def check(settings: EdgeSettings) -> list[Found]:
    """Everything, one after the other; the settings themselves are right by now."""
    return [_try(what, look, settings) for what, look in _looks(settings)]


def _looks(settings: EdgeSettings) -> Iterator[tuple[str, Callable[[EdgeSettings], str]]]:
    yield "runtime", lambda _: ", ".join(profile().values())
    yield "data folder", _data
    yield "sensors", _sensors
    yield "sensor broker", lambda s: _broker(s, s.sensor_broker, "sensor")
    if settings.uplink_broker is not None:
        yield "uplink broker", lambda s: _broker(s, s.uplink, "uplink")
    yield "control plane", _control_plane
    yield "bundle", _bundle


def _try(what: str, look: Callable[[EdgeSettings], str], settings: EdgeSettings) -> Found:
    try:
        return Found(what, True, look(settings))
    except SluiceError as error:
        return Found(what, False, str(error))


def _data(settings: EdgeSettings) -> str:
    try:
        settings.data.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.data) as file:
            file.write(b"\0")
    except OSError as error:
        raise PermanentError(f"{settings.data} cannot be written to: {error.strerror or error}") from error
    return str(settings.data)


def _sensors(settings: EdgeSettings) -> str:
    check_schemas(settings)
    return ", ".join(f"{one.format} from {settings.topic_of(name)}" for name, one in settings.sensors_by_name.items())


def _broker(settings: EdgeSettings, broker: MqttBroker, role: str) -> str:
    door = MqttDoor(f"{role} broker", broker, f"{settings.device_id}-check-{role}", keep_session=False)
    door.start()
    try:
        if not door.up.wait(PATIENCE_S):
            raise TemporaryError(f"{broker.host}:{broker.port} lets nobody in within {PATIENCE_S:g} s: {door.trouble}")
    finally:
        door.stop(forget=True)
    return f"{broker.host}:{broker.port}"


def _control_plane(settings: EdgeSettings) -> str:
    door = HttpDoor(settings.cloud_url, settings.token, settings.cloud_ca, PATIENCE_S)
    try:
        door.call("GET", f"/v1/devices/{settings.device_id}")
    finally:
        door.close()
    return f"{settings.cloud_url} knows this device"


def _bundle(settings: EdgeSettings) -> str:
    path = settings.data / "store.sqlite"
    if not path.exists():
        return "none yet: a rollout brings one"
    try:
        row = _runs(path)
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            return "not looked at: an agent is at work here"
        raise PermanentError(f"store {path}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise PermanentError(f"store {path}: {error}. A damaged store may be moved away") from error
    kept = read_kept(row[0] if row else b"{}")
    runs = {name: one.run for name, one in kept.items() if one.run is not None}
    if not runs:
        return "none yet: a rollout brings one"
    for name, run in runs.items():
        try:
            prepare_local(settings, run)
        except PermanentError as error:
            raise PermanentError(f"{name} {run.bundle[:12]}…: {error}") from error
    told = [f"{name} {run.bundle[:12]}… at {run.operating_point}" for name, run in runs.items()]
    return f"{', '.join(told)}: whole, golden samples pass"


def _runs(path: Path) -> tuple[bytes] | None:
    """The row of what runs. To read a log that an agent left behind SQLite makes an index of it, which goes again."""
    index, log = path.with_name(path.name + "-shm"), path.with_name(path.name + "-wal")
    had_index = index.exists()
    how = "mode=ro" if log.exists() else "immutable=1"
    try:
        with closing(sqlite3.connect(f"file:{path}?{how}", uri=True, timeout=1.0)) as store:
            row: tuple[bytes] | None = store.execute("SELECT value FROM facts WHERE name = 'runs'").fetchone()
            return row
    finally:
        if not had_index:
            index.unlink(missing_ok=True)
