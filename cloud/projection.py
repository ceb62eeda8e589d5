"""From records on Kafka to rows: pure reading of records, and the writing of what was read.

Predictions are effectively once by sample: the first final one in the order of the topic wins, a provisional one never
replaces a final, and whatever changes nothing raises `repeats`. `records = 1 + changes + repeats` holds in every row.
An audit is no prediction of a sample: the first one of a sample stands beside it, in a table of its own. So do late
labels: they are joined with predictions when somebody asks (`cloud.watch.labelled`), so neither waits for the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Dialect, Insert, Table, and_, case, func, insert, or_, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from cloud.tables import audits, device_states, labels, predictions, reader_offsets, streams
from sluice.doors.kafka import Record, TopicPartition
from sluice.wire import names
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.labels import Label, time_of
from sluice.wire.messages import Audit, Prediction, SampleKey, decode_all, sample_of
from sluice.wire.slices import parse_slice
from sluice.wire.state import Announcement, DeviceStatus, Reported, Signed, parse_state

TOPICS = (names.PREDICTIONS, names.DEVICES, names.CONTROL, names.DESIRED, names.LABELS)
Row = dict[str, Any]
MAX_TIME = 2**63 - 1
KEYS_AT_ONCE = 1000


@dataclass(slots=True)
class Rows:
    """What one batch of records comes down to: equal samples, devices and streams are folded into one row each.

    Labels are not: which of them change something hangs on what is in the database.
    """

    predictions: dict[SampleKey, Row] = field(default_factory=dict)
    audits: dict[SampleKey, Row] = field(default_factory=dict)
    reported: dict[str, Row] = field(default_factory=dict)
    status: dict[str, Row] = field(default_factory=dict)
    streams: dict[tuple[str, int], Row] = field(default_factory=dict)
    labels: list[Row] = field(default_factory=list)

    def take(self, record: Record) -> None:
        """Fold one record in.

        Raises `PermanentError` for a record that can never be stored, `UnknownSchemaError` for one that may be newer
        than this version; then nothing of it was folded in.
        """
        at = min(max(record.timestamp_ms, 0) * 1000, MAX_TIME)
        if record.topic == names.PREDICTIONS:
            for prediction in [_checked(outcome) for outcome in decode_all(record.value)]:
                self._fold(prediction, at)
        elif record.topic == names.DEVICES:
            self._take_state(record, at)
        elif record.topic == names.DESIRED:  # the gateways' to pass on; what they cannot is a dead letter here, once
            names.check_name("device", (record.key or b"").decode(errors="replace"))
            if record.value:
                parse_state(Signed, record.value)
        elif record.topic == names.LABELS:
            self.labels.append(_label_row(parse_state(Label, record.value), at))
        else:
            announcement = parse_state(Announcement, record.value)
            places = sum(parse_slice(text).length for text in announcement.slices)
            if announcement.count > places:  # whoever reads it makes room for so many
                raise PermanentError(f"{announcement.count} records in slices of {places}")
            if announcement.part > announcement.parts:
                raise PermanentError(f"part {announcement.part} of {announcement.parts}: there is no such part")
            key = (announcement.stream_id, announcement.part)
            row = {"announcement": announcement.model_dump(mode="json"), "announced_at": at}
            self.streams[key] = {"stream_id": key[0], "part": key[1], **row}

    def _fold(self, prediction: Prediction, at: int) -> None:
        if prediction.audit is not None:
            key = (prediction.device_id, prediction.epoch, prediction.audit.of)
            row = self.audits.setdefault(key, {**_audit_row(prediction, prediction.audit), "recorded_at": at})
            row["records"] += 1
            return
        key = sample_of(prediction)
        known = self.predictions.get(key)
        if known is None:
            self.predictions[key] = {**_row(prediction), "recorded_at": at, "records": 1, "repeats": 0}
        elif known["status"] == "provisional" and prediction.status == "final":
            counts = {"records": known["records"] + 1, "repeats": known["repeats"]}
            self.predictions[key] = {**_row(prediction), "recorded_at": at, **counts}
        else:
            known["records"] += 1
            known["repeats"] += 1

    def _take_state(self, record: Record, at: int) -> None:
        device, _, kind = (record.key or b"").decode(errors="replace").partition("/")
        names.check_name("device", device)
        if kind not in names.STATE_KINDS:
            raise PermanentError(f"key {kind[:40]!r} of {device} is neither reported nor status")
        value: Any = None
        if record.value:  # else the device's state was cleared
            state = _STATES[kind](record.value)
            if state.device_id != device:
                raise PermanentError(f"state of {state.device_id!r} came under the key of {device!r}")
            value = state.status if isinstance(state, DeviceStatus) else state.model_dump(mode="json")
        rows = self.reported if kind == "reported" else self.status
        rows[device] = {"device_id": device, kind: value, f"{kind}_at": at}


def _checked(outcome: object) -> Prediction:
    if not isinstance(outcome, Prediction):
        raise PermanentError("an offload has no place among predictions")
    if "\0" in (outcome.source_id or ""):
        raise PermanentError("source_id holds a zero character")
    return outcome


_STATES: dict[str, Callable[[bytes], Reported | DeviceStatus]] = {
    "reported": lambda value: parse_state(Reported, value),
    "status": lambda value: parse_state(DeviceStatus, value),
}
_SHARED = [c.name for c in predictions.c if c.name not in ("id", "recorded_at", "records", "repeats")]


def _row(prediction: Prediction) -> Row:
    return {name: getattr(prediction, name) for name in _SHARED}


def _audit_row(said: Prediction, audit: Audit) -> Row:
    shared = {name: getattr(said, name) for name in ("device_id", "epoch", "model", "bundle", "operating_point")}
    final = {"final_exit": said.exit, "final_label": said.label, "final_confidence": said.confidence}
    return {**shared, "seq": audit.of, "exit": audit.exit, "label": audit.label, **final, "records": 0}


def _label_row(told: Label, at: int) -> Row:
    by_number = isinstance(told.label, int)
    return {
        "device_id": told.device_id,
        "epoch": told.epoch or "",
        "seq": -1 if told.seq is None else told.seq,
        "source_id": told.source_id or "",
        "model": told.model or "",
        "label": told.label if by_number else -1,
        "name": "" if by_number else told.label,
        "told_at": time_of(told, at),
        "recorded_at": at,
        "records": 1,
        "repeats": 0,
    }


def write(connection: Connection, rows: Rows) -> int:
    """Write the rows of a batch; returns how many of its predictions were repeats.

    Raises SQLAlchemy's `DataError` or `IntegrityError` for a row that the database refuses.
    """
    for device_rows, kind in ((rows.reported, "reported"), (rows.status, "status")):
        _upsert(connection, device_states, ["device_id"], [kind, f"{kind}_at"], device_rows.values())
    _upsert(connection, streams, ["stream_id", "part"], ["announcement", "announced_at"], rows.streams.values())
    if rows.audits:
        known = _insert(connection.dialect, audits)
        more = {"records": audits.c.records + known.excluded.records}
        again = known.on_conflict_do_update(index_elements=["device_id", "epoch", "seq"], set_=more)
        connection.execute(again, list(rows.audits.values()))
    if rows.labels:
        connection.execute(_label_upsert(connection.dialect), rows.labels)
    if not rows.predictions:
        return 0
    before = _repeats(connection, rows)
    connection.execute(_prediction_upsert(connection.dialect), list(rows.predictions.values()))
    return _repeats(connection, rows) - before


def _repeats(connection: Connection, rows: Rows) -> int:
    """Repeats that the database knows of the samples in `rows`."""
    keys, total = list(rows.predictions), 0
    sample = tuple_(predictions.c.device_id, predictions.c.epoch, predictions.c.seq)
    for i in range(0, len(keys), KEYS_AT_ONCE):
        some = select(func.sum(predictions.c.repeats)).where(sample.in_(keys[i : i + KEYS_AT_ONCE]))
        total += connection.execute(some).scalar() or 0
    return total


def _insert(dialect: Dialect, table: Table) -> Any:
    return (postgresql.insert if dialect.name == "postgresql" else sqlite.insert)(table)


def _upsert(connection: Connection, table: Table, keys: list[str], columns: list[str], rows: Iterable[Row]) -> None:
    if not (values := list(rows)):
        return
    statement = _insert(connection.dialect, table)
    changes = {name: statement.excluded[name] for name in columns}
    connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changes), values)


def _prediction_upsert(dialect: Dialect) -> Insert:
    statement = _insert(dialect, predictions)
    old, new = predictions.c, statement.excluded
    better = and_(old.status == "provisional", new.status == "final")
    names_of_content = [*_SHARED, "recorded_at"]
    changes = {name: case((better, new[name]), else_=old[name]) for name in names_of_content}
    # what was folded into the new row were all repeats but for the one that wins now
    changes["repeats"] = old.repeats + new.records - case((better, 1), else_=0)
    changes["records"] = old.records + new.records
    result: Insert = statement.on_conflict_do_update(index_elements=["device_id", "epoch", "seq"], set_=changes)
    return result


def _label_upsert(dialect: Dialect) -> Insert:
    """What was told later replaces; the same again, or what was told before, is a repeat."""
    statement = _insert(dialect, labels)
    old, new = labels.c, statement.excluded
    later = new.told_at >= old.told_at
    changes = and_(later, or_(new.label != old.label, new.name != old.name))
    values: dict[str, Any] = {
        name: case((changes, new[name]), else_=old[name]) for name in ("label", "name", "recorded_at")
    }
    values["told_at"] = case((later, new.told_at), else_=old.told_at)
    values["records"] = old.records + new.records
    values["repeats"] = old.repeats + case((changes, 0), else_=1)
    keys = [column.name for column in labels.primary_key]
    result: Insert = statement.on_conflict_do_update(index_elements=keys, set_=values)
    return result


def load_offsets(connection: Connection, topics: Iterable[str]) -> dict[TopicPartition, int]:
    """The next offset of each topic partition of `topics` that was read before."""
    wanted = select(reader_offsets).where(reader_offsets.c.topic.in_(list(topics)))
    return {(row.topic, row.partition): row.next_offset for row in connection.execute(wanted)}


def move_offset(connection: Connection, partition: TopicPartition, known: int | None, following: int) -> None:
    """Say in the transaction of the rows that everything before `following` is in.

    `known` is where we believe to have begun (None: never read before). Raises `TemporaryError` when another reader
    was there in between: our rows are not to be written then.
    """
    table, (topic, number) = reader_offsets, partition
    if known is None:
        row = insert(table).values(topic=topic, partition=number, next_offset=following)
        try:
            connection.execute(row)
        except IntegrityError as error:
            raise _taken(partition) from error
        return
    ours = (table.c.topic == topic) & (table.c.partition == number) & (table.c.next_offset == known)
    if connection.execute(update(table).where(ours).values(next_offset=following)).rowcount != 1:
        raise _taken(partition)


def _taken(partition: TopicPartition) -> TemporaryError:
    return TemporaryError(f"another results writer has read {partition[0]}[{partition[1]}]", 0.5)
