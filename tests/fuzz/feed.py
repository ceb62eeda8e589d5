"""One input to one decoder, judged: the error, the time and the memory that it took.

Memory is the process's own peak, which Linux lets one set back (`proc(5)`: clear_refs), so that each input has one of
its own. A decoder that is fed `n` bytes may take `BASE_BYTES` and `BYTES_PER_BYTE` times n.
"""

from __future__ import annotations

import os
import resource
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sluice.wire.errors import PermanentError, UnknownSchemaError

DOCUMENTED = (PermanentError, UnknownSchemaError)
BASE_BYTES = 32_000_000
BYTES_PER_BYTE = 64
SLOW_S = 2.0
"""CPU time of one input."""
WORDS_MOST = 1000
"""Length of an error's text: it goes into headers, reports and logs."""


@dataclass(frozen=True, slots=True)
class Fed:
    """What one input did: `trouble` is what a decoder must not do (`where: what`), or None."""

    trouble: str | None
    cpu_s: float
    grown_bytes: int


class Feeder:
    """Feeds a decoder and measures it."""

    def __init__(self, feed: Callable[[bytes], None]) -> None:
        self._feed = feed
        self._clear = os.open("/proc/self/clear_refs", os.O_WRONLY)

    def close(self) -> None:
        """Let go of the measuring."""
        os.close(self._clear)

    def __call__(self, data: bytes) -> Fed:
        """Decode `data`; never raises an `Exception`."""
        os.write(self._clear, b"5")
        before, begun = _peak(), time.thread_time()
        trouble = self._trouble(data)
        cpu_s, grown = time.thread_time() - begun, _peak() - before
        if trouble is None and cpu_s > SLOW_S:
            trouble = f"slow: {cpu_s:.1f} s of CPU for {len(data)} bytes"
        if trouble is None and grown > BASE_BYTES + BYTES_PER_BYTE * len(data):
            trouble = f"memory: {grown / 1e6:.0f} MB for {len(data)} bytes"
        return Fed(trouble, cpu_s, grown)

    def _trouble(self, data: bytes) -> str | None:
        try:
            self._feed(data)
        except DOCUMENTED as error:
            text = str(error)
            if len(text) > WORDS_MOST or "\n" in text:
                return f"words: {len(text)} characters or several lines in an error: {text[:60]!r}"
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            return f"{Path(last.filename).name}:{last.lineno}: {type(error).__name__} {str(error)[:200]!r}"
        return None


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def kind_of(trouble: str) -> str:
    """What two inputs with the same trouble have in common."""
    first, second = trouble.split(" ")[:2]
    return first if first in ("slow:", "memory:", "words:", "kept:") else f"{first} {second}"
