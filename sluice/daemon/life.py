"""The life of a daemon: it starts, says that it is ready, works until it is told to stop, and crashes loudly.

`run` is the frame of every daemon's command. A defect in any thread ends the process with exit code 1 and a traceback
in the log, with nothing acknowledged; the supervisor starts it again.

The main thread does nothing but wait for signals: Python runs a signal's handler there alone, and not before the call
that the thread is in returns. librdkafka's commits and `close` do not return while Kafka is silent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import socket
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
BY_ITSELF = b"\0"
"""What the main thread hears when nobody but the daemon wants it to stop; else it hears the signal's number."""
STOP_WITHIN_S = 15.0
"""Time to end in good order; supervisors kill after 20 s (`docker-compose.yml`) or later."""


def run(
    room: str, settings: RoomSettings, main: Callable[[threading.Event], None], *, stop_within_s: float = STOP_WITHIN_S
) -> int:
    """Run `main(stop)` until it returns; SIGTERM and SIGINT set `stop`. Returns the exit code.

    A `main` that has not returned `stop_within_s` after `stop` is left as it is and the process ended, with code 0 if a
    signal wanted it and 1 otherwise: what is not acknowledged comes again, as it does after a kill.
    """
    logs.set_up(room, settings.log_level)
    heard, words = socket.socketpair()
    words.setblocking(False)
    # Python writes a signal's number there, in whichever thread the kernel gives it to
    signal.set_wakeup_fd(words.fileno())
    stop, codes = _Stop(words), list[int]()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    threading.excepthook = _crash

    def work() -> None:
        try:
            codes.append(_work(settings, main, stop))
        finally:
            stop.set()

    worker = threading.Thread(target=work, name="main", daemon=True)
    worker.start()
    first = heard.recv(1)
    stop.set()
    worker.join(stop_within_s)
    if worker.is_alive():
        log.warning(
            "not through %g s after it was told to stop: ended as it stands, what is open comes again", stop_within_s
        )
        sys.stderr.flush()
        os._exit(1 if first == BY_ITSELF else 0)
    return codes[0] if codes else 1


class _Stop(threading.Event):
    """The event that everybody waits for; setting it wakes the main thread."""

    def __init__(self, words: socket.socket) -> None:
        super().__init__()
        self._words = words

    def set(self) -> None:
        """Set it."""
        super().set()
        with contextlib.suppress(BlockingIOError):  # so much was said already that it will wake
            self._words.send(BY_ITSELF)


def _work(settings: RoomSettings, main: Callable[[threading.Event], None], stop: threading.Event) -> int:
    """Run `main` to its end; the exit code."""
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
