"""`make bench`: run the benchmarks, write one JSON a benchmark to `results/`, print a table of ratios.

A benchmark is a module `bench_*.py` with `run() -> Report`. `python -m bench NAME …` runs only those.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.report import Report

HERE = Path(__file__).parent


def names() -> list[str]:
    """All benchmarks."""
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def keep(name: str, report: Report, seconds: float) -> Path:
    """Write a report to `results/`, with what it was measured on."""
    path = HERE / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    body = {"benchmark": name, "at": time.strftime("%Y-%m-%d"), "took_s": round(seconds), "on": machine}
    path.write_text(json.dumps({**body, **report.as_dict()}, indent=2) + "\n")
    return path


def show(name: str, report: Report, console: Console) -> None:
    """The table of ratios: median and the spread of the repetitions."""
    table = Table("what", "unit", "ours", "baseline", "ratio", "spread", "n", title=f"{name}: {report.about}")
    for row in report.rows:
        ours, base, ratio = row.medians()
        table.add_row(
            row.what,
            row.unit,
            f"{ours:.4g}",
            "" if base is None else f"{base:.4g}",
            "" if ratio is None else f"{ratio:.2f}",
            row.spread(),
            str(len(row.ours)),
        )
    console.print(table)
    for note in report.notes:
        console.print(f"  {note}")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("benchmark", nargs="*", choices=[*names(), []], help="default: all")
    wanted = parser.parse_args().benchmark or names()
    console = Console()
    for name in wanted:
        console.rule(name)
        begun = time.monotonic()
        report = importlib.import_module(f"bench.bench_{name}").run(console)
        path = keep(name, report, time.monotonic() - begun)
        show(name, report, console)
        console.print(f"  in {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
