"""A bundle's golden samples on the other runtime: tflite-runtime, which 32-bit devices have.

The samples are what `ai-edge-litert` made after each segment was compared with Keras. The other runtime cannot share a
process with TensorFlow, so it has one of its own: `python -m partitioner.crosscheck FOLDER`.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from sluice.stage.segment import load_segments
from sluice.stage.segment import profile as runtime_profile
from sluice.wire.bundle import open_bundle
from sluice.wire.errors import PermanentError

OTHER = "tflite-runtime"
TIMEOUT_S = 900.0
WHOLE, WRONG, UNUSABLE = 0, 2, 3


@dataclass(frozen=True, slots=True)
class Crosschecked:
    """`runtimes`: names and versions of those that passed; `skipped`: why the other one did not run, or nothing."""

    runtimes: tuple[str, ...]
    skipped: str = ""


def crosscheck(folder: Path) -> Crosschecked:
    """Run the golden samples of the bundle in `folder` on tflite-runtime, where it is installed and works.

    Raises `PermanentError` when they fail there; that they pass on the runtime of this process is taken as known.
    """
    here = runtime_profile()["runtime"]
    if importlib.util.find_spec("tflite_runtime") is None:
        return Crosschecked((here,), f"{OTHER} is not installed")
    other = f"{OTHER} {version(OTHER)}"
    command = [sys.executable, "-m", "partitioner.segments.crosscheck", str(folder.resolve())]
    root = Path(__file__).parents[1]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Crosschecked((here,), f"{other} could not be asked: {error}")
    if done.returncode == WHOLE:
        return Crosschecked((here, other))
    said = (done.stdout.splitlines() or done.stderr.splitlines() or ["it stopped without a word"])[-1]
    if done.returncode == UNUSABLE:
        return Crosschecked((here,), f"{other} does not work here: {said}")
    if done.returncode < 0:
        said = f"it crashed with signal {-done.returncode}"
    raise PermanentError(f"the segments do not run on {other}: {said}")


def main(folder: Path) -> int:
    """In the process of its own: 0, or a line on stdout and one of the codes above."""
    sys.modules["ai_edge_litert"] = None  # so that it cannot be imported
    try:
        manifest = open_bundle(folder).manifest
        load_segments(folder, manifest, range(len(manifest.segments)))
    except PermanentError as error:
        print(error)
        return WRONG
    except (ImportError, SystemError) as error:  # built for another NumPy
        cause = error.__cause__ or error
        print(" ".join(str(cause).split())[:200])
        return UNUSABLE
    return WHOLE


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
