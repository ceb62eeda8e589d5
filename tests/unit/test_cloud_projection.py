"""Effectively once: whatever the order, the repeats and the batches, the rows are those of the simple rule."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select

from cloud.database import migrate, open_database, reading, writing
from cloud.projection import Rows, load_offsets, move_offset, write
from cloud.tables import audits, device_states, labels, predictions, streams
from cloud.watch.labelled import labelled
from sluice.doors.kafka import Record
from sluice.wire import names
from sluice.wire.errors import PermanentError, TemporaryError, UnknownSchemaError
from sluice.wire.messages import Audit, Offload, Prediction, encode
from sluice.wire.state import Announcement, Reported

EPOCH, BUNDLE = "00" * 8, "ab" * 32


def prediction(seq: int, status: Any = "final", label: int = 0, **changes: Any) -> bytes:
    return encode(
        Prediction(
            device_id=changes.get("device_id", "pi-1"),
            epoch=EPOCH,
            seq=seq,
            source_id=changes.get("source_id"),
            model="digits",
            bundle=BUNDLE,
            operating_point="default",
            tier="fog",
            exit=1,
            label=label,
            confidence=0.9,
            outputs=b"",
            status=status,
            reason="exit",
            captured_at=1,
            produced_at=2,
            compute_us={"edge": 10},
            bytes_sent=99,
            audit=changes.get("audit"),
        )
    )


def record(value: bytes, topic: str = names.PREDICTIONS, key: bytes | None = None, at_ms: int = 5) -> Record:
    return Record(topic, 0, 0, key, value, at_ms, [])


def expected(sequence: list[tuple[int, str]]) -> dict[int, tuple[str, int, int, int]]:
    """seq: (status, label, records, repeats) by the rule, one record after the other; its place is its label."""
    rows: dict[int, tuple[str, int, int, int]] = {}
    for place, (seq, status) in enumerate(sequence):
        if seq not in rows:
            rows[seq] = (status, place, 1, 0)
            continue
        old_status, label, records, repeats = rows[seq]
        if (old_status, status) == ("provisional", "final"):
            rows[seq] = (status, place, records + 1, repeats)
        else:
            rows[seq] = (old_status, label, records + 1, repeats + 1)
    return rows


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('projection') / 'sluice.db'}"
    migrate(open_database(url))
    return url


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sequence=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["provisional", "final"])), max_size=20),
    cuts=st.lists(st.integers(0, 20), max_size=4),
)
def test_rows_are_those_of_the_rule(url: str, sequence: list[tuple[int, str]], cuts: list[int]) -> None:
    engine = open_database(url)
    bounds = [0, *sorted(min(cut, len(sequence)) for cut in cuts), len(sequence)]
    counted = 0
    with writing(engine) as connection:
        connection.execute(delete(predictions))
        for begin, end in pairwise(bounds):
            rows = Rows()
            for place in range(begin, end):
                seq, status = sequence[place]
                rows.take(record(prediction(seq, status, label=place)))
            counted += write(connection, rows)
        c = predictions.c
        found = {
            r.seq: tuple(r)[1:] for r in connection.execute(select(c.seq, c.status, c.label, c.records, c.repeats))
        }
    engine.dispose()
    assert found == expected(sequence)
    assert counted == sum(repeats for *_, repeats in found.values())


def test_the_whole_prediction_is_stored(url: str) -> None:
    engine = open_database(url)
    rows = Rows()
    rows.take(record(prediction(7, label=3, source_id="frame-7"), at_ms=1234))
    with writing(engine) as connection:
        connection.execute(delete(predictions))
        write(connection, rows)
        row = dict(connection.execute(select(predictions)).mappings().one())
    del row["id"]
    assert row == {
        "device_id": "pi-1",
        "epoch": EPOCH,
        "seq": 7,
        "source_id": "frame-7",
        "model": "digits",
        "bundle": BUNDLE,
        "operating_point": "default",
        "tier": "fog",
        "exit": 1,
        "label": 3,
        "confidence": pytest.approx(0.9),
        "outputs": b"",
        "status": "final",
        "reason": "exit",
        "captured_at": 1,
        "produced_at": 2,
        "compute_us": {"edge": 10},
        "bytes_sent": 99,
        "trace": None,
        "recorded_at": 1_234_000,
        "records": 1,
        "repeats": 0,
    }


def test_audits_stand_beside_the_samples_and_the_first_one_counts(url: str) -> None:
    """They make no row of a sample, neither of the one that they are of nor under their own seq."""
    engine = open_database(url)
    with writing(engine) as connection:
        connection.execute(delete(predictions))
        batches = [[(9, 2), (9, 1)], [(10, 0)]]  # (seq of the audit, what the final exit says)
        for batch in batches:
            rows = Rows()
            for seq, label in batch:
                rows.take(record(prediction(seq, label=label, audit=Audit(of=4, exit=0, label=2)), at_ms=seq))
            assert write(connection, rows) == 0
        row = dict(connection.execute(select(audits)).mappings().one())
        assert connection.execute(select(predictions)).all() == []
        connection.execute(delete(audits))
    engine.dispose()
    assert (row["seq"], row["exit"], row["label"], row["final_exit"], row["final_label"]) == (4, 0, 2, 1, 2)
    assert (row["records"], row["recorded_at"], row["model"], row["bundle"]) == (3, 9000, "digits", BUNDLE)


def test_device_states_and_streams_are_the_newest(url: str) -> None:
    rows = Rows()
    reported = Reported(device_id="pi-1", revision=3, agent_version="1", last_error="no")
    rows.take(record(reported.model_dump_json().encode(), names.DEVICES, b"pi-1/reported"))
    rows.take(record(b'{"device_id": "pi-1", "status": "online"}', names.DEVICES, b"pi-1/status"))
    rows.take(record(b'{"device_id": "pi-1", "status": "offline"}', names.DEVICES, b"pi-1/status"))
    stream = Announcement(stream_id="s1", slices=["t:0:0:5"], format="avro", validation_rate=0.2, count=5)
    rows.take(record(stream.model_dump_json().encode(), names.CONTROL))
    engine = open_database(url)
    with writing(engine) as connection:
        write(connection, rows)
        write(connection, rows)
    with reading(engine) as connection:
        state = connection.execute(select(device_states)).mappings().one()
        assert (state["status"], state["reported"]["last_error"]) == ("offline", "no")
        assert Announcement.model_validate(connection.execute(select(streams.c.announcement)).scalar_one()) == stream


def test_parts_of_a_stream_stand_side_by_side(url: str) -> None:
    part = Announcement(
        stream_id="s2", slices=["t:0:0:5"], format="avro", validation_rate=0.2, count=5, part=1, parts=2
    )
    rows = Rows()
    for number in (1, 2, 1):
        said = part.model_copy(update={"part": number, "slices": [f"t:{number}:0:5"]})
        rows.take(record(said.model_dump_json().encode(), names.CONTROL))
    with pytest.raises(PermanentError, match="part 3 of 2"):
        rows.take(record(part.model_copy(update={"part": 3}).model_dump_json().encode(), names.CONTROL))
    engine = open_database(url)
    with writing(engine) as connection:
        write(connection, rows)
    with reading(engine) as connection:
        found = connection.execute(select(streams.c.part).where(streams.c.stream_id == "s2")).scalars()
        assert sorted(found) == [1, 2]


def label(label: Any, told_at: int | None = None, **named: Any) -> Record:
    said = {"device_id": "pi-1", "label": label, "told_at": told_at, **named}
    return record(json.dumps(said).encode(), names.LABELS)


TOLD = st.lists(st.tuples(st.sampled_from([0, 1, "no", "yes"]), st.integers(1, 4)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(told=TOLD, cut=st.integers(0, 8))
def test_the_label_that_was_told_last_counts(url: str, told: list[tuple[Any, int]], cut: int) -> None:
    stands, at, repeats = told[0][0], told[0][1], 0
    for said, when in told[1:]:
        changes = when >= at and said != stands
        stands, at, repeats = said if changes else stands, max(at, when), repeats + (not changes)
    engine = open_database(url)
    with writing(engine) as connection:
        connection.execute(delete(labels))
        for batch in (told[:cut], told[cut:]):
            rows = Rows()
            for said, when in batch:
                rows.take(label(said, when, source_id="frame-1"))
            write(connection, rows)
        row = connection.execute(select(labels)).mappings().one()
    engine.dispose()
    assert (row["name"] or row["label"], row["told_at"]) == (stands, at)
    assert (row["records"], row["repeats"]) == (len(told), repeats)


def test_a_label_finds_its_samples_whichever_comes_first(url: str) -> None:
    """By sample before by source and model before by source alone; of another device or source it is not."""
    engine = open_database(url)
    early, late, answers = Rows(), Rows(), Rows()
    early.take(label(1, source_id="a"))
    early.take(label(2, source_id="a", model="other"))
    early.take(label(3, epoch=EPOCH, seq=3))
    for seq, source in enumerate(["a", "a", "b", "a", None, "c"]):
        answers.take(record(prediction(seq, source_id=source)))
    answers.take(record(prediction(0, source_id="a", device_id="pi-2")))
    late.take(label("yes", source_id="b"))
    late.take(label(7, source_id="b", model="digits"))
    late.take(label(8, source_id="unheard-of"))
    with writing(engine) as connection:
        for table in (labels, predictions):
            connection.execute(delete(table))
        for rows in (early, answers, late):
            write(connection, rows)
        found, p = labelled(), predictions.c
        joined = select(p.device_id, p.seq, found.c.told, found.c.name).join(found, found.c.id == p.id)
        rows_found = {tuple(row) for row in connection.execute(joined)}
        for table in (labels, predictions):
            connection.execute(delete(table))
    engine.dispose()
    assert rows_found == {("pi-1", 0, 1, ""), ("pi-1", 1, 1, ""), ("pi-1", 2, 7, ""), ("pi-1", 3, 3, "")}


DAY_MS = 24 * 3600 * 1000


@pytest.mark.parametrize(
    "bad",
    [
        label(1),  # of which sample?
        label(1, source_id="a", epoch=EPOCH, seq=1),
        label(1, epoch=EPOCH),
        label(1, epoch=EPOCH, seq=1, model="digits"),
        label(-1, source_id="a"),
        label(2**31, source_id="a"),
        label(1.5, source_id="a"),
        label(True, source_id="a"),
        label("", source_id="a"),
        label("a\0b", source_id="a"),
        label(1, source_id="a\0b"),
        label(1, source_id="a", device_id="no name"),
        label(1, told_at=(DAY_MS + 6) * 1000, source_id="a"),  # a day and more after Kafka got it
        record(b"", names.LABELS),
    ],
)
def test_a_bad_label_says_so(bad: Record) -> None:
    rows = Rows()
    with pytest.raises(PermanentError):
        rows.take(bad)
    assert rows == Rows()


OFFLOAD = Offload("pi-1", EPOCH, 1, None, "m", BUNDLE, "default", "fog", 0, (), (), 0, 1000)


@pytest.mark.parametrize(
    ("value", "topic", "key"),
    [
        (b"", names.PREDICTIONS, None),
        (b"garbage", names.PREDICTIONS, None),
        (prediction(1)[:-3], names.PREDICTIONS, None),
        (prediction(1, source_id="a\0b"), names.PREDICTIONS, None),
        (encode(OFFLOAD), names.PREDICTIONS, None),
        (b'{"device_id": "pi-2", "status": "online"}', names.DEVICES, b"pi-1/status"),
        (b'{"device_id": "pi-1", "status": "sleeping"}', names.DEVICES, b"pi-1/status"),
        (b'{"device_id": "pi-1", "status": "online"}', names.DEVICES, b"pi-1/other"),
        (b'{"device_id": "pi-1", "status": "online"}', names.DEVICES, None),
        (b"{}", names.CONTROL, None),
        (
            b'{"stream_id": "s", "slices": ["nonsense"], "format": "avro", "validation_rate": 0, "count": 1}',
            names.CONTROL,
            None,
        ),
    ],
)
def test_what_can_never_be_stored_says_so(value: bytes, topic: str, key: bytes | None) -> None:
    rows = Rows()
    with pytest.raises(PermanentError):
        rows.take(record(value, topic, key))
    assert rows == Rows()


def test_an_unknown_schema_is_no_poison() -> None:
    with pytest.raises(UnknownSchemaError):
        Rows().take(record(b"\xc3\x01" + b"\x00" * 8 + b"x"))


def test_a_reader_that_was_overtaken_writes_nothing(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:///{tmp_path / 'sluice.db'}")
    migrate(engine)
    partition = ("t", 0)
    with writing(engine) as connection:
        move_offset(connection, partition, None, 10)
    for believed in (None, 5):
        with pytest.raises(TemporaryError, match="another results writer"), writing(engine) as connection:
            move_offset(connection, partition, believed, 12)
    with writing(engine) as connection:
        move_offset(connection, partition, 10, 20)
        assert load_offsets(connection, ["t"]) == {partition: 20}
