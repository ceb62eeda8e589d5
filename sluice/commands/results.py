"""`sluice results`, `accuracy`, `label`, `watch`: what was answered, and whether it was right."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from sluice.commands.terminal import AsJson, Token, Url, connect, table
from sluice.wire.errors import PermanentError, TemporaryError

WATCH_S = 1.0


def results(
    device: Annotated[str | None, typer.Option(help="Of this device only.")] = None,
    model: Annotated[str | None, typer.Option(help="Of this model only.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """How many samples were answered, by tier, status, reason, model and device; and whether early exits still hold."""
    with connect(url, token) as client:
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
    table(("by", "", "samples", "share"), rows)
    print(f"{found['records']} predictions on the topic, {found['repeats']} of them repeats")
    if audits:
        rows = [
            (a["model"], f"{a['bundle'][:12]}…", a["exit"], a["audited"], a["agreeing"], percent(a)) for a in audits
        ]
        table(("model", "bundle", "exit", "audited", "as the final exit", "share (95 % interval)"), rows)
    for one in certificates:
        print(in_words(one))


def in_words(certificate: dict[str, Any]) -> str:
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


def percent(audit: dict[str, Any]) -> str:
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
    with connect(url, token) as client:
        found = client.accuracy(device=device, model=model, bundle=bundle, every_s=every_s)
    if as_json:
        print(json.dumps(found))
        return
    rows: list[tuple[Any, ...]] = []
    for row in found:
        begin = "" if row["begin"] is None else f"{datetime.fromtimestamp(row['begin'] / 1e6, UTC):%Y-%m-%d %H:%M}"
        share = None if row["share"] is None else percent(row)
        counts = (row["samples"], row["labelled"], row["right"], row["unknown"] or None)
        rows.append((begin, row["model"], f"{row['bundle'][:12]}…", row["tier"], row["exit"], *counts, share))
    title = ("from (UTC)", "model", "bundle", "tier", "exit", "samples", "labelled", "right", "label unknown")
    table((*title, "accuracy (95 % interval)"), rows)
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
    with connect(url, token) as client:
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

    with connect(url, token) as client:
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
