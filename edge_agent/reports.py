"""What the device says of itself to those above: what runs, what went wrong, and dead letters, once the link is up."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable

from edge_agent.settings import EdgeSettings
from edge_agent.store import Store
from sluice.doors.mqtt import MqttDoor
from sluice.wire.names import LETTER_KIND, MqttTopics
from sluice.wire.state import MAX_STATE_BYTES, DeadLetter, Reported

log = logging.getLogger(__name__)

LETTER_DATA_BYTES = (MAX_STATE_BYTES - 10_000) * 3 // 4
"""Bytes of a bad payload that go into a dead letter, which is state in its size: base64, reason and origin fit too."""
LETTERS_MOST = 200
"""Dead letters that are kept while the link is down."""


class Reports:
    """All calls belong to the main loop's thread; only `after_commit` publishes."""

    def __init__(self, settings: EdgeSettings, store: Store, uplink: MqttDoor) -> None:
        self.settings = settings
        self._store = store
        self.last_error: str | None = None
        self.due = False
        self._uplink = uplink
        self._topics = MqttTopics(settings.topic_prefix)
        self._letters = True
        """Whether there may be dead letters in the store."""
        self._told_counters: dict[str, int] = {}
        self._next = 0.0

    def fault(self, reason: str) -> None:
        """Something went wrong; it is reported as the last error."""
        self.last_error = reason[:500]
        self.due = True

    def refuse(self, reason: str, origin: str, data: bytes) -> None:
        """Something goes up as a dead letter and is reported."""
        log.error("refused: %s", reason, extra={"topic": origin})
        self.fault(reason)
        text = base64.b64encode(data[:LETTER_DATA_BYTES]).decode()
        letter = DeadLetter(reason=reason[:1000], origin=origin[:300], data=text)
        self._store.push_letter(letter.model_dump_json().encode(), LETTERS_MOST)
        self._letters = True

    def after_commit(
        self, reported: Callable[[dict[str, int]], Reported], counters: Callable[[], dict[str, int]]
    ) -> None:
        """Publish what is due, if the link is up; new `counters` are not due before their time."""
        if not self._uplink.up.is_set():
            return
        if self._letters:
            for number, letter in self._store.letters():
                self._publish(LETTER_KIND, letter)
                self._store.drop_letters(number)
            self._letters = False
        now = time.monotonic()
        if not self.due and now < self._next:
            return
        counted = counters()
        if self.due or counted != self._told_counters:
            self.due = False
            self._told_counters = counted
            self._next = now + self.settings.report_interval_s
            self._publish("reported", reported(counted).model_dump_json().encode(), retain=True)

    def _publish(self, kind: str, payload: bytes, *, retain: bool = False) -> None:
        self._uplink.publish(self._topics.of(self.settings.device_id, kind), payload, retain=retain)
