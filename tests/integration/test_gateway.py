"""The gateway as a process, between a real Mosquitto and a real Kafka: what it says is true, and it keeps nothing."""

import json
import os
import secrets
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import confluent_kafka as ck
import pytest

from sluice.dev.processes import Processes
from sluice.doors.kafka import KafkaCluster, KafkaWriter
from sluice.doors.mqtt import Incoming, MqttDoor
from sluice.wire import messages, names, signing
from sluice.wire.messages import Audit
from sluice.wire.state import Desired, seal
from tests.brokers.kafka import Kafka
from tests.brokers.mosquitto import Mosquitto
from tests.integration.edge_support import broker_of, rss_kb, until
from tests.integration.gateway_support import (
    IN_FLIGHT,
    TOPICS,
    Device,
    Gateway,
    Topic,
    header,
)

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def kafka() -> Iterator[Kafka]:
    """One of this module's own: the names of Sluice's topics are fixed, and it is stopped and killed here."""
    with Kafka() as server:
        for topic in TOPICS:
            server.create_topic(topic, 2)
        yield server


@pytest.fixture
def mosquitto() -> Iterator[Mosquitto]:
    with Mosquitto() as server:
        yield server


@pytest.fixture
def gateway(processes: Processes, mosquitto: Mosquitto, kafka: Kafka, unique: str) -> Gateway:
    gateway = Gateway(processes, mosquitto, kafka, unique, GATEWAY_OUTCOMES_SESSION_S="600")  # an end may take 15 s
    with Device(broker_of(mosquitto), f"early-{unique}") as early:
        early.insist(early.prediction())  # from here on the broker keeps for the gateway what is sent
    return gateway


@pytest.fixture
def device(mosquitto: Mosquitto, unique: str) -> Iterator[Device]:
    with Device(broker_of(mosquitto), f"device-{unique}") as device:
        yield device


@pytest.fixture
def predictions(kafka: Kafka) -> Iterator[Topic]:
    topic = Topic(kafka, names.PREDICTIONS)
    yield topic
    topic.close()


@pytest.fixture
def letters(kafka: Kafka) -> Iterator[Topic]:
    topic = Topic(kafka, names.DEAD_LETTER)
    yield topic
    topic.close()


@pytest.fixture
def frozen(kafka: Kafka) -> Iterator[None]:
    """Kafka stands still: connections stay, no answer comes."""
    os.kill(kafka.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(kafka.pid, signal.SIGCONT)


@pytest.mark.parametrize("killed", [False, True])
def test_a_receipt_only_when_kafka_has_it(
    gateway: Gateway, device: Device, kafka: Kafka, predictions: Topic, killed: bool
) -> None:
    """Frozen Kafka: no receipt, a bounded number of messages taken in, and the MQTT broker still has every one."""
    count = 300
    first = device.prediction()
    device.send("prediction", messages.encode(first))
    until(lambda: device.receipted() == [first.seq])
    before = rss_kb(gateway.process.child.pid)
    os.kill(kafka.pid, signal.SIGSTOP)
    try:
        sent = [replace(device.prediction(), outputs=bytes(20_000)) for _ in range(count)]
        for prediction in sent:
            device.send("prediction", messages.encode(prediction))
        until(lambda: device.taken == count + 1)  # by the MQTT broker, which queues them
        until(lambda: gateway.in_flight() == IN_FLIGHT)
        for _ in range(10):
            assert gateway.in_flight() == IN_FLIGHT
            time.sleep(0.05)
        assert rss_kb(gateway.process.child.pid) - before < 20_000
        assert device.receipted() == [first.seq]
        if killed:
            gateway.kill()
    finally:
        os.kill(kafka.pid, signal.SIGCONT)
    if killed:
        gateway.start()
    wanted = {first.seq, *(p.seq for p in sent)}
    until(lambda: set(device.receipted()) == wanted)
    until(lambda: set(predictions.seqs(device.name)) == wanted)
    repeats = {seq: n for seq, n in Counter(predictions.seqs(device.name)).items() if n > 1}
    assert len(repeats) <= (100 if killed else IN_FLIGHT)  # at most what was under way
    until(lambda: gateway.in_flight() == 0)
    assert gateway.process.stop() == 0


def test_told_to_stop_while_kafka_is_away_it_stops(
    gateway: Gateway, device: Device, kafka: Kafka, predictions: Topic
) -> None:
    os.kill(kafka.pid, signal.SIGSTOP)
    try:
        sent = [device.prediction() for _ in range(100)]
        for prediction in sent:
            device.send("prediction", messages.encode(prediction))
        until(lambda: gateway.in_flight() == IN_FLIGHT)
        gateway.process.ask_to_stop()
        gateway.process.child.wait(100)
    finally:
        os.kill(kafka.pid, signal.SIGCONT)
    assert gateway.process.child.returncode == 0, gateway.process.tail()
    gateway.start()
    until(lambda: set(device.receipted()) == {p.seq for p in sent})
    until(lambda: set(predictions.seqs(device.name)) == {p.seq for p in sent})


def test_an_unknown_schema_is_not_receipted_and_does_not_clog(gateway: Gateway, device: Device, letters: Topic) -> None:
    """More of them than may be in flight, and after them one that is known."""
    known = device.offload()
    for _ in range(3 * IN_FLIGHT):
        device.send("offload", b"\xc3\x01" + secrets.token_bytes(8) + b"body")
    device.send("offload", messages.encode(known))
    until(lambda: device.receipted() == [known.seq])
    assert gateway.in_flight() == 0
    assert letters.of(device.name) == []


def test_a_device_can_only_speak_for_itself(gateway: Gateway, device: Device, letters: Topic, kafka: Kafka) -> None:
    assert gateway.process.running
    victim = f"victim-{device.name}"
    forged = replace(device.prediction(), device_id=victim)
    device.send("prediction", messages.encode(forged))
    good = device.prediction()
    device.send("prediction", messages.encode(good))
    until(lambda: device.receipted() == [good.seq])
    (letter,) = until(lambda: letters.of(victim))
    assert header(letter, "reason") == f"outcome of '{victim}' on the topic of '{device.name}'"
    assert header(letter, "origin") == f"sluice/{device.name}/prediction"
    predictions = Topic(kafka, names.PREDICTIONS)
    until(lambda: good.seq in predictions.seqs(device.name))
    assert all(messages.decode(r.value).device_id != victim for r in predictions.records)
    predictions.close()


def test_an_offload_without_a_topic_becomes_a_dead_letter_and_is_receipted(
    gateway: Gateway, device: Device, letters: Topic
) -> None:
    assert gateway.process.running
    nowhere = device.offload(model="unheard-of")
    device.send("offload", messages.encode(nowhere))
    until(lambda: device.receipted() == [nowhere.seq])
    (letter,) = until(lambda: letters.of(device.name))
    assert "no topic for tier fog, model unheard-of" in header(letter, "reason")
    assert messages.decode(letter.value) == nowhere


def test_a_record_at_kafkas_limit_takes_no_place_for_ever(gateway: Gateway, device: Device, letters: Topic) -> None:
    """Small enough for the gateway, too large for Kafka's client together with its key."""
    small = device.prediction()
    room = messages.MAX_MESSAGE_BYTES - len(messages.encode(small)) - 2
    large = [replace(device.prediction(), outputs=bytes(room // 4 * 4)) for _ in range(IN_FLIGHT + 2)]
    for prediction in large:
        assert messages.MAX_MESSAGE_BYTES - len(device.name) < len(messages.encode(prediction))
        device.send("prediction", messages.encode(prediction))
    good = device.prediction()
    device.send("prediction", messages.encode(good))
    until(lambda: set(device.receipted()) == {good.seq, *(p.seq for p in large)})
    until(lambda: gateway.in_flight() == 0)
    until(lambda: len(letters.of(device.name)) == len(large))


def test_several_predictions_in_a_message_become_several_records(
    gateway: Gateway, device: Device, predictions: Topic
) -> None:
    assert gateway.process.running
    sent = [device.prediction() for _ in range(20)]
    device.send("prediction", b"".join(messages.encode(p) for p in sent))
    until(lambda: sorted(device.receipted()) == [p.seq for p in sent])
    until(lambda: len(predictions.of(device.name)) == len(sent))
    assert [messages.decode(record.value) for record in predictions.of(device.name)] == sent
    assert {record.key for record in predictions.of(device.name)} == {device.name.encode()}


def committed(kafka: Kafka) -> int:
    """The sum of the offsets that the gateways have committed on the topic of predictions."""
    reader = ck.Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "sluice-gateway", "log_level": 0})
    places = reader.committed([ck.TopicPartition(names.PREDICTIONS, p) for p in range(2)], timeout=30)
    reader.close()
    return sum(max(0, place.offset) for place in places)


def ends(kafka: Kafka) -> int:
    reader = ck.Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": secrets.token_hex(4), "log_level": 0})
    found = [reader.get_watermark_offsets(ck.TopicPartition(names.PREDICTIONS, p), timeout=30)[1] for p in range(2)]
    reader.close()
    return sum(found)


def test_answers_go_down_and_offsets_move_only_when_the_broker_took_them(
    gateway: Gateway, device: Device, kafka: Kafka, mosquitto: Mosquitto
) -> None:
    writer = KafkaWriter("test", KafkaCluster(bootstrap=kafka.bootstrap))
    warm = device.prediction("cloud", "last")
    writer.write_all(names.PREDICTIONS, [(device.name, messages.encode(warm))], 30)
    until(lambda: [messages.decode(m.payload) for m in device.inbox] == [warm])
    until(lambda: committed(kafka) == ends(kafka))
    before = committed(kafka)

    own, expired = device.prediction(), device.prediction("edge", "expired")
    audit = replace(device.prediction("cloud", "last"), audit=Audit(of=own.seq, exit=0, label=1))
    answers = [device.prediction("fog", "last") for _ in range(150)]
    os.kill(mosquitto.pid, signal.SIGSTOP)
    try:
        everything = [own, expired, audit, *answers]
        writer.write_all(names.PREDICTIONS, [(device.name, messages.encode(p)) for p in everything], 30)
        time.sleep(0.5)  # enough to read them; whether it has read them or not, nothing may be committed but `own`
        assert before <= committed(kafka) <= before + 1
        gateway.kill()
    finally:
        os.kill(mosquitto.pid, signal.SIGCONT)
    gateway.start()
    wanted = {warm.seq, expired.seq, *(p.seq for p in answers)}
    until(lambda: {messages.decode(m.payload).seq for m in device.inbox} == wanted)
    until(lambda: committed(kafka) == ends(kafka))
    order = list(dict.fromkeys(messages.decode(m.payload).seq for m in device.inbox))
    assert order == sorted(order)


def test_told_to_stop_while_kafka_owes_it_a_commit_it_stops(
    gateway: Gateway, device: Device, kafka: Kafka, mosquitto: Mosquitto
) -> None:
    """librdkafka repeats such a commit without end, and neither it nor `close` returns until Kafka is back."""
    writer = KafkaWriter("test", KafkaCluster(bootstrap=kafka.bootstrap))
    warm, answer = device.prediction("cloud", "last"), device.prediction("cloud", "last")
    writer.write_all(names.PREDICTIONS, [(device.name, messages.encode(warm))], 30)
    until(lambda: committed(kafka) == ends(kafka))
    taken = gateway.metric("sluice_gateway_answers_total")
    os.kill(mosquitto.pid, signal.SIGSTOP)  # so that the gateway has an answer that it may not commit yet
    try:
        writer.write_all(names.PREDICTIONS, [(device.name, messages.encode(answer))], 30)
        until(lambda: gateway.metric("sluice_gateway_answers_total") == taken + 1)
        os.kill(kafka.pid, signal.SIGSTOP)
    finally:
        os.kill(mosquitto.pid, signal.SIGCONT)
    try:
        until(lambda: messages.encode(answer) in [m.payload for m in device.inbox])
        gateway.process.ask_to_stop()
        gateway.process.child.wait(60)
    finally:
        os.kill(kafka.pid, signal.SIGCONT)
    assert gateway.process.child.returncode == 0, gateway.process.tail()
    gateway.start()
    until(lambda: committed(kafka) == ends(kafka))


def test_desired_state_is_retained_and_rubbish_among_it_is_passed_by(
    gateway: Gateway, device: Device, kafka: Kafka, mosquitto: Mosquitto, letters: Topic, tmp_path: Path
) -> None:
    assert gateway.process.running
    key = signing.load_or_make_key(tmp_path / "key.pem")
    desired = Desired(device_id=device.name, revision=1, runs=())
    envelopes = [seal(key, desired.model_copy(update={"revision": revision})) for revision in (1, 2)]
    rubbish = [(device.name, f"no JSON for {device.name}".encode()), (f"../{device.name}", envelopes[0])]
    writer = KafkaWriter("test", KafkaCluster(bootstrap=kafka.bootstrap))
    writer.write_all(names.DESIRED, [(device.name, envelopes[0]), *rubbish, (device.name, envelopes[1])], 30)
    until(lambda: [m.payload for m in device.desired][-1:] == [envelopes[1]])  # the older one may be told, or not
    until(lambda: gateway.log_lines("not passed on") == len(rubbish))
    assert letters.of(device.name) == [], "the results writer keeps it, once"

    late: list[Incoming] = []
    came = threading.Event()

    def hear(message: Incoming) -> None:
        late.append(message)
        came.set()

    topic = f"sluice/{device.name}/desired"
    door = MqttDoor(
        "late",
        broker_of(mosquitto),
        f"{device.name}-late",
        subscriptions=[(topic, 1)],
        on_message=hear,
    )
    door.start()
    assert came.wait(60)
    door.stop()
    assert [(m.payload, m.retained) for m in late] == [(envelopes[1], True)]

    writer.write_all(names.DESIRED, [(device.name, b"")], 30)  # nothing is desired any more
    until(lambda: device.desired[-1].payload == b"")


@pytest.mark.parametrize("absent", ["mosquitto", "kafka"])
def test_a_broker_that_is_not_there_at_the_start_is_one_line_and_no_more(
    processes: Processes, mosquitto: Mosquitto, kafka: Kafka, unique: str, absent: str
) -> None:
    server = mosquitto if absent == "mosquitto" else kafka
    server.kill()
    try:
        gateway = Gateway(processes, mosquitto, kafka, unique)
        lines = {
            "mosquitto": ["uplink: MQTT broker", "downlink: MQTT broker"],
            "kafka": [f"gateway-{unique}-up: Kafka at"],
        }[absent]
        until(lambda: all(gateway.log_lines(line) for line in lines))
        time.sleep(3)  # some more tries
        assert [gateway.log_lines(line) for line in lines] == [1] * len(lines)
    finally:
        server.start()
    with Device(broker_of(mosquitto), f"device-{unique}") as device:
        device.insist(device.prediction())
        writer = KafkaWriter("test", KafkaCluster(bootstrap=kafka.bootstrap))
        answer = device.prediction("cloud", "last")
        writer.write_all(names.PREDICTIONS, [(device.name, messages.encode(answer))], 30)
        until(lambda: answer.seq in [messages.decode(m.payload).seq for m in device.inbox])
    assert gateway.process.stop() == 0
    assert "Traceback" not in json.dumps(gateway.process.log.read_text())
