"""What runs, by model: trials over restarts, what is held ready, going back, and what is never tried again."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from edge_agent.running import ENDS_MOST, Models
from edge_agent.store import Store
from edge_agent.watch import PROVEN_SAMPLES
from sluice.stage.step import Stage
from sluice.wire.errors import PermanentError
from sluice.wire.state import Bounds, Run


def run(revision: int, model: str = "gate", **more: Any) -> Run:
    return Run(model=model, bundle=f"{revision:02x}" * 32, operating_point="p", revision=revision, **more)


def stage(of: Run) -> Stage:
    return cast(Stage, SimpleNamespace(digest=of.bundle))


class Device:
    """Models over restarts. `kill` is a kill -9 after a commit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.broken: set[str] = set()
        self.start()

    def start(self) -> bool:
        self.store = Store(self.folder)
        self.models = Models(self.store)
        return self.models.take_up(self._load, self.store.commit)

    def _load(self, wanted: Run) -> Stage:
        if wanted.bundle in self.broken:
            raise PermanentError("blob is damaged")
        return stage(wanted)

    def kill(self) -> bool:
        self.store._db.rollback()
        self.store._db.close()
        return self.start()

    def stop(self) -> None:
        self.models.stop()
        self.store.close()

    def update(self, *runs: Run) -> None:
        for one in runs:
            self.models.try_out(one)
            self.store.commit()
            self.models.switch(one, stage(one))
            self.store.commit()

    def good(self, count: int = PROVEN_SAMPLES, model: str = "gate") -> None:
        for _ in range(count):
            self.models[model].note(exited=True, ms=1)
            assert self.models.judge(model) is None
        self.store.commit()

    @property
    def runs(self) -> int:
        """The revision that runs; 0: none."""
        model = self.models["gate"]
        assert (model.stage is None) == (model.kept.run is None)
        return model.revision


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


def test_each_model_has_its_own_runs_and_one_can_be_taken_off(device: Device) -> None:
    device.update(run(1), run(2, "door"), run(3))
    device.kill()
    told = {one.model: (one.revision, one.bundle) for one in device.models.told()}
    assert told == {"gate": (3, "03" * 32), "door": (2, "02" * 32)}
    assert device.models.digests() == {"01" * 32, "02" * 32, "03" * 32}
    device.models.take_off({"gate"})
    device.store.commit()
    device.kill()
    assert "door" not in device.models and device.runs == 3


def test_a_run_that_ends_the_agent_is_given_up_after_some_starts(device: Device) -> None:
    device.update(run(1))
    device.good()
    device.update(run(2))
    for _ in range(ENDS_MOST - 1):
        device.kill()
        assert device.runs == 2
        ready = device.models["gate"].ready
        assert ready is not None and ready.digest == "01" * 32
    device.kill()
    assert device.runs == 1
    (told,) = device.models.told()
    assert "went back from revision 2: the agent ended 3 times" in str(told.error)
    assert device.models.new_in([run(2), run(3)]) == [run(3)], "what was given up is not tried again"
    for _ in range(5):
        device.kill()
        assert device.runs == 1


def test_one_that_ends_the_agent_while_it_is_loaded_is_given_up_as_well(device: Device) -> None:
    device.update(run(1))
    device.good()
    for starts in range(ENDS_MOST):
        device.models.try_out(run(2))
        device.store.commit()
        device.kill()
        assert device.runs == 1
        assert bool(device.models.new_in([run(2)])) == (starts < ENDS_MOST - 1)
    assert "revision 2 refused: the agent ended 3 times" in str(device.models.told()[0].error)


def test_the_first_run_of_all_has_nothing_to_go_back_to(device: Device) -> None:
    device.update(run(1))
    for _ in range(ENDS_MOST):
        device.kill()
    assert device.runs == 0 and not device.models.any_runs
    assert "nothing to go back to" in str(device.models.told()[0].error)


def test_good_samples_and_orderly_ends_speak_for_a_run(device: Device) -> None:
    device.update(run(1))
    device.good()
    device.update(run(2))
    for _ in range(ENDS_MOST + 2):
        device.stop()
        device.start()
    assert device.runs == 2
    device.good()
    for _ in range(ENDS_MOST + 2):
        device.kill()
    assert device.runs == 2 and device.models["gate"].ready is None


def test_it_goes_back_when_a_bound_is_left_and_stays_there(device: Device) -> None:
    device.update(run(1))
    device.good()
    device.update(run(2, bounds=Bounds(samples=10, exit_share_least=0.5)))
    reasons = []
    for _ in range(8):
        device.models["gate"].note(exited=False)
        reasons.append(device.models.judge("gate"))
    assert [reason is not None for reason in reasons] == [False] * 5 + [True, False, False], "said once"
    model = device.models["gate"]
    assert model.ready is not None and model.ready.digest == "01" * 32
    device.models.go_back("gate", model.ready)
    device.store.commit()
    for _ in range(3):
        assert device.runs == 1 and model.kept.before is None
        assert "went back from revision 2: exit share 0" in str(device.models.told()[0].error)
        assert device.models.new_in([run(2)]) == []
        assert device.models.digests() == {"01" * 32}
        device.kill()
        model = device.models["gate"]


def test_once_a_window_was_judged_the_run_before_is_on_disk_alone(device: Device) -> None:
    device.update(run(1))
    device.good()
    device.update(run(2, bounds=Bounds(samples=50)))
    device.good(49)
    assert device.models["gate"].ready is not None
    device.good(1)
    assert device.models["gate"].ready is None
    assert device.models.digests() == {"01" * 32, "02" * 32}


def test_what_was_never_proven_is_nothing_to_go_back_to_where_there_is_better(device: Device) -> None:
    device.update(run(1))
    device.good()
    device.update(run(2), run(3))
    kept = device.models["gate"].kept
    assert kept.before == run(1) and kept.run == run(3)
    device.update(run(4, "door"), run(5, "door"))
    assert device.models["door"].kept.before == run(4, "door"), "better than nothing"


def test_a_run_without_one_before_is_told_of_and_goes_on(device: Device) -> None:
    device.update(run(1, bounds=Bounds(samples=10, errors_most=0.2)))
    for _ in range(30):
        device.models["gate"].note(failed=True)
        assert device.models.judge("gate") is None
    assert device.runs == 1
    assert "out of bounds: 3 errors" in str(device.models.told()[0].error)


def test_a_damaged_bundle_gives_way_to_the_one_before_and_is_looked_at_again(device: Device) -> None:
    device.update(run(1))
    device.good()
    device.update(run(2))
    device.good()
    device.broken.add("02" * 32)
    assert not device.kill()
    assert device.runs == 1
    assert device.models.new_in([run(2)]) == [run(2)]
    assert "cannot be taken up: blob is damaged" in str(device.models.told()[0].error)
    device.broken.clear()
    device.update(run(2))
    assert device.runs == 2 and device.models["gate"].kept.error is None


def test_a_refused_run_leaves_what_runs(device: Device) -> None:
    device.models.refuse(run(1), "fails its golden samples")
    assert device.models.told()[0].bundle is None and not device.models.any_runs
    device.update(run(2))
    device.models.refuse(run(3), "fails its golden samples")
    device.store.commit()
    device.kill()
    assert device.runs == 2 and "revision 3 refused: fails its golden" in str(device.models.told()[0].error)
