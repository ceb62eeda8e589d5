"""Settings of the gateway: `GATEWAY_…` in the environment, or a TOML file."""

from __future__ import annotations

from pydantic import Field

from sluice.daemon.settings import YEAR_S, RoomSettings
from sluice.doors.kafka import KafkaCluster
from sluice.doors.mqtt import MqttBroker
from sluice.wire.messages import MAX_MESSAGE_BYTES
from sluice.wire.names import Name, TopicPrefix


class GatewaySettings(RoomSettings):
    """A gateway between one MQTT broker and one Kafka cluster."""

    env_prefix = "GATEWAY_"

    name: Name = "gateway"
    """Name of this gateway; each one at a broker needs its own, because it names its MQTT session."""
    broker: MqttBroker = MqttBroker()
    """The uplink broker (`GATEWAY_BROKER__HOST`, …)."""
    kafka: KafkaCluster = KafkaCluster()
    """The Kafka cluster (`GATEWAY_KAFKA__BOOTSTRAP`, …)."""
    topic_prefix: TopicPrefix = "sluice"
    """First level of all MQTT topics."""
    shared_group: str = "sluice-gateway"
    """Shared subscription of all gateways at this broker; empty: none, for a broker that has no such thing."""
    outcomes_session_s: int = Field(default=10, ge=0, le=YEAR_S)
    """Seconds that the broker keeps outcomes for a gateway that is away (MQTT 5). A gateway that is gone for good would
    be given its share of them until then; what is lost with the session has no receipt, and devices send it again."""
    answers_group: str = "sluice-gateway"
    """Kafka group that shares the answers among the gateways of one MQTT broker; another broker needs another one."""
    in_flight: int = Field(default=256, ge=1)
    """Outcomes taken in and not yet confirmed by Kafka; when they are that many, the broker has to wait. State and dead
    letters may be an eighth as many besides."""
    in_flight_bytes: int = Field(default=32_000_000, ge=1)
    """The same in bytes of their payloads; the Kafka client holds a second copy of them."""
    answers_in_flight: int = Field(default=1000, ge=1, le=60_000)
    """Answers published and not yet taken by the broker."""
    answers_in_flight_kb: int = Field(default=16_384, ge=1)
    """The same in kilobytes: no further answer is published while there are as many."""
    message_limit_bytes: int = Field(default=MAX_MESSAGE_BYTES, ge=1000)
    """Largest message that is decoded; anything larger is a dead letter."""
