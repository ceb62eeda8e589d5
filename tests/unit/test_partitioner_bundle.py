"""From a model and samples to a bundle: the chain equals Keras, what is wrong is refused, nothing half-made stays."""

import io
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sluice.stage.policy import probabilities
from sluice.stage.segment import load_segments
from sluice.wire.bundle import BLOBS, MANIFEST, open_bundle
from sluice.wire.codec import CODECS
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Manifest
from sluice.wire.signing import load_or_make_key, public_text, sign
from sluice.wire.training import TrainingSettings

pytestmark = pytest.mark.tensorflow

MODEL = """
keras.utils.set_random_seed(3)
x = keras.Input((6, 6, 1), dtype="uint8")
a = layers.Conv2D(4, 3, padding="same", activation="tanh")(layers.Rescaling(1 / 255)(x))
first = layers.Dense(3, activation="softmax", name="first")(layers.Flatten()(a))
b = layers.Conv2D(4, 3, padding="same", activation="relu")(a)
second = layers.Dense(3, name="second")(layers.Flatten()(b))
final = layers.Dense(3, name="final")(layers.Flatten()(layers.Concatenate()([a, b])))
model = keras.Model(x, [first, second, final])
"""
LABELS = ["left", "middle", "right"]


def blobs(n: int, seed: int) -> tuple[Any, Any]:
    """Images with a bright column on the left, in the middle or on the right, and noise."""
    random = np.random.default_rng(seed)
    y = random.integers(0, 3, n)
    x = random.integers(0, 120, (n, 6, 6, 1))
    for column in range(3):
        x[y == column, :, 2 * column : 2 * column + 2] += 60
    return np.clip(x, 0, 255).astype(np.uint8), y


@pytest.fixture(scope="module")
def trained() -> Any:
    from cloud.training.fit import fit
    from cloud.training.parts import Parts
    from partitioner.anatomy.exits import anatomy
    from partitioner.anatomy.models import from_source

    model, none = from_source(MODEL), np.arange(0)
    settings = TrainingSettings(epochs=8, learning_rate=0.01)
    fit(model, anatomy(model), *blobs(400, 0), Parts(np.arange(400), none, none), settings)
    return model


PLACED = {"placement": ("edge", "fog", "cloud"), "codec": "int8-zstd", "max_accuracy_loss": 0.02}


def make(
    model: Any, folder: Path, *, n: int = 500, sign: Any = None, arrays: Any = None, **settings: Any
) -> dict[str, Any]:
    from partitioner.partition import Source, partition
    from partitioner.settings import PartitionSettings

    x, y = blobs(n, 2)
    source = Source("columns", 2, LABELS, training="t1", slices=("s:0:0:9",))
    wanted = PartitionSettings(**(PLACED | settings))
    result: dict[str, Any] = partition(model, arrays or {"x": x, "y": y}, folder, source, wanted, sign=sign)
    return result


@pytest.fixture(scope="module")
def bundle(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    make(trained, folder / "b", sign=partial(sign, load_or_make_key(folder / "key.pem")))
    return folder / "b"


def manifest_of(folder: Path) -> Manifest:
    return open_bundle(folder).manifest


def test_the_bundle_is_whole_and_signed(bundle: Path) -> None:
    key = public_text(load_or_make_key(bundle.parent / "key.pem"))
    manifest = open_bundle(bundle, public_keys=[key]).manifest
    assert (manifest.model, manifest.version, list(manifest.labels)) == ("columns", 2, LABELS)
    assert manifest.provenance.training == "t1" and "keras" in manifest.provenance.tools
    assert [segment.exit.name for segment in manifest.exits if segment.exit] == ["first", "second", "final"]
    assert manifest.segments[1].passes == ("h0",)
    assert len(load_segments(bundle, manifest, range(3))) == 3
    crossing = [spec for k in (1, 2) for spec in manifest.crossing(k)]
    assert all(spec.scale and spec.zero_point is not None for spec in crossing)
    assert sorted(path.name for path in (bundle / BLOBS).iterdir()) == sorted(b.sha256 for b in manifest.blobs())
    report = json.loads((bundle / "report.json").read_bytes())
    assert report["digest"] == open_bundle(bundle).digest
    assert report["points"][0]["certificate"]["n"] == report["data"]["parts"]["certify"]
    assert "<svg" in (bundle / "report.html").read_text()


def test_the_chain_of_segments_answers_as_keras(trained: Any, bundle: Path) -> None:
    manifest = manifest_of(bundle)
    x, _ = blobs(50, 9)
    tensors: dict[str, Any] = {"x": x}
    wanted = [np.asarray(output) for output in trained(x, training=False)]
    for k, segment in enumerate(load_segments(bundle, manifest, range(3))):
        made = dict[str, Any](segment.run(tensors))
        tensors |= made
        if k == 0:  # Keras gives probabilities there
            made["logits"] = probabilities(made["logits"], 1.0)
        np.testing.assert_allclose(made["logits"], wanted[k], atol=1e-4)


def test_the_operating_points_keep_their_word_on_new_samples(trained: Any, bundle: Path) -> None:
    """4000 new samples from the same source: disagreement with the full model is at most ε."""
    from partitioner.segments.chain import run_chain
    from sluice.stage.policy import gate, passes

    manifest = manifest_of(bundle)
    default, closed = manifest.operating_points
    assert (default.id, closed.id) == ("default", "no-exit")
    assert default.certificate is not None and closed.certificate is not None
    assert default.certificate.n == 375 and default.certificate.epsilon == 0.02
    assert (default.certificate.points, default.certificate.scope) == (1, "samples")
    assert default.placement == ("edge", "fog", "cloud")
    share = default.expected["exit_share"]
    assert isinstance(share, list) and share[0] > 0.1 and sum(share) == pytest.approx(1)
    assert closed.expected["exit_share"] == [0, 0, 1]

    x, _ = blobs(4000, 5)
    wanted = np.asarray(trained(x, training=False)[-1]).argmax(axis=1)
    running = load_segments(bundle, manifest, range(3))
    crossings = [manifest.crossing(k) for k in range(3)]
    passage = run_chain(running, crossings, {"x": x}, default.placement, default.codec)
    answer = gate("max_prob", passage.logits[2], 1.0)[0]
    for k in (1, 0):
        policy = default.policies[k]
        labels, confidence = gate(policy.measure, passage.logits[k], policy.temperature)
        answer = np.where(passes(policy, confidence), labels, answer)
        assert not passes(closed.policies[k], confidence).any()
    assert (answer != wanted).mean() <= 0.02


def test_too_few_samples_give_no_early_exit_and_say_so(trained: Any, tmp_path: Path) -> None:
    result = make(trained, tmp_path / "b", n=100)
    assert "75 samples cannot certify 0.02 at 0.95: 149 are needed" in result["summary"]["uncertified_because"]
    assert any("149 are needed" in warning for warning in result["warnings"])
    default = manifest_of(tmp_path / "b").operating_points[0]
    assert default.certificate is None and default.expected["exit_share"] == [0, 0, 1]


def test_placement_and_codec_and_measure_are_the_users(trained: Any, tmp_path: Path) -> None:
    from pydantic import ValidationError

    make(trained, tmp_path / "a", placement=("edge", "edge", "cloud"), codec="raw", measure="margin")
    point = manifest_of(tmp_path / "a").operating_points[0]
    assert point.placement == ("edge", "edge", "cloud") and point.policies[0].measure == "margin"
    assert point.expected["crossing_bytes"] == [0, 2 * 6 * 6 * 4 * 4]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"placement": ("edge", "cloud")}, "names 2 tiers, the model has 3 segments, ending at first, second, final"),
        ({"placement": ("cloud", "fog", "edge")}, "goes down a tier"),
        ({"codec": "jpeg"}, "codec 'jpeg' is unknown"),
        ({"measure": "mood"}, "measure 'mood' is unknown"),
        ({"split": ("conv", "nowhere"), "placement": None}, "no split point 'conv'"),
        ({"exits": ("sceond",), "placement": None}, "nearest name is 'second'"),
        ({"thresholds": (0.5,)}, "1 thresholds for 2 early exits"),
    ]
    for settings, reason in wrong:
        with pytest.raises((PermanentError, ValidationError), match=reason):
            make(trained, tmp_path / "b", **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_samples_that_do_not_fit_leave_nothing(trained: Any, tmp_path: Path) -> None:
    from partitioner.partition import Source, partition

    x, y = blobs(200, 2)
    one, many = np.zeros(200, np.int64), np.arange(200) % 2
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"x": x[:, :5], "y": y}, r"shape \[5, 6, 1\], the model takes \[6, 6, 1\]"),
        ({"x": x.astype(np.float32), "y": y}, "samples are float32, the model takes uint8"),
        ({"x": x, "y": y + 1}, "labels go from 1 to 3, the model has 3 classes"),
        ({"x": x, "y": y[:-1]}, r"y is int64\[199\]: 200 whole numbers"),
        ({"x": x, "y": y.astype(float)}, "y is float64"),
        ({"x": x, "y": one}, "all 200 samples have label 0"),
        ({"x": x[:10], "y": y[:10]}, "20 at least"),
        ({"image": x, "y": y}, "the data have no array .*there are: image"),
        ({"x": x, "groups": many[:-1]}, "groups is int64"),
        ({"x": x, "groups": many}, "2 groups for 3 parts"),
    ]
    for arrays, reason in wrong:
        with pytest.raises(PermanentError, match=reason):
            make(trained, tmp_path / "b", arrays=arrays)
    with pytest.raises(PermanentError, match="2 labels for a model of 3 classes"):
        partition(trained, {"x": x, "y": y}, tmp_path / "b", Source("m", 1, ["a", "b"]))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_packing_leaves_nothing(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from partitioner import pack

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(pack.bundle, "write_atomically", full)
    with pytest.raises(PermanentError, match="cannot be written: no space"):
        make(trained, tmp_path / "b")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    (tmp_path / "b").mkdir()
    with pytest.raises(PermanentError, match="is there already"):
        make(trained, tmp_path / "b")


def test_a_flipped_byte_anywhere_is_found(bundle: Path, tmp_path: Path) -> None:
    from partitioner.inspect import check_bundle

    key = [public_text(load_or_make_key(bundle.parent / "key.pem"))]
    assert check_bundle(bundle, key).proved
    for file in [MANIFEST, *(f"{BLOBS}/{blob.sha256}" for blob in manifest_of(bundle).blobs())]:
        copy = tmp_path / "copy"
        shutil.copytree(bundle, copy)
        data = bytearray((copy / file).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / file).write_bytes(data)
        with pytest.raises(PermanentError):
            check_bundle(copy, key)
        shutil.rmtree(copy)
    with pytest.raises(PermanentError, match="none of the trusted keys"):
        check_bundle(bundle, [public_text(load_or_make_key(tmp_path / "other.pem"))])
    with pytest.raises(PermanentError, match="is not a bundle"):
        check_bundle(tmp_path, None)


def test_golden_samples_are_there_for_every_segment(bundle: Path) -> None:
    manifest = manifest_of(bundle)
    opened = open_bundle(bundle)
    for segment in manifest.segments:
        with np.load(io.BytesIO(opened.read(segment.golden))) as golden:
            names = {f"in.{spec.name}" for spec in segment.inputs} | {f"out.{spec.name}" for spec in segment.outputs}
            assert set(golden.files) == names | {"out.logits"}
            assert all(len(golden[name]) == 8 for name in golden.files)


@pytest.mark.parametrize("values", [(0.0, 4.0), (-1.0, 1.0), (-3.0, -1.0), (0.0, 0.0)])
def test_an_int8_scale_holds_the_whole_range_and_zero(values: tuple[float, float]) -> None:
    from partitioner.segments.chain import affine
    from sluice.wire.codec import round_trip
    from sluice.wire.manifest import TensorSpec

    scale, zero_point = affine(*values)
    spec = TensorSpec(name="h", dtype="float32", shape=(64,), scale=scale, zero_point=zero_point)
    x = np.linspace(*values, 64, dtype=np.float32)[None]
    assert np.abs(np.asarray(round_trip(x, spec, "int8"), np.float32) - x).max() <= scale * 0.51
    assert not np.asarray(round_trip(np.zeros((1, 64), np.float32), spec, "int8")).any()
    assert set(CODECS) >= {"int8", "int8-zstd"}


def test_the_commands(trained: Any, bundle: Path, tmp_path: Path) -> None:
    import typer
    from typer.testing import CliRunner

    from partitioner import command

    trained.save(tmp_path / "columns.keras")
    x, y = blobs(400, 2)
    np.savez(tmp_path / "cal.npz", x=x, y=y, labels=LABELS)
    app = typer.Typer()
    app.command()(command.partition)
    arguments = [str(tmp_path / "columns.keras"), "--data", str(tmp_path / "cal.npz"), "--max-accuracy-loss", "0.02"]
    arguments += ["--placement", "edge,fog,cloud"]
    failed = CliRunner().invoke(
        app, [*arguments, "--out", str(tmp_path / "b"), "--codec", "jpeg", "--key", str(tmp_path / "key.pem")]
    )
    assert isinstance(failed.exception, PermanentError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cal.npz", "columns.keras"]
    result = CliRunner().invoke(
        app, [*arguments, "--out", str(tmp_path / "b"), "--key", str(tmp_path / "key.pem"), "--json"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["digest"] == open_bundle(tmp_path / "b").digest
    key = public_text(load_or_make_key(tmp_path / "key.pem"))
    open_bundle(tmp_path / "b", public_keys=[key])
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "b")])
    assert isinstance(result.exception, PermanentError)

    shown = CliRunner().invoke(command.bundle, ["show", str(bundle), "--json"])
    assert Manifest.model_validate_json(shown.stdout) == manifest_of(bundle)
    for folder, line in [(tmp_path / "b", "signature not asked for"), (bundle, "golden samples pass")]:
        verified = CliRunner().invoke(command.bundle, ["verify", str(folder)])
        assert verified.exit_code == 0 and line in verified.stdout
    assert "operating point" in CliRunner().invoke(command.bundle, ["show", str(bundle)]).stdout
