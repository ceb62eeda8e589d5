"""What a run left behind: records on Kafka, rows over REST, what the devices report and what their stores hold."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from sluice.doors.kafka import KafkaReader, Record
from sluice.wire import messages, names
from sluice.wire.errors import SluiceError
from sluice.wire.messages import Offload, Outcome, Prediction
from tests.e2e.chaos.corruption import CLOUD, FOG
from tests.e2e.chaos.path import WholePath

QUIET_S = 60.0


@dataclass(frozen=True)
class Evidence:
    """As it was at the end; `predictions` in the order of their topic partition."""

    predictions: list[Prediction]
    fog: list[Offload]
    cloud: list[Offload]
    letters: list[tuple[str, bytes, str]]
    """(origin, content, reason) of each dead letter."""
    rows: list[dict[str, Any]]
    reported: dict[str, dict[str, Any]]


def collect(path: WholePath) -> Evidence:
    """Read everything."""
    letters = []
    for record in read_topic(path, names.DEAD_LETTER):
        said = {name: value.decode() if isinstance(value, bytes) else str(value) for name, value in record.headers}
        letters.append((said["origin"], record.value, said["reason"]))
    with path.system.client() as client:
        rows = list(client.every_prediction())
        reported = {device: client.device(device)["reported"] or {} for device in path.system.devices}
    return Evidence(
        [one for one in _outcomes(path, names.PREDICTIONS) if isinstance(one, Prediction)],
        [one for one in _outcomes(path, FOG) if isinstance(one, Offload)],
        [one for one in _outcomes(path, CLOUD) if isinstance(one, Offload)],
        letters,
        rows,
        reported,
    )


def read_topic(path: WholePath, topic: str) -> Iterator[Record]:
    """All committed records of a topic that are there now."""
    ended = set()
    reader = KafkaReader(
        "evidence", path.system.brokers.kafka, "chaos-evidence", on_end=lambda place, _offset: ended.add(place)
    )
    try:
        partitions = reader.partitions(topic)
        reader.assign_all(topic)
        quiet_since = time.monotonic()
        while len(ended) < partitions:
            if records := reader.read(1000, 0.5):
                quiet_since = time.monotonic()
            yield from records
            if time.monotonic() > quiet_since + QUIET_S:
                raise TimeoutError(f"{topic} cannot be read to its end: a transaction is open, or Kafka is away")
    finally:
        reader.close()


def _outcomes(path: WholePath, topic: str) -> Iterator[Outcome]:
    """The messages of a topic, without those that were broken on purpose."""
    for record in read_topic(path, topic):
        try:
            yield messages.decode(record.value)
        except SluiceError:
            continue  # a broken one; whether it became a dead letter is looked at by its bytes


def left_in_store(path: WholePath, device: str) -> list[str]:
    """What a device that was stopped still holds: the outcomes that nobody has receipted, told or answered."""
    file = path.folder / device / "store.sqlite"
    with closing(sqlite3.connect(file)) as database:
        found = database.execute("SELECT seq, kind, receipted, told FROM outbox ORDER BY seq").fetchall()
    return [f"{device} seq {seq}: {kind}, receipted {receipted}, told {told}" for seq, kind, receipted, told in found]
