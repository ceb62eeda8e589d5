"""Places for what the gateway has taken in and Kafka has not confirmed: bounded in messages and in bytes.

So memory stays flat when Kafka is away, and the broker, and behind it the devices, keep what is theirs. A broker that
speaks MQTT 5 is told how many places there are and sends no more (`unacknowledged`). Where there is none all the same,
the network threads wait in `take`: they read nothing then, no ping either, and in the end the broker hangs up.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence


class Places:
    """At most `most` messages of at most `most_bytes` together; a single larger one may pass alone."""

    def __init__(self, most: int, most_bytes: int) -> None:
        self.most = most
        self.most_bytes = most_bytes
        self.taken = 0
        self.bytes = 0
        self._closed = False
        self._freed = threading.Condition(threading.Lock())

    def take(self, size: int) -> bool:
        """Wait for a place for a message of `size` bytes; False when there will be none any more."""
        with self._freed:
            while not self._closed and (
                self.taken >= self.most or (self.taken and self.bytes + size > self.most_bytes)
            ):
                self._freed.wait()
            if self._closed:
                return False
            self.taken += 1
            self.bytes += size
            return True

    def free(self, sizes: Sequence[int]) -> None:
        """Messages of so many bytes each are through."""
        if not sizes:
            return
        with self._freed:
            self.taken -= len(sizes)
            self.bytes -= sum(sizes)
            self._freed.notify_all()

    def close(self) -> None:
        """Nobody gets a place from now on, and nobody waits for one."""
        with self._freed:
            self._closed = True
            self._freed.notify_all()
