"""Daily commands over the REST API: `sluice train`, `evaluate`, `rollout`, `devices`, `results`, `accuracy`, and more.

Where the service is and the token come from `--url` and `--token`, or from `SLUICE_URL` and `SLUICE_TOKEN`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sluice.wire.errors import PermanentError, TemporaryError

if TYPE_CHECKING:
    from sluice.client import Client

Url = Annotated[str | None, typer.Option("--url", help="Where the control plane is; else SLUICE_URL.")]
Token = Annotated[str | None, typer.Option("--token", help="An admin token; better in SLUICE_TOKEN.")]
AsJson = Annotated[bool, typer.Option("--json", help="For scripts.")]

WATCH_S = 1.0
ROLLOUT_S = 120.0
STREAM_S = 10.0
PROFILE_S = 120.0
TRAINING, BUNDLE = re.compile(r"training-[0-9a-f]{12}"), re.compile(r"[0-9a-f]{64}")
COUNTED = {
    "records": "records",
    "unlabelled": "of them without a label",
    "bad": "that could not be read",
    "lost": "lost to retention",
}
ROUNDS = 3
"""Of pseudo-labels, where it is not said."""


def _client(url: str | None, token: str | None) -> Client:
    from sluice.client import Client
    from sluice.client_settings import ClientSettings
    from sluice.daemon.settings import load

    settings = load(ClientSettings, url=url, token=token)
    return Client(settings.url, settings.token, settings.cloud_ca)


def _show(title: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*title)
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    Console().print(table)


def _follow(
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


def _waiting(what: str, wait: Callable[[], dict[str, Any]], quiet: bool) -> dict[str, Any]:
    """Wait for something whose end nobody knows, with a moving bar on standard error, or without one."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=quiet) as bar:
        bar.add_task(what, total=None)
        return wait()


def _follow_rollout(client: Client, begun: dict[str, Any], timeout_s: float, quiet: bool) -> dict[str, Any]:
    """Wait until no device is pending, with a progress bar on standard error, or without one."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=quiet) as bar:
        task = bar.add_task("devices", total=len(begun["devices"]))

        def change(rollout: dict[str, Any]) -> None:
            bar.update(task, completed=sum(d["state"] != "pending" for d in rollout["devices"]))

        return client.wait_for_rollout(begun["id"], timeout_s, change)


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
    with _client(url, token) as client:
        if source is not None and source.suffix == ".keras":
            client.upload_model(models[0], source)
        elif source is not None:
            client.add_model(models[0], source.read_text())
        client.stream(stream, wait_s=STREAM_S)  # what was just sent is known a moment later
        if len(models) > 1:
            _compare(client, models, stream, settings, as_json)
            return
        started = client.train(models[0], stream, **settings)["id"]
        done = _follow("training", lambda change: client.wait_for_training(started, change), as_json)
        result: dict[str, Any] = {"training": done["id"], "metrics": done["result"].get("metrics", {})}
        if done["result"].get("rounds"):
            result["rounds"] = done["result"]["rounds"]
        if cut is not False:
            begun = client.partition(started, **wanted)["id"]
            cut_done = _follow("partition", lambda change: client.wait_for_partition(begun, change), as_json)
            result |= {"partition": begun, "bundle": cut_done["bundle"]}
    if as_json:
        print(json.dumps(result))
        return
    _show(("exit", "metrics"), [(name, _numbers(values)) for name, values in result["metrics"].items()])
    if "rounds" in result:
        rows = [(r["round"], r["labelled"], _short(r["gain"]), "kept" if r["kept"] else "") for r in result["rounds"]]
        _show(("round", "labelled", "gain in validation accuracy", ""), rows)
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
    _show(("model", "exit", "accuracy", "validation", "loss", "seconds", "training"), _compared(ended))
    print(f"comparison {started['comparison']}")


def _compared(trainings: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """A row for each exit of each training, or one that says why there is none."""
    found: list[tuple[Any, ...]] = []
    for one in trainings:
        name, result = f"{one['model']} {one['version']}", one["result"] or {}
        if one["state"] != "done":
            found.append((name, None, f"{one['state']}: {one['reason']}", None, None, None, one["id"]))
        for number, (exit_name, values) in enumerate(result.get("metrics", {}).items()):
            shown = [_short(values.get(key)) for key in ("accuracy", "val_accuracy", "val_loss")]
            last = (None, None) if number else (_short(result.get("seconds")), one["id"])
            found.append((None if number else name, exit_name, *shown, *last))
    return found


def _short(number: Any) -> str | None:
    return f"{number:.4g}" if isinstance(number, int | float) else None


def _numbers(values: Any) -> str:
    if not isinstance(values, dict):
        return str(values)
    return "  ".join(f"{name} {number:.4g}" for name, number in values.items() if isinstance(number, int | float))


def evaluate(
    model: Annotated[
        str, typer.Argument(help="Name of the model, id of a training whose result is meant, or digest of a bundle.")
    ],
    stream: Annotated[str, typer.Argument(help="Id of the data stream.")],
    version: Annotated[int | None, typer.Option(min=1, help="Of the model; the newest by default.")] = None,
    operating_point: Annotated[str, typer.Option(help="Of the bundle.")] = "default",
    piece: Annotated[
        list[str] | None, typer.Option("--slice", help="Only this one, topic:partition:offset:length; may be repeated.")
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="The stream's topics as they grow, not what was announced.")
    ] = False,
    group: Annotated[
        str | None, typer.Option(help="With --live: consumer group that goes on where it stopped.")
    ] = None,
    timeout_s: Annotated[
        float | None, typer.Option(help="With --live: done when nothing came for so long; 0: never. Default: 30.")
    ] = None,
    records: Annotated[int | None, typer.Option(min=1, help="With --live: done after so many records.")] = None,
    new_only: Annotated[bool, typer.Option("--new-only", help="With --live: only what comes from now on.")] = False,
    bad_most: Annotated[int | None, typer.Option(min=0, help="So many bad records are left out.")] = None,
    wait: Annotated[bool, typer.Option(help="Wait until it is done.")] = True,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Count how right a trained model is on a stream: loss, accuracy and confusion of each exit, each record once."""
    settings: dict[str, Any] = {"slices": piece} if piece else {}
    if live:
        asked = {"group": group, "timeout_s": timeout_s, "records": records}
        settings["live"] = {name: value for name, value in asked.items() if value is not None}
        settings["live"] |= {"from_beginning": not new_only} | ({"timeout_s": None} if timeout_s == 0 else {})
    elif group or timeout_s is not None or records or new_only:
        raise PermanentError("--group, --timeout-s, --records and --new-only say how to read with --live")
    if bad_most is not None:
        settings["bad_most"] = bad_most
    which: dict[str, Any] = {"model": model, "version": version}
    if TRAINING.fullmatch(model):
        which = {"training": model}
    elif BUNDLE.fullmatch(model):
        which = {"bundle": model, "operating_point": operating_point}
    with _client(url, token) as client:
        client.stream(stream, wait_s=STREAM_S)
        found = client.evaluate(stream, **which, **settings)
        if wait:
            started = found["id"]
            found = _follow("evaluation", lambda change: client.wait_for_evaluation(started, change), as_json)
    result = found["result"] or {}
    if as_json:
        print(json.dumps({"evaluation": found["id"], "state": found["state"], **result}))
        return
    if result:
        rows = [
            (name, *(_short(values[key]) for key in ("accuracy", "loss"))) for name, values in result["metrics"].items()
        ]
        shares = result.get("exit_share", {})
        _show(("exit", "accuracy", "loss", "answers"), [(*row, _short(shares.get(row[0]))) for row in rows])
        print(
            ", ".join(f"{result[name]} {said}" for name, said in COUNTED.items() if result[name] or name == "records")
        )
    print(f"evaluation {found['id']}")


def rollout(
    bundle: Annotated[str, typer.Argument(help="Digest of the bundle.")],
    device: Annotated[list[str] | None, typer.Option(help="To this device; may be repeated. Default: all.")] = None,
    operating_point: Annotated[str, typer.Option(help="One that the bundle lists.")] = "default",
    errors_most: Annotated[
        float | None, typer.Option(help="Bound: largest share of samples that cannot be worked on.")
    ] = None,
    latency_p95_most_ms: Annotated[
        float | None, typer.Option(help="Bound: largest 95th percentile of the device's own processing of a sample.")
    ] = None,
    exit_share_least: Annotated[
        float | None, typer.Option(help="Bound: least share of samples that are answered on the device.")
    ] = None,
    exit_share_most: Annotated[float | None, typer.Option(help="Bound: largest such share.")] = None,
    samples: Annotated[int | None, typer.Option(help="Samples that bounds are judged over.")] = None,
    watch_s: Annotated[
        float | None, typer.Option(help="How long bounds are watched, in seconds. Default: as long as it runs.")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until all devices have answered.")] = True,
    timeout_s: Annotated[float, typer.Option(help="Longest wait in seconds.")] = ROLLOUT_S,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Bring a bundle to devices, or move them to another of its operating points.

    A device that leaves a bound goes back by itself to what it ran before, and then counts as failed.
    """
    given: dict[str, Any] = {
        "errors_most": errors_most,
        "latency_p95_most_ms": latency_p95_most_ms,
        "exit_share_least": exit_share_least,
        "exit_share_most": exit_share_most,
        "samples": samples,
        "watch_s": watch_s,
    }
    bounds = {name: value for name, value in given.items() if value is not None}
    with _client(url, token) as client:
        begun = client.roll_out(bundle, device or "all", operating_point, bounds or None)
        if wait:
            begun = _follow_rollout(client, begun, timeout_s, as_json)
    if as_json:
        print(json.dumps(begun))
    else:
        rows = [(d["device_id"], d["revision"], d["state"], d["last_error"]) for d in begun["devices"]]
        _show(("device", "revision", "state", "error"), rows)
    failed = [d["device_id"] for d in begun["devices"] if d["state"] == "failed"]
    if failed:
        raise PermanentError(f"these devices could not do it: {', '.join(failed)}")


devices = typer.Typer(add_completion=False, help="Show the devices, or register one.")


@devices.callback(invoke_without_command=True)
def list_devices(context: typer.Context, as_json: AsJson = False, url: Url = None, token: Token = None) -> None:
    """Show the devices: whether they are there, what they run, what went wrong last."""
    if context.invoked_subcommand is not None:
        return
    with _client(url, token) as client:
        found = client.devices()
    if as_json:
        print(json.dumps(found))
        return
    rows = []
    for device in found:
        reported = device["reported"] or {}
        name, status, last = device["device_id"], device["status"], reported.get("last_error")
        told = [
            (run["model"], (run.get("bundle") or "")[:12], run.get("operating_point"), run.get("error"))
            for run in reported.get("runs", ())
        ]
        for model, bundle, point, error in told or [(None, None, None, None)]:
            rows.append((name, status, model, bundle, point, error or last))
            name = status = last = None  # once for a device
    _show(("device", "status", "model", "bundle", "operating point", "error"), rows)


@devices.command("add")
def add_device(
    name: Annotated[str, typer.Argument(help="The device's name.")],
    out: Annotated[Path | None, typer.Option(help="Write the device's settings here (TOML).")] = None,
    url: Url = None,
    token: Token = None,
) -> None:
    """Register a device, and write what it has to know of us: its name, its token, the keys that it shall trust."""
    if out is not None and out.exists():
        raise PermanentError(f"{out} is there already: name another file")
    with _client(url, token) as client:
        made = client.add_device(name)
    keys = ", ".join(json.dumps(key) for key in made["public_keys"])
    text = f'device_id = "{made["device_id"]}"\ntoken = "{made["token"]}"\npublic_keys = [{keys}]\n'
    if out is None:
        print(text, end="")
        return
    out.touch(mode=0o600)
    out.write_text(text)
    print(f"settings of {name} are in {out}")


@devices.command("take-off")
def take_off(
    name: Annotated[str, typer.Argument(help="The device's name.")],
    model: Annotated[str, typer.Argument(help="The model that it shall run no longer.")],
    url: Url = None,
    token: Token = None,
) -> None:
    """Take a model off a device; its other models go on. A rollout brings it again."""
    with _client(url, token) as client:
        client.take_off(name, model)
    print(f"{name} is told to run {model} no longer")


@devices.command("profile")
def profile_device(
    name: Annotated[str, typer.Argument(help="The device's name.")],
    out: Annotated[
        Path | None, typer.Option(help="Write the profile here; `sluice partition --device` reads it.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Of this model, if it runs several.")] = None,
    timeout_s: Annotated[float, typer.Option(help="Longest wait in seconds.")] = PROFILE_S,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Tell a device to measure the segments that it runs, and show what it found."""
    from sluice.stage.command import tell_profile
    from sluice.wire.profile import Profile

    with _client(url, token) as client:
        asked = client.request_profile(name, model)
        found = _waiting(f"{name} measures", lambda: client.wait_for_profile(asked, timeout_s), as_json)
    tell_profile(Profile.model_validate(found), out, as_json)


def results(
    device: Annotated[str | None, typer.Option(help="Of this device only.")] = None,
    model: Annotated[str | None, typer.Option(help="Of this model only.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """How many samples were answered, by tier, status, reason, model and device; and whether early exits still hold."""
    with _client(url, token) as client:
        found = client.summary(device=device, model=model)
        audits = client.audits(device=device, model=model)
        certificates = client.certificates(model=model)
    if as_json:
        print(json.dumps(found | {"audits": audits, "certificates": certificates}))
        return
    total = found["total"]
    rows: list[tuple[Any, ...]] = [("all", "", total, "")]
    for by in ("tier", "status", "reason", "model", "device"):
        rows += [(by, name, count, f"{count / total:.1%}") for name, count in found[f"by_{by}"].items()]
    _show(("by", "", "samples", "share"), rows)
    print(f"{found['records']} predictions on the topic, {found['repeats']} of them repeats")
    if audits:
        rows = [
            (a["model"], f"{a['bundle'][:12]}…", a["exit"], a["audited"], a["agreeing"], _percent(a)) for a in audits
        ]
        _show(("model", "bundle", "exit", "audited", "as the final exit", "share (95 % interval)"), rows)
    for one in certificates:
        print(_in_words(one))


def _in_words(certificate: dict[str, Any]) -> str:
    """A certificate in one plain line: what was promised, and whether audits say that it is kept."""
    from datetime import UTC, datetime

    c = certificate
    which = f"bundle {c['bundle'][:12]}… at {c['operating_point']}"
    promise = f"its promise to harm at most {c['epsilon']:.2%}"
    seen = f"{c['harmed']} of {c['audits']} audits disagree with the final exit"
    since = "" if c["since"] is None else f"{datetime.fromtimestamp(c['since'] / 1e6, UTC):%Y-%m-%d %H:%M} UTC"
    if c["state"] == "does not hold":
        return f"{which} DOES NOT KEEP {promise}, known since {since}: {seen}; cut or train it anew"
    if c["state"] == "holds":
        return f"{which} keeps {promise}, shown by {since}: {seen}"
    return f"{which}: too few audits yet to say whether it keeps {promise}: {seen}"


def _percent(audit: dict[str, Any]) -> str:
    return f"{audit['share']:.1%} ({audit['low']:.1%} to {audit['high']:.1%})"


def accuracy(
    device: Annotated[str | None, typer.Option(help="Of this device only.")] = None,
    model: Annotated[str | None, typer.Option(help="Of this model only.")] = None,
    bundle: Annotated[str | None, typer.Option(help="Of this bundle only.")] = None,
    every_h: Annotated[float | None, typer.Option(min=1 / 60, help="Over time: a row for each so many hours.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """How many answers were right, by bundle, tier and exit, as far as somebody told (`sluice label`)."""
    from datetime import UTC, datetime

    every_s = None if every_h is None else round(every_h * 3600)
    with _client(url, token) as client:
        found = client.accuracy(device=device, model=model, bundle=bundle, every_s=every_s)
    if as_json:
        print(json.dumps(found))
        return
    rows: list[tuple[Any, ...]] = []
    for row in found:
        begin = "" if row["begin"] is None else f"{datetime.fromtimestamp(row['begin'] / 1e6, UTC):%Y-%m-%d %H:%M}"
        share = None if row["share"] is None else _percent(row)
        counts = (row["samples"], row["labelled"], row["right"], row["unknown"] or None)
        rows.append((begin, row["model"], f"{row['bundle'][:12]}…", row["tier"], row["exit"], *counts, share))
    title = ("from (UTC)", "model", "bundle", "tier", "exit", "samples", "labelled", "right", "label unknown")
    _show((*title, "accuracy (95 % interval)"), rows)
    if not any(row["labelled"] for row in found):
        print("nobody has told what any of these samples really were: sluice label")


def label(
    device: Annotated[str | None, typer.Argument(help="The device that answered.")] = None,
    said: Annotated[str | None, typer.Argument(metavar="LABEL", help="The true class: its number or its name.")] = None,
    source_id: Annotated[str | None, typer.Option(help="Your own id of the reading.")] = None,
    sample: Annotated[str | None, typer.Option(help="Instead of it EPOCH:SEQ, as in the results.")] = None,
    model: Annotated[str | None, typer.Option(help="With --source-id: of this model's answers only.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="Many: CSV with a header (device_id, source_id or epoch and seq, label).", exists=True),
    ] = None,
    url: Url = None,
    token: Token = None,
) -> None:
    """Tell what a sample really was. A label may come before its answer, and a later one corrects it."""
    import csv

    if (file is None) == (device is None or said is None):
        raise PermanentError("give a device and a label, or a --file with many")
    if file is not None:
        with file.open(newline="") as lines:
            rows: list[dict[str, Any]] = [{k: v for k, v in row.items() if k and v} for row in csv.DictReader(lines)]
    else:
        epoch, _, seq = (sample or "").partition(":")
        given = {"device_id": device, "label": said, "source_id": source_id, "model": model, "epoch": epoch, "seq": seq}
        rows = [{name: value for name, value in given.items() if value}]
    for row in rows:
        for name in ("label", "seq", "told_at"):
            if str(row.get(name, "")).isdecimal():
                row[name] = int(row[name])
    if not rows:
        raise PermanentError(f"{file} holds no labels")
    with _client(url, token) as client:
        client.label(rows)
    print(f"{len(rows)} told")


def watch(
    device: Annotated[str | None, typer.Option(help="Of this device only.")] = None,
    model: Annotated[str | None, typer.Option(help="Of this model only.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Show predictions as they come, until Ctrl-C."""
    from datetime import UTC, datetime

    with _client(url, token) as client:
        newest = client.predictions(device=device, model=model, limit=1, newest=True)
        after, away = newest["next"], False
        try:
            while True:
                try:
                    page = client.predictions(device=device, model=model, after=after, limit=1000)
                except TemporaryError as error:
                    if not away:
                        typer.echo(f"{error}; trying again", err=True)
                    away = True
                    time.sleep(WATCH_S)
                    continue
                after, away = page["next"], False
                for row in page["predictions"]:
                    if as_json:
                        print(json.dumps(row), flush=True)
                        continue
                    at = datetime.fromtimestamp(row["recorded_at"] / 1e6, UTC).strftime("%H:%M:%S")
                    sample = f"{row['device_id']} {row['seq']}"
                    answer = f"{row['label']} ({row['confidence']:.2f})"
                    print(f"{at}  {sample}  {row['tier']}  {answer}  {row['status']} {row['reason']}", flush=True)
                if not page["predictions"]:
                    time.sleep(WATCH_S)
        except KeyboardInterrupt:
            return
