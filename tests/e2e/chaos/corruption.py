"""Broken messages on every topic that a room reads, and what has to become of them.

Avro here has no checksum: a flipped byte in a number makes another valid message, which nobody can tell from the truth.
So messages are broken in ways that can be told: cut off, random bytes, another device's on this device's topic, larger
than allowed, and of a schema whose fingerprint nobody knows. All become dead letters, each of exactly these bytes, but
for the last, which may be newer than its reader and is held; what nothing else shares with it goes on.
"""

from __future__ import annotations

import json
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from sluice.doors.kafka import KafkaWriter
from sluice.doors.mqtt import Incoming, MqttDoor
from sluice.wire import names
from sluice.wire.avro import HEADER_SIZE, MARKER
from sluice.wire.errors import TemporaryError
from tests.e2e.chaos.bundles import MODEL
from tests.e2e.chaos.path import SENSOR_BROKER, WholePath

PARTITIONS = 4
WAIT_S = 20.0
KEPT_BYTES = 200
"""So much of a broken message is compared with its letter, which may hold no more than the beginning."""

FOG, CLOUD = names.offload_topic("fog", MODEL), names.offload_topic("cloud", MODEL)
AVRO_FORMS = ("cut off", "random", "oversize", "unknown schema")
JSON_FORMS = ("cut off", "random", "oversize")
MQTT = {
    "sensor/eye": JSON_FORMS,
    "offload": (*AVRO_FORMS, "foreign"),
    "prediction": (*AVRO_FORMS, "foreign"),
    "reported": JSON_FORMS,
    "status": JSON_FORMS,
    "dead-letter": JSON_FORMS,
    "receipt": JSON_FORMS,
    "inbox": AVRO_FORMS,
    "desired": JSON_FORMS,
}
"""Kinds of MQTT topics and how their messages are broken."""
KAFKA = {
    FOG: AVRO_FORMS,
    CLOUD: AVRO_FORMS,
    names.PREDICTIONS: AVRO_FORMS,
    names.DEVICES: JSON_FORMS,
    names.CONTROL: JSON_FORMS,
    names.DESIRED: JSON_FORMS,
}
REAL = {FOG: "offload", CLOUD: "offload", names.PREDICTIONS: "prediction", names.DEVICES: "reported"}
REAL |= {names.CONTROL: "reported", names.DESIRED: "desired"}
"""The MQTT kind whose messages look like those on a Kafka topic."""
OVER_BYTES = {"json": 70_000, "avro": 1_020_000, "sensor/eye": 1_020_000}


@dataclass(frozen=True)
class Sent:
    """A broken message: where it went, how it was broken, when (monotonic seconds), whether it must make a letter."""

    origin: str
    form: str
    begins: bytes
    broker: str
    at: float
    letter: bool


class Corruption:
    """Listens to real messages, sends broken ones and remembers them."""

    def __init__(self, path: WholePath) -> None:
        self.path = path
        self.sent: list[Sent] = []
        self._own: set[bytes] = set()
        """How what is sent begins: noted before it is sent, since it may be heard before the broker acknowledges it."""
        self._real: dict[tuple[str, str], bytes] = {}
        """The last message of each (device, kind)."""
        self._taken: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._heard = threading.Condition()
        kinds = {kind for kind in MQTT if kind != "sensor/eye"}
        topics = names.MqttTopics()
        self.topics = topics
        self._doors = {
            broker: MqttDoor(
                f"corruption at {broker}",
                path.broker(broker),
                f"corruption-{broker}",
                subscriptions=[(topics.every(kind), 0) for kind in sorted(kinds)] if broker == "uplink" else (),
                on_message=self._listen,
                on_published=self._taken.put,
                keep_session=False,
            )
            for broker in ("uplink", "sensor-b")
        }
        large = {
            "message.max.bytes": 1_040_000
        }  # as large as Kafka itself takes: the client would refuse what is broken
        self._writer = KafkaWriter("corruption", path.system.brokers.kafka, options=large)
        self.quiet_partition = self._quiet_partition()

    def start(self) -> None:
        """Connect."""
        for door in self._doors.values():
            door.start()

    def stop(self) -> None:
        """Leave."""
        for door in self._doors.values():
            door.stop(forget=True)

    def send(self, where: str, dice: random.Random) -> None:
        """One broken message to a topic of `where`, `mqtt` or `kafka`."""
        if where == "mqtt":
            kind = dice.choice(list(MQTT))
            self._to_mqtt(dice.choice(self.path.system.devices), kind, dice.choice(MQTT[kind]), dice)
        else:
            topic = dice.choice(list(KAFKA))
            self._to_kafka(topic, dice.choice(KAFKA[topic]), dice)

    def _to_mqtt(self, device: str, kind: str, form: str, dice: random.Random) -> None:
        broker = SENSOR_BROKER[device] if kind == "sensor/eye" else "uplink"
        real = self._a_real(device, kind)
        if form == "foreign":
            other = next(name for name in self.path.system.devices if name != device)
            real = self._a_real(other, kind)
        payload = _broken(real, kind, form, dice)
        topic = self.topics.of(device, kind)
        door = self._doors[broker]
        if not door.up.wait(WAIT_S):
            raise TemporaryError(f"{broker} does not come back")
        self._own.add(payload[:KEPT_BYTES])
        mid = door.publish(topic, payload)
        while self._taken.get(timeout=WAIT_S) != mid:
            pass  # an earlier one
        self._remember(topic, form, payload, broker)

    def _to_kafka(self, topic: str, form: str, dice: random.Random) -> None:
        device = dice.choice(self.path.system.devices)
        payload = _broken(self._a_real(device, REAL[topic]), REAL[topic], form, dice)
        # state is keyed: a broken record must not be taken by compaction for the newest of a real device
        key = device if topic in (FOG, CLOUD, names.PREDICTIONS) else f"broken-{dice.getrandbits(32)}/reported"
        partition = self.quiet_partition if form == "unknown schema" else None
        failures: list[Exception] = []
        self._writer.write(
            topic, payload, key=key, partition=partition, on_delivery=lambda e: failures.append(e) if e else None
        )
        if self._writer.flush(WAIT_S) or failures:
            raise TemporaryError(f"Kafka does not take what is broken for it: {failures}")
        self._remember(topic, form, payload, "kafka")

    def _remember(self, origin: str, form: str, payload: bytes, broker: str) -> None:
        letter = form != "unknown schema"
        self.sent.append(Sent(origin, form, payload[:KEPT_BYTES], broker, time.monotonic(), letter))

    def _listen(self, incoming: Incoming) -> None:
        device, kind = self.topics.split(incoming.topic)
        if len(incoming.payload) < 5000 and incoming.payload[:KEPT_BYTES] not in self._own:
            with self._heard:
                self._real[device, kind] = incoming.payload
                self._heard.notify_all()
        self._doors["uplink"].ack(incoming)

    def _a_real(self, device: str, kind: str) -> bytes:
        """A real message, as was last heard on that topic; waits for one."""
        made: dict[str, Callable[[], bytes]] = {
            "sensor/eye": lambda: json.dumps({"id": "broken", "values": [0.5] * 16}).encode(),
            "dead-letter": lambda: json.dumps({"reason": "why", "origin": "where", "data": "AAAA"}).encode(),
        }
        if kind in made:
            return made[kind]()
        with self._heard:
            if not self._heard.wait_for(lambda: (device, kind) in self._real, WAIT_S):
                raise TemporaryError(f"no {kind} of {device} was heard")
            return self._real[device, kind]

    def _quiet_partition(self) -> int:
        """A topic partition that no device's key falls into, for what is held there for good."""
        topic = self.path.kafka.create_topic("chaos-keys", PARTITIONS)
        taken: set[int] = set()
        for device in self.path.system.devices:
            self._writer.write(topic, b"", key=device, on_offset=lambda partition, _offset: taken.add(partition))
        self._writer.flush(WAIT_S)
        return min(set(range(PARTITIONS)) - taken)


def _broken(real: bytes, kind: str, form: str, dice: random.Random) -> bytes:
    """A message of that kind, broken in that form, unlike any other."""
    avro = kind in ("offload", "prediction", "inbox")
    if form == "cut off":
        return real[: dice.randrange(HEADER_SIZE + 1, len(real))]
    if form == "random":
        return b"\x01" + dice.randbytes(150)
    if form == "oversize":
        over = OVER_BYTES.get(kind, OVER_BYTES["avro" if avro else "json"])
        return dice.randbytes(100) + bytes(over)
    if form == "unknown schema":
        return MARKER + dice.randbytes(8) + real[HEADER_SIZE:]
    return real
