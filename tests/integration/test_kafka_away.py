"""Kafka away for a while, by default seconds, with `make away AWAY_S=600` ten minutes: real agents, a real gateway.

The gateway's memory stays flat, the devices answer and keep what is theirs, and when Kafka is back everything drains,
each device's outcomes in their order.
"""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from sluice.dev.processes import Processes
from sluice.wire import names
from tests.brokers.kafka import Kafka
from tests.brokers.mosquitto import Mosquitto
from tests.integration.edge_support import MadeBundle, User, agent_settings, broker_of, make_bundle, rss_kb, until
from tests.integration.gateway_support import TOPICS, Device, Gateway, Topic

AWAY_S = float(os.environ.get("AWAY_S", "20"))
CLOUD = names.offload_topic("cloud", "columns")
RATE_HZ = 10.0
"""Of each device's readings."""
DEVICES = 2
OUTLIVES = {"EDGE_SAMPLE_TTL_S": "86400", "EDGE_ANSWER_TIMEOUT_S": "1"}
"""Samples live through the outage, so that their order can be told."""
IN_FLIGHT = 64
"""Messages that the gateway may hold; the devices would send twice as many without a receipt."""
LEFT_KB = 15_000
"""What the gateway's memory may rise by while Kafka is away and while everything drains. Seconds cannot show a leak,
ten minutes can; that what is held is bounded shows at once."""

pytestmark = [pytest.mark.brokers, pytest.mark.tensorflow, pytest.mark.timeout(300 + 3 * AWAY_S)]


@pytest.fixture
def kafka() -> Iterator[Kafka]:
    with Kafka() as server:
        for topic in (*TOPICS, CLOUD):
            server.create_topic(topic, 2)
        yield server


@pytest.fixture
def mosquitto() -> Iterator[Mosquitto]:
    with Mosquitto() as server:
        yield server


def first_seqs(topic: Topic, device: str) -> list[int]:
    """The samples of a device on a topic, in the order of their first records."""
    return list(dict.fromkeys(topic.seqs(device)))


def start_device(processes: Processes, made: MadeBundle, device: str, data: Path, mosquitto: Mosquitto) -> None:
    """A real agent that is told to run the bundle which it has."""
    shutil.copytree(made.folder, data / "bundles" / made.digest)
    with Device(broker_of(mosquitto), f"above-{device}") as above:
        above.door.publish(f"sluice/{device}/desired", made.desired(device), retain=True)
        until(lambda: above.taken)
    settings = agent_settings(made, device, data, mosquitto) | OUTLIVES
    processes.start(device, ["edge-agent"], settings).wait_ready()


def test_kafka_is_away(kafka: Kafka, mosquitto: Mosquitto, tmp_path: Path, unique: str) -> None:
    made: MadeBundle = make_bundle(tmp_path / "bundle")
    broker = broker_of(mosquitto)
    devices = [f"device-{number}-{unique}" for number in range(DEVICES)]
    with ExitStack() as stack:
        processes = stack.enter_context(Processes(tmp_path / "logs"))
        settings = {"GATEWAY_IN_FLIGHT": str(IN_FLIGHT), "GATEWAY_BROKER__KEEPALIVE_S": "5"}
        gateway = Gateway(processes, mosquitto, kafka, unique, **settings)
        with Device(broker, f"early-{unique}") as early:
            early.insist(early.prediction())
        users = []
        for device in devices:
            start_device(processes, made, device, tmp_path / device, mosquitto)
            users.append(stack.enter_context(User(broker, device)))

        count = 0

        def measure(seconds: float) -> list[int]:
            """Readings of all devices for so long; the gateway's memory meanwhile, in KiB."""
            nonlocal count
            memory, tick, end = [], threading.Event(), time.monotonic() + seconds
            while time.monotonic() < end:
                for user in users:
                    user.measure(made.samples[count % len(made.samples)], f"reading-{count}")
                count += 1
                memory.append(rss_kb(gateway.process.child.pid))
                tick.wait(1 / RATE_HZ)
            return memory

        topics = [stack.enter_context(closing(Topic(kafka, name))) for name in (names.PREDICTIONS, CLOUD)]

        def in_kafka(device: str) -> set[int]:
            return {seq for topic in topics for seq in topic.seqs(device)}

        before = measure(10)
        until(lambda: all(len(in_kafka(device)) == count for device in devices))
        kafka.kill()
        begun = time.monotonic()
        during = measure(AWAY_S)
        in_flight, held = gateway.in_flight(), gateway.metric("sluice_gateway_in_flight_bytes")
        away = time.monotonic() - begun
        kafka.start()
        back = time.monotonic()
        after = measure(10)
        until(lambda: all(len(in_kafka(device)) == count for device in devices), 120 + AWAY_S)
        drained = time.monotonic() - back
        until(lambda: gateway.in_flight() == 0)
        after.append(rss_kb(gateway.process.child.pid))
        records = sum(len(topic.seqs(device)) for topic in topics for device in devices)
        print(f"Kafka away {away:.0f} s; {count} samples of each of {DEVICES} devices, all in Kafka {drained:.1f} s")
        print(f"after its return, {records - DEVICES * count} repeats; in flight {in_flight:.0f} messages, {held:.0f}")
        print(f"bytes; gateway's memory before {max(before)} KiB, during {min(during)} to {max(during)}, after")
        print(f"{max(after)}")
        assert 0 < in_flight <= IN_FLIGHT * 9 / 8 < count, "the rest stays with the devices"
        for device, user in zip(devices, users, strict=True):
            for topic in topics:
                assert first_seqs(topic, device) == sorted(first_seqs(topic, device))
            assert len(in_kafka(device)) == count
            told = {p.source_id for p in user.heard}  # final from the device's exit, or provisional
            assert told == {f"reading-{n}" for n in range(count)}
        assert max(during + after) - max(before) < LEFT_KB
