"""The bundle on disk: whole or not at all, tried on every runtime that is there, and checked by anyone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sluice.stage.segment import load_segments
from sluice.wire.bundle import BLOBS, MANIFEST, open_bundle
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Certificate, ExitPolicy, OperatingPoint

pytestmark = pytest.mark.tensorflow

MODEL = """
x = keras.Input((6, 6, 1))
h = layers.Conv2D(4, 3, activation="relu", name="stem")(x)
first = layers.Dense(3, name="first")(layers.Flatten()(h))
model = keras.Model(x, [first, layers.Dense(3, name="final")(layers.Flatten()(layers.Conv2D(4, 3)(h)))])
"""
CERTIFICATE = Certificate(
    method="m", criterion="agreement", epsilon=0.02, delta=0.05, n=300, violations=2, scope="groups", groups=12
)


@pytest.fixture(scope="module")
def parts() -> dict[str, dict[str, Any]]:
    """What `pack` is given, by the arithmetic of the segments."""
    import keras

    from partitioner.anatomy.cut import cut_at_exits, logits_model
    from partitioner.anatomy.exits import anatomy
    from partitioner.anatomy.models import from_source
    from partitioner.segments.chain import ranges_of, with_scales
    from partitioner.segments.export import export

    keras.utils.set_random_seed(0)
    cut = cut_at_exits(anatomy(from_source(MODEL)))
    samples: dict[str, Any] = {"x": np.random.default_rng(0).normal(size=(64, 6, 6, 1)).astype(np.float32)}
    made = {}
    for quantize in ("float32", "float16", "int8"):
        exported = export(cut, logits_model(cut), samples, quantize)
        segments = with_scales([one.spec for one in exported], ranges_of([one.segment for one in exported], samples))
        policies = (ExitPolicy(measure="max_prob", threshold=0.9),) * 2
        point = OperatingPoint(
            id="default", placement=("edge", "fog"), codec="raw", policies=policies, certificate=CERTIFICATE
        )
        made[quantize] = {
            "model": "columns",
            "model_version": 1,
            "labels": ["a", "b", "c"],
            "inputs": segments[0].inputs,
            "exported": exported,
            "segments": segments,
            "points": [point],
            "golden": samples,
        }
    return made


def pack(folder: Path, parts: dict[str, dict[str, Any]], quantize: str = "float32", **more: Any) -> str:
    from partitioner.pack import pack as room

    digest: str = room(folder, **(parts[quantize] | more))
    return digest


@pytest.fixture
def bundle(parts: dict[str, dict[str, Any]], tmp_path: Path) -> Path:
    pack(tmp_path / "bundle", parts)
    return tmp_path / "bundle"


@pytest.mark.parametrize("quantize", ("float32", "float16", "int8"))
def test_golden_samples_allow_for_another_runtime_and_no_more(
    parts: dict[str, dict[str, Any]], tmp_path: Path, quantize: str
) -> None:
    pack(tmp_path / "b", parts, quantize)
    manifest = open_bundle(tmp_path / "b").manifest
    assert len(load_segments(tmp_path / "b", manifest, range(2))) == 2
    for segment in manifest.segments:
        step = max(spec.scale or 0 for spec in segment.outputs) if segment.outputs else 0
        largest = 255 * step
        assert segment.quantize == quantize and segment.reference_us
        if quantize == "int8":
            assert 2 * step <= segment.tolerance <= 0.5 * max(1.0, largest)
        else:
            assert segment.tolerance <= 0.01 * max(1.0, largest)


def test_files_beside_the_manifest_know_its_digest(parts: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    digest = pack(tmp_path / "b", parts, extras=lambda digest: {"report.json": json.dumps(digest).encode()})
    assert json.loads((tmp_path / "b/report.json").read_text()) == digest == open_bundle(tmp_path / "b").digest
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == [BLOBS, MANIFEST, "report.json"]


def test_a_failure_leaves_nothing_not_even_a_folder(
    parts: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from partitioner import pack as room

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def fails(_: str) -> dict[str, bytes]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pack(tmp_path / "new/deep/b", parts, extras=fails)
    monkeypatch.setattr(room.bundle, "write_atomically", full)
    with pytest.raises(PermanentError, match=r"new/deep/b cannot be written: No space left on device$"):
        pack(tmp_path / "new/deep/b", parts)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(PermanentError, match="file/b cannot be written: "):
        pack(tmp_path / "file/b", parts)
    with pytest.raises(PermanentError, match="file is there already"):
        pack(tmp_path / "file", parts)


def test_the_other_runtime_is_asked_where_it_is(
    parts: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from partitioner.segments import crosscheck as room

    monkeypatch.setattr(room.importlib.util, "find_spec", lambda _: None)
    assert room.crosscheck(tmp_path).skipped == "tflite-runtime is not installed"
    monkeypatch.setattr("partitioner.pack.tools", dict)
    told: list[str] = []
    pack(tmp_path / "a", parts, warn=told.append)
    assert not told, "a machine that need not have it is not told so"

    monkeypatch.setattr(room.importlib.util, "find_spec", lambda _: True)
    monkeypatch.setattr(room, "version", lambda _: "2.14.0")
    monkeypatch.setattr("partitioner.pack.tools", lambda: {"tflite-runtime": "2.14.0"})
    answers = {
        (0, ""): None,
        (3, "built for NumPy 1\n"): "tflite-runtime 2.14.0 does not work here: built for NumPy 1",
    }
    for (code, said), skipped in answers.items():
        monkeypatch.setattr(
            room.subprocess,
            "run",
            lambda *_, code=code, said=said, **__: SimpleNamespace(returncode=code, stdout=said, stderr=""),
        )
        told.clear()
        pack(tmp_path / f"b{code}", parts, warn=told.append)
        assert told == ([skipped] if skipped else [])
    for code, said in ((2, "segment 1 fails its golden samples"), (-11, "it crashed with signal 11")):
        monkeypatch.setattr(
            room.subprocess,
            "run",
            lambda *_, code=code, said=said, **__: SimpleNamespace(returncode=code, stdout=said, stderr=""),
        )
        with pytest.raises(PermanentError, match=f"the segments do not run on tflite-runtime 2.14.0: {said}"):
            pack(tmp_path / "c", parts)
        assert not (tmp_path / "c").exists()


def test_the_process_of_the_other_runtime(bundle: Path) -> None:
    """It never imports the runtime of this one; without the other it says so in a line."""
    command = [sys.executable, "-m", "partitioner.segments.crosscheck", str(bundle)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) in (
        (2, "no TFLite runtime: install ai-edge-litert, or tflite-runtime on 32-bit ARM\n"),
        (0, ""),
    )


def test_a_bundle_that_is_not_whole_is_told_in_one_line(bundle: Path) -> None:
    from partitioner.inspect import check_bundle

    assert check_bundle(bundle, None).proved
    for path in (bundle, bundle / BLOBS):
        path.chmod(0o555)
    assert check_bundle(bundle, None).proved, "it may be read-only"
    for path in (bundle, bundle / BLOBS):
        path.chmod(0o755)

    whole = (bundle / MANIFEST).read_bytes()
    blob = open_bundle(bundle).manifest.segments[1].file.sha256
    content = (bundle / BLOBS / blob).read_bytes()
    size = f'"size": {len(content)}'.encode()
    breaks: list[tuple[Path, bytes | None, str]] = [
        (bundle / MANIFEST, whole[: len(whole) // 2], "manifest: "),
        (bundle / MANIFEST, b"", "manifest: "),
        (bundle / MANIFEST, None, r"is not a bundle: No such file or directory \(manifest.json\)"),
        (bundle / MANIFEST, whole.replace(size, b'"size": 7'), f"has {len(content)} bytes, the manifest says 7"),
        (bundle / BLOBS / blob, content[:100], "is damaged"),
        (bundle / BLOBS / blob, None, "cannot be read: No such file or directory"),
    ]
    for path, damaged, said in breaks:
        kept = path.read_bytes()
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(PermanentError, match=said) as caught:
            check_bundle(bundle, None)
        assert "\n" not in str(caught.value)
        path.write_bytes(kept)
    (bundle / "manifest.sig").mkdir()
    with pytest.raises(PermanentError, match="cannot be read: Is a directory"):
        check_bundle(bundle, ["key"])
    with pytest.raises(PermanentError, match="is not a bundle: Not a directory"):
        check_bundle(bundle / MANIFEST, None)


def test_tables_tell_what_a_bundle_is_made_of_and_for_whom_it_promises(bundle: Path) -> None:
    from rich.console import Console

    from partitioner.inspect import tables

    console = Console(width=300)
    with console.capture() as capture:
        for table in tables(open_bundle(bundle).manifest):
            console.print(table)
    shown = capture.get()
    for word in ("exit first", "float32", "µs", "h0 float32 4×4×4"):
        assert word in shown
    assert "≤ 2.00% unlike the full model, 95% sure, n = 300 of 12 groups, for new groups" in shown
