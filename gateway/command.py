"""`sluice gateway`: the bridge between MQTT and Kafka."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def gateway(
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
) -> None:
    """Carry outcomes from MQTT to Kafka, and receipts, answers and desired state back."""
    from gateway.bridge import run as bridge
    from gateway.settings import GatewaySettings
    from sluice.daemon.life import run
    from sluice.daemon.settings import load

    settings = load(GatewaySettings, config)
    raise typer.Exit(run("gateway", settings, lambda stop: bridge(settings, stop)))
