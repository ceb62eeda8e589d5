"""Instructions a sample on an emulated Raspberry Pi 4: of the segment alone, and of all that the agent does around it.

They repeat almost exactly, whatever else the machine does, so they can be a gate where a time cannot:
`gates/instructions.json` has the accepted figures, and `make test-device` fails when one is over them by more than its
tolerance. The least of several rounds counts: on a busy machine a round may have some turns of the main loop more. They
are no time: what an instruction takes on a board, memory and disk are not in them.

`python -m bench.bench_instructions` says where they stand, `python -m bench.bench_instructions --accept` takes new
figures as accepted; commit the file with the change that they come from.
"""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from bench.report import Report
from tests import installing
from tests.device.machine import RASPBERRY_PI_4, Machine, litert, machine
from tests.fetching import Unavailable
from tests.integration.edge_support import MadeBundle, make_bundle

HERE = Path(__file__).parent
GATE = HERE / "gates" / "instructions.json"
GUEST = HERE / "instructions" / "guest.py"
PLUGIN = HERE / "instructions" / "counting.c"
DEVICE = "pi-counted"
ROUND = 100
SEGMENT = "the segment alone"
ANSWERED = "the agent: reading to answer on the device"
OFFLOADED = "the agent: reading to offload, and its answer from above"


def run(console: Console) -> Report:
    """Count, next to what is accepted."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        pi = machine(RASPBERRY_PI_4, litert(), installing.wheel(here / "wheel"), here / "pi")
        console.print(f"emulated {pi.kind.machine} on {pi.kind.cpu}")
        counted = count(pi, make_bundle(here / "bundle"), here)
    report = Report("instructions a sample on an emulated aarch64 device; baseline: what is accepted")
    accepted = _gate()["accepted"]
    for what, figures in counted.items():
        row = report.row(what, "instructions")
        row.ours, row.baseline = figures, [float(accepted.get(what, 0))] * len(figures)
    report.notes = judge(counted) or ["all within the gate"]
    return report


def count(pi: Machine, made: MadeBundle, folder: Path) -> dict[str, list[float]]:
    """Instructions a sample, one figure a round. Raises `Unavailable` where this machine cannot count."""
    plugin = _plugin(folder)
    counted = {SEGMENT: _marks(pi, plugin, folder, made, range(len(made.samples)), "segment", {})}
    for what, which in ((ANSWERED, made.easy), (OFFLOADED, made.hard)):
        data = folder / f"data-{'easy' if which is made.easy else 'hard'}"
        shutil.copytree(made.folder, data / "bundles" / made.digest)
        settings = {
            "EDGE_DEVICE_ID": DEVICE,
            "EDGE_PUBLIC_KEYS": json.dumps([made.public_key]),
            "EDGE_DATA": str(data),
            "EDGE_AUDIT_SHARE": "0",  # it is drawn by lot
        }
        whole = _marks(pi, plugin, folder, made, which, "agent", settings)
        counted[what] = [figure - min(counted[SEGMENT]) for figure in whole]
    return counted


def judge(counted: dict[str, list[float]]) -> list[str]:
    """A line for each figure that is over what is accepted by more than the tolerance, or was never accepted."""
    gate = _gate()
    wrong = []
    for what, figures in counted.items():
        figure, accepted = min(figures), gate["accepted"].get(what)
        if accepted is None:
            wrong.append(f"{what}: {figure:.0f} instructions a sample, and no figure is accepted for it")
        elif figure > accepted * (1 + gate["tolerance"]):
            wrong.append(
                f"{what}: {figure:.0f} instructions a sample, {figure / accepted - 1:+.1%} of the accepted "
                f"{accepted} (tolerance {gate['tolerance']:.0%}); if that is the price of something wanted: "
                "python -m bench.bench_instructions --accept"
            )
    return wrong


def accept(counted: dict[str, list[float]]) -> None:
    """Make these the accepted figures."""
    gate = _gate() | {"accepted": {what: round(min(figures)) for what, figures in counted.items()}}
    GATE.write_text(json.dumps(gate, indent=2) + "\n")


def _gate() -> dict[str, Any]:
    gate: dict[str, Any] = json.loads(GATE.read_text())
    return gate


def _plugin(folder: Path) -> Path:
    """The plugin, compiled."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Unavailable(
            "instructions are counted by a plugin in C, and there is no compiler: install the package gcc"
        )
    plugin = folder / "counting.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(plugin), str(PLUGIN)], check=True
    )
    return plugin


def _marks(
    pi: Machine,
    plugin: Path,
    folder: Path,
    made: MadeBundle,
    which: Sequence[int],
    what: str,
    settings: dict[str, str],
) -> list[float]:
    """Instructions a sample between the marks of one run of `guest.py`."""
    np.save(folder / "samples.npy", made.samples[list(which)])
    desired = base64.b64encode(made.desired(DEVICE)).decode()
    told = {"QEMU_PLUGIN": str(plugin), "PYTHONHASHSEED": "0", **settings}
    done = pi.run(
        str(GUEST), what, str(made.folder), str(folder / "samples.npy"), desired, DEVICE, settings=told, timeout_s=600
    )
    if "plugin" in done.stderr and done.returncode:
        raise Unavailable(f"this emulator takes no plugin of version 1: {done.stderr.splitlines()[0]}")
    marks = [int(found) for found in re.findall(r"^mark \d+ (\d+)$", done.stderr, re.MULTILINE)]
    if done.returncode or len(marks) < 2:
        raise RuntimeError(f"counting {what} ended with {done.returncode}: {done.stderr[-2000:]}")
    return [(after - before) / ROUND for before, after in itertools.pairwise(marks)]


def main() -> None:
    """Count and tell; with `--accept` keep the figures."""
    report = run(Console())
    for row in report.rows:
        print(f"{row.what}: {min(row.ours):.0f} ({row.ours})")
    if "--accept" in sys.argv[1:]:
        accept({row.what: row.ours for row in report.rows})
        print(f"accepted: {GATE.relative_to(HERE.parent)}")
    else:
        print(*report.notes, sep="\n")


if __name__ == "__main__":
    main()
