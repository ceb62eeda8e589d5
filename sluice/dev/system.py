"""The whole set of rooms on one machine, each a process of its own: for `sluice up`, the demo, tests and benchmarks.

Brokers that are given are used, others are embedded. All state lives in one folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sluice.client import Client
from sluice.dev.processes import Process, Processes, free_port
from sluice.doors.kafka import KafkaCluster
from sluice.doors.mqtt import MqttBroker

DEVICES = ("device-a", "device-b")
Say = Callable[[str], None]


@dataclass(slots=True)
class Brokers:
    """Where the brokers are; `passwords` by user name where the MQTT broker wants them, `version` MQTT's."""

    host: str
    port: int
    bootstrap: str
    version: int = 5
    passwords: Mapping[str, str] = field(default_factory=dict)

    def as_user(self, user: str) -> MqttBroker:
        """The MQTT broker as `user` connects to it."""
        known = user in self.passwords
        return MqttBroker(
            host=self.host,
            port=self.port,
            version=self.version,
            username=user if known else None,
            password=self.passwords.get(user),
        )

    @property
    def kafka(self) -> KafkaCluster:
        """The Kafka cluster."""
        return KafkaCluster(bootstrap=self.bootstrap)


@dataclass(slots=True)
class System:
    """A running set: its processes by name, and how to speak with it."""

    folder: Path
    processes: Processes
    brokers: Brokers
    url: str
    token: str
    by_name: dict[str, Process]
    devices: tuple[str, ...]

    def client(self) -> Client:
        """A client of its control plane."""
        return Client(self.url, self.token)


def start_embedded(processes: Processes) -> Brokers:
    """Start the embedded brokers."""
    port = free_port()
    mqtt = processes.start("mqtt", ["dev", "mqtt", "--port", str(port)])
    kafka = processes.start("kafka", ["dev", "kafka"])
    mqtt.wait_ready()
    bootstrap: str = kafka.wait_ready()["bootstrap"]
    return Brokers("127.0.0.1", port, bootstrap, version=3)


def start_system(
    processes: Processes,
    folder: Path,
    brokers: Brokers | None = None,
    *,
    devices: Sequence[str] = DEVICES,
    say: Say = lambda _text: None,
    extra: Mapping[str, Mapping[str, str]] | None = None,
) -> System:
    """Start every room and wait until each is ready.

    `extra` adds settings to a process by its name (`cloud`, `results-writer`, `gateway`, `stage-fog`, `stage-cloud`,
    a device's name). Raises `PermanentError` with the end of the log of the one that did not start.
    """
    folder = folder.resolve()
    if brokers is None:
        say("starting embedded brokers (MQTT: amqtt, Kafka: librdkafka's mock cluster)")
        brokers = start_embedded(processes)
    more = extra or {}
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    cloud = {
        "CLOUD_PORT": str(port),
        "CLOUD_DATA": str(folder / "cloud"),
        "CLOUD_KAFKA__BOOTSTRAP": brokers.bootstrap,
        **more.get("cloud", {}),
    }
    token = _token(processes, cloud, "admin")
    fetch_token = _token(processes, cloud, "device")
    by_name: dict[str, Process] = {}

    def start(name: str, arguments: list[str], settings: Mapping[str, str]) -> None:
        by_name[name] = processes.start(name, arguments, {**settings, **more.get(name, {})})

    say("starting control plane, results writer, gateway and stages")
    start("cloud", ["cloud"], cloud)
    start("results-writer", ["results-writer"], cloud)
    start("gateway", ["gateway"], _gateway(brokers))
    by_name["cloud"].wait_ready()
    with Client(url, token) as client:
        keys = client.public_keys()
        tokens = {device: client.add_device(device)["token"] for device in devices}
    for tier in ("fog", "cloud"):
        settings = {
            "STAGE_KAFKA__BOOTSTRAP": brokers.bootstrap,
            "STAGE_CLOUD_URL": url,
            "STAGE_TOKEN": fetch_token,
            "STAGE_PUBLIC_KEYS": json.dumps(keys),
            "STAGE_DATA": str(folder / f"stage-{tier}"),
        }
        start(f"stage-{tier}", ["stage", "--tier", tier], settings)
    say(f"starting {len(devices)} edge agents")
    for device in devices:
        start(device, ["edge-agent"], _device(brokers, device, tokens[device], keys, url, folder))
    for process in by_name.values():
        process.wait_ready()
    return System(folder, processes, brokers, url, token, by_name, tuple(devices))


def _token(processes: Processes, cloud: Mapping[str, str], role: str) -> str:
    made = processes.run(["token", "create", "--role", role, "--name", f"development-{role}", "--json"], cloud)
    token: str = json.loads(made)["token"]
    return token


def _gateway(brokers: Brokers) -> dict[str, str]:
    # the embedded MQTT broker has no shared subscriptions, which is why there is only one gateway here
    share = {} if brokers.version == 5 else {"GATEWAY_SHARED_GROUP": ""}
    return {
        "GATEWAY_KAFKA__BOOTSTRAP": brokers.bootstrap,
        **_mqtt("GATEWAY_BROKER", brokers.as_user("gateway")),
        **share,
    }


def _device(brokers: Brokers, device: str, token: str, keys: list[str], url: str, folder: Path) -> dict[str, str]:
    return {
        "EDGE_DEVICE_ID": device,
        "EDGE_TOKEN": token,
        "EDGE_PUBLIC_KEYS": json.dumps(keys),
        "EDGE_CLOUD_URL": url,
        "EDGE_DATA": str(folder / device),
        **_mqtt("EDGE_SENSOR_BROKER", brokers.as_user(device)),
    }


def _mqtt(prefix: str, broker: MqttBroker) -> dict[str, str]:
    values = {"HOST": broker.host, "PORT": str(broker.port), "VERSION": str(broker.version)}
    if broker.username is not None and broker.password is not None:
        values |= {"USERNAME": broker.username, "PASSWORD": broker.password}
    return {f"{prefix}__{name}": value for name, value in values.items()}
