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
from dataclasses import dataclass, field

from gateway.places import Places
from gateway.receipts import Receipts
from gateway.settings import GatewaySettings
from sluice.daemon.life import Backoff
from sluice.doors.kafka import Headers, KafkaReader, KafkaWriter, dead_letter_headers
from sluice.doors.mqtt import Incoming, MqttDoor
from sluice.wire import messages, metrics, names
from sluice.wire.errors import PermanentError, TemporaryError, UnknownSchemaError
from sluice.wire.messages import Offload, Outcome
from sluice.wire.state import DeadLetter, DeviceStatus, Reported, parse_state

log = logging.getLogger(__name__)

BUSY_WAIT_S = 0.0005
"""How long a turn waits for messages while Kafka owes confirmations."""
BUSY = 8
REST_S = 0.002
"""After a turn of `BUSY` messages or more the network thread gets so long to bring in the next ones: two threads that
hand over one by one spend more time on each other than on the messages."""
LETTER_LEAST = 1000
"""Bytes that are left of a dead letter's data where Kafka takes no larger one."""
TOPICS_AGE_S = 1.0
"""Least time between two looks whether an unknown topic exists by now."""


@dataclass(slots=True)
class Delivery:
    """An MQTT message on its way: how many records of it Kafka has not confirmed, whom to receipt then.

    While it is taken apart it counts for one more, so that it is not through before all its records are written.
    """

    incoming: Incoming
    since: float
    """Monotonic seconds at which it was taken apart."""
    left: int = 1
    receipts: list[tuple[str, str, int]] = field(default_factory=list)


class Up:
    """The way up; `run` is its loop."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.topics = names.MqttTopics(settings.topic_prefix)
        self.writer = KafkaWriter(f"{settings.name}-up", settings.kafka, linger_ms=0)
        self.catalogue = KafkaReader(f"{settings.name}-topics", settings.kafka, f"sluice-{settings.name}-topics")
        share = f"$share/{settings.shared_group}/" if settings.shared_group else ""
        shared = [(share + self.topics.every(k), 1) for k in (*names.OUTCOME_KINDS, names.LETTER_KIND)]
        state = [(self.topics.every(kind), 1) for kind in names.STATE_KINDS]  # retained, which shares do not bring
        self.door = MqttDoor(
            "uplink",
            settings.broker,
            f"{settings.name}-up",
            subscriptions=shared + state,
            on_message=self._take_in,
        )
        self._came: queue.SimpleQueue[Incoming] = queue.SimpleQueue()
        self._places = Places(settings.in_flight, settings.in_flight_bytes)
        metrics.GATEWAY_IN_FLIGHT.set_function(lambda: self._places.taken)
        metrics.GATEWAY_IN_FLIGHT_BYTES.set_function(lambda: self._places.bytes)
        self._counted = {kind: metrics.GATEWAY_UP.labels(kind) for kind in names.OUTCOME_KINDS}
        self._stop = threading.Event()
        self._receipts = Receipts(lambda device, body: self.door.publish(self.topics.of(device, "receipt"), body))
        self._under_way = 0
        self._slowest_s = 0.0
        """Of the messages that Kafka has confirmed in this turn, the longest time that it took."""
        self._known_topics: set[str] = set()
        self._topics_seen = 0.0
        self._held_told: set[str] = set()

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; what is not confirmed by then stays with the broker."""
        self._stop = stop
        self._wait_for_topics()
        self.door.start()
        while not stop.is_set():
            carried = self._carry_all(self._patience_s())
            self.writer.poll()
            self._receipts.send()
            if self._slowest_s:
                metrics.GATEWAY_KAFKA_S.observe(self._slowest_s)
                self._slowest_s = 0.0
            if carried >= BUSY:
                time.sleep(REST_S)
        self._places.close()
        self.writer.flush(2.0)
        self._receipts.send(everything=True)
        self.door.stop()
        self.catalogue.close()

    def _patience_s(self) -> float:
        """How long to wait for a message: something else may come due."""
        if self._under_way:
            return BUSY_WAIT_S
        due_s = self._receipts.due_s()
        return 0.1 if due_s is None else min(due_s, 0.1)

    def _carry_all(self, timeout_s: float) -> int:
        """Carry what has come, waiting for the first; how many."""
        carried = 0
        try:
            self._carry(self._came.get(timeout=timeout_s))
            carried = 1
            while carried < self.settings.in_flight:
                self._carry(self._came.get_nowait())
                carried += 1
        except queue.Empty:
            pass  # there may be confirmations
        return carried

    def _wait_for_topics(self) -> None:
        """The control plane makes the fixed topics; until they are there nothing is taken in."""
        backoff, told = Backoff(), False
        while not self._stop.is_set():
            self.writer.poll()
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
        """Write the records of a message; nothing is written when any of it is broken."""
        incoming = delivery.incoming
        device, kind = self.topics.split(incoming.topic)
        if kind in names.OUTCOME_KINDS:
            outcomes = messages.decode_all(incoming.payload, self.settings.message_limit_bytes)
            for outcome in outcomes:
                self._check(device, kind, outcome)
            for outcome in outcomes:
                delivery.receipts.append((outcome.device_id, outcome.epoch, outcome.seq))
                topic = self._topic_of(outcome)
                value = incoming.payload if len(outcomes) == 1 else messages.encode(outcome)
                if topic is None:
                    reason = f"no topic for tier {outcome.tier}, model {outcome.model}: it is made by a rollout"
                    self._dead_letter(delivery, reason, incoming.topic, value)
                else:
                    self._write(delivery, topic, value, device)
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

    @staticmethod
    def _check(device: str, kind: str, outcome: Outcome) -> None:
        if outcome.device_id != device:
            raise PermanentError(f"outcome of {outcome.device_id!r} on the topic of {device!r}")
        if isinstance(outcome, Offload) != (kind == "offload"):
            raise PermanentError(f"a message on topic {kind!r} is none")
        if isinstance(outcome, Offload) and outcome.tier == "edge":
            raise PermanentError("offload is meant for the edge")

    def _topic_of(self, outcome: Outcome) -> str | None:
        """The Kafka topic of an outcome; None if it does not exist. The gateway makes no topic."""
        if not isinstance(outcome, Offload):
            return names.PREDICTIONS
        topic = names.offload_topic(outcome.tier, outcome.model)
        now = time.monotonic()
        if topic not in self._known_topics and now >= self._topics_seen + TOPICS_AGE_S:
            while True:
                try:
                    self._known_topics = self.catalogue.topic_names()
                    break
                except TemporaryError:
                    if self._stop.is_set():
                        raise
                    self.writer.poll(0.1)
            self._topics_seen = time.monotonic()
        return topic if topic in self._known_topics else None

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
        delivery.left += 1
        self._under_way += 1

        def confirmed(error: Exception | None) -> None:
            self._under_way -= 1
            if isinstance(error, TemporaryError):
                metrics.GATEWAY_AGAIN.inc()
                self._write(delivery, topic, value, key, headers)
            elif error is not None:
                metrics.GATEWAY_REFUSED.inc()
                self._refused(error, delivery, topic, value, key, headers)
            self._one_less(delivery)

        while True:
            try:
                self.writer.write(topic, value, key=key, headers=headers, on_delivery=confirmed)
            except TemporaryError:
                if self._stop.is_set():
                    raise
                self.writer.poll(0.05)
            except PermanentError as error:  # too large for the client already
                return confirmed(error)
            else:
                return None

    def _refused(
        self, error: Exception, delivery: Delivery, topic: str, value: bytes, key: str | None, headers: Headers | None
    ) -> None:
        """A record that Kafka will never take: it becomes a dead letter, that one a shorter one."""
        if topic != names.DEAD_LETTER:
            self._dead_letter(delivery, str(error), delivery.incoming.topic, value)
        elif len(value) > LETTER_LEAST:
            self._write(delivery, topic, value[:LETTER_LEAST], key, headers)
        else:
            raise RuntimeError(f"a dead letter cannot be written: {error}")

    def _confirmed(self, delivery: Delivery) -> None:
        """All of a message is in Kafka: the broker may forget it, the device gets its receipts."""
        self.door.ack(delivery.incoming)
        self._places.free(len(delivery.incoming.payload))
        self._slowest_s = max(self._slowest_s, time.monotonic() - delivery.since)
        for device, epoch, seq in delivery.receipts:
            self._receipts.add(device, epoch, seq)
