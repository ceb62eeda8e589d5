"""`sluice evaluate`: how right a trained model is on a stream."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

import typer

from sluice.commands.terminal import AsJson, Token, Url, connect, follow, short, table
from sluice.wire.errors import PermanentError

STREAM_S = 10.0
TRAINING, BUNDLE = re.compile(r"training-[0-9a-f]{12}"), re.compile(r"[0-9a-f]{64}")
COUNTED = {
    "records": "records",
    "unlabelled": "of them without a label",
    "bad": "that could not be read",
    "lost": "lost to retention",
}


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
    with connect(url, token) as client:
        client.stream(stream, wait_s=STREAM_S)
        found = client.evaluate(stream, **which, **settings)
        if wait:
            started = found["id"]
            found = follow("evaluation", lambda change: client.wait_for_evaluation(started, change), as_json)
    result = found["result"] or {}
    if as_json:
        print(json.dumps({"evaluation": found["id"], "state": found["state"], **result}))
        return
    if result:
        rows = [
            (name, *(short(values[key]) for key in ("accuracy", "loss"))) for name, values in result["metrics"].items()
        ]
        shares = result.get("exit_share", {})
        table(("exit", "accuracy", "loss", "answers"), [(*row, short(shares.get(row[0]))) for row in rows])
        print(
            ", ".join(f"{result[name]} {said}" for name, said in COUNTED.items() if result[name] or name == "records")
        )
    print(f"evaluation {found['id']}")
