"""Retention that is faster than a stage is counted and said, on a real Kafka, and the stage goes on behind it."""

import json
import urllib.request
from collections.abc import Iterator

import pytest
from confluent_kafka import TopicPartition

from sluice.dev.processes import Process, Processes, free_port
from sluice.doors.kafka import KafkaCluster, KafkaReader
from sluice.doors.kafka_transactions import KafkaTransactions
from tests.brokers.kafka import Kafka
from tests.integration.edge_support import until
from tests.integration.stage_support import BOTH, Answers, Stage, kafka_for_stages

pytestmark = [pytest.mark.brokers, pytest.mark.tensorflow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def kafka() -> Iterator[Kafka]:
    with kafka_for_stages() as server:
        yield server


def remove(kafka: Kafka, topic: str, partition: int, before: int) -> None:
    """What retention does, now."""
    place = TopicPartition(topic, partition, before)
    kafka.admin().delete_records([place])[place].result(30)


def said(process: Process) -> int:
    """How many records a stage says that retention took."""
    lines = [json.loads(line) for line in process.log.read_text().splitlines() if line.startswith("{")]
    return sum(int(line["message"].split()[3]) for line in lines if "retention took" in line["message"])


@pytest.mark.parametrize("delivery", BOTH)
def test_what_retention_took_while_a_stage_was_away_is_counted(
    stage: Stage, kafka: Kafka, processes: Processes, unique: str, delivery: str
) -> None:
    answers = Answers(stage)
    port = free_port()
    worker = stage.start(processes, "worker", delivery, STAGE_METRICS_PORT=str(port))
    stage.send(f"{unique}-before", 40)
    until(lambda: len(answers.of(f"{unique}-before")) == 40)
    assert worker.stop() == 0

    reader = KafkaReader("test", stage.cluster, "test")
    before = [reader.watermarks((stage.topic, partition))[1] for partition in range(4)]
    stage.send(f"{unique}-after", 80)
    ends = [reader.watermarks((stage.topic, partition))[1] for partition in range(4)]
    reader.close()
    took = 0
    for partition, (first, end) in enumerate(zip(before, ends, strict=True)):
        share = (end - first) // (partition + 1) if partition < 3 else 0  # all of one, none of another
        remove(kafka, stage.topic, partition, first + share)
        took += share
    assert took
    worker.start()
    until(lambda: len(answers.of(f"{unique}-after")) == 80 - took)
    stage.send(f"{unique}-more", 40)  # what is wholly gone shows when the next record comes
    until(lambda: len(answers.of(f"{unique}-more")) == 40)
    until(lambda: said(worker) == took)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as page:
        lines = page.read().decode().splitlines()
    assert f'sluice_stage_retention_lost_total{{tier="cloud"}} {took:.1f}' in lines
    assert worker.stop() == 0
    answers.reader.close()


def test_a_reader_that_rests_is_told_what_it_missed_and_transactions_are_no_loss(kafka: Kafka, unique: str) -> None:
    topic = kafka.create_topic(f"rest-{unique}", 1)
    cluster = KafkaCluster(bootstrap=kafka.bootstrap)
    lost: list[int] = []
    reader = KafkaReader("test", cluster, unique, on_overtaken=lambda _place, count: lost.append(count), ahead=1)
    writer = KafkaTransactions("test", cluster, unique, 30.0)
    writer.init()

    def write(count: int) -> None:
        writer.begin()
        for number in range(count):
            writer.write(topic, b"%d" % number + bytes(100_000), partition=0)
        writer.commit({}, reader.group())

    read: list[int] = []

    def come(last: int) -> bool:
        read.extend(record.offset for record in reader.read(100, 0.2))
        return bool(read) and read[-1] == last

    reader.subscribe([topic])
    for _ in range(3):
        write(4)  # and a marker behind
    until(lambda: come(13))
    assert len(read) == 12
    reader.pause([(topic, 0)])
    write(100)
    assert lost == []
    remove(kafka, topic, 0, 60)
    reader.resume([(topic, 0)])
    until(lambda: come(114))
    assert read[12] == 60
    until(lambda: lost or come(0))  # Kafka is not asked at once
    assert sum(lost) == 60 - 14
    reader.close()
