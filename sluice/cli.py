"""The `sluice` command: finds each room's commands by their entry points and loads one only when it is called.

An error that Sluice raises on purpose ends a command in one line on standard error with exit code 2; a room that is
not installed is named with the extra that brings it.
"""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sluice.wire.errors import SluiceError

GROUP = "sluice.commands"

EXTRA_OF = {
    "cloud": "cloud",
    "edge_agent": "edge",
    "gateway": "gateway",
    "partitioner": "partitioner",
    "sluice.stage.profile": "edge",
    "sluice.stage": "stage",
    "sluice.dev": "demo",
    "sluice.commands": "client",
    "sluice.streams": "client",
    "sluice.letters": "client",
}
"""Which extra installs what a command's module needs, by the beginning of the module's name."""


class Commands(TyperGroup):
    """All commands that are registered under the entry point group `sluice.commands`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all commands."""
        del ctx
        return sorted(entry.name for entry in entry_points(group=GROUP))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Load one command; None if there is none of that name."""
        del ctx
        for entry in entry_points(group=GROUP, name=cmd_name):
            return _load(entry)
        return None


def _load(entry: EntryPoint) -> Any:
    loaded = entry.load()
    app = loaded
    if not isinstance(loaded, typer.Typer):
        app = typer.Typer(add_completion=False)
        app.command()(loaded)
    command = typer.main.get_command(app)
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


app = typer.Typer(
    cls=Commands, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)


def _version(wanted: bool) -> None:
    if wanted:
        print(version("sluice"))
        raise typer.Exit


@app.callback()
def sluice(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Split inference for IoT: train, cut, deploy, and run a multi-exit network from the device to the cloud."""
    del version


def main() -> None:
    """The entry point of the console script."""
    try:
        app()
    except SluiceError as error:
        print(f"sluice: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        extra = _extra_for(error)
        if extra is None:
            raise
        print(f"sluice: {error.name} is not installed: pip install 'sluice[{extra}]'", file=sys.stderr)
        sys.exit(2)
