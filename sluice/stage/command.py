"""`sluice stage`: a fog or cloud stage. `sluice profile`: how fast this machine runs the segments of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sluice.wire.profile import Profile


def stage(
    tier: Annotated[str | None, typer.Option(help="fog or cloud.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
) -> None:
    """Work on the offloads of one tier: run its segments, answer or send on."""
    from sluice.daemon.life import run
    from sluice.daemon.settings import load
    from sluice.stage.settings import StageSettings
    from sluice.stage.worker import Worker

    settings = load(StageSettings, config, tier=tier)
    raise typer.Exit(run("stage", settings, lambda stop: Worker(settings).run(stop)))


def profile(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    out: Annotated[
        Path | None, typer.Option(help="Write the profile here; `sluice partition --device` reads it.")
    ] = None,
    batches: Annotated[str, typer.Option(help="Batch sizes, with commas between.")] = "1,8,32",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the TFLite runtime.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """Run the segments of a bundle on this machine, and tell how long they take."""
    from rich.console import Console
    from rich.progress import Progress

    from sluice.stage.profile import measure
    from sluice.wire.errors import PermanentError

    try:
        sizes = [int(size) for size in batches.split(",")]
    except ValueError:
        raise PermanentError(f"--batches {batches[:40]!r}: numbers with commas between, like 1,8,32") from None
    if out is not None and not out.parent.is_dir():
        raise PermanentError(f"{out.parent} is no folder: name one that is there")
    with Progress(console=Console(stderr=True), transient=True, refresh_per_second=2, disable=as_json) as bar:
        task = bar.add_task("measuring", total=None)
        measured = measure(
            bundle, sizes, threads=threads, on_step=lambda done, total: bar.update(task, completed=done, total=total)
        )
    tell_profile(measured, out, as_json)


def tell_profile(measured: Profile, out: Path | None, as_json: bool) -> None:
    """Write a profile to `out`, if that is given, and print it, as a table or as JSON."""
    from sluice.wire.bundle import write_atomically
    from sluice.wire.errors import PermanentError

    text = measured.model_dump_json(indent=1) + "\n"
    if out is not None:
        try:
            write_atomically(out, text.encode())
        except OSError as error:
            raise PermanentError(f"{out} cannot be written: {error.strerror}") from error
    if as_json:
        print(text, end="")
        return
    _show(measured)
    if out is not None:
        print(f"the profile is in {out}")


def _show(measured: Profile) -> None:
    from rich.console import Console
    from rich.table import Table

    sizes = list(measured.segments[0].us) if measured.segments else []
    table = Table("segment", "MACs", *(f"batch {size}, µs (p90)" for size in sizes), "where it was cut, µs")
    for one in measured.segments:
        times = (f"{one.us[size]:.1f} ({one.p90_us.get(size, 0):.1f})" if size in one.us else "" for size in sizes)
        table.add_row(
            str(one.index), f"{one.macs:,}", *times, f"{one.reference_us:.1f}" if one.reference_us is not None else ""
        )
    console = Console()
    console.print(table)
    where = ", ".join(word for word in (measured.cpu, measured.machine, measured.runtime) if word)
    console.print(
        f"{where}, Python {measured.python}, {measured.threads} threads, {measured.memory_mb:.0f} MiB at most",
        highlight=False,
    )
