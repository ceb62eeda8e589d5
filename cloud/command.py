"""The commands of this room: `sluice cloud`, `sluice results-writer`, `sluice token`."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cloud.settings import CloudSettings

Config = Annotated[Path | None, typer.Option("--config", help="Settings as a TOML file.", dir_okay=False)]


class RoleName(str, Enum):  # noqa: UP042 - typer shows the values of a plain str Enum
    """What a token may do."""

    admin = "admin"
    device = "device"


def cloud(
    config: Config = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0: any free one.")] = None,
) -> None:
    """Run the control plane's REST service."""
    from cloud.server import serve
    from cloud.settings import CloudSettings
    from sluice.daemon.life import run
    from sluice.daemon.settings import load

    settings = load(CloudSettings, config, host=host, port=port)
    raise typer.Exit(run("cloud", settings, lambda stop: serve(settings, stop)))


def results_writer(config: Config = None) -> None:
    """Bring predictions, device states and announced streams from Kafka into the database."""
    from cloud.results_writer import results_writer as main
    from cloud.settings import CloudSettings
    from sluice.daemon.life import run
    from sluice.daemon.settings import load

    settings = load(CloudSettings, config)
    own = settings.model_copy(update={"metrics_port": settings.results_metrics_port})
    raise typer.Exit(run("results-writer", own, lambda stop: main(own, stop)))


token = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Make, list and revoke the REST service's tokens, on its database."
)


def _open(config: Path | None) -> CloudSettings:
    from cloud.settings import CloudSettings
    from sluice.daemon.settings import load

    return load(CloudSettings, config)


@token.command("create")
def create_token(
    role: Annotated[
        RoleName, typer.Option(help="admin: everything; device: fetch bundles and blobs, ask for its answers.")
    ],
    name: Annotated[str, typer.Option(help="Whom it is for.")] = "command-line",
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
    config: Config = None,
) -> None:
    """Make a token and show it, this once. Works before the first start of the service."""
    from cloud import tokens
    from cloud.database import migrate, open_database, writing
    from sluice.wire.names import check_name

    check_name("token", name)
    settings = _open(config)
    settings.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = open_database(settings.database_url)
    migrate(engine)
    with writing(engine) as connection:
        number, made = tokens.create(connection, role.value, name)
    if as_json:
        print(json.dumps({"id": number, "role": role.value, "name": name, "token": made}))
    else:
        print(made)


@token.command("list")
def list_tokens(
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False, config: Config = None
) -> None:
    """Show all tokens; what would let anyone use them is not stored."""
    from rich.console import Console
    from rich.table import Table

    from cloud import tokens
    from cloud.database import migrate, open_database, reading

    engine = open_database(_open(config).database_url)
    migrate(engine)
    with reading(engine) as connection:
        rows = tokens.listed(connection)
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("number", "role", "name", "works")
    for row in rows:
        table.add_row(str(row["id"]), row["role"], row["name"], "no" if row["revoked_at"] else "yes")
    Console().print(table)


@token.command("revoke")
def revoke_token(number: int, config: Config = None) -> None:
    """Make a token useless, from this moment on."""
    from cloud import tokens
    from cloud.database import migrate, open_database, writing

    engine = open_database(_open(config).database_url)
    migrate(engine)
    with writing(engine) as connection:
        tokens.revoke(connection, number)
