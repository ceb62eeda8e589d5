"""`sluice edge-agent`: the daemon on the device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def edge_agent(
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
) -> None:
    """Run the agent on this device: sensor readings in, answers out."""
    from edge_agent.agent import Agent
    from edge_agent.settings import EdgeSettings
    from sluice.daemon.life import run
    from sluice.daemon.settings import load

    settings = load(EdgeSettings, config)
    raise typer.Exit(run("edge-agent", settings, lambda stop: Agent(settings).run(stop)))
