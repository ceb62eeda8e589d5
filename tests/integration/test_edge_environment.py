"""The agent in an environment made by `pip install .[edge]` and nothing else: light, whole, and small in memory."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluice.wire.bundle import BLOBS, open_bundle
from tests.brokers.mosquitto import Mosquitto
from tests.installing import environment as install
from tests.integration.edge_support import (
    Above,
    MadeBundle,
    User,
    agent_settings,
    broker_of,
    rss_kb,
    until,
)

pytestmark = [pytest.mark.brokers, pytest.mark.tensorflow, pytest.mark.timeout(900)]

RSS_LIMIT_BYTES = 80_000_000
ABSENT = ("tensorflow", "keras", "confluent_kafka", "fastapi", "sqlalchemy", "pydantic_settings", "cryptography")
PROVE = """
import sys
from pathlib import Path
from sluice.stage.segment import load_segments
from sluice.wire.bundle import open_bundle

bundle = open_bundle(Path(sys.argv[1]), public_keys=[sys.argv[2]])
print(len(load_segments(bundle.folder, bundle.manifest, range(len(bundle.manifest.segments)))))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a new environment with the extra `edge`."""
    return install(tmp_path_factory.mktemp("edge"), "--constraint", "constraints.txt", ".[edge]")


def run(environment: Path, code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [str(environment / "python"), "-I", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("module", ABSENT)
def test_what_the_device_does_not_need_is_not_there(environment: Path, module: str) -> None:
    assert f"No module named '{module}'" in run(environment, f"import {module}").stderr


def test_golden_samples_pass_there(environment: Path, made: MadeBundle) -> None:
    done = run(environment, PROVE, str(made.folder), made.public_key)
    assert done.stdout.strip() == "2", done.stderr


def test_a_room_that_is_not_installed_is_named_with_its_extra(environment: Path) -> None:
    done = subprocess.run(
        [str(environment / "sluice"), "gateway"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2 and "sluice[gateway]" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("started", [["sluice", "edge-agent"], ["python", "-P", "-m", "edge_agent"]])
def test_wrong_settings_end_the_agent_in_one_line(environment: Path, tmp_path: Path, started: list[str]) -> None:
    command = [str(environment / started[0]), *started[1:], "--config", "/nowhere.toml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert "settings file /nowhere.toml: " in done.stderr and done.stderr.count("\n") == 1


@pytest.fixture
def agent(
    environment: Path, made: MadeBundle, mosquitto: Mosquitto, tmp_path: Path, unique: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """The agent of that environment, started as its systemd unit does, with only the edge segment on the device."""
    folder = tmp_path / "data" / "bundles" / made.digest
    shutil.copytree(made.folder, folder)
    opened = open_bundle(folder)
    for blob in opened.manifest.blobs(range(1, 2)):
        (folder / BLOBS / blob.sha256).unlink()
    settings = agent_settings(made, f"device-{unique}", tmp_path / "data", mosquitto)
    with (tmp_path / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            [str(environment / "python"), "-P", "-m", "edge_agent"],
            env={"PATH": os.environ["PATH"], **settings},
            cwd=tmp_path,
            stdout=log,
            stderr=log,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def test_a_reading_is_answered_in_less_than_80_mb(
    agent: "subprocess.Popen[bytes]", made: MadeBundle, mosquitto: Mosquitto, unique: str
) -> None:
    device = f"device-{unique}"
    with User(broker_of(mosquitto), device) as user, Above(broker_of(mosquitto), device) as above:
        above.desire(made.desired(device))
        until(lambda: above.runs().bundle == made.digest)
        loaded = rss_kb(agent.pid)
        for i, sample in enumerate(made.samples):
            user.measure(sample, f"r{i}")
        until(lambda: len(user.finals()) == len(made.samples))
        assert user.finals()[f"r{made.easy[0]}"].tier == "edge"
        assert user.finals()[f"r{made.hard[0]}"].tier == "cloud"
        used = rss_kb(agent.pid)
        memory = {
            "segment_loaded_rss_mb": round(loaded * 1024 / 1e6, 1),
            "after_readings_rss_mb": round(used * 1024 / 1e6, 1),
            "readings": len(made.samples),
            "profile": above.reported[-1].profile,
        }
    print(json.dumps(memory))
    assert used * 1024 < RSS_LIMIT_BYTES
