"""What a manifest says fits together, or it is refused in one line that says what does not."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from sluice.wire.errors import PermanentError
from sluice.wire.manifest import MAX_MANIFEST_BYTES, Manifest, TensorSpec, parse_manifest
from tests.unit.wire_support import DEFAULT, manifest, manifest_dict, operating_point, tensor_spec

Change = Callable[[dict[str, Any]], Any]


def names(specs: tuple[TensorSpec, ...]) -> list[str]:
    return [spec.name for spec in specs]


def test_what_crosses_a_cut() -> None:
    """The outputs of the segment before it, and what it passes on of what crossed into it."""
    assert [names(manifest().crossing(k)) for k in range(4)] == [["x"], ["h0", "x"], ["h1", "x"], []]


def test_what_is_not_passed_on_does_not_cross() -> None:
    parts = manifest_dict()
    parts["segments"][2]["inputs"] = [parts["segments"][1]["outputs"][0]]
    parts["segments"][1]["passes"] = []
    assert [names(Manifest.model_validate(parts).crossing(k)) for k in range(3)] == [["x"], ["h0", "x"], ["h1"]]


def test_a_segment_without_an_exit_has_no_policy() -> None:
    parts = manifest_dict()
    parts["segments"][0]["exit"] = None
    for point in parts["operating_points"]:
        point["policies"].pop()
    whole = Manifest.model_validate(parts)
    assert [segment.index for segment in whole.exits] == [1, 2]
    assert whole.segments[0].logits == set() and whole.segments[1].logits == {"l1"}


def test_operating_points_are_found_by_id() -> None:
    assert manifest().operating_point("two-fog").placement == ("edge", "fog", "fog")
    with pytest.raises(PermanentError, match="'none' is not in the manifest; it has default, small, two-fog, all-edge"):
        manifest().operating_point("none")


def test_the_files_that_some_segments_need() -> None:
    assert [blob.sha256[0] for blob in manifest().blobs()] == list("001122")
    assert [blob.sha256[0] for blob in manifest().blobs(range(1, 2))] == list("11")


def test_sizes_of_a_tensor() -> None:
    spec = TensorSpec(name="h", dtype="float16", shape=(2, 3))
    assert (spec.size, spec.nbytes, spec.is_float, spec.wire_dtype.str) == (6, 12, True, "<f2")
    scalar = TensorSpec(name="h", dtype="int64", shape=())
    assert (scalar.size, scalar.nbytes, scalar.is_float) == (1, 8, False)


def test_it_reads_what_it_writes() -> None:
    assert parse_manifest(manifest().model_dump_json().encode()) == manifest()


def segment(at: int, /, **changes: Any) -> Change:
    return lambda parts: parts["segments"][at].update(changes)


def point(**changes: Any) -> Change:
    return lambda parts: parts["operating_points"][0].update(changes)


def policy(**changes: Any) -> Change:
    return lambda parts: parts["operating_points"][0]["policies"][0].update(changes)


def tensor(**changes: Any) -> Change:
    return lambda parts: parts["inputs"][0].update(changes)


X = tensor_spec("x", 4)
WRONG: list[tuple[str, Change]] = [
    ("segment 1 says that it is 5", segment(1, index=5)),
    ("segment 0 reads 'y', which does not cross into it", segment(0, inputs=[tensor_spec("y", 4)])),
    ("segment 1 reads 'h0', which does not cross into it as such", segment(1, inputs=[tensor_spec("h0", 9)])),
    ("segment 2 reads 'x', which does not cross", segment(1, passes=[])),
    (r"segment 0 passes on \['h7'\], which do not cross", segment(0, passes=["h7"])),
    ("segment 0 gives two tensors called 'x'", segment(0, outputs=[tensor_spec("h0", 3), X])),
    ("segment 0 gives two tensors called 'h0'", segment(0, outputs=[tensor_spec("h0", 3)] * 2)),
    ("segment 0 gives two tensors called 'x'", segment(0, passes=["x", "x"])),
    ("segment 1 gives two tensors called 'x'", segment(1, exit={"name": "exit 1", "logits": "x"})),
    ("two inputs are called 'x'", lambda parts: parts["inputs"].append(X)),
    ("the last segment has no exit", segment(2, exit=None)),
    ("operating point 'default' places 2 segments", point(placement=["edge", "fog"])),
    ("operating point 'default' goes down a tier", point(placement=["cloud", "fog", "cloud"])),
    ("operating point 'default' has 1 exit policies", point(policies=[{"measure": "entropy", "threshold": 1}])),
    (
        "two operating points are called 'default'",
        lambda p: p["operating_points"].append(operating_point("default", DEFAULT)),
    ),
    ("operating_points.0.placement.0: ", point(placement=["moon", "fog", "cloud"])),
    ("operating_points.0.id: ", point(id="Default")),
    ("policies.0.measure: ", policy(measure="mood")),
    ("policies.0.threshold: ", policy(threshold=-1)),
    ("policies.0.threshold: ", policy(threshold=float("nan"))),
    ("policies.0.threshold: ", policy(threshold=float("inf"))),
    ("policies.0.temperature: ", policy(temperature=0)),
    ("policies.0.temperature: ", policy(temperature=float("inf"))),
    ("inputs.0.dtype: ", tensor(dtype="complex64")),
    ("inputs.0.shape.1: ", tensor(shape=[4, 0])),
    ("inputs.0.shape.0: ", tensor(shape=[-4])),
    ("inputs.0.shape: ", tensor(shape=[1] * 9)),
    (r"inputs.0: shape \[65536, 65536\] has over 2147483647 values", tensor(shape=[65536, 65536])),
    ("inputs.0.scale: ", tensor(scale=0)),
    ("inputs.0.scale: ", tensor(scale=float("inf"))),
    ("inputs.0.zero_point: ", tensor(zero_point=128)),
    ("segments.0.tolerance: ", segment(0, tolerance=float("inf"))),
    ("segments.0.tolerance: ", segment(0, tolerance=0)),
    ("segments.0.macs: ", segment(0, macs=-1)),
    ("segments.0.file.sha256: ", segment(0, file={"sha256": "../../etc/passwd", "size": 1})),
    ("segments.0.file.size: ", segment(0, file={"sha256": "a" * 64, "size": 0})),
    ("segments.0.weight: Extra inputs", segment(0, weight=1)),
    ("segments: ", lambda parts: parts.update(segments=[])),
    ("operating_points: ", lambda parts: parts.update(operating_points=[])),
    ("labels: ", lambda parts: parts.update(labels=["one"])),
    ("model: ", lambda parts: parts.update(model="A model")),
    ("format: ", lambda parts: parts.update(format=2)),
    ("version: ", lambda parts: parts.update(version=0)),
    ("version: ", lambda parts: parts.update(version=2**63)),
]


@pytest.mark.parametrize(("reason", "change"), WRONG)
def test_what_does_not_fit_is_refused_in_one_line(reason: str, change: Change) -> None:
    parts = manifest_dict()
    change(parts)
    with pytest.raises(PermanentError, match=f"^manifest: .*{reason}") as refused:
        parse_manifest(json.dumps(parts).encode())
    assert "\n" not in str(refused.value)


def test_a_name_that_makes_no_sense_does_not_fill_the_screen() -> None:
    parts = manifest_dict() | {"two\nlines " + "x" * 10_000: 1}
    with pytest.raises(PermanentError, match="manifest: two lines xxx") as refused:
        parse_manifest(json.dumps(parts).encode())
    assert len(str(refused.value)) < 320


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"model": "\\ud800"}'])
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(PermanentError, match="manifest: "):
        parse_manifest(data)


def test_a_manifest_over_the_limit_is_not_parsed() -> None:
    with pytest.raises(PermanentError, match="over the limit"):
        parse_manifest(b" " * (MAX_MANIFEST_BYTES + 1))


def test_many_tensors_that_pass_many_segments_are_soon_read() -> None:
    """1 MB of it took over a minute once: each segment's crossing was worked out from the first on."""
    parts = manifest_dict()
    passes = [f"p{i}" for i in range(1000)]
    parts["inputs"] += [tensor_spec(name) for name in passes]
    between = {**parts["segments"][1], "inputs": [], "outputs": [], "exit": None, "passes": ["h0", "x", *passes]}
    parts["segments"][0]["passes"] = ["x", *passes]
    parts["segments"][1:1] = [between] * 150
    parts["segments"] = [segment | {"index": i} for i, segment in enumerate(parts["segments"])]
    for point in parts["operating_points"]:
        point["placement"] = ["edge"] * 153
    read = parse_manifest(json.dumps(parts).encode())
    assert [spec.name for spec in read.crossing(150)] == ["h0", "x", *passes]


def test_a_manifest_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        manifest().model = "other"  # type: ignore[misc]
