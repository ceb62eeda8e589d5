"""Updates cut short on real Mosquitto: killed at every write, or ended by what they bring, the device answers."""

import io
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sluice.dev.processes import Processes
from sluice.wire import bundle as bundles
from sluice.wire.manifest import Segment
from sluice.wire.messages import Prediction
from tests.brokers.mosquitto import Mosquitto
from tests.integration import fault_point
from tests.integration.control_plane import ControlPlane
from tests.integration.edge_support import (
    Above,
    MadeBundle,
    User,
    broker_of,
    until,
    write,
)
from tests.integration.update_support import held, never_exits, offered, runs, start

pytestmark = [pytest.mark.brokers, pytest.mark.tensorflow, pytest.mark.timeout(600)]


def other_golden_samples(made: MadeBundle, folder: Path) -> tuple[str, Segment]:
    """The bundle with fewer golden samples, under `folder`: its digest and its first segment."""
    manifest = bundles.open_bundle(made.folder).manifest
    first, *others = manifest.segments
    with np.load(io.BytesIO(bundles.read_blob(made.folder / bundles.BLOBS, first.golden))) as arrays:
        fewer = {name: arrays[name][:2] for name in arrays.files}
    packed = io.BytesIO()
    np.savez(packed, **fewer)
    source = folder / "source"
    shutil.copytree(made.folder, source)
    first = first.model_copy(update={"golden": bundles.write_blob(source / bundles.BLOBS, packed.getvalue())})
    (point,) = manifest.operating_points
    return write(source, folder, manifest.model_copy(update={"segments": (first, *others)}), point, made.key), first


def test_a_run_that_ends_the_agent_when_it_is_loaded_does_not_keep_it_down(
    made: MadeBundle, device: str, processes: Processes, plane: ControlPlane, settings: Any, mosquitto: Mosquitto,
    tmp_path: Path,
) -> None:  # fmt: skip
    bad = offered(made, plane, tmp_path / "made", **never_exits(made))
    fault = {"PYTHONPATH": fault_point.place(tmp_path), "FAULT_FROM": bad, "FAULT_IN": "load_segments"}
    with User(broker_of(mosquitto), device) as user, Above(broker_of(mosquitto), device) as above:
        above.desire(made.desired(device, 1))
        agent = start(processes, settings | fault)
        runs(above, 1)
        above.desire(made.desired(device, 2, bad))
        ends = 0
        while above.runs().error is None:
            assert agent.child.wait(60) == -signal.SIGKILL
            ends += 1
            assert ends <= 3
            agent.start()
            until(lambda: not agent.running or above.runs().error)
        user.measure(made.samples[made.easy[0]], "after")
        until(lambda: "after" in user.finals())
        assert ends == 3
        assert "revision 2 refused: the agent ended 3 times" in str(above.runs().error)
        until(lambda: above.reported[-1].revision == 2)
        assert above.runs().bundle == made.digest and agent.running
        until(lambda: held(settings) == {made.digest})
        assert agent.stop() == 0


def final(user: User, reading: str) -> Prediction | None:
    return user.finals().get(reading)


def test_killed_at_any_write_of_an_update_it_answers_and_gets_there(
    made: MadeBundle, device: str, processes: Processes, plane: ControlPlane, settings: Any, mosquitto: Mosquitto,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Each write in turn: files opened, made durable, renamed, transactions begun and ended."""
    changed, first = other_golden_samples(made, tmp_path / "made")
    plane.offer(tmp_path / "made" / changed)
    data = Path(settings["EDGE_DATA"])
    fault = {"PYTHONPATH": fault_point.place(tmp_path), "FAULT_FROM": changed}
    with User(broker_of(mosquitto), device) as user, Above(broker_of(mosquitto), device) as above:
        above.desire(made.desired(device, 1))
        agent = start(processes, settings)
        runs(above, 1)
        assert agent.stop() == 0
        shutil.copytree(data, tmp_path / "before")
        above.desire(made.desired(device, 2, changed))
        noted = tmp_path / "points"
        agent = processes.start("noting", ["edge-agent"], settings | fault | {"FAULT_LOG": str(noted)})
        runs(above, 2)
        points = noted.read_text().splitlines()
        assert agent.stop() == 0
        kinds = {point.split()[1] for point in points}
        assert {"open", "fsync", "rename", "sqlite"} <= kinds and len(points) > 15
        names = " ".join(points)
        blobs = [f"{blob.sha256}.part" for blob in (first.file, first.golden)]  # one is copied, one is fetched
        assert all(name in names for name in (*blobs, bundles.MANIFEST, bundles.SIGNATURE))
        last = max(i for i, point in enumerate(points) if "BEGIN" in point or "rename" in point) + 1
        assert last <= 60, "so many writes take too long to be cut off at each: write less, or test in two parts"
        for at in range(1, last + 1):
            shutil.rmtree(data)
            shutil.copytree(tmp_path / "before", data)
            above.reported.clear()
            agent.settings = settings | fault | {"FAULT_AT": str(at)}
            agent.start()
            assert agent.child.wait(60) == -signal.SIGKILL, points[at - 1]
            agent.settings = settings
            agent.start()
            user.measure(made.samples[made.easy[0]], f"at-{at}")
            answer = until(partial(final, user, f"at-{at}"))
            assert answer.bundle in (made.digest, changed), points[at - 1]
            runs(above, 2)
            assert above.runs().bundle == changed, points[at - 1]
            assert agent.stop() == 0
            left = [
                str(path) for path in (data / "bundles").rglob("*") if path.name.startswith(".") or ".part" in path.name
            ]
            assert left == [], points[at - 1]
