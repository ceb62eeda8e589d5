"""What the gateway's tests share: the process and its metrics, devices as it sees them, and topics of Kafka."""

import secrets
import threading
import urllib.request

from sluice.dev.processes import Process, Processes, free_port
from sluice.doors.kafka import KafkaCluster, KafkaReader, Record
from sluice.doors.mqtt import Incoming, MqttBroker, MqttDoor
from sluice.wire import messages, names
from sluice.wire.messages import Belief, Offload, Prediction, Reason, Tensor
from sluice.wire.names import Tier
from sluice.wire.state import Receipt, parse_state
from tests.brokers.kafka import Kafka
from tests.brokers.mosquitto import Mosquitto
from tests.integration.edge_support import until

IN_FLIGHT = 8
EPOCH = "0123456789abcdef"
FOG = names.offload_topic("fog", "columns")
TOPICS = (names.PREDICTIONS, names.DESIRED, names.DEVICES, names.DEAD_LETTER, FOG)


class Gateway:
    """The gateway, and what its metrics say."""

    def __init__(self, processes: Processes, mosquitto: Mosquitto, kafka: Kafka, unique: str, **more: str) -> None:
        self.port = free_port()
        settings = {
            "GATEWAY_NAME": f"gateway-{unique}",
            "GATEWAY_BROKER__HOST": mosquitto.host,
            "GATEWAY_BROKER__PORT": str(mosquitto.port),
            "GATEWAY_KAFKA__BOOTSTRAP": kafka.bootstrap,
            "GATEWAY_IN_FLIGHT": str(IN_FLIGHT),
            "GATEWAY_METRICS_PORT": str(self.port),
            **more,
        }
        self.process: Process = processes.start(f"gateway-{unique}", ["gateway"], settings)
        self.process.wait_ready()

    def in_flight(self) -> float:
        return self.metric("sluice_gateway_in_flight_messages")

    def metric(self, name: str, **labels: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=20) as page:
            lines = page.read().decode().splitlines()
        said = ",".join(f'{label}="{value}"' for label, value in labels.items())
        wanted = f"{name}{{{said}}} " if labels else f"{name} "
        found = [line for line in lines if line.startswith(wanted)]
        return float(found[0].split()[1])

    def kill(self) -> None:
        self.process.kill()

    def start(self) -> None:
        self.process.start()
        self.process.wait_ready()

    def log_lines(self, text: str) -> int:
        return sum(text in line for line in self.process.log.read_text().splitlines())


class Device:
    """A device as the gateway sees it: sends, and hears receipts, answers and desired state."""

    def __init__(self, broker: MqttBroker, name: str) -> None:
        self.name = name
        self.receipts: list[Receipt] = []
        self.inbox: list[Incoming] = []
        self.desired: list[Incoming] = []
        self.taken = 0
        self.changed = threading.Event()
        topics = [(f"sluice/{name}/{kind}", 1) for kind in ("receipt", "inbox", "desired")]
        self.door = MqttDoor(
            name, broker, f"{name}-uplink", subscriptions=topics, on_message=self._hear, on_published=self._published
        )
        self._seqs = 0

    def __enter__(self) -> "Device":
        self.door.start()
        assert self.door.up.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self.door.stop()

    def _published(self, _mid: int) -> None:
        self.taken += 1

    def _hear(self, incoming: Incoming) -> None:
        kind = incoming.topic.rpartition("/")[2]
        if kind == "receipt":
            self.receipts.append(parse_state(Receipt, incoming.payload))
            self.changed.set()
        else:
            (self.inbox if kind == "inbox" else self.desired).append(incoming)
        self.door.ack(incoming)

    def send(self, kind: str, payload: bytes, device: str | None = None) -> None:
        self.door.publish(f"sluice/{device or self.name}/{kind}", payload)

    def state(self, kind: str, payload: bytes) -> None:
        """Retained, as an agent publishes its state."""
        self.door.publish(f"sluice/{self.name}/{kind}", payload, retain=True)

    def insist(self, prediction: Prediction) -> None:
        """Send it again and again until it is receipted, as an agent does."""
        payload = messages.encode(prediction)
        while prediction.seq not in self.receipted():
            self.changed.clear()
            self.send("prediction", payload)
            self.changed.wait(1)

    def receipted(self) -> list[int]:
        return [seq for receipt in list(self.receipts) for seq in receipt.seqs]

    def offload(self, model: str = "columns") -> Offload:
        self._seqs += 1
        return Offload(
            device_id=self.name,
            epoch=EPOCH,
            seq=self._seqs,
            source_id=None,
            model=model,
            bundle="ab" * 32,
            operating_point="default",
            tier="fog",
            next_segment=1,
            tensors=(Tensor("h", "int8", (4,), 0.0, 0, "raw", b"1234"),),
            beliefs=(Belief(0, 2, 0.5),),
            captured_at=5,
            ttl_ms=60_000,
        )

    def prediction(self, tier: Tier = "edge", reason: Reason = "exit") -> Prediction:
        offload = self.offload()
        return Prediction(
            device_id=self.name,
            epoch=EPOCH,
            seq=offload.seq,
            source_id=None,
            model="columns",
            bundle=offload.bundle,
            operating_point="default",
            tier=tier,
            exit=0,
            label=1,
            confidence=0.5,
            outputs=b"",
            status="final",
            reason=reason,
            captured_at=5,
            produced_at=6,
        )


class Topic:
    """All that stands on a Kafka topic, for as long as a test looks."""

    def __init__(self, kafka: Kafka, name: str) -> None:
        cluster = KafkaCluster(bootstrap=kafka.bootstrap)
        self.reader = KafkaReader("test", cluster, f"test-{secrets.token_hex(4)}")
        until(lambda: name in self.reader.topic_names())  # Kafka tells of a topic a moment after it has made it
        self.reader.assign_all(name)
        self.records: list[Record] = []

    def of(self, device: str) -> list[Record]:
        """The records so far that speak of a device, by key, value or headers."""
        self.records += self.reader.read(500, 0.1)
        word = device.encode()
        return [r for r in self.records if word in b"".join([r.key or b"", r.value, str(r.headers).encode()])]

    def seqs(self, device: str) -> list[int]:
        return [messages.decode(record.value).seq for record in self.of(device)]

    def close(self) -> None:
        self.reader.close()


def header(record: Record, name: str) -> str:
    value = dict(record.headers)[name]
    return value.decode() if isinstance(value, bytes) else str(value)
