"""The access rules that ship keep devices apart and give the gateway what it needs, on a real Mosquitto.

Mosquitto answers a denied publish with reason code 135 (MQTT 5, QoS 1). It grants every subscription and
filters what it delivers, so what a client must not read is shown by what its inbox lacks when a later message
has come, or, where nothing can come, when the broker has answered a later request on the same connection.
"""

import queue
import threading
from collections.abc import Iterator

import pytest
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from tests.brokers.mosquitto import Mosquitto

pytestmark = pytest.mark.brokers

WAIT_S = 30.0
NOT_AUTHORIZED = 135
GATEWAY = "gateway"
WILDCARDS = ("+", "dev-#", "+/sensor")
NESTED = "dev-a/sensor"
USERS = {name: f"secret of {name}" for name in ("dev-a", "dev-b", GATEWAY, *WILDCARDS, NESTED, "#")}

UP = ("offload", "prediction", "reported", "status", "dead-letter")
DOWN = ("receipt", "desired", "inbox")
SHARED = ("sensor/accelerometer", "answer")
EVERYTHING = (*UP, *DOWN, *SHARED)


class Client:
    """A connection that waits for the broker's answer to each request and collects what comes in."""

    def __init__(self, server: Mosquitto, user: str, client_id: str, will: str | None = None) -> None:
        self._inbox: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[ReasonCode] = queue.SimpleQueue()
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, protocol=mqtt.MQTTv5, reconnect_on_failure=False
        )
        self._client.username_pw_set(user, USERS[user])
        if will is not None:
            self._client.will_set(will, "will", qos=1)
        self._client.on_connect = lambda _client, _data, _flags, code, _props: self._answers.put(code)
        self._client.on_publish = lambda _client, _data, _mid, code, _props: self._answers.put(code)
        self._client.on_subscribe = lambda _client, _data, _mid, codes, _props: self._answers.put(codes[0])
        self._client.on_message = self._on_message
        self._client.connect(server.host, server.port)
        self._client.loop_start()
        assert not self._answer().is_failure

    def _on_message(self, _client: mqtt.Client, _data: object, message: mqtt.MQTTMessage) -> None:
        self._inbox.put((message.topic, message.payload.decode()))

    def _answer(self) -> ReasonCode:
        return self._answers.get(timeout=WAIT_S)

    def publish(self, topic: str, text: str = "x", retain: bool = False) -> int:
        """The broker's reason code."""
        self._client.publish(topic, text, qos=1, retain=retain)
        return self._answer().value

    def may_publish(self, topic: str) -> bool:
        code = self.publish(topic)
        assert code == NOT_AUTHORIZED or code < 128, code
        return code != NOT_AUTHORIZED

    def subscribe(self, *topics: str) -> None:
        for topic in topics:
            self._client.subscribe(topic, qos=1)
            assert not self._answer().is_failure

    def until(self, text: str) -> list[str]:
        """Topics of all that came before the message with that text, which is waited for."""
        topics: list[str] = []
        while True:
            topic, said = self._inbox.get(timeout=WAIT_S)
            if said == text:
                return topics
            topics.append(topic)

    def so_far(self) -> list[str]:
        """Topics of all that the broker has delivered by now: it answers in the order in which it sends."""
        self.subscribe("sluice/barrier")
        topics: list[str] = []
        while not self._inbox.empty():
            topics.append(self._inbox.get()[0])
        return topics

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Room:
    """Makes clients of one broker and closes them."""

    def __init__(self, server: Mosquitto) -> None:
        self.server = server
        self.clients: list[Client] = []

    def client(self, user: str, client_id: str | None = None, will: str | None = None) -> Client:
        number = len(self.clients)
        client = Client(self.server, user, client_id or f"client-{number}", will)
        self.clients.append(client)
        return client


@pytest.fixture(scope="module")
def secured() -> Iterator[Mosquitto]:
    with Mosquitto(users=USERS) as server:
        yield server


@pytest.fixture
def room(secured: Mosquitto) -> Iterator[Room]:
    room = Room(secured)
    yield room
    for client in room.clients:
        client.close()


@pytest.mark.parametrize(
    ("user", "password"),
    [(None, None), ("dev-a", "wrong"), ("stranger", "x"), ("#", USERS["#"])],
    ids=["nobody", "wrong", "stranger", "comment"],
)
def test_nobody_gets_in_without_a_name_and_its_password(
    secured: Mosquitto, user: str | None, password: str | None
) -> None:
    """A user `#` cannot be made at all: in the file of passwords its line is a comment."""
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5, reconnect_on_failure=False)
    refused: list[ReasonCode] = []
    done = threading.Event()

    def on_connect(_client: mqtt.Client, _data: object, _flags: object, code: ReasonCode, _properties: object) -> None:
        refused.append(code)
        done.set()

    client.on_connect = on_connect
    if user is not None:
        client.username_pw_set(user, password)
    client.connect(secured.host, secured.port)
    client.loop_start()
    assert done.wait(WAIT_S)
    client.disconnect()
    client.loop_stop()
    assert refused[0].value == NOT_AUTHORIZED


def test_a_device_may_write_its_own_outcomes_and_states_and_the_gateway_reads_them(room: Room) -> None:
    gateway, device = room.client(GATEWAY), room.client("dev-a")
    topics = [f"sluice/dev-a/{name}" for name in UP]
    gateway.subscribe(*(f"sluice/+/{name}" for name in UP))
    assert [topic for topic in topics if not device.may_publish(topic)] == []
    device.publish(topics[0], "last")
    assert gateway.until("last") == topics


def test_a_device_reads_what_the_gateway_tells_it(room: Room) -> None:
    gateway, device = room.client(GATEWAY), room.client("dev-a")
    topics = [f"sluice/dev-a/{name}" for name in DOWN]
    device.subscribe(*topics)
    assert [topic for topic in topics if not gateway.may_publish(topic)] == []
    gateway.publish(topics[0], "last")
    assert device.until("last") == topics


def test_sensors_and_answers_go_both_ways_under_the_name_of_the_device(room: Room) -> None:
    sensor, agent = room.client("dev-a"), room.client("dev-a")
    topics = [f"sluice/dev-a/{name}" for name in SHARED]
    agent.subscribe("sluice/dev-a/sensor/#", "sluice/dev-a/answer")
    assert [topic for topic in topics if not sensor.may_publish(topic)] == []
    sensor.publish(topics[0], "last")
    assert agent.until("last") == topics


@pytest.mark.parametrize(
    "topic",
    [
        *(f"sluice/dev-b/{name}" for name in EVERYTHING),
        *("sluice/dev-a/receipt", "sluice/dev-a/desired", "sluice/dev-a/inbox"),
        *("sluice/dev-a", "sluice/dev-a/other", "sluice/dev-a/status/more", "sluice/offload", "other"),
        *("dev-a/offload", "sluice/dev-a/../dev-b/status", "sluice//offload"),
    ],
)
def test_a_device_may_not_write(room: Room, topic: str) -> None:
    assert not room.client("dev-a").may_publish(topic)


def test_a_device_reads_nothing_of_another_whatever_it_subscribes(room: Room) -> None:
    gateway, other, device = room.client(GATEWAY), room.client("dev-b"), room.client("dev-a")
    gateway.publish("sluice/dev-b/desired", "kept", retain=True)
    other.publish("sluice/dev-b/status", "kept", retain=True)
    device.subscribe("#", "sluice/#", "sluice/+/answer", "sluice/+/desired", "$SYS/#")
    device.subscribe("sluice/dev-b/#", "sluice/dev-b/answer", "sluice/dev-a/inbox", "$share/mine/sluice/+/offload")
    for name in (*UP, "answer", "sensor/accelerometer"):
        assert other.may_publish(f"sluice/dev-b/{name}")
    for name in DOWN:
        assert gateway.may_publish(f"sluice/dev-b/{name}")
    gateway.publish("sluice/dev-a/inbox", "last")
    assert device.until("last") == []
    gateway.publish("sluice/dev-b/desired", "", retain=True)
    other.publish("sluice/dev-b/status", "", retain=True)


def test_a_last_will_is_no_way_around(room: Room) -> None:
    gateway = room.client(GATEWAY)
    gateway.subscribe("sluice/+/status")
    room.client("dev-a", client_id="dying", will="sluice/dev-b/status")
    # Whoever takes over its client id ends it, and the broker sends its will before it answers.
    room.client("dev-a", client_id="dying", will="sluice/dev-a/status")
    survivor = room.client("dev-a", client_id="dying")
    survivor.publish("sluice/dev-a/status", "last")
    assert gateway.until("last") == ["sluice/dev-a/status"]


def test_the_gateway_shares_the_work_in_a_group(room: Room) -> None:
    device, gateways = room.client("dev-a"), [room.client(GATEWAY), room.client(GATEWAY)]
    for gateway in gateways:
        gateway.subscribe("$share/gateways/sluice/+/offload", "sluice/dev-a/status")
    for _ in range(20):
        assert device.may_publish("sluice/dev-a/offload")
    device.publish("sluice/dev-a/status", "last")
    shares = [len(gateway.until("last")) for gateway in gateways]
    assert sum(shares) == 20
    assert min(shares) > 0


def test_the_gateway_cannot_speak_for_a_device(room: Room) -> None:
    gateway = room.client(GATEWAY)
    topics = [f"sluice/dev-a/{name}" for name in (*UP, "sensor/accelerometer")]
    assert [topic for topic in topics if gateway.may_publish(topic)] == []


def test_a_device_in_the_group_of_the_gateways_learns_nothing(room: Room) -> None:
    device, other, gateway = room.client("dev-a"), room.client("dev-b"), room.client(GATEWAY)
    device.subscribe("$share/gateways/sluice/+/offload", "sluice/dev-a/inbox")
    for _ in range(10):
        assert other.may_publish("sluice/dev-b/offload")
    gateway.publish("sluice/dev-a/inbox", "last")
    assert device.until("last") == []


@pytest.mark.parametrize("user", WILDCARDS)
def test_a_wildcard_in_a_user_name_opens_nothing(room: Room, user: str) -> None:
    gateway, device, wildcard = room.client(GATEWAY), room.client("dev-a"), room.client(user)
    wildcard.subscribe("#", "sluice/#", "sluice/+/answer", "sluice/dev-a/#", "sluice/+/sensor/#")
    assert [name for name in EVERYTHING if wildcard.may_publish(f"sluice/dev-a/{name}")] == []
    for name in (*UP, *SHARED):
        assert device.may_publish(f"sluice/dev-a/{name}")
    for name in DOWN:
        assert gateway.may_publish(f"sluice/dev-a/{name}")
    assert wildcard.so_far() == []


def test_a_slash_in_a_user_name_opens_no_outcome_receipt_or_state(room: Room) -> None:
    """It does open `sluice/dev-a/sensor/answer` and the like: such names must not be given out."""
    gateway, device, nested = room.client(GATEWAY), room.client("dev-a"), room.client(NESTED)
    nested.subscribe("#", "sluice/dev-a/#")
    assert [name for name in EVERYTHING if nested.may_publish(f"sluice/dev-a/{name}")] == []
    for name in (*UP, *SHARED):
        assert device.may_publish(f"sluice/dev-a/{name}")
    for name in DOWN:
        assert gateway.may_publish(f"sluice/dev-a/{name}")
    assert nested.so_far() == []


@pytest.mark.parametrize("client_id", ["+", "#"])
def test_a_wildcard_as_client_id_closes_everything(room: Room, client_id: str) -> None:
    assert not room.client("dev-a", client_id=client_id).may_publish("sluice/dev-a/offload")
