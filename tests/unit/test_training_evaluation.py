"""Evaluation: what is counted, what is told of it, and what it says of data that are not as they should be."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from cloud.training.answers import Answers
from cloud.training.counts import Counts
from sluice.doors.kafka import KafkaCluster
from sluice.doors.kafka_topics import EmbeddedKafka
from sluice.streams.reader import load_stream
from sluice.streams.samples import NONE
from sluice.streams.send import send_stream
from sluice.wire.evaluation import EvaluationSettings
from sluice.wire.slices import parse_slice
from sluice.wire.state import Announcement
from tests.unit.test_training_job import MODEL, run

N, BARE = 700, 100
"""Records, and those of them that have no label."""
LOGITS = np.array([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [0.0, 1.0, 0.0], [5.0, 5.0, 9.0]])


def counted() -> Counts:
    counts = Counts(["early", "final"], 3)
    answers = Answers({"early": LOGITS[::-1], "final": LOGITS}, np.array([0, 1, 1, 1]))
    counts.add(answers, np.array([0, 2, NONE, 2]), {("t", 0): 4, ("t", 1): 9})
    return counts


def test_what_has_a_label_is_counted_by_exit_and_the_rest_is_numbered() -> None:
    counts = counted()
    assert (counts.tally.labelled, counts.tally.unlabelled, counts.tally.records) == (3, 1, 4)
    assert counts.confusion()["final"]["matrix"] == [[1, 0, 0], [0, 0, 0], [0, 1, 1]]
    metrics = counts.metrics()
    assert metrics["final"]["accuracy"] == pytest.approx(2 / 3)
    wanted = [np.log(np.exp(row).sum()) - row[label] for row, label in ((LOGITS[0], 0), (LOGITS[1], 2), (LOGITS[3], 2))]
    assert metrics["final"]["loss"] == pytest.approx(np.mean(wanted))
    assert metrics["early"]["accuracy"] == 0
    assert counts.figures()["exit_share"] == {"early": 0.25, "final": 0.75}


def test_nothing_to_count_is_no_number() -> None:
    counts = Counts(["only"], 2)
    assert counts.metrics() == {"only": {"loss": None, "accuracy": None}}
    counts.add(Answers({}), np.empty(0, np.int64), {})
    counts.add(Answers({"only": np.zeros((2, 2))}), np.array([NONE, NONE]), {})
    assert counts.metrics() == {"only": {"loss": None, "accuracy": None}}
    counts.add(Answers({"only": np.array([[np.nan, 0.0]])}), np.array([0]), {})
    assert counts.metrics()["only"]["loss"] is None


def test_counts_go_on_from_their_checkpoint(tmp_path: Path) -> None:
    counts = counted()
    counts.miss(3, "record t:0:1 is bad", 2)
    counts.tally.told.append({"records": 4})
    counts.save(tmp_path)
    again = Counts(["early", "final"], 3)
    again.load(tmp_path)
    assert (again.tally, again.ends) == (counts.tally, counts.ends)
    assert (again.figures(), again.confusion()) == (counts.figures(), counts.confusion())
    again.miss(4, "another", 2)
    assert again.tally.first_bad == "record t:0:1 is bad", "the first stays the first"
    fresh = Counts(["early", "final"], 3)
    fresh.load(tmp_path / "nowhere")
    assert fresh.tally.records == 0


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"slices": ["t:0:0:1"], "live": {}}, "either slices or live"),
        ({"live": {"timeout_s": 0}}, "timeout_s"),
        ({"live": {"records": 0}}, "records"),
        ({"slice": "t:0:0:1"}, "slice"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given: dict[str, Any], where: str) -> None:
    with pytest.raises(ValidationError, match=where):
        EvaluationSettings.model_validate(given)


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    server = EmbeddedKafka()
    yield KafkaCluster(bootstrap=server.bootstrap)
    del server


@pytest.fixture(scope="module")
def stream(cluster: KafkaCluster) -> Announcement:
    random = np.random.default_rng(0)
    y = random.integers(0, 3, N)
    x = (random.normal(size=(N, 4)) + np.eye(3, 4)[y] * 2).astype(np.float32)
    y[:BARE] = NONE
    return send_stream(cluster, "asked", x, y, stream_id="asked", format="raw", partitions=2)


def evaluation(stream: Announcement, model: str = MODEL, **settings: Any) -> dict[str, Any]:
    return {"kind": "evaluation", "model": {"source": model}, "stream": stream.model_dump(), "settings": settings}


def evaluated(
    cluster: KafkaCluster, folder: Path, job: dict[str, Any], **wish: Any
) -> tuple[int, list[dict[str, Any]], Any]:
    from cloud.training.evaluation import work

    code, events = run(cluster, folder, work, job, **({"begins": True, "classes": 3} | wish))
    return code, events, events[-1].get("result", events[-1].get("reason"))


@pytest.mark.tensorflow
def test_a_stream_is_counted_as_the_model_answers_it(
    cluster: KafkaCluster, stream: Announcement, tmp_path: Path
) -> None:
    import keras

    from partitioner.anatomy.models import from_file, from_source

    keras.utils.set_random_seed(3)
    from_source(MODEL).save(tmp_path / "input.keras")
    job = evaluation(stream) | {"model": {"file": "input.keras"}}
    code, events, result = evaluated(cluster, tmp_path, job, batch=90)
    assert code == 0, result
    assert (result["records"], result["labelled"], result["unlabelled"], result["bad"]) == (N, N - BARE, BARE, 0)
    x, y = load_stream(cluster, stream)
    known = y != NONE
    for name, output in zip(("early", "final"), from_file(tmp_path / "input.keras")(x[known]), strict=True):
        answers = np.asarray(output)
        told = result["metrics"][name]
        assert told["accuracy"] == pytest.approx((answers.argmax(axis=1) == y[known]).mean())
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=name == "final")(y[known], answers)
        assert told["loss"] == pytest.approx(float(loss), rel=1e-5)
        matrix = np.array(result["confusion"][name]["matrix"])
        assert matrix.sum(axis=1).tolist() == np.bincount(y[known]).tolist(), "a row has the samples of a label"
    running = [event for event in events if event["event"] == "metrics"]
    assert running[-1]["records"] == N and running[-1]["metrics"] == result["metrics"]
    progress = [event for event in events if event["event"] == "progress"]
    assert (progress[-1]["done"], progress[-1]["total"]) == (N, N)


class Killed(BaseException):
    """What ends a run in the middle."""


@pytest.mark.tensorflow
def test_after_a_kill_it_goes_on_from_its_checkpoint(
    cluster: KafkaCluster, stream: Announcement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before a checkpoint, and after one: what was counted and not kept is counted again, and nothing twice."""
    from cloud.training import evaluation as module

    monkeypatch.setattr(module, "KEEP_EVERY_S", 0.0)
    monkeypatch.setattr(module, "KEEP_REST", 0)
    add, save = Counts.add, Counts.save
    left = {"add": 3, "save": 4}

    def dies(name: str, what: Any) -> Any:
        def instead(*arguments: Any) -> None:
            left[name] -= 1
            if left[name] == 0:
                raise Killed
            what(*arguments)

        return instead

    with monkeypatch.context() as patched:
        for name, what in (("add", add), ("save", save)):
            patched.setattr(Counts, name, dies(name, what))
            with pytest.raises(Killed):
                evaluated(cluster, tmp_path, evaluation(stream), batch=64)
            patched.setattr(Counts, name, what)
    kept = Counts(["early", "final"], 3)
    kept.load(tmp_path)
    assert 0 < kept.tally.records < N
    code, events, result = evaluated(cluster, tmp_path, evaluation(stream), batch=64)
    assert code == 0, result
    assert (result["records"], result["labelled"], result["unlabelled"]) == (N, N - BARE, BARE)
    records = [event["records"] for event in events if event["event"] == "metrics"]
    assert records == sorted(records) and records[0] < kept.tally.records, "what was told before is told again"


@pytest.mark.tensorflow
def test_some_slices_each_record_once(cluster: KafkaCluster, stream: Announcement, tmp_path: Path) -> None:
    longest = max(map(parse_slice, stream.slices), key=lambda piece: piece.length)  # which one it is, Kafka decides
    where = f"asked:{longest.partition}"
    slices = [f"{where}:102:8", f"{where}:0:30", f"{where}:20:30"]
    some = stream.model_copy(update={"slices": slices})
    code, _events, result = evaluated(cluster, tmp_path, evaluation(some, slices=slices))
    assert code == 0, result
    assert result["records"] == 58


@pytest.mark.tensorflow
def test_what_does_not_fit(cluster: KafkaCluster, stream: Announcement, tmp_path: Path) -> None:
    def refused(job: dict[str, Any], **wish: Any) -> str:
        code, _events, reason = evaluated(cluster, tmp_path / "refused", job, **wish)
        assert code == 2
        (tmp_path / "refused" / "checkpoint.npz").unlink(missing_ok=True)
        return str(reason)

    assert "samples of shape [4], the model takes [5]" in refused(evaluation(stream, MODEL.replace("(4,)", "(5,)")))
    few = stream.model_copy(update={"count": N + 1})
    assert f"has {N} records where {N + 1} were announced" in refused(evaluation(few))
    gone = stream.model_copy(update={"slices": ["asked:0:0:100000"]})
    assert "slice asked:0:0:100000" in refused(evaluation(gone))
    two = MODEL.replace("Dense(3,", "Dense(2,")
    assert "has label 2, and the model tells 2 classes apart" in refused(evaluation(stream, two), classes=2)
    bad = refused(evaluation(stream, two, bad_most=5), classes=2, bad_most=5)
    assert bad.startswith("6 records are bad, 5 would be left out; the first: record asked:")


@pytest.mark.tensorflow
def test_bad_records_are_counted_over_all_runs(
    cluster: KafkaCluster, stream: Announcement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloud.training import evaluation as module

    y = load_stream(cluster, stream)[1]
    many = int((y == 2).sum())
    two = evaluation(stream, MODEL.replace("Dense(3,", "Dense(2,"), bad_most=many)
    monkeypatch.setattr(module, "KEEP_EVERY_S", 0.0)
    monkeypatch.setattr(module, "KEEP_REST", 0)
    save, left = Counts.save, [4]

    def dies(*arguments: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        save(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Counts, "save", dies)
        with pytest.raises(Killed):
            evaluated(cluster, tmp_path, two, classes=2, bad_most=many, batch=50)
    code, _events, result = evaluated(cluster, tmp_path, two, classes=2, bad_most=many, batch=50)
    assert code == 0, result
    assert (result["bad"], result["records"]) == (many, N - many)
    assert result["first_bad"].startswith("record asked:")


@pytest.mark.tensorflow
def test_a_bundle_answers_as_its_tiers_would(cluster: KafkaCluster, stream: Announcement, tmp_path: Path) -> None:
    """One sample after the other through the segments: at each exit its policy says whether it answers."""
    import keras

    from cloud.training.chain import ANSWER, FILE
    from partitioner.anatomy.models import from_source
    from partitioner.job import work as partition
    from sluice.stage.policy import decide
    from sluice.stage.segment import load_segments
    from sluice.wire.bundle import BLOBS, MANIFEST, open_bundle

    keras.utils.set_random_seed(3)
    (tmp_path / "cut").mkdir()
    from_source(MODEL).save(tmp_path / "cut" / "input.keras")
    cut = {"kind": "partition", "model": {"file": "input.keras"}, "name": "asked", "version": 1}
    settings = {"placement": ["edge", "cloud"], "thresholds": [0.4], "codec": "raw"}
    code, events = run(
        cluster, tmp_path / "cut", partition, cut | {"stream": stream.model_dump(), "settings": settings}
    )
    assert code == 0, events[-1]
    bundle = open_bundle(tmp_path / "cut" / "bundle")
    manifest = bundle.manifest
    (tmp_path / "ask").mkdir()
    for segment in manifest.segments:
        content = (bundle.folder / BLOBS / segment.file.sha256).read_bytes()
        (tmp_path / "ask" / FILE.format(segment.index)).write_bytes(content)
    point = manifest.operating_points[0]
    model = {"manifest": (bundle.folder / MANIFEST).read_text(), "operating_point": point.id}
    code, _events, result = evaluated(cluster, tmp_path / "ask", evaluation(stream) | {"model": model})
    assert code == 0, result

    x, y = load_stream(cluster, stream)
    segments = load_segments(bundle.folder, manifest, range(len(manifest.segments)))
    answered, labels = [], []
    for sample in x:
        tensors = {manifest.inputs[0].name: sample[None]}
        for number, running in enumerate(segments):
            tensors = tensors | running.run(tensors)
            assert running.spec.exit is not None
            (label,), _sure, (answers,) = decide(
                point.policies[number], tensors[running.spec.exit.logits], last=number == len(segments) - 1
            )
            if answers:
                break
        answered.append(number)
        labels.append(label)
    shares = np.bincount(answered, minlength=2) / N
    assert 0 < shares[0] < 1
    assert list(result["exit_share"].values()) == pytest.approx(shares.tolist(), abs=2 / N)
    known = y != NONE
    right = (np.array(labels) == y)[known].mean()
    assert result["metrics"][ANSWER]["accuracy"] == pytest.approx(right, abs=2 / N)
    assert set(result["metrics"]) == {"early", "final", ANSWER}
    code, _events, reason = evaluated(
        cluster, tmp_path / "ask", evaluation(stream) | {"model": model | {"operating_point": "other"}}
    )
    assert code == 2 and "operating point 'other' is not in the manifest" in reason
