"""Environments other than this one that tests install Sluice into, as a user would: from wheels, by pip.

An index that cannot be reached raises `Unavailable`; anything else that goes wrong is a failure of the test.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.fetching import Unavailable

ROOT = Path(__file__).parents[1]
INSTALL_S = 600
SIGNS_OF_NO_NETWORK = ("ConnectionError", "NewConnectionError", "ProxyError", "Retrying (Retry(total=0")


def source(folder: Path) -> Path:
    """A copy of this checkout, because building leaves files beside what it builds."""
    ignored = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "node_modules")
    return Path(shutil.copytree(ROOT, folder, ignore=ignored))


def environment(folder: Path, *arguments: str) -> Path:
    """The `bin` folder of a new environment after `pip install *arguments`, given in a copy of this checkout."""
    copy = source(folder / "source")
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    pip([str(folder / "venv/bin/python"), "-m", "pip"], "install", *arguments, cwd=copy)
    return folder / "venv/bin"


def wheel(folder: Path) -> Path:
    """The wheel of this checkout, built into `folder`."""
    copy = source(folder / "source")
    pip([sys.executable, "-m", "pip"], "wheel", "--no-deps", "--wheel-dir", str(folder), ".", cwd=copy)
    return next(folder.glob("sluice-*.whl"))


def pip(program: list[str], what: str, *arguments: str, cwd: Path) -> None:
    """Run pip to its end."""
    command = [*program, what, "--quiet", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    said = done.stdout + done.stderr
    lost = any(sign in said for sign in SIGNS_OF_NO_NETWORK) or (
        "No matching distribution" in said and "Retrying" in said
    )
    if done.returncode and lost:
        raise Unavailable(f"the package index cannot be reached, so `pip {what} {arguments[-1]}` could not be done")
    assert done.returncode == 0, said[-3000:]
