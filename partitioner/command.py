"""`sluice partition`, `sluice splits` and `sluice bundle verify · show`: offline, without brokers.

TensorFlow is imported by the first two alone, and only after the arguments were looked at.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sluice.wire.errors import PermanentError

bundle = typer.Typer(help="Look at bundles and check them.", no_args_is_help=True, add_completion=False)


def partition(
    model: Annotated[Path, typer.Argument(help="A trained Keras model, .keras.")],
    data: Annotated[
        Path,
        typer.Option(
            help="An .npz of samples not trained on: `x` or an array for each input; maybe `y`, `groups`, `labels`."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the bundle; must not be there yet.")],
    train: Annotated[
        Path | None, typer.Option(help="An .npz to train attached exits on; part of --data if not given.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model; that of the file if not given.")] = None,
    version: Annotated[int, typer.Option(min=1, help="Version of the model.")] = 1,
    task: Annotated[str, typer.Option(help="auto, classification, or tensors: results that are no labels.")] = "auto",
    exits: Annotated[
        str, typer.Option(help="auto, none, or names of exits, of layers to attach exits at, or `input`, by comma.")
    ] = "auto",
    head: Annotated[str, typer.Option(help="Design of attached exits.")] = "auto",
    train_exits: Annotated[str, typer.Option(help="Attached exits: frozen (the model stays) or joint.")] = "frozen",
    split: Annotated[
        str, typer.Option(help="Where tiers end: auto, or one or two layers (see `sluice splits`).")
    ] = "auto",
    placement: Annotated[
        str | None, typer.Option(help="Tier of each segment, such as edge,fog,cloud, instead of a plan.")
    ] = None,
    quantize: Annotated[str, typer.Option(help="float32, float16 or int8.")] = "float32",
    codec: Annotated[str, typer.Option(help="How tensors travel: auto, or a codec's name.")] = "auto",
    objective: Annotated[str, typer.Option(help="latency, bytes or device-compute.")] = "latency",
    max_accuracy_loss: Annotated[float, typer.Option(help="ε: largest share of samples that may be harmed.")] = 0.01,
    confidence: Annotated[float, typer.Option(help="1 − δ: how sure that must be.")] = 0.95,
    criterion: Annotated[
        str,
        typer.Option(help="Harm: another answer than the full model (agreement), or a wrong one instead (accuracy)."),
    ] = "agreement",
    promise: Annotated[str, typer.Option(help="With groups: for new groups, samples, or auto.")] = "auto",
    thresholds: Annotated[
        str | None, typer.Option(help="Fixed thresholds, one an early exit, by comma; nothing is promised then.")
    ] = None,
    measure: Annotated[str, typer.Option(help="Confidence measure: max_prob, entropy or margin.")] = "max_prob",
    device: Annotated[Path | None, typer.Option(help="What `sluice profile` wrote on the device.")] = None,
    uplink: Annotated[str, typer.Option(help="Link from the device up: rate and delay, one way.")] = "1Mbit/s,50ms",
    backhaul: Annotated[str, typer.Option(help="Link from fog to cloud.")] = "100Mbit/s,10ms",
    silent: Annotated[bool, typer.Option(help="Answers given on the device do not go up.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Splits the samples and trains attached exits.")] = 0,
    key: Annotated[Path | None, typer.Option(help="Ed25519 key (PEM) to sign with; made if it is missing.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Cut a model where it pays, certify its early exits, write a bundle and a report."""
    from sluice.wire import signing
    from sluice.wire.profile import read_profile

    if out.exists():  # said before TensorFlow is loaded; the rest of the place is checked with everything else
        raise PermanentError(f"{out} is there already: name a folder that is not")
    if not model.is_file():
        raise PermanentError(f"{model} is no file")
    if key and key.exists():
        signing.load_or_make_key(key)  # what cannot sign is found now; a missing key is made when all else worked
    wanted = {
        "task": task,
        "exits": _names(exits),
        "head": head,
        "train_exits": train_exits,
        "split": _names(split),
        "placement": placement.split(",") if placement else None,
        "quantize": quantize,
        "codec": codec,
        "objective": objective,
        "max_accuracy_loss": max_accuracy_loss,
        "confidence": confidence,
        "criterion": criterion,
        "promise": promise,
        "thresholds": thresholds.split(",") if thresholds else None,
        "measure": measure,
        "device": read_profile(device) if device else None,
        "uplink": uplink,
        "backhaul": backhaul,
        "results_sent": not silent,
        "seed": seed,
    }

    from partitioner import quiet

    quiet.import_tensorflow()
    from pydantic import ValidationError
    from rich.progress import Progress

    from partitioner.anatomy.models import from_file
    from partitioner.partition import Source
    from partitioner.partition import partition as make
    from partitioner.samples import label_names, read_npz
    from partitioner.settings import PartitionSettings
    from sluice.wire.manifest import first_cause

    try:
        settings = PartitionSettings.model_validate(wanted)
    except ValidationError as error:
        raise PermanentError(first_cause(error)) from error
    arrays = read_npz(data)
    signer = (lambda content: signing.sign(signing.load_or_make_key(key), content)) if key else None
    source = Source(name or _name_of(model), version, label_names(arrays) or None)
    with quiet.console() as console, Progress(console=console, transient=True) as bar:
        task = bar.add_task("loading the model", total=None)
        result = make(
            from_file(model),
            arrays,
            out,
            source,
            settings,
            train=read_npz(train) if train else None,
            sign=signer,
            progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    if as_json:
        typer.echo(json.dumps(result))
    else:
        _tell(out, result)


def splits(
    model: Annotated[Path, typer.Argument(help="A Keras model, .keras.")],
    every: Annotated[bool, typer.Option("--all", help="All of them, not only the ends of blocks.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON, all of them.")] = False,
) -> None:
    """List where a model can be cut: what would cross, and how much work lies before and after."""
    from partitioner import quiet

    quiet.import_tensorflow()
    from rich.console import Console
    from rich.table import Column, Table

    from partitioner.anatomy.exits import anatomy
    from partitioner.anatomy.models import from_file
    from partitioner.anatomy.splits import as_rows, split_points

    rows = as_rows(split_points(anatomy(from_file(model))))
    if as_json:
        typer.echo(json.dumps(rows))
        return
    table = Table(
        Column("split point", overflow="fold"), "crosses", "bytes", "as int8", "MACs before", "after", "block end"
    )
    for row in rows:
        if every or row["block_end"]:
            shapes = ", ".join(f"{tensor['dtype']}{tensor['shape']}" for tensor in row["tensors"])
            cells = [row["bytes"]["float32"], row["bytes"]["int8"], row["macs_before"], row["macs_after"]]
            table.add_row(row["name"], shapes, *(f"{cell:,}" for cell in cells), "yes" if row["block_end"] else "")
    Console(width=_width()).print(table)


def _names(text: str) -> str | tuple[str, ...]:
    """`auto` and `none` as they are, else names by comma."""
    if text in ("auto", "none"):
        return text
    names = tuple(name.strip() for name in text.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise PermanentError(f"{text!r}: write auto, none, or names by comma, each once")
    return names


def _name_of(model: Path) -> str:
    """A name for the model of a file: `My_Model.keras` is `my-model`."""
    return re.sub(r"[^a-z0-9]+", "-", model.stem.lower()).strip("-")[:63] or "model"


def _width() -> int | None:
    """Columns for tables: the terminal's, or enough for whole names where the output goes elsewhere."""
    return None if sys.stdout.isatty() else 200


@bundle.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="The bundle.")],
    public_key: Annotated[list[str] | None, typer.Option(help="Trusted public key (base64); may be repeated.")] = None,
) -> None:
    """Check manifest, signature (where keys are given), every file and, with a TFLite runtime, golden samples."""
    from partitioner.inspect import check_bundle

    checked = check_bundle(folder, public_key)
    signed = "signed by a trusted key" if public_key else "signature not asked for"
    golden = "golden samples pass" if checked.proved else "golden samples not run: no TFLite runtime here"
    typer.echo(f"bundle {checked.digest}: whole, {signed}, {golden}")


@bundle.command()
def show(
    folder: Annotated[Path, typer.Argument(help="The bundle.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as it is.")] = False,
) -> None:
    """Show what a bundle is made of and what it promises."""
    from partitioner.inspect import tables
    from sluice.wire.bundle import open_bundle

    opened = open_bundle(folder)
    if as_json:
        typer.echo(opened.manifest.model_dump_json())
        return
    from rich.console import Console

    manifest = opened.manifest
    console = Console(width=_width())
    console.print(f"{manifest.model} version {manifest.version}, bundle {opened.digest}", highlight=False)
    for table in tables(manifest):
        console.print(table)


def _tell(out: Path, result: dict[str, Any]) -> None:
    """The result for a person: what was decided, what is promised, what to read next."""
    typer.echo(f"bundle {result['digest']} in {out}")
    typer.echo(f"  {result['verdict']}")
    for line in result["summary"]["lines"]:
        typer.echo(f"  {line}")
    for warning in result["warnings"]:
        typer.echo(f"  note: {warning}")
    typer.echo(f"  report: {out / 'report.html'}")
