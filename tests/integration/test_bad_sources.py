"""Models whose source does harm: when it is trained, and when it is handed in. The service goes on as it was.

Its walls are low here: the training that never returns begins first, and reaches its wall while other things are tried.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from sluice.dev.processes import Processes
from tests.brokers.kafka import Kafka
from tests.integration.training_plane import SOURCE, Plane

pytestmark = [pytest.mark.brokers, pytest.mark.tensorflow, pytest.mark.timeout(600)]

HARM = {
    "never returns": ("time.sleep(600)", "the job took longer than 90 s and was ended"),
    "ends": ("sys.exit('I will not')", "line 4: SystemExit: I will not"),
    "ends at once": ("os._exit(3)", "the job ended by exit code 3"),
    "ends as if all were well": ("os._exit(0)", "the job ended by exit code 0"),
    "ends by a signal": ("os.kill(os.getpid(), 11)", "the job ended by signal SIGSEGV"),
    "ends by a signal without a name": ("os.kill(os.getpid(), 40)", "the job ended by signal 40"),
    "fails": ("raise ValueError('no such thing')", "line 9: ValueError: no such thing"),
    "eats memory": ("held = [b'1' * 50_000_000 for _ in range(100)]; time.sleep(600)", "its limit is 1500 MB"),
}
"""What a source does when it is trained, by the seed of the training; nothing when it is checked."""
HARMFUL = "\n".join(
    [
        "import json, os, sys, time",
        "seed = json.load(open('job.json'))['settings']['seed'] if 'cloud.training.job' in sys.modules else None",
        *(f"if seed == {number}: {what}" for number, (what, _) in enumerate(HARM.values())),
        SOURCE,
    ]
)
LIMITS = {"CLOUD_JOB_MEMORY_MB": "1500", "CLOUD_JOB_TIME_S": "90", "CLOUD_CHECK_TIME_S": "40"}


@pytest.fixture(scope="module")
def plane(kafka: Kafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with Processes(tmp_path_factory.mktemp("logs")) as processes:
        plane = Plane(processes, tmp_path_factory.mktemp("plane"), kafka, **LIMITS)
        plane.client.add_model("harmful", HARMFUL)
        yield plane
        plane.client.close()


@pytest.fixture(scope="module")
def endless(plane: Plane) -> dict[str, Any]:
    """A training that never returns, begun."""
    return plane.client.train("harmful", plane.good, seed=0)


@pytest.mark.usefixtures("endless")
def test_source_that_is_refused_when_it_is_handed_in(plane: Plane) -> None:
    """Within the time of a check, with the real error, while trainings go on beside it."""
    beside = plane.client.train("good", plane.good, epochs=2)["id"]
    for source, reason in [
        ("model = keras.Model(", "line 1: '(' was never closed"),
        ("x = 1\nimport kears", "line 2: ModuleNotFoundError: No module named 'kears'"),
        ("import sys\nsys.exit(1)", "line 2: SystemExit: 1"),
        ("import os\nos._exit(1)", "the job ended by exit code 1"),
        ("x = [b'1' * 50_000_000 for _ in range(100)]\nimport time\ntime.sleep(60)", "its limit is 1500 MB"),
        ("x = keras.Input((4,))", "leaves no variable `model`"),
        ("import time\nwhile True: time.sleep(1)", "the job took longer than 40 s and was ended"),
    ]:
        assert reason in plane.refused(partial(plane.client.add_model, "bad", source))
    assert plane.end_of(beside)["state"] == "done"
    assert "bad" not in {model["name"] for model in plane.client.models()}


def test_source_that_does_harm_when_it_is_trained(plane: Plane, endless: dict[str, Any]) -> None:
    """And not when it was checked."""
    started = [plane.client.train("harmful", plane.good, seed=number) for number in range(1, len(HARM))]
    for ended, (what, (_, reason)) in zip(plane.ends(endless, *started), HARM.items(), strict=True):
        assert ended["state"] == "failed" and reason in ended["reason"], (what, ended["reason"])
