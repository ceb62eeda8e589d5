"""The mailbox: at its bounds whoever brings waits, notices of the sensor broker never do, closing lets everybody go."""

import threading
from collections.abc import Callable

import pytest

from edge_agent import mailbox
from edge_agent.mailbox import Mailbox
from sluice.doors.mqtt import Incoming

WAIT_S = 20.0


def reading(number: int) -> Incoming:
    return Incoming("t", b"%d" % number, 1, False, number, 1)


class Bringer:
    """A thread that brings things one by one, as a client's network thread does."""

    def __init__(self, bring: Callable[[int], None], count: int) -> None:
        self.brought = 0
        self.moved = threading.Condition()
        self.thread = threading.Thread(target=self.run, args=(bring, count), daemon=True)
        self.thread.start()

    def run(self, bring: Callable[[int], None], count: int) -> None:
        for number in range(count):
            bring(number)
            with self.moved:
                self.brought += 1
                self.moved.notify_all()

    def wait_until(self, brought: int) -> None:
        with self.moved:
            assert self.moved.wait_for(lambda: self.brought >= brought, WAIT_S)


def test_readings_wait_for_room_and_keep_their_order() -> None:
    mail = Mailbox(3, 10_000)
    bringer = Bringer(lambda i: mail.put_reading(reading(i)), 8)
    bringer.wait_until(3)
    taken: list[int] = []
    while len(taken) < 8:
        mail.take(0.05, or_reading=True)
        some = mail.take_readings(2)
        assert len(some) <= 2
        assert bringer.brought <= len(taken) + len(some) + 3
        taken += [one.mid for one in some]
    assert taken == list(range(8))
    bringer.thread.join(WAIT_S)
    assert not bringer.thread.is_alive()


def test_large_readings_wait_for_room_in_bytes() -> None:
    def large(number: int) -> Incoming:
        return Incoming("t", bytes(400), 0, False, number, 1)

    mail = Mailbox(1000, 1000)
    bringer = Bringer(lambda i: mail.put_reading(large(i)), 5)
    bringer.wait_until(2)
    bringer.thread.join(0.2)
    assert bringer.brought == 2
    assert [one.mid for one in mail.take_readings(1)] == [0]
    bringer.wait_until(3)
    bringer.thread.join(0.2)
    assert bringer.brought == 3
    taken: list[int] = []
    while len(taken) < 4:
        mail.take(0.05, or_reading=True)
        taken += [one.mid for one in mail.take_readings(10)]
    assert taken == [1, 2, 3, 4]


def test_one_reading_fits_whatever_its_size() -> None:
    mail = Mailbox(1000, 10)
    bringer = Bringer(lambda i: mail.put_reading(Incoming("t", bytes(100), 0, False, i, 1)), 2)
    bringer.wait_until(1)
    assert [one.mid for one in mail.take_readings(10)] == [0]
    bringer.wait_until(2)
    assert [one.mid for one in mail.take_readings(10)] == [1]


def test_events_wait_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "EVENTS_MOST", 2)
    mail = Mailbox(1, 10_000)
    bringer = Bringer(mail.put, 5)
    bringer.wait_until(2)
    events: list[object] = []
    while len(events) < 5:
        some = mail.take(0.05, or_reading=False)
        assert len(some) <= 2
        events += some
    assert events == list(range(5))


def test_notices_of_the_sensor_broker_never_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that brings them could otherwise wait for a main loop that waits for it."""
    monkeypatch.setattr(mailbox, "EVENTS_MOST", 2)
    mail = Mailbox(1, 10_000)
    mail.put("a")
    mail.put("b")
    for mid in range(100):
        mail.put_published(mid)
    assert mail.take(0, or_reading=False) == ["a", "b", *range(100)]


@pytest.mark.parametrize("kind", ["reading", "event"])
def test_closing_lets_go_whoever_waits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "EVENTS_MOST", 1)
    mail = Mailbox(1, 10_000)
    bringer = Bringer(mail.put if kind == "event" else lambda i: mail.put_reading(reading(i)), 50)
    bringer.wait_until(1)
    mail.close()
    bringer.wait_until(50)


def test_a_reading_wakes_the_main_loop_only_when_it_can_be_used() -> None:
    mail = Mailbox(5, 10_000)
    mail.put_reading(reading(1))
    assert mail.take(600, or_reading=True) == []  # returns at once
    assert mail.take(0.01, or_reading=False) == []  # waits in vain
    waker = threading.Timer(0.05, lambda: mail.put("event"))
    waker.start()
    assert mail.take(600, or_reading=False) == ["event"]
    assert [one.mid for one in mail.take_readings(10)] == [1]
    assert mail.take_readings(10) == []
    assert mail.take(-1, or_reading=True) == []


def test_nobody_is_woken_for_what_may_wait() -> None:
    mail = Mailbox(1, 10_000)
    mail.put("receipt", lazily=True)
    mail.put_published(1)
    assert mail.take(-1, or_reading=False) == ["receipt", 1]  # they come along with whatever else there is to do
    mail.put_published(2)
    waker = threading.Timer(0.05, lambda: mail.put("event"))
    waker.start()
    assert mail.take(600, or_reading=False) == [2, "event"]
    mail.put_published(3)
    assert mail.take(0.01, or_reading=False) == [3]


def test_what_may_wait_does_not_when_something_hangs_on_it_or_it_is_much() -> None:
    mail = Mailbox(1, 10_000)
    mail.put_published(1)
    assert mail.take(600, or_reading=False, or_lazy=True) == [1]
    waker = threading.Timer(0.05, lambda: mail.put_published(2))
    waker.start()
    assert mail.take(600, or_reading=False, or_lazy=True) == [2]
    for mid in range(mailbox.LAZY_MOST):
        mail.put_published(mid)
    assert mail.take(600, or_reading=False) == list(range(mailbox.LAZY_MOST))
    mail.put_refused(5, "no quota")
    assert mail.take(600, or_reading=False) == [mailbox.Refused(5, "no quota")]
