"""The examples, as a user runs them: each against a running control plane, on a small file of the real one's form; on
the real one where `SLUICE_DATA` names a folder that has it, which takes minutes."""

import ast
import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import Whole

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("SLUICE_DATA", ROOT / "no-data"))
RANDOM = np.random.default_rng(0)
LINES_MOST = 60


def run(whole: Whole, name: str, data: Path, *more: str, script: str = "train.py") -> dict[str, float]:
    """What the example prints: accuracy by exit."""
    script = str(ROOT / "examples" / name / script)
    access = ["--bootstrap", whole.kafka.bootstrap, "--url", whole.system.url, "--token", whole.system.token]
    done = subprocess.run(
        [sys.executable, script, str(data), *access, *more], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, float] = ast.literal_eval(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("name", ["copd", "har", "mnist", "susy"])
def test_they_are_short(name: str) -> None:
    files = (ROOT / "examples" / name).glob("*.py")
    assert all(len(file.read_text().splitlines()) < LINES_MOST for file in files)


def test_a_table(whole: Whole, tmp_path: Path) -> None:
    if (real := DATA / "hcopd" / "HCOPD_Dataset.csv").exists():
        assert run(whole, "copd", real)["final"] > 0.8
        return
    ages = RANDOM.integers(30, 90, 300)
    rows = [f"{int(age > 60)},{age % 2},{age},{1 + age % 3}" for age in ages]
    (tmp_path / "t.csv").write_text("\n".join(["Diagnosis,Gender,Age,Smoking", *rows]))
    assert run(whole, "copd", tmp_path / "t.csv")["final"] > 0.8


def test_windows_of_sensors(whole: Whole, tmp_path: Path) -> None:
    y = RANDOM.integers(1, 7, 600)
    x = RANDOM.normal(size=(600, 128, 9)) + y[:, None, None] / 2
    np.savez(tmp_path / "har.npz", x_train=x.astype(np.float32), y_train=y)
    assert run(whole, "har", tmp_path / "har.npz", "--epochs", "10")["final"] > 0.8


def test_windows_of_which_few_have_a_label(whole: Whole, tmp_path: Path) -> None:
    y = RANDOM.integers(1, 7, 900)
    x = RANDOM.normal(size=(900, 128, 9)) + y[:, None, None] / 2
    np.savez(tmp_path / "har.npz", x_train=x.astype(np.float32), y_train=y)
    assert run(whole, "har", tmp_path / "har.npz", "--epochs", "10", script="few_labels.py")["final"] > 0.8


def test_images(whole: Whole, tmp_path: Path) -> None:
    y = RANDOM.integers(0, 10, 1000).astype(np.uint8)
    x = np.zeros((1000, 28, 28), np.uint8)
    for image, label in zip(x, y, strict=True):
        image[2 * label : 2 * label + 6, 4:24] = 255
    for name, header, array in (("train-images-idx3-ubyte.gz", 16, x), ("train-labels-idx1-ubyte.gz", 8, y)):
        (tmp_path / name).write_bytes(gzip.compress(bytes(header) + array.tobytes()))
    assert run(whole, "mnist", tmp_path)["final"] > 0.8


WHOLE = {"har": "uci-har/uci_har_inertial.npz", "mnist": "mnist", "susy": "susy/SUSY.csv.gz"}


@pytest.mark.parametrize("name", [name for name, path in WHOLE.items() if (DATA / path).exists()])
def test_on_the_real_data(whole: Whole, name: str) -> None:
    """All of it, a few times over; the table is so small that its own test takes the real one."""
    more = {"har": ["--epochs", "6"], "mnist": ["--epochs", "1"], "susy": ["--rows", "5000000"]}[name]
    assert run(whole, name, DATA / WHOLE[name], *more)["final"] > {"har": 0.9, "mnist": 0.9, "susy": 0.78}[name]


def test_rows_of_numbers(whole: Whole, tmp_path: Path) -> None:
    y = RANDOM.integers(0, 2, 2000)
    x = RANDOM.normal(size=(2000, 18)) + y[:, None]
    with gzip.open(tmp_path / "s.csv.gz", "wt") as file:
        np.savetxt(file, np.column_stack([y, x]), delimiter=",", fmt="%.9e")
    assert run(whole, "susy", tmp_path / "s.csv.gz", "--rows", "1500")["final"] > 0.8
