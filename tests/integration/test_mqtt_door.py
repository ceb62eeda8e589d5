"""The door to MQTT on a real Mosquitto: whole messages in order, whatever the protocol, the sizes and the transport."""

import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from sluice.doors.mqtt import Incoming, MqttBroker, MqttDoor
from sluice.doors.mqtt_socket import AHEAD
from sluice.wire.errors import PermanentError
from tests.brokers.certificate import self_signed
from tests.brokers.mosquitto import Mosquitto
from tests.brokers.process import HOST, free_port
from tests.integration.edge_support import until

pytestmark = pytest.mark.brokers

SIZES = (0, 1, 100, 127, 128, 1024, 16_383, 16_384, AHEAD - 1, AHEAD, 2 * AHEAD + 1, 500_000)


class TlsMosquitto(Mosquitto):
    """It listens on one more port, with TLS and a certificate of its own making, which is its authority too."""

    def prepare(self) -> None:
        super().prepare()
        self.tls_port = free_port()
        self.certificate, key_file = self_signed(self.folder)
        listener = f"listener {self.tls_port} {HOST}\ncertfile {self.certificate}\nkeyfile {key_file}\n"
        self.config.write_text(self.config.read_text() + listener)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsMosquitto]:
    with TlsMosquitto(tmp_path_factory.mktemp("tls")) as server:
        yield server


@pytest.fixture(params=["MQTT 5", "MQTT 3.1.1", "TLS"])
def broker(request: pytest.FixtureRequest, tls: TlsMosquitto) -> MqttBroker:
    if request.param == "TLS":
        return MqttBroker(host=tls.host, port=tls.tls_port, tls_ca=str(tls.certificate))
    return MqttBroker(host=tls.host, port=tls.port, version=3 if request.param == "MQTT 3.1.1" else 5)


@pytest.fixture
def client(broker: MqttBroker, unique: str) -> Iterator[Callable[..., MqttDoor]]:
    """Makes a door and waits until it is up; all are stopped in the end."""
    doors: list[MqttDoor] = []

    def make(name: str, **more: object) -> MqttDoor:
        door = MqttDoor(name, broker, f"{name}-{unique}", keep_session=False, **more)  # type: ignore[arg-type]
        doors.append(door)
        door.start()
        assert door.up.wait(60)
        return door

    yield make
    for door in doors:
        door.stop()


def test_a_certificate_that_is_none_is_named(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    with pytest.raises(PermanentError, match=f"sensor: tls_ca {file}: No such file"):
        MqttDoor("sensor", MqttBroker(tls_ca=str(file)), "client")
    file.write_text("a diary")
    with pytest.raises(PermanentError, match=f"sensor: tls_ca {file}: .*(?i:certificate)"):
        MqttDoor("sensor", MqttBroker(tls_ca=str(file)), "client")


# paho leaves the socket of a handshake that failed to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"username": "a", "password": "wrong"}, "Not authorized"),
        ({"port": free_port()}, "Connection refused"),
        ({"host": "no-such-host.invalid"}, "no-such-host.invalid: "),
        ({"tls_ca": ""}, "TLS: "),
    ],
)
def test_why_a_broker_does_not_let_in_is_said(
    change: dict[str, object],
    why: str,
    tls: TlsMosquitto,
    tmp_path: Path,
    unique: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if "tls_ca" in change:
        change = {"tls_ca": str(tls.certificate)}
    with Mosquitto(tmp_path, users={"a": "right"}) as server:
        broker = MqttBroker.model_validate({"host": server.host, "port": server.port, **change})
        door = MqttDoor("door", broker, unique, keep_session=False)
        door.start()
        until(lambda: why in caplog.text)
        assert why in door.trouble and not door.up.is_set()
        door.stop()


def test_another_reason_is_said_too(tmp_path: Path, unique: str, caplog: pytest.LogCaptureFixture) -> None:
    """A password that was changed while the broker was away."""
    with Mosquitto(tmp_path, users={"a": "right"}) as server:
        broker = MqttBroker(host=server.host, port=server.port, username="a", password="right")
        door = MqttDoor("door", broker, unique)
        door.start()
        assert door.up.wait(60)
        server.stop()
        until(lambda: "is away" in caplog.text)
        server.users = {"a": "changed"}
        server.start()
        until(lambda: "refused: Not authorized" in caplog.text)
        door.stop()


def test_two_of_one_name_say_so_in_few_lines(tls: TlsMosquitto, unique: str, caplog: pytest.LogCaptureFixture) -> None:
    """They throw one another out again and again."""
    caplog.set_level("INFO", "sluice.doors.mqtt")
    ups: list[str] = []
    broker = MqttBroker(host=tls.host, port=tls.port)
    doors = [MqttDoor(name, broker, unique, on_up=partial(ups.append, name)) for name in ("one", "other")]
    for door in doors:
        door.start()
    until(lambda: len(ups) >= 20)
    for door in doors:
        door.stop()
    for name in ("one", "other"):
        said = [record.getMessage() for record in caplog.records if record.getMessage().startswith(f"{name}: ")]
        assert len(said) <= 5, said
        assert f"does another client use our name, {unique!r}?" in "".join(said)


def test_whole_and_in_order(client: Callable[..., MqttDoor], unique: str) -> None:
    came: list[bytes] = []

    def hear(message: Incoming) -> None:
        came.append(message.payload)
        receiver.ack(message)

    receiver = client("receiver", subscriptions=[(f"{unique}/#", 1)], on_message=hear)
    taken: list[int] = []
    sender = client("sender", on_published=taken.append)
    payloads = [random.randbytes(random.choice(SIZES)) for _ in range(200)]
    sender.publish(f"{unique}/ready", b"ready")
    until(lambda: came == [b"ready"])  # its subscription stands
    for number, payload in enumerate(payloads):
        sender.publish(f"{unique}/{number % 3}", payload)
    until(lambda: len(came) > len(payloads))
    assert came[1:] == payloads
    until(lambda: len(taken) == len(came))


def test_who_is_not_ready_is_not_flooded(client: Callable[..., MqttDoor], unique: str) -> None:
    """While `on_message` waits nothing is handed over, and what follows comes whole when it goes on."""
    came: list[bytes] = []
    may = threading.Event()

    def hear(message: Incoming) -> None:
        came.append(message.payload)
        receiver.ack(message)
        if len(came) > 1:
            assert may.wait(60)

    receiver = client("receiver", subscriptions=[(f"{unique}/#", 1)], on_message=hear)
    taken: list[int] = []
    sender = client("sender", on_published=taken.append)
    sender.publish(f"{unique}/ready", b"ready")
    until(lambda: came == [b"ready"])
    payloads = [random.randbytes(1024) for _ in range(500)]
    for payload in payloads:
        sender.publish(f"{unique}/many", payload)
    until(lambda: len(taken) == 501)  # the broker has them all
    assert came == [b"ready", payloads[0]]
    may.set()
    until(lambda: len(came) > len(payloads))
    assert came[1:] == payloads
