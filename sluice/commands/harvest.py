"""`sluice harvest`: hard samples out of the offload topics, joined with their labels, as a stream of their own.

The labels come from the control plane (`GET /v1/labels`), the samples from Kafka; `sluice.streams.harvest` says which
of them there are at all. What is written is an announced stream like any other: `sluice train` takes it.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from sluice.commands.terminal import AsJson, Token, Url, connect

if TYPE_CHECKING:
    from sluice.client import Client
    from sluice.streams.harvest import Told
    from sluice.wire.messages import SampleKey


class WhichName(str, Enum):  # noqa: UP042 - typer shows the values of a plain str Enum
    """Which samples."""

    up = "up"
    wrong = "wrong"


def labels_of(client: Client, model: str) -> dict[SampleKey, Told]:
    """The labels of all answered samples of `model`, by sample."""
    from sluice.streams.harvest import Told

    return {
        (row["device_id"], row["epoch"], row["seq"]): Told(row["told"], row["right"])
        for row in client.every_label(model=model)
    }


def harvest(
    model: Annotated[str, typer.Argument(help="Name of the model that answered.")],
    topic: Annotated[str, typer.Option(help="The Kafka topic that they go to; made if it is missing.")],
    stream_id: Annotated[str, typer.Option(help="Name of the stream: a-z, 0-9 and '-'.")],
    which: Annotated[
        WhichName, typer.Option(help="up: those that had to travel up; wrong: those that were answered wrongly.")
    ] = WhichName.up,
    labelled_only: Annotated[bool, typer.Option(help="Only those that somebody told the class of.")] = False,
    format: Annotated[str, typer.Option(help="Format of the records: avro, csv, json or raw.")] = "avro",
    validation_rate: Annotated[float, typer.Option(min=0, max=0.99, help="Share kept from training.")] = 0.2,
    bootstrap: Annotated[str, typer.Option(help="Kafka's bootstrap servers.")] = "127.0.0.1:9092",
    kafka_option: Annotated[list[str] | None, typer.Option(help="A librdkafka setting, NAME=VALUE.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Gather hard samples of a model from what travelled up, with their labels, as a stream for the next training.

    Only raw inputs can be gathered: where a first segment runs on the device, what travels is a tensor from the middle.
    """
    from rich.console import Console
    from rich.progress import Progress

    from sluice.doors.kafka import KafkaCluster
    from sluice.streams import harvest as streams

    options = dict(option.partition("=")[::2] for option in kafka_option or [])
    with (
        connect(url, token) as client,
        Progress(console=Console(stderr=True), transient=True, disable=as_json) as bar,
    ):
        task = bar.add_task("offloads", total=None)
        picker = streams.Picker(client.manifest, labels_of(client, model), which.value, labelled_only)
        announcement = streams.harvest(
            KafkaCluster(bootstrap=bootstrap, options=options),
            model,
            picker,
            topic,
            stream_id=stream_id,
            format=format,
            validation_rate=validation_rate,
            progress=lambda done: bar.update(task, completed=done),
        )
    counts = picker.counts
    if as_json:
        print(json.dumps({"announcement": announcement.model_dump(mode="json"), "counts": asdict(counts)}))
        return
    print(f"stream {stream_id}: {counts.taken} samples of {counts.offloads} offloads, {counts.labelled} with a label")
    for name, count in asdict(counts).items():
        if count and name not in ("offloads", "taken", "labelled"):
            print(f"left out, {name.replace('_', ' ')}: {count}")
