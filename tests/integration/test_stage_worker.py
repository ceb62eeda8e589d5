"""The worker on the embedded Kafka: what rests is tried again, what is poison does not stop it.

Nothing here measures loss or repeats: that is for real brokers.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from sluice.daemon.settings import load
from sluice.doors.kafka import KafkaCluster, KafkaReader, KafkaWriter, Record
from sluice.doors.kafka_topics import EmbeddedKafka, ensure_topics
from sluice.stage.settings import StageSettings
from sluice.stage.worker import Worker
from sluice.wire.messages import encode
from sluice.wire.names import DEAD_LETTER, offload_topic
from tests.unit.wire_support import prediction

NEWER = b"\xc3\x01" + bytes(8) + b"a message of tomorrow"


@pytest.fixture
def cluster() -> Iterator[KafkaCluster]:
    embedded = EmbeddedKafka()
    yield KafkaCluster(bootstrap=embedded.bootstrap)
    del embedded


@contextmanager
def working(cluster: KafkaCluster, folder: Path, **settings: Any) -> Iterator[None]:
    """A fog worker in a thread, whose control plane is away."""
    worker = Worker(
        load(StageSettings, tier="fog", kafka=cluster, data=folder, cloud_url="http://127.0.0.1:9", **settings)
    )
    stop = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            worker.run(stop)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert failures == []


def put(cluster: KafkaCluster, topic: str, *values: bytes) -> None:
    writer = KafkaWriter("test", cluster)
    for value in values:
        writer.write(topic, value, partition=0)
    assert writer.flush(10) == 0


def wait_until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 40
    while not true():
        assert time.monotonic() < end, f"not within 40 s: {what}"
        time.sleep(0.05)


def test_poison_of_any_size_is_a_dead_letter_and_the_next_one_is_served(cluster: KafkaCluster, tmp_path: Path) -> None:
    topic = offload_topic("fog", "gate")
    largest = bytes(999_900)  # with the reason it is more than a record may hold
    put(cluster, topic, largest, encode(prediction()))
    ensure_topics(cluster, {DEAD_LETTER: 1})
    letters: list[Record] = []
    reader = KafkaReader("letters", cluster, "letters")
    reader.assign_all(DEAD_LETTER)

    def both() -> bool:
        letters.extend(reader.read(10, 0.1))
        return len(letters) == 2

    with working(cluster, tmp_path):
        wait_until(both, "two dead letters")
    reader.close()
    told = {dict(letter.headers)["offset"]: (dict(letter.headers)["reason"], letter.value) for letter in letters}
    reason, value = told[b"0"]
    assert b"not an Avro single-object record" in (reason or b"") and b"999900 bytes" in (reason or b"")
    assert largest.startswith(value) and value
    assert told[b"1"] == (b"a prediction on an offload topic", encode(prediction()))


def test_what_rests_is_tried_again_after_a_rebalance(cluster: KafkaCluster, tmp_path: Path) -> None:
    """librdkafka keeps a topic partition paused while it is given away and back."""
    put(cluster, offload_topic("fog", "gate"), NEWER)

    def held() -> float:
        return REGISTRY.get_sample_value("sluice_stage_held_total", {"tier": "fog"}) or 0.0

    before = held()
    with working(cluster, tmp_path, hold_s=3600, topics_interval_s=0.1):
        wait_until(lambda: held() == before + 1, "the first rest")
        put(cluster, offload_topic("fog", "other"), NEWER)  # another model comes: all are assigned anew
        wait_until(lambda: held() == before + 3, "the new one rests, and the first one was tried again")
