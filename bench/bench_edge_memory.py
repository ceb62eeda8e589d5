"""Resident memory of the agent in an environment made by `pip install .[edge]` alone, its segment loaded.

The measuring is that of `tests/integration/test_edge_environment.py`, which makes the environment, runs the agent on
real Mosquitto and checks the limit of 100 MB; here its figures become a report.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from bench.report import Report

ROOT = Path(__file__).parents[1]
REPETITIONS = 3


def run(console: Console) -> Report:
    """Measure."""
    report = Report("edge agent in its own environment, resident memory (limit 100 MB)")
    test = ["tests/integration/test_edge_environment.py", "-q", "-k", "less_than_100_mb"]
    for repetition in range(REPETITIONS):
        console.print(f"repetition {repetition + 1} of {REPETITIONS}")
        subprocess.run([sys.executable, "-m", "pytest", *test], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        figures = json.loads((ROOT / "build" / "edge-memory.json").read_text())
        report.row("segment loaded", "MB").ours.append(figures["segment_loaded_rss_mb"])
        report.row(f"after {figures['readings']} readings", "MB").ours.append(figures["after_readings_rss_mb"])
        report.notes = [f"{name}: {value}" for name, value in figures["profile"].items()]
    return report
