"""The REST service as a process: uvicorn on an open service, with jobs that end when it does."""

from __future__ import annotations

import logging
import socket
import threading

import uvicorn

from cloud.app import create_app
from cloud.service import Service, open_service
from cloud.settings import CloudSettings
from sluice.daemon.life import READY
from sluice.daemon.secrecy import keep_to_itself
from sluice.wire.errors import PermanentError

log = logging.getLogger(__name__)

GRACE_S = 3
"""Time that requests under way have when the service is told to stop."""


def serve(settings: CloudSettings, stop: threading.Event) -> None:
    """Serve until `stop` is set. Raises `PermanentError` when the port is taken."""
    keep_to_itself()
    service = open_service(settings, stop)
    if service is None:
        return
    listening = _listen(settings)
    config = uvicorn.Config(
        create_app(service),
        log_config=None,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
    )
    with listening:
        _Server(config, service, stop).run([listening])


def _listen(settings: CloudSettings) -> socket.socket:
    try:
        return socket.create_server((settings.host, settings.port), backlog=1000)
    except OSError as error:
        raise PermanentError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from error


class _Server(uvicorn.Server):
    """uvicorn, saying when it serves, and ending jobs before it waits for the requests that wait for them."""

    def __init__(self, config: uvicorn.Config, service: Service, stop: threading.Event) -> None:
        super().__init__(config)
        self._service = service
        self._stop = stop

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to stop."""
        return await super().on_tick(counter) or self._stop.is_set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to serve."""
        await super().startup(sockets)
        if self.started and sockets:
            host, port = sockets[0].getsockname()[:2]
            log.info(READY, extra={"host": host, "port": port})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop serving."""
        self._service.runner.stop()
        await super().shutdown(sockets)
