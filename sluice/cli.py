"""The `sluice` command: finds each room's commands by their entry points and loads one only when it is called.

An error that Sluice raises on purpose ends a command in one line on standard error with exit code 2; a room that is
not installed is named with the extra that brings it.
"""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click
import typer

from sluice.wire.errors import SluiceError

GROUP = "sluice.commands"

EXTRA_OF = {
    "cloud": "cloud",
    "edge_agent": "edge",
    "gateway": "gateway",
    "partitioner": "partitioner",
    "sluice.stage": "stage",
    "sluice.dev": "demo",
    "sluice.daily": "client",
    "sluice.streams": "client",
}
"""Which extra installs what a command's module needs, by the beginning of the module's name."""


class Commands(click.Group):
    """All commands that are registered under the entry point group `sluice.commands`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, without loading them."""
        del ctx
        return sorted(entry.name for entry in entry_points(group=GROUP))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one command; None if there is none of that name."""
        del ctx
        for entry in entry_points(group=GROUP, name=cmd_name):
            return _load(entry)
        return None


def _load(entry: EntryPoint) -> click.Command:
    loaded: Any = entry.load()
    app = loaded
    if not isinstance(loaded, typer.Typer):
        app = typer.Typer(add_completion=False)
        app.command()(loaded)
    command: click.Command = typer.main.get_command(app)
    command.name = entry.name
    return command


def _extra_for(error: ImportError) -> str | None:
    """The extra of the command being run, found from the modules in the traceback."""
    trace = error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        for prefix, extra in EXTRA_OF.items():
            if module == prefix or module.startswith(prefix + "."):
                return extra
        trace = trace.tb_next
    return None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sluice")
def sluice() -> None:
    """Split inference for IoT: train, cut, deploy, and run a multi-exit network from the device to the cloud."""


def main() -> None:
    """The entry point of the console script."""
    try:
        sluice()
    except SluiceError as error:
        print(f"sluice: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        extra = _extra_for(error)
        if extra is None:
            raise
        print(f"sluice: {error.name} is not installed: pip install 'sluice[{extra}]'", file=sys.stderr)
        sys.exit(2)
