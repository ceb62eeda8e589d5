"""How stages share and group work, on a real Kafka: workers that come and go, batches, several segments at once."""

import secrets
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from sluice.dev.processes import Processes, free_port
from sluice.doors.kafka import KafkaWriter
from sluice.stage.segment import load_segment
from sluice.wire import bundle as bundles
from sluice.wire import names
from sluice.wire.codec import encode_tensor
from sluice.wire.manifest import ExitPolicy, OperatingPoint
from sluice.wire.messages import Prediction, decode
from tests.brokers.kafka import Kafka
from tests.integration.edge_support import until
from tests.integration.stage_support import BOTH, Answers, Stage, kafka_for_stages, metric, renamed

pytestmark = [pytest.mark.brokers, pytest.mark.tensorflow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def kafka() -> Iterator[Kafka]:
    """One of this module's own: the names of Sluice's topics are fixed."""
    with kafka_for_stages() as server:
        yield server


@pytest.mark.parametrize("delivery", BOTH)
def test_one_that_joins_takes_its_share_and_those_that_stay_take_over(
    stage: Stage, processes: Processes, answers: Answers, unique: str, delivery: str
) -> None:
    """One leaves when it is told to, another is killed; only the latter may repeat, and not in exactly-once mode."""
    ports = {name: free_port() for name in ("first", "second", "third")}
    workers = {}
    waves: list[str] = []

    def join(name: str) -> None:
        own = {"STAGE_METRICS_PORT": str(ports[name]), "STAGE_TRANSACTION_TIMEOUT_S": "2"}
        workers[name] = stage.start(processes, name, delivery, **own)

    def done(name: str) -> float:
        return metric(ports[name], "sluice_stage_samples_total", tier="cloud", model=stage.manifest.model)

    def wave(count: int = 200) -> str:
        waves.append(f"{unique}-{secrets.token_hex(2)}")
        stage.send(waves[-1], count)
        return waves[-1]

    def both_work(one: str, other: str) -> bool:
        """Of one more wave each does something; all of it is answered first."""
        before = done(one), done(other)
        device = wave()
        until(lambda: answers.at_least(device, 200))
        return done(one) > before[0] and done(other) > before[1]

    join("first")
    begun = wave()
    until(lambda: answers.at_least(begun, 200))
    join("second")
    until(lambda: both_work("first", "second"))
    leaving = wave(1000)
    until(lambda: answers.at_least(leaving, 100))
    assert workers["first"].stop() == 0
    until(lambda: answers.at_least(leaving, 1000))
    told = list(waves)
    join("third")
    until(lambda: both_work("second", "third"))
    killed = wave(1000)
    until(lambda: answers.at_least(killed, 100))
    workers["third"].kill()
    until(lambda: answers.at_least(killed, 1000))
    assert workers["second"].stop() == 0
    for device in waves:
        found = answers.of(device)
        assert set(found) == set(range(1000 if device in (leaving, killed) else 200))
        if device in told or delivery == "exactly-once":
            assert set(found.values()) == {1}


def test_a_backlog_is_worked_on_in_batches_and_a_lone_sample_alone(
    stage: Stage, processes: Processes, answers: Answers, unique: str
) -> None:
    """The second lone sample is sent when the first was answered: none has waited for company that did not come."""
    port = free_port()
    stage.send(f"{unique}-many", 800)
    own = {"STAGE_BATCH_WAIT_S": "0.2", "STAGE_METRICS_PORT": str(port)}
    worker = stage.start(processes, "worker", "at-least-once", **own)

    def batches() -> tuple[float, float]:
        """(batches, records in them)."""
        part = "sluice_stage_batch_records"
        return metric(port, f"{part}_count", tier="cloud"), metric(port, f"{part}_sum", tier="cloud")

    def one_more(count: float, records: float) -> bool:
        return batches() == (count + 1, records + 1)

    until(lambda: answers.at_least(f"{unique}-many", 800))
    until(lambda: batches()[1] >= 800)
    count, records = batches()  # the first are read twice: they rest until the bundle is loaded
    assert 8 <= records / count <= 16, "16 is what may be taken at once"
    for number in range(3):
        before = batches()
        device = f"{unique}-lone-{number}"
        stage.send(device, 1)
        until(partial(answers.at_least, device, 1))
        until(partial(one_more, *before))
    assert worker.stop() == 0


def test_segments_of_one_tier_run_in_one_go(stage: Stage, processes: Processes, answers: Answers, unique: str) -> None:
    """Both on the cloud: the raw input comes, the first exit answers some, the others go on without Kafka between."""
    count, first = 40, stage.manifest.segments[0]
    blobs = stage.folder / stage.digest / bundles.BLOBS
    x = np.random.default_rng(1).normal(size=(count, *first.inputs[0].shape)).astype(np.float32)
    one = load_segment(bundles.read_blob(blobs, first.file), first).run({"x": x})
    second = stage.manifest.segments[1]
    two = load_segment(bundles.read_blob(blobs, second.file), second).run({"x": x, "h0": one["h0"]})
    sure = np.exp(one["logits"]).max(1) / np.exp(one["logits"]).sum(1)
    threshold = float(np.sort(sure)[count // 2 - 1 : count // 2 + 1].mean())
    policy = ExitPolicy(measure="max_prob", threshold=threshold)
    point = OperatingPoint(id="default", placement=("cloud", "cloud"), codec="raw", policies=(policy, policy))
    digest = renamed(stage, unique, operating_points=(point,))
    topic = stage.kafka.create_topic(names.offload_topic("cloud", unique), 2)
    inputs = [encode_tensor(sample, first.inputs[0], "raw") for sample in x]
    values = [
        stage.offload(unique, seq, model=unique, bundle=digest, next_segment=0, tensors=(inputs[seq],))
        for seq in range(count)
    ]
    KafkaWriter("devices", stage.cluster).write_all(topic, ((str(i), value) for i, value in enumerate(values)), 30)
    worker = stage.start(processes, "worker", "exactly-once")
    until(lambda: answers.at_least(unique, count))
    assert worker.stop() == 0
    assert set(answers.of(unique).values()) == {1}
    found = [decode(record.value) for record in answers.records]
    told = {p.seq: (p.exit, p.reason, p.label) for p in found if isinstance(p, Prediction) and p.device_id == unique}
    assert told == {
        seq: (0, "exit", int(one["logits"][seq].argmax()))
        if sure[seq] >= threshold
        else (1, "last", int(two["logits"][seq].argmax()))
        for seq in range(count)
    }
    assert 0 < sum(exit_ == 0 for exit_, _, _ in told.values()) < count
