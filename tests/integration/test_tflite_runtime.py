"""The agent on its second runtime: an environment of its own, as `deploy/README.md` sets up a 32-bit device.

`constraints-tflite-runtime.txt` names every package, and nothing else is installed: `tflite-runtime` cannot live with
the NumPy of the other environments, and its metadata say nothing of it. `tests/device` runs the same runtime on ARM.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

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
def agent(
    environment: Path, made: MadeBundle, mosquitto: Mosquitto, tmp_path: Path, unique: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """`sluice edge-agent` of that environment, with the bundle put there by hand."""
    shutil.copytree(made.folder, tmp_path / "data" / "bundles" / made.digest)
    settings = agent_settings(made, f"device-{unique}", tmp_path / "data", mosquitto)
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
