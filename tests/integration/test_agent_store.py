"""The agent and where it keeps things: a full disk, no disk, few writes, brokers that are silent when it stops."""

import json
import os
import shutil
import signal
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from edge_agent.agent import Agent
from edge_agent.settings import EdgeSettings
from edge_agent.store import Store
from sluice.daemon.settings import load
from sluice.dev.processes import Processes
from sluice.doors.mqtt import Incoming
from sluice.wire import messages
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


@pytest.mark.parametrize("interval_s", ["0", "6"])
def test_an_orderly_stop_doubles_nothing(
    made: MadeBundle, device: str, tmp_path: Path, processes: Processes, mosquitto: Mosquitto, interval_s: str
) -> None:
    """Readings without an id, not made durable yet when the agent is told to stop: each is a sample once."""
    put_bundle(made, tmp_path / "data")
    settings = agent_settings(made, device, tmp_path / "data", mosquitto) | {"EDGE_COMMIT_INTERVAL_S": interval_s}
    with User(broker_of(mosquitto), device) as user, Above(broker_of(mosquitto), device) as above:
        above.desire(made.desired(device))
        agent = processes.start("agent", ["edge-agent"], settings)
        runs(above, made)
        for sample in made.samples[:10]:
            user.measure(sample, None)
        time.sleep(1)  # they are in the agent
        assert agent.stop() == 0
        agent.start()
        user.measure(made.samples[10], "last")  # comes after whatever comes again
        until(lambda: "last" in user.finals())
        assert agent.stop() == 0
        assert len({p.seq for p in user.heard if p.status == "final"}) == 11
        until(lambda: len({o.seq for o in above.came}) == 11)


def test_told_to_stop_it_works_on_what_it_has_taken_in(made: MadeBundle, device: str, tmp_path: Path) -> None:
    """A reading of QoS 0 comes only once: one that is here is not thrown away."""
    put_bundle(made, tmp_path / "data")
    with Mosquitto() as mosquitto, User(broker_of(mosquitto), device) as user:
        with Above(broker_of(mosquitto), device) as above:
            above.desire(made.desired(device))
            environment = agent_settings(made, device, tmp_path / "data", mosquitto)
            with pytest.MonkeyPatch.context() as patched:
                for name, value in environment.items():
                    patched.setenv(name, value)
                agent = Agent(load(EdgeSettings))
            stop = threading.Event()
            main = threading.Thread(target=agent.run, args=(stop,))
            main.start()
            runs(above, made)
            with agent.mail._changed:  # the main loop sees nothing of it before it sees that it is to stop
                for i in range(100):
                    body = json.dumps({"values": made.samples[i % len(made.samples)].tolist(), "id": f"r{i}"})
                    agent.mail.put_reading(Incoming(f"sluice/{device}/sensor/x", body.encode(), 0, False, i, 1))
                stop.set()
            main.join(10)
            assert not main.is_alive()
            again = Store(tmp_path / "data")
            rows = list(again.rows())
            again.close()
            kept = {messages.decode(row.payload).source_id for row in rows}
            until(lambda: {o.source_id for o in above.came} | kept == {f"r{i}" for i in range(100)})
        until(lambda: set(user.finals()) >= {f"r{i}" for i in range(100) if i % len(made.samples) in made.easy})
        assert not [row.seq for row in rows if row.kind == "prediction" and not row.told], "would be told again"


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
