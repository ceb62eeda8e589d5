"""`sluice edge-agent`: the daemon on the device."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edge_agent.settings import EdgeSettings


def edge_agent(
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
    check: Annotated[bool, typer.Option(help="Only look whether everything is there, and say what is not.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="What --check found, for scripts.")] = False,
) -> None:
    """Run the agent on this device: sensor readings in, answers out."""
    from edge_agent.agent import serve
    from edge_agent.settings import EdgeSettings
    from sluice.daemon.settings import load

    settings = load(EdgeSettings, config)
    if check:
        raise typer.Exit(_check(settings, as_json))
    raise typer.Exit(serve(settings))


def _check(settings: EdgeSettings, as_json: bool) -> int:
    """Look, tell, and return the exit code: 0 if all is right."""
    from edge_agent.check import check

    found = check(settings)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found]))
    else:
        for one in found:
            typer.echo(f"{'ok   ' if one.right else 'WRONG'}  {one.what}: {one.said}")
    return 0 if all(one.right for one in found) else 2
