"""The real agent on the emulated device, against a native Mosquitto: answers, updates, kill -9, SIGTERM."""

import functools
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sluice.dev.processes import Process, Processes
from sluice.wire import bundle as bundles
from sluice.wire.messages import Offload, Prediction
from sluice.wire.state import Bounds
from tests.brokers.mosquitto import Mosquitto
from tests.device.machine import Machine
from tests.integration import edge_support
from tests.integration.control_plane import ControlPlane
from tests.integration.edge_support import (
    Above,
    MadeBundle,
    User,
    agent_settings,
    broker_of,
    write,
)

PATIENT = {"EDGE_ANSWER_TIMEOUT_S": "600", "EDGE_SAMPLE_TTL_S": "600"}
pytestmark = [pytest.mark.brokers, pytest.mark.tensorflow, pytest.mark.timeout(900)]

until = functools.partial(edge_support.until, patience_s=240.0)
"""What is emulated is slow, more so where others work."""


@pytest.fixture
def control_plane(tmp_path: Path) -> Iterator[ControlPlane]:
    plane = ControlPlane(tmp_path / "http")
    yield plane
    plane.close()


@pytest.fixture
def device(unique: str) -> str:
    return f"pi-{unique}"


def start(processes: Processes, pi: Machine, settings: dict[str, str]) -> Process:
    agent = processes.start("agent", ["edge-agent"], pi.environment() | settings, pi.sluice())
    agent.wait_ready(120)
    return agent


def provisioned(made: MadeBundle, data: Path) -> Path:
    """The agent's data folder with the bundle put into it by hand."""
    shutil.copytree(made.folder, data / "bundles" / made.digest)
    return data


def spoiled(made: MadeBundle, folder: Path) -> str:
    """The bundle with other golden outputs, rightly signed, under `folder`; returns its digest."""
    manifest = bundles.open_bundle(made.folder).manifest
    first, *others = manifest.segments
    with np.load(io.BytesIO(bundles.read_blob(made.folder / bundles.BLOBS, first.golden))) as arrays:
        samples = {name: arrays[name] for name in arrays.files}
    assert first.exit is not None
    samples[f"out.{first.exit.logits}"] = samples[f"out.{first.exit.logits}"] + np.float32(0.5)
    packed = io.BytesIO()
    np.savez(packed, **samples)
    source = folder / "spoiled"
    shutil.copytree(made.folder, source)
    golden = bundles.write_blob(source / bundles.BLOBS, packed.getvalue())
    changed = manifest.model_copy(update={"segments": (first.model_copy(update={"golden": golden}), *others)})
    (point,) = manifest.operating_points
    return write(source, folder, changed, point, made.key)


def test_a_reading_becomes_an_answer_there_or_from_above(
    pi: Machine, floats: MadeBundle, device: str, processes: Processes, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    """Offloads go up and come back as answers, what is receipted leaves the outbox, SIGTERM ends it in good order."""
    data = provisioned(floats, tmp_path / "data")
    with User(broker_of(mosquitto), device) as user, Above(broker_of(mosquitto), device) as above:
        above.desire(floats.desired(device))
        agent = start(processes, pi, agent_settings(floats, device, data, mosquitto) | PATIENT)
        until(lambda: above.runs().bundle == floats.digest)
        assert above.reported[-1].profile["machine"] == "aarch64"
        for i, sample in enumerate(floats.samples):
            user.measure(sample, f"r{i}")
        until(lambda: len(user.finals()) == len(floats.samples))
        until(lambda: len(above.came) == len(floats.samples))
        assert {i for i in range(len(floats.samples)) if user.finals()[f"r{i}"].tier == "edge"} == set(floats.easy)
        assert {o.source_id for o in above.came if isinstance(o, Offload)} == {f"r{i}" for i in floats.hard}
        assert user.provisionals() == {} and len(user.heard) == len(floats.samples)
        assert agent.stop() == 0
        assert "stopped" in agent.tail(1), "it was ended as it stood"
        came = len(above.came)
        agent.start()
        agent.wait_ready(120)
        user.measure(floats.samples[floats.easy[0]], "after")
        until(lambda: "after" in user.finals() and len(above.came) > came)
        assert [o.source_id for o in above.came[came:]] == ["after"], "everything else was receipted"


def test_an_update_is_fetched_and_proven_and_a_bad_one_is_refused(
    pi: Machine,
    floats: MadeBundle,
    integers: MadeBundle,
    device: str,
    processes: Processes,
    mosquitto: Mosquitto,
    control_plane: ControlPlane,
    tmp_path: Path,
) -> None:
    """float32, then int8 over HTTP; one that fails its golden samples changes nothing; and back without a download."""
    bad = spoiled(integers, tmp_path / "made")
    for folder in (floats.folder, integers.folder, tmp_path / "made" / bad):
        control_plane.offer(folder)
    settings = agent_settings(floats, device, tmp_path / "data", mosquitto, EDGE_CLOUD_URL=control_plane.url)
    settings["EDGE_PUBLIC_KEYS"] = json.dumps([floats.public_key, integers.public_key])
    with User(broker_of(mosquitto), device) as user, Above(broker_of(mosquitto), device) as above:

        def answered_by(made: MadeBundle, source_id: str) -> None:
            user.measure(made.samples[made.easy[0]], source_id)
            until(lambda: source_id in user.finals())
            assert (user.finals()[source_id].bundle, user.finals()[source_id].tier) == (made.digest, "edge")

        above.desire(floats.desired(device, 1))
        agent = start(processes, pi, settings)
        until(lambda: above.runs().bundle == floats.digest)
        answered_by(floats, "first")
        above.desire(integers.desired(device, 2))
        until(lambda: above.runs().bundle == integers.digest)
        answered_by(integers, "updated")
        above.desire(integers.desired(device, 3, bad))
        until(lambda: above.reported[-1].revision == 3)
        assert "fails its golden samples" in str(above.reported[-1].last_error)
        assert above.runs().bundle == integers.digest
        answered_by(integers, "still")
        asked = len(control_plane.asked)
        above.desire(floats.desired(device, 4))
        until(lambda: above.runs().bundle == floats.digest)
        answered_by(floats, "back")
        assert not [path for path in control_plane.asked[asked:] if "/blobs/" in path], "it had them still"
        assert above.reported[-1].last_error is None
        assert agent.stop() == 0


def test_a_bundle_that_leaves_its_bounds_goes_back_by_itself(
    pi: Machine,
    floats: MadeBundle,
    integers: MadeBundle,
    device: str,
    processes: Processes,
    mosquitto: Mosquitto,
    tmp_path: Path,
) -> None:
    """Fewer answers on the device than the desired state allows: the run before goes on, and is said why."""
    data = provisioned(floats, tmp_path / "data")
    provisioned(integers, data)
    settings = agent_settings(floats, device, data, mosquitto)
    settings["EDGE_PUBLIC_KEYS"] = json.dumps([floats.public_key, integers.public_key])
    bounds = Bounds(samples=8, exit_share_least=0.9)
    with User(broker_of(mosquitto), device) as user, Above(broker_of(mosquitto), device) as above:
        above.desire(floats.desired(device, 1))
        agent = start(processes, pi, settings)
        until(lambda: above.runs().bundle == floats.digest)
        above.desire(integers.desired(device, 2, bounds=bounds))
        until(lambda: above.runs().bundle == integers.digest)
        for i in integers.hard[: bounds.samples]:
            user.measure(integers.samples[i], f"hard-{i}")
        until(lambda: above.runs().bundle == floats.digest)
        assert "went back from revision 2" in str(above.runs().error)
        user.measure(floats.samples[floats.easy[0]], "back")
        until(lambda: "back" in user.finals())
        assert user.finals()["back"].bundle == floats.digest
        assert agent.stop() == 0


def test_killed_in_the_middle_it_takes_up_where_it_was(
    pi: Machine, integers: MadeBundle, device: str, processes: Processes, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    """The same bundle, the same epoch, every reading answered once and brought up."""
    data = provisioned(integers, tmp_path / "data")
    ids = {f"r{i}" for i in range(len(integers.samples))}
    broker = broker_of(mosquitto)
    with User(broker, device) as user, Above(broker, device, receipts=False, answers=False) as above:
        above.desire(integers.desired(device))
        settings = agent_settings(integers, device, data, mosquitto, EDGE_RECEIPT_TIMEOUT_S="1")
        agent = start(processes, pi, settings)
        until(lambda: above.runs().bundle == integers.digest)
        for i, sample in enumerate(integers.samples):
            user.measure(sample, f"r{i}")
        until(lambda: len(user.finals()) >= 5)
        agent.kill()
        above.receipts = above.answers = True
        agent.start()
        until(lambda: user.finals().keys() == ids and {o.source_id for o in above.came} == ids)
        told = {(p.epoch, p.seq): p.source_id for p in user.heard if isinstance(p, Prediction)}
        assert len({epoch for epoch, _ in told}) == 1 and len(told) == len(set(told.values())) == len(ids)
        agent.wait_ready(120)
        assert agent.stop() == 0
