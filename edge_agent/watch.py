"""Whether a run keeps to its bounds, in a window of its last samples.

A bound is left as soon as so many samples of a window are bad that it could not keep to the bound even if all the
others were good. So a run that fails altogether is found out after a few samples, and a full window is judged exactly.
"""

from __future__ import annotations

import math
import time
from collections import deque

from sluice.wire.state import Bounds

PROVEN_SAMPLES = 20
"""Good samples after which a run is no longer suspected of ending the whole agent."""
SLOW_MOST = 0.05
"""Share of samples that may take longer than the bound of the 95th percentile."""
_SLACK = 1e-9
"""Shares are products of floats: half of 3 samples is not to be left by rounding."""


class Watch:
    """The last samples of one run. `note` each sample, then ask `left`."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.good = 0
        self._until = None if bounds.watch_s is None else time.monotonic() + bounds.watch_s
        self._window: deque[tuple[bool, bool, bool]] = deque()
        self._failed = self._exited = self._slow = 0
        self._slow_ms = math.inf if bounds.latency_p95_most_ms is None else bounds.latency_p95_most_ms

    def note(self, *, failed: bool, exited: bool = False, ms: float = 0.0) -> None:
        """A sample: whether it could not be worked on, whether it was answered here, its processing time in ms."""
        if len(self._window) == self.bounds.samples:
            self._count(*self._window.popleft(), -1)
        slow = ms > self._slow_ms
        self._window.append((failed, exited, slow))
        self._count(failed, exited, slow, 1)
        self.good += not failed

    def _count(self, failed: bool, exited: bool, slow: bool, by: int) -> None:
        self._failed += failed * by
        self._exited += exited * by
        self._slow += slow * by

    @property
    def proven(self) -> bool:
        """Whether it has worked on enough samples not to be suspected of ending the agent."""
        return self.good >= PROVEN_SAMPLES

    @property
    def full(self) -> bool:
        """Whether a whole window was judged."""
        return len(self._window) == self.bounds.samples

    @property
    def over(self) -> bool:
        """Whether its time is over."""
        return self._until is not None and time.monotonic() >= self._until

    def left(self) -> str | None:
        """Which bound is left and by how much, or None."""
        bounds, seen = self.bounds, len(self._window)
        of = f"of {bounds.samples} samples, after {seen}"
        if self._failed > bounds.errors_most * bounds.samples + _SLACK:
            return f"{self._failed} errors where at most a share of {bounds.errors_most:g} is allowed {of}"
        if self._slow > SLOW_MOST * bounds.samples + _SLACK:
            return f"{self._slow} took over {self._slow_ms:g} ms where at most a share of {SLOW_MOST:g} is allowed {of}"
        least, most = bounds.exit_share_least, bounds.exit_share_most
        if least is not None and seen - self._exited > (1 - least) * bounds.samples + _SLACK:
            return f"exit share {self._exited / seen:.3g} where at least {least:g} is asked for {of}"
        if most is not None and self._exited > most * bounds.samples + _SLACK:
            return f"exit share {self._exited / seen:.3g} where at most {most:g} is allowed {of}"
        return None
