"""The `sluice` command: light until a command is called, and errors in one line that says what to do."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest

from sluice.cli import EXTRA_OF, GROUP

HEAVY = [
    "ai_edge_litert",
    "alembic",
    "amqtt",
    "confluent_kafka",
    "cryptography",
    "fastapi",
    "fastavro",
    "httpx",
    "keras",
    "nacl",
    "numpy",
    "paho",
    "psutil",
    "scipy",
    "sklearn",
    "sqlalchemy",
    "tensorflow",
    "tflite_runtime",
    "uvicorn",
    "zstandard",
]
"""Everything that a machine with one room on it may do without, and everything that takes long to load."""

BLOCK = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""
CALL = """
import sys
from sluice.cli import main
sys.argv = ["sluice", *{arguments}]
code = 0
try:
    main()
except SystemExit as end:
    code = end.code
found = sorted({heavy} & {{name.split(".")[0] for name in sys.modules}})
print("loaded:", *found)
sys.exit(code)
"""


def sluice(*arguments: str, blocked: list[str] | None = None) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own, on a machine where the modules `blocked` are not installed."""
    source = BLOCK.format(blocked=set(blocked)) if blocked else ""
    source += CALL.format(arguments=list(arguments), heavy=set(HEAVY))
    return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False, timeout=60)


def test_help_shows_every_command_and_loads_nothing_heavy() -> None:
    told = sluice("--help")
    assert told.returncode == 0 and told.stderr == ""
    assert told.stdout.splitlines()[-1] == "loaded:"
    shown = told.stdout.split()
    assert [entry.name for entry in entry_points(group=GROUP) if entry.name not in shown] == []


def test_help_works_where_no_room_is_installed() -> None:
    for arguments in ["--help"], ["stage", "--help"], ["edge-agent", "--help"], ["--version"]:
        told = sluice(*arguments, blocked=HEAVY)
        assert told.returncode == 0, told.stderr


@pytest.mark.parametrize(
    ("arguments", "missing", "extra"),
    [
        (["stage", "--tier", "fog"], "confluent_kafka", "stage"),
        (["gateway"], "paho", "gateway"),
        (["edge-agent", "--config", "/dev/null"], "paho", "edge"),
        (["cloud"], "fastapi", "cloud"),
        (["results-writer"], "sqlalchemy", "cloud"),
        (["partition", "m.keras", "--data", "cal.npz", "--out", "bundle"], "keras", "partitioner"),
        (["devices"], "httpx", "client"),
    ],
)
def test_a_missing_extra_is_named(
    arguments: list[str], missing: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.keras").touch()
    np.savez(tmp_path / "cal.npz", x=np.zeros((2, 4)), y=[0, 1])
    told = sluice(*arguments, blocked=[missing])
    assert told.returncode == 2, told.stdout + told.stderr
    assert told.stderr.endswith(f"is not installed: pip install 'sluice[{extra}]'\n")
    assert told.stderr.startswith("sluice: ") and told.stderr.count("\n") == 1


def test_a_module_that_no_room_knows_is_a_defect() -> None:
    told = sluice("stage", "--tier", "fog", blocked=["typer"])
    assert told.returncode == 1 and "Traceback" in told.stderr


def test_every_command_has_an_extra_that_brings_it() -> None:
    for entry in entry_points(group=GROUP):
        assert any(entry.module == room or entry.module.startswith(room + ".") for room in EXTRA_OF), entry.name


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["stage", "--tier", "moon"], "sluice: setting STAGE_tier: Input should be 'fog' or 'cloud'\n"),
        (["stage", "--config", "/nowhere.toml"], "sluice: settings file /nowhere.toml: "),
        (["edge-agent", "--config", "/dev/null"], "sluice: setting EDGE_"),
    ],
)
def test_an_error_on_purpose_is_one_line_and_exit_code_2(arguments: list[str], line: str) -> None:
    told = sluice(*arguments)
    assert told.returncode == 2
    assert told.stderr.startswith(line) and told.stderr.count("\n") == 1


def test_a_command_that_does_not_exist_is_exit_code_2() -> None:
    told = sluice("flood")
    assert told.returncode == 2 and "No such command 'flood'" in told.stderr
