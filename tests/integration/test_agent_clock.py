"""The agent's wall clock jumps while samples flow, on a real Mosquitto: what it decides, monotonic clocks decide."""

import json
import shutil
import time
from functools import partial
from pathlib import Path

import pytest

from sluice.dev.processes import Processes
from sluice.wire.messages import Offload
from tests.brokers.mosquitto import Mosquitto
from tests.e2e.chaos.clock import Clocks, NoClockError
from tests.integration.edge_support import Above, MadeBundle, User, agent_settings, broker_of, until

pytestmark = [pytest.mark.brokers, pytest.mark.tensorflow, pytest.mark.timeout(300)]

HOUR_S = 3600
JUMPS = (HOUR_S, 0, -HOUR_S, 0)
"""How far ahead the clock is, one after the other: forward, back, further back, forward."""


@pytest.fixture
def clocks(tmp_path: Path) -> Clocks:
    try:
        return Clocks(tmp_path / "clocks")
    except NoClockError as missing:
        pytest.skip(str(missing))


def sent_on(above: Above, readings: set[str]) -> bool:
    return readings <= {one.source_id for one in above.came if isinstance(one, Offload)}


def answered(user: User, readings: set[str]) -> bool:
    return readings <= user.finals().keys()


def test_an_hour_forward_and_back_ends_no_answer_early(
    made: MadeBundle,
    device: str,
    tmp_path: Path,
    processes: Processes,
    mosquitto: Mosquitto,
    clocks: Clocks,
) -> None:
    """Half of the samples wait for an answer from above across the jump, far less than their time to live."""
    broker = broker_of(mosquitto)
    shutil.copytree(made.folder, tmp_path / "data" / "bundles" / made.digest)
    patient = {"EDGE_SAMPLE_TTL_S": "600", "EDGE_ANSWER_TIMEOUT_S": "600"}
    own = agent_settings(made, device, tmp_path / "data", mosquitto) | patient
    own |= clocks.environment("agent")
    with User(broker, device) as user, Above(broker, device, answers=False) as above:
        agent = processes.start("agent", ["edge-agent"], own)
        agent.wait_ready()
        above.desire(made.desired(device))
        until(lambda: above.runs().bundle == made.digest)
        sent = 0
        for ahead_s in JUMPS:
            above.answers = False
            names = [f"r{sent + i}" for i in range(len(made.samples))]
            for name, sample in zip(names, made.samples, strict=True):
                user.measure(sample, name)
            hard = {names[i] for i in range(len(names)) if i not in made.easy}
            until(partial(sent_on, above, hard))
            clocks.set("agent", ahead_s)
            more = f"after-{ahead_s}-{sent}"
            user.measure(made.samples[made.easy[0]], more)
            until(partial(answered, user, {more}))
            assert not hard & user.finals().keys()
            above.answers = True
            for outcome in list(above.came):
                if isinstance(outcome, Offload) and outcome.source_id in hard:
                    above.answer(outcome)
            until(partial(answered, user, set(names)))
            sent += len(names)
        finals = [p for p in user.heard if p.status == "final"]
        assert len(finals) == len({p.source_id for p in finals}) == sent + len(JUMPS), "none came twice"
        assert {p.reason for p in finals} <= {"exit", "last"}, "none expired"
        assert not user.provisionals(), "none was given up"
        assert agent.stop() == 0


def test_windows_by_time_go_on_as_if_nothing_had_happened(
    made: MadeBundle, device: str, tmp_path: Path, processes: Processes, mosquitto: Mosquitto, clocks: Clocks
) -> None:
    """Of a sensor that brings no time: the moment of arrival counts, by a clock that nobody can set."""
    broker = broker_of(mosquitto)
    shutil.copytree(made.folder, tmp_path / "data" / "bundles" / made.digest)
    sensors = {"wheel": {"values_path": "v", "gap_s": 60}}
    grid = {"sensors": ["wheel"], "rate_hz": 20, "window": 36, "hop": 6}
    own = agent_settings(made, device, tmp_path / "data", mosquitto) | clocks.environment("agent")
    own |= {
        "EDGE_REPORT_INTERVAL_S": "0.5",
        "EDGE_SENSORS": json.dumps(sensors),
        "EDGE_INPUTS": json.dumps({"columns": grid}),
    }
    with User(broker, device) as user, Above(broker, device) as above:
        agent = processes.start("agent", ["edge-agent"], own)
        agent.wait_ready()
        above.desire(made.desired(device))
        until(lambda: above.runs().bundle == made.digest)

        def answered() -> int:
            return len({(p.epoch, p.seq) for p in user.heard if p.status == "final"})

        def turns(until_answered: int) -> bool:
            """One more reading; whether so many windows were answered."""
            user.door.publish(f"sluice/{device}/sensor/wheel", b'{"v": 7}')
            time.sleep(0.02)  # the sensor's pace, which its windows are made of
            return answered() >= until_answered

        for ahead_s in (0, *JUMPS):
            clocks.set("agent", ahead_s)
            until(partial(turns, answered() + 5))
        before = len(above.reported)
        until(lambda: turns(0) and len(above.reported) > before)
        assert agent.stop() == 0
        counters = above.reported[-1].counters
        lost = {name: counters.get(name, 0) for name in ("windows_dropped", "readings_late", "clocks_set_back")}
        assert lost == dict.fromkeys(lost, 0)
        finals = [(p.epoch, p.seq) for p in user.heard if p.status == "final"]
        assert len(finals) == len(set(finals)), "none came twice"
