"""The door to an MQTT broker (paho-mqtt): reconnects by itself, hands messages over, acknowledges when told.

Messages arrive in paho's network thread and go to `on_message`, which may block: that is the back-pressure, since it
stops reading from the socket. A QoS 1 message is acknowledged to the broker only by `ack`, and only within the
connection that brought it, because message ids belong to a connection. Publishing while the broker is away keeps the
message in memory and sends it when the broker is back.
"""

from __future__ import annotations

import logging
import random
import re
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions
from pydantic import BaseModel, ConfigDict, Field

from sluice.doors.mqtt_socket import BufferedSocket
from sluice.wire import metrics
from sluice.wire.errors import PermanentError, TemporaryError

log = logging.getLogger(__name__)

IN_FLIGHT = 100
"""QoS 1 messages under way at once; more was no faster."""
MESSAGES = 16
"""Most that are handled in a row."""


TAKEN_OVER = "Session taken over"
"""MQTT 5: what a broker says to a client when another of the same name comes."""
SHORT_S = 10.0
SHORT_MOST = 5
"""So many connections in a row that last no longer than `SHORT_S` are probably ended by another client of our name."""
AGAIN_S = 60.0
"""A reason that was told is not told again for this time."""


class MqttBroker(BaseModel):
    """Where a broker is and who we are there."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    host: str = Field(default="127.0.0.1", min_length=1)
    """Host name or address of the broker."""
    port: int = Field(default=1883, ge=1, le=65535)
    """TCP port of the broker."""
    username: str | None = None
    """User name; a device's is its own name."""
    password: str | None = None
    """Password of that user."""
    version: int = Field(default=5, ge=3, le=5)
    """MQTT version: 5, or 3 for 3.1.1."""
    tls_ca: str | None = None
    """File of the certificate authority; set, the connection uses TLS."""
    keepalive_s: int = Field(default=30, ge=5, le=65_535)
    """Seconds of silence after which the broker is asked whether it is there."""
    session_expiry_s: int = Field(default=7 * 24 * 3600, ge=0, le=2**32 - 1)
    """Seconds that the broker keeps our session while we are away (MQTT 5)."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message as it arrived; `generation` counts connections, so that none acknowledges another's. `arrived_ns` is
    monotonic."""

    topic: str
    payload: bytes
    qos: int
    retained: bool
    mid: int
    generation: int
    arrived_ns: int = field(default_factory=time.monotonic_ns, compare=False)


class _Client(paho.Client):
    """paho's client, but that it reads in large pieces and sends at once."""

    def _create_socket(self) -> BufferedSocket:
        sock = super()._create_socket()
        assert isinstance(sock, socket.socket)  # neither proxies nor WebSockets are offered
        # else an acknowledgement and the next message wait for each other, 40 ms at a time (Nagle)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return BufferedSocket(sock)

    def loop_read(self, max_packets: int = 1) -> MQTTErrorCode:
        """What was read at once is handled at once, `MESSAGES` of it before paho looks what there is to send."""
        for _ in range(MESSAGES):
            rc = super().loop_read(max_packets)
            sock = self.socket()
            if rc or not isinstance(sock, BufferedSocket) or not sock.pending():
                break
        return rc

    def ack_all(self, mids: Iterable[int]) -> None:
        """As `ack` for each of QoS 1, but that it is one piece for the socket and one word to paho's thread."""
        if packets := b"".join(struct.pack("!BBH", paho.PUBACK, 2, mid) for mid in mids):
            self._packet_queue(paho.PUBACK, packets, 0, 1)


def _in_words(error: BaseException, broker: MqttBroker) -> str:
    """Why there is no connection."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: its certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError) or (broker.tls_ca is not None and isinstance(error, ConnectionResetError)):
        return f"TLS: {getattr(error, 'reason', None) or error}; does that port speak TLS?"
    if isinstance(error, socket.gaierror):
        return f"{broker.host}: {error.strerror}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _any_of(filters: Sequence[str]) -> Callable[[str], object]:
    """Whether a topic matches one of MQTT's filters; paho's own function takes longer than to read the message."""
    patterns = [re.escape(f).replace(r"\+", "[^/]*").replace(r"/\#", "(/.*)?").replace(r"\#", ".*") for f in filters]
    return re.compile("|".join(patterns), re.DOTALL).fullmatch


def _requests(subscriptions: Sequence[tuple[str, int]], *, retained_once: bool) -> list[tuple[str, Any]]:
    """The subscriptions as paho takes them."""
    if not retained_once:
        return list(subscriptions)
    handling = SubscribeOptions.RETAIN_SEND_IF_NEW_SUB
    return [(topic, SubscribeOptions(qos, retainHandling=handling)) for topic, qos in subscriptions]


class MqttDoor:
    """One client of one broker.

    `on_message`, `on_up`, `on_down`, `on_published(mid)` and `on_refused(mid, reason)` are called from paho's thread.
    `retained_once`: what a broker retains is wanted when a subscription is new, not each time that we come back (MQTT
    5; before it a broker brings it each time). `unacknowledged`: more messages than that the broker does not send
    before some are acknowledged (MQTT 5; before it as many as it likes). An exception in the callbacks ends the
    process: they must hand over and return. `PermanentError`: `tls_ca` cannot be used.
    """

    def __init__(
        self,
        name: str,
        broker: MqttBroker,
        client_id: str,
        *,
        subscriptions: Sequence[tuple[str, int]] = (),
        on_message: Callable[[Incoming], None] | None = None,
        on_up: Callable[[], None] | None = None,
        on_down: Callable[[], None] | None = None,
        on_published: Callable[[int], None] | None = None,
        on_refused: Callable[[int, str], None] | None = None,
        will: tuple[str, bytes] | None = None,
        keep_session: bool = True,
        retained_once: bool = False,
        unacknowledged: int = 65_535,
    ) -> None:
        self.name = name
        self.broker = broker
        self.generation = 0
        self.up = threading.Event()
        self._on = (on_message, on_up, on_down, on_published)
        self._on_refused = on_refused
        self._refusals: set[str] = set()
        """Those that were told."""
        self._subscriptions = _requests(subscriptions, retained_once=retained_once and broker.version == 5)
        self._asked_for = _any_of([re.sub(r"^\$share/[^/]+/", "", topic) for topic, _ in subscriptions])
        self._stopping = False
        self.trouble = "no answer"
        """Why the last try to connect came to nothing, or the connection ended."""
        self._told: dict[str, float] = {}
        """Reasons that were told, and when."""
        self._told_now: set[str] = set()
        """Those of them since the broker went away."""
        self._counted_down = False
        self._refused = False
        self._connected_at = 0.0
        self._short = 0
        """Connections in a row that ended soon."""
        self._news = True
        """Whether it has to be said that the broker is there."""
        five = broker.version == 5
        self._clean = not keep_session
        self._client_id = client_id
        self._client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if five else self._clean,
            protocol=paho.MQTTv5 if five else paho.MQTTv311,
            manual_ack=True,
        )
        self._properties: Properties | None = None
        if five:
            self._properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho has no types for it
            self._properties.SessionExpiryInterval = broker.session_expiry_s if keep_session else 0
            self._properties.ReceiveMaximum = min(unacknowledged, 65_535)
        client = self._client
        if broker.username is not None:
            client.username_pw_set(broker.username, broker.password)
        if broker.tls_ca is not None:
            try:
                client.tls_set(broker.tls_ca)
            except OSError as error:
                raise PermanentError(f"{name}: tls_ca {broker.tls_ca}: {error.strerror or error}") from error
        if will is not None:
            client.will_set(will[0], will[1], qos=1, retain=True)
        client.max_inflight_messages_set(IN_FLIGHT)
        # paho says int, and only adds and compares
        client.reconnect_delay_set(random.uniform(0.2, 0.6), random.uniform(3.0, 6.0))  # type: ignore[arg-type]
        client.on_connect = self._connected
        client.on_connect_fail = self._connect_failed
        client.on_disconnect = self._disconnected
        client.on_message = self._arrived
        client.on_publish = self._published

    def start(self) -> None:
        """Begin to connect, in a thread of its own; returns at once, whether or not the broker is there."""
        self._client.connect_async(
            self.broker.host,
            self.broker.port,
            keepalive=self.broker.keepalive_s,
            clean_start=self._clean if self.broker.version == 5 else paho.MQTT_CLEAN_START_FIRST_ONLY,
            properties=self._properties,
        )
        self._client.loop_start()

    def stop(self, *, forget: bool = False) -> None:
        """Disconnect in an orderly way (no last will) and end the thread.

        `forget` (MQTT 5): the broker drops our session; else it keeps messages for us until we come back.
        """
        self._stopping = True
        properties = None
        if forget and self._properties is not None:
            properties = Properties(PacketTypes.DISCONNECT)  # type: ignore[no-untyped-call]  # as above
            properties.SessionExpiryInterval = 0
        self._client.disconnect(properties=properties)
        self._client.loop_stop()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> int:
        """Hand a message to the client and return its message id; `on_published` tells when the broker has it,
        `on_refused` when it does not want it."""
        info = self._client.publish(topic, payload, qos=qos, retain=retain)
        if info.rc == paho.MQTT_ERR_QUEUE_SIZE:
            raise TemporaryError(f"{self.name}: too many messages wait for the MQTT broker")
        return info.mid

    def ack(self, *messages: Incoming) -> None:
        """Acknowledge QoS 1 messages to the broker; one of an earlier connection is left, it comes again."""
        self._client.ack_all(m.mid for m in messages if m.qos > 0 and m.generation == self.generation)

    def _connected(
        self,
        client: paho.Client,
        _userdata: object,
        _flags: paho.ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._refused = True
            self._say_down(f"refused: {reason}")
            return
        self.generation += 1
        self._counted_down = False
        self._connected_at = time.monotonic()
        self._told_now.clear()
        if self._news:
            self._news = False
            log.info("%s: connected to MQTT broker %s:%d", self.name, self.broker.host, self.broker.port)
        if self._subscriptions:
            client.subscribe(self._subscriptions)
        self.up.set()
        if self._on[1]:
            self._on[1]()

    def _connect_failed(self, _client: paho.Client, _userdata: object) -> None:
        error = sys.exception()  # paho calls this while it handles what happened, and does not tell it
        self._say_down("no answer" if error is None else _in_words(error, self.broker))

    def _disconnected(
        self,
        _client: paho.Client,
        _userdata: object,
        _flags: paho.DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        was_up = self.up.is_set()
        self.up.clear()
        self.generation += 1
        if self._stopping:
            return
        if self._refused:  # that was told
            self._refused = False
            return
        told = str(reason)
        self._short = self._short + 1 if was_up and time.monotonic() - self._connected_at < SHORT_S else 0
        if told == TAKEN_OVER or self._short >= SHORT_MOST:
            told += f"; each connection soon ends: does another client use our name, {self._client_id!r}?"
        self._say_down(told)
        if was_up and self._on[2]:
            self._on[2]()

    def _say_down(self, why: str) -> None:
        """One line for each time that the broker goes away and each reason, not one for each try; where it comes and
        goes all the time, one in `AGAIN_S`."""
        self.trouble = why
        if not self._counted_down:
            self._counted_down = True
            metrics.DOOR_DOWN.labels(door=self.name).inc()
        now = time.monotonic()
        if why not in self._told_now and now - self._told.get(why, -AGAIN_S) >= AGAIN_S:
            self._told[why] = now
            self._told_now.add(why)
            self._news = True
            log.warning(
                "%s: MQTT broker %s:%d is away (%s); trying again until it is back",
                self.name,
                self.broker.host,
                self.broker.port,
                why,
            )

    def _arrived(self, client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        if not self._asked_for(message.topic):
            # some brokers (amqtt) bring a known session retained messages that it never asked for
            client.ack(message.mid, message.qos)
        elif self._on[0]:
            self._on[0](
                Incoming(
                    message.topic,
                    bytes(message.payload),
                    message.qos,
                    message.retain,
                    message.mid,
                    self.generation,
                )
            )

    def _published(
        self,
        _client: paho.Client,
        _userdata: object,
        mid: int,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:  # MQTT 5: not authorised, quota exceeded, …; the broker does not have it
            if str(reason) not in self._refusals:
                self._refusals.add(str(reason))
                log.error("%s: the MQTT broker refuses a message: %s", self.name, reason)
            if self._on_refused:
                self._on_refused(mid, str(reason))
        elif self._on[3]:
            self._on[3](mid)
