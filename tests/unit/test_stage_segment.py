"""A segment on the real TFLite runtime: any batch, exact inputs, and golden samples that prove it."""

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sluice.stage.segment
from sluice.stage.segment import Array, Arrays, RunningSegment, load_segment, load_segments, profile, prove, runtime
from sluice.stage.step import Stage, Work, step
from sluice.wire.bundle import BLOBS, Bundle, write_blob
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Segment
from sluice.wire.messages import Outcome, Prediction
from tests.unit.wire_support import offload

pytestmark = pytest.mark.tensorflow

Golden = dict[str, Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from tests.unit.bundle_support import make_bundle

    return make_bundle(tmp_path_factory.mktemp("segment"))


@pytest.fixture
def segments(bundle: Bundle) -> list[RunningSegment]:
    return load_segments(bundle.folder, bundle.manifest, range(2))


def samples(n: int) -> Arrays:
    return {"x": np.random.default_rng(1).normal(size=(n, 4, 4, 1)).astype(np.float32)}


@pytest.mark.parametrize("n", [1, 3, 8])
def test_a_batch_is_answered_as_each_sample_alone(segments: list[RunningSegment], n: int) -> None:
    tensors: dict[str, Any] = samples(n)
    alone: list[dict[str, Any]] = [{name: array[i : i + 1] for name, array in tensors.items()} for i in range(n)]
    for segment in segments:
        tensors = {**tensors, **segment.run(tensors)}
        alone = [{**one, **segment.run(one)} for one in alone]
        for spec in segment.spec.outputs:
            assert tensors[spec.name].shape == (n, *spec.shape) and tensors[spec.name].dtype == spec.dtype
        assert tensors["logits"].shape == (n, 3) and tensors["logits"].dtype == np.float32
    for name, array in tensors.items():
        np.testing.assert_allclose(array, np.concatenate([one[name] for one in alone]), atol=1e-6)


def test_a_smaller_batch_does_not_see_the_one_before(segments: list[RunningSegment]) -> None:
    """What was padded comes from zeros, and results are the caller's own."""
    many = segments[0].run(samples(8))
    kept = {name: array.copy() for name, array in many.items()}
    few = segments[0].run({"x": samples(8)["x"][:5] * 2})
    again = segments[0].run(samples(8))
    for name, array in kept.items():
        assert len(few[name]) == 5
        np.testing.assert_array_equal(many[name], array)
        np.testing.assert_array_equal(again[name], array)


def test_tensors_of_others_are_left_alone(segments: list[RunningSegment]) -> None:
    tensors = samples(2)
    made = segments[0].run(tensors | {"passing": np.zeros((9, 9), np.int64)})
    assert set(made) == {"logits", *(spec.name for spec in segments[0].spec.outputs)}


@pytest.mark.parametrize("n", [1, 2, 3])
def test_what_is_returned_stays_as_it_is(segments: list[RunningSegment], n: int) -> None:
    """No view of the runtime's own memory, which the next run overwrites."""
    made = segments[0].run(samples(n))
    kept = {name: array.copy() for name, array in made.items()}
    segments[0].run({"x": np.ones_like(samples(n)["x"])})
    for name, array in made.items():
        np.testing.assert_array_equal(array, kept[name])
        owner = array if array.base is None else array.base
        assert isinstance(owner, np.ndarray) and owner.flags.owndata


@pytest.fixture
def lenders(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> list[RunningSegment]:
    """Segments that lend what they make for later ones, however small."""
    monkeypatch.setattr(sluice.stage.segment, "LENT_BYTES", 1)
    return load_segments(bundle.folder, bundle.manifest, range(2))


@pytest.mark.parametrize("n", [1, 3])
def test_what_is_lent_has_to_be_gone_before_the_next_run(
    segments: list[RunningSegment], lenders: list[RunningSegment], n: int
) -> None:
    lent = lenders[0].run(samples(n), lent=True)
    for name, array in segments[0].run(samples(n)).items():
        np.testing.assert_array_equal(lent[name], array)
    with pytest.raises(RuntimeError, match="reference to internal data"):
        lenders[0].run(samples(n))
    del lent
    assert lenders[0].run(samples(n))["h0"].shape == (n, 4, 4, 2)


def test_what_the_golden_samples_needed_is_let_go(segments: list[RunningSegment]) -> None:
    assert [list(segment._by_batch) for segment in segments] == [[1], [1]], "batch sizes with an interpreter"
    whole = segments[0].run(samples(3))
    segments[0].forget()
    assert list(segments[0]._by_batch) == [1]
    for n in (1, 3):
        for name, array in segments[0].run(samples(n)).items():
            np.testing.assert_allclose(array.astype(np.float64), whole[name][:n].astype(np.float64), atol=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("placement", ["edge", "cloud"])
def test_a_step_is_through_with_what_it_was_lent(
    bundle: Bundle, segments: list[RunningSegment], lenders: list[RunningSegment], threshold: float, placement: Any
) -> None:
    point = bundle.manifest.operating_points[0]
    first = point.policies[0].model_copy(update={"threshold": threshold})
    point = point.model_copy(update={"placement": ("edge", placement), "policies": (first, point.policies[1])})
    manifest = bundle.manifest.model_copy(update={"operating_points": (point,)})
    start = offload(model=manifest.model, next_segment=0, tier="edge", tensors=(), beliefs=(), compute_us={})
    works = [Work(replace(start, seq=i), {"x": x}) for i, x in enumerate(samples(5)["x"])]
    owned, lent = (Stage("edge", bundle.digest, manifest, 0, some) for some in (segments, lenders))
    wanted = [told(outcome) for outcome in step(owned, works)]
    for _ in range(3):
        assert [told(outcome) for outcome in step(lent, works)] == wanted


def told(outcome: Outcome) -> Any:
    if isinstance(outcome, Prediction):
        return (outcome.seq, outcome.exit, outcome.label, outcome.outputs)
    return (outcome.seq, outcome.next_segment, outcome.tensors)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((2, 4, 4, 1), np.float64), r"tensor 'x': float64\[2, 4, 4, 1\] where float32\[2, 4, 4, 1\]"),
        (np.zeros((2, 4, 4, 1), np.uint8), "uint8"),
        (np.zeros((2, 4, 4), np.float32), r"float32\[2, 4, 4\] where"),
        (np.zeros((2, 4, 5, 1), np.float32), "is expected"),
        (np.zeros((2, 16), np.float32), "is expected"),
    ],
)
def test_a_wrong_shape_or_dtype_is_refused(segments: list[RunningSegment], array: Array, said: str) -> None:
    with pytest.raises(PermanentError, match=said):
        segments[0].run({"x": array})
    assert len(segments[0].run(samples(2))["logits"]) == 2, "and the next one is served"


def golden_of(bundle: Bundle, index: int = 0) -> Golden:
    with np.load(io.BytesIO(bundle.read(bundle.manifest.segments[index].golden))) as arrays:
        return {name: arrays[name] for name in arrays.files}


def packed(golden: Golden) -> bytes:
    out = io.BytesIO()
    np.savez(out, **golden)
    return out.getvalue()


def test_golden_samples_prove_a_segment(bundle: Bundle, segments: list[RunningSegment]) -> None:
    for index, segment in enumerate(segments):
        prove(segment, packed(golden_of(bundle, index)))


ALTERED: list[tuple[Callable[[Golden], Any], str]] = [
    (
        lambda g: g.update({"out.logits": g["out.logits"] + np.float32(0.5)}),
        "fails its golden samples: 'logits' is off",
    ),
    (lambda g: g.update({"in.x": g["in.x"] + np.float32(0.5)}), "fails its golden samples"),
    (lambda g: g.update({"out.logits": g["out.logits"] * np.float32("nan")}), "is off by nan"),
    (lambda g: g.update({"out.logits": g["out.logits"][:, :2]}), "golden output 'logits' has another shape"),
    (lambda g: g.update({"out.logits": g["out.logits"][:3]}), "golden output 'logits' has another shape"),
    (lambda g: g.update({"out.other": g["out.logits"]}), "golden output 'other' has another shape"),
    (lambda g: g.pop("out.logits"), "golden samples are incomplete"),
    (lambda g: g.pop("out.h0"), "golden samples are incomplete"),
    (lambda g: g.pop("in.x"), "golden samples are incomplete"),
    (lambda g: g.update({name: array[:0] for name, array in g.items()}), "there are no golden samples"),
    (lambda g: g.update({"in.x": np.float32(1)}), "there are no golden samples"),
    (lambda g: g.update({"in.x": g["in.x"].astype(np.float64)}), "float64"),
]


@pytest.mark.parametrize(("change", "said"), ALTERED)
def test_altered_golden_samples_are_refused(
    bundle: Bundle, segments: list[RunningSegment], change: Callable[[Golden], Any], said: str
) -> None:
    golden = golden_of(bundle)
    change(golden)
    with pytest.raises(PermanentError, match=f"segment 0.*{said}"):
        prove(segments[0], packed(golden))


def test_golden_samples_that_cannot_be_read_are_refused(bundle: Bundle, segments: list[RunningSegment]) -> None:
    whole = bundle.read(bundle.manifest.segments[0].golden)
    one_array = io.BytesIO()
    np.save(one_array, np.zeros(3))
    objects = io.BytesIO()
    np.savez(objects, **{"in.x": np.array([{}])}, allow_pickle=True)
    middle = len(whole) // 2
    damaged = whole[:middle] + bytes(50) + whole[middle + 50 :]
    for data in (b"", b"golden", b"PK\x03\x04", whole[:middle], damaged, one_array.getvalue(), objects.getvalue()):
        with pytest.raises(PermanentError, match="segment 0: golden samples"):
            prove(segments[0], data)


def test_golden_samples_that_unpack_to_more_than_they_can_be_are_refused_unopened(
    bundle: Bundle, segments: list[RunningSegment]
) -> None:
    good, out = golden_of(bundle), io.BytesIO()
    np.savez_compressed(out, **good, more=np.zeros(200_000_000, np.uint8))  # 200 KB
    with pytest.raises(PermanentError, match=r"golden samples cannot be read: 20000.* bytes unpacked, .* at most"):
        prove(segments[0], out.getvalue())
    with pytest.raises(PermanentError, match="over 256 golden samples"):
        prove(segments[0], packed({name: np.repeat(array, 100, axis=0) for name, array in good.items()}))


def _text_member() -> bytes:
    """An archive whose member is no array, which np.load gives as bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("in.x", b"text")
    return out.getvalue()


def test_golden_samples_of_another_kind_are_refused(bundle: Bundle, segments: list[RunningSegment]) -> None:
    whole = bundle.read(bundle.manifest.segments[0].golden)
    at = whole.index(b"PK\x01\x02")
    unknown = whole[: at + 10] + b"\x63\x00" + whole[at + 12 :]  # compression method 99
    for data in (_text_member(), unknown):
        with pytest.raises(PermanentError, match="golden samples cannot be read"):
            prove(segments[0], data)
    words = golden_of(bundle)
    words["out.more"] = np.array(["text"] * 8)
    with pytest.raises(PermanentError, match="golden output 'more' is not of numbers"):
        prove(segments[0], packed(words))


def test_a_bundle_whose_golden_samples_fail_is_not_loaded(bundle: Bundle, tmp_path: Path) -> None:
    golden = golden_of(bundle)
    golden["out.logits"] = golden["out.logits"] + np.float32(1)
    for blob in bundle.manifest.blobs():
        write_blob(tmp_path / BLOBS, bundle.read(blob))
    altered = write_blob(tmp_path / BLOBS, packed(golden))
    first = bundle.manifest.segments[0].model_copy(update={"golden": altered})
    manifest = bundle.manifest.model_copy(update={"segments": (first, bundle.manifest.segments[1])})
    with pytest.raises(PermanentError, match="segment 0 fails its golden samples: 'logits' is off by 1"):
        load_segments(tmp_path, manifest, range(2))
    assert len(load_segments(tmp_path, manifest, range(1, 2))) == 1, "the other segment is none the worse"


def tflite(bundle: Bundle) -> tuple[bytes, Segment]:
    spec = bundle.manifest.segments[0]
    return bundle.read(spec.file), spec


def test_a_damaged_file_is_refused(bundle: Bundle) -> None:
    content, spec = tflite(bundle)
    for damaged in (b"", b"TFL3", bytes(100), content[:4], content[:100], b"\xff" * len(content), b"#!/bin/sh\n" * 500):
        with pytest.raises(PermanentError, match="segment 0 cannot be loaded: "):
            load_segment(damaged, spec)


def test_a_file_that_is_not_what_the_manifest_says_is_refused(bundle: Bundle) -> None:
    content, spec = tflite(bundle)
    other = spec.inputs[0].model_copy(update={"name": "y"})
    wider = spec.inputs[0].model_copy(update={"shape": (4, 4, 2)})
    whole = spec.inputs[0].model_copy(update={"dtype": "int32"})
    head = spec.exit.model_copy(update={"logits": "mood"}) if spec.exit else None
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"inputs": (other,)}, r"segment reads \['x'\], its manifest says \['y'\]"),
        ({"outputs": (spec.outputs[0].model_copy(update={"name": "h7"}),)}, r"segment 0 does not make \['h7'\]"),
        ({"exit": head}, r"segment 0 does not make \['mood'\]"),
    ]
    for changes, said in wrong:
        with pytest.raises(PermanentError, match=said):
            load_segment(content, spec.model_copy(update=changes))
    golden = golden_of(bundle)
    with pytest.raises(
        PermanentError, match=r"segment 0, tensor 'x': float32\[8, 4, 4, 1\] where float32\[8, 4, 4, 2\]"
    ):
        prove(load_segment(content, spec.model_copy(update={"inputs": (wider,)})), packed(golden))
    golden["in.x"] = golden["in.x"].astype(np.int32)
    with pytest.raises(PermanentError, match="segment 0 cannot run its golden samples"):
        prove(load_segment(content, spec.model_copy(update={"inputs": (whole,)})), packed(golden))


def test_the_profile_names_the_runtime() -> None:
    name, interpreter = runtime()
    assert profile()["runtime"].startswith(name + " ") and interpreter.__name__ == "Interpreter"
