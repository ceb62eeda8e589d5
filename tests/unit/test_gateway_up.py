"""The way up, with a recording door and a Kafka that the test plays: what is receipted, and when a place is free."""

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import confluent_kafka as ck
import pytest

from gateway import bridge
from gateway.settings import GatewaySettings
from gateway.up import Up
from sluice.doors.kafka import KafkaCluster, KafkaWriter
from sluice.doors.kafka_topics import EmbeddedKafka, ensure_topics
from sluice.doors.mqtt import Incoming
from sluice.wire import messages, names
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.messages import Outcome
from sluice.wire.state import Receipt, parse_state
from tests.unit.edge_stand_ins import DEVICE, Clock, Device

Delivered = Callable[[Exception | None], None]


class Kafka:
    """Both Kafka clients of the way up; what is written waits until the test confirms it."""

    def __init__(self) -> None:
        self.written: list[tuple[str, bytes, Delivered]] = []
        self.known = {names.offload_topic("fog", "columns"), names.PREDICTIONS, names.DEVICES, names.DEAD_LETTER}
        self.idle = threading.Event()
        self.looks = 0
        self.away = False
        self.refuse: Callable[[str, bytes], Exception | None] = lambda _topic, _value: None
        self.settle: Callable[[], None] = lambda: None
        self.on_look: Callable[[], None] = lambda: None

    def write(self, topic: str, value: bytes, *, on_delivery: Delivered, **_rest: object) -> None:
        error = self.refuse(topic, value)
        if error is not None:
            raise error
        self.written.append((topic, value, on_delivery))

    def poll(self, timeout_s: float = 0.0) -> None:
        self.idle.wait(timeout_s)

    def flush(self, _timeout_s: float) -> int:
        return len(self.written)

    def topic_names(self) -> set[str]:
        self.looks += 1
        self.on_look()
        if self.away:
            raise TemporaryError("no Kafka")
        return self.known

    def close(self) -> None:
        pass

    def confirm(self, error: Exception | None = None) -> list[str]:
        """Tell the fate of all that is written so far; returns the topics."""
        topics = self.deliver(error)
        self.settle()
        return topics

    def deliver(self, error: Exception | None = None) -> list[str]:
        """The same, and nobody looks at it yet."""
        written, self.written = self.written, []
        for _, _, delivered in written:
            delivered(error)
        return [topic for topic, _, _ in written]


class Door:
    def __init__(self) -> None:
        self.started = threading.Event()
        self.acked: list[Incoming] = []
        self.receipts: list[Receipt] = []

    def ack(self, *messages: Incoming) -> None:
        self.acked.extend(messages)

    def publish(self, topic: str, payload: bytes) -> int:
        assert topic == f"sluice/{DEVICE}/receipt"
        self.receipts.append(parse_state(Receipt, payload))
        return 0

    def start(self) -> None:
        self.started.set()

    def stop(self) -> None:
        pass


class Way:
    """The way up between the two."""

    def __init__(self, **settings: Any) -> None:
        self.up = Up(GatewaySettings(**settings))
        self.kafka, self.door = Kafka(), Door()
        self.up.catalogue.close()
        self.up.writer = cast(Any, self.kafka)
        self.up.catalogue = cast(Any, self.kafka)
        self.up.door = self.up.state_door = cast(Any, self.door)
        self.kafka.settle = self.up._settle
        self.mid = 0

    def message(self, kind: str, *outcomes: Outcome, device: str = DEVICE) -> Incoming:
        payload = b"".join(messages.encode(outcome) for outcome in outcomes)
        return self.raw(kind, payload, device)

    def raw(self, kind: str, payload: bytes, device: str = DEVICE) -> Incoming:
        self.mid += 1
        incoming = Incoming(f"sluice/{device}/{kind}", payload, 1, False, self.mid, 1)
        self.up._take_in(incoming)
        self.up._carry_all()
        self.up._settle()
        return incoming

    def receipted(self) -> list[int]:
        self.up._receipts.send(busy=False)
        seqs = [seq for receipt in self.door.receipts for seq in receipt.seqs]
        self.door.receipts.clear()
        return seqs

    @property
    def free(self) -> int:
        return self.up._places.most - self.up._places.taken


@pytest.fixture
def way() -> Way:
    return Way(in_flight=5)


@pytest.fixture
def device(tmp_path: Path) -> Any:
    device = Device(tmp_path, Clock())
    yield device
    device.store.close()


def test_a_receipt_only_when_kafka_has_it(way: Way, device: Device) -> None:
    offload = device.offload()
    incoming = way.message("offload", offload)
    assert (way.receipted(), way.door.acked, way.free) == ([], [], 4)
    assert way.kafka.confirm() == [names.offload_topic("fog", "columns")]
    assert (way.receipted(), way.door.acked, way.free) == ([offload.seq], [incoming], 5)
    assert way.receipted() == []


def test_several_predictions_become_several_records(way: Way, device: Device) -> None:
    own = [device.own_final() for _ in range(4)]
    way.message("prediction", *own)
    assert [messages.decode(value) for _, value, _ in way.kafka.written] == own
    _, _, first = way.kafka.written.pop(0)
    first(None)
    assert way.receipted() == [] and way.door.acked == []
    way.kafka.confirm()
    assert way.receipted() == [p.seq for p in own] and way.free == 5


def test_a_message_with_one_broken_record_is_written_as_a_dead_letter_only(way: Way, device: Device) -> None:
    incoming = way.message("prediction", device.own_final(), replace(device.own_final(), device_id="another"))
    assert way.kafka.confirm() == [names.DEAD_LETTER]
    assert way.receipted() == [] and way.door.acked == [incoming] and way.free == 5


@pytest.mark.parametrize(
    ("kind", "change"),
    [("prediction", {}), ("offload", {"device_id": "another"}), ("offload", {"tier": "edge"})],
)
def test_what_stands_on_the_wrong_topic_is_a_dead_letter(way: Way, device: Device, kind: str, change: Any) -> None:
    """What its own device sent is receipted: it would only send it again, for ever."""
    wrong = device.offload(**change)
    way.message(kind, wrong)
    assert way.receipted() == []
    assert way.kafka.confirm() == [names.DEAD_LETTER]
    assert way.receipted() == ([] if "device_id" in change else [wrong.seq])


def test_what_is_refused_takes_nothing_with_it(way: Way, device: Device) -> None:
    own, wrong = device.own_final(), device.offload()
    way.message("prediction", own, wrong)
    assert [(topic, messages.decode(value)) for topic, value, _ in way.kafka.written] == [
        (names.PREDICTIONS, own),
        (names.DEAD_LETTER, wrong),
    ]
    way.kafka.confirm()
    assert way.receipted() == [own.seq, wrong.seq] and way.free == 5


def test_without_a_topic_a_dead_letter_and_a_receipt(way: Way, device: Device) -> None:
    offload = device.offload(model="unheard-of")
    way.message("offload", offload)
    assert way.receipted() == []
    assert way.kafka.confirm() == [names.DEAD_LETTER]
    assert way.receipted() == [offload.seq]


def test_an_unknown_schema_is_not_receipted_and_takes_no_place(way: Way) -> None:
    for _ in range(20):
        incoming = way.raw("offload", b"\xc3\x01" + b"newer!!!" + b"body")
        assert way.door.acked[-1] == incoming
    assert way.kafka.written == [] and way.receipted() == [] and way.free == 5


def test_a_record_that_the_client_itself_refuses_becomes_a_dead_letter(way: Way, device: Device) -> None:
    """Too large by the length of its key: it must neither keep its place for ever nor be forgotten."""
    way.kafka.refuse = lambda topic, _: None if topic == names.DEAD_LETTER else PermanentError("too large")
    for _ in range(20):
        offload = device.offload()
        incoming = way.message("offload", offload)
        assert way.receipted() == [] and way.free == 4
        assert way.kafka.confirm() == [names.DEAD_LETTER]
        assert way.receipted() == [offload.seq] and way.free == 5
        assert way.door.acked[-1] == incoming


def test_a_refusal_by_kafka_becomes_a_dead_letter_and_a_receipt(way: Way, device: Device) -> None:
    offload = device.offload()
    way.message("offload", offload)
    way.kafka.confirm(PermanentError("message too large"))
    assert way.receipted() == [] and way.door.acked == []
    assert way.kafka.confirm() == [names.DEAD_LETTER]
    assert way.receipted() == [offload.seq] and way.free == 5
    way.raw("offload", b"rubbish")
    with pytest.raises(RuntimeError, match="dead letter cannot be written"):
        way.kafka.confirm(PermanentError("no such topic"))


def test_no_receipt_for_what_is_not_written_yet_whenever_confirmations_come(way: Way, device: Device) -> None:
    """Confirmations come while the message is still taken apart: while the topic of its second record is looked for."""
    first, second = device.offload(), device.offload(model="other")

    def on_look() -> None:
        way.kafka.deliver()
        way.kafka.away = way.kafka.looks < 2

    way.kafka.on_look = on_look
    way.up._known_topics = {names.offload_topic("fog", "columns")}
    way.kafka.known = {names.offload_topic("fog", "columns"), names.offload_topic("fog", "other")}
    incoming = way.message("offload", first, second)
    assert way.kafka.looks == 2
    assert way.receipted() == [] and way.door.acked == [] and way.free == 4
    assert way.kafka.confirm() == [names.offload_topic("fog", "other")]
    assert way.receipted() == [first.seq, second.seq] and way.door.acked == [incoming] and way.free == 5


def test_told_to_stop_while_kafka_is_away_nothing_is_acknowledged(way: Way, device: Device) -> None:
    way.kafka.away = True
    way.kafka.on_look = way.up._stop.set
    way.message("offload", device.offload())
    assert way.receipted() == [] and way.door.acked == [] and way.kafka.written == []


def test_at_its_end_nobody_waits_for_a_place(way: Way, device: Device) -> None:
    """Kafka is away and all places are taken: the network thread has more to bring when the gateway is told to stop."""
    payload = messages.encode(device.offload())

    def bring() -> None:
        for mid in range(50):
            way.up._take_in(Incoming(f"sluice/{DEVICE}/offload", payload, 1, False, mid, 1))

    network = threading.Thread(target=bring, daemon=True)
    network.start()
    stop = threading.Event()
    loop = threading.Thread(target=way.up.run, args=(stop,), daemon=True)
    loop.start()
    deadline = threading.Event()
    while len(way.kafka.written) < 5:
        deadline.wait(0.01)
    stop.set()
    network.join(20)
    loop.join(20)
    assert not network.is_alive() and not loop.is_alive()
    assert len(way.kafka.written) == 5 and way.door.acked == []


def test_nothing_is_taken_in_before_the_fixed_topics_are_there(way: Way) -> None:
    """A fresh Kafka: the first outcome would have nowhere to go, not even as a dead letter."""
    way.kafka.known.discard(names.PREDICTIONS)
    stop, looked_twice = threading.Event(), threading.Event()
    loop = threading.Thread(target=way.up.run, args=(stop,), daemon=True)
    loop.start()
    while way.kafka.looks < 2:
        looked_twice.wait(0.01)
    assert not way.door.started.is_set()
    way.kafka.known.add(names.PREDICTIONS)
    assert way.door.started.wait(20)
    stop.set()
    loop.join(20)
    assert not loop.is_alive()


def break_for_good(writer: KafkaWriter) -> None:
    """What librdkafka offers for tests: the producer has a fatal error from now on, as after lost sequence numbers."""
    (library,) = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "librdkafka" in line}
    client = ctypes.c_void_p.from_address(id(writer._producer) + object.__basicsize__)
    out_of_order = ctypes.c_int(45)
    ctypes.CDLL(library).rd_kafka_test_fatal_error(client, out_of_order, b"broken by a test")


@pytest.mark.parametrize("busy", [True, False])
def test_a_producer_that_is_broken_for_good_ends_it_with_nothing_acknowledged(device: Device, busy: bool) -> None:
    """The idempotent producer of a real client, at librdkafka's own mock cluster; loudly, with or without traffic."""
    mock = EmbeddedKafka()
    cluster = KafkaCluster(bootstrap=mock.bootstrap)
    ensure_topics(cluster, dict.fromkeys(Kafka().known, 1))
    up = Up(GatewaySettings(kafka=cluster))
    door = Door()
    up.door = cast(Any, door)
    with ThreadPoolExecutor(1) as pool:
        end = pool.submit(up.run, threading.Event())
        assert door.started.wait(20)
        break_for_good(up.writer)
        if busy:
            up._take_in(Incoming(f"sluice/{DEVICE}/offload", messages.encode(device.offload()), 1, False, 1, 1))
        with pytest.raises((RuntimeError, ck.KafkaException), match=r"[Ff]atal|FATAL"):
            end.result(60)
    assert door.acked == [] and door.receipts == []


def test_a_defect_on_the_way_up_ends_the_way_down_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a gateway would look alive, and no supervisor would start it again."""
    ended = threading.Event()

    class BrokenUp:
        def __init__(self, _settings: GatewaySettings) -> None:
            pass

        def run(self, _stop: threading.Event) -> None:
            raise RuntimeError("defect")

    class Down:
        def __init__(self, _settings: GatewaySettings) -> None:
            pass

        def run(self, stop: threading.Event) -> None:
            stop.wait(20)
            ended.set()

    monkeypatch.setattr(bridge, "Up", BrokenUp)
    monkeypatch.setattr(bridge, "Down", Down)
    with pytest.raises(RuntimeError, match="defect"):
        bridge.run(GatewaySettings(), threading.Event())
    assert ended.is_set()
