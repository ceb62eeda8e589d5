"""What tests of agents, gateways and stages share: a bundle made once, a device's name, processes, a control plane."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sluice.dev.processes import Processes
from tests.brokers.kafka import Kafka
from tests.brokers.mosquitto import Mosquitto
from tests.integration.control_plane import ControlPlane
from tests.integration.edge_support import MadeBundle, agent_settings, make_bundle
from tests.integration.stage_support import Answers, Stage


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeBundle:
    return make_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def device(unique: str) -> str:
    return f"device-{unique}"


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path / "logs") as processes:
        yield processes


@pytest.fixture
def plane(tmp_path: Path, made: MadeBundle) -> Iterator[ControlPlane]:
    """A control plane that offers the bundle."""
    plane = ControlPlane(tmp_path / "http")
    plane.offer(made.folder)
    yield plane
    plane.close()


@pytest.fixture
def settings(
    made: MadeBundle, device: str, tmp_path: Path, plane: ControlPlane, mosquitto: Mosquitto
) -> dict[str, str]:
    """Of an agent with that control plane."""
    return agent_settings(made, device, tmp_path / "data", mosquitto, EDGE_CLOUD_URL=plane.url)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, kafka: Kafka) -> Stage:
    """On the Kafka of the module."""
    return Stage(tmp_path_factory.mktemp("stage"), kafka)


@pytest.fixture
def answers(stage: Stage) -> Iterator[Answers]:
    found = Answers(stage)
    yield found
    found.reader.close()
