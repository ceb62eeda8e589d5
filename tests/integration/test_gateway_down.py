"""The way down on real Mosquitto and Kafka: what is held, refused, forgotten or too much, and who suffers from it."""

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from prometheus_client import REGISTRY

from gateway import down as down_module
from gateway.down import Down
from gateway.settings import GatewaySettings
from sluice.daemon.settings import load
from sluice.dev.processes import Processes
from sluice.doors.kafka import KafkaCluster, KafkaReader, KafkaWriter
from sluice.doors.mqtt import MqttBroker
from sluice.wire import avro, messages, names, signing
from sluice.wire.messages import Prediction
from sluice.wire.state import Desired, seal
from tests.brokers.kafka import Kafka
from tests.brokers.mosquitto import Mosquitto, moved
from tests.integration.edge_support import broker_of, rss_kb, until
from tests.integration.gateway_support import TOPICS, Device, Gateway
from tests.integration.test_gateway import committed, ends

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(300)]

WRITER = "test"
OPTIONS = {"session.timeout.ms": "3000", "heartbeat.interval.ms": "300"}


@pytest.fixture(scope="module")
def kafka() -> Iterator[Kafka]:
    """One of this module's own: the names of Sluice's topics are fixed."""
    with Kafka() as server:
        for topic in TOPICS:
            server.create_topic(topic, 2)
        yield server


@pytest.fixture
def mosquitto() -> Iterator[Mosquitto]:
    with Mosquitto() as server:
        yield server


@pytest.fixture
def device(mosquitto: Mosquitto, unique: str) -> Iterator[Device]:
    with Device(broker_of(mosquitto), f"device-{unique}") as device:
        yield device


@contextmanager
def working(
    kafka: Kafka, broker: MqttBroker, name: str, options: dict[str, str] = OPTIONS, **settings: Any
) -> Iterator[None]:
    """The way down in a thread."""
    cluster = KafkaCluster(bootstrap=kafka.bootstrap, options=options)
    down = Down(load(GatewaySettings, name=name, broker=broker, kafka=cluster, **settings))
    stop, failures = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            down.run(stop)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert failures == []


def write(kafka: Kafka, partition: int, *values: bytes) -> None:
    writer = KafkaWriter(WRITER, KafkaCluster(bootstrap=kafka.bootstrap))
    for value in values:
        writer.write(names.PREDICTIONS, value, partition=partition)
    assert writer.flush(30) == 0


def came(device: Device) -> list[int]:
    """Samples whose answers came, in the order of their coming, repeats left out."""
    return list(dict.fromkeys(messages.decode(m.payload).seq for m in list(device.inbox)))


def counted(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0


def is_last(device: Device, seq: int) -> bool:
    return came(device)[-1:] == [seq]


def answers(device: Device, count: int, **changes: Any) -> list[Prediction]:
    return [replace(device.prediction("cloud", "last"), **changes) for _ in range(count)]


def test_a_newer_schema_makes_its_topic_partition_rest_and_no_other_and_rubbish_none(
    kafka: Kafka, mosquitto: Mosquitto, device: Device, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(down_module, "HOLD_S", 0.3)
    before, held, after, other = answers(device, 4)
    encoded = messages.encode(held)
    newer = avro.MARKER + b"newer..." + encoded[avro.HEADER_SIZE :]
    holds, bad = counted("sluice_gateway_answers_held_total"), counted("sluice_gateway_answers_bad_total")
    with working(kafka, broker_of(mosquitto), f"gateway-{unique}"):
        write(kafka, 0, messages.encode(before), newer, messages.encode(after))
        write(kafka, 1, b"rubbish", messages.encode(device.offload()), messages.encode(other))
        until(lambda: set(came(device)) == {before.seq, other.seq})
        until(lambda: counted("sluice_gateway_answers_held_total") >= holds + 2)
        assert counted("sluice_gateway_answers_bad_total") == bad + 2
        assert set(came(device)) == {before.seq, other.seq}
        learnt = avro._known() | {b"newer...": avro.newest("prediction")}
        monkeypatch.setattr(avro, "_known", lambda: learnt)  # as if this version had been replaced
        until(lambda: len(device.inbox) == 4)
    assert [m.payload for m in device.inbox if m.payload in (newer, messages.encode(after))] == [
        newer,
        messages.encode(after),
    ]
    until(lambda: committed(kafka) == ends(kafka))


def test_what_the_broker_refuses_is_not_taken_and_is_passed_by_in_the_end(
    kafka: Kafka, unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not authorised: a broker with passwords and access rules, and a gateway that they do not know."""
    monkeypatch.setattr(down_module, "PAUSE_S", 0.1)
    names_of = ("gateway", "stranger", f"device-{unique}")
    with Mosquitto(tmp_path / "mosquitto", dict.fromkeys(names_of, "word")) as server:
        acl = server.folder / "acl"
        rights = acl.read_text()
        broker = broker_of(server)
        own = broker.model_copy(update={"username": names_of[2], "password": "word"})
        strange = broker.model_copy(update={"username": "stranger", "password": "word"})
        with Device(own, names_of[2]) as device:
            refused = counted("sluice_gateway_answers_refused_total")
            first, second, third = answers(device, 3)
            with working(kafka, strange, f"gateway-{unique}"):
                write(kafka, 0, messages.encode(first))
                until(lambda: counted("sluice_gateway_answers_refused_total") == refused + 1)
                until(lambda: committed(kafka) == ends(kafka))
                monkeypatch.setattr(down_module, "TRIES", 1000)
                before = committed(kafka)
                write(kafka, 0, messages.encode(second))
                write(kafka, 1, messages.encode(third))
                assert committed(kafka) <= before
                acl.write_text(f"{rights}\nuser stranger\ntopic write sluice/+/inbox\n")
                os.kill(server.pid, signal.SIGHUP)
                until(lambda: set(came(device)) == {second.seq, third.seq})
                until(lambda: committed(kafka) == ends(kafka))
                assert counted("sluice_gateway_answers_refused_total") == refused + 1


def test_two_gateways_share_the_answers_and_one_that_is_killed_loses_none(
    kafka: Kafka, mosquitto: Mosquitto, device: Device, processes: Processes, unique: str
) -> None:
    count = 2000
    gateways = []
    for number in range(2):
        settings = {
            "GATEWAY_NAME": f"gateway-{unique}-{number}",
            "GATEWAY_BROKER__PORT": str(mosquitto.port),
            "GATEWAY_KAFKA__BOOTSTRAP": kafka.bootstrap,
            "GATEWAY_KAFKA__OPTIONS": json.dumps(OPTIONS),
            "GATEWAY_ANSWERS_IN_FLIGHT": "100",
        }
        gateways.append(processes.start(f"gateway-{number}", ["gateway"], settings))
    for gateway in gateways:
        gateway.wait_ready()
    sent = answers(device, count)

    def send(part: list[Prediction]) -> None:
        for partition in range(2):
            write(kafka, partition, *(messages.encode(p) for p in part if p.seq % 2 == partition))

    send(sent[:100])
    until(lambda: len(came(device)) == 100)
    until(lambda: committed(kafka) == ends(kafka))
    send(sent[100:])
    until(lambda: len(came(device)) >= count // 2)
    gateways[0].kill()
    until(lambda: set(came(device)) == {p.seq for p in sent})
    until(lambda: committed(kafka) == ends(kafka))
    for partition in range(2):  # first in the order of the topic is first here, too
        order = [seq for seq in came(device) if seq % 2 == partition]
        assert order == sorted(order)
    repeats = sum(Counter(messages.decode(m.payload).seq for m in device.inbox).values()) - count
    assert repeats <= 100 + 2 * down_module.COMMIT_EVERY, "more than may be under way or not committed"


def test_a_broker_that_stands_still_takes_no_more_memory_than_is_allowed(
    kafka: Kafka, mosquitto: Mosquitto, device: Device, processes: Processes, unique: str
) -> None:
    gateway = Gateway(processes, mosquitto, kafka, unique, GATEWAY_ANSWERS_IN_FLIGHT_KB="2000")
    (warm,) = answers(device, 1)
    write(kafka, 0, messages.encode(warm))
    until(lambda: came(device) == [warm.seq])
    before = rss_kb(gateway.process.child.pid)
    large = answers(device, 400, outputs=bytes(200_000))  # 80 MB
    taken = gateway.metric("sluice_gateway_answers_total")
    os.kill(mosquitto.pid, signal.SIGSTOP)
    try:
        for partition in range(2):
            write(kafka, partition, *(messages.encode(p) for p in large[partition::2]))
        until(lambda: gateway.metric("sluice_gateway_answers_total") >= taken + 10)
        assert gateway.metric("sluice_gateway_answers_total") <= taken + 11
        assert rss_kb(gateway.process.child.pid) - before < 40_000
    finally:
        os.kill(mosquitto.pid, signal.SIGCONT)
    until(lambda: set(came(device)) == {warm.seq, *(p.seq for p in large)})
    until(lambda: committed(kafka) == ends(kafka))


def test_it_stays_in_its_group_while_the_broker_stands_still(
    kafka: Kafka, mosquitto: Mosquitto, device: Device, unique: str
) -> None:
    """Longer than `max.poll.interval.ms`, in which a reader has to ask Kafka for something."""
    options = OPTIONS | {"max.poll.interval.ms": "3000"}
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    group = load(GatewaySettings).answers_group

    def members() -> list[str]:
        found = admin.describe_consumer_groups([group])[group].result()
        return [member.member_id for member in found.members]

    many = answers(device, 60)
    with working(kafka, broker_of(mosquitto), f"gateway-{unique}", options, answers_in_flight=10):
        write(kafka, 0, messages.encode(many[0]))
        until(lambda: came(device) == [many[0].seq])
        before = members()
        assert len(before) == 1
        os.kill(mosquitto.pid, signal.SIGSTOP)
        try:
            for partition in range(2):
                write(kafka, partition, *map(messages.encode, many[1 + partition :: 2]))
            end = time.monotonic() + 8  # for what should not come
            while time.monotonic() < end:
                assert members() == before
                time.sleep(0.2)
        finally:
            os.kill(mosquitto.pid, signal.SIGCONT)
        until(lambda: set(came(device)) == {p.seq for p in many})
        until(lambda: committed(kafka) == ends(kafka))
        assert members() == before
    assert len(device.inbox) == len(many), "none came twice"


def test_a_device_that_is_away_with_a_full_queue_keeps_no_other_waiting(
    kafka: Kafka, unique: str, tmp_path: Path
) -> None:
    """The broker drops what is too much for it, silently; the device asks the control plane for that."""
    with Small(tmp_path / "mosquitto") as server:
        with Device(broker_of(server), f"away-{unique}") as away:
            pass
        with Device(broker_of(server), f"device-{unique}") as device:
            here = answers(device, 50)
            with working(kafka, broker_of(server), f"gateway-{unique}"):
                write(kafka, 0, *map(messages.encode, (*answers(away, 3000), *here)))
                until(lambda: came(device) == [p.seq for p in here])
                until(lambda: committed(kafka) == ends(kafka))
        with Device(broker_of(server), f"away-{unique}") as back:
            until(lambda: len(back.inbox) >= Small.QUEUE)
            assert len(back.inbox) < 1000


class Small(Mosquitto):
    """One that keeps little for those who are away."""

    QUEUE = 100

    def prepare(self) -> None:
        super().prepare()
        self.config.write_text(moved(self.config.read_text(), {"max_queued_messages": str(self.QUEUE)}))


def test_desired_state_that_the_broker_forgot_is_told_again(
    kafka: Kafka, mosquitto: Mosquitto, unique: str, tmp_path: Path
) -> None:
    name = f"device-{unique}"
    key = signing.load_or_make_key(tmp_path / "key.pem")
    envelope = seal(key, Desired(device_id=name, revision=1, runs=()))
    KafkaWriter(WRITER, KafkaCluster(bootstrap=kafka.bootstrap)).write_all(names.DESIRED, [(name, envelope)], 30)
    with working(kafka, broker_of(mosquitto), f"gateway-{unique}"):
        with Device(broker_of(mosquitto), name) as device:
            until(lambda: envelope in [m.payload for m in device.desired])
        mosquitto.kill()
        for file in (mosquitto.folder / "data").iterdir():
            file.unlink()
        mosquitto.start()
        with Device(broker_of(mosquitto), f"{name}-2"), Device(broker_of(mosquitto), name) as again:
            until(lambda: envelope in [m.payload for m in again.desired])


def test_of_the_desired_states_of_a_device_the_newest_alone_is_told(
    kafka: Kafka, mosquitto: Mosquitto, device: Device, tmp_path: Path
) -> None:
    """Kafka keeps older ones until it compacts, and a device reports an older one as an error."""
    key = signing.load_or_make_key(tmp_path / "key.pem")
    told = [seal(key, Desired(device_id=device.name, revision=revision, runs=())) for revision in range(1, 302)]
    writer = KafkaWriter(WRITER, KafkaCluster(bootstrap=kafka.bootstrap))
    writer.write_all(names.DESIRED, [(device.name, one) for one in told[:300]], 30)
    with working(kafka, broker_of(mosquitto), device.name.replace("device", "gateway")):
        until(lambda: told[299] in [m.payload for m in device.desired])
        writer.write_all(names.DESIRED, [(device.name, told[300])], 30)
        until(lambda: told[300] in [m.payload for m in device.desired])
    assert [m.payload for m in device.desired] == told[299:]


def test_nothing_is_asked_of_kafka_at_every_turn(
    kafka: Kafka, mosquitto: Mosquitto, device: Device, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks for topics end when they are there, and commits do not come with every answer."""
    looks, commits = list[int](), list[int]()
    topic_names, commit = KafkaReader.topic_names, KafkaReader.commit

    def look(reader: KafkaReader, timeout_s: float = 5.0) -> set[str]:
        looks.append(1)
        return topic_names(reader, timeout_s)

    def count(reader: KafkaReader, offsets: dict[tuple[str, int], int]) -> bool:
        commits.extend([1] if offsets else [])
        return commit(reader, offsets)

    monkeypatch.setattr(KafkaReader, "topic_names", look)
    monkeypatch.setattr(KafkaReader, "commit", count)
    writer = KafkaWriter(WRITER, KafkaCluster(bootstrap=kafka.bootstrap))
    with working(kafka, broker_of(mosquitto), f"gateway-{unique}"):
        begun = time.monotonic()
        for prediction in answers(device, 200):
            writer.write_all(names.PREDICTIONS, [(device.name, messages.encode(prediction))], 30)
            until(partial(is_last, device, prediction.seq))
        allowed = (time.monotonic() - begun) / down_module.COMMIT_EVERY_S + 2
        assert sum(commits) <= allowed
    assert sum(looks) == 1
