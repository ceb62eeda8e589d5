"""The word to systemd that a daemon is ready and alive (`sd_notify(3)`): datagrams on a socket that it names.

Without systemd, or without `WatchdogSec` in the unit, nothing is said.
"""

from __future__ import annotations

import logging
import os
import socket
import time

log = logging.getLogger(__name__)


class Watchdog:
    """Says `alive` at most as often as it takes: three times in the time after which systemd would kill."""

    def __init__(self) -> None:
        path = os.environ.get("NOTIFY_SOCKET", "")
        self._path = "\0" + path[1:] if path.startswith("@") else path
        self._every_s = int(os.environ.get("WATCHDOG_USEC", "0")) / 3e6
        self._next = 0.0

    def ready(self) -> None:
        """It works from now on."""
        self._say(b"READY=1")

    def alive(self) -> None:
        """Once a turn of the main loop."""
        now = time.monotonic()
        if self._every_s and now >= self._next:
            self._next = now + self._every_s
            self._say(b"WATCHDOG=1")

    def stopping(self) -> None:
        """It was told to end."""
        self._say(b"STOPPING=1")

    def _say(self, state: bytes) -> None:
        if not self._path:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(state, self._path)
        except BlockingIOError:
            pass  # systemd has much to read; the next word will do
        except OSError as error:
            log.warning("systemd cannot be told %s: %s", state.decode(), error)
