"""The emulated device, the bundles that it runs, and what the summary of a run tells of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sluice.dev.processes import Processes
from tests import installing
from tests.device.machine import RASPBERRY_PI_4, Machine, litert, machine
from tests.integration.edge_support import MadeBundle, make_bundle

TOLD = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This checkout, as a device gets it."""
    return installing.wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def pi(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A Raspberry Pi 4."""
    return machine(RASPBERRY_PI_4, litert(), wheel, tmp_path_factory.mktemp("pi"))


@pytest.fixture(scope="session")
def floats(tmp_path_factory: pytest.TempPathFactory) -> MadeBundle:
    """A bundle of two segments and two exits in float32, made and measured on this machine."""
    return make_bundle(tmp_path_factory.mktemp("float32"))


@pytest.fixture(scope="session")
def integers(tmp_path_factory: pytest.TempPathFactory) -> MadeBundle:
    """The same model in int8."""
    return make_bundle(tmp_path_factory.mktemp("int8"), "int8")


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path / "logs") as processes:
        yield processes


@pytest.fixture
def tell(pytestconfig: pytest.Config) -> list[str]:
    """Lines that the summary of this run ends with."""
    return pytestconfig.stash.setdefault(TOLD, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(TOLD, []):
        terminalreporter.write_line(line)
