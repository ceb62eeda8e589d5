"""The bare minimum that the whole path is compared with: hand-written loops, the same brokers, the same segments.

No guarantees at all: QoS 0, acks=1, no journal, no outbox, no receipts, no schemas, no checks, one sample at a time,
offsets committed by the client whenever it likes. What is left is what any path from a sensor through MQTT and Kafka
and back has to pay for. A sample is 8 bytes of number and the input's bytes; an answer 8 bytes of number, a byte of
tier and a byte of label; a tensor travels as raw float32.

    python -m bench.bare device|up|fog|cloud|down BUNDLE --mqtt HOST:PORT --kafka HOST:PORT
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import numpy as np
import paho.mqtt.client as paho
from ai_edge_litert.interpreter import Interpreter
from paho.mqtt.enums import CallbackAPIVersion

from sluice.wire.bundle import Bundle, open_bundle
from sluice.wire.manifest import ExitPolicy

TIERS = ("edge", "fog", "cloud")


class Run:
    """One TFLite segment at batch 1 and the gate at its exit."""

    def __init__(self, bundle: Bundle, index: int) -> None:
        spec = bundle.manifest.segments[index]
        self.core = Interpreter(model_content=bundle.read(spec.file), num_threads=1)
        runner = self.core.get_signature_runner()
        crossing = bundle.manifest.crossing(index)
        self.inputs = [(runner.get_input_details()[s.name]["index"], s) for s in crossing]
        details = runner.get_output_details()
        del runner
        for number, s in self.inputs:
            self.core.resize_tensor_input(number, (1, *s.shape))
        self.core.allocate_tensors()
        assert spec.exit is not None
        assert not spec.passes
        self.logits = details[spec.exit.logits]["index"]
        self.outputs = [details[s.name]["index"] for s in spec.outputs]
        self.policy: ExitPolicy = bundle.manifest.operating_point("default").policies[index]
        self.last = index == len(bundle.manifest.segments) - 1

    def __call__(self, data: bytes) -> tuple[int | None, bytes]:
        """(label or None if not certain, bytes of the next segment's input)."""
        at = 0
        for number, s in self.inputs:
            end = at + s.nbytes
            self.core.set_tensor(number, np.frombuffer(data[at:end], s.dtype).reshape(1, *s.shape))
            at = end
        self.core.invoke()
        logits = self.core.get_tensor(self.logits)[0] / self.policy.temperature
        p = np.exp(logits - logits.max())
        label = int(p.argmax())
        if self.last or p[label] / p.sum() >= self.policy.threshold:
            return label, b""
        return None, b"".join(self.core.get_tensor(number).tobytes() for number in self.outputs)


def send_at_once(_client: paho.Client, _userdata: object, sock: object) -> None:
    """No Nagle."""
    assert isinstance(sock, socket.socket)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def mqtt(address: str, topics: list[str], on_message: Any) -> paho.Client:
    """A connected client with its network thread running."""
    client = paho.Client(CallbackAPIVersion.VERSION2)

    def connected(c: paho.Client, *_: Any) -> None:
        for topic in topics:
            c.subscribe(topic, 0)

    client.on_connect = connected
    client.on_socket_open = send_at_once
    client.on_message = on_message
    host, _, port = address.rpartition(":")
    client.connect(host, int(port))
    client.loop_start()
    return client


def answer(number: bytes, tier: int, label: int) -> bytes:
    """An answer as it travels."""
    return number + bytes((tier, label))


def device(bundle: Bundle, args: argparse.Namespace) -> None:
    """Sensor to answer, or to the bridge."""
    run = Run(bundle, 0)

    def on_message(client: paho.Client, _: object, message: paho.MQTTMessage) -> None:
        number, data = bytes(message.payload[:8]), bytes(message.payload[8:])
        label, rest = run(data)
        if label is None:
            client.publish("bare/offload", number + rest)
        else:
            client.publish("bare/answer", answer(number, 0, label))

    mqtt(args.mqtt, ["bare/sensor"], on_message)


def up(_: Bundle, args: argparse.Namespace) -> None:
    """MQTT to Kafka."""
    producer = ck.Producer({"bootstrap.servers": args.kafka, "acks": 1, "linger.ms": 0, "socket.nagle.disable": True})

    def on_message(_client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        producer.produce("bare.fog", bytes(message.payload))
        producer.poll(0)

    mqtt(args.mqtt, ["bare/offload"], on_message)


def stage(bundle: Bundle, args: argparse.Namespace, tier: int) -> None:
    """Kafka to Kafka, one record at a time."""
    run = Run(bundle, tier)
    producer = ck.Producer({"bootstrap.servers": args.kafka, "acks": 1, "linger.ms": 0, "socket.nagle.disable": True})
    for value in records(args.kafka, f"bare.{TIERS[tier]}"):
        label, rest = run(value[8:])
        if label is None:
            producer.produce(f"bare.{TIERS[tier + 1]}", value[:8] + rest)
        else:
            producer.produce("bare.answers", answer(value[:8], tier, label))
        producer.poll(0)


def down(_: Bundle, args: argparse.Namespace) -> None:
    """Kafka to MQTT."""
    client = mqtt(args.mqtt, [], None)
    for value in records(args.kafka, "bare.answers"):
        client.publish("bare/answer", value)


def records(bootstrap: str, topic: str) -> Any:
    """Values of a topic from now on, for ever."""
    consumer = ck.Consumer({"bootstrap.servers": bootstrap, "group.id": topic, "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    try:
        while True:
            message = consumer.poll(1.0)
            if message is not None and message.error() is None:
                yield message.value()
    finally:
        consumer.close()


def main() -> None:
    """One loop, until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("loop", choices=["device", "up", "fog", "cloud", "down"])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--mqtt", required=True)
    parser.add_argument("--kafka", required=True)
    args = parser.parse_args()
    bundle = open_bundle(args.bundle)
    print("started", flush=True)
    if args.loop in TIERS:
        stage(bundle, args, TIERS.index(args.loop))
        return
    {"device": device, "up": up, "down": down}[args.loop](bundle, args)
    threading.Event().wait()


if __name__ == "__main__":
    main()
