"""Whether a reader of a group stands still although there is something to read.

After a broker was killed, librdkafka's consumer may go on for ever without an error and without a record: still in its
group but no longer fetching, or asking to join a group and never let in (librdkafka issues 4492 and 2944 are of that
kind). Nothing short of a new client helps, so a reader that finds itself so ends its process.

It looks only while nothing comes. Gaps are no sign: the end of a topic partition that rises says that somebody writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import monotonic

TopicPartition = tuple[str, int]

LOOK_EVERY_S = 10.0
LOOKS = 4
"""So many looks in a row with nothing read, at each of which the end had risen."""
JOIN_LOOKS = 6
"""So many looks in a row without having joined, after the time that others may take to make room for a new member."""


class Stalls:
    """`end_of` tells where a topic partition ends now, None if Kafka does not say; `room_s`: how long other members of
    the group may take to make room for a new one (max.poll.interval.ms)."""

    def __init__(self, end_of: Callable[[TopicPartition], int | None], room_s: float) -> None:
        self._end_of = end_of
        self._join_looks = JOIN_LOOKS + round(room_s / LOOK_EVERY_S)
        self._ends: dict[TopicPartition, int] = {}
        self._looks = 0
        self._next = monotonic() + LOOK_EVERY_S

    def moves(self) -> None:
        """Something was read, or reading begins anew."""
        self._looks = 0
        self._ends.clear()
        self._next = monotonic() + LOOK_EVERY_S

    def look(self, joined: bool, places: Callable[[], Iterable[TopicPartition]], answers: Callable[[], bool]) -> bool:
        """Nothing was read: whether that is a stall by now. Asks Kafka only when it is time to.

        `joined`: the group has let this reader in; `places`: what it is to read now; `answers`: whether Kafka does.
        """
        now = monotonic()
        if now < self._next:
            return False
        self._next = now + LOOK_EVERY_S
        stuck = self._rises(places()) if joined else answers()
        self._looks = self._looks + 1 if stuck else 0
        return self._looks >= (LOOKS if joined else self._join_looks)

    def _rises(self, places: Iterable[TopicPartition]) -> bool:
        """Whether any of them ends further on than at the look before."""
        found = {place: end for place in places if (end := self._end_of(place)) is not None}
        risen = any(end > self._ends.get(place, end) for place, end in found.items())
        self._ends = found
        return risen
