"""A call that never returns ends the process; one that was only slow does not."""

import threading

import pytest

from sluice.daemon.guard import Guard


def test_it_speaks_up_when_a_call_does_not_return_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    spoken = threading.Event()

    def hear(args: threading.ExceptHookArgs) -> None:
        said.append(str(args.exc_value))
        spoken.set()

    monkeypatch.setattr(threading, "excepthook", hear)
    guard = Guard("test", most_s=0.2, look_s=0.02)
    for _ in range(40):  # many calls, longer than one may take in all
        with guard:
            assert not spoken.wait(0.01)
    with guard:
        assert spoken.wait(30)
    assert said == ["test: a call to librdkafka does not return; only a new process helps"]
