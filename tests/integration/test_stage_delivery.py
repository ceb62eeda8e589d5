"""What a stage writes, on a real Kafka: nothing is lost, and in exactly-once mode nobody sees anything twice."""

import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import confluent_kafka as ck
import numpy as np
import pytest

from sluice.daemon.settings import load
from sluice.dev.processes import Processes
from sluice.doors.kafka import KafkaReader, KafkaWriter
from sluice.stage.exactly_once import ExactlyOnce
from sluice.stage.policy import gate
from sluice.stage.segment import load_segment
from sluice.stage.settings import StageSettings
from sluice.stage.step import Work, predict, step
from sluice.stage.worker import Worker
from sluice.wire import bundle as bundles
from sluice.wire import names
from sluice.wire.codec import encode_tensor
from sluice.wire.manifest import ExitPolicy, OperatingPoint
from sluice.wire.messages import Audit, Belief, Offload, Outcome, Prediction, Tensor, decode, encode
from tests.brokers.kafka import Kafka
from tests.integration.edge_support import until
from tests.integration.stage_support import BOTH, Answers, Stage, kafka_for_stages, renamed

pytestmark = [pytest.mark.brokers, pytest.mark.tensorflow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def kafka() -> Iterator[Kafka]:
    """One of this module's own: the names of Sluice's topics are fixed."""
    properties = {"transaction.abort.timed.out.transaction.cleanup.interval.ms": "200"}
    with kafka_for_stages(properties) as server:
        yield server


@pytest.mark.parametrize("delivery", BOTH)
def test_killed_again_and_again_it_loses_nothing(
    stage: Stage, processes: Processes, answers: Answers, unique: str, delivery: str
) -> None:
    count = 3000
    worker = stage.start(processes, "worker", delivery, STAGE_TRANSACTIONAL_ID=unique)
    stage.send(unique, count)
    seen = 0
    for _ in range(4):
        until(partial(answers.at_least, unique, min(count, seen + count // 8)))
        worker.kill()
        seen = len(answers.of(unique))
        worker.start()
        worker.wait_ready()
    until(lambda: len(answers.of(unique)) == count)
    assert worker.stop() == 0
    found = answers.of(unique)
    assert set(found) == set(range(count))
    if delivery == "exactly-once":
        assert set(found.values()) == {1}


def test_an_audit_is_finished_by_the_final_exit_also_when_its_time_is_over(
    stage: Stage, processes: Processes, answers: Answers, unique: str
) -> None:
    """Samples in the same batches are answered as ever: these expire."""
    worker = stage.start(processes, "worker", "at-least-once")
    over = {"ttl_ms": 0, "beliefs": (Belief(0, 1, 0.9),)}
    both = [stage.offload(unique, seq, **over) for seq in range(5)]
    both += [stage.offload(unique, seq, **over, audit=Audit(seq - 5, 0, 1)) for seq in range(5, 10)]
    KafkaWriter("devices", stage.cluster).write_all(stage.topic, ((unique, value) for value in both), 60)
    until(lambda: answers.at_least(unique, 10))
    found = [decode(record.value) for record in answers.records]
    told = {p.seq: (p.reason, p.audit) for p in found if isinstance(p, Prediction) and p.device_id == unique}
    assert told == dict.fromkeys(range(5), ("expired", None)) | {
        seq: ("last", Audit(seq - 5, 0, 1)) for seq in range(5, 10)
    }
    assert worker.stop() == 0


def test_kafka_killed_in_the_middle_stops_nothing_for_good(
    stage: Stage, processes: Processes, answers: Answers, unique: str
) -> None:
    """librdkafka may wait for ever for a coordinator that was away; the worker ends then, and is started again."""
    own = {"STAGE_TRANSACTIONAL_ID": unique, "STAGE_TRANSACTION_TIMEOUT_S": "2"}
    worker = stage.start(processes, "worker", "exactly-once", **own)

    def answered(device: str, count: int) -> bool:
        """Whether so many were answered; a worker that has ended is started again."""
        if not worker.running:
            worker.start()
        return answers.at_least(device, count)

    count = 2000
    for device in (f"{unique}-{i}" for i in range(2)):
        stage.send(device, count)
        until(partial(answered, device, count // 10), 90)
        stage.kafka.restart()
        until(partial(answered, device, count), 90)
        assert answers.of(device) == Counter(range(count))


def test_one_that_was_taken_for_dead_does_not_answer_again(
    stage: Stage, processes: Processes, answers: Answers, unique: str
) -> None:
    """Stopped in the middle, and let go on when another worker has all that it worked on."""
    count = 3000
    first = stage.start(processes, "first", "exactly-once", STAGE_TRANSACTION_TIMEOUT_S="2")
    stage.send(unique, count)
    until(lambda: len(answers.of(unique)) >= count // 10)
    os.kill(first.child.pid, signal.SIGSTOP)
    stage.start(processes, "second", "exactly-once", STAGE_TRANSACTION_TIMEOUT_S="2")
    until(lambda: len(answers.of(unique)) == count)
    os.kill(first.child.pid, signal.SIGCONT)
    stage.send(f"{unique}-more", 200)
    until(lambda: len(answers.of(f"{unique}-more")) == 200)
    time.sleep(3)  # for what should not come
    assert set(answers.of(unique).values()) == {1}
    assert set(answers.of(f"{unique}-more").values()) == {1}


def test_a_batch_may_take_longer_than_a_transaction(
    stage: Stage, answers: Answers, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction is open when the first slow batch begins."""
    topic = stage.kafka.create_topic(names.offload_topic("cloud", unique), 1)
    digest = renamed(stage, unique)
    values = ((None, stage.offload(unique, seq, model=unique, bundle=digest)) for seq in range(4))
    KafkaWriter("devices", stage.cluster).write_all(topic, values, 60)
    settings = load(
        StageSettings,
        tier="cloud",
        kafka=stage.cluster,
        delivery="exactly-once",
        data=stage.folder,
        models=[unique],
        batch_most=1,
        transaction_interval_s=1.5,
        transaction_timeout_s=2.0,
    )
    turns: list[int] = []

    def tired_step(stage: Any, works: list[Work]) -> list[Outcome]:
        turns.append(works[0].offload.seq)
        if len(turns) >= 3:
            time.sleep(2.5)  # what the runtime would take
        return step(stage, works)

    monkeypatch.setattr("sluice.stage.worker.step", tired_step)
    worker, stop = Worker(settings), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(worker.run, stop)
        until(lambda: ended.done() or answers.at_least(unique, 4), 90)
        stop.set()
        ended.result(60)
    assert answers.of(unique) == Counter(range(4))
    assert turns == [0, 1, 2, 0, 1, 2, 3], "all in the transaction was done again, then each batch had one of its own"


@pytest.mark.parametrize("delivery", BOTH)
def test_two_workers_that_come_and_go_share_the_work(
    stage: Stage, processes: Processes, answers: Answers, unique: str, delivery: str
) -> None:
    """Each time that topic partitions are taken away, what was done on them is not done again."""
    count = 2000
    first = stage.start(processes, "first", delivery)
    stage.send(unique, count)
    until(lambda: len(answers.of(unique)) >= count // 10)
    second = stage.start(processes, "second", delivery)
    stage.send(f"{unique}-more", count)
    until(lambda: len(answers.of(f"{unique}-more")) >= count // 2)
    assert first.stop() == 0
    until(lambda: len(answers.of(unique)) + len(answers.of(f"{unique}-more")) == 2 * count)
    assert second.stop() == 0
    assert set(answers.of(unique).values()) == set(answers.of(f"{unique}-more").values()) == {1}


@pytest.mark.parametrize("delivery", BOTH)
def test_what_kafka_refuses_becomes_a_dead_letter_and_the_rest_goes_on(
    stage: Stage, processes: Processes, answers: Answers, unique: str, delivery: str
) -> None:
    """The fog answers half of its samples; for the others, and for audits, there is no topic to go on to."""
    count = 40
    digest, inputs, certain = fog_first(stage, unique, count)
    letters = Answers(stage, names.DEAD_LETTER, 1)
    topic = stage.kafka.create_topic(names.offload_topic("fog", unique), 2)
    values = [
        stage.offload(unique, seq, model=unique, bundle=digest, tier="fog", next_segment=0, tensors=(inputs[seq],))
        for seq in range(count)
    ]
    worker = stage.start(processes, "worker", delivery, STAGE_TIER="fog", STAGE_AUDIT_SHARE="1")
    writer = KafkaWriter("devices", stage.cluster)

    def refused() -> Counter[bytes]:
        letters.of(unique)
        return Counter(record.value for record in letters.records if record.value in values)

    def letters_for(seqs: set[int]) -> bool:
        return set(refused()) == {values[seq] for seq in seqs}

    for wave in (range(count // 2), range(count // 2, count)):  # in the second its client knows what is missing
        writer.write_all(topic, ((str(seq), values[seq]) for seq in wave), 30)
        until(partial(answers.at_least, unique, len(certain & set(range(wave.stop)))))
        until(partial(letters_for, set(range(wave.stop)) - certain))
    assert set(answers.of(unique)) == certain
    assert worker.stop() == 0
    if delivery == "exactly-once":
        assert set(refused().values()) == set(answers.of(unique).values()) == {1}
    letters.reader.close()


@pytest.mark.parametrize("delivery", BOTH)
def test_what_an_exit_of_the_fog_answers_is_audited_by_the_cloud(
    stage: Stage, processes: Processes, answers: Answers, unique: str, delivery: str
) -> None:
    """All of it here; what goes on anyway is no audit, and an audit is not audited."""
    count = 40
    digest, inputs, certain = fog_first(stage, unique, count)
    topic, onward = (stage.kafka.create_topic(names.offload_topic(tier, unique), 1) for tier in ("fog", "cloud"))
    own = {"model": unique, "bundle": digest, "tier": "fog", "next_segment": 0}
    values = [stage.offload(unique, seq, **own, tensors=(inputs[seq],)) for seq in range(count)]
    values.append(stage.offload(unique, count, **own, tensors=(inputs[0],), audit=Audit(0, 0, 1)))
    KafkaWriter("devices", stage.cluster).write_all(topic, ((unique, value) for value in values), 30)
    reader = KafkaReader("cloud", stage.cluster, unique)
    reader.assign({(onward, 0): 0})
    fog = stage.start(
        processes, "fog", delivery, STAGE_TIER="fog", STAGE_AUDIT_SHARE="1", STAGE_MODELS=json.dumps([unique])
    )
    came: list[Offload] = []

    def all_came() -> bool:
        came.extend(one for record in reader.read(100, 0.2) if isinstance(one := decode(record.value), Offload))
        return len(came) >= count + 1

    until(all_came)
    until(partial(answers.at_least, unique, len(certain)))
    given = {one.seq: one for record in answers.records if isinstance(one := decode(record.value), Prediction)}
    audited = {one.seq: one.audit for one in came if one.audit is not None}
    assert audited == {seq: Audit(seq, 0, given[seq].label) for seq in certain} | {count: Audit(0, 0, 1)}
    assert Counter(one.seq for one in came if one.audit is None) == Counter(set(range(count)) - certain)
    assert fog.stop() == 0
    cloud = stage.start(processes, "cloud", delivery, STAGE_MODELS=json.dumps([unique]))
    until(partial(answers.at_least, unique, count + 1))
    said = [decode(record.value) for record in answers.records]
    finished = Counter(
        one.audit.of for one in said if isinstance(one, Prediction) and one.audit and one.tier == "cloud"
    )
    assert finished == Counter([*certain, 0])
    assert cloud.stop() == 0
    reader.close()


def fog_first(stage: Stage, model: str, count: int) -> tuple[str, list[Tensor], set[int]]:
    """(digest of a bundle whose first segment runs in the fog, inputs, which of them its exit answers)."""
    blobs, first = stage.folder / stage.digest / bundles.BLOBS, stage.manifest.segments[0]
    x = np.random.default_rng(1).normal(size=(count, *first.inputs[0].shape)).astype(np.float32)
    running = load_segment(bundles.read_blob(blobs, first.file), first)
    (_, sure) = gate("max_prob", running.run({"x": x})["logits"], 1.0)
    policy = ExitPolicy(measure="max_prob", threshold=float(np.median(sure)))
    point = OperatingPoint(id="default", placement=("fog", "cloud"), codec="raw", policies=(policy, policy))
    manifest = stage.manifest.model_copy(update={"model": model, "operating_points": (point,)})
    data = manifest.model_dump_json().encode()
    folder = stage.folder / bundles.sha256(data)
    shutil.copytree(stage.folder / stage.digest, folder)
    bundles.write_atomically(folder / bundles.MANIFEST, data)
    certain = {seq for seq in range(count) if sure[seq] >= policy.threshold}
    assert 0 < len(certain) < count
    return folder.name, [encode_tensor(one, first.inputs[0], "raw") for one in x], certain


def test_what_is_refused_last_is_not_taken_for_done(stage: Stage, unique: str) -> None:
    """The client itself refuses an outcome, and the next that happens is the word to stop."""
    topic = stage.kafka.create_topic(names.offload_topic("cloud", f"{unique}-late"), 1)
    KafkaWriter("devices", stage.cluster).write_all(topic, [(unique, stage.offload(unique, 0))], 30)
    settings = load(StageSettings, tier="cloud", kafka=stage.cluster, delivery="exactly-once")
    letters = Answers(stage, names.DEAD_LETTER, 1)

    def work(*, through: bool) -> int:
        """One turn over the record; the offset that is committed after it."""
        reader = KafkaReader("stage", stage.cluster, unique)
        reader.subscribe([topic])
        delivery = ExactlyOnce(settings, reader, lambda _: None)
        delivery.settle(threading.Event(), idle=True)
        turns = 2 if through else 1
        for _ in range(turns):
            (record,) = until(lambda: reader.read(1, 1.0))
            offload = decode(record.value)
            assert isinstance(offload, Offload)
            huge = predict(offload, Belief(0, 1, 0.5), "cloud", "final", "last", outputs=bytes(4_000_000))
            delivery.take([(record, huge)], [], {(topic, 0): record.offset + 1})
            if through:
                delivery.settle(threading.Event(), idle=True)
        delivery.stop()
        reader.close()
        asking = ck.Consumer({"bootstrap.servers": stage.kafka.bootstrap, "group.id": unique})
        (place,) = asking.committed([ck.TopicPartition(topic, 0)], timeout=30)
        asking.close()
        return place.offset

    assert work(through=False) < 0
    assert work(through=True) == 1
    letters.of(unique)
    assert [dict(one.headers)["origin"] for one in letters.records if one.key == unique.encode()] == [topic.encode()]
    letters.reader.close()


def test_a_transaction_that_kafka_ended_for_its_age_is_done_again(
    stage: Stage, answers: Answers, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its abort is refused then as if somebody else had the name, which nobody has."""
    topic = stage.kafka.create_topic(names.offload_topic("cloud", f"{unique}-old"), 1)
    writer = KafkaWriter("devices", stage.cluster)
    writer.write_all(topic, ((unique, stage.offload(unique, seq)) for seq in range(2)), 30)
    settings = load(
        StageSettings, tier="cloud", kafka=stage.cluster, delivery="exactly-once", transaction_timeout_s=1.0
    )
    reader = KafkaReader("stage", stage.cluster, unique)
    reader.subscribe([topic])
    delivery = ExactlyOnce(settings, reader, lambda _: None)
    delivery.settle(threading.Event(), idle=True)

    def answer(offload: Outcome, **more: Any) -> Prediction:
        assert isinstance(offload, Offload)
        return predict(offload, Belief(0, 1, 0.5), "cloud", "final", "last", **more)

    def take() -> None:
        """Both records; what comes of the second is too large for Kafka."""
        first, second = until(lambda: reader.read(2, 1.0, 1.0))
        huge = answer(decode(second.value), outputs=bytes(4_000_000))
        delivery.take([(first, answer(decode(first.value))), (second, huge)], [], {(topic, 0): 2})

    take()
    delivery.writer.flush(10)
    after = answer(decode(stage.offload(f"{unique}-after", 0)))
    writer.write_all(names.PREDICTIONS, [(unique, encode(after))], 30)
    until(partial(answers.at_least, f"{unique}-after", 1), 60)
    with caplog.at_level("WARNING"):
        delivery.settle(threading.Event(), idle=True)
    assert "because of its age" in caplog.text
    take()
    delivery.settle(threading.Event(), idle=True)
    delivery.stop()
    reader.close()
    assert answers.of(unique) == Counter([0])


def test_one_models_backlog_does_not_starve_another(
    stage: Stage, processes: Processes, answers: Answers, unique: str
) -> None:
    backlog = 8_000
    digest = renamed(stage, unique)
    topic = stage.kafka.create_topic(names.offload_topic("cloud", unique), 1)
    stage.send(f"{unique}-many", backlog)
    stage.start(processes, "worker", "at-least-once")
    until(lambda: len(answers.of(f"{unique}-many")) >= 500)
    one = stage.offload(f"{unique}-one", 0, model=unique, bundle=digest)
    KafkaWriter("devices", stage.cluster).write_all(topic, [("one", one)], 30)
    before = len(answers.of(f"{unique}-many"))
    until(lambda: answers.of(f"{unique}-one"))
    order = [found.device_id for found in (decode(record.value) for record in answers.records)]
    behind = len(order) - order.index(f"{unique}-one") - 1
    waited = order.index(f"{unique}-one") - before
    until(lambda: len(answers.of(f"{unique}-many")) == backlog)
    assert waited < backlog / 2, f"{waited} of the other's were answered first, {behind} after it"
