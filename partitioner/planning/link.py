"""A link between two tiers as the plan sees it: a rate and a delay, and how people write them down."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sluice.wire.errors import PermanentError

PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}
NUMBER = r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)"
RATE = re.compile(rf"{NUMBER}\s*([kKmMgG]?)(bit/s|bits/s|bit|b/s|bps|B/s|Bps|)")
DELAY = re.compile(rf"{NUMBER}\s*(s|ms|us|µs)")


LEAST_BPS, MOST_BPS, MOST_S = 1e-3, 1e15, 1e6
"""What a link can be."""


@dataclass(frozen=True, slots=True)
class Link:
    """`rate_bps`: bits a second; `delay_s`: seconds one way. Both ways are alike."""

    rate_bps: float
    delay_s: float

    def __post_init__(self) -> None:
        if not LEAST_BPS <= self.rate_bps <= MOST_BPS:
            raise PermanentError(f"link of {self.rate_bps:g} bit/s: the rate has to be {LEAST_BPS:g} to {MOST_BPS:g}")
        if not 0 <= self.delay_s <= MOST_S:
            raise PermanentError(f"link with a delay of {self.delay_s:g} s: the delay has to be 0 to {MOST_S:g} s")

    def time_s(self, size: float) -> float:
        """Seconds until a message of `size` bytes is there, on an idle link."""
        return self.delay_s + 8 * size / self.rate_bps

    def __str__(self) -> str:
        return f"{_scaled(self.rate_bps)}bit/s,{self.delay_s * 1000:.6g}ms"


def parse_link(text: str) -> Link:
    """The link that `text` describes: a rate and, if it has one, its delay one way, as in `1Mbit/s,50ms`.

    Rates count bits (`250kbit/s`, `10Mbps`, `56k`) or, with a capital B, bytes (`100kB/s`); k, M and G are powers of
    1000. Delays are in `s`, `ms` or `us`. Raises `PermanentError` when it is anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    rate = RATE.fullmatch(parts[0])
    delay = DELAY.fullmatch(parts[1]) if len(parts) == 2 else None
    if rate is None or len(parts) > 2 or (len(parts) == 2 and delay is None):
        raise PermanentError(f"link {text[:40]!r} is not understood: write a rate and a delay, as in 1Mbit/s,50ms")
    number, prefix, unit = rate.groups()
    bits = 8 if unit.startswith("B") else 1
    rate_bps = float(number) * PREFIXES[prefix.lower()] * bits
    return Link(rate_bps, float(delay[1]) * SECONDS[delay[2]] if delay else 0.0)


def _scaled(rate: float) -> str:
    for prefix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if rate >= factor:
            return f"{rate / factor:.6g}{prefix}"
    return f"{rate:.6g}"
