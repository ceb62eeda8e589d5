"""`sluice online`: a model learns on from a live stream, for a while or for ever; its candidates become versions.

The job runs in the control plane. This command begins it and shows how it does; when it is stopped the job goes on,
until `sluice online finish` or `cancel`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from sluice.commands.terminal import AsJson, Token, Url, connect

STREAM_S = 10.0

online = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Learn on from a live stream, and see how that goes."
)


@online.command("start")
def start(
    stream: Annotated[str, typer.Argument(help="Id of the announced stream whose topics are read on.")],
    model: Annotated[str | None, typer.Option(help="Begin from the newest version of this model.")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Or from this one.")] = None,
    training: Annotated[str | None, typer.Option(help="Begin from what this training made.")] = None,
    topic: Annotated[list[str] | None, typer.Option(help="Read this topic instead; may be repeated.")] = None,
    begin: Annotated[
        str | None, typer.Option(help="after (what was announced; the default), beginning, or end (what comes now).")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1)] = None,
    replay: Annotated[int | None, typer.Option(min=0, help="Samples of the past in each update.")] = None,
    replay_trained_on: Annotated[
        bool | None, typer.Option(help="The past begins with what the model was trained on (the default), or empty.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option()] = None,
    timeout_s: Annotated[float | None, typer.Option(help="Done when nothing came for so long.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Done after so long.")] = None,
    records: Annotated[int | None, typer.Option(min=1, help="Done after so many records.")] = None,
    held_back: Annotated[float | None, typer.Option(help="Share that judges and certifies.")] = None,
    candidate_every_s: Annotated[float | None, typer.Option(help="Least time between two candidates.")] = None,
    bad_most: Annotated[int | None, typer.Option(min=0, help="So many bad records are left out.")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    cut: Annotated[bool, typer.Option(help="Cut candidates into bundles that can be rolled out.")] = True,
    max_accuracy_loss: Annotated[
        float | None, typer.Option(help="Of those: share of answers that may differ from the full model's.")
    ] = None,
    placement: Annotated[
        str | None, typer.Option(help="Of those: tier of each segment, such as edge,fog,cloud, instead of a plan.")
    ] = None,
    follow: Annotated[bool, typer.Option(help="Show how it goes, until Ctrl-C; the job goes on.")] = True,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Begin to learn on."""
    given: dict[str, Any] = {
        "begin": begin,
        "batch": batch,
        "replay": replay,
        "replay_trained_on": replay_trained_on,
        "learning_rate": learning_rate,
        "timeout_s": timeout_s,
        "seconds": seconds,
        "records": records,
        "held_back": held_back,
        "candidate_every_s": candidate_every_s,
        "bad_most": bad_most,
        "seed": seed,
    }
    cutting = {"max_accuracy_loss": max_accuracy_loss, "placement": placement.split(",") if placement else None}
    with connect(url, token) as client:
        client.stream(stream, wait_s=STREAM_S)
        started = client.learn_on(
            stream,
            model=model,
            version=version,
            training=training,
            topics=topic or (),
            partition={name: value for name, value in cutting.items() if value is not None},
            cut=cut,
            **{name: value for name, value in given.items() if value is not None},
        )
        if follow:
            _follow(client, started["id"], as_json)
        elif as_json:
            print(json.dumps({"online": started["id"]}))
        else:
            print(f"online job {started['id']}")


@online.command("show")
def show(
    job: Annotated[str | None, typer.Argument(help="One of them, until Ctrl-C. Default: all, once.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Show how online jobs do."""
    with connect(url, token) as client:
        if job is not None:
            _follow(client, job, as_json)
            return
        found = client.online_jobs()
    if as_json:
        print(json.dumps(found))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("job", "model", "state", "records", "accuracy of late", "drifts", "candidates", "newest bundle")
    for one in found:
        last = one["metrics"][-1] if one["metrics"] else {}
        bundle = next((c["bundle"] for c in one["candidates"] if c["bundle"]), None)
        name = f"{one['model']} {one['version']}"
        counts = (last.get("records"), _accuracy(last), last.get("drifts"), len(one["candidates"]))
        row = (one["id"], name, one["state"], *counts, bundle and bundle[:12])
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    Console().print(table)


@online.command("finish")
def finish(job: str, url: Url = None, token: Token = None) -> None:
    """Let an online job come to its end; what it has learnt is its model then."""
    with connect(url, token) as client:
        client.finish_online(job)
        print(f"{job} {client.wait_for_online(job)['state']}")


@online.command("cancel")
def cancel(job: str, url: Url = None, token: Token = None) -> None:
    """End an online job without a model; its candidates stay."""
    with connect(url, token) as client:
        print(f"{job} {client.cancel_online(job)['state']}")


def _follow(client: Any, job_id: str, as_json: bool) -> None:
    """Print what is new of a job until it has ended; raises `PermanentError` when it failed."""
    from rich.console import Console
    from rich.progress import Progress

    shown: set[tuple[Any, ...]] = set()
    with Progress(console=Console(stderr=True), transient=True, disable=as_json, redirect_stdout=False) as bar:
        task = bar.add_task("learning", total=None)

        def change(job: dict[str, Any]) -> None:
            if job["metrics"]:
                last = job["metrics"][-1]
                text = f"{last['records']} records, accuracy of late {_accuracy(last) or '?'}, lag {last['lag']}"
                bar.update(task, description=text)
            for line in _news(job):
                if line not in shown:
                    shown.add(line)
                    if not as_json:
                        print(" ".join(line), flush=True)

        try:
            done = client.wait_for_online(job_id, change)
        except KeyboardInterrupt:
            print(f"{job_id} goes on: sluice online show {job_id}, sluice online cancel {job_id}")
            return
    if as_json:
        print(json.dumps({"online": job_id, "result": done["result"], "candidates": done["candidates"]}))
        return
    result = done["result"]
    print(f"online job {job_id}: {result['records']} records, {result['drifts']} drifts")
    print("accuracy by exit, of late (in whole):")
    for name, values in result["metrics"].items():
        print(f"  {name}: {values.get('accuracy', 0):.1%} ({values['whole_accuracy']:.1%})")


def _news(job: dict[str, Any]) -> list[tuple[str, ...]]:
    """What there is to say of drifts and candidates, a line each."""
    found: list[tuple[str, ...]] = []
    for entry in job["metrics"]:
        if drift := entry.get("drift"):
            found.append((f"drift at record {drift['at']}: error {drift['before']:.1%}, since {drift['since']:.1%}",))
        if (before := entry.get("dropped")) is not None:
            found.append((f"what was kept from before record {before} is dropped",))
    for one in reversed(job["candidates"]):
        told = one["told"]
        better = f"accuracy {told.get('accuracy', 0):.1%}, before {told.get('accuracy_before', 0):.1%}"
        found.append((f"candidate {one['number']}: {better}",))
        if one["version"]:
            found.append((f"candidate {one['number']} is version {one['version']}",))
        if one["bundle"]:
            found.append((f"candidate {one['number']} is bundle {one['bundle']}",))
        if one["reason"]:
            found.append((f"candidate {one['number']}: {one['reason']}",))
    return found


def _accuracy(entry: dict[str, Any]) -> str | None:
    """Of the final exit."""
    values = list(entry.get("metrics", {}).values())
    return f"{values[-1]['accuracy']:.1%}" if values and "accuracy" in values[-1] else None
