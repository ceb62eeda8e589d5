"""A profile says how long each segment takes here; what is no profile is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import sluice.stage.profile
from sluice.stage.profile import GivenUp, cpu_model, measure
from sluice.wire.bundle import BLOBS, Bundle
from sluice.wire.errors import PermanentError
from sluice.wire.profile import MAX_PROFILE_BYTES, Profile, parse_profile, read_profile
from tests.unit.wire_support import DIGEST

WHOLE: dict[str, Any] = {
    "bundle": DIGEST,
    "runtime": "ai-edge-litert 2.3.0",
    "machine": "aarch64",
    "cpu": "Raspberry Pi 4 Model B",
    "python": "3.11.2",
    "memory_mb": 71.5,
    "segments": [
        {"index": 0, "sha256": DIGEST, "macs": 9, "reference_us": None, "us": {"1": 3.5}, "p90_us": {"1": 4}},
    ],
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured is nobody's business here."""
    monkeypatch.setattr(sluice.stage.profile, "SECONDS", 0.001)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from tests.unit.bundle_support import make_bundle

    return make_bundle(tmp_path_factory.mktemp("profile"))


@pytest.mark.tensorflow
def test_every_segment_is_measured_at_every_batch_size(bundle: Bundle) -> None:
    steps: list[tuple[int, int]] = []
    found = measure(bundle.folder, (1, 3), request="profile-1", on_step=lambda *step: steps.append(step))
    assert (found.bundle, found.request, found.threads) == (bundle.digest, "profile-1", 1)
    assert [(one.index, one.sha256, one.macs, one.reference_us) for one in found.segments] == [
        (spec.index, spec.file.sha256, spec.macs, spec.reference_us) for spec in bundle.manifest.segments
    ]
    for one in found.segments:
        assert one.us.keys() == one.p90_us.keys() == {"1", "3"}
        assert all(0 < one.us[size] <= one.p90_us[size] < 1e6 for size in one.us)
    assert steps == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert 10 < found.memory_mb < 10_000
    assert found.runtime.partition(" ")[0] in ("ai-edge-litert", "tflite-runtime")
    assert parse_profile(found.model_dump_json().encode()) == found


@pytest.mark.tensorflow
def test_a_device_measures_what_it_has(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / BLOBS).mkdir()
    (tmp_path / "manifest.json").write_bytes((bundle.folder / "manifest.json").read_bytes())
    for blob in bundle.manifest.blobs(range(1)):
        (tmp_path / BLOBS / blob.sha256).write_bytes(bundle.read(blob))
    assert [one.index for one in measure(tmp_path, (1,), indices=range(1)).segments] == [0]
    assert measure(tmp_path, (1,), indices=range(0)).segments == ()
    with pytest.raises(PermanentError, match="cannot be read"):
        measure(tmp_path, (1,))


@pytest.mark.tensorflow
def test_it_gives_up_when_told(bundle: Bundle) -> None:
    answers = iter([False, False, True])
    with pytest.raises(GivenUp):
        measure(bundle.folder, (1, 2), give_up=lambda: next(answers))


@pytest.mark.parametrize("batches", [(), (0,), (1, 1), (-3,), (5000,), tuple(range(1, 10))])
def test_odd_batch_sizes_are_refused(batches: tuple[int, ...]) -> None:
    with pytest.raises(PermanentError, match="batch size"):
        measure(Path("none"), batches)


@pytest.mark.tensorflow
def test_the_command_shows_a_table_and_writes_a_file(bundle: Bundle, tmp_path: Path) -> None:
    import typer

    from sluice.stage.command import profile

    app = typer.Typer()
    app.command()(profile)

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, [str(bundle.folder), *arguments], catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout

    out = tmp_path / "profile.json"
    shown = run("--batches", "1,2", "--out", str(out))
    assert "batch 2" in shown and "MACs" in shown and "profile.json" in shown.replace("\n", "")
    assert read_profile(out).bundle == bundle.digest
    assert Profile.model_validate_json(run("--json", "--batches", "1")).segments[1].us.keys() == {"1"}
    for arguments, said in [
        (["--batches", "one"], "--batches 'one'"),
        (["--out", str(tmp_path / "none" / "x.json")], "is no folder"),
    ]:
        with pytest.raises(PermanentError, match=said):
            run(*arguments)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"bundle": "ab"}, "profile: bundle: "),
    ({"memory_mb": float("nan")}, "profile: memory_mb: "),
    ({"memory_mb": 0}, "profile: memory_mb: "),
    ({"cpu": "x" * 201}, "profile: cpu: "),
    ({"segments": WHOLE["segments"] * 129}, "profile: segments: "),
    ({"segments": [WHOLE["segments"][0] | {"us": {"1": 0}}]}, "profile: segments.0.us.1: "),
    ({"segments": [WHOLE["segments"][0] | {"us": {"one": 5}}]}, "profile: segments.0.us.one"),
    ({"segments": [WHOLE["segments"][0] | {"us": {}}]}, "profile: segments.0.us: "),
    ({"request": "not a name"}, "profile: request: "),
]


@pytest.mark.parametrize(("changes", "said"), WRONG)
def test_what_is_no_profile_is_refused_in_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(PermanentError, match=said) as refused:
        parse_profile(json.dumps(WHOLE | changes).encode())
    assert "\n" not in str(refused.value)


def test_a_profile_is_read_with_what_a_newer_writer_added(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(WHOLE | {"mood": "fine"}))
    assert read_profile(file) == Profile.model_validate(WHOLE)
    file.write_bytes(b"{" * (MAX_PROFILE_BYTES + 1))
    with pytest.raises(PermanentError, match=r"profile\.json: profile of 64001 bytes is over the limit"):
        read_profile(file)
    with pytest.raises(PermanentError, match="cannot be read: No such file"):
        read_profile(tmp_path / "none.json")


def test_the_largest_profile_fits_into_a_report() -> None:
    from sluice.wire.state import MAX_STATE_BYTES, Reported, parse_state

    times = {str(batch): 123456.78 for batch in (1, 2, 4, 8, 16, 32, 64, 128)}
    one = {"index": 127, "sha256": DIGEST, "macs": 10**9, "reference_us": 123456.78, "us": times, "p90_us": times}
    profile = Profile.model_validate(WHOLE | {"segments": [one] * 128})
    text = Reported(device_id="pi-1", agent_version="1", measured=profile).model_dump_json()
    assert len(text) < MAX_STATE_BYTES
    assert parse_state(Reported, text).measured == profile


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\n\nprocessor\t: 1\n", "Some CPU @ 2 GHz"),
        ("processor\t: 0\nCPU part\t: 0xd08\n\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 4\n", "Raspberry Pi 4"),
        ("", ""),
    ],
)
def test_the_kernel_names_the_processor(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_model(tmp_path / "cpuinfo") == name
    assert cpu_model(tmp_path / "none") == ""
