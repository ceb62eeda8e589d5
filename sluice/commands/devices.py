"""`sluice devices`: what they run; one more, one less to run, one that measures itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sluice.commands.terminal import AsJson, Token, Url, connect, table, waiting
from sluice.wire.errors import PermanentError

PROFILE_S = 120.0
devices = typer.Typer(add_completion=False, help="Show the devices, or register one.")


@devices.callback(invoke_without_command=True)
def list_devices(context: typer.Context, as_json: AsJson = False, url: Url = None, token: Token = None) -> None:
    """Show the devices: whether they are there, what they run, what went wrong last."""
    if context.invoked_subcommand is not None:
        return
    with connect(url, token) as client:
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
    table(("device", "status", "model", "bundle", "operating point", "error"), rows)


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
    with connect(url, token) as client:
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
    with connect(url, token) as client:
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

    with connect(url, token) as client:
        asked = client.request_profile(name, model)
        found = waiting(f"{name} measures", lambda: client.wait_for_profile(asked, timeout_s), as_json)
    tell_profile(Profile.model_validate(found), out, as_json)
