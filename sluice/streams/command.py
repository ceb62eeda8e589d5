"""`sluice send`: the samples of a file to a Kafka topic, and their announcement."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def send(
    file: Annotated[Path, typer.Argument(help="An .npz file with `x` (n, …), `y` (n,) and maybe `labels`.")],
    topic: Annotated[str, typer.Option(help="The Kafka topic; made if it is missing.")],
    stream_id: Annotated[str, typer.Option(help="Name of the stream: a-z, 0-9 and '-'.")],
    format: Annotated[str, typer.Option(help="Format of the records: avro or raw.")] = "avro",
    validation_rate: Annotated[float, typer.Option(min=0, max=0.99, help="Share kept from training.")] = 0.2,
    bootstrap: Annotated[str, typer.Option(help="Kafka's bootstrap servers.")] = "127.0.0.1:9092",
    partitions: Annotated[int, typer.Option(min=1, help="Topic partitions of a topic that is made.")] = 1,
    deployment: Annotated[str | None, typer.Option(help="The deployment it is for; all if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the announcement as JSON.")] = False,
) -> None:
    """Send a data stream to Kafka and announce it, so that models can be trained on it."""
    from rich.console import Console
    from rich.progress import Progress

    from sluice.doors.kafka import KafkaCluster
    from sluice.streams.files import read_samples
    from sluice.streams.send import send_stream

    x, y, labels = read_samples(file)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"to {topic}", total=len(x))
        announcement = send_stream(
            KafkaCluster(bootstrap=bootstrap),
            topic,
            x,
            y,
            stream_id=stream_id,
            format=format,
            validation_rate=validation_rate,
            labels=labels,
            deployment=deployment,
            partitions=partitions,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        typer.echo(announcement.model_dump_json())
    else:
        typer.echo(f"stream {stream_id}: {announcement.count} records, {', '.join(announcement.slices)}")
