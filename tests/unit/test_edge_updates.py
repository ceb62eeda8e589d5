"""Updates: a control plane that is away is waited for, nothing that is needed is tidied up, going back comes before an
order, an order before measuring, and none of them is forgotten."""

import queue
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import edge_agent.updates
from edge_agent.settings import EdgeSettings
from edge_agent.updates import Fetched, Looked, Measured, Order, Prepared, Ready, Updater, Waits
from sluice.stage.profile import GivenUp
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.manifest import Blob
from sluice.wire.profile import Profile
from sluice.wire.state import Desired, Run
from tests.small_disk import small_disk
from tests.unit.edge_stand_ins import KEY

__all__ = ["small_disk"]  # a fixture
WANTED = "ab" * 32


def test_a_control_plane_that_is_away_is_waited_for(tmp_path: Path) -> None:
    settings = EdgeSettings(device_id="d", public_keys=[KEY], data=tmp_path, cloud_url="http://127.0.0.1:9")
    reports: queue.SimpleQueue[Any] = queue.SimpleQueue()
    updater = Updater(settings, reports.put)
    wanted = order(1)
    updater.order(wanted)
    report = reports.get(timeout=20)
    assert isinstance(report, Waits) and report.desired == wanted.desired
    assert "control plane" in report.error
    updater.close()


def test_room_for_a_bundle_is_waited_for(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The running bundle goes on, and what was begun takes no room."""

    def download(_door: Any, blob: Blob, part: Path, *_: Any) -> int:
        part.write_bytes(bytes(blob.size))
        return 0

    manifest = SimpleNamespace(blobs=lambda _: [Blob(sha256=WANTED, size=2_000_000)])
    monkeypatch.setattr("sluice.doors.http.HttpDoor.get_bytes", lambda *_: b"")
    monkeypatch.setattr("sluice.doors.http.sha256", lambda _: WANTED)
    monkeypatch.setattr("sluice.doors.http.check_manifest", lambda *_: manifest)
    monkeypatch.setattr("sluice.doors.http.HttpDoor._download", download)
    monkeypatch.setattr("edge_agent.updates.loaded_by", lambda *_: range(1))
    settings = EdgeSettings(device_id="d", public_keys=[KEY], data=small_disk)
    reports: queue.SimpleQueue[Any] = queue.SimpleQueue()
    updater = Updater(settings, reports.put)
    updater.order(order(1))
    report = reports.get(timeout=20)
    assert isinstance(report, Waits) and "No space left" in report.error
    updater.close()
    assert [path for path in small_disk.rglob("*") if path.is_file() and path.stat().st_size] == []


def profile(request: str | None) -> Profile:
    words = {"runtime": "r", "machine": "m", "cpu": "c", "python": "3"}
    return Profile.model_validate(words | {"bundle": WANTED, "memory_mb": 1, "request": request, "segments": []})


@pytest.fixture
def updater(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An updater for which every bundle is at hand and empty, and its reports."""
    monkeypatch.setattr(Updater, "_bring", lambda *_: None)
    monkeypatch.setattr("edge_agent.updates.prepare_local", lambda _, run: run.bundle)
    monkeypatch.setattr("edge_agent.updates.bundles.open_bundle", lambda *_: type("Opened", (), {"manifest": None}))
    monkeypatch.setattr("edge_agent.updates.loaded_by", lambda *_: range(1))
    reports: queue.SimpleQueue[Any] = queue.SimpleQueue()
    settings = EdgeSettings(device_id="d", public_keys=[KEY], data=tmp_path, cloud_url="http://127.0.0.1:9")
    updater = Updater(settings, reports.put)
    yield updater, reports
    updater.close()


def order(revision: int, *models: str) -> Order:
    runs = tuple(
        Run(model=model, bundle=WANTED, operating_point="p", revision=revision) for model in models or ("gate",)
    )
    return Order(Desired(device_id="d", revision=revision, runs=runs), runs, {})


def test_an_order_is_fetched_and_only_then_loaded_run_by_run(updater: Any) -> None:
    """In between the main loop has its say: loading may end the whole agent."""
    thread, reports = updater
    wanted = order(1, "gate", "door")
    thread.order(wanted)
    fetched = reports.get(timeout=20)
    assert fetched == Fetched(replace(wanted, fetched=True))
    assert reports.empty()
    thread.order(fetched.order)
    assert [reports.get(timeout=20) for _ in range(3)] == [
        *(Prepared(run, WANTED) for run in wanted.runs),  # type: ignore[arg-type]
        Looked(wanted.desired),
    ]


def test_a_run_that_cannot_be_had_does_not_keep_the_others(updater: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def bring(_self: Any, run: Run, _loaded: Any) -> None:
        if run.model == "gate":
            raise PermanentError("no bundle of that digest")

    monkeypatch.setattr(Updater, "_bring", bring)
    thread, reports = updater
    wanted = order(1, "gate", "door")
    thread.order(wanted)
    assert reports.get(timeout=20) == Prepared(wanted.runs[0], None, "no bundle of that digest")
    assert reports.get(timeout=20).order.runs == wanted.runs[1:]


def test_going_back_comes_before_an_order_that_waits(updater: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    away = threading.Event()

    def bring(*_: Any) -> None:
        if not away.is_set():
            raise TemporaryError("control plane is away")

    monkeypatch.setattr(Updater, "_bring", bring)
    thread, reports = updater
    wanted = order(2)
    thread.order(wanted)
    assert isinstance(reports.get(timeout=20), Waits)
    before = Run(model="gate", bundle="cd" * 32, operating_point="p", revision=1)
    thread.go_back(before)
    assert next(r for r in iter(lambda: reports.get(timeout=20), None) if not isinstance(r, Waits)) == Ready(
        before,
        "cd" * 32,  # type: ignore[arg-type]
    )
    away.set()
    assert next(r for r in iter(lambda: reports.get(timeout=20), None) if not isinstance(r, Waits)) == Fetched(
        replace(wanted, fetched=True)
    )


def test_bundles_are_removed_before_the_next_order_looks_for_its_own(updater: Any, tmp_path: Path) -> None:
    for digest in (WANTED, "cd" * 32):
        (tmp_path / "bundles" / digest / "blobs").mkdir(parents=True)
    thread, reports = updater
    thread.remove({"cd" * 32, "ef" * 32})
    thread.order(order(1))
    assert isinstance(reports.get(timeout=20), Fetched)
    assert [folder.name for folder in (tmp_path / "bundles").iterdir()] == [WANTED]


def test_it_measures_as_requested(updater: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    thread, reports = updater
    monkeypatch.setattr(edge_agent.updates, "measure", lambda *_, request, **__: profile(request))
    thread.measure("first", WANTED)
    assert reports.get(timeout=20) == Measured("first", profile("first"))

    def broken(*_: Any, **__: Any) -> Profile:
        raise PermanentError("a segment fails its golden samples")

    monkeypatch.setattr(edge_agent.updates, "measure", broken)
    thread.measure("second", WANTED)
    assert reports.get(timeout=20) == Measured("second", None, "a segment fails its golden samples")
    monkeypatch.setattr(edge_agent.updates, "measure", lambda *_, request, **__: profile(request))
    thread.order(order(3))
    assert isinstance(reports.get(timeout=20), Fetched)
    assert reports.empty(), "what was answered is not measured again"


def test_an_order_goes_first_and_the_measuring_is_taken_up_again(updater: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    thread, reports = updater
    begun = threading.Event()

    def measure(*_: Any, request: str, give_up: Any, **__: Any) -> Profile:
        if not begun.is_set():
            begun.set()
            while not give_up():
                pass
            raise GivenUp
        return profile(request)

    monkeypatch.setattr(edge_agent.updates, "measure", measure)
    thread.measure("first", WANTED)
    assert begun.wait(20)
    thread.order(order(2))
    assert isinstance(reports.get(timeout=20), Fetched)
    assert reports.get(timeout=20) == Measured("first", profile("first"))
