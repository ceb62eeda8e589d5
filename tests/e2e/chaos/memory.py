"""What the processes hold: resident memory, by process life, and whether it stays flat.

A stage holds more after its first backlog (interpreters for larger batches, what librdkafka reads ahead, what malloc
keeps of both) and after Kafka was away: steps to a height where it stays. So growth counts when it goes on, in both
halves of a life. A step alone is let pass, up to a bound.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

PAGE_BYTES = 4096
EVERY_S = 2.0
WARM_S = 45.0
"""Caches fill and interpreters are made at the beginning of a life."""
JUDGED_S = 120.0
"""A life that lasts less after its warm-up says nothing."""
GROWTH_MB = 16.0
GROWTH_MB_PER_MINUTE = 1.0
"""A life that grows by more than both from its first to its last third may not be flat."""
GOES_ON = 0.25
"""It is not if so much of the growth came up to the middle third, and as much after it. A step is in one of them."""
STEP_MB = 40.0
"""No step is larger."""


@dataclass(frozen=True)
class Growth:
    """Of one life of a process: how long it was looked at, and what it held in each third of that."""

    name: str
    seconds: float
    before_mb: float
    middle_mb: float
    after_mb: float

    @property
    def mb_per_minute(self) -> float:
        """How fast it grew."""
        return (self.after_mb - self.before_mb) / (self.seconds * 2 / 3) * 60

    @property
    def flat(self) -> bool:
        """Whether it did not, or once and no more."""
        grown = self.after_mb - self.before_mb
        if grown <= GROWTH_MB or self.mb_per_minute <= GROWTH_MB_PER_MINUTE:
            return True
        goes_on = min(self.middle_mb - self.before_mb, self.after_mb - self.middle_mb) >= GOES_ON * grown
        return grown <= STEP_MB and not goes_on

    def __str__(self) -> str:
        held = f"{self.before_mb:.0f} -> {self.middle_mb:.0f} -> {self.after_mb:.0f} MB"
        return f"{self.name} {held} in {self.seconds:.0f} s"


class Memory:
    """Looks now and then."""

    def __init__(self) -> None:
        self._lives: dict[tuple[str, int], list[tuple[float, float]]] = {}
        self._next = 0.0

    def look(self, pids: dict[str, int]) -> None:
        """Note what each process holds, if it is time to."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + EVERY_S
        for name, pid in pids.items():
            try:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue  # it was killed
            if pages:
                self._lives.setdefault((name, pid), []).append((now, pages * PAGE_BYTES / 1e6))

    def growths(self) -> list[Growth]:
        """Of all lives that were long enough, the fastest growing first."""
        found = []
        for (name, _pid), seen in self._lives.items():
            warm = [(at, mb) for at, mb in seen if at >= seen[0][0] + WARM_S]
            if not warm or (seconds := warm[-1][0] - warm[0][0]) < JUDGED_S:
                continue
            third = len(warm) // 3
            parts = (warm[:third], warm[third:-third], warm[-third:])
            before, middle, after = (median(mb for _, mb in part) for part in parts)
            found.append(Growth(name, seconds, before, middle, after))
        return sorted(found, key=lambda growth: -growth.mb_per_minute)
