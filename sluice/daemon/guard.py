"""A guard over calls that may never return, whatever time they were given: then the process ends, and a new one helps.

librdkafka has such calls. After a broker was restarted `send_offsets_to_transaction` may wait for ever (its issue
5511). It waits by the wall clock, so one that is set back by two hours may make it wait for two hours.
"""

from __future__ import annotations

import threading
import time
from itertools import count

LOOK_S = 1.0


class Guard:
    """`with guard:` around each call. A daemon ends with a traceback when one takes longer than about `most_s`.

    Looks are counted and not the time, so that a process which was stopped for a while is not blamed for it.
    """

    def __init__(self, name: str, most_s: float, look_s: float = LOOK_S) -> None:
        self.name = name
        self._looks, self._look_s = int(most_s / look_s), look_s
        self._numbers = count(1)
        self._call = 0
        """The number of the call under way; 0: none."""
        threading.Thread(target=self._look_on, name=f"{name}-guard", daemon=True).start()

    def __enter__(self) -> None:
        self._call = next(self._numbers)

    def __exit__(self, *_: object) -> None:
        self._call = 0

    def _look_on(self) -> None:
        """Raise `RuntimeError`, which ends a daemon, when one call is under way at too many looks in a row."""
        seen, looks = 0, 0
        while looks <= self._looks:
            time.sleep(self._look_s)
            looks = looks + 1 if self._call and self._call == seen else 0
            seen = self._call
        raise RuntimeError(f"{self.name}: a call to librdkafka does not return; only a new process helps")
