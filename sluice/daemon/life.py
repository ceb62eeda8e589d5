"""The life of a daemon: it starts, says that it is ready, works until it is told to stop, and crashes loudly.

`run` is the frame of every daemon's command. A defect in any thread ends the process with exit code 1 and a traceback
in the log, with nothing acknowledged; the supervisor starts it again.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Callable

from prometheus_client import start_http_server

from sluice.daemon import logs
from sluice.daemon.settings import RoomSettings
from sluice.wire.errors import PermanentError

log = logging.getLogger(__name__)

READY = "ready"
"""The log message that a daemon writes once it works; tests and `sluice up` wait for it."""


def run(room: str, settings: RoomSettings, main: Callable[[threading.Event], None]) -> int:
    """Run `main(stop)` until it returns; SIGTERM and SIGINT set `stop`. Returns the exit code."""
    logs.set_up(room, settings.log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    threading.excepthook = _crash
    try:
        if settings.metrics_port:
            _offer_metrics(settings.metrics_port)
        main(stop)
    except PermanentError as error:
        log.error("cannot go on: %s", error)
        return 1
    except Exception:
        log.critical("defect: ending with nothing acknowledged", exc_info=True)
        return 1
    log.info("stopped")
    return 0


def _offer_metrics(port: int) -> None:
    try:
        start_http_server(port)
    except (OSError, OverflowError) as error:
        raise PermanentError(f"metrics_port {port}: {error}") from error


def _crash(args: threading.ExceptHookArgs) -> None:
    exc = args.exc_value or args.exc_type()
    name = args.thread.name if args.thread else "?"
    log.critical("defect in thread %s: ending", name, exc_info=(args.exc_type, exc, args.exc_traceback))
    sys.stderr.flush()
    os._exit(1)


class Backoff:
    """Waits that double from `first_s` to `most_s`, each with jitter of half to full length."""

    def __init__(self, first_s: float = 0.2, most_s: float = 10.0) -> None:
        self.first_s = first_s
        self.most_s = most_s
        self._next_s = first_s

    def wait_s(self) -> float:
        """The next wait in seconds."""
        wait = self._next_s
        self._next_s = min(self._next_s * 2, self.most_s)
        return wait * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """It worked: begin again at `first_s`."""
        self._next_s = self.first_s
