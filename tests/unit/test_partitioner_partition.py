"""What can be asked of `partition`: no exits, new exits, several inputs, groups, int8, results that are no labels."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sluice.stage.segment import load_segments
from sluice.stage.step import Stage, Work, share_of, step
from sluice.wire.bundle import open_bundle
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Manifest
from sluice.wire.messages import Offload, Prediction

pytestmark = pytest.mark.tensorflow

FAMILY = """
keras.utils.set_random_seed(1)
a, b = keras.Input((6,), name="left"), keras.Input((6,), name="right")
h = layers.Dense(16, activation="relu", name="mix")(layers.Concatenate(name="both")([a, b]))
for k in range(3):
    h = layers.Add(name=f"skip{k}")([h, layers.Dense(16, activation="relu", name=f"deep{k}")(h)])
model = keras.Model([a, b], layers.Dense(3, name="final")(h))
"""
MEASURING = """
keras.utils.set_random_seed(2)
x = keras.Input((8,), name="wave")
h = layers.Dense(32, activation="tanh", name="wide")(x)
model = keras.Model(x, [layers.Dense(1, name="level")(h), layers.Dense(4, activation="sigmoid", name="flags")(h)])
"""


def family(n: int, seed: int) -> dict[str, Any]:
    """Two inputs whose means tell three classes apart, some more plainly than others."""
    random = np.random.default_rng(seed)
    y = random.integers(0, 3, n)
    left = random.normal(0, 1, (n, 6)) + (y == 1)[:, None] * 1.6
    right = random.normal(0, 1, (n, 6)) + (y == 2)[:, None] * 1.6
    return {"left": left.astype(np.float32), "right": right.astype(np.float32), "y": y}


@pytest.fixture(scope="module")
def two_inputs() -> Any:
    import keras

    from partitioner.anatomy.models import from_source

    model = from_source(FAMILY)
    arrays = family(1500, 0)
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit([arrays["left"], arrays["right"]], arrays["y"], epochs=4, batch_size=64, verbose=0)
    return model


def made(model: Any, arrays: dict[str, Any], folder: Path, **settings: Any) -> tuple[Manifest, dict[str, Any]]:
    from partitioner.partition import Source, partition
    from partitioner.settings import PartitionSettings

    partition(model, arrays, folder, Source("family"), PartitionSettings(**settings))
    return open_bundle(folder).manifest, json.loads((folder / "report.json").read_bytes())


def answered(folder: Path, manifest: Manifest, inputs: dict[str, Any], point_id: str = "default") -> list[Prediction]:
    """What the stages of all tiers answer, one after the other, as deployed."""
    point = manifest.operating_point(point_id)
    offload = Offload("d", "0" * 16, 1, None, manifest.model, "0" * 64, point.id, "edge", 0, (), (), 0, 1000)
    works = [Work(offload, {name: array[i] for name, array in inputs.items()}) for i in range(len(inputs["x0"]))]
    done: list[Any] = list(works)
    for tier in ("edge", "fog", "cloud"):
        share = share_of(point, tier)
        if not share:
            continue
        stage = Stage(tier, "0" * 64, manifest, share.start, load_segments(folder, manifest, share))
        waiting = [i for i, one in enumerate(done) if not isinstance(one, Prediction)]
        if waiting:
            from sluice.stage.step import unpack

            ready = [one if isinstance(one, Work) else unpack(one, manifest) for one in (done[i] for i in waiting)]
            for i, outcome in zip(waiting, step(stage, ready), strict=True):
                done[i] = outcome
    return done


def test_new_exits_for_a_model_of_two_inputs(two_inputs: Any, tmp_path: Path) -> None:
    """An exit is attached and trained, the plan cuts where it was told, and the tiers answer as promised."""
    manifest, report = made(
        two_inputs,
        family(2400, 1),
        tmp_path / "b",
        exits=("skip0",),
        split=("skip0",),
        max_accuracy_loss=0.03,
        quantize="int8",
    )
    assert [spec.name for spec in manifest.inputs] == ["x0", "x1"]
    assert [s.exit.name for s in manifest.exits if s.exit] == ["exit-skip0", "final"]
    default = manifest.operating_points[0]
    assert default.placement[0] == "edge" and default.placement[-1] != "edge"
    assert default.certificate is not None
    share = default.expected["exit_share"]
    assert isinstance(share, list) and share[0] > 0.2
    assert report["data"]["parts"]["train"] > 0

    new = family(1500, 7)
    wanted = np.asarray(two_inputs([new["left"], new["right"]], training=False)).argmax(axis=1)
    told = answered(tmp_path / "b", manifest, {"x0": new["left"], "x1": new["right"]})
    assert np.mean([one.label != w for one, w in zip(told, wanted, strict=True)]) <= 0.03
    assert abs(np.mean([one.tier == "edge" for one in told]) - share[0]) < 0.08


def test_pure_split_computing_of_a_classifier(two_inputs: Any, tmp_path: Path) -> None:
    manifest, _ = made(
        two_inputs, family(400, 1), tmp_path / "b", exits="none", split=("mix", "skip1"), codec="float16-zstd"
    )
    (point,) = manifest.operating_points
    assert point.placement == ("edge", "fog", "cloud") and point.codec == "float16-zstd"
    assert [segment.name for segment in manifest.segments[:-1]] == ["mix", "skip1"]
    assert len(manifest.exits) == 1 and point.certificate is not None


def test_a_model_that_does_not_classify_is_cut_and_gives_its_results(tmp_path: Path) -> None:
    from partitioner.anatomy.models import from_source

    model = from_source(MEASURING)
    x = np.random.default_rng(0).normal(0, 1, (300, 8)).astype(np.float32)
    manifest, report = made(model, {"x": x}, tmp_path / "b", split=("wide",))
    assert manifest.task == "tensors" and manifest.labels == () and manifest.exits == ()
    assert report["exits"] == [] and "does not classify" in report["warnings"][0]
    point = manifest.operating_points[0]
    assert float(point.expected["relative_error"]) < 1e-2  # type: ignore[arg-type]
    stages = [
        Stage(tier, "0" * 64, manifest, share.start, load_segments(tmp_path / "b", manifest, share))
        for tier in ("edge", "fog", "cloud")
        if (share := share_of(point, tier))
    ]
    from sluice.stage.step import unpack

    offload = Offload("d", "0" * 16, 1, None, "family", "0" * 64, point.id, "edge", 0, (), (), 0, 1000)
    (outcome,) = step(stages[0], [Work(offload, {"x": x[5]})])
    for stage in stages[1:]:
        assert isinstance(outcome, Offload)
        (outcome,) = step(stage, [unpack(outcome, manifest)])
    assert isinstance(outcome, Prediction) and outcome.label == -1
    level, flags = (np.asarray(part)[0] for part in model(x[5:6], training=False))
    np.testing.assert_allclose(np.frombuffer(outcome.outputs, "<f4"), [*level, *flags], atol=0.02)


def test_with_few_groups_nothing_is_promised_for_new_ones(two_inputs: Any, tmp_path: Path) -> None:
    arrays = family(1200, 3) | {"groups": np.arange(1200) % 12}
    manifest, report = made(
        two_inputs, arrays, tmp_path / "a", exits="none", placement=("cloud",), max_accuracy_loss=0.02
    )
    certificate = manifest.operating_points[0].certificate
    assert certificate is not None and certificate.scope == "samples" and certificate.groups
    assert "nothing is promised for new groups" in report["groups"]["promise"]
    assert len(report["groups"]["risk"]) == certificate.groups
    assert sum(report["data"]["parts"].values()) == 1200
    manifest, report = made(
        two_inputs, arrays, tmp_path / "b", exits="none", placement=("cloud",), max_accuracy_loss=0.02, promise="groups"
    )
    assert manifest.operating_points[0].certificate is None
    assert any("149 are needed" in warning or "needed at least" in warning for warning in report["warnings"])


def test_a_promise_that_cannot_be_had_is_not_planned_for(two_inputs: Any, tmp_path: Path) -> None:
    """Too few groups: no early exit answers, the plan is the best without, and the verdict is of what is deployed."""
    arrays = family(1200, 3) | {"groups": np.arange(1200) % 12}
    manifest, report = made(two_inputs, arrays, tmp_path / "b", promise="groups", objective="bytes", exits=("mix",))
    default = manifest.operating_points[0]
    assert default.certificate is None and all(policy.threshold >= 1 for policy in default.policies[:-1])
    amount = re.search(r"for bytes: ([0-9.]+) bytes|: ([0-9.]+) bytes a sample", report["verdict"])
    assert amount
    told = float(amount[1] or amount[2])
    assert told == pytest.approx(float(default.expected["bytes"]), rel=0.01)  # type: ignore[arg-type]


def test_where_the_certificate_fails_it_is_planned_again_and_not_tested_again(
    two_inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The certifying samples are as bad as those of the plan were good."""
    from partitioner import operate

    tested: list[float] = []
    real = operate.certify

    def unlucky(path: Any, confidence: Any, harm: Any, **options: Any) -> Any:
        tested.append(options["delta"])
        return real(path, confidence, [np.ones_like(one) for one in harm], **options)

    monkeypatch.setattr(operate, "certify", unlucky)
    manifest, report = made(two_inputs, family(1500, 1), tmp_path / "b", max_accuracy_loss=0.03)
    assert len(tested) >= 1 and len(set(tested)) == 1, "of one plan only"
    assert all(point.certificate is None for point in manifest.operating_points)
    default = manifest.operating_points[0]
    assert all(policy.threshold >= 1 for policy in default.policies[:-1])
    assert any("planned again without early exits" in warning for warning in report["warnings"])


def test_what_cannot_be_done_is_said_before_anything_is_measured(two_inputs: Any, tmp_path: Path) -> None:
    arrays = family(300, 1)
    unlabelled = {name: array for name, array in arrays.items() if name != "y"}
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        (arrays, {"promise": "groups"}, "needs groups"),
        (unlabelled, {"criterion": "accuracy"}, "needs true labels"),
        (arrays, {"head": "zzz"}, "exit head 'zzz' is unknown"),
        ({name: array[:0] for name, array in arrays.items()}, {}, "no samples"),
    ]
    for data, asked, says in cases:
        with pytest.raises(PermanentError, match=says):
            made(two_inputs, data, tmp_path / "b", **asked)
        assert not (tmp_path / "b").exists()
