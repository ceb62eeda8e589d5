"""`sluice cloud` and `sluice token` as processes: the first start, a stop, a kill, with the real partitioner as job."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from sluice.client import Client
from sluice.doors.kafka_topics import EmbeddedKafka
from sluice.wire.errors import PermanentError

WAIT_S = 60.0
SLUICE = [sys.executable, "-c", "from sluice.cli import main; main()"]
CHECKOUT = Path(__file__).parents[2]
SLEEPER = "import time\ntime.sleep(600)"


class Process:
    """A running `sluice cloud`: its URL, and the admin token that it printed."""

    def __init__(self, folder: Path, bootstrap: str) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "CLOUD_DATA": str(folder / "data"),
            "CLOUD_PORT": "0",
            "CLOUD_KAFKA__BOOTSTRAP": bootstrap,
            "CLOUD_KAFKA__OPTIONS": '{"client.id": "a-secret-option"}',
        }
        self.log = folder / "cloud.log"
        self.out = folder / "cloud.out"
        self.start()

    def start(self) -> None:
        known = len(self._ready())
        with self.log.open("ab") as log, self.out.open("ab") as out:
            self.process = subprocess.Popen(
                [*SLUICE, "cloud"], env=self.environment, cwd=CHECKOUT, stdout=out, stderr=log
            )
        deadline = time.monotonic() + WAIT_S
        while len(self._ready()) == known:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.url = f"http://127.0.0.1:{self._ready()[-1]['port']}"

    def _ready(self) -> list[dict[str, object]]:
        if not self.log.exists():
            return []
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.endswith("}")]
        return [line for line in lines if line["message"] == "ready"]

    def tokens(self) -> list[str]:
        return re.findall(r"sluice_\S+", self.out.read_text())

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    kafka = EmbeddedKafka()
    process = Process(tmp_path, kafka.bootstrap)
    yield process
    if process.process.poll() is None:
        process.stop(signal.SIGKILL)


def start_check(process: Process, source: str) -> tuple[threading.Thread, psutil.Process, list[Exception]]:
    """Hand in a model from a thread; returns it, the job's process, and where its error will be."""
    errors: list[Exception] = []

    def hand_in() -> None:
        with Client(process.url, process.tokens()[0]) as client:
            try:
                client.add_model("sleeper", source)
            except Exception as error:
                errors.append(error)

    thread = threading.Thread(target=hand_in)
    thread.start()
    service = psutil.Process(process.process.pid)
    deadline = time.monotonic() + WAIT_S
    while not (children := service.children()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return thread, children[0], errors


def is_gone(job: psutil.Process) -> bool:
    deadline = time.monotonic() + 20
    while job.is_running() and job.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_the_first_start_shows_an_admin_token_once(process: Process) -> None:
    (token,) = process.tokens()
    with Client(process.url, token) as client:
        assert client.models() == []
    assert process.stop(signal.SIGTERM) == 0
    process.start()
    assert process.tokens() == [token]
    assert token not in process.log.read_text()
    key = process.folder / "data" / "keys" / "signing.pem"
    assert key.stat().st_mode & 0o77 == 0
    assert process.stop(signal.SIGINT) == 0


def test_a_stopped_service_ends_its_jobs_within_seconds(process: Process) -> None:
    thread, job, errors = start_check(process, SLEEPER)
    begun = time.monotonic()
    assert process.stop(signal.SIGTERM) == 0
    assert time.monotonic() - begun < 10
    thread.join(WAIT_S)
    assert is_gone(job)
    assert len(errors) == 1
    assert list((process.folder / "data" / "jobs").iterdir()) == []


def test_a_killed_service_leaves_no_job(process: Process) -> None:
    thread, job, _errors = start_check(process, SLEEPER)
    process.stop(signal.SIGKILL)
    thread.join(WAIT_S)
    assert is_gone(job)
    process.start()
    with Client(process.url, process.tokens()[0]) as client:
        assert client.models() == []


@pytest.mark.tensorflow
def test_the_real_check_names_what_is_wrong_and_has_no_secrets(process: Process) -> None:
    token = process.tokens()[0]
    look = "import os\nraise SystemExit(' '.join(os.environ.values()))"
    with Client(process.url, token) as client:
        with pytest.raises(PermanentError, match="line 2: ModuleNotFoundError: No module named 'kears'"):
            client.add_model("m", "x = 1\nimport kears")
        with pytest.raises(PermanentError) as caught:
            client.add_model("m", look)
        assert "a-secret-option" not in str(caught.value)
        assert client.models() == []


def test_tokens_are_made_offline_and_revoked(tmp_path: Path) -> None:
    environment = os.environ | {"CLOUD_DATA": str(tmp_path / "data")}

    def token(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*SLUICE, "token", *arguments]
        return subprocess.run(command, env=environment, cwd=CHECKOUT, capture_output=True, text=True, check=False)

    made = json.loads(token("create", "--role", "admin", "--json").stdout)
    assert made["role"] == "admin"
    kafka = EmbeddedKafka()
    process = Process(tmp_path, kafka.bootstrap)
    try:
        assert process.tokens() == []  # there is one already, so the first start makes none
        headers = {"Authorization": f"Bearer {made['token']}"}
        assert httpx.get(f"{process.url}/v1/models", headers=headers).status_code == 200
        listed = json.loads(token("list", "--json").stdout)
        assert [(row["role"], row["revoked_at"]) for row in listed] == [("admin", None)]
        assert made["token"] not in token("list").stdout
        assert token("revoke", str(made["id"])).returncode == 0
        assert httpx.get(f"{process.url}/v1/models", headers=headers).status_code == 401
        again = token("revoke", str(made["id"]))
        assert (again.returncode, again.stdout) == (2, "")
        assert again.stderr.startswith("sluice: no token has the number")
    finally:
        process.stop(signal.SIGTERM)


def test_a_taken_port_is_one_line(process: Process) -> None:
    port = process.url.rpartition(":")[2]
    second = subprocess.run(
        [*SLUICE, "cloud", "--port", port],
        env=process.environment,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
    )
    assert second.returncode == 1
    (line,) = second.stderr.splitlines()
    assert json.loads(line)["message"].startswith(f"cannot go on: cannot listen on 127.0.0.1:{port}")
