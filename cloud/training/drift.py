"""When a stream is no longer what it was: a rise of the error, found by ADWIN (`river`).

Bifet and Gavaldà, "Learning from time-changing data with adaptive windowing", SIAM SDM 2007. ADWIN keeps a window of
the errors and drops its older part when the means of the two differ too much. It does so too when the error falls,
which for a model that learns is no drift.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from river.drift import ADWIN

KEPT = 5000
"""Errors that a checkpoint holds: ADWIN's window is made anew of them."""

LATE = 64
"""Errors that tell how bad it is by now: ADWIN sees a rise long before it can say how far it goes."""


@dataclass(frozen=True, slots=True)
class Change:
    """A drift: the share of errors before and since, and how many labelled records it is old, at least."""

    before: float
    since: float
    width: int


class Drift:
    """Watches a stream of errors; `delta` as ADWIN's. `errors`: what a checkpoint kept."""

    def __init__(self, delta: float, errors: Sequence[int] = ()) -> None:
        self._delta = delta
        self._adwin = ADWIN(delta=delta)
        self.errors: deque[int] = deque(maxlen=KEPT)
        self.take(errors)

    def take(self, errors: Sequence[int]) -> Change | None:
        """More errors, each 0 or 1, in order. The drift that they show, if they do."""
        found = None
        for error in errors:
            before = self._adwin.estimation
            self._adwin.update(error)
            self.errors.append(error)
            if self._adwin.drift_detected:
                width, since = int(self._adwin.width), float(self._adwin.estimation)
                while len(self.errors) > width:
                    self.errors.popleft()
                if since > before:
                    found = Change(float(before), since, width)
        return found

    @property
    def late(self) -> float:
        """The share of errors among the last `LATE` records."""
        late = list(self.errors)[-LATE:]
        return sum(late) / len(late) if late else 0.0
