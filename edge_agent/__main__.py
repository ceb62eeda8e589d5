"""`python -m edge_agent`: the agent as a supervisor starts it, without the 3 MB of the `sluice` command."""

from __future__ import annotations

import sys
from pathlib import Path

from edge_agent.agent import serve
from edge_agent.settings import EdgeSettings
from sluice.daemon.settings import load
from sluice.wire.errors import SluiceError


def main() -> int:
    """Work until told to stop; the exit code, 2 with one line on standard error where the settings are wrong."""
    match sys.argv[1:]:
        case []:
            config = None
        case ["--config", file]:
            config = Path(file)
        case _:
            print("usage: python -m edge_agent [--config FILE]  (FILE: settings in TOML)", file=sys.stderr)
            return 2
    try:
        return serve(load(EdgeSettings, config))
    except SluiceError as error:
        print(f"edge_agent: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
