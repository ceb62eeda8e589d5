"""Updates: a control plane that is away is waited for, nothing that is on its way is tidied up, an order goes before
measuring and does not forget it."""

import queue
import threading
from pathlib import Path
from typing import Any

import pytest

import edge_agent.updates
from edge_agent.settings import EdgeSettings
from edge_agent.updates import Measured, Prepared, Updater, keep_only
from sluice.stage.profile import GivenUp
from sluice.wire.errors import PermanentError
from sluice.wire.profile import Profile
from sluice.wire.state import Desired
from tests.unit.edge_stand_ins import KEY

WANTED = "ab" * 32


def test_an_order_is_known_while_it_waits_for_the_control_plane(tmp_path: Path) -> None:
    settings = EdgeSettings(device_id="d", public_keys=[KEY], data=tmp_path, cloud_url="http://127.0.0.1:9")
    reports: queue.SimpleQueue[Any] = queue.SimpleQueue()
    updater = Updater(settings, reports.put)
    assert updater.ordered == ""
    desired = Desired(device_id="d", revision=1, model="m", bundle=WANTED, operating_point="p")
    updater.order(desired, b"envelope")
    report = reports.get(timeout=20)
    assert (report.final, report.stage, report.desired) == (False, None, desired)
    assert "control plane" in str(report.error)
    assert updater.ordered == WANTED
    updater.close()


def test_only_the_bundles_that_nobody_needs_are_removed(tmp_path: Path) -> None:
    for digest in ("running", "before", "coming", "old"):
        (tmp_path / "bundles" / digest / "blobs").mkdir(parents=True)
    keep_only(tmp_path, {"running", "before", "coming"})
    assert sorted(path.name for path in (tmp_path / "bundles").iterdir()) == ["before", "coming", "running"]
    keep_only(tmp_path / "none", set())


def profile(request: str | None) -> Profile:
    words = {"runtime": "r", "machine": "m", "cpu": "c", "python": "3"}
    return Profile.model_validate(words | {"bundle": WANTED, "memory_mb": 1, "request": request, "segments": []})


@pytest.fixture
def updater(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An updater for which every bundle is at hand and empty, and its reports."""
    monkeypatch.setattr(Updater, "_prepare", lambda *_: None)
    monkeypatch.setattr("edge_agent.updates.bundles.open_bundle", lambda *_: type("Opened", (), {"manifest": None}))
    monkeypatch.setattr("edge_agent.updates.loaded_by", lambda *_: range(1))
    reports: queue.SimpleQueue[Any] = queue.SimpleQueue()
    settings = EdgeSettings(device_id="d", public_keys=[KEY], data=tmp_path, cloud_url="http://127.0.0.1:9")
    updater = Updater(settings, reports.put)
    yield updater, reports
    updater.close()


def desired(revision: int, request: str | None = None) -> Desired:
    return Desired(device_id="d", revision=revision, model="m", bundle=WANTED, operating_point="p", profile=request)


def test_it_measures_as_requested(updater: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, reports = updater
    monkeypatch.setattr(edge_agent.updates, "measure", lambda *_, request, **__: profile(request))
    threads.measure(desired(1, "first"))
    assert reports.get(timeout=20) == Measured(desired(1, "first"), profile("first"))

    def broken(*_: Any, **__: Any) -> Profile:
        raise PermanentError("a segment fails its golden samples")

    monkeypatch.setattr(edge_agent.updates, "measure", broken)
    threads.measure(desired(2, "second"))
    assert reports.get(timeout=20) == Measured(desired(2, "second"), None, "a segment fails its golden samples")
    monkeypatch.setattr(edge_agent.updates, "measure", lambda *_, request, **__: profile(request))
    threads.order(desired(3), b"envelope")
    assert reports.get(timeout=20) == Prepared(desired(3), b"envelope", None)
    assert reports.empty(), "what was answered is not measured again"


def test_an_order_goes_first_and_the_measuring_is_taken_up_again(updater: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, reports = updater
    begun = threading.Event()

    def measure(*_: Any, request: str, give_up: Any, **__: Any) -> Profile:
        if not begun.is_set():
            begun.set()
            while not give_up():
                pass
            raise GivenUp
        return profile(request)

    monkeypatch.setattr(edge_agent.updates, "measure", measure)
    threads.measure(desired(1, "first"))
    assert begun.wait(20)
    threads.order(desired(2), b"envelope")
    assert reports.get(timeout=20) == Prepared(desired(2), b"envelope", None)
    assert reports.get(timeout=20) == Measured(desired(1, "first"), profile("first"))
