"""Updates of a device on real Mosquitto: several models, going back by itself. Cut short: `test_agent_faults.py`."""

from pathlib import Path
from typing import Any

import pytest

from sluice.dev.processes import Processes
from sluice.wire import bundle as bundles
from sluice.wire.state import Bounds, DeadLetter, Run, parse_state
from tests.brokers.mosquitto import Mosquitto
from tests.integration.control_plane import ControlPlane
from tests.integration.edge_support import (
    POINT,
    Above,
    MadeBundle,
    User,
    broker_of,
    until,
    write,
)
from tests.integration.update_support import held, never_exits, offered, runs, start

pytestmark = [pytest.mark.brokers, pytest.mark.tensorflow, pytest.mark.timeout(600)]


def test_a_run_whose_exit_never_fires_is_gone_back_from(
    made: MadeBundle, device: str, processes: Processes, plane: ControlPlane, settings: Any, mosquitto: Mosquitto,
    tmp_path: Path,
) -> None:  # fmt: skip
    """No sample lost, none answered twice, none by a mixture; not tried again after a restart."""
    never = offered(made, plane, tmp_path / "made", **never_exits(made))
    with User(broker_of(mosquitto), device) as user, Above(broker_of(mosquitto), device) as above:
        above.desire(made.desired(device, 1))
        agent = start(processes, settings)
        runs(above, 1)
        ids: list[str] = []

        def measure(count: int) -> None:
            for _ in range(count):
                ids.append(f"r{len(ids)}")
                user.measure(made.samples[len(ids) % len(made.samples)], ids[-1])
            until(lambda: user.finals().keys() == set(ids))

        measure(60)
        assert above.runs().error is None
        above.desire(made.desired(device, 2, never, bounds=Bounds(samples=40, exit_share_least=0.3)))
        runs(above, 2)
        measure(60)
        until(lambda: above.runs().revision == 1)
        said = above.runs()
        assert said.bundle == made.digest and above.reported[-1].revision == 2
        assert "went back from revision 2: exit share 0 where at least 0.3 is asked for" in str(said.error)
        measure(60)
        by = {p.source_id: p.bundle for p in user.heard}
        assert len(user.heard) == len(by) == len(ids) == 180, "each answered once"
        assert {by[name] for name in ids[:60]} == {made.digest}
        assert 29 <= sum(bundle == never for bundle in by.values()) <= 61
        assert {by[name] for name in ids[120:]} == {made.digest}
        up = {(o.source_id, o.bundle) for o in above.came}
        assert {(name, by[name]) for name in ids} == up, "what went up is of the bundle that answered"
        until(lambda: held(settings) == {made.digest})

        agent.kill()
        agent.start()
        agent.wait_ready()
        above.desire(made.desired(device, 2, never, bounds=Bounds(samples=40, exit_share_least=0.3)))
        measure(10)
        assert above.runs().revision == 1 and held(settings) == {made.digest}
        above.desire(made.desired(device, 3, never))
        runs(above, 3)
        assert above.runs().bundle == never, "a later revision may bring it again"
        assert agent.stop() == 0


def test_samples_that_a_new_run_fails_on_are_answered_by_the_one_before(
    made: MadeBundle, device: str, processes: Processes, plane: ControlPlane, settings: Any, mosquitto: Mosquitto,
    tmp_path: Path,
) -> None:  # fmt: skip
    """A codec that its tensors were not made for, which no golden sample shows."""
    failing = offered(made, plane, tmp_path / "made", codec="coarse")
    with User(broker_of(mosquitto), device) as user, Above(broker_of(mosquitto), device) as above:
        above.desire(made.desired(device, 1, failing))
        agent = start(processes, settings)
        runs(above, 1)
        user.measure(made.samples[made.hard[0]], "lost")
        user.measure(made.samples[made.easy[0]], "easy")
        until(lambda: above.letters and "easy" in user.finals())
        letter = parse_state(DeadLetter, above.letters[0])
        assert "columns at revision 1 cannot work on sample 0" in letter.reason and letter.origin == "columns lost"

        above.desire(made.desired(device, 2))
        runs(above, 2)
        for i in range(30):
            user.measure(made.samples[i], f"good-{i}")
        until(lambda: len(user.finals()) == 31)
        above.desire(made.desired(device, 3, failing, bounds=Bounds(samples=40, errors_most=0.25)))
        runs(above, 3)
        for i in range(60):
            user.measure(made.samples[i], f"r{i}")
        until(lambda: len(user.finals()) == 91)
        until(lambda: above.runs().revision == 2)
        assert "errors where at most a share of 0.25 is allowed" in str(above.runs().error)
        by = {p.source_id: p.bundle for p in user.heard}
        assert len(user.heard) == len(by) == 91 and len(above.letters) == 1
        assert {by[f"r{i}"] for i in made.hard} == {made.digest}
        assert failing in {by[f"r{i}"] for i in made.easy}
        assert agent.stop() == 0


def test_several_models_answer_side_by_side_and_change_one_by_one(
    made: MadeBundle, device: str, processes: Processes, plane: ControlPlane, settings: Any, mosquitto: Mosquitto,
    tmp_path: Path,
) -> None:  # fmt: skip
    manifest = bundles.open_bundle(made.folder).manifest.model_copy(update={"model": "rows"})
    (point,) = manifest.operating_points
    other = write(made.folder, tmp_path / "made", manifest, point, made.key)
    plane.offer(tmp_path / "made" / other)
    never = offered(made, plane, tmp_path / "made", **never_exits(made))
    rows = Run(model="rows", bundle=other, operating_point=POINT, revision=1)
    with User(broker_of(mosquitto), device) as user, Above(broker_of(mosquitto), device) as above:
        above.desire(made.desired(device, 1, others=(rows,)))
        agent = start(processes, settings)
        runs(above, 1)
        runs(above, 1, "rows")

        def answers(name: str) -> dict[str, str]:
            user.measure(made.samples[made.easy[0]], name)
            until(lambda: sum(p.source_id == name for p in user.heard) >= len(above.reported[-1].runs))
            return {p.model: p.bundle for p in user.heard if p.source_id == name}

        assert answers("one") == {"columns": made.digest, "rows": other}
        since = above.runs("rows").since_us
        above.desire(made.desired(device, 2, never, others=(rows,)))
        runs(above, 2)
        assert answers("two") == {"columns": never, "rows": other}
        assert (above.runs("rows").revision, above.runs("rows").since_us) == (1, since)
        agent.kill()
        agent.start()
        agent.wait_ready()
        assert answers("three") == {"columns": never, "rows": other}
        above.desire(made.desired(device, 3, never))
        until(lambda: [run.model for run in above.reported[-1].runs] == ["columns"])
        assert answers("four").keys() == {"columns"}
        until(lambda: held(settings) == {made.digest, never})
        assert agent.stop() == 0
