"""One running set of rooms for all end-to-end tests: real Mosquitto with passwords, real Kafka, a trained bundle."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from sluice.dev import demo as acts
from sluice.dev.processes import Processes
from sluice.dev.system import DEVICES, Brokers, System, start_system
from tests.brokers.kafka import Kafka
from tests.brokers.mosquitto import Mosquitto

EPOCHS = 25


@dataclass(frozen=True)
class Whole:
    """What an end-to-end test works with."""

    system: System
    mosquitto: Mosquitto
    kafka: Kafka
    held: acts.Held
    digest: str
    console: Console


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    """Stream, training, partition and rollout done; two devices run the bundle."""
    folder: Path = tmp_path_factory.mktemp("whole")
    console = Console()
    passwords = {name: f"secret of {name}" for name in ("gateway", *DEVICES)}
    with Mosquitto(users=passwords) as mosquitto, Kafka() as kafka, Processes(folder / "logs") as processes:
        brokers = Brokers(mosquitto.host, mosquitto.port, kafka.bootstrap, passwords=passwords)
        system = start_system(processes, folder, brokers, say=console.print)
        held = acts.Held()
        digest = acts.deploy(system, held, console, epochs=EPOCHS)
        yield Whole(system, mosquitto, kafka, held, digest, console)
        assert [process.name for process in processes.dead()] == []
