"""Settings of the edge agent: `EDGE_…` in the environment, or a TOML file (`sluice devices add` writes one)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sluice.daemon.settings import RoomSettings, SettingsConfigDict
from sluice.doors.mqtt import MqttBroker
from sluice.wire.messages import MAX_MESSAGE_BYTES
from sluice.wire.names import Name
from sluice.wire.signing import PublicKey


class Sensor(BaseModel):
    """How readings arrive and become the model's input."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    topic: str | None = None
    """MQTT topic filter of the readings; unset: `<prefix>/<device>/sensor/+`."""
    format: Literal["json", "csv", "raw"] = "json"
    """Format of a reading; see `edge_agent/sensor.py`."""
    values_path: str = "values"
    """json: dotted path to the number or list of numbers."""
    source_id_path: str = "id"
    """json: dotted path to the user's own id of the reading; a reading without one is taken as new."""
    dtype: Literal["uint8", "int8", "int16", "int32", "float32", "float64"] = "float32"
    """raw: type of the little-endian numbers."""
    window: int = Field(default=1, ge=1)
    """Readings that make one input."""
    hop: int = Field(default=0, ge=0)
    """Readings between the beginnings of two windows; 0: as many as a window has."""
    limit_bytes: int = Field(default=1_000_000, ge=1)
    """Largest payload that is read; a larger one is a dead letter."""


class PredictionsUp(BaseModel):
    """How predictions made on the device go up; offloads always go at once."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    mode: Literal["each", "batches", "changes"] = "each"
    """`each`: one message a prediction. `batches`: several in a message. `changes`: only those with another label than
    the last that went up; the others are told on the device alone and counted, and the cloud does not know of them."""
    count: int = Field(default=32, ge=1, le=1000)
    """batches: most predictions in a message."""
    size_bytes: int = Field(default=16_000, ge=1, le=500_000)
    """batches: a message that is as large goes."""
    wait_s: float = Field(default=1.0, gt=0)
    """batches: longest wait for company."""
    refresh_s: float = Field(default=3600.0, gt=0)
    """changes: a label that stays the same is sent again after this time."""


class EdgeSettings(RoomSettings):
    """The agent on a device."""

    model_config = SettingsConfigDict(env_prefix="EDGE_", env_nested_delimiter="__")

    device_id: Name
    """Name of the device, as registered with the control plane."""
    sensor_broker: MqttBroker = MqttBroker()
    """The broker that readings come from and answers go to (`EDGE_SENSOR_BROKER__HOST`, …)."""
    uplink_broker: MqttBroker | None = None
    """The broker that the gateway is at; unset: the sensor broker is."""
    topic_prefix: str = "sluice"
    """First level of all MQTT topics."""
    sensor: Sensor = Sensor()
    """How readings arrive (`EDGE_SENSOR__FORMAT`, …)."""
    cloud_url: str = "http://127.0.0.1:8080"
    """The control plane, which bundles are fetched from."""
    token: str | None = None
    """The device's bearer token for it."""
    public_keys: list[PublicKey] = Field(min_length=1, max_length=2)
    """Ed25519 public keys (base64) that this device trusts; nothing else is obeyed. Two, for rotation."""
    data: Path = Path("edge-data")
    """Folder of the outbox and the bundles."""
    threads: int = Field(default=1, ge=1)
    """Threads of the TFLite runtime."""
    batch_most: int = Field(default=32, ge=1, le=1024)
    """Largest number of waiting inputs that are run at once."""
    readings_most: int = Field(default=1000, ge=1)
    """Readings held in memory; when they are that many, the sensor broker has to wait."""
    source_ids_kept: int = Field(default=10_000, ge=0)
    """Most recent source ids that are remembered to drop repeats."""
    sample_ttl_s: float = Field(default=60.0, gt=0)
    """Time that a sample has to be finished by the tiers above; after it, the best exit so far counts."""
    answer_timeout_s: float = Field(default=5.0, gt=0)
    """Time after which the device answers provisionally while it waits for the tiers above."""
    ask_after_s: float = Field(default=30.0, gt=0)
    """Time after the end of a sample's time to live after which the control plane is asked for an answer that did not
    come; each further time it waits twice as long, up to an hour."""
    uplink_in_flight: int = Field(default=64, ge=1)
    """Outcomes sent up and not receipted yet; this bound is the back-pressure."""
    receipt_timeout_s: float = Field(default=10.0, gt=0)
    """Time after which an outcome without a receipt is sent again."""
    predictions: PredictionsUp = PredictionsUp()
    """How predictions go up (`EDGE_PREDICTIONS__MODE`, …)."""
    predictions_by_model: dict[str, PredictionsUp] = Field(default={})
    """The same for single models, by their names."""
    audit_share: float = Field(default=0.01, ge=0, le=1)
    """Share of the samples answered by an early exit that go up all the same, to see whether the exits still hold."""
    report_interval_s: float = Field(default=60.0, gt=0)
    """Least time between two reports that only bring newer counters."""
    outbox_bytes: int = Field(default=64_000_000, ge=1)
    """Largest size of the outbox; beyond it the oldest outcomes are dropped, counted and reported."""
    outbox_age_s: float = Field(default=7 * 24 * 3600.0, gt=0)
    """Longest stay in the outbox; older outcomes are dropped, counted and reported."""
    message_limit_bytes: int = MAX_MESSAGE_BYTES
    """Largest message that is sent up or read from above."""

    def predictions_of(self, model: str) -> PredictionsUp:
        """How the predictions of `model` go up."""
        return self.predictions_by_model.get(model, self.predictions)

    @property
    def uplink(self) -> MqttBroker:
        """The broker that the gateway is at."""
        return self.uplink_broker or self.sensor_broker
