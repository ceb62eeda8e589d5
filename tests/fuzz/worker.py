"""A process that feeds one decoder, so that whatever happens to it, the input is known: `python -m tests.fuzz.worker`.

Each input stands in a shared file before it is decoded. Whoever watches (`__main__.py`) sees there which one took too
long, or ended the process. hypothesis draws the valid messages; `mutate.py` does the damage.
"""

from __future__ import annotations

import argparse
import json
import mmap
import resource
import struct
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.feed import Feeder, kind_of
from tests.fuzz.mutate import MOST_BYTES, mutants
from tests.fuzz.targets import Target, targets

HEAD = struct.Struct("<qqq")
"""Inputs so far, when the one at hand began (monotonic ns; 0: none is), its length."""
SHARED_BYTES = HEAD.size + MOST_BYTES
PER_DRAW = 40
"""Damaged messages from one draw of valid ones."""
KEPT_BYTES = 200_000_000
"""What may stay of all inputs together; hypothesis remembers what it drew."""
ROOM_BYTES = 1_000_000_000
"""Address space that decoding may take; what claims more gets a MemoryError."""


def shared(path: Path) -> mmap.mmap:
    """The shared file, mapped."""
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), SHARED_BYTES)


@contextmanager
def place_of(path: Path) -> Iterator[mmap.mmap]:
    """A shared file of its own, made in `path`."""
    with path.open("wb") as file:
        file.truncate(SHARED_BYTES)
    with shared(path) as place:
        yield place


def work(target: Target, number: int, count: int, place: mmap.mmap) -> dict[str, Any]:
    """Feed `count` inputs that come of the seed `number`; what was seen."""
    feeder = Feeder(target.feed)
    seen: dict[str, Any] = {"inputs": 0, "slowest_s": 0.0, "most_bytes": 0, "troubles": {}}
    draws = -(-count // PER_DRAW)

    def note(trouble: str, data: bytes) -> None:
        kept = seen["troubles"].setdefault(kind_of(trouble), [trouble, data.hex()])
        if len(data) * 2 < len(kept[1]):
            kept[:] = [trouble, data.hex()]

    @settings(
        max_examples=draws,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @seed(number)
    @given(valid=target.valid, damage=st.integers(0, 2**64 - 1))
    def draw(valid: list[bytes], damage: int) -> None:
        for data in mutants(valid, damage, PER_DRAW):
            if seen["inputs"] >= count:
                return
            place[HEAD.size : HEAD.size + len(data)] = data
            HEAD.pack_into(place, 0, seen["inputs"], time.monotonic_ns(), len(data))
            fed = feeder(data)
            seen["inputs"] += 1
            HEAD.pack_into(place, 0, seen["inputs"], 0, 0)
            seen["slowest_s"] = max(seen["slowest_s"], fed.cpu_s)
            seen["most_bytes"] = max(seen["most_bytes"], fed.grown_bytes)
            if fed.trouble is not None:
                note(fed.trouble, data)
            if seen["inputs"] == count // 4:
                seen["warm_bytes"] = _resident()

    while seen["inputs"] < count:  # hypothesis ends early where it has drawn all that there is
        before = seen["inputs"]
        draw()
        number += 1_000_003
        draw = seed(number)(draw)
        assert seen["inputs"] > before
    feeder.close()
    if (kept := _resident() - seen.pop("warm_bytes", 0)) > KEPT_BYTES:
        note(f"kept: {kept / 1e6:.0f} MB more than after a quarter of {count} inputs", b"")
    return seen


def _resident() -> int:
    """Resident memory of this process, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    """Feed, and tell as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("seed", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--bundle", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("error")
    target = targets(args.bundle)[args.target]
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (room, room))
    json.dump(work(target, args.seed, args.count, shared(args.shared)), sys.stdout)


if __name__ == "__main__":
    main()
