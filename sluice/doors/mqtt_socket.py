"""A socket that is read in large pieces, for a reader that asks for small ones.

paho reads a message in three or four calls of a few bytes, each of them a call of the kernel, and waits in `select`
between two messages. A `BufferedSocket` stands in between: it reads what is there at once, `AHEAD` bytes at most, and
hands it out from memory; `pending` says how much is left, as an `ssl.SSLSocket` does, and paho does not wait while
there is something. What is read ahead is bounded, so a reader that stops still holds up who sends.
"""

from __future__ import annotations

import socket
import ssl

AHEAD = 65_536
"""Bytes: most that is read ahead of what is asked for."""


class BufferedSocket:
    """Reads `sock`, plain or TLS, through a buffer; all else goes to it as it is. One thread reads."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._tls_pending = sock.pending if isinstance(sock, ssl.SSLSocket) else None
        self._ahead = b""
        self._at = 0
        """How much of `_ahead` is handed out."""
        self.send = sock.send
        self.fileno = sock.fileno
        self.setblocking = sock.setblocking
        self.close = sock.close

    def recv(self, size: int) -> bytes:
        """Up to `size` bytes, none at the end; raises what the socket raises where there is nothing to read yet."""
        if self._at == len(self._ahead):
            if size >= AHEAD:
                return self._sock.recv(size)
            self._ahead = b""  # an error below leaves nothing behind
            self._at = 0
            self._ahead = self._sock.recv(AHEAD)
        begin = self._at
        self._at = min(begin + size, len(self._ahead))
        return self._ahead[begin : self._at]

    def pending(self) -> int:
        """Bytes that `recv` can give without asking the kernel."""
        left = len(self._ahead) - self._at
        return left + self._tls_pending() if self._tls_pending else left
