"""`sluice train`: a model on a stream, cut into a bundle; or several, compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sluice.commands.terminal import AsJson, Token, Url, connect, follow, numbers, short, table
from sluice.wire.errors import PermanentError

if TYPE_CHECKING:
    from sluice.client import Client


STREAM_S = 10.0
ROUNDS = 3
"""Of pseudo-labels, where it is not said."""


def train(
    models: Annotated[
        list[str], typer.Argument(help="Name of the model, or of several to compare; without --stream then its id.")
    ],
    stream: Annotated[str | None, typer.Option(help="Id of the data stream.")] = None,
    source: Annotated[
        Path | None, typer.Option(help="Hand this in first: Python source (.py) or a .keras file.", exists=True)
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Batches in all, instead of epochs.")] = None,
    batch: Annotated[int | None, typer.Option(min=1)] = None,
    optimizer: Annotated[str | None, typer.Option(help="adam, adamw, sgd or rmsprop.")] = None,
    learning_rate: Annotated[float | None, typer.Option()] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many epochs in which the final exit got no better.")
    ] = None,
    balanced: Annotated[bool, typer.Option(help="All classes count alike, however rare.")] = False,
    pseudo_labels: Annotated[
        float | None,
        typer.Option(help="Learn from records without a label too, where the model is so sure of them, such as 0.95."),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Of --pseudo-labels.")] = None,
    bad_most: Annotated[int | None, typer.Option(min=0, help="So many bad records are left out.")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    cut: Annotated[
        bool | None, typer.Option("--cut/--no-cut", help="Cut the trained model into a bundle. Default: if it is one.")
    ] = None,
    max_accuracy_loss: Annotated[
        float | None, typer.Option(help="Share of answers that may differ from the full model's.")
    ] = None,
    placement: Annotated[
        str | None, typer.Option(help="Tier of each segment, such as edge,fog,cloud, instead of a plan.")
    ] = None,
    objective: Annotated[str | None, typer.Option(help="Of the plan: latency, bytes or device-compute.")] = None,
    uplink: Annotated[str | None, typer.Option(help="The devices' link: rate and delay, as in 1Mbit/s,50ms.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Train a model on a data stream, and cut it into a bundle that `sluice rollout` can bring to devices; or train
    several and compare them."""
    if stream is None:
        *models, stream = models
    if not models or (len(models) > 1 and (source or cut)):
        raise PermanentError(
            "name one model and a stream; --source and --cut are for one model"
            if models
            else "name a model and a stream: sluice train MODEL --stream ID"
        )
    given: dict[str, Any] = {
        "epochs": epochs,
        "steps": steps,
        "batch": batch,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "early_stopping": {"patience": patience} if patience else None,
        "class_weights": "balanced" if balanced else None,
        "pseudo_labels": {"confidence": pseudo_labels, "rounds": rounds or ROUNDS} if pseudo_labels else None,
        "bad_most": bad_most,
        "seed": seed,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    cutting: dict[str, Any] = {
        "max_accuracy_loss": max_accuracy_loss,
        "placement": placement.split(",") if placement else None,
        "objective": objective,
        "uplink": uplink,
    }
    wanted = {name: value for name, value in cutting.items() if value is not None}
    with connect(url, token) as client:
        if source is not None and source.suffix == ".keras":
            client.upload_model(models[0], source)
        elif source is not None:
            client.add_model(models[0], source.read_text())
        client.stream(stream, wait_s=STREAM_S)  # what was just sent is known a moment later
        if len(models) > 1:
            _compare(client, models, stream, settings, as_json)
            return
        started = client.train(models[0], stream, **settings)["id"]
        done = follow("training", lambda change: client.wait_for_training(started, change), as_json)
        result: dict[str, Any] = {"training": done["id"], "metrics": done["result"].get("metrics", {})}
        if done["result"].get("rounds"):
            result["rounds"] = done["result"]["rounds"]
        if cut is not False:
            begun = client.partition(started, **wanted)["id"]
            cut_done = follow("partition", lambda change: client.wait_for_partition(begun, change), as_json)
            result |= {"partition": begun, "bundle": cut_done["bundle"]}
    if as_json:
        print(json.dumps(result))
        return
    table(("exit", "metrics"), [(name, numbers(values)) for name, values in result["metrics"].items()])
    if "rounds" in result:
        rows = [(r["round"], r["labelled"], short(r["gain"]), "kept" if r["kept"] else "") for r in result["rounds"]]
        table(("round", "labelled", "gain in validation accuracy", ""), rows)
    print(f"training {result['training']}" + (f"\nbundle {result['bundle']}" if "bundle" in result else ""))


def _compare(client: Client, models: list[str], stream: str, settings: dict[str, Any], as_json: bool) -> None:
    """Train several models, a bar for each, and show at the end how each exit of each does."""
    from rich.console import Console
    from rich.progress import Progress

    started = client.compare(models, stream, **settings)
    with Progress(console=Console(stderr=True), disable=as_json) as bar:
        tasks = {one["id"]: bar.add_task(one["model"], total=None) for one in started["trainings"]}

        def change(job: dict[str, Any]) -> None:
            if job["metrics"]:
                last = job["metrics"][-1]
                bar.update(tasks[job["id"]], completed=last["epoch"], total=last["epochs"])

        ended = client.wait_for_comparison(started, change)
    if as_json:
        kept = ("id", "model", "version", "state", "reason", "result")
        print(json.dumps({"comparison": started["comparison"], "trainings": [{k: t[k] for k in kept} for t in ended]}))
        return
    table(("model", "exit", "accuracy", "validation", "loss", "seconds", "training"), compared(ended))
    print(f"comparison {started['comparison']}")


def compared(trainings: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """A row for each exit of each training, or one that says why there is none."""
    found: list[tuple[Any, ...]] = []
    for one in trainings:
        name, result = f"{one['model']} {one['version']}", one["result"] or {}
        if one["state"] != "done":
            found.append((name, None, f"{one['state']}: {one['reason']}", None, None, None, one["id"]))
        for number, (exit_name, values) in enumerate(result.get("metrics", {}).items()):
            shown = [short(values.get(key)) for key in ("accuracy", "val_accuracy", "val_loss")]
            last = (None, None) if number else (short(result.get("seconds")), one["id"])
            found.append((None if number else name, exit_name, *shown, *last))
    return found
