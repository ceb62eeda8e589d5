"""An answer that a broker forgot comes again: real Mosquitto, Kafka, gateway, control plane, results writer, agent.

The stage is played by the test, so that it knows what was answered when.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud.settings import CloudSettings
from sluice.dev.processes import Processes
from sluice.doors.kafka import KafkaCluster, KafkaReader, KafkaWriter
from sluice.stage.step import best_belief, predict
from sluice.wire import messages, names
from sluice.wire.messages import Offload, Prediction
from tests.brokers.kafka import Kafka
from tests.brokers.mosquitto import Mosquitto
from tests.integration.cloud_support import Running, running
from tests.integration.edge_support import MadeBundle, User, agent_settings, broker_of, until
from tests.integration.test_gateway import committed, ends

pytestmark = [pytest.mark.brokers, pytest.mark.tensorflow, pytest.mark.timeout(300)]

CLOUD = names.offload_topic("cloud", "columns")


@pytest.fixture
def kafka() -> Iterator[Kafka]:
    """One of this module's own: the names of Sluice's topics are fixed."""
    with Kafka() as server:
        yield server


@pytest.fixture
def plane(kafka: Kafka, tmp_path: Path) -> Iterator[Running]:
    settings = CloudSettings(
        data=tmp_path / "cloud", kafka=KafkaCluster(bootstrap=kafka.bootstrap), port=0, topic_partitions=2
    )
    with running(settings, tmp_path) as plane:
        yield plane


def test_answers_that_mosquitto_forgot_are_asked_for_and_told_once(
    made: MadeBundle,
    plane: Running,
    kafka: Kafka,
    mosquitto: Mosquitto,
    processes: Processes,
    unique: str,
    tmp_path: Path,
) -> None:
    """Mosquitto dies with the answers in it while the device is away; the gateway has done its part by then."""
    device, cluster = f"device-{unique}", KafkaCluster(bootstrap=kafka.bootstrap)
    kafka.create_topic(CLOUD, 2)
    shutil.copytree(made.folder, tmp_path / "data" / "bundles" / made.digest)
    with Mosquitto() as far, User(broker_of(mosquitto), device) as user:
        processes.start(
            "gateway",
            ["gateway"],
            {
                "GATEWAY_NAME": f"gateway-{unique}",
                "GATEWAY_BROKER__PORT": str(far.port),
                "GATEWAY_KAFKA__BOOTSTRAP": kafka.bootstrap,
            },
        ).wait_ready()
        processes.start(
            "results",
            ["results-writer"],
            {"CLOUD_DATA": str(tmp_path / "cloud"), "CLOUD_KAFKA__BOOTSTRAP": kafka.bootstrap},
        ).wait_ready()
        more = {
            "EDGE_CLOUD_URL": plane.url,
            "EDGE_TOKEN": plane.client.add_device(device)["token"],
            "EDGE_SAMPLE_TTL_S": "4",
            "EDGE_ASK_AFTER_S": "1",
            "EDGE_ANSWER_TIMEOUT_S": "1",
            "EDGE_RECEIPT_TIMEOUT_S": "1",
        }
        agent = processes.start(
            "agent", ["edge-agent"], agent_settings(made, device, tmp_path / "data", mosquitto, far, **more)
        )
        agent.wait_ready()
        writer = KafkaWriter("test", cluster)
        until(lambda: names.DESIRED in reader_topics(cluster))
        writer.write_all(names.DESIRED, [(device, made.desired(device))], 30)
        count = 20
        for i in range(count):
            user.measure(made.samples[made.hard[i]], f"hard-{i}")
        reader = KafkaReader("stage", cluster, f"stage-{unique}")
        reader.assign_all(CLOUD)
        offloads: dict[int, Offload] = {}

        def offloaded() -> bool:
            for record in reader.read(100, 0.1):
                outcome = messages.decode(record.value)
                assert isinstance(outcome, Offload)
                offloads[outcome.seq] = outcome
            return len(offloads) == count

        until(offloaded)
        reader.close()
        until(lambda: len(user.provisionals()) == count)
        agent.kill()
        answers = [answer(offload) for offload in offloads.values()]
        # some of them are provisional so far: the device is not to be given those
        early, late = answers[: count // 2], answers[count // 2 :]
        writer.write_all(names.PREDICTIONS, [(device, messages.encode(p)) for p in early], 30)
        until(lambda: committed(kafka) == ends(kafka) > 0)
        far.kill()
        for file in (far.folder / "data").iterdir():
            file.unlink()
        far.start()
        agent.start()
        until(lambda: len(user.finals()) == len(early))
        assert {p.seq: p for p in user.finals().values()} == {p.seq: p for p in early}
        assert user.finals().keys() < user.provisionals().keys()

        writer.write_all(
            names.PREDICTIONS, [(device, messages.encode(p)) for p in late], 30
        )  # these come by themselves
        until(lambda: len(user.finals()) == count)
        until(lambda: plane.client.summary(device=device)["total"] == count)
        last = sum(p.status == "final" for p in user.heard)
        assert last == count, "a sample was told as final twice"
        assert agent.stop() == 0
        asked = plane.client.answers(device, answers[0].epoch, [p.seq for p in answers])
        assert {p.seq: p for p in asked} == {p.seq: p for p in answers}


def reader_topics(cluster: KafkaCluster) -> set[str]:
    reader = KafkaReader("topics", cluster, "topics")
    try:
        return reader.topic_names()
    finally:
        reader.close()


def answer(offload: Offload) -> Prediction:
    belief = best_belief(offload)
    assert belief is not None
    return predict(offload, belief, "cloud", "final", "last")
