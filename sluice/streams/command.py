"""`sluice send`: the samples of a file to a Kafka topic, and their announcement; `sluice announce`: that alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def send(
    file: Annotated[Path, typer.Argument(help="A file: .npz (`x`, `y`, `labels`), .csv, .jsonl, .avro; - for stdin.")],
    topic: Annotated[str, typer.Option(help="The Kafka topic; made if it is missing.")],
    stream_id: Annotated[str, typer.Option(help="Name of the stream: a-z, 0-9 and '-'.")],
    format: Annotated[str, typer.Option(help="Format of the records: avro, csv, json or raw.")] = "avro",
    label: Annotated[str | None, typer.Option(help="Of a table: the column of the label.")] = None,
    leave_out: Annotated[list[str] | None, typer.Option(help="Of a table: a column that is no feature.")] = None,
    columns: Annotated[str, typer.Option(help="Names of the columns, a,b,…, where the file has none.")] = "",
    delimiter: Annotated[str, typer.Option(help="What stands between the columns of a .csv.")] = ",",
    kind: Annotated[str | None, typer.Option(help="What the file is, if its ending does not tell: csv, jsonl.")] = None,
    validation_rate: Annotated[float, typer.Option(min=0, max=0.99, help="Share kept from training.")] = 0.2,
    bootstrap: Annotated[str, typer.Option(help="Kafka's bootstrap servers.")] = "127.0.0.1:9092",
    kafka_option: Annotated[list[str] | None, typer.Option(help="A librdkafka setting, NAME=VALUE.")] = None,
    partitions: Annotated[int, typer.Option(min=1, help="Topic partitions of a topic that is made.")] = 1,
    compression: Annotated[str, typer.Option(help="none, gzip, snappy, lz4 or zstd.")] = "zstd",
    deployment: Annotated[str | None, typer.Option(help="The deployment it is for; for anyone if not given.")] = None,
    part: Annotated[str, typer.Option(help="I/N: this is one of N parts, sent by as many producers.")] = "1/1",
    as_json: Annotated[bool, typer.Option("--json", help="Print the announcement as JSON.")] = False,
) -> None:
    """Send a data stream to Kafka and announce it, so that models can be trained on it."""
    from rich.console import Console
    from rich.progress import Progress

    from sluice.doors.kafka import KafkaCluster
    from sluice.streams.files import read_samples
    from sluice.streams.send import send_stream
    from sluice.wire.errors import PermanentError

    options = dict(option.partition("=")[::2] for option in kafka_option or [])
    this, _, of = part.partition("/")
    if not (this.isdigit() and of.isdigit()):
        raise PermanentError(f"--part {part[:20]} is not I/N, such as 2/3")
    names = [name.strip() for name in columns.split(",")] if columns else []
    found = read_samples(file, kind=kind, label=label, leave_out=leave_out or (), columns=names, delimiter=delimiter)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"to {topic}", total=len(found.x))
        announcement = send_stream(
            KafkaCluster(bootstrap=bootstrap, options=options),
            topic,
            found.x,
            found.y,
            stream_id=stream_id,
            format=format,
            validation_rate=validation_rate,
            labels=found.labels,
            features=found.features,
            deployment=deployment,
            partitions=partitions,
            compression=compression,
            part=int(this),
            parts=int(of),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        typer.echo(announcement.model_dump_json())
    else:
        typer.echo(f"stream {stream_id}: {announcement.count} records, {', '.join(announcement.slices)}")


def announce(
    slices: Annotated[
        list[str], typer.Argument(help="topic:partition:offset:length, or a topic for all that it holds now.")
    ],
    stream_id: Annotated[str, typer.Option(help="Name of the stream: a-z, 0-9 and '-'.")],
    format: Annotated[str, typer.Option(help="Format of the records: avro, csv, json or raw.")],
    config: Annotated[str, typer.Option(help="The format's configuration, as JSON or as @FILE; see docs/streams.md.")],
    validation_rate: Annotated[float, typer.Option(min=0, max=0.99, help="Share kept from training.")] = 0.2,
    bootstrap: Annotated[str, typer.Option(help="Kafka's bootstrap servers.")] = "127.0.0.1:9092",
    kafka_option: Annotated[list[str] | None, typer.Option(help="A librdkafka setting, NAME=VALUE.")] = None,
    deployment: Annotated[str | None, typer.Option(help="The deployment it is for; for anyone if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the announcement as JSON.")] = False,
) -> None:
    """Announce records that are on Kafka already, whoever wrote them, so that models can be trained on them."""
    import json

    from sluice.doors.kafka import KafkaCluster
    from sluice.streams.send import announce_slices
    from sluice.wire.errors import PermanentError

    try:
        told = json.loads(Path(config[1:]).read_text() if config.startswith("@") else config)
    except (OSError, ValueError) as error:
        raise PermanentError(f"--config: {error}") from error
    if not isinstance(told, dict):
        raise PermanentError('--config is a JSON object, such as {"shape": [18]}')
    options = dict(option.partition("=")[::2] for option in kafka_option or [])
    announcement = announce_slices(
        KafkaCluster(bootstrap=bootstrap, options=options),
        slices,
        stream_id=stream_id,
        format=format,
        config=told,
        validation_rate=validation_rate,
        deployment=deployment,
    )
    if as_json:
        typer.echo(announcement.model_dump_json())
    else:
        typer.echo(f"stream {stream_id}: {announcement.count} records, {', '.join(announcement.slices)}")
