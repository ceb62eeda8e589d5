"""Bad input on every topic becomes a dead letter with reason and origin, and the next sample is served."""

import queue
import secrets
import time
from collections.abc import Callable, Iterator

import pytest

from sluice.dev import demo as acts
from sluice.doors.kafka import KafkaReader, KafkaWriter, Record
from sluice.doors.mqtt import MqttDoor
from sluice.wire import names
from tests.e2e.conftest import Whole

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(400)]

WAIT_S = 30.0


class Letters:
    """The dead letters that come from now on."""

    def __init__(self, whole: Whole) -> None:
        cluster = whole.system.brokers.kafka
        self.reader = KafkaReader("letters", cluster, f"letters-{secrets.token_hex(4)}")
        self.reader.assign_all(names.DEAD_LETTER)
        self.seen: list[Record] = []
        self.until(lambda _record: False, patience_s=2.0)
        self.seen.clear()

    def until(self, wanted: Callable[[Record], bool], patience_s: float = WAIT_S) -> Record | None:
        """The first that is wanted, of those seen already or of those that come."""
        deadline = time.monotonic() + patience_s
        while True:
            for record in self.seen:
                if wanted(record):
                    return record
            if time.monotonic() >= deadline:
                return None
            self.seen += self.reader.read(500, 0.2)


@pytest.fixture
def letters(whole: Whole) -> Iterator[Letters]:
    letters = Letters(whole)
    yield letters
    letters.reader.close()


def headers(record: Record) -> dict[str, str]:
    return {name: value.decode() if isinstance(value, bytes) else str(value) for name, value in record.headers}


def holds(value: bytes) -> Callable[[Record], bool]:
    return lambda record: record.value == value


def says(reason: str) -> Callable[[Record], bool]:
    return lambda record: reason in headers(record)["reason"]


def still_serves(whole: Whole) -> None:
    sensor = acts.infer(whole.system, whole.held, whole.console, samples=40)
    assert all(len(told.finals) == 1 for told in sensor.told)


def publish(whole: Whole, user: str, messages: list[tuple[str, bytes]]) -> None:
    taken: queue.SimpleQueue[int] = queue.SimpleQueue()
    door = MqttDoor(
        "test", whole.system.brokers.as_user(user), f"{user}-{secrets.token_hex(4)}", on_published=taken.put
    )
    door.start()
    assert door.up.wait(WAIT_S)
    for topic, payload in messages:
        door.publish(topic, payload)
        taken.get(timeout=WAIT_S)
    door.stop()


def an_offload(whole: Whole) -> bytes:
    """A real record of a real offload."""
    cluster = whole.system.brokers.kafka
    reader = KafkaReader("offloads", cluster, f"offloads-{secrets.token_hex(4)}")
    reader.assign_all(names.offload_topic("cloud", acts.MODEL))
    deadline = time.monotonic() + WAIT_S
    try:
        while time.monotonic() < deadline:
            for record in reader.read(10, 0.2):
                return record.value
    finally:
        reader.close()
    raise AssertionError("no sample has travelled to the cloud yet")


@pytest.mark.parametrize("kind", ["offload", "prediction", "reported", "status", "dead-letter"])
def test_a_device_that_sends_rubbish_up(whole: Whole, letters: Letters, kind: str) -> None:
    rubbish = f"rubbish {secrets.token_hex(8)}".encode()
    topic = f"sluice/{whole.system.devices[0]}/{kind}"
    publish(whole, whole.system.devices[0], [(topic, rubbish)])
    letter = letters.until(holds(rubbish))
    assert letter is not None
    assert headers(letter)["origin"] == topic
    assert headers(letter)["room"] == "gateway"
    assert headers(letter)["reason"]
    still_serves(whole)


def test_truncated_oversized_and_foreign_offloads(whole: Whole, letters: Letters) -> None:
    """Truncated: cut in the middle. Oversized: more than a message may have. Foreign: of another device."""
    still_serves(whole)
    real = an_offload(whole)
    device, other = whole.system.devices
    topic = f"sluice/{device}/offload"
    foreign = real.replace(device.encode(), other.encode()) if device.encode() in real else real
    publish(whole, device, [(topic, real[:-7]), (topic, b"\0" * 1_500_000), (topic, foreign)])
    for wanted in ("broken offload", "over the limit", f"outcome of '{other}'"):
        letter = letters.until(says(wanted))
        assert letter is not None, (wanted, [headers(record)["reason"] for record in letters.seen])
    still_serves(whole)


def test_a_sensor_that_sends_rubbish(whole: Whole, letters: Letters) -> None:
    """The device has no Kafka: it sends the dead letter up, and says so in what it reports."""
    device = whole.system.devices[0]
    topic = f"sluice/{device}/sensor/camera"
    for payload, reason in [
        (b"\xff\xfe", "not JSON"),
        (b'{"values": "many"}', "no numbers"),
        (b'{"values": [1, 2, 3]}', "3 values"),
        (b'{"values": [1e999]}', "infinite"),
        (b'{"values": [' + b"3," * 63 + b"999]}", "do not fit uint8"),
    ]:
        publish(whole, device, [(topic, payload)])
        letter = letters.until(holds(payload))
        assert letter is not None, reason
        assert reason in headers(letter)["reason"]
        assert headers(letter)["room"] == "edge-agent"
        assert headers(letter)["origin"] == topic
    still_serves(whole)


@pytest.mark.parametrize(
    ("topic", "room"),
    [
        (names.offload_topic("fog", acts.MODEL), "stage-fog"),
        (names.offload_topic("cloud", acts.MODEL), "stage-cloud"),
        (names.PREDICTIONS, "results-writer"),
        (names.DEVICES, "results-writer"),
        (names.CONTROL, "results-writer"),
        (names.DESIRED, "results-writer"),
    ],
)
def test_rubbish_on_a_kafka_topic(whole: Whole, letters: Letters, topic: str, room: str) -> None:
    rubbish = f"rubbish {secrets.token_hex(8)}".encode()
    writer = KafkaWriter("test", whole.system.brokers.kafka)
    writer.write_all(topic, [(whole.system.devices[0], rubbish)], 10)
    letter = letters.until(holds(rubbish))
    assert letter is not None
    said = headers(letter)
    assert (said["origin"], said["room"]) == (topic, room)
    assert int(said["offset"]) >= 0
    assert said["reason"]
    still_serves(whole)
