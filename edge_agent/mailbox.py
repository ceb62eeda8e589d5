"""The mailbox between the threads of the broker clients and the main loop.

Readings, in number and in bytes, and messages from above are bounded: at the bound the thread that brings them waits,
which stops reading from its broker. Notices that a publication was taken are not bounded here, since there is one for
each publication and the thread that brings them must never wait for the main loop, which may be publishing.

A turn of the main loop costs something, so notices and receipts, on which mostly nothing hangs, do not cause one: they
are there when something else does, or are many.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from sluice.doors.mqtt import Incoming

EVENTS_MOST = 10_000
LAZY_MOST = 10
"""Events that nobody is in a hurry for; as many as these are taken at once all the same. Brokers send only so many
receipts unacknowledged (Mosquitto: 20)."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A publication that the sensor broker does not want, by its message id, and why."""

    mid: int
    reason: str


@dataclass(frozen=True, slots=True)
class TooLarge:
    """A reading of `nbytes`, more than any sensor may send; `begun` holds its first bytes, all that is kept."""

    begun: Incoming
    nbytes: int


class Mailbox:
    """`put…` from any thread, `take…` from the main loop."""

    def __init__(self, readings_most: int, readings_bytes: int) -> None:
        self._readings_most = readings_most
        self._readings_bytes = readings_bytes
        self._readings: deque[Incoming] = deque()
        self._nbytes = 0
        """Size of the payloads of the readings."""
        self._events: deque[object] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._urgent = False
        """There is an event for which the main loop is to wake up."""
        self._any_is_urgent = False

    def close(self) -> None:
        """Let go whoever waits; what is put from now on is thrown away, unacknowledged."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def put_reading(self, reading: Incoming) -> None:
        """A reading; waits while there are as many as allowed, or as large. A single one always fits."""
        nbytes = len(reading.payload)
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_room(nbytes))
            if self._closed:
                return
            self._readings.append(reading)
            self._nbytes += nbytes
            self._changed.notify_all()

    def _has_room(self, nbytes: int) -> bool:
        count = len(self._readings)
        return count == 0 or (count < self._readings_most and self._nbytes + nbytes <= self._readings_bytes)

    def put(self, event: object, *, lazily: bool = False) -> None:
        """Any other event; waits while there are too many. `lazily`: it may wait for the next turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._events) < EVENTS_MOST)
            self._add(event, lazily=lazily)

    def put_published(self, mid: int) -> None:
        """The sensor broker has taken a publication; never waits."""
        with self._changed:
            self._add(mid, lazily=True)

    def put_refused(self, mid: int, reason: str) -> None:
        """The sensor broker does not want a publication; never waits."""
        with self._changed:
            self._add(Refused(mid, reason))

    def _add(self, event: object, *, lazily: bool = False) -> None:
        self._events.append(event)
        if not lazily or self._any_is_urgent or len(self._events) >= LAZY_MOST:
            self._urgent = True
            self._changed.notify_all()

    def take(self, timeout_s: float, *, or_reading: bool, or_lazy: bool = False) -> list[object]:
        """All events; waits up to `timeout_s` for one that may not wait, or for any with `or_lazy`, or for a reading if
        those can be used now."""
        with self._changed:
            if timeout_s > 0:
                self._any_is_urgent = or_lazy
                self._urgent |= or_lazy and bool(self._events)
                self._changed.wait_for(lambda: self._urgent or (or_reading and self._readings), timeout_s)
            events = list(self._events)
            self._events.clear()
            self._urgent = False
            self._changed.notify_all()
        return events

    def take_readings(self, most: int) -> list[Incoming]:
        """Up to `most` readings."""
        with self._changed:
            taken = [self._readings.popleft() for _ in range(min(most, len(self._readings)))]
            self._nbytes -= sum([len(reading.payload) for reading in taken])
            self._changed.notify_all()
        return taken
