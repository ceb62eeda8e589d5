"""`sluice trainings`: look at trainings over the REST API: their curves as they come, side by side, what they printed;
end one, and fetch what it made."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sluice.commands.terminal import AsJson, Token, Url, connect, short, table
from sluice.commands.train import compared
from sluice.wire.errors import PermanentError

if TYPE_CHECKING:
    from rich.console import Group

LOOK_S = 1.0
NEWEST = 20
MOST_CLASSES = 12
"""A confusion matrix of more is not shown in a terminal."""

trainings = typer.Typer(add_completion=False, help="Show trainings and their curves, compare, end or fetch them.")

Id = Annotated[str, typer.Argument(help="Id of the training.")]


@trainings.callback(invoke_without_command=True)
def list_trainings(context: typer.Context, as_json: AsJson = False, url: Url = None, token: Token = None) -> None:
    """Show the newest trainings: what is trained on what, how far it is, how well it does."""
    if context.invoked_subcommand is not None:
        return
    with connect(url, token) as client:
        found = client.trainings()
    if as_json:
        print(json.dumps(found))
        return
    rows = []
    for one in found[:NEWEST]:
        last = one["metrics"][-1] if one["metrics"] else {}
        epoch = f"{last['epoch']}/{last['epochs']}" if last else None
        final = _last_of(last.get("metrics", {}))
        rows.append((one["id"], _model(one), one["stream_id"], one["state"], epoch, *_both(final), one["reason"]))
    table(("training", "model", "stream", "state", "epoch", "accuracy", "validation", "reason"), rows)


def _model(training: dict[str, Any]) -> str:
    return f"{training['model']} {training['version']}"


def _last_of(metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Those of the final exit, which is told last."""
    return list(metrics.values())[-1] if metrics else {}


def _both(metrics: dict[str, Any]) -> tuple[str | None, str | None]:
    return short(metrics.get("accuracy")), short(metrics.get("val_accuracy"))


@trainings.command("show")
def show(
    training: Id,
    metric: Annotated[str, typer.Option(help="What is drawn: accuracy, loss or top_k.")] = "accuracy",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it has ended.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Show a training: its curves by exit, and in the end what each exit takes for what."""
    from rich.console import Console
    from rich.live import Live

    with connect(url, token) as client:
        found = client.training(training)
        if as_json:
            print(json.dumps(found))
            return
        console = Console()
        if follow and found["state"] in ("queued", "running"):
            with Live(drawn(found, metric), console=console, auto_refresh=False) as live:
                while found["state"] in ("queued", "running"):
                    time.sleep(LOOK_S)
                    found = client.training(training)
                    live.update(drawn(found, metric), refresh=True)
        else:
            console.print(drawn(found, metric))
    for name, told in ((found["result"] or {}).get("confusion") or {}).items():
        _show_confusion(console, name, told)


def drawn(training: dict[str, Any], metric: str = "accuracy") -> Group:
    """A training as it stands: one line, and `metric` by exit over the epochs, on training and validation part."""
    from rich.console import Group
    from rich.text import Text

    from sluice.commands.curves import chart

    metrics = training["metrics"]
    head = (
        f"{training['id']}  {training['model']} {training['version']} on {training['stream_id']}: {training['state']}"
    )
    if training["reason"]:
        head += f", {training['reason']}"
    elif metrics:
        head += f", epoch {metrics[-1]['epoch']} of {metrics[-1]['epochs']}"
    elif progress := training["progress"]:
        head += f", {progress['what']} {progress['done']}/{progress['total']}"
    curves = {
        f"{exit_name} {part}": [_number(one["metrics"].get(exit_name, {}).get(prefix + metric)) for one in metrics]
        for exit_name in (metrics[0]["metrics"] if metrics else {})
        for prefix, part in (("", "training"), ("val_", "validation"))
    }
    return Group(Text(head), Text(metric), chart(curves))


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _show_confusion(console: Any, name: str, told: dict[str, Any]) -> None:
    from rich.table import Table

    matrix = told.get("matrix")
    if not matrix or len(matrix) > MOST_CLASSES:
        console.print(f"exit {name}: too many classes to show what it takes for what; --json has it")
        return
    table = Table(f"exit {name}: true, answered", *map(str, range(len(matrix))), "recall")
    for label, counts in enumerate(matrix):
        share = counts[label] / sum(counts) if any(counts) else None
        table.add_row(str(label), *map(str, counts), short(share) or "")
    console.print(table)


@trainings.command("compare")
def compare(
    which: Annotated[list[str], typer.Argument(help="Ids of trainings, or of a comparison.")],
    metric: Annotated[str, typer.Option(help="What is drawn: accuracy, loss or top_k.")] = "accuracy",
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Show trainings side by side: a table of all exits, and the final exit of each over the epochs."""
    from rich.console import Console

    from sluice.commands.curves import chart

    with connect(url, token) as client:
        found = [
            one
            for name in which
            for one in (reversed(client.trainings(name)) if name.startswith("comparison-") else [client.training(name)])
        ]
    if not found:
        raise PermanentError(f"there is no comparison {', '.join(which)}")
    if as_json:
        print(json.dumps(found))
        return
    table(("model", "exit", "accuracy", "validation", "loss", "seconds", "training"), compared(found))
    Console().print(
        chart({f"{one['model']} {one['version']}, {one['id']}": list(_final(one, metric)) for one in found})
    )


def _final(training: dict[str, Any], metric: str) -> Iterator[float | None]:
    """The metric of the final exit after each epoch."""
    for one in training["metrics"]:
        final = _last_of(one["metrics"])
        yield _number(final.get(f"val_{metric}", final.get(metric)))


@trainings.command("log")
def log(training: Id, url: Url = None, token: Token = None) -> None:
    """Print what a training's job printed."""
    with connect(url, token) as client:
        print(client.training_log(training), end="")


@trainings.command("cancel")
def cancel(training: Id, url: Url = None, token: Token = None) -> None:
    """End a training that waits or runs."""
    with connect(url, token) as client:
        print(f"{training} is told to end; it was {client.cancel_training(training)['state']}")


@trainings.command("download")
def download(
    training: Id,
    out: Annotated[Path, typer.Argument(help="The .keras file to write.")],
    url: Url = None,
    token: Token = None,
) -> None:
    """Fetch the trained model as a `.keras` file."""
    if out.exists():
        raise PermanentError(f"{out} is there already: name another file")
    with connect(url, token) as client:
        out.write_bytes(client.trained_model(training))
    print(f"the model of {training} is in {out}")
