"""The faults that are going on: each begins, lasts its time, and is over when its course has come to its end.

A course may have to wait for another fault to be over, as a rollout does for a control plane that is away: so none is
waited for; each is asked again and again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from tests.e2e.chaos.faults import Course, Planned


@dataclass
class _Going:
    planned: Planned
    course: Course
    until: float


class Courses:
    """All that have begun and are not over; times are monotonic seconds."""

    def __init__(self) -> None:
        self._going: list[_Going] = []

    def __bool__(self) -> bool:
        """Whether any is going on."""
        return bool(self._going)

    @property
    def in_time(self) -> bool:
        """Whether any still has some of its time."""
        return any(time.monotonic() < one.until for one in self._going)

    def free(self, planned: Planned) -> bool:
        """Whether nothing that is going on touches the same."""
        return not any(planned.claims & one.planned.claims for one in self._going)

    def begin(self, planned: Planned, course: Course) -> None:
        """Begin a fault; raises what its course raises."""
        next(course)
        self._going.append(_Going(planned, course, time.monotonic() + planned.lasts_s))

    def end(self, *, all_of_them: bool = False) -> None:
        """End those whose time is over, or all; a course that has to wait stays, and is asked again."""
        now = time.monotonic()
        self._going = [one for one in self._going if not ((all_of_them or now >= one.until) and _over(one.course))]


def _over(course: Course) -> bool:
    waits = object()
    return next(course, waits) is waits
