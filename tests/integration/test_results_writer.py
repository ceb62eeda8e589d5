"""The results writer as a process, on real Kafka, with SQLite and PostgreSQL: killed, starved and fed with rubbish."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from sqlalchemy import func, select

from cloud.database import migrate, open_database, reading, writing
from cloud.results_writer import results_writer
from cloud.settings import CloudSettings
from cloud.tables import device_states, labels, predictions, reader_offsets, streams
from cloud.watch.labelled import labelled
from sluice.doors.kafka import KafkaCluster, KafkaReader, KafkaWriter
from sluice.doors.kafka_topics import EmbeddedKafka
from sluice.wire import avro, names
from sluice.wire.errors import TemporaryError
from sluice.wire.messages import Prediction, encode
from sluice.wire.state import Announcement, Reported, Signed
from tests.brokers.kafka import Kafka
from tests.brokers.postgres import Postgres

WAIT_S = 60.0
EPOCH, BUNDLE = "00" * 8, "ab" * 32


def prediction(device: str, seq: int, status: Any = "final", label: int = 0) -> bytes:
    answer = Prediction(
        device_id=device,
        epoch=EPOCH,
        seq=seq,
        source_id=None,
        model="digits",
        bundle=BUNDLE,
        operating_point="default",
        tier="cloud",
        exit=2,
        label=label,
        confidence=0.5,
        outputs=b"",
        status=status,
        reason="last",
        captured_at=1,
        produced_at=2,
    )
    return encode(answer)


def until(what: str, condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.05)


class Writer:
    """`sluice results-writer` as a process of its own."""

    def __init__(self, folder: Path, bootstrap: str, database: str | None = None, **settings: str) -> None:
        self.folder = folder
        self.log = folder / "writer.log"
        self.url = database or f"sqlite:///{folder / 'sluice.db'}"
        self.environment = os.environ | {
            "CLOUD_DATA": str(folder),
            "CLOUD_DATABASE": self.url,
            "CLOUD_KAFKA__BOOTSTRAP": bootstrap,
            **settings,
        }
        self.engine = open_database(self.url)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, ready: bool = True) -> None:
        known = self.lines("ready")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from sluice.cli import main; main()", "results-writer"],
                env=self.environment,
                cwd=Path(__file__).parents[2],
                stderr=log,
            )
        if ready:
            until("the results writer is ready", lambda: self.lines("ready") > known)

    def lines(self, text: str) -> int:
        if not self.log.exists():
            return 0
        messages = [json.loads(line)["message"] for line in self.log.read_text().splitlines() if line.endswith("}")]
        return sum(text in message for message in messages)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(20) == 0, self.log.read_text()

    def rows(self, device: str) -> dict[int, tuple[Any, ...]]:
        c = predictions.c
        wanted = select(c.seq, c.status, c.label, c.records, c.repeats).where(c.device_id == device)
        with reading(self.engine) as connection:
            return {row.seq: tuple(row)[1:] for row in connection.execute(wanted)}

    def records(self, device: str) -> int:
        wanted = select(func.coalesce(func.sum(predictions.c.records), 0)).where(predictions.c.device_id == device)
        with reading(self.engine) as connection:
            return int(connection.execute(wanted).scalar_one())


@contextmanager
def a_writer(folder: Path, bootstrap: str, database: str | None = None, **settings: str) -> Iterator[Writer]:
    writer = Writer(folder, bootstrap, database, **settings)
    try:
        yield writer
        writer.stop()
    finally:
        if writer.process is not None and writer.process.poll() is None:
            writer.kill()
        writer.engine.dispose()


def send(cluster: KafkaCluster, device: str, values: list[bytes], topic: str = names.PREDICTIONS) -> None:
    KafkaWriter("test", cluster).write_all(topic, [(device, value) for value in values], WAIT_S)


def by_the_rule(sequence: list[tuple[int, str]]) -> dict[int, tuple[str, int, int, int]]:
    rows: dict[int, tuple[str, int, int, int]] = {}
    for place, (seq, status) in enumerate(sequence):
        old_status, label, records, repeats = rows.get(seq, ("", 0, 0, 0))
        if old_status in ("", "provisional") and (status == "final" or not old_status):
            rows[seq] = (status, place, records + 1, repeats)
        else:
            rows[seq] = (old_status, label, records + 1, repeats + 1)
    return rows


def dead_letters(cluster: KafkaCluster, key: str, count: int) -> list[tuple[bytes, dict[str, str]]]:
    reader = KafkaReader("test", cluster, f"dead-{key}")
    reader.assign_all(names.DEAD_LETTER)
    found: list[tuple[bytes, dict[str, str]]] = []
    deadline = time.monotonic() + WAIT_S
    while len(found) < count and time.monotonic() < deadline:
        for record in reader.read(100, 0.2):
            if record.key == key.encode():
                headers = {name: value.decode() for name, value in record.headers if isinstance(value, bytes)}
                found.append((record.value, headers))
    reader.close()
    return found


@pytest.mark.brokers
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_killed_in_the_middle_every_row_is_exact(
    kind: str, kafka: Kafka, unique: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    database = None
    if kind == "postgresql":
        postgres: Postgres = request.getfixturevalue("postgres")
        database = postgres.database(unique)
    cluster = KafkaCluster(bootstrap=kafka.bootstrap)
    dice = random.Random(unique)
    samples = 3000
    sequence = [
        (seq, dice.choice(["provisional", "final", "final"]))
        for seq in range(samples)
        for _ in range(dice.choice([1, 1, 2, 3]))
    ]
    for i in range(len(sequence) - 50):  # equal samples near one another, in one batch or in two
        j = i + dice.randrange(50)
        sequence[i], sequence[j] = sequence[j], sequence[i]
    values = [prediction(unique, seq, status, place) for place, (seq, status) in enumerate(sequence)]
    poison = [b"rubbish", values[0][:-5], b"\xc3\x01\x00"]
    for place, value in enumerate(poison):
        values.insert(1000 * (place + 1), value)
    with a_writer(tmp_path, kafka.bootstrap, database, CLOUD_RESULTS_BATCH="50") as writer:
        writer.start()
        begun = threading.Thread(target=send, args=(cluster, unique, values))
        begun.start()
        until("some records are in", lambda: writer.records(unique) >= 500)
        writer.kill()
        assert writer.records(unique) < len(sequence), "killed too late to show anything"
        writer.start()
        begun.join()
        until("all records are in", lambda: writer.records(unique) >= len(sequence))
        assert writer.rows(unique) == by_the_rule(sequence)
        found = dead_letters(cluster, unique, len(poison))
    assert {value for value, _headers in found} == set(poison)
    for _value, headers in found:
        assert (headers["origin"], headers["room"]) == (names.PREDICTIONS, "results-writer")
        assert headers["reason"]
        assert int(headers["offset"]) > 0


@pytest.mark.brokers
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_labels_find_their_samples_across_a_kill(
    kind: str, kafka: Kafka, unique: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Labels before, among and after their predictions, told twice and corrected; the writer is killed in between."""
    database = None
    if kind == "postgresql":
        postgres: Postgres = request.getfixturevalue("postgres")
        database = postgres.database(unique)
    cluster = KafkaCluster(bootstrap=kafka.bootstrap)
    samples = 1000
    told = [(seq, label, at) for seq in range(samples) for label, at in ((1, 5), (1, 5), (seq % 7, 9))]
    random.Random(unique).shuffle(told)
    words = [
        json.dumps({"device_id": unique, "epoch": EPOCH, "seq": seq, "label": label, "told_at": at}).encode()
        for seq, label, at in told
    ]
    bad = b'{"device_id": "pi-1", "label": 3}'
    values = [prediction(unique, seq) for seq in range(samples)]

    def counted() -> tuple[int, int]:
        with reading(writer.engine) as connection:
            ours = select(func.coalesce(func.sum(labels.c.records), 0)).where(labels.c.device_id == unique)
            return int(connection.execute(ours).scalar_one()), len(writer.rows(unique))

    with a_writer(tmp_path, kafka.bootstrap, database, CLOUD_RESULTS_BATCH="50") as writer:
        writer.start()
        send(cluster, unique, [*words[:1000], bad], names.LABELS)
        until("some labels are in", lambda: counted()[0] >= 100)
        both = [
            threading.Thread(target=send, args=(cluster, unique, words[1000:], names.LABELS)),
            threading.Thread(target=send, args=(cluster, unique, values)),
        ]
        for thread in both:
            thread.start()
        until("some predictions are in", lambda: counted()[1] >= 100)
        writer.kill()
        assert counted() != (len(words), samples), "killed too late to show anything"
        writer.start()
        for thread in both:
            thread.join()
        until("all are in", lambda: counted() == (len(words), samples))
        found, p = labelled(), predictions.c
        joined = select(p.seq, found.c.told).join(found, found.c.id == p.id).where(p.device_id == unique)
        with reading(writer.engine) as connection:
            assert sorted(map(tuple, connection.execute(joined))) == [(seq, seq % 7) for seq in range(samples)]
        assert [value for value, _ in dead_letters(cluster, unique, 1)] == [bad]


@pytest.mark.brokers
def test_device_states_and_streams_reach_the_database(kafka: Kafka, unique: str, tmp_path: Path) -> None:
    cluster = KafkaCluster(bootstrap=kafka.bootstrap)
    with a_writer(tmp_path, kafka.bootstrap) as writer:
        writer.start()
        reported = Reported(device_id=unique, revision=5, agent_version="1", last_error="golden samples fail")
        stream = Announcement(stream_id=unique, slices=["t:0:0:9"], format="avro", validation_rate=0.2, count=9)
        send(cluster, f"{unique}/reported", [reported.model_dump_json().encode()], names.DEVICES)
        status = json.dumps({"device_id": unique, "status": "offline"}).encode()
        send(cluster, f"{unique}/status", [b"{}", status], names.DEVICES)
        send(cluster, unique, [stream.model_dump_json().encode()], names.CONTROL)

        def there() -> bool:
            with reading(writer.engine) as connection:
                state = connection.execute(select(device_states).where(device_states.c.device_id == unique)).first()
                known = connection.execute(select(streams.c.announcement).where(streams.c.stream_id == unique)).scalar()
            return (
                known == stream.model_dump(mode="json")
                and state is not None
                and state.status == "offline"
                and state.reported == reported.model_dump(mode="json")
            )

        until("state and stream are in", there)
        assert [value for value, _ in dead_letters(cluster, f"{unique}/status", 1)] == [b"{}"]

        envelope = Signed(payload="{}", signature="").model_dump_json().encode()
        send(cluster, f"{unique}-desired", [b"", envelope, b"rubbish", envelope], names.DESIRED)
        assert [value for value, _ in dead_letters(cluster, f"{unique}-desired", 1)] == [b"rubbish"]
        # a letter is confirmed before the transaction that it belongs to; what comes after both is in the next one
        reported = reported.model_copy(update={"revision": 6})
        send(cluster, f"{unique}/reported", [reported.model_dump_json().encode()], names.DEVICES)
        until("what came later is in", there)
        writer.kill()
        writer.start()
        send(cluster, f"{unique}-desired", [b"more"], names.DESIRED)
        assert [value for value, _ in dead_letters(cluster, f"{unique}-desired", 2)] == [b"rubbish", b"more"]


@pytest.mark.brokers
def test_kafka_comes_late_goes_away_and_forgets(unique: str, tmp_path: Path) -> None:
    server = Kafka(tmp_path / "kafka")
    cluster = KafkaCluster(bootstrap=server.bootstrap)
    with a_writer(tmp_path, server.bootstrap, CLOUD_KAFKA_TIMEOUT_S="1") as writer:
        writer.start(ready=False)
        until("it says that Kafka is away", lambda: writer.lines("trying again until it works") == 1)
        with server:
            until("it is ready", lambda: writer.lines("ready") == 1)
            send(cluster, unique, [prediction(unique, seq) for seq in range(10)])
            until("10 are in", lambda: len(writer.rows(unique)) == 10)
            server.restart()
            send(cluster, unique, [prediction(unique, seq) for seq in range(10, 20)])
            until("20 are in", lambda: len(writer.rows(unique)) == 20)
            assert writer.lines("trying again until it works") <= 2, "one line each time that Kafka was away"
            writer.stop()

            send(cluster, unique, [prediction(unique, seq) for seq in range(20, 40)])
            with reading(writer.engine) as connection:
                offsets = reader_offsets.c
                wanted = select(offsets.partition, offsets.next_offset).where(offsets.topic == names.PREDICTIONS)
                (partition, following), *_ = connection.execute(wanted.where(offsets.next_offset > 0)).all()
            gone = TopicPartition(names.PREDICTIONS, partition, following + 15)
            server.admin().delete_records([gone])[gone].result()
            writer.start()
            until("what is left is in", lambda: len(writer.rows(unique)) == 25)
            assert writer.lines("retention took 15 records") == 1
            writer.stop()


@pytest.mark.brokers
def test_a_database_that_goes_away_comes_back(kafka: Kafka, unique: str, tmp_path: Path) -> None:
    cluster = KafkaCluster(bootstrap=kafka.bootstrap)
    with Postgres() as server, a_writer(tmp_path, kafka.bootstrap, server.database(unique)) as writer:
        writer.start()
        send(cluster, unique, [prediction(unique, seq) for seq in range(100)])
        until("100 are in", lambda: len(writer.rows(unique)) == 100)
        server.kill()
        send(cluster, unique, [prediction(unique, seq % 150) for seq in range(300)])
        until("it says so once", lambda: writer.lines("trying again until it works") == 1)
        server.start()

        def complete() -> bool:
            try:
                return writer.records(unique) == 400
            except TemporaryError:  # our own connections noticed it too
                return False

        until("all are in", complete)
        rows = writer.rows(unique)
        assert len(rows) == 150
        assert sum(repeats for *_, repeats in rows.values()) == 250
        assert writer.lines("trying again until it works") == 1
        until("it says that it works", lambda: writer.lines("working again") == 1)


def test_an_unknown_schema_holds_its_topic_partition_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = EmbeddedKafka()
    cluster = KafkaCluster(bootstrap=server.bootstrap)
    settings = CloudSettings(data=tmp_path, kafka=cluster, results_hold_s=0.2)
    engine = open_database(settings.database_url)
    migrate(engine)
    stop = threading.Event()
    thread = threading.Thread(target=results_writer, args=(settings, stop))
    thread.start()
    writer = KafkaWriter("test", cluster)
    newer = avro.MARKER + b"newer..." + prediction("held", 1)[avro.HEADER_SIZE :]

    def seqs() -> set[tuple[str, int]]:
        with reading(engine) as connection:
            return {tuple(row) for row in connection.execute(select(predictions.c.device_id, predictions.c.seq))}

    try:
        for value in (prediction("held", 0), newer, prediction("held", 2)):
            writer.write(names.PREDICTIONS, value, partition=0)
        writer.write(names.PREDICTIONS, prediction("other", 0), partition=1)
        assert writer.flush(10) == 0
        until("others are in", lambda: seqs() == {("held", 0), ("other", 0)})
        writer.write(names.PREDICTIONS, prediction("other", 1), partition=1)
        assert writer.flush(10) == 0
        until("others go on", lambda: ("other", 1) in seqs())
        assert not {("held", 1), ("held", 2)} & seqs()
        known = avro._known()
        learnt = known | {b"newer...": avro.newest("prediction")}
        monkeypatch.setattr(avro, "_known", lambda: learnt)  # as if this version had been replaced
        until("what was held is in", lambda: {("held", 1), ("held", 2)} <= seqs())
    finally:
        stop.set()
        thread.join()
        engine.dispose()


def test_what_the_database_refuses_is_a_dead_letter(unique: str, tmp_path: Path) -> None:
    server = EmbeddedKafka()
    cluster = KafkaCluster(bootstrap=server.bootstrap)
    settings = CloudSettings(data=tmp_path, kafka=cluster)
    engine = open_database(settings.database_url)
    migrate(engine)
    with writing(engine) as connection:
        refuse = "WHEN new.label = 13 BEGIN SELECT RAISE(ABORT, 'no 13'); END"
        connection.exec_driver_sql(f"CREATE TRIGGER odd BEFORE INSERT ON predictions {refuse}")
    values = [prediction(unique, seq, label=13 if seq in (3, 7) else 0) for seq in range(10)]
    send(cluster, unique, values)
    stop = threading.Event()
    thread = threading.Thread(target=results_writer, args=(settings, stop))
    thread.start()

    def seqs() -> set[int]:
        with reading(engine) as connection:
            return set(connection.execute(select(predictions.c.seq)).scalars())

    try:
        until("all others are in", lambda: seqs() == set(range(10)) - {3, 7})
        found = dead_letters(cluster, unique, 2)
    finally:
        stop.set()
        thread.join()
        engine.dispose()
    assert [value for value, _headers in found] == [values[3], values[7]]
    assert all("no 13" in headers["reason"] for _value, headers in found)
