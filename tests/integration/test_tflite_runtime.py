"""The agent on its second runtime: an environment of its own, as `deploy/README.md` sets up a 32-bit device.

`constraints-tflite-runtime.txt` names every package, and nothing else is installed: `tflite-runtime` cannot live with
the NumPy of the other environments, and its metadata say nothing of it. `tests/device` runs the same runtime on ARM.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sluice.stage.policy import gate
from sluice.stage.segment import load_segments
from sluice.wire import bundle as bundles
from tests.brokers.mosquitto import Mosquitto
from tests.installing import ROOT
from tests.installing import environment as install
from tests.integration.edge_support import Above, MadeBundle, User, agent_settings, broker_of, make_bundle, until

pytestmark = [pytest.mark.brokers, pytest.mark.tensorflow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of that environment."""
    pins = "constraints-tflite-runtime.txt"
    return install(tmp_path_factory.mktemp("tflite"), "--no-deps", "--requirement", pins, ".")


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> MadeBundle:
    return make_bundle(tmp_path_factory.mktemp("float32"))


@pytest.fixture(scope="module")
def integers(tmp_path_factory: pytest.TempPathFactory) -> MadeBundle:
    return make_bundle(tmp_path_factory.mktemp("int8"), "int8")


def run(environment: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [str(environment / "python"), "-I", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_nothing_is_missing_and_the_other_runtime_is_not_there(environment: Path) -> None:
    done = run(environment, "-m", "pip", "--disable-pip-version-check", "check")
    assert done.returncode == 0, done.stdout
    assert "No module named 'ai_edge_litert'" in run(environment, "-c", "import ai_edge_litert").stderr


def test_golden_samples_pass_one_by_one_and_together(
    environment: Path, floats: MadeBundle, integers: MadeBundle
) -> None:
    done = run(environment, str(ROOT / "tests" / "prove.py"), str(floats.folder), str(integers.folder))
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["profile"]["runtime"].startswith("tflite-runtime ")
    for segment in (segment for bundle in told["bundles"] for segment in bundle):
        assert segment["samples"] > 1 and max(segment["off"].values()) <= segment["tolerance"]


@pytest.fixture(params=["floats", "integers"])
def made(request: pytest.FixtureRequest) -> MadeBundle:
    bundle: MadeBundle = request.getfixturevalue(request.param)
    return bundle


@pytest.fixture
def inputs() -> dict[str, str]:
    """Settings of sensors and inputs; none: each reading is an input."""
    return {}


@pytest.fixture
def agent(
    environment: Path, made: MadeBundle, mosquitto: Mosquitto, tmp_path: Path, unique: str, inputs: dict[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    """`sluice edge-agent` of that environment, with the bundle put there by hand."""
    shutil.copytree(made.folder, tmp_path / "data" / "bundles" / made.digest)
    settings = agent_settings(made, f"device-{unique}", tmp_path / "data", mosquitto) | inputs
    with (tmp_path / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            [str(environment / "sluice"), "edge-agent"], env=settings, cwd=tmp_path, stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def test_readings_are_answered_there_and_from_above(
    agent: "subprocess.Popen[bytes]", made: MadeBundle, mosquitto: Mosquitto, unique: str
) -> None:
    device = f"device-{unique}"
    with User(broker_of(mosquitto), device) as user, Above(broker_of(mosquitto), device) as above:
        above.desire(made.desired(device))
        until(lambda: above.runs().bundle == made.digest)
        assert above.reported[-1].profile["runtime"].startswith("tflite-runtime ")
        for i, sample in enumerate(made.samples):
            user.measure(sample, f"r{i}")
        until(lambda: len(user.finals()) == len(made.samples))
        sure = {i for i in range(len(made.samples)) if user.finals()[f"r{i}"].tier == "edge"}
        assert sure == set(made.easy)
        assert agent.poll() is None


ROWS, HOP, LAST = 36, 6, 200
GRID = {
    "EDGE_SENSORS": json.dumps({"wheel": {"values_path": "v", "time_path": "t", "time_unit": "s", "gap_s": 1000}}),
    "EDGE_INPUTS": json.dumps({"columns": {"sensors": ["wheel"], "rate_hz": 1, "window": ROWS, "hop": HOP}}),
}


@pytest.mark.parametrize("inputs", [GRID], ids=["grid"])
def test_windows_that_one_reading_completes_are_a_batch(
    agent: "subprocess.Popen[bytes]", made: MadeBundle, mosquitto: Mosquitto, unique: str
) -> None:
    """On the line from the first reading to the second lie 28 windows; each is answered as it is on litert."""
    manifest = bundles.open_bundle(made.folder).manifest
    (first,) = load_segments(made.folder, manifest, range(1))
    spec, exit_ = manifest.inputs[0], manifest.segments[0].exit
    assert exit_ is not None
    windows = np.array([range(begin, begin + ROWS) for begin in range(0, LAST + 2 - ROWS, HOP)])
    logits = first.run({spec.name: windows.reshape(-1, *spec.shape).astype(spec.dtype)})[exit_.logits]
    labels, sure = gate("max_prob", logits.astype(np.float32), 1.0)
    threshold = manifest.operating_points[0].policies[0].threshold
    device = f"device-{unique}"
    with User(broker_of(mosquitto), device) as user, Above(broker_of(mosquitto), device) as above:
        above.desire(made.desired(device))
        until(lambda: above.runs().bundle == made.digest)
        for at in (0, LAST):
            user.door.publish(f"sluice/{device}/sensor/wheel", json.dumps({"t": at, "v": at}).encode())
        until(lambda: sum(p.status == "final" for p in user.heard) == len(windows))
    answers = sorted((p for p in user.heard if p.status == "final"), key=lambda p: p.seq)
    assert agent.poll() is None
    for i, answer in enumerate(answers):
        if abs(sure[i] - threshold) > 0.02:  # int8 kernels differ by a step
            assert (answer.tier == "edge") == (sure[i] > threshold)
        if answer.tier == "edge":
            assert answer.label == labels[i] and abs(answer.confidence - sure[i]) < 0.02
