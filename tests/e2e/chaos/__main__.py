"""`python -m tests.e2e.chaos`: one run with the given seed; exit code 0 only if every promise was kept."""

from __future__ import annotations

import argparse
import sys

from sluice.dev.processes import end_on_signals
from tests.e2e.chaos.run import Options, run
from tests.fetching import Unavailable


def main() -> int:
    """Read the options, run, and say how it ended."""
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--delivery", choices=("exactly-once", "at-least-once"), default="exactly-once")
    parser.add_argument("--rate", type=float, default=25.0, help="samples a second, both devices together")
    parser.add_argument(
        "--only", nargs="*", default=[], help="kinds of faults or kind:target, each once; else all kinds"
    )
    given = parser.parse_args()
    only = [tuple(one.split(":", 1)) for one in given.only]
    end_on_signals()
    options = Options(given.seed, given.faults, given.samples, given.delivery, given.rate, only)
    try:
        verdict = run(options, lambda text: print(text, flush=True))
    except Unavailable as missing:
        print(f"chaos cannot run: {missing}")
        return 2
    return 1 if verdict.broken else 0


if __name__ == "__main__":
    sys.exit(main())
