"""Jobs: training from a stream in Kafka, then a bundle from the same stream; what they report when it goes wrong."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sluice.doors.kafka import KafkaCluster
from sluice.doors.kafka_topics import EmbeddedKafka
from sluice.streams.reader import split_stream
from sluice.streams.send import send_stream
from sluice.wire.bundle import open_bundle
from sluice.wire.state import Announcement

pytestmark = pytest.mark.tensorflow

MODEL = """
x = keras.Input((4,), name="reading")
a = layers.Dense(16, activation="relu")(x)
final = layers.Dense(3, name="final")(layers.Dense(16, activation="relu")(a))
model = keras.Model(x, [layers.Dense(3, activation="softmax", name="early")(a), final])
"""
ROOT = Path(__file__).parents[2]
N = 900


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    server = EmbeddedKafka()
    yield KafkaCluster(bootstrap=server.bootstrap)
    del server


@pytest.fixture(scope="module")
def stream(cluster: KafkaCluster) -> Announcement:
    random = np.random.default_rng(0)
    y = random.integers(0, 3, N)
    x = random.normal(size=(N, 4)) + np.eye(3, 4)[y] * 4
    return send_stream(
        cluster,
        "readings",
        x.astype(np.float32),
        y,
        stream_id="readings",
        validation_rate=0.4,
        labels=["a", "b", "c"],
    )


def training(stream: Announcement, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "training",
        "model": {"source": MODEL},
        "stream": stream.model_dump(),
        "settings": {"epochs": 3, "batch": 32, "learning_rate": 0.01, "seed": 1},
    } | changes


def run(cluster: KafkaCluster, folder: Path, work: Any, job: dict[str, Any]) -> tuple[int, list[dict[str, Any]]]:
    """The job in this process, fed by another one."""
    from partitioner import events

    folder.mkdir()
    (folder / "job.json").write_text(json.dumps(job))
    fed, feeding = socket.socketpair()
    with feeding:
        wish = json.dumps({"kafka": cluster.model_dump(), "stream": job["stream"]})
        feed = subprocess.Popen(
            [sys.executable, "-m", "sluice.streams.feed", str(feeding.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=(feeding.fileno(),),
        )
    assert feed.stdin is not None
    with feed.stdin:
        feed.stdin.write(wish.encode() + b"\n")
    code = events.run(folder, lambda where, said: work(where, said, fed.detach()))
    fed.close()  # where the job never asked for it
    assert feed.wait(60) == 0
    return code, [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def reason(cluster: KafkaCluster, folder: Path, job: dict[str, Any]) -> str:
    from cloud.training.job import work

    code, events = run(cluster, folder, work, job)
    assert code == 2 and events[-1]["event"] == "failed"
    assert not (folder / "model.keras").exists()
    text: str = events[-1]["reason"]
    assert "\n" not in text
    return text


def test_from_a_stream_to_a_bundle(cluster: KafkaCluster, stream: Announcement, tmp_path: Path) -> None:
    from cloud.training.job import work as train
    from partitioner.job import work as partition

    code, events = run(cluster, tmp_path / "train", train, training(stream))
    assert code == 0
    told = [event for event in events if event["event"] == "metrics"]
    assert [event["epoch"] for event in told] == [1, 2, 3]
    assert set(told[0]["metrics"]) == {"early", "final"}
    assert set(told[0]["metrics"]["early"]) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    result = events[-1]["result"]
    assert result["records"] == N and result["metrics"] == told[-1]["metrics"]
    assert result["metrics"]["final"]["val_accuracy"] > 0.8

    job = {
        "kind": "partition",
        "model": {"file": str(tmp_path / "train" / "model.keras")},
        "name": "readings",
        "version": 3,
        "stream": stream.model_dump(),
        "settings": {"max_accuracy_loss": 0.05, "seed": 4},
        "provenance": {"training": "t7"},
    }
    code, events = run(cluster, tmp_path / "cut", partition, job)
    assert code == 0, events[-1]
    bundle = open_bundle(tmp_path / "cut" / "bundle")
    assert events[-1]["result"]["digest"] == bundle.digest
    assert not (bundle.folder / "manifest.sig").exists(), "the key stays with the control plane"
    assert bundle.manifest.labels == ("a", "b", "c")
    assert bundle.manifest.provenance.slices == tuple(stream.slices)
    certificate = bundle.manifest.operating_points[0].certificate
    assert certificate is not None and certificate.n == round(0.75 * len(split_stream(stream, _labels(), N)[1]))


def _labels() -> Any:
    return np.random.default_rng(0).integers(0, 3, N)


def test_data_and_model_that_do_not_fit(cluster: KafkaCluster, stream: Announcement, tmp_path: Path) -> None:
    def with_model(old: str, new: str) -> dict[str, Any]:
        return training(stream, model={"source": MODEL.replace(old, new)})

    assert "shape [4], the model takes [5]" in reason(cluster, tmp_path / "a", with_model("(4,)", "(5,)"))
    assert "label 2, the model tells 2 classes" in reason(cluster, tmp_path / "b", with_model("Dense(3,", "Dense(2,"))
    assert "float32 samples, the model takes uint8" in reason(
        cluster, tmp_path / "c", with_model("(4,)", "(4,), dtype='uint8'")
    )
    assert "line 3: NameError" in reason(cluster, tmp_path / "d", with_model("a = layers", "a = layer"))
    gone = stream.model_copy(update={"slices": ["readings:0:0:100000"]})
    assert "slice readings:0:0:100000" in reason(cluster, tmp_path / "e", training(gone))
    wrong = training(stream, settings={"epochs": 0})
    assert "job file: settings.epochs" in reason(cluster, tmp_path / "f", wrong)


def test_a_loss_that_is_not_a_number_ends_the_training(
    cluster: KafkaCluster, stream: Announcement, tmp_path: Path
) -> None:
    job = training(stream, settings={"epochs": 50, "batch": 32, "learning_rate": 1e30, "seed": 1})
    assert "is not a number after epoch" in reason(cluster, tmp_path / "a", job)


def test_a_stream_without_labels(cluster: KafkaCluster, tmp_path: Path) -> None:
    bare = send_stream(cluster, "bare", np.zeros((10, 4), np.float32), None, stream_id="bare")
    assert "has no labels" in reason(cluster, tmp_path / "a", training(bare))


def test_the_same_seed_trains_the_same_model() -> None:
    from cloud.training.fit import Data, fit
    from partitioner.anatomy.exits import anatomy
    from partitioner.anatomy.models import from_source

    def weights() -> Any:
        import keras

        keras.utils.set_random_seed(5)
        model = from_source(MODEL)
        random = np.random.default_rng(0)
        data = Data(random.normal(size=(90, 4)).astype(np.float32), random.integers(0, 3, 90))
        settings: dict[str, Any] = {"epochs": 2, "batch": 16, "learning_rate": 0.01, "seed": 5}
        fit(
            model,
            anatomy(model),
            data,
            Data(data.x[:0], data.y[:0]),
            weights={"early": 1.0, "final": 1.0},
            report=lambda *_: None,
            **settings,
        )
        return np.concatenate([w.ravel() for w in model.get_weights()])

    np.testing.assert_array_equal(weights(), weights())


def test_a_check_tells_how_a_model_would_be_cut() -> None:
    from partitioner.anatomy.models import from_source
    from partitioner.job import check

    found = check(from_source(MODEL))
    assert found["inputs"] == [{"name": "reading", "dtype": "float32", "shape": [4]}]
    assert (found["exits"], found["classes"]) == (["early", "final"], 3)
    assert found["cut"]["ok"] and found["cut"]["reason"] is None
    assert found["cut"]["segments"][0]["crossing"] == [{"name": "h0", "shape": [16], "bytes": 16}]
    assert found["macs"] == sum(segment["macs"] for segment in found["cut"]["segments"]) == 4 * 16 + 48 + 256 + 48
    uncut = check(from_source("class W(keras.Model):\n    pass\nmodel = W()"))
    assert not uncut["cut"]["ok"] and "subclassed" in uncut["cut"]["reason"]


def test_the_program_ends_with_2_and_prints_nothing(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text(json.dumps({"kind": "check", "model": {"source": "model = 1 / 0"}}))
    command = [sys.executable, "-m", "partitioner", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()
    why = "model source, line 1: ZeroDivisionError: division by zero"
    assert json.loads(line) == {"event": "failed", "reason": why}


def test_weights_of_a_model_that_gives_its_exits_as_a_dict() -> None:
    from cloud.training.fit import by_exit
    from partitioner.anatomy.exits import anatomy
    from partitioner.anatomy.models import from_source

    model = from_source(MODEL.replace("[layers", "{'z': layers").replace("(a), final]", "(a), 'b': final}"))
    found = anatomy(model)
    assert [one.name for one in found.exits] == ["z", "b"]
    x = np.ones((2, 4), np.float32)
    whole, same = model(x), by_exit(model, found)(x)
    for name in ("z", "b"):
        np.testing.assert_array_equal(np.asarray(whole[name]), np.asarray(same[name]))
