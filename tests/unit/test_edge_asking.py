"""Late answers are asked for: which samples and when, and what becomes of what is told."""

import json
import queue
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from edge_agent import outbox as outbox_module
from edge_agent.asking import AGAIN_MOST_S, Asked, Asker, Late
from edge_agent.settings import EdgeSettings
from sluice.wire.answers import ASK_MOST, pack
from sluice.wire.messages import Prediction
from tests.unit.edge_stand_ins import DEVICE, KEY, Clock, Device, answer_to

WAIT_S = 60.0
TTL_S = 60.0
AFTER_S = 30.0
EPOCH = "0123456789abcdef"
Make = Callable[..., Device]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(outbox_module, "monotonic", clock)
    return clock


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[Make]:
    made: list[Device] = []

    def build(**settings: Any) -> Device:
        made.append(Device(tmp_path, clock, **settings))
        return made[-1]

    yield build
    for device in made:
        device.store._db.close()


def test_it_asks_for_what_was_receipted_and_not_answered_and_takes_the_answer_once(make: Make, clock: Clock) -> None:
    device = make(ask_after_s=AFTER_S)
    hard = [device.offload() for _ in range(2)]
    device.add(*hard, device.own_final())
    device.outbox.receipt([offload.seq for offload in hard])
    answered, forgotten = hard
    device.hear(answer_to(answered))
    device.turn()
    device.sensor_takes()
    clock.forward(TTL_S)
    device.turn()
    assert device.outbox.overdue() == []
    clock.forward(AFTER_S)
    device.turn()
    assert device.outbox.overdue() == [forgotten.seq]
    assert device.outbox.overdue() == [], "it is under way"
    device.sensor.take()
    device.outbox.asked(Asked([forgotten.seq], [answer_to(forgotten)]))
    device.turn()
    assert device.sensor_takes() == [answer_to(forgotten)]
    device.turn()
    assert [seq for seq, _ in device.kept()] == [hard[1].seq + 1], "the own answer has no receipt yet"
    device.outbox.asked(Asked([forgotten.seq], [answer_to(forgotten)]))
    device.hear(answer_to(forgotten))
    device.turn()
    assert device.sensor_takes() == []
    assert device.outbox.counters["answers_repeated"] == 2
    clock.forward(AGAIN_MOST_S)
    assert device.outbox.overdue() == []


def test_what_nobody_knows_is_asked_again_later_each_time_and_until_it_is_dropped(make: Make, clock: Clock) -> None:
    device = make(ask_after_s=AFTER_S, outbox_age_s=6 * AGAIN_MOST_S)
    hard = device.offload()
    device.add(hard)
    device.outbox.receipt([hard.seq])
    clock.forward(TTL_S)
    device.turn()
    waits, asked_at = [], clock.now
    while len(device.outbox):
        clock.forward(1.0)
        device.outbox.tick()
        if seqs := device.outbox.overdue():
            waits.append(clock.now - asked_at)
            asked_at = clock.now
            device.outbox.asked(Asked(seqs, []))
    assert waits[:4] == [AFTER_S, 2 * AFTER_S, 4 * AFTER_S, 8 * AFTER_S]
    assert waits[-1] == AGAIN_MOST_S
    assert device.outbox.counters["outbox_dropped"] == 1


def test_what_is_not_in_kafka_is_not_asked_for_until_it_is(make: Make, clock: Clock) -> None:
    device = make(ask_after_s=AFTER_S)
    hard = device.offload()
    device.add(hard)
    clock.forward(TTL_S)
    device.turn()
    (expired,) = [outcome for outcome in device.uplink.take() if isinstance(outcome, Prediction)]
    clock.forward(AFTER_S)
    assert device.outbox.overdue() == []
    device.outbox.receipt([hard.seq])
    device.turn()
    again = device.restart()  # an expired one has its time behind it
    clock.forward(AFTER_S)
    assert again.outbox.overdue() == [hard.seq]
    again.outbox.asked(Asked([hard.seq], [expired]))
    again.turn()
    assert again.sensor_takes() == [expired]
    again.store._db.close()


def test_a_question_is_bounded_and_the_oldest_come_first() -> None:
    late = Late(10.0)
    late.add(range(2 * ASK_MOST), 0.0)
    late.add([5 * ASK_MOST], 1.0)
    assert late.pop(9.0) == []
    assert late.pop(100.0) == list(range(ASK_MOST))
    assert late.pop(100.0) == list(range(ASK_MOST, 2 * ASK_MOST))
    assert late.pop(100.0) == [5 * ASK_MOST]


class Plane(HTTPServer):
    """A control plane that says what the test puts in, and keeps what it was asked."""

    def __init__(self) -> None:
        self.says: queue.Queue[tuple[int, bytes]] = queue.Queue()
        self.asked: queue.Queue[tuple[str, str | None, dict[str, Any]]] = queue.Queue()
        super().__init__(("127.0.0.1", 0), _Asked)


class _Asked(BaseHTTPRequestHandler):
    server: Plane

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.put((self.path, self.headers["authorization"], body))
        status, content = self.server.says.get(timeout=WAIT_S)
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def plane() -> Iterator[Plane]:
    with Plane() as plane:
        thread = threading.Thread(target=plane.serve_forever)
        thread.start()
        yield plane
        plane.shutdown()
        thread.join()


def test_it_tries_again_whatever_is_wrong_and_takes_only_what_is_its_own(
    make: Make, plane: Plane, caplog: pytest.LogCaptureFixture
) -> None:
    told: queue.Queue[Asked] = queue.Queue()
    url = f"http://127.0.0.1:{plane.server_port}"
    settings = EdgeSettings(device_id=DEVICE, public_keys=[KEY], cloud_url=url, token="secret")
    device = make()
    mine, newer = answer_to(device.offload()), answer_to(device.offload())
    foreign = answer_to(device.offload(device_id="another"))
    former = answer_to(device.offload(epoch=EPOCH))
    known = json.loads(pack([mine, foreign, former, newer]).model_dump_json())
    known["answers"][3] = "wwEAAAAAAAAAAGJvZHk="  # a schema that nobody knows
    known["answers"] += ["not base64!"]
    asker = Asker(settings, device.store.epoch, told.put)
    asker.ask([])
    assert asker.idle
    asker.ask([mine.seq, newer.seq])
    assert not asker.idle
    for status, content in ((503, b"busy"), (403, b"{}"), (200, b"no JSON"), (200, json.dumps(known).encode())):
        plane.says.put((status, content))
    asked = told.get(timeout=WAIT_S)
    assert asked.seqs == [mine.seq, newer.seq] and asked.answers == [mine]
    questions = [plane.asked.get_nowait() for _ in range(4)]
    body = {"epoch": device.store.epoch, "seqs": [mine.seq, newer.seq]}
    assert questions == [(f"/v1/devices/{DEVICE}/answers", "Bearer secret", body)] * 4
    assert sum("cannot be asked for" in record.message for record in caplog.records) == 1
    assert asker.idle
    asker.close()
