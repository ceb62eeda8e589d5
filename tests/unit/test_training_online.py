"""Learning on, as the job does it, from a live stream on the embedded Kafka: what it is told, what it makes of it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sluice.doors.kafka import KafkaCluster, KafkaWriter
from sluice.doors.kafka_topics import EmbeddedKafka
from sluice.wire.slices import parse_slice
from sluice.wire.state import Announcement
from tests.unit.test_training_job import MODEL, ROOT, run

pytestmark = pytest.mark.tensorflow

WAIT_S = 120.0
CONFIG = {"shape": [4], "dtype": "float32"}
BASE = {"learning_rate": 0.01, "metrics_s": 0.05, "checkpoint_s": 0.05, "held_back": 0.0, "window": 300, "seed": 1}


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    server = EmbeddedKafka()
    yield KafkaCluster(bootstrap=server.bootstrap)
    del server


def samples(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = random.integers(0, 3, n)
    return (random.normal(size=(n, 4)) + np.eye(3, 4)[y] * 4).astype(np.float32), y


def send(cluster: KafkaCluster, topic: str, x: np.ndarray, y: np.ndarray) -> Announcement:
    """Records in their order in one topic partition, none of them announced before the job begins; -1: no label."""
    writer = KafkaWriter("test", cluster)
    for sample, label in zip(x, y.tolist(), strict=True):
        writer.write(topic, sample.tobytes(), key=None if label < 0 else str(label), partition=0)
    assert writer.flush(30) == 0
    said = {"stream_id": topic, "slices": [f"{topic}:0:0:0"], "format": "raw", "validation_rate": 0, "count": 0}
    return Announcement.model_validate(said | {"config": CONFIG})


def announced(topic: str, count: int) -> Announcement:
    """The first records of a topic."""
    said = {"stream_id": topic, "slices": [f"{topic}:0:0:{count}"], "format": "raw", "validation_rate": 0}
    return Announcement.model_validate(said | {"count": count, "config": CONFIG})


def wished(
    stream: Announcement, folder: Path, model: dict[str, str] | None, settings: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a job is told, and what its feed is told besides."""
    job = {"kind": "online", "model": model or {"source": MODEL}, "stream": stream.model_dump()}
    live = {"topics": [stream.stream_id], "group": f"g-{folder.name}", "timeout_s": settings.get("timeout_s")}
    past = settings.pop("past", None)
    more = {"past": past and {"stream": past.model_dump(), "most": 2000}}
    return job | {"settings": BASE | settings}, {"live": live | {"batch": 256}, "classes": 3} | more


def begin(
    cluster: KafkaCluster, stream: Announcement, folder: Path, model: dict[str, str] | None = None, **settings: Any
) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
    """The job, and its feed."""
    folder.mkdir(exist_ok=True)
    (folder / "events.jsonl").unlink(missing_ok=True)
    job, more = wished(stream, folder, model, settings)
    (folder / "job.json").write_text(json.dumps(job))
    wish = {"kafka": cluster.model_dump(), "stream": stream.model_dump(), **more}
    fed, feeding = socket.socketpair()
    with fed, feeding:
        feed = subprocess.Popen(
            [sys.executable, "-m", "sluice.streams.feed", str(feeding.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=(feeding.fileno(),),
        )
        assert feed.stdin is not None
        with feed.stdin:
            feed.stdin.write(json.dumps(wish).encode() + b"\n")
        process = subprocess.Popen(
            [sys.executable, "-m", "cloud.training", str(folder), str(fed.fileno())],
            pass_fds=(fed.fileno(),),
            cwd=ROOT,
        )
    return process, feed


def told(folder: Path, event: str = "metrics") -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines() if (folder / "events.jsonl").exists() else []
    return [found for found in map(json.loads, lines) if found["event"] == event]


def learnt(
    cluster: KafkaCluster, stream: Announcement, folder: Path, model: dict[str, str] | None = None, **settings: Any
) -> dict[str, Any]:
    """The result of a job that is done, in this process."""
    code, event = last_of(cluster, stream, folder, model, **settings)
    assert code == 0, event
    result: dict[str, Any] = event["result"]
    return result


def last_of(
    cluster: KafkaCluster, stream: Announcement, folder: Path, model: dict[str, str] | None = None, **settings: Any
) -> tuple[int, dict[str, Any]]:
    """The exit code of a job, and what it said last."""
    from cloud.training.online import work

    job, more = wished(stream, folder, model, settings)
    code, events = run(cluster, folder, work, job, **more)
    return code, events[-1]


def test_labels_that_turn_are_told_and_learnt_anew(cluster: KafkaCluster, tmp_path: Path) -> None:
    """And a model that does not learn stays wrong."""
    x, y = samples(4000)
    turned = np.concatenate([y[:2000], (y[2000:] + 1) % 3])
    stream = send(cluster, "turned", x, turned)
    folder = tmp_path / "learns"
    result = learnt(cluster, stream, folder, records=4000)
    drifts = [entry["drift"] for entry in told(folder) if "drift" in entry]
    assert result["drifts"] == len(drifts) >= 1
    assert all(2000 < drift["at"] < 2600 and drift["since"] > drift["before"] for drift in drifts)
    assert (result["records"], result["labelled"], result["unlabelled"]) == (4000, 4000, 0)
    assert set(result["metrics"]) == {"early", "final"}
    (dropped, *_) = [entry for entry in told(folder) if "dropped" in entry]
    assert 1500 < dropped["dropped"] < dropped["labelled"] < 2600, "what was before is wrong now"
    assert result["metrics"]["final"]["accuracy"] > 0.9, "it recovers"
    before = [entry for entry in told(folder) if 1500 <= entry["labelled"] <= 2000]
    assert before and before[-1]["metrics"]["final"]["accuracy"] > 0.9
    first = send(cluster, "first", x[:2000], y[:2000])
    learnt(cluster, first, tmp_path / "first", records=2000)
    rest = send(cluster, "rest", x[2000:], turned[2000:])
    model = {"file": str(tmp_path / "first" / "model.keras")}
    frozen = learnt(cluster, rest, tmp_path / "frozen", model, records=2000, learning_rate=1e-12)
    assert frozen["metrics"]["final"]["whole_accuracy"] < 0.1


def test_somebody_new_is_no_reason_to_forget(cluster: KafkaCluster, tmp_path: Path) -> None:
    """The error rises, which is told; what was kept is still right, and is dropped only by who wants that."""
    x, y = samples(4000, 19)
    noise = np.random.default_rng(20).normal(size=x.shape) * (np.arange(4000) >= 2000)[:, None] * 2.5
    stream = send(cluster, "newcomer", (x + noise).astype(np.float32), y)
    for name, bound in {"kept": 0.5, "dropped": 0.0}.items():
        result = learnt(cluster, stream, tmp_path / name, records=4000, drop_above=bound)
        assert result["drifts"] >= 1
        assert any("dropped" in entry for entry in told(tmp_path / name)) == (name == "dropped")


def test_the_first_answer_comes_before_the_first_lesson(cluster: KafkaCluster, tmp_path: Path) -> None:
    """Labels by chance: who was tested on what it had learnt would look better than chance."""
    x, _ = samples(1500, 3)
    stream = send(cluster, "chance", x, np.random.default_rng(4).integers(0, 3, 1500))
    result = learnt(cluster, stream, tmp_path / "chance", records=1500, replay=512)
    assert abs(result["metrics"]["final"]["whole_accuracy"] - 1 / 3) < 0.06


def test_what_the_model_was_trained_on_is_not_forgotten(cluster: KafkaCluster, tmp_path: Path) -> None:
    """Though only one class comes for a long time; and none of it counts as a record of the stream."""
    from partitioner.anatomy.models import load_model

    x, y = samples(1500, 16)
    learnt(cluster, send(cluster, "all", x, y), tmp_path / "all", records=1500)
    model = {"file": str(tmp_path / "all" / "model.keras")}
    known = announced("all", 1500)
    more_x, more_y = samples(3000, 17)
    n = int((more_y == 0).sum())
    wide = more_x[more_y == 0] + np.random.default_rng(21).normal(size=(n, 4)).astype(np.float32) * 2
    only = send(cluster, "only", wide, more_y[more_y == 0])
    right = {}
    for name, replay in {"reminded": True, "not": False}.items():
        given: dict[str, Any] = {"records": n, "past": known, "replay_trained_on": replay, "buffer": 300}
        result = learnt(cluster, only, tmp_path / name, model, **given)
        assert (result["records"], result["labelled"]) == (n, n)
        assert result["remembered"].get("kept", 0) == told(tmp_path / name)[-1]["remembered"] == (300 if replay else 0)
        answers = load_model({"file": "model.keras"}, tmp_path / name).predict_on_batch(x)[-1]
        right[name] = (np.asarray(answers).argmax(axis=-1) == y).mean()
    assert right["reminded"] > right["not"] + 0.2


def test_what_the_model_was_trained_on_is_asked_for_once(cluster: KafkaCluster, tmp_path: Path) -> None:
    """The checkpoint has the buffer: a job that goes on asks for nothing, or old samples would crowd out newer ones."""
    x, y = samples(400, 18)
    send(cluster, "once", x, np.where(np.arange(400) < 100, -1, y))
    stream = send(cluster, "later", x, y)
    first = learnt(cluster, stream, tmp_path / "job", records=200, past=announced("once", 500))
    assert first["remembered"] == {"records": 500, "gone": 100, "read": 400, "bad": 0, "reason": None, "kept": 300}
    second = learnt(cluster, stream, tmp_path / "job", records=400, past=announced("once", 50))
    assert (second["records"], second["remembered"]) == (400, first["remembered"])
    lost = learnt(cluster, stream, tmp_path / "other", records=200, past=announced("nowhere", 50))
    assert lost["records"] >= 200, "never a failure"
    assert (lost["remembered"]["gone"], lost["remembered"]["kept"]) == (50, 0)


def test_records_without_a_label_are_answered_and_not_learnt_from(cluster: KafkaCluster, tmp_path: Path) -> None:
    x, y = samples(600, 5)
    stream = send(cluster, "bare", x, np.where(np.arange(600) < 400, -1, y))
    result = learnt(cluster, stream, tmp_path / "bare", timeout_s=3)
    assert (result["records"], result["labelled"], result["unlabelled"]) == (600, 200, 400)
    assert sum(result["answered"]) == 400
    assert 0 < result["updates"] <= 10, "of the 200 that have one"


def test_killed_at_any_moment_each_record_counts_once(cluster: KafkaCluster, tmp_path: Path) -> None:
    x, y = samples(6000, 6)
    stream = send(cluster, "killed", x, y)
    folder, random = tmp_path / "killed", np.random.default_rng(7)
    last = 0
    for kill in range(3):
        process, feed = begin(cluster, stream, folder, records=6000, batch=8)
        deadline = time.monotonic() + WAIT_S
        while not (entries := told(folder)) or entries[-1]["records"] <= last:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        last = entries[-1]["records"]
        time.sleep(float(random.random()) * 0.3)
        os.kill((process if kill != 1 else feed).pid, signal.SIGKILL)
        process.wait(WAIT_S)
        feed.wait(WAIT_S)
        if kill == 1:
            (failed,) = told(folder, "failed")
            assert "ended before it did" in failed["reason"]
    assert 0 < last < 6000
    result = learnt(cluster, stream, folder, records=6000, batch=8)
    assert (result["records"], result["labelled"]) == (6000, 6000)
    counts = [int(entry["records"]) for entry in told(folder)]
    assert counts == sorted(counts), "what the runs before have told stands in front"
    assert result["metrics"]["final"]["accuracy"] > 0.9


def test_a_better_one_is_proposed_with_what_it_did_not_learn_from(cluster: KafkaCluster, tmp_path: Path) -> None:
    from cloud.training.held import CERTIFY, Rule
    from partitioner.anatomy.models import load_model

    x, y = samples(4000, 8)
    stream = send(cluster, "better", x, y)
    folder = tmp_path / "better"
    settings: dict[str, Any] = {"held_back": 0.4, "judged_least": 50, "certifying_least": 100, "candidate_every_s": 0.0}
    result = learnt(cluster, stream, folder, records=4000, **settings)
    proposed = told(folder, "candidate")
    assert result["candidates"] == len(proposed) >= 1
    first = proposed[0]
    assert first["number"] == 1
    assert first["told"]["accuracy"] > first["told"]["accuracy_before"] and first["told"]["wealth"] >= 20
    rule, pieces = Rule(32, 0.4), [parse_slice(text) for text in first["slices"]]
    assert sum(piece.length for piece in pieces) >= 100
    for piece in pieces:
        offsets = range(piece.offset, piece.end)
        assert {rule.part_of((piece.topic, piece.partition), offset // 32) for offset in offsets} == {CERTIFY}
    model = load_model({"file": f"candidate-{proposed[-1]['number']}.keras"}, folder)
    certifying = np.concatenate([np.arange(piece.offset, piece.end) for piece in pieces])
    answers = np.asarray(model.predict_on_batch(x[certifying])[-1]).argmax(axis=-1)
    assert (answers == y[certifying]).mean() > 0.85
    learnt(cluster, stream, folder, records=4000, **settings)
    again = told(folder, "candidate")
    assert [one["number"] for one in again] == [proposed[-1]["number"]], "told again: the service may have missed it"
    assert again[0]["slices"] == proposed[-1]["slices"]


def test_one_that_is_no_better_is_not_proposed(cluster: KafkaCluster, tmp_path: Path) -> None:
    x, y = samples(2500, 9)
    learnt(cluster, send(cluster, "known", x, y), tmp_path / "known", records=2500)
    model = {"file": str(tmp_path / "known" / "model.keras")}
    x, y = samples(2500, 10)
    settings: dict[str, Any] = {"held_back": 0.4, "judged_least": 50, "certifying_least": 100, "learning_rate": 1e-5}
    result = learnt(cluster, send(cluster, "same", x, y), tmp_path / "same", model, records=2500, **settings)
    assert result["candidates"] == 0


def test_it_begins_after_what_was_announced(cluster: KafkaCluster, tmp_path: Path) -> None:
    x, y = samples(500, 11)
    stream = send(cluster, "after", x, y).model_copy(update={"slices": ["after:0:0:200"], "count": 200})
    assert learnt(cluster, stream, tmp_path / "after", timeout_s=3)["records"] == 300
    assert learnt(cluster, stream, tmp_path / "all", timeout_s=3, begin="beginning")["records"] == 500


def test_it_ends_after_a_while_though_nothing_comes(cluster: KafkaCluster, tmp_path: Path) -> None:
    x, y = samples(50, 12)
    stream = send(cluster, "quiet", x, y)
    result = learnt(cluster, stream, tmp_path / "quiet", seconds=4)
    assert result["records"] == 50 and 4 <= result["seconds"] < 60


def test_an_endless_one_comes_to_an_end_when_it_is_told_to(cluster: KafkaCluster, tmp_path: Path) -> None:
    x, y = samples(300, 15)
    folder = tmp_path / "endless"
    folder.mkdir()
    (folder / "finish").touch()
    result = learnt(cluster, send(cluster, "endless", x, y), folder)
    assert result["records"] == 0 and (folder / "model.keras").is_file()


def test_the_learning_rate_falls_and_is_back_after_a_drift(cluster: KafkaCluster, tmp_path: Path) -> None:
    x, y = samples(3000, 13)
    stream = send(cluster, "rate", x, np.concatenate([y[:2000], (y[2000:] + 1) % 3]))
    folder = tmp_path / "rate"
    learnt(cluster, stream, folder, records=3000, rate_halves_after=10, on_drift="rate", learning_rate=0.02)
    rates = [(entry["labelled"], entry["learning_rate"]) for entry in told(folder)]
    low = [rate for labelled, rate in rates if 1000 < labelled <= 2000]
    at = next(entry["drift"]["at"] for entry in told(folder) if "drift" in entry)
    high = [rate for labelled, rate in rates if at <= labelled]
    assert max(low) < 0.02 / 4 and max(high) > 0.02 / 2


def test_a_loss_that_is_no_number_and_a_stream_of_another_shape_fail(cluster: KafkaCluster, tmp_path: Path) -> None:
    x, y = samples(400, 14)
    stream = send(cluster, "wild", x * 1e30, y)
    wild: dict[str, Any] = {"learning_rate": 10.0, "optimizer": "sgd"}
    code, event = last_of(cluster, stream, tmp_path / "wild", records=400, **wild)
    assert code == 2 and "lower the learning rate" in event["reason"]
    other = send(cluster, "other", x, y).model_copy(update={"config": {"shape": [2, 2], "dtype": "float32"}})
    code, event = last_of(cluster, other, tmp_path / "other", records=400)
    assert code == 2 and "shape [2, 2], the model takes [4]" in event["reason"]
