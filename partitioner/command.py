"""`sluice partition` and `sluice bundle verify · show`: offline, without brokers.

TensorFlow is imported by `partition` alone, and only after the arguments were looked at.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

bundle = typer.Typer(help="Look at bundles and check them.", no_args_is_help=True, add_completion=False)


def partition(
    model: Annotated[Path, typer.Argument(help="A trained Keras model, .keras.")],
    data: Annotated[Path, typer.Option(help="An .npz of samples that were not trained on: `x`, `y`, maybe `labels`.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle; must not be there yet.")],
    name: Annotated[str | None, typer.Option(help="Name of the model; that of the file if not given.")] = None,
    version: Annotated[int, typer.Option(min=1, help="Version of the model.")] = 1,
    max_accuracy_loss: Annotated[float, typer.Option(help="Largest share of answers unlike the full model's.")] = 0.01,
    confidence: Annotated[float, typer.Option(help="How sure that must be.")] = 0.95,
    codec: Annotated[str, typer.Option(help="How tensors travel: raw, zstd, int8 or int8-zstd.")] = "int8-zstd",
    measure: Annotated[str, typer.Option(help="Confidence measure: max_prob, entropy or margin.")] = "max_prob",
    placement: Annotated[str | None, typer.Option(help="Tier of each segment, such as edge,fog,cloud.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Splits the samples into fitting and certifying.")] = 0,
    key: Annotated[Path | None, typer.Option(help="Ed25519 key (PEM) to sign with; made if it is missing.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Cut a model at its early exits, certify its thresholds, write a bundle."""
    from sluice.streams.files import read_samples
    from sluice.wire import signing
    from sluice.wire.errors import PermanentError

    if out.exists():
        raise PermanentError(f"{out} is there already: name a folder that is not")
    if not model.is_file():
        raise PermanentError(f"{model} is no file")
    if key and key.exists():
        signing.load_or_make_key(key)  # what cannot sign is found now; a missing key is made when all else worked
    x, y, labels = read_samples(data)

    from partitioner import quiet

    quiet.import_tensorflow()
    from pydantic import ValidationError
    from rich.console import Console
    from rich.progress import Progress

    from partitioner.models import from_file
    from partitioner.partition import PartitionSettings, Source
    from partitioner.partition import partition as make
    from sluice.wire.manifest import first_cause

    try:
        settings = PartitionSettings.model_validate(
            {
                "max_accuracy_loss": max_accuracy_loss,
                "confidence": confidence,
                "codec": codec,
                "measure": measure,
                "placement": placement.split(",") if placement else None,
                "seed": seed,
            }
        )
    except ValidationError as error:
        raise PermanentError(first_cause(error)) from error
    signer = (lambda content: signing.sign(signing.load_or_make_key(key), content)) if key else None
    source = Source(name or model.stem, version, labels or None)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("loading the model", total=None)
        result = make(
            from_file(model),
            x,
            y,
            out,
            source,
            settings,
            sign=signer,
            progress=lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
    if as_json:
        typer.echo(json.dumps(result))
    else:
        _tell(out, result)


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
    console = Console()
    console.print(f"{manifest.model} version {manifest.version}, bundle {opened.digest}", highlight=False)
    for table in tables(manifest):
        console.print(table)


def _tell(out: Path, result: dict[str, Any]) -> None:
    summary = result["summary"]
    typer.echo(f"bundle {result['digest']} in {out}")
    for exit_name, tier, share in zip(summary["exits"], summary["placement"], summary["exit_share"], strict=True):
        typer.echo(f"  exit {exit_name} on {tier}: answers {share:.1%}")
    typer.echo(f"  agreement with the full model {summary['agreement']:.1%}")
    certificate = summary["certificate"]
    if certificate:
        typer.echo(
            f"  certified: at most {certificate['epsilon']:.2%} unlike the full model, "
            f"{1 - certificate['delta']:.0%} sure, from {certificate['n']} samples"
        )
    if summary["uncertified_because"]:
        typer.echo(f"  no early exit: {summary['uncertified_because']}")
