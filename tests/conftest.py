"""Fixtures that every test may use: real servers, once for a whole run, and names that no other test has.

A server that is not on the machine and cannot be fetched is a failure in CI and a loud skip on a laptop,
wherever in a test it turns up: in one of these fixtures, in a fixture of the test's own, or in its body.
Tests that kill a server start one of their own from `tests.brokers`; these here are shared and stay up.
"""

import os
import secrets
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from tests.brokers.kafka import Kafka
from tests.brokers.mosquitto import Mosquitto
from tests.brokers.postgres import Postgres
from tests.fetching import Unavailable

TESTS = Path(__file__).parent
WHOLE = {
    str(file.relative_to(TESTS.parent)) for file in TESTS.glob("e2e/test_*.py") if "whole: Whole" in file.read_text()
}
NOT_RUN = pytest.StashKey[dict[str, int]]()


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka]:
    """A running Kafka broker; connect to `kafka.bootstrap`, make topics with `kafka.create_topic`."""
    with Kafka() as server:
        yield server


@pytest.fixture(scope="session")
def mosquitto() -> Iterator[Mosquitto]:
    """A running Mosquitto without passwords on `mosquitto.host`, `mosquitto.port`."""
    with Mosquitto() as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running PostgreSQL; `postgres.database(unique)` makes a database and returns its URL."""
    with Postgres() as server:
        yield server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that no worker is left with it at the end: files that train."""
    trains = {item.path for item in items if item.get_closest_marker("tensorflow")}
    items.sort(key=lambda item: item.path not in trains and _scope(item.nodeid) != "the whole path")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile` a file stays together, and so do all files whose tests share the one running set of rooms:
    one worker makes it, once."""
    if config.getoption("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False  # by how many tests a file has
    scheduler = LoadFileScheduling(config, log)
    scheduler._split_scope = _scope
    return scheduler


def _scope(nodeid: str) -> str:
    file = nodeid.split("::", 1)[0]
    return "the whole path" if file in WHOLE else file


@pytest.fixture
def unique() -> str:
    """A random suffix, `[a-z0-9]+`, for topics, groups, devices and databases."""
    return f"t{secrets.token_hex(4)}"


def in_ci() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true")


def _judge(item: pytest.Item) -> Generator[None, object, object]:
    """Turns a server that cannot be had into a failure (CI) or a skip that the summary repeats."""
    try:
        return (yield)
    except Unavailable as missing:
        reason = str(missing)
    if in_ci():
        pytest.fail(f"NOT RUN: {reason}", pytrace=False)
    not_run = item.config.stash.setdefault(NOT_RUN, {})
    not_run[reason] = not_run.get(reason, 0) + 1
    pytest.skip(f"NOT RUN: {reason}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from _judge(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    return (yield from _judge(item))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for reason, tests in config.stash.get(NOT_RUN, {}).items():
        terminalreporter.write_line(f"!!! NOT RUN: {tests} tests, because {reason}", red=True, bold=True)
