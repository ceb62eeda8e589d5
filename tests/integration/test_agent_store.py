"""The agent and where it keeps things: a full disk, no disk, few writes, brokers that are silent when it stops."""

import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from sluice.dev.processes import Processes
from tests.brokers.mosquitto import Mosquitto
from tests.integration.edge_support import Above, MadeBundle, User, agent_settings, broker_of, until
from tests.small_disk import fill, small_disk

pytestmark = [pytest.mark.brokers, pytest.mark.tensorflow, pytest.mark.timeout(300)]
__all__ = ["small_disk"]  # a fixture


def put_bundle(made: MadeBundle, data: Path) -> None:
    shutil.copytree(made.folder, data / "bundles" / made.digest)


def runs(above: Above, made: MadeBundle) -> None:
    until(lambda: above.runs().bundle == made.digest)


def ran(above: Above, times: int) -> bool:
    """Whether the bundle was taken up so many times."""
    return len({run.since_us for report in above.reported for run in report.runs if run.bundle}) == times


def heard(user: User, count: int) -> bool:
    return len(user.finals()) == count


def test_a_full_disk_makes_it_wait_and_nothing_is_lost(
    made: MadeBundle, device: str, small_disk: Path, processes: Processes, mosquitto: Mosquitto
) -> None:
    """It says so once, acknowledges nothing, is not started again and again, and goes on by itself."""
    put_bundle(made, small_disk)
    settings = agent_settings(made, device, small_disk, mosquitto)
    with User(broker_of(mosquitto), device) as user, Above(broker_of(mosquitto), device) as above:
        above.desire(made.desired(device))
        agent = processes.start("agent", ["edge-agent"], settings)
        runs(above, made)
        user.measure(made.samples[0], "before")
        until(lambda: "before" in user.finals())
        filled = fill(small_disk)
        ids = [f"r{i}" for i in range(300)]
        for i, name in enumerate(ids):
            user.measure(made.samples[i % len(made.samples)], name)
        until(lambda: "nothing is taken in" in str(above.reported[-1].last_error))
        told = len(user.heard)
        time.sleep(3)  # for what should not come
        assert len(user.heard) == told < len(ids) and agent.running
        filled.unlink()
        until(lambda: user.finals().keys() == {"before", *ids})
        until(lambda: {o.source_id for o in above.came} == {"before", *ids})
        until(lambda: above.reported[-1].last_error is None)
        assert len({(p.epoch, p.seq) for p in user.heard}) == len(user.heard) == 1 + len(ids)
        log = agent.log.read_text()
        assert log.count("nothing is taken in") == log.count("can be written again") == 1
        assert agent.stop() == 0


def test_told_to_stop_while_the_disk_is_full_it_stops_and_goes_on_later(
    made: MadeBundle, device: str, small_disk: Path, processes: Processes, mosquitto: Mosquitto
) -> None:
    put_bundle(made, small_disk)
    settings = agent_settings(made, device, small_disk, mosquitto)
    with User(broker_of(mosquitto), device) as user, Above(broker_of(mosquitto), device) as above:
        above.desire(made.desired(device))
        agent = processes.start("agent", ["edge-agent"], settings)
        runs(above, made)
        filled = fill(small_disk)
        ids = [f"r{i}" for i in range(100)]
        for i, name in enumerate(ids):
            user.measure(made.samples[i % len(made.samples)], name)
        until(lambda: "nothing is taken in" in str(above.reported[-1].last_error))
        assert agent.stop() == 0
        filled.unlink()
        agent.start()
        until(lambda: user.finals().keys() == set(ids))
        assert agent.stop() == 0


def test_in_memory_it_works_as_ever_and_begins_anew_after_a_restart(
    made: MadeBundle, device: str, tmp_path: Path, processes: Processes, mosquitto: Mosquitto
) -> None:
    put_bundle(made, tmp_path / "data")
    settings = agent_settings(made, device, tmp_path / "data", mosquitto) | {"EDGE_STORE": "memory"}
    with User(broker_of(mosquitto), device) as user, Above(broker_of(mosquitto), device) as above:
        above.desire(made.desired(device))
        agent = processes.start("agent", ["edge-agent"], settings)
        for start in range(2):
            until(partial(ran, above, start + 1))
            for i, sample in enumerate(made.samples):
                user.measure(sample, f"r{start}-{i}")
            until(partial(heard, user, (start + 1) * len(made.samples)))
            agent.kill()
            if not start:
                agent.start()
        assert len({p.epoch for p in user.heard}) == 2
        assert [path.name for path in (tmp_path / "data").iterdir()] == ["bundles"]


def test_fewer_writes_for_more_latency_and_nothing_is_told_before_it_is_durable(
    made: MadeBundle, device: str, tmp_path: Path, processes: Processes, mosquitto: Mosquitto
) -> None:
    put_bundle(made, tmp_path / "data")
    few = {"EDGE_COMMIT_INTERVAL_S": "1", "EDGE_REPORT_INTERVAL_S": "0.5"}
    with User(broker_of(mosquitto), device) as user, Above(broker_of(mosquitto), device) as above:
        above.desire(made.desired(device))
        settings = agent_settings(made, device, tmp_path / "data", mosquitto) | few
        agent = processes.start("agent", ["edge-agent"], settings)
        runs(above, made)
        ids = [f"r{i}" for i in range(120)]
        for i, name in enumerate(ids):
            user.measure(made.samples[i % len(made.samples)], name)
            if i == 60:
                until(lambda: len(user.finals()) >= 20)
                agent.kill()  # what was not durable was told to nobody
                agent.start()
            time.sleep(0.02)
        until(lambda: user.finals().keys() == set(ids))
        until(lambda: {o.source_id for o in above.came} == set(ids))
        assert len({(p.epoch, p.seq) for p in user.heard}) == len({p.source_id for p in user.heard}) == len(ids)
        written = until(lambda: above.reported[-1].counters.get("store_writes"))
        assert written < len(ids) / 4
        assert agent.stop() == 0


def test_told_to_stop_while_both_brokers_are_silent_it_stops_within_five_seconds(
    made: MadeBundle, device: str, tmp_path: Path, processes: Processes
) -> None:
    put_bundle(made, tmp_path / "data")
    with Mosquitto() as near, Mosquitto() as far:
        with User(broker_of(near), device) as user, Above(broker_of(far), device) as above:
            above.desire(made.desired(device))
            agent = processes.start("agent", ["edge-agent"], agent_settings(made, device, tmp_path / "data", near, far))
            runs(above, made)
            for i, sample in enumerate(made.samples):
                user.measure(sample, f"r{i}")
            until(lambda: len(user.finals()) > 10)
            for broker in (near, far):
                os.kill(broker.pid, signal.SIGSTOP)
            try:
                begun = time.monotonic()
                assert agent.stop() == 0
                assert time.monotonic() - begun < 5 + 2  # the process's own end, on a busy machine
            finally:
                for broker in (near, far):
                    os.kill(broker.pid, signal.SIGCONT)
        assert "Traceback" not in agent.log.read_text()
