"""Jobs: training from a stream in Kafka, then a bundle from the same stream; what they report when it goes wrong."""

import itertools
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cloud.database import migrate, open_database
from cloud.job_process import Limits
from cloud.jobs import Runner, state_of
from cloud.training import checkpoint
from sluice.doors.kafka import KafkaCluster
from sluice.doors.kafka_topics import EmbeddedKafka
from sluice.streams.reader import read_slices, split_stream
from sluice.streams.send import send_stream
from sluice.wire.bundle import open_bundle
from sluice.wire.slices import parse_slice
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


def run(
    cluster: KafkaCluster, folder: Path, work: Any, job: dict[str, Any], **more: Any
) -> tuple[int, list[dict[str, Any]]]:
    """The job in this process, fed by another one, which is wished `more`."""
    from partitioner import events

    folder.mkdir(exist_ok=True)
    (folder / "events.jsonl").unlink(missing_ok=True)
    (folder / "job.json").write_text(json.dumps(job))
    fed, feeding = socket.socketpair()
    with feeding:
        wish = json.dumps({"kafka": cluster.model_dump(), "stream": job["stream"], **more})
        feed = subprocess.Popen(
            [sys.executable, "-m", "sluice.streams.feed", str(feeding.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=(feeding.fileno(),),
        )
    assert feed.stdin is not None
    with feed.stdin:
        feed.stdin.write(wish.encode() + b"\n")
    try:
        code = events.run(folder, lambda where, said: work(where, said, fed.detach()))
        fed.close()  # where the job never asked for it
    except BaseException:
        feed.kill()
        feed.wait(60)
        raise
    assert feed.wait(60) == 0
    return code, [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def reason(cluster: KafkaCluster, folder: Path, job: dict[str, Any], **more: Any) -> str:
    from cloud.training.job import work

    code, events = run(cluster, folder, work, job, **more)
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
    assert (result["epoch"], result["bad"], result["first_bad"]) == (3, 0, None)
    for name in ("early", "final"):
        matrix = np.array(result["confusion"][name]["matrix"])
        held_out = _labels()[split_stream(stream, _labels(), N)[1]]
        assert matrix.sum(axis=1).tolist() == np.bincount(held_out).tolist(), "a row has the samples of a label"
        shown = result["metrics"][name]["val_accuracy"]
        assert np.diagonal(matrix).sum() / matrix.sum() == pytest.approx(shown, abs=1e-6)

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
    job = with_settings(stream, epochs=50, optimizer="sgd", learning_rate=10, exit_weights={"final": 1e6})
    assert "is not a number after epoch" in reason(cluster, tmp_path / "a", job)


def test_a_stream_without_labels(cluster: KafkaCluster, tmp_path: Path) -> None:
    bare = send_stream(cluster, "bare", np.zeros((10, 4), np.float32), None, stream_id="bare")
    assert "has no labels" in reason(cluster, tmp_path / "a", training(bare))
    assert "has no labels" in reason(cluster, tmp_path / "b", training(bare, settings={"pseudo_labels": {}}))


def test_a_stream_where_some_labels_are_missing(cluster: KafkaCluster, tmp_path: Path) -> None:
    from cloud.training.job import work
    from partitioner.job import work as partition

    x, y = data(600)
    y[200:] = -1
    some = send_stream(cluster, "some", x, y, stream_id="some", format="raw", validation_rate=0.4)
    said = "has 400 of 600 records without a label: pseudo_labels learns from these too"
    assert said in reason(cluster, tmp_path / "a", training(some))
    job = with_settings(some, epochs=5, pseudo_labels={"confidence": 0.7, "rounds": 2})
    code, events = run(cluster, tmp_path / "b", work, job)
    assert code == 0, events[-1]
    result = events[-1]["result"]
    assert (result["records"], result["unlabelled"], [one["round"] for one in result["rounds"]]) == (
        600,
        400,
        [0, 1, 2],
    )
    told = [event for event in events if event["event"] == "metrics"]
    assert [event["epoch"] for event in told] == list(range(1, len(told) + 1))
    assert {event["round"] for event in told} == {0, 1, 2} and {event["epochs"] for event in told} == {15}
    held_out = split_stream(some, y, 600)[1]
    assert (y[held_out] >= 0).all() and len(held_out) == np.array(result["confusion"]["final"]["matrix"]).sum()

    cut = {
        "kind": "partition",
        "model": {"file": str(tmp_path / "b" / "model.keras")},
        "name": "some",
        "version": 1,
        "stream": some.model_dump(),
        "settings": {"max_accuracy_loss": 0.05, "seed": 4},
    }
    code, events = run(cluster, tmp_path / "c", partition, cut)
    assert code == 0, events[-1]
    certificate = open_bundle(tmp_path / "c" / "bundle").manifest.operating_points[0].certificate
    assert certificate is not None and certificate.n == round(0.75 * len(held_out)), "of what was never trained on"


def with_settings(stream: Announcement, **settings: Any) -> dict[str, Any]:
    return training(stream, settings={"epochs": 3, "batch": 32, "learning_rate": 0.01, "seed": 1, **settings})


def test_settings_that_do_not_fit_the_model(cluster: KafkaCluster, stream: Announcement, tmp_path: Path) -> None:
    def refused(folder: str, **settings: Any) -> str:
        return reason(cluster, tmp_path / folder, with_settings(stream, **settings))

    assert "no exit 'late', it has early, final" in refused("a", exit_weights={"late": 1})
    assert "no exit 'late'" in refused("b", early_stopping={"exit": "late"})
    assert "no label 'd' among 0, 1, 2, a, b, c" in refused("c", class_weights={"d": 1})
    assert "top_k 3 says nothing of 3 classes" in refused("d", top_k=3)
    assert "takes no momentum" in refused("e", momentum=0.9)
    one = training(stream, model={"source": ONE_EXIT}, settings={"distillation": {}})
    assert "no early exit" in reason(cluster, tmp_path / "f", one)


ONE_EXIT = "x = keras.Input((4,))\nmodel = keras.Model(x, layers.Dense(3, name='only')(x))"


def test_a_model_of_one_exit(cluster: KafkaCluster, stream: Announcement, tmp_path: Path) -> None:
    from cloud.training.job import work

    settings = {"epochs": 1, "learning_rate": 1e-4, "early_stopping": {}, "top_k": 2, "class_weights": "balanced"}
    job = training(stream, model={"source": ONE_EXIT}, settings=settings)
    code, events = run(cluster, tmp_path / "a", work, job)
    assert code == 0
    metrics = events[-1]["result"]["metrics"]["only"]
    assert set(metrics) == {prefix + what for prefix in ("", "val_", "stop_") for what in ("loss", "accuracy", "top_k")}
    assert metrics["accuracy"] < metrics["top_k"] <= 1


def test_bad_records_are_left_out_as_far_as_was_said(cluster: KafkaCluster, tmp_path: Path) -> None:
    """A label beyond what the model tells apart is one, for the process that reads the stream is told how many."""
    from cloud.training.job import work

    random = np.random.default_rng(3)
    y = random.integers(0, 3, 100)
    y[[20, 70]] = 7
    x = random.normal(size=(100, 4)).astype(np.float32)
    odd = send_stream(cluster, "odd", x, y, stream_id="odd", format="csv", validation_rate=0.2)
    records = itertools.chain(*read_slices(cluster, [parse_slice(text) for text in odd.slices]))
    place, _other = [f"{r.topic}:{r.partition}:{r.offset}" for r in records if r.key == b"7"]
    first = f"record {place} has label 7, and the model tells 3 classes apart"
    assert reason(cluster, tmp_path / "a", training(odd), classes=3) == first
    beyond = reason(cluster, tmp_path / "b", training(odd), classes=3, bad_most=1)
    assert beyond == f"2 records are bad, 1 would be left out; the first: {first}"
    code, events = run(cluster, tmp_path / "c", work, training(odd), classes=3, bad_most=2)
    assert code == 0
    result = events[-1]["result"]
    assert (result["records"], result["bad"], result["first_bad"]) == (98, 2, first)


def data(n: int = 300, seed: int = 0) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    y = random.integers(0, 3, n)
    return (random.normal(size=(n, 4)) + np.eye(3, 4)[y] * 2).astype(np.float32), y


def fitted(folder: Path | None = None, report: Any = lambda *_: None, source: str = "", **values: Any) -> Any:
    """(weights, outcome) of a model with dropout, trained on 200 samples; 50 are for early stopping, 50 held out."""
    import keras

    from cloud.training.fit import fit
    from cloud.training.parts import Parts
    from partitioner.anatomy.exits import anatomy
    from partitioner.anatomy.models import from_source
    from sluice.wire.training import TrainingSettings

    keras.utils.set_random_seed(5)
    model = from_source(source or MODEL.replace("(x)\nfinal", "(x)\na = layers.Dropout(0.3)(a)\nfinal"))
    rows = np.arange(300)
    parts = Parts(rows[:200], rows[200:250] if "early_stopping" in values else rows[:0], rows[250:])
    settings = TrainingSettings.model_validate({"epochs": 4, "learning_rate": 0.01, "seed": 5, **values})
    outcome = fit(model, anatomy(model), *data(), parts, settings, folder=folder, report=report)
    return np.concatenate([w.ravel() for w in model.get_weights()]), outcome


def test_the_same_seed_trains_the_same_model() -> None:
    first, other = fitted()[0], fitted(seed=6)[0]
    np.testing.assert_array_equal(first, fitted()[0])
    assert (first != other).any()


def test_each_epoch_has_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from cloud.training import fit
    from cloud.training.parts import shuffled

    orders: dict[int, Any] = {}

    def seen(rows: Any, seed: int, epoch: int) -> Any:
        orders[epoch] = shuffled(rows, seed, epoch)
        return orders[epoch]

    monkeypatch.setattr(fit, "shuffled", seen)
    fitted()
    assert sorted(orders) == [1, 2, 3, 4]
    assert len({tuple(order) for order in orders.values()}) == 4


class Killed(BaseException):
    """What ends a run in the middle."""


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"optimizer": "sgd", "momentum": 0.9, "distillation": {}},
        {"optimizer": "rmsprop", "steps": 25, "class_weights": "balanced"},
        {"optimizer": "adamw", "weight_decay": 0.01, "early_stopping": {"metric": "accuracy", "patience": 3}},
    ],
)
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any]
) -> None:
    """Dropout, order, the optimizer's state and the best epoch go on as well; the metrics of each epoch come once."""
    from cloud.training import fit

    monkeypatch.setattr(fit, "CHECKPOINT_EVERY_S", 0.0)
    monkeypatch.setattr(fit, "CHECKPOINT_REST", 0)
    whole: list[Any] = []
    weights, outcome = fitted(report=lambda *one: whole.append(one), **values)
    assert len(whole) == 4

    def killed(epoch: int, *_: Any) -> None:
        if epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        fitted(tmp_path, killed, **values)
    again: list[Any] = []
    went_on, same = fitted(tmp_path, lambda *one: again.append(one), **values)
    assert [epoch for epoch, *_ in again] == [1, 2, 3, 4]
    assert again == whole
    np.testing.assert_array_equal(went_on, weights)
    assert same == outcome


def test_a_checkpoint_of_another_model_is_not_gone_on_from(tmp_path: Path) -> None:
    fitted(tmp_path, epochs=2)
    told: list[int] = []
    fitted(tmp_path, lambda epoch, *_: told.append(epoch), source=MODEL, epochs=1)
    assert told == [1]


def test_early_stopping_ends_and_goes_back_to_the_best_epoch() -> None:
    told: list[Any] = []
    stopping = {"patience": 2, "exit": "early"}
    values: dict[str, Any] = {"epochs": 200, "learning_rate": 0.05}
    weights, outcome = fitted(report=lambda *one: told.append(one), early_stopping=stopping, **values)
    losses = [metrics["early"]["stop_loss"] for _, _, metrics, _ in told]
    assert len(told) < 200 and outcome.epoch == len(told) - 2 == int(np.argmin(losses)) + 1
    assert outcome.metrics == told[outcome.epoch - 1][2]
    short, other = fitted(early_stopping=stopping, **{**values, "epochs": outcome.epoch})
    np.testing.assert_array_equal(weights, short)
    assert other.confusion == outcome.confusion
    last, kept = fitted(early_stopping={**stopping, "restore_best": False}, **values)
    assert kept.epoch == len(told) and (last != weights).any()


def test_steps_instead_of_epochs() -> None:
    told: list[Any] = []
    fitted(report=lambda *one: told.append(one[:2]), steps=10, batch=32)
    assert told == [(1, 2), (2, 2)], "seven batches an epoch, of which the second has three"


def test_what_weighs_nothing_is_not_learnt() -> None:
    def recall(**values: Any) -> list[float]:
        shares: list[float] = fitted(epochs=10, **values)[1].confusion["final"]["recall"]
        return shares

    assert min(recall()) > 0.5
    assert recall(class_weights={"1": 0})[1] < 0.2
    before, after = (fitted(exit_weights={"early": weight})[1].metrics["early"]["accuracy"] for weight in (1, 0))
    assert before > after + 0.1


def test_an_early_exit_learns_from_the_final_one_alone() -> None:
    """With all of its weight on distillation it sees no label, and learns all the same; and the final one as ever."""
    distilled = fitted(epochs=10, distillation={"weight": 1, "temperature": 2})[1].metrics
    assert distilled["early"]["val_accuracy"] > 0.6
    alone = fitted(epochs=10, distillation={"weight": 1}, exit_weights={"final": 0})[1].metrics
    assert alone["early"]["val_accuracy"] < 0.6, "from one that learns nothing there is nothing to learn"


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
    assert json.loads(line) == {"event": "failed", "reason": why, "passing": False}


def test_weights_of_a_model_that_gives_its_exits_as_a_dict() -> None:
    from cloud.training.loss import by_exit
    from partitioner.anatomy.exits import anatomy
    from partitioner.anatomy.models import from_source

    model = from_source(MODEL.replace("[layers", "{'z': layers").replace("(a), final]", "(a), 'b': final}"))
    found = anatomy(model)
    assert [one.name for one in found.exits] == ["z", "b"]
    x = np.ones((2, 4), np.float32)
    whole, same = model(x), by_exit(model, found)(x)
    for name in ("z", "b"):
        np.testing.assert_array_equal(np.asarray(whole[name]), np.asarray(same[name]))


SERVICE = """
import json, sys, time
from pathlib import Path
from cloud.database import open_database
from cloud.job_process import Limits
from cloud.jobs import Job, Runner
data, asked = Path(sys.argv[1]), json.loads(sys.stdin.readline())
runner = Runner(open_database(f"sqlite:///{data.parent / 'sluice.db'}"), data, Limits(300, 4 * 10**9, 10**9, 10**6), 60)
runner.start({}, {"training": lambda _job_id: asked["wish"]})
print(*runner.begin("training", [Job(asked["spec"], {}, lambda *_: None, asked["wish"])]), flush=True)
time.sleep(600)
"""


def test_a_training_outlives_the_service_and_its_own_process(
    cluster: KafkaCluster, stream: Announcement, tmp_path: Path
) -> None:
    """First the service is killed, then the job of the next one; what comes of it is what came without that."""
    from cloud.training.job import work

    job = with_settings(stream, epochs=100, distillation={})
    spec = {name: value for name, value in job.items() if name != "kind"}
    wish = json.dumps({"kafka": cluster.model_dump(), "stream": job["stream"]})
    data = tmp_path / "data"
    engine = open_database(f"sqlite:///{tmp_path / 'sluice.db'}")
    migrate(engine)
    service = subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(data)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert service.stdin is not None and service.stdout is not None
    with service.stdin, service.stdout:
        service.stdin.write(json.dumps({"spec": spec, "wish": wish}) + "\n")
        service.stdin.flush()
        job_id = service.stdout.readline().strip()
        folder = data / "jobs" / job_id
        first = reached(folder, 0)
        service.kill()
        service.wait()
    runner = Runner(engine, data, Limits(300, 4 * 10**9, 10**9, 10**6), 60)
    runner.start({}, {"training": lambda _job_id: wish})
    second = reached(folder, first)
    children = psutil.Process().children(recursive=True)
    running = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]  # the feed may have ended
    (process,) = [child for child in running if "cloud.training" in child.cmdline()]
    process.kill()
    deadline = time.monotonic() + 300
    while (row := state_of(engine, job_id)) is None or row["state"] in ("queued", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    runner.stop()
    runner.join(30)
    assert row["state"] == "done", row["reason"]
    assert 0 < first < second < 100
    assert [entry["epoch"] for entry in row["metrics"]] == list(range(1, 101))
    code, events = run(cluster, tmp_path / "whole", work, job)
    assert code == 0
    whole = events[-1]["result"]
    for name, values in whole["metrics"].items():
        assert row["result"]["metrics"][name] == pytest.approx(values, rel=1e-4)
    assert row["result"]["epoch"] == whole["epoch"] == 100


def reached(folder: Path, after: int) -> int:
    """Wait for a checkpoint beyond epoch `after`; returns its epoch."""
    deadline = time.monotonic() + 120
    while (kept := checkpoint.load(folder)) is None or len(kept[0].history) <= after:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return len(kept[0].history)
