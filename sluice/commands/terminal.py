"""What the commands share: where the service is, tables, progress bars, numbers.

Where the service is and the token come from `--url` and `--token`, or from `SLUICE_URL` and `SLUICE_TOKEN`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sluice.client import Client


Url = Annotated[str | None, typer.Option("--url", help="Where the control plane is; else SLUICE_URL.")]
Token = Annotated[str | None, typer.Option("--token", help="An admin token; better in SLUICE_TOKEN.")]
AsJson = Annotated[bool, typer.Option("--json", help="For scripts.")]


def connect(url: str | None, token: str | None) -> Client:
    """The control plane as the settings and these options say."""
    from sluice.client import Client
    from sluice.client_settings import ClientSettings
    from sluice.daemon.settings import load

    settings = load(ClientSettings, url=url, token=token)
    return Client(settings.url, settings.token, settings.cloud_ca)


def table(title: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Show rows under `title`; None is an empty cell."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(*title)
    for row in rows:
        shown.add_row(*("" if cell is None else str(cell) for cell in row))
    Console().print(shown)


def follow(
    begin: str, wait: Callable[[Callable[[dict[str, Any]], None]], dict[str, Any]], quiet: bool
) -> dict[str, Any]:
    """Wait for a job with a progress bar on standard error, or without one."""
    if quiet:
        return wait(lambda _job: None)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(begin, total=None)

        def change(job: dict[str, Any]) -> None:
            metrics, progress = job.get("metrics"), job.get("progress")
            if metrics and "epoch" in metrics[-1]:
                last = metrics[-1]
                bar.update(task, description=begin, completed=last["epoch"], total=last["epochs"])
            elif progress:
                text = f"{begin}: {progress['what']}"
                bar.update(task, description=text, completed=progress["done"], total=progress["total"])
            elif metrics:
                bar.update(task, description=f"{begin}: {metrics[-1]['records']} records")

        return wait(change)


def waiting(what: str, wait: Callable[[], dict[str, Any]], quiet: bool) -> dict[str, Any]:
    """Wait for something whose end nobody knows, with a moving bar on standard error, or without one."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=quiet) as bar:
        bar.add_task(what, total=None)
        return wait()


def short(number: Any) -> str | None:
    """A number as a table shows it; None where there is none."""
    return f"{number:.4g}" if isinstance(number, int | float) else None


def numbers(values: Any) -> str:
    """The numbers of a JSON object in one line."""
    if not isinstance(values, dict):
        return str(values)
    return "  ".join(f"{name} {number:.4g}" for name, number in values.items() if isinstance(number, int | float))
