"""Settings of the edge agent: `EDGE_…` in the environment, or a TOML file (`sluice devices add` writes one)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge_agent.sensing import Input, Sensor, check_sensing
from sluice.daemon.settings import RoomSettings, Seconds, Token, Url
from sluice.doors.mqtt import MqttBroker
from sluice.wire.errors import PermanentError
from sluice.wire.messages import MAX_MESSAGE_BYTES
from sluice.wire.names import MqttTopics, Name, TopicPrefix
from sluice.wire.signing import PublicKey

ANY = "any"
"""Name of the sensor that was given none."""


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
    wait_s: Seconds = Field(default=1.0, gt=0)
    """batches: longest wait for company."""
    refresh_s: Seconds = Field(default=3600.0, gt=0)
    """changes: a label that stays the same is sent again after this time."""

    @model_validator(mode="after")
    def _of_this_mode(self) -> PredictionsUp:
        for mode, names in (("batches", ("count", "size_bytes", "wait_s")), ("changes", ("refresh_s",))):
            for name in names:
                if name in self.model_fields_set and self.mode != mode:
                    raise ValueError(
                        f"{name} says nothing in mode {self.mode!r}: set mode to {mode!r}, or leave it out"
                    )
        return self


class EdgeSettings(RoomSettings):
    """The agent on a device."""

    env_prefix = "EDGE_"

    device_id: Name
    """Name of the device, as registered with the control plane."""
    sensor_broker: MqttBroker = MqttBroker()
    """The broker that readings come from and answers go to (`EDGE_SENSOR_BROKER__HOST`, …)."""
    uplink_broker: MqttBroker | None = None
    """The broker that the gateway is at; unset: the sensor broker is."""
    topic_prefix: TopicPrefix = "sluice"
    """First level of all MQTT topics."""
    sensor: Sensor = Sensor()
    """How readings arrive (`EDGE_SENSOR__FORMAT`, …), where there are no `sensors`."""
    sensors: dict[Name, Sensor] = Field(default={})
    """Several sensors by their names, in place of `sensor`: a table with the same settings each."""
    input: Input = Input()
    """How readings become the input of a model (`EDGE_INPUT__WINDOW`, …)."""
    inputs: dict[Name, Input] = Field(default={})
    """The same for single models, by their names."""
    cloud_url: Url = "http://127.0.0.1:8080"
    """The control plane, which bundles are fetched from."""
    token: Token | None = None
    """The device's bearer token for it."""
    cloud_ca: str | None = None
    """File of the certificate authorities that the control plane's certificate is checked by, for one of your own;
    unset: those that browsers trust."""
    public_keys: list[PublicKey] = Field(min_length=1, max_length=2)
    """Ed25519 public keys (base64) that this device trusts; nothing else is obeyed. Two, for rotation."""
    data: Path = Path("edge-data")
    """Folder of the outbox and the bundles."""
    store: Literal["disk", "memory"] = "disk"
    """Where outbox, window journal and counters are. `memory`: for devices that may not write; a restart then loses
    what has no receipt, and samples have a new epoch. `data` still holds the bundles, in a tmpfs for example."""
    commit_interval_s: Seconds = Field(default=0.0, ge=0, le=60)
    """Longest time that readings and what came of them are gathered for one write to the store; before it nothing of
    them is acknowledged or published. 0: written at once. More spares flash memory and costs as much latency; brokers
    send only so many readings unacknowledged (Mosquitto: 20)."""
    threads: int = Field(default=1, ge=1)
    """Threads of the TFLite runtime."""
    batch_most: int = Field(default=32, ge=1, le=1024)
    """Largest number of waiting inputs that are run at once."""
    readings_most: int = Field(default=1000, ge=1)
    """Readings held in memory; when they are that many, the sensor broker has to wait."""
    readings_bytes: int = Field(default=16_000_000, ge=1)
    """The same in bytes of their payloads. A single reading always fits."""
    journal_bytes: int = Field(default=16_000_000, ge=1)
    """Largest size of the readings that wait for their windows, of a sensor; beyond it these windows are dropped."""
    source_ids_kept: int = Field(default=10_000, ge=0)
    """Most recent source ids that are remembered to drop repeats."""
    sample_ttl_s: Seconds = Field(default=60.0, gt=0)
    """Time that a sample has to be finished by the tiers above; after it, the best exit so far counts."""
    answer_timeout_s: Seconds = Field(default=5.0, gt=0)
    """Time after which the device answers provisionally while it waits for the tiers above."""
    ask_after_s: Seconds = Field(default=30.0, gt=0)
    """Time after the end of a sample's time to live after which the control plane is asked for an answer that did not
    come; each further time it waits twice as long, up to an hour."""
    uplink_in_flight: int = Field(default=64, ge=1, le=60_000)
    """Outcomes sent up and not receipted yet; this bound is the back-pressure."""
    receipt_timeout_s: Seconds = Field(default=10.0, gt=0)
    """Time after which an outcome without a receipt is sent again; while none at all comes, up to six times that."""
    predictions: PredictionsUp = PredictionsUp()
    """How predictions go up (`EDGE_PREDICTIONS__MODE`, …)."""
    predictions_by_model: dict[Name, PredictionsUp] = Field(default={})
    """The same for single models, by their names."""
    audit_share: float = Field(default=0.01, ge=0, le=1)
    """Share of the samples answered by an early exit that go up all the same, to see whether the exits still hold."""
    report_interval_s: Seconds = Field(default=60.0, gt=0)
    """Least time between two reports that only bring newer counters."""
    outbox_bytes: int = Field(default=64_000_000, ge=1)
    """Largest size of the outbox, where an outcome counts for half a kilobyte more than its message; beyond it the
    oldest are dropped, counted and reported."""
    outbox_age_s: Seconds = Field(default=7 * 24 * 3600.0, gt=0)
    """Longest stay in the outbox, counted while the agent runs; older outcomes are dropped, counted and reported."""
    message_limit_bytes: int = Field(default=MAX_MESSAGE_BYTES, ge=1000)
    """Largest message that is sent up or read from above."""

    def predictions_of(self, model: str) -> PredictionsUp:
        """How the predictions of `model` go up."""
        return self.predictions_by_model.get(model, self.predictions)

    @property
    def sensors_by_name(self) -> dict[str, Sensor]:
        """All sensors; the one that needs no name is called `ANY`."""
        return dict(self.sensors) or {ANY: self.sensor}

    def topic_of(self, name: str) -> str:
        """The topic filter of a sensor."""
        own = self.sensors_by_name[name].topic
        return own or MqttTopics(self.topic_prefix).of(self.device_id, f"sensor/{'+' if name == ANY else name}")

    def input_of(self, model: str) -> Input:
        """What feeds `model`; `PermanentError` if the settings do not say it."""
        own = self.inputs.get(model)
        if own is None and len(self.sensors) > 1 and "input" not in self.model_fields_set:
            raise PermanentError(f"nothing feeds model {model!r}: settings have several sensors and no inputs.{model}")
        return own or self.input

    @model_validator(mode="after")
    def _times_agree(self) -> EdgeSettings:
        if self.commit_interval_s > self.sample_ttl_s:
            raise ValueError("commit_interval_s is over sample_ttl_s: samples would be over before they are sent")
        if "answer_timeout_s" in self.model_fields_set and self.answer_timeout_s > self.sample_ttl_s:
            raise ValueError("answer_timeout_s is over sample_ttl_s, at whose end a sample is answered anyway")
        if self.outbox_age_s < self.sample_ttl_s:
            raise ValueError("outbox_age_s is under sample_ttl_s: samples would be dropped while they may still go up")
        return self

    @model_validator(mode="after")
    def _sensing_agrees(self) -> EdgeSettings:
        if self.sensors and "sensor" in self.model_fields_set:
            raise ValueError("sensor and sensors: use one of them")
        if len(self.sensors) > 1 and not self.inputs and "input" not in self.model_fields_set:
            raise ValueError("sensors: there are several, and neither input nor inputs says how they feed a model")
        inputs = {f"inputs.{model}": one for model, one in self.inputs.items()}
        if "input" in self.model_fields_set:
            inputs["input"] = self.input
        topics = {name: self.topic_of(name) for name in self.sensors_by_name}
        check_sensing(self.sensors_by_name, topics, inputs, MqttTopics(self.topic_prefix).of(self.device_id, "answer"))
        return self

    @property
    def uplink(self) -> MqttBroker:
        """The broker that the gateway is at."""
        return self.uplink_broker or self.sensor_broker
