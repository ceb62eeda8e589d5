"""`sluice demo`, `sluice up`, and `sluice dev …` for the embedded brokers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sluice.dev.system import Brokers

Mqtt = Annotated[str | None, typer.Option("--mqtt", help="HOST:PORT of an MQTT broker; else an embedded one.")]
Kafka = Annotated[str | None, typer.Option("--kafka", help="HOST:PORT of Kafka; else an embedded one.")]


def demo(
    mqtt: Mqtt = None,
    kafka: Kafka = None,
    out: Annotated[Path, typer.Option(help="Where the summary goes, as JSON.")] = Path("build/demo.json"),
    keep: Annotated[Path | None, typer.Option(help="Keep all state in this folder.")] = None,
) -> None:
    """Show the whole path on real data: stream, train, partition, deploy, infer; leaves nothing running."""
    import json
    import shutil
    import tempfile

    from rich.console import Console

    from sluice.dev import demo as acts
    from sluice.dev.processes import Processes, end_on_signals
    from sluice.dev.system import start_system

    end_on_signals()
    console = Console()
    held = acts.Held()
    with tempfile.TemporaryDirectory(prefix="sluice-demo-") as temporary:
        folder = (keep or Path(temporary)).resolve()
        logs = out.parent.resolve() / "demo-logs"
        shutil.rmtree(logs, ignore_errors=True)
        console.print(f"the logs of all rooms go to {logs}")
        with Processes(logs) as processes:
            system = start_system(processes, folder, _brokers(mqtt, kafka), say=console.print)
            digest = acts.deploy(system, held, console)
            sensor = acts.infer(system, held, console)
            summary = acts.tell(system, held, digest, sensor)
            dead = [process.name for process in processes.dead()]
        acts.show(summary, console)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(summary, indent=2) + "\n")
        console.print(f"summary in {out}")
        if dead:
            console.print(f"[red]ended by themselves: {', '.join(dead)}[/]")
        if dead or not acts.went_well(summary):
            raise typer.Exit(1)


def up(
    mqtt: Mqtt = None,
    kafka: Kafka = None,
    data: Annotated[Path | None, typer.Option(help="Folder of all state; else a temporary one.")] = None,
) -> None:
    """Run every room until Ctrl-C, to try things by hand."""
    import tempfile
    import threading

    from rich.console import Console

    from sluice.dev.processes import Processes, end_on_signals
    from sluice.dev.system import start_system

    end_on_signals()
    console = Console(soft_wrap=True)
    with tempfile.TemporaryDirectory(prefix="sluice-up-") as temporary:
        folder = (data or Path(temporary)).resolve()
        with Processes(folder / "logs") as processes:
            system = start_system(processes, folder, _brokers(mqtt, kafka), say=console.print)
            brokers = system.brokers
            console.print(
                f"\nMQTT       {brokers.host}:{brokers.port}\nKafka      {brokers.bootstrap}\n"
                f"REST       {system.url}/v1\ndevices    {', '.join(system.devices)}\n"
                f"logs       {folder / 'logs'}\n\nIn another shell:\n"
                f"  export SLUICE_URL={system.url} SLUICE_TOKEN={system.token}\n  sluice devices\n\nCtrl-C ends it."
            )
            while not processes.dead():
                threading.Event().wait(1.0)
            console.print(f"[red]ended by themselves: {', '.join(p.name for p in processes.dead())}[/]")
            raise typer.Exit(1)


def _brokers(mqtt: str | None, kafka: str | None) -> Brokers | None:
    from sluice.dev.system import Brokers
    from sluice.wire.errors import PermanentError

    if mqtt is None and kafka is None:
        return None
    if mqtt is None or kafka is None:
        raise PermanentError("name both brokers (--mqtt and --kafka) or none")
    host, _, port = mqtt.rpartition(":")
    return Brokers(host, int(port), kafka)


dev = typer.Typer(no_args_is_help=True, help="The embedded brokers, one by one. Not for production, not for tests.")


@dev.command("mqtt")
def mqtt_broker(port: Annotated[int, typer.Option(help="Port on loopback.")] = 1883) -> None:
    """Run the embedded MQTT broker (amqtt)."""
    from sluice.daemon.life import run
    from sluice.daemon.settings import RoomSettings
    from sluice.dev.brokers import run_mqtt

    raise typer.Exit(run("dev-mqtt", RoomSettings(), lambda stop: run_mqtt(port, stop)))


@dev.command("kafka")
def kafka_broker() -> None:
    """Run the embedded Kafka (librdkafka's mock cluster); its address stands in the ready line."""
    from sluice.daemon.life import run
    from sluice.daemon.settings import RoomSettings
    from sluice.dev.brokers import run_kafka

    raise typer.Exit(run("dev-kafka", RoomSettings(), run_kafka))
