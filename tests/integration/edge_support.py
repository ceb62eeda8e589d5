"""What the tests of agent and gateway share: a bundle, a device seen from outside, and a gateway played by the test."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from sluice.doors.mqtt import Incoming, MqttBroker, MqttDoor
from sluice.stage.policy import gate
from sluice.stage.segment import load_segments
from sluice.stage.step import best_belief, predict
from sluice.wire import bundle as bundles
from sluice.wire import messages, signing
from sluice.wire.manifest import Manifest
from sluice.wire.messages import Offload, Outcome, Prediction
from sluice.wire.state import Bounds, Desired, Receipt, Reported, Run, Running, parse_state, seal
from tests.brokers.mosquitto import Mosquitto

WAIT_S = 60.0
POINT = "half"
MODEL = """
keras.utils.set_random_seed(3)
x = keras.Input((6, 6, 1), dtype="uint8")
a = layers.Conv2D(4, 3, padding="same", activation="tanh")(layers.Rescaling(1 / 255)(x))
first = layers.Dense(3, name="first")(layers.Flatten()(a))
final = layers.Dense(3, name="final")(layers.Flatten()(layers.Conv2D(4, 3, activation="relu")(a)))
model = keras.Model(x, [first, final])
"""


def until(what: Callable[[], Any], patience_s: float = WAIT_S) -> Any:
    """The first true value of `what`; fails when none comes."""
    deadline = time.monotonic() + patience_s
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {patience_s} s in vain"
        time.sleep(0.02)


def rss_kb(pid: int) -> int:
    """Resident memory of a process in KiB, from the kernel."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")))


@dataclass(frozen=True)
class MadeBundle:
    """A signed bundle in `folder` whose first exit answers about half of `samples` (n, 36) on the device."""

    folder: Path
    digest: str
    key: Ed25519PrivateKey
    samples: Any
    easy: list[int]
    hard: list[int]

    @property
    def public_key(self) -> str:
        return signing.public_text(self.key)

    def desired(
        self,
        device: str,
        revision: int = 1,
        digest: str | None = None,
        profile: str | None = None,
        point: str = POINT,
        bounds: Bounds | None = None,
        others: tuple[Run, ...] = (),
    ) -> bytes:
        run = Run(model="columns", bundle=digest or self.digest, operating_point=point, bounds=bounds)
        return seal(self.key, Desired(device_id=device, revision=revision, runs=(run, *others), profile=profile))

    def changed(self, folder: Path, **point: Any) -> str:
        """Another bundle under `folder`, with other fields in its operating point; returns its digest."""
        manifest = bundles.open_bundle(self.folder).manifest
        (old,) = manifest.operating_points
        return write(self.folder, folder, manifest, old.model_copy(update=point), self.key)


def write(source: Path, folder: Path, manifest: Manifest, point: Any, key: Ed25519PrivateKey) -> str:
    """Sign `manifest` with the one operating point `point` and put it with all its blobs into `folder/<digest>`."""
    changed = manifest.model_copy(update={"operating_points": (point,)})
    data = changed.model_dump_json().encode()
    target = folder / bundles.sha256(data)
    for blob in manifest.blobs():
        bundles.write_atomically(target / bundles.BLOBS / blob.sha256, bundles.read_blob(source / bundles.BLOBS, blob))
    bundles.write_atomically(target / bundles.MANIFEST, data)
    bundles.write_atomically(target / bundles.SIGNATURE, signing.sign(key, data).encode())
    return target.name


def make_bundle(
    folder: Path, quantize: Literal["float32", "int8"] = "float32", source: str = MODEL, x: Any = None
) -> MadeBundle:
    """Partition a small, untrained model (TensorFlow) and set the threshold of its first exit in the middle of `x`."""
    from partitioner.anatomy.models import from_source
    from partitioner.partition import Source, partition
    from partitioner.settings import PartitionSettings

    if x is None:
        x = np.random.default_rng(1).integers(0, 256, (60, 6, 6, 1)).astype(np.uint8)
    settings = PartitionSettings(placement=("edge", "cloud"), codec="int8-zstd", quantize=quantize)
    partition(from_source(source), {"x": x}, folder / "raw", Source("columns", 1, ["a", "b", "c"]), settings)
    manifest = bundles.open_bundle(folder / "raw").manifest
    (first,) = load_segments(folder / "raw", manifest, range(1))
    assert manifest.segments[0].exit is not None
    made = first.run({manifest.inputs[0].name: x})
    _, confidence = gate("max_prob", made[manifest.segments[0].exit.logits].astype(np.float32), 1.0)
    order = np.argsort(confidence)
    half = len(x) // 2
    easy, hard = sorted(order[half:].tolist()), sorted(order[:half].tolist())
    threshold = float(confidence[order[half - 1]] + confidence[order[half]]) / 2
    point = manifest.operating_points[0]
    gates = [
        p.model_copy(update={"measure": "max_prob", "threshold": threshold, "temperature": 1.0}) for p in point.policies
    ]
    update = {"id": POINT, "placement": ("edge", "cloud"), "policies": tuple(gates), "certificate": None}
    key = signing.load_or_make_key(folder / "key.pem")
    digest = write(folder / "raw", folder, manifest, point.model_copy(update=update), key)
    return MadeBundle(folder / digest, digest, key, x.reshape(len(x), -1), easy, hard)


class User:
    """Who publishes readings and listens to answers, at the sensor broker."""

    def __init__(self, broker: MqttBroker, device: str) -> None:
        self.device = device
        self.heard: list[Prediction] = []
        topic = f"sluice/{device}/answer"
        self.door = MqttDoor("user", broker, f"{device}-user", subscriptions=[(topic, 1)], on_message=self._hear)

    def __enter__(self) -> "User":
        self.door.start()
        assert self.door.up.wait(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.door.stop()

    def _hear(self, incoming: Incoming) -> None:
        outcome = messages.decode(incoming.payload)
        assert isinstance(outcome, Prediction)
        self.heard.append(outcome)
        self.door.ack(incoming)

    def measure(self, values: Any, source_id: str | None) -> None:
        body = {"values": np.asarray(values).tolist(), **({} if source_id is None else {"id": source_id})}
        self.publish(json.dumps(body).encode())

    def publish(self, payload: bytes) -> None:
        self.door.publish(f"sluice/{self.device}/sensor/camera", payload)

    def finals(self) -> dict[str, Prediction]:
        return {p.source_id: p for p in list(self.heard) if p.status == "final" and p.source_id is not None}

    def provisionals(self) -> dict[str, Prediction]:
        return {p.source_id: p for p in list(self.heard) if p.status == "provisional" and p.source_id is not None}


@dataclass
class Above:
    """All that is above a device, played by the test: receipts what comes up and answers what was offloaded."""

    broker: MqttBroker
    device: str
    receipts: bool = True
    answers: bool = True
    came: list[Outcome] = field(default_factory=list)
    reported: list[Reported] = field(default_factory=list)
    letters: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        kinds = ("offload", "prediction", "reported", "dead-letter")
        self.door = MqttDoor(
            "above",
            self.broker,
            f"{self.device}-above",
            subscriptions=[(f"sluice/{self.device}/{kind}", 1) for kind in kinds],
            on_message=self._take,
        )

    def __enter__(self) -> "Above":
        self.door.start()
        assert self.door.up.wait(WAIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.door.stop()

    def _take(self, incoming: Incoming) -> None:
        kind = incoming.topic.rpartition("/")[2]
        if kind == "reported":
            self.reported.append(parse_state(Reported, incoming.payload))
        elif kind == "dead-letter":
            self.letters.append(incoming.payload)
        else:
            for outcome in messages.decode_all(incoming.payload):
                self.came.append(outcome)
                if self.receipts:
                    self.receipt(outcome)
                if self.answers and isinstance(outcome, Offload):
                    self.answer(outcome)
        self.door.ack(incoming)

    def receipt(self, outcome: Outcome) -> None:
        receipt = Receipt(epoch=outcome.epoch, seqs=[outcome.seq])
        self.door.publish(f"sluice/{self.device}/receipt", receipt.model_dump_json().encode())

    def answer(self, offload: Offload) -> None:
        belief = best_belief(offload)
        assert belief is not None
        self.door.publish(
            f"sluice/{self.device}/inbox", messages.encode(predict(offload, belief, "cloud", "final", "last"))
        )

    def runs(self, model: str = "columns") -> Running:
        """What the device reported last of a model; nothing that runs if it has said nothing yet."""
        run = self.reported[-1].run_of(model) if self.reported else None
        return run or Running(model=model)

    def desire(self, envelope: bytes) -> None:
        self.door.publish(f"sluice/{self.device}/desired", envelope, retain=True)


def broker_of(server: Mosquitto) -> MqttBroker:
    return MqttBroker(host=server.host, port=server.port)


def agent_settings(
    made: MadeBundle, device: str, data: Path, sensor: Mosquitto, uplink: Mosquitto | None = None, **more: str
) -> dict[str, str]:
    """The environment of an agent that trusts the key of `made`."""
    settings = {
        "EDGE_DEVICE_ID": device,
        "EDGE_PUBLIC_KEYS": json.dumps([made.public_key]),
        "EDGE_CLOUD_URL": "http://127.0.0.1:9",
        "EDGE_DATA": str(data),
        "EDGE_AUDIT_SHARE": "0",  # what goes up is what the test knows of
        "EDGE_SENSOR_BROKER__HOST": sensor.host,
        "EDGE_SENSOR_BROKER__PORT": str(sensor.port),
        **more,
    }
    if uplink is not None:
        settings |= {"EDGE_UPLINK_BROKER__HOST": uplink.host, "EDGE_UPLINK_BROKER__PORT": str(uplink.port)}
    return settings
