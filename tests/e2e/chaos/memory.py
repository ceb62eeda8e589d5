"""What the processes hold: resident memory, by process life, and whether it stays flat."""

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
"""A life that grows by more than both from its first to its last third is not flat."""


@dataclass(frozen=True)
class Growth:
    """Of one life of a process: how long it was looked at, what it held in the first and in the last third of that."""

    name: str
    seconds: float
    before_mb: float
    after_mb: float

    @property
    def mb_per_minute(self) -> float:
        """How fast it grew."""
        return (self.after_mb - self.before_mb) / (self.seconds * 2 / 3) * 60

    @property
    def flat(self) -> bool:
        """Whether it did not."""
        return self.after_mb - self.before_mb <= GROWTH_MB or self.mb_per_minute <= GROWTH_MB_PER_MINUTE

    def __str__(self) -> str:
        return f"{self.name} {self.before_mb:.0f} -> {self.after_mb:.0f} MB in {self.seconds:.0f} s"


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
            before, after = (median(mb for _, mb in part) for part in (warm[:third], warm[-third:]))
            found.append(Growth(name, seconds, before, after))
        return sorted(found, key=lambda growth: -growth.mb_per_minute)
