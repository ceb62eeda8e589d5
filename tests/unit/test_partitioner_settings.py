"""What a partition can be asked is the same on the command line, in Python and over REST."""

import inspect
from typing import Any

import pytest
from pydantic import ValidationError

from cloud.routes.partitions import PartitionSettings as Rest
from partitioner.settings import PartitionSettings
from sluice.wire.errors import PermanentError

pytestmark = pytest.mark.tensorflow


def default_of(settings: Any, name: str) -> Any:
    value = settings.model_fields[name].default
    return tuple(value) if isinstance(value, list) else value


def test_rest_and_python_ask_for_the_same_with_the_same_defaults() -> None:
    from partitioner.settings import PartitionSettings as Python

    assert set(Rest.model_fields) == set(Python.model_fields)
    for name in Rest.model_fields:
        assert default_of(Rest, name) == default_of(Python, name), name
    assert Python.model_validate(Rest().model_dump(mode="json")) == Python()


def test_the_command_asks_for_all_of_it_with_the_same_defaults() -> None:
    from partitioner.command import partition
    from partitioner.settings import PartitionSettings as Python

    options = {name: one.default for name, one in inspect.signature(partition).parameters.items()}
    options["results_sent"] = not options.pop("silent")
    for name in Python.model_fields:
        assert options[name] == default_of(Python, name), name


@pytest.mark.parametrize(
    "asked",
    [
        {"thresholds": (float("nan"),)},
        {"thresholds": (-1.0,)},
        {"confidence": 1 - 1e-14},
        {"max_accuracy_loss": 1e-12},
        {"uplink": "1e-305bit/s"},
        {"uplink": "1Mbit/s,1e303s"},
    ],
)
def test_what_nobody_can_mean_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises((ValidationError, PermanentError)):
        PartitionSettings(**asked)
