"""Up: what devices send becomes records in Kafka; they get a receipt once Kafka has confirmed it.

One turn: take what came; check it and hand it to the Kafka producer; for what Kafka has confirmed meanwhile,
acknowledge the MQTT message and send the receipt (`receipts.py`). What is between the first and the last is bounded
(`places.py`): at the bound the network thread waits, so memory stays flat when Kafka is away and devices keep what is
theirs.
"""

from __future__ import annotations

import base64
import binascii
import logging
import queue
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from gateway.places import Places
from gateway.receipts import Receipts
from gateway.settings import GatewaySettings
from sluice.daemon.life import Backoff
from sluice.doors.kafka import Headers, KafkaReader, KafkaWriter, dead_letter_headers
from sluice.doors.mqtt import Incoming, MqttDoor
from sluice.wire import messages, metrics, names
from sluice.wire.errors import PermanentError, TemporaryError, UnknownSchemaError
from sluice.wire.messages import Head
from sluice.wire.state import DeadLetter, DeviceStatus, Reported, parse_state

log = logging.getLogger(__name__)

STATE_PART = 8
"""State and dead letters have so much less room than outcomes."""
BUSY = 8
REST_S = 0.002
"""After a turn of `BUSY` messages or more the network thread gets so long to bring in the next ones: two threads that
hand over one by one spend more time on each other than on the messages."""
LETTER_LEAST = 1000
"""Bytes that are left of a dead letter's data where Kafka takes no larger one."""
_OUTCOMES = tuple(f"/{kind}" for kind in names.OUTCOME_KINDS)
TOPICS_AGE_S = 1.0
"""Least time between two looks whether an unknown topic exists by now."""


@dataclass(slots=True)
class Delivery:
    """An MQTT message on its way: how many records of it Kafka has not confirmed, whom to receipt then.

    While it is taken apart it counts for one more: there are messages without a record.
    """

    incoming: Incoming
    since: float
    """Monotonic seconds at which it was taken apart."""
    left: int = 1
    receipts: list[tuple[str, str, int]] = field(default_factory=list)


@dataclass(slots=True)
class Written:
    """A record that was handed to Kafka's client."""

    delivery: Delivery
    topic: str
    value: bytes
    key: str | None
    headers: Headers | None


class Up:
    """The way up; `run` is its loop."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.topics = names.MqttTopics(settings.topic_prefix)
        self.writer = KafkaWriter(f"{settings.name}-up", settings.kafka, linger_ms=0)
        self.catalogue = KafkaReader(f"{settings.name}-topics", settings.kafka, f"sluice-{settings.name}-topics")
        state_most = settings.in_flight // STATE_PART
        share = f"$share/{settings.shared_group}/" if settings.shared_group else ""
        self.door = MqttDoor(
            "uplink",
            settings.broker.model_copy(update={"session_expiry_s": settings.outcomes_session_s}),
            f"{settings.name}-outcomes",
            subscriptions=[(share + self.topics.every(kind), 1) for kind in names.OUTCOME_KINDS],
            on_message=self._take_in,
            unacknowledged=settings.in_flight,
        )
        state = [(self.topics.every(kind), 1) for kind in names.STATE_KINDS]  # retained, which shares do not bring
        self.state_door = MqttDoor(
            "uplink state",
            settings.broker,
            f"{settings.name}-state",
            subscriptions=[(share + self.topics.every(names.LETTER_KIND), 1), *state],
            on_message=self._take_in,
            unacknowledged=max(1, state_most),
        )
        """Dead letters and state have no receipt: their session is kept long."""
        self._came: queue.SimpleQueue[Incoming | None] = queue.SimpleQueue()
        """Messages from the network thread; None: look at the fates of records."""
        self._fates: deque[tuple[Written, Exception | None]] = deque()
        self._broken: Exception | None = None
        """Kafka's client cannot go on."""
        self._ended = threading.Event()
        self._places = Places(settings.in_flight + state_most, settings.in_flight_bytes)
        metrics.GATEWAY_IN_FLIGHT.set_function(lambda: self._places.taken)
        metrics.GATEWAY_IN_FLIGHT_BYTES.set_function(lambda: self._places.bytes)
        self._counted = {kind: metrics.GATEWAY_UP.labels(kind) for kind in names.OUTCOME_KINDS}
        self._through: list[Delivery] = []
        """Those of which all is in Kafka, since the last turn."""
        self._stop = threading.Event()
        self._receipts = Receipts(lambda device, body: self.door.publish(self.topics.of(device, "receipt"), body))
        self._slowest_s = 0.0
        """Of the messages that Kafka has confirmed since the last look, the longest time that it took."""
        self._known_topics: set[str] = set()
        self._topics_seen = 0.0
        self._held_told: set[str] = set()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; what is not confirmed by then stays with the broker."""
        self._stop = stop
        listener = threading.Thread(target=self._listen, name="confirmations", daemon=True)
        listener.start()
        self._wait_for_topics()
        self.door.start()
        self.state_door.start()
        while not stop.is_set():
            carried = self._carry_all()
            self._settle()
            self._receipts.send(busy=carried >= BUSY)
            if carried >= BUSY:
                time.sleep(REST_S)
        self._places.close()
        self.writer.flush(2.0)
        self._ended.set()
        listener.join()
        self._settle()
        self._receipts.send(busy=False)
        self.door.stop()
        self.state_door.stop()
        self.catalogue.close()

    def _listen(self) -> None:
        """In a thread of its own: hear what Kafka confirms, and wake the loop."""
        try:
            while not self._ended.is_set():
                self.writer.poll(0.2)
                if self._fates:
                    self._came.put(None)
        except Exception as error:
            self._broken = error
            self._came.put(None)

    def _carry_all(self) -> int:
        """Wait for something to do, and carry what has come; how many messages."""
        carried = 0
        try:
            incoming = self._came.get(timeout=REST_S if self._receipts else 0.1)
            while True:
                if incoming is not None:
                    self._carry(incoming)
                    carried += 1
                incoming = self._came.get_nowait()
        except queue.Empty:
            return carried

    def _wait_for_topics(self) -> None:
        """The control plane makes the fixed topics; until they are there nothing is taken in."""
        backoff, told = Backoff(), False
        while not self._stop.is_set():
            try:
                missing = {names.PREDICTIONS, names.DEVICES, names.DEAD_LETTER} - self.catalogue.topic_names()
                if not missing:
                    return
                if not told:
                    log.warning("waiting for %s; the control plane makes the topics", ", ".join(sorted(missing)))
                    told = True
            except TemporaryError:
                told = False  # the door has said that Kafka is away
            self._stop.wait(backoff.wait_s())

    def _take_in(self, incoming: Incoming) -> None:
        """From the network thread: waits for a place; at the end there is none, and the broker keeps it."""
        if self._places.take(len(incoming.payload)):
            self._came.put(incoming)

    def _carry(self, incoming: Incoming) -> None:
        """Hand one message to Kafka, as what it is or as a dead letter."""
        delivery = Delivery(incoming, time.monotonic())
        try:
            self._records(delivery)
        except PermanentError as error:
            self._dead_letter(delivery, str(error), incoming.topic, incoming.payload)
        except UnknownSchemaError as error:
            metrics.GATEWAY_HELD.inc()
            if str(error) not in self._held_told:
                self._held_told = {*list(self._held_told)[:99], str(error)}
                log.error("not receipted, the device keeps it: %s", error, extra={"topic": incoming.topic})
        except TemporaryError as error:
            log.warning("told to stop while Kafka is away, the broker keeps the message: %s", error)
            return
        self._one_less(delivery)

    def _one_less(self, delivery: Delivery) -> None:
        delivery.left -= 1
        if delivery.left == 0:
            self._confirmed(delivery)

    def _records(self, delivery: Delivery) -> None:
        """Write the records of a message; nothing is written when any of it is broken or another device's.

        What is whole and can never be carried is receipted with its dead letter, or its device would send it for ever.
        """
        incoming = delivery.incoming
        device, kind = self.topics.split(incoming.topic)
        if kind in names.OUTCOME_KINDS:
            heads = messages.heads(incoming.payload, self.settings.message_limit_bytes)
            for head in heads:
                if head.device_id != device:
                    raise PermanentError(f"outcome of {head.device_id!r} on the topic of {device!r}")
            for head in heads:
                delivery.receipts.append((device, head.epoch, head.seq))
                topic, reason = self._topic_of(kind, head)
                if topic is None:
                    self._dead_letter(delivery, reason, incoming.topic, head.value)
                else:
                    self._write(delivery, topic, head.value, device)
                    self._counted[kind].inc()
        elif kind in names.STATE_KINDS:
            if incoming.payload:  # an empty one clears a retained message
                kind_of_state: type[Reported] | type[DeviceStatus] = Reported if kind == "reported" else DeviceStatus
                state = parse_state(kind_of_state, incoming.payload)
                if state.device_id != device:
                    raise PermanentError(f"{kind} of {state.device_id!r} on the topic of {device!r}")
                self._write(delivery, names.DEVICES, incoming.payload, f"{device}/{kind}")
        elif kind == names.LETTER_KIND:
            letter = parse_state(DeadLetter, incoming.payload)
            try:
                data = base64.b64decode(letter.data, validate=True)
            except (binascii.Error, ValueError) as error:
                raise PermanentError("dead letter's data is not base64") from error
            self._dead_letter(delivery, letter.reason, letter.origin, data, room="edge-agent", key=device)
        else:
            raise PermanentError(f"nothing is known to do with {kind[:40]!r}")

    def _topic_of(self, kind: str, head: Head) -> tuple[str | None, str]:
        """The Kafka topic of an outcome; None and the reason if there is none. The gateway makes no topic."""
        if head.message != kind:
            return None, f"a message on topic {kind!r} is none"
        if head.message == "offload" and head.tier == "edge":
            return None, "offload is meant for the edge"
        if head.message == "prediction":
            return names.PREDICTIONS, ""
        topic = names.offload_topic(head.tier, head.model)
        if topic not in self._known_topics and time.monotonic() >= self._topics_seen + TOPICS_AGE_S:
            while True:
                try:
                    self._known_topics = self.catalogue.topic_names()
                    break
                except TemporaryError:
                    if self._stop.wait(0.1):
                        raise
            self._topics_seen = time.monotonic()
        if topic not in self._known_topics:
            return None, f"no topic for tier {head.tier}, model {head.model}: it is made by a rollout"
        return topic, ""

    def _dead_letter(
        self,
        delivery: Delivery,
        reason: str,
        origin: str,
        data: bytes,
        room: str = "gateway",
        key: str | None = None,
    ) -> None:
        log.error("dead letter: %s", reason, extra={"topic": origin})
        metrics.GATEWAY_DEAD.inc()
        headers = dead_letter_headers(reason[:1000], room, origin[:300])
        self._write(delivery, names.DEAD_LETTER, data[: self.settings.message_limit_bytes // 2], key, headers)

    def _write(
        self,
        delivery: Delivery,
        topic: str,
        value: bytes,
        key: str | None,
        headers: Headers | None = None,
    ) -> None:
        """Hand one record to Kafka's client; its fate is heard of in `_settle`."""
        delivery.left += 1
        record = Written(delivery, topic, value, key, headers)

        def known(error: Exception | None) -> None:
            self._fates.append((record, error))

        while True:
            try:
                return self.writer.write(topic, value, key=key, headers=headers, on_delivery=known)
            except TemporaryError:
                if self._stop.wait(0.05):
                    raise
            except PermanentError as error:  # too large for the client already
                return known(error)

    def _settle(self) -> None:
        """What has become of records meanwhile."""
        if self._broken is not None:
            raise self._broken
        while self._fates:
            record, error = self._fates.popleft()
            if isinstance(error, TemporaryError):
                metrics.GATEWAY_AGAIN.inc()
                self._write(record.delivery, record.topic, record.value, record.key, record.headers)
            elif error is not None:
                metrics.GATEWAY_REFUSED.inc()
                self._refused(record, error)
            self._one_less(record.delivery)
        self._let_go()
        if self._slowest_s:
            metrics.GATEWAY_KAFKA_S.observe(self._slowest_s)
            self._slowest_s = 0.0

    def _refused(self, record: Written, error: Exception) -> None:
        """A record that Kafka will never take: it becomes a dead letter, that one a shorter one."""
        delivery = record.delivery
        if record.topic != names.DEAD_LETTER:
            self._dead_letter(delivery, str(error), delivery.incoming.topic, record.value)
        elif len(record.value) > LETTER_LEAST:
            self._write(delivery, record.topic, record.value[:LETTER_LEAST], record.key, record.headers)
        else:
            raise RuntimeError(f"a dead letter cannot be written: {error}")

    def _confirmed(self, delivery: Delivery) -> None:
        """All of a message is in Kafka."""
        self._through.append(delivery)
        self._slowest_s = max(self._slowest_s, time.monotonic() - delivery.since)
        for device, epoch, seq in delivery.receipts:
            self._receipts.add(device, epoch, seq)

    def _let_go(self) -> None:
        """What is through the broker may forget, and others get its places: at once, both wake the network threads."""
        incoming = [delivery.incoming for delivery in self._through]
        self._through.clear()
        self.door.ack(*(i for i in incoming if i.topic.endswith(_OUTCOMES)))
        self.state_door.ack(*(i for i in incoming if not i.topic.endswith(_OUTCOMES)))
        self._places.free([len(i.payload) for i in incoming])
