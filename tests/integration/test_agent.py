"""The agent on real Mosquitto with a real bundle: killed, cut off, restarted without a network, fed with rubbish."""

import json
import os
import queue
import secrets
import shutil
import signal
import socket
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from sluice.dev.processes import Process, Processes, free_port, sluice_command
from sluice.doors.mqtt import Incoming, MqttDoor
from sluice.stage.step import unpack
from sluice.wire import bundle as bundles
from sluice.wire.errors import PermanentError
from sluice.wire.messages import Offload, Prediction
from sluice.wire.state import DeadLetter, DeviceStatus, parse_state
from tests.brokers.mosquitto import Mosquitto
from tests.integration.edge_support import (
    POINT,
    Above,
    MadeBundle,
    User,
    agent_settings,
    broker_of,
    rss_kb,
    until,
)
from tests.unit.edge_stand_ins import KEY

pytestmark = [pytest.mark.brokers, pytest.mark.tensorflow, pytest.mark.timeout(300)]


@pytest.fixture
def data(tmp_path: Path, made: MadeBundle) -> Path:
    """The agent's data folder with the bundle put into it by hand."""
    shutil.copytree(made.folder, tmp_path / "data" / "bundles" / made.digest)
    return tmp_path / "data"


def start(processes: Processes, settings: dict[str, str]) -> Process:
    agent = processes.start("agent", ["edge-agent"], settings)
    agent.wait_ready()
    return agent


def runs(above: Above, made: MadeBundle) -> None:
    """Wait until the device reports that it runs the bundle."""
    until(lambda: above.runs().bundle == made.digest)
    assert above.runs().operating_point == POINT


def test_a_device_that_is_killed_is_told_to_be_offline(
    made: MadeBundle, device: str, data: Path, processes: Processes, mosquitto: Mosquitto
) -> None:
    """By its last will, retained: those who come later are told as well."""

    def told() -> str | None:
        """What the broker keeps for one who comes now."""
        heard: queue.SimpleQueue[Incoming] = queue.SimpleQueue()
        door = MqttDoor(
            "late",
            broker_of(mosquitto),
            f"late-{secrets.token_hex(4)}",
            subscriptions=[(f"sluice/{device}/status", 1)],
            on_message=heard.put,
        )
        door.start()
        try:
            incoming = heard.get(timeout=30)
        finally:
            door.stop()
        return parse_state(DeviceStatus, incoming.payload).status if incoming.retained else None

    agent = start(processes, agent_settings(made, device, data, mosquitto))
    until(lambda: told() == "online")
    agent.kill()
    until(lambda: told() == "offline")
    agent.start()
    agent.wait_ready()
    until(lambda: told() == "online")
    assert agent.stop() == 0
    until(lambda: told() == "offline")


@pytest.mark.parametrize("mode", ["each", "batches"])
def test_killed_again_and_again_every_reading_is_answered(
    made: MadeBundle, device: str, data: Path, processes: Processes, mosquitto: Mosquitto, mode: str
) -> None:
    """However its predictions go up: one by one or together."""
    broker = broker_of(mosquitto)
    with User(broker, device) as user, Above(broker, device) as above:
        above.desire(made.desired(device))
        own = {"EDGE_RECEIPT_TIMEOUT_S": "1", "EDGE_PREDICTIONS__MODE": mode}
        own |= {"EDGE_PREDICTIONS__WAIT_S": "0.3"} if mode == "batches" else {}
        agent = start(processes, agent_settings(made, device, data, mosquitto) | own)
        runs(above, made)
        ids = []
        for round_ in range(4):
            for i in range(60):
                ids.append(f"r{round_}-{i}")
                user.measure(made.samples[i], ids[-1])
                if i == 15 * round_ and round_:
                    until(lambda: len(user.finals()) >= len(ids) // 3)
                    agent.kill()
                    agent.start()
        until(lambda: user.finals().keys() == set(ids))
        until(lambda: {o.source_id for o in above.came} == set(ids))
        samples = {(p.epoch, p.seq): p.source_id for p in user.heard}
        assert {(o.epoch, o.seq): o.source_id for o in above.came}.items() <= samples.items()
        assert len({epoch for epoch, _ in samples}) == 1
        assert len(set(samples.values())) == len(samples) == len(ids)
        for i in range(60):
            assert user.finals()[f"r0-{i}"].tier == ("edge" if i in made.easy else "cloud")
        agent.wait_ready()
        assert agent.stop() == 0


def test_without_a_link_it_answers_at_once_and_sends_everything_later_in_order(
    made: MadeBundle, device: str, data: Path, processes: Processes, mosquitto: Mosquitto
) -> None:
    with Mosquitto() as far, User(broker_of(mosquitto), device) as user, Above(broker_of(far), device) as above:
        above.desire(made.desired(device))
        # nothing but the missing link makes it answer provisionally here
        more = {"EDGE_ANSWER_TIMEOUT_S": "3600", "EDGE_SAMPLE_TTL_S": "3600"}
        agent = start(processes, agent_settings(made, device, data, mosquitto, far, **more))
        runs(above, made)
        user.measure(made.samples[made.hard[0]], "before")
        until(lambda: "before" in user.finals())
        assert user.provisionals() == {}
        far.kill()
        until(lambda: "uplink: MQTT broker" in agent.log.read_text())
        count = len(made.samples)
        for i in range(count):
            user.measure(made.samples[i], f"cut-{i}")
        until(lambda: len(user.heard) == 1 + count)
        assert user.provisionals().keys() == {f"cut-{i}" for i in made.hard}
        assert {p.reason for p in user.provisionals().values()} == {"offline"}
        assert user.finals().keys() == {"before", *(f"cut-{i}" for i in made.easy)}
        far.start()
        until(lambda: len(user.finals()) == 1 + count)
        assert all(user.finals()[f"cut-{i}"].tier == "cloud" for i in made.hard)
        for kind in (Offload, Prediction):
            order = list(dict.fromkeys(o.seq for o in above.came if isinstance(o, kind)))
            assert order == sorted(order)
        assert agent.log.read_text().count("uplink: MQTT broker") <= 2, "that it went, and that it takes no connection"
        assert len(user.heard) == 1 + count + len(made.hard)


def test_it_takes_up_its_bundle_without_any_network_above(
    made: MadeBundle, device: str, data: Path, processes: Processes, mosquitto: Mosquitto
) -> None:
    with Mosquitto() as far, User(broker_of(mosquitto), device) as user:
        with Above(broker_of(far), device) as above:
            above.desire(made.desired(device))
            agent = start(processes, agent_settings(made, device, data, mosquitto, far))
            runs(above, made)
        far.kill()
        agent.kill()
        agent.start()
        user.measure(made.samples[made.easy[0]], "easy")
        user.measure(made.samples[made.hard[0]], "hard")
        until(lambda: "easy" in user.finals() and "hard" in user.provisionals())
        assert user.finals()["easy"].tier == "edge" and user.provisionals()["hard"].reason == "offline"
        far.start()


def test_rubbish_from_a_sensor_goes_up_as_dead_letters_and_the_next_reading_is_served(
    made: MadeBundle, device: str, data: Path, processes: Processes, mosquitto: Mosquitto
) -> None:
    rubbish = [
        (b"\xff" * 300_000, "not JSON"),
        (b'{"id": "\\ud800", "values": [1]}', "not Unicode text"),
        (b'{"id": "x", "values": [1, 2]}', "2 values"),
        (b"x" * 1_000_001, "over the limit"),
    ]
    with User(broker_of(mosquitto), device) as user, Above(broker_of(mosquitto), device) as above:
        above.desire(made.desired(device))
        agent = start(processes, agent_settings(made, device, data, mosquitto))
        runs(above, made)
        for payload, _ in rubbish:
            user.publish(payload)
        user.measure(made.samples[0], "good")
        until(lambda: "good" in user.finals() and len(above.letters) == len(rubbish))
        letters = [
            parse_state(DeadLetter, letter) for letter in above.letters
        ]  # as the gateway reads it, with its bound
        assert {letter.origin for letter in letters} == {f"sluice/{device}/sensor/camera"}
        for _, reason in rubbish:
            assert sum(reason in letter.reason for letter in letters) == 1
        until(lambda: above.reported[-1].counters.get("refused") == len(rubbish))
        assert agent.stop() == 0


def test_dead_letters_wait_on_disk_for_the_link(
    made: MadeBundle, device: str, data: Path, processes: Processes, mosquitto: Mosquitto
) -> None:
    with Mosquitto() as far, User(broker_of(mosquitto), device) as user:
        with Above(broker_of(far), device) as above:
            above.desire(made.desired(device))
            agent = start(processes, agent_settings(made, device, data, mosquitto, far))
            runs(above, made)
        far.kill()
        user.publish(b"rubbish")
        user.measure(made.samples[made.easy[0]], "behind it")
        until(lambda: "behind it" in user.finals())
        agent.kill()
        far.start()
        with Above(broker_of(far), device) as above:
            agent.start()
            until(lambda: above.letters)
            agent.stop()
            agent.start()
            until(lambda: len(above.reported) > 1)
            assert ["not JSON" in parse_state(DeadLetter, letter).reason for letter in above.letters] == [True]


@pytest.mark.parametrize("version", ["5", "3"])
def test_a_retained_reading_is_no_new_sample_at_each_start(
    made: MadeBundle, device: str, data: Path, processes: Processes, mosquitto: Mosquitto, version: str
) -> None:
    settings = agent_settings(made, device, data, mosquitto, EDGE_SENSOR_BROKER__VERSION=version)
    with User(broker_of(mosquitto), device) as user, Above(broker_of(mosquitto), device) as above:
        above.desire(made.desired(device))
        agent = start(processes, settings)
        runs(above, made)
        easy = made.samples[made.easy[0]]
        reading = json.dumps({"values": easy.tolist()}).encode()
        user.door.publish(f"sluice/{device}/sensor/camera", reading, retain=True)
        until(lambda: user.heard)

        def answered(reading: str) -> bool:
            return reading in user.finals()

        for count in (2, 3):
            assert agent.stop() == 0
            agent.start()
            agent.wait_ready()
            user.measure(easy, f"reading {count}")  # what is retained comes before it
            until(partial(answered, f"reading {count}"))
        assert len({answer.seq for answer in user.heard}) == 3
        assert agent.stop() == 0


def test_readings_that_nothing_takes_are_bounded_in_bytes(
    made: MadeBundle, device: str, tmp_path: Path, processes: Processes, mosquitto: Mosquitto
) -> None:
    """No model runs, so readings wait; 200 MB of them at QoS 0, which no broker counts, and some that are too large."""
    with User(broker_of(mosquitto), device) as user, Above(broker_of(mosquitto), device) as above:
        agent = start(
            processes, agent_settings(made, device, tmp_path / "data", mosquitto, EDGE_READINGS_BYTES="3000000")
        )
        until(lambda: above.reported)
        before = rss_kb(agent.child.pid)
        topic = f"sluice/{device}/sensor/camera"
        user.publish(bytes(1_000_001))
        until(lambda: above.letters)
        assert "1000001 bytes is over" in parse_state(DeadLetter, above.letters[0]).reason
        sizes = [before]

        def settled() -> bool:
            time.sleep(0.5)
            sizes.append(rss_kb(agent.child.pid))
            return sizes[-1] > before + 2000 and max(sizes[-4:]) - min(sizes[-4:]) < 1000

        for _ in range(200):
            user.door.publish(topic, bytes(900_000), qos=0)
        until(settled)
        assert max(sizes) < before + 30_000
        assert agent.running and agent.stop() == 0


def test_what_it_cannot_run_is_refused_and_what_runs_goes_on(
    made: MadeBundle, device: str, data: Path, processes: Processes, mosquitto: Mosquitto
) -> None:
    """A codec of a newer version, an older revision, a damaged bundle."""
    with User(broker_of(mosquitto), device) as user, Above(broker_of(mosquitto), device) as above:
        above.desire(made.desired(device, revision=4))
        agent = start(processes, agent_settings(made, device, data, mosquitto))
        runs(above, made)
        newer = made.changed(data / "bundles", codec="of-the-future")
        above.desire(made.desired(device, revision=5, digest=newer))
        until(lambda: above.reported[-1].revision == 5)
        assert "codec 'of-the-future' is unknown" in str(above.reported[-1].last_error)
        assert above.runs().bundle == made.digest
        above.desire(made.desired(device, revision=3))
        until(lambda: "older than 5" in str(above.reported[-1].last_error))
        assert "refused" not in above.reported[-1].counters, "a gateway that was restarted brings it: no dead letter"
        user.measure(made.samples[0], "still")
        until(lambda: "still" in user.finals())

        agent.stop()
        blob = bundles.open_bundle(made.folder).manifest.segments[0].file.sha256
        (data / "bundles" / made.digest / bundles.BLOBS / blob).write_bytes(secrets.token_bytes(100))
        agent.start()
        until(lambda: "cannot be taken up" in agent.log.read_text())
        until(lambda: "older than" in agent.log.read_text().partition("cannot be taken up")[2])
        assert agent.stop() == 0


def test_it_measures_its_segments_on_request_while_it_works(
    made: MadeBundle, device: str, data: Path, processes: Processes, mosquitto: Mosquitto
) -> None:
    """Once for a request, also over a restart; another request is answered anew."""
    with User(broker_of(mosquitto), device) as user, Above(broker_of(mosquitto), device) as above:
        above.desire(made.desired(device))
        agent = start(processes, agent_settings(made, device, data, mosquitto))
        runs(above, made)
        assert above.reported[-1].measured is None
        above.desire(made.desired(device, revision=2, profile="profile-1"))
        user.measure(made.samples[made.easy[0]], "meanwhile")
        first = until(lambda: above.reported[-1].measured)
        assert (first.request, first.bundle, above.reported[-1].revision) == ("profile-1", made.digest, 2)
        (segment,) = first.segments
        assert segment.index == 0 and segment.us.keys() == {"1", "8", "32"} and first.memory_mb > 1
        until(lambda: "meanwhile" in user.finals())
        agent.stop()
        agent.start()
        reports = len(above.reported)
        until(lambda: len(above.reported) > reports and above.runs().bundle)
        assert above.reported[-1].measured == first
        above.desire(made.desired(device, revision=3, profile="profile-2"))
        until(lambda: above.reported[-1].measured != first)
        assert above.reported[-1].measured is not None and above.reported[-1].measured.request == "profile-2"
        assert agent.log.read_text().count("measured 1 segments") == 2
        assert agent.stop() == 0


def test_audits_of_what_it_answered_go_up_and_nobody_hears_of_them(
    made: MadeBundle, device: str, data: Path, processes: Processes, mosquitto: Mosquitto
) -> None:
    """Tensors and all, as if the exit had not answered; also with predictions that do not go up at all."""
    own = {"EDGE_AUDIT_SHARE": "1", "EDGE_PREDICTIONS__MODE": "changes"}
    with User(broker_of(mosquitto), device) as user, Above(broker_of(mosquitto), device) as above:
        above.desire(made.desired(device))
        agent = start(processes, agent_settings(made, device, data, mosquitto) | own)
        runs(above, made)
        for i, sample in enumerate(made.samples):
            user.measure(sample, str(i))
        until(lambda: len(user.finals()) == len(made.samples))
        audits = until(
            lambda: (found := [o for o in above.came if o.audit is not None]) and len(found) == len(made.easy) and found
        )
        told = {p.seq: p for p in user.heard}
        assert len(user.heard) == len(told) == len(made.samples), "the answers to audits are not told"
        manifest = bundles.open_bundle(made.folder).manifest
        for audit in audits:
            assert isinstance(audit, Offload) and audit.audit is not None and audit.seq not in told
            answered = told[audit.audit.of]
            assert (audit.source_id, audit.audit.label) == (answered.source_id, answered.label)
            assert audit.tier == "cloud" and unpack(audit, manifest).tensors
        assert {int(audit.source_id or "") for audit in audits} == set(made.easy)
        assert agent.stop() == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"EDGE_DEVICE_ID": None}, "device_id"),
        ({"EDGE_DEVICE_ID": "Upper Case"}, "device_id"),
        ({"EDGE_PUBLIC_KEYS": "[]"}, "public_keys"),
        ({"EDGE_PUBLIC_KEYS": '["abc"]'}, "public_keys"),
        ({"EDGE_SENSOR_BROKER__PORT": "many"}, "sensor_broker.port"),
        ({"EDGE_SENSOR__FORMAT": "xml"}, "sensor.format"),
        ({"EDGE_BATCH_MOST": "0"}, "batch_most"),
    ],
)
def test_wrong_settings_end_it_in_one_line_that_names_them(
    tmp_path: Path, change: dict[str, str | None], named: str
) -> None:
    settings = {"EDGE_DEVICE_ID": "d", "EDGE_PUBLIC_KEYS": f'["{KEY}"]', "EDGE_DATA": str(tmp_path / "data"), **change}
    with Processes(tmp_path) as processes, pytest.raises(PermanentError) as caught:
        processes.run(["edge-agent"], {name: value for name, value in settings.items() if value is not None})
    said = str(caught.value).partition("failed: ")[2]
    assert named in said and len(said.splitlines()) == 1
    assert not (tmp_path / "data").exists()


def checked(settings: dict[str, str]) -> tuple[int, dict[str, tuple[bool, str]]]:
    """Exit code of `--check`, and what it found."""
    command = [*sluice_command(), "edge-agent", "--check", "--json"]
    environment = {"PATH": os.environ["PATH"], **settings}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, {one["what"]: (one["right"], one["said"]) for one in json.loads(done.stdout)}


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_check_says_what_is_there_and_what_is_wrong(
    made: MadeBundle, device: str, data: Path, processes: Processes, mosquitto: Mosquitto
) -> None:
    broker = broker_of(mosquitto)
    settings = agent_settings(made, device, data, mosquitto)
    code, found = checked(settings)
    assert code == 2, "the control plane is away"
    wrong = {what for what, (right, _) in found.items() if not right}
    assert wrong == {"control plane"} and "none yet" in found["bundle"][1]

    with Above(broker, device) as above:
        above.desire(made.desired(device))
        agent = start(processes, settings)
        runs(above, made)
        assert checked(settings)[1]["bundle"] == (True, "not looked at: an agent is at work here")
        assert agent.running and agent.stop() == 0
    there = files_in(data)
    assert "golden samples pass" in checked(settings)[1]["bundle"][1]
    assert files_in(data) == there, "nothing is changed"
    agent.start()
    agent.wait_ready()
    agent.kill()
    there = files_in(data)
    assert "golden samples pass" in checked(settings)[1]["bundle"][1]
    assert files_in(data) == there, "nor after a crash"

    blob = bundles.open_bundle(made.folder).manifest.segments[0].file.sha256  # others are not the device's
    (data / "bundles" / made.digest / bundles.BLOBS / blob).write_bytes(b"flipped")
    elsewhere = {"EDGE_SENSOR_BROKER__PORT": str(free_port())}
    code, found = checked(settings | elsewhere)
    assert code == 2 and not found["bundle"][0] and "damaged" in found["bundle"][1]
    assert not found["sensor broker"][0] and "Connection refused" in found["sensor broker"][1]


def test_systemd_hears_that_it_is_ready_alive_and_stopping(
    made: MadeBundle, device: str, data: Path, processes: Processes, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"}
        agent = start(processes, agent_settings(made, device, data, mosquitto) | told)
        assert [systemd.recv(100) for _ in range(4)] == [b"READY=1", *[b"WATCHDOG=1"] * 3]
        os.kill(agent.child.pid, signal.SIGSTOP)
        systemd.settimeout(1.0)
        with pytest.raises(TimeoutError):  # what was said before it stood still is heard first
            while True:
                assert systemd.recv(100) == b"WATCHDOG=1"
        os.kill(agent.child.pid, signal.SIGCONT)
        assert systemd.recv(100) == b"WATCHDOG=1"
        assert agent.stop() == 0
        heard = []
        with pytest.raises(TimeoutError):
            while True:
                heard.append(systemd.recv(100))
        assert heard[-1] == b"STOPPING=1"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_the_unit_is_one_that_systemd_understands(tmp_path: Path) -> None:
    unit = Path(__file__).parents[2] / "deploy" / "systemd" / "sluice-edge-agent.service"
    here = tmp_path / unit.name
    here.write_text(unit.read_text().replace("/opt/sluice/bin/python", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", str(here)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
