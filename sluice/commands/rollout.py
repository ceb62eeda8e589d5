"""`sluice rollout`: a bundle, or another operating point, to devices."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sluice.commands.terminal import AsJson, Token, Url, connect, table
from sluice.wire.errors import PermanentError

if TYPE_CHECKING:
    from sluice.client import Client


ROLLOUT_S = 120.0


def _follow_rollout(client: Client, begun: dict[str, Any], timeout_s: float, quiet: bool) -> dict[str, Any]:
    """Wait until no device is pending, with a progress bar on standard error, or without one."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=quiet) as bar:
        task = bar.add_task("devices", total=len(begun["devices"]))

        def change(rollout: dict[str, Any]) -> None:
            bar.update(task, completed=sum(d["state"] != "pending" for d in rollout["devices"]))

        return client.wait_for_rollout(begun["id"], timeout_s, change)


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
    with connect(url, token) as client:
        begun = client.roll_out(bundle, device or "all", operating_point, bounds or None)
        if wait:
            begun = _follow_rollout(client, begun, timeout_s, as_json)
    if as_json:
        print(json.dumps(begun))
    else:
        rows = [(d["device_id"], d["revision"], d["state"], d["last_error"]) for d in begun["devices"]]
        table(("device", "revision", "state", "error"), rows)
    failed = [d["device_id"] for d in begun["devices"] if d["state"] == "failed"]
    if failed:
        raise PermanentError(f"these devices could not do it: {', '.join(failed)}")
