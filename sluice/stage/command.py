"""`sluice stage`: a fog or cloud stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def stage(
    tier: Annotated[str | None, typer.Option(help="fog or cloud.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
) -> None:
    """Work on the offloads of one tier: run its segments, answer or send on."""
    from sluice.daemon.life import run
    from sluice.daemon.settings import load
    from sluice.stage.settings import StageSettings
    from sluice.stage.worker import Worker

    settings = load(StageSettings, config, tier=tier)
    raise typer.Exit(run("stage", settings, lambda stop: Worker(settings).run(stop)))
