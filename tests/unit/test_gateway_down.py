"""The way down, without brokers: what is read while topic partitions are taken away."""

import threading
from typing import Any

import pytest

from gateway.down import Down
from gateway.settings import GatewaySettings
from sluice.doors.kafka import Record
from sluice.wire import names


def test_what_a_read_brings_while_others_are_taken_away_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    down = Down(GatewaySettings())
    ours = Record(names.PREDICTIONS, 0, 7, b"pi-1", b"an answer", 0, [])

    def read(*_: Any) -> list[Record]:
        down._lost([(names.PREDICTIONS, 1)])
        return [ours]

    passed: list[Record] = []
    monkeypatch.setattr(down.answers, "read", read)
    monkeypatch.setattr(down, "_pass_answer", passed.append)
    monkeypatch.setattr(down, "_finish", lambda: None)
    monkeypatch.setattr(down, "_wake", lambda: None)
    down.answers.topics = [names.PREDICTIONS]
    down._pass_answers(threading.Event())
    assert passed == [ours]
    down.answers.close()
    down.desired.close()
