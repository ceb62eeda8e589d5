"""`sluice dead-letter list · show · replay`: what could never succeed, and another try."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from sluice.wire.errors import PermanentError

if TYPE_CHECKING:
    from sluice.doors.kafka import KafkaCluster

dead_letter = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Look at records that could not be worked on, and try again."
)

Bootstrap = Annotated[str, typer.Option(help="Kafka's bootstrap servers.")]
Option = Annotated[list[str] | None, typer.Option(help="A librdkafka setting, NAME=VALUE; may be repeated.")]
Room = Annotated[str | None, typer.Option(help="Only those of this room: gateway, stage-fog, …")]
Reason = Annotated[str | None, typer.Option(help="Only those whose reason has this in it.")]
AsJson = Annotated[bool, typer.Option("--json", help="For scripts.")]
HERE = "127.0.0.1:9092"


def _cluster(bootstrap: str, option: list[str] | None) -> KafkaCluster:
    from sluice.doors.kafka import KafkaCluster

    pairs = [one.partition("=") for one in option or ()]
    if bad := [name for name, equals, _ in pairs if not equals]:
        raise PermanentError(f"option {bad[0]!r}: write NAME=VALUE")
    return KafkaCluster(bootstrap=bootstrap, options={name: value for name, _, value in pairs})


@dead_letter.command("list")
def list_letters(
    last: Annotated[int, typer.Option(min=1, help="The newest so many of each topic partition.")] = 100,
    room: Room = None,
    reason: Reason = None,
    bootstrap: Bootstrap = HERE,
    option: Option = None,
    as_json: AsJson = False,
) -> None:
    """List letters, the oldest first."""
    from rich.console import Console
    from rich.table import Table

    from sluice.letters.letters import find

    found = find(_cluster(bootstrap, option), last, lambda one: _matches(one.room, one.reason, room, reason))
    rows = [letter.summary() for letter in found]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table("place", "at", "room", "reason", "origin", "bytes")
    for row in rows:
        table.add_row(row["place"], row["at"], row["room"], row["reason"], row["origin"], str(row["bytes"]))
    Console().print(table if rows else "no dead letters")


@dead_letter.command()
def show(
    place: Annotated[str, typer.Argument(help="partition:offset, as the list shows it.")],
    bootstrap: Bootstrap = HERE,
    option: Option = None,
    as_json: AsJson = False,
) -> None:
    """Show a letter with its content."""
    from sluice.letters.letters import content, get

    letter = get(_cluster(bootstrap, option), place)
    told = {**letter.summary(), "content": content(letter)}
    if as_json:
        typer.echo(json.dumps(told, default=str))
        return
    for name, value in told.items():
        shown = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False, default=str)
        typer.echo(f"{name}: {shown}")


@dead_letter.command()
def replay(
    places: Annotated[list[str] | None, typer.Argument(help="partition:offset of each.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All that --room and --reason leave.")] = False,
    room: Room = None,
    reason: Reason = None,
    bootstrap: Bootstrap = HERE,
    option: Option = None,
    as_json: AsJson = False,
) -> None:
    """Send letters again to where they were going. They stay on the topic of dead letters as well."""
    from sluice.letters.letters import find, get, topic_for
    from sluice.letters.letters import replay as send

    if bool(places) == every:
        raise PermanentError("name the letters by place, or say --all")
    cluster = _cluster(bootstrap, option)
    if places:
        letters = [get(cluster, place) for place in places]
    else:
        letters = find(cluster, None, lambda one: _matches(one.room, one.reason, room, reason))
    send(cluster, letters)
    sent = [{"place": letter.place, "topic": topic_for(letter)} for letter in letters]
    if as_json:
        typer.echo(json.dumps(sent))
        return
    for one in sent:
        typer.echo(f"{one['place']} to {one['topic']}")
    typer.echo(f"{len(sent)} sent again")


def _matches(of_room: str, of_reason: str, room: str | None, reason: str | None) -> bool:
    return (room is None or of_room == room) and (reason is None or reason in of_reason)
