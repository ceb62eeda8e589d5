"""Links that can be cut, stalled, slowed down and made thin: TCP proxies on loopback, one for each pair of parts.

All of them live in one thread with an asyncio loop; the calls of a `Link` may come from any thread and return when the
link is as it was told to be.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

from tests.brokers.process import HOST, free_port

CHUNK = 4096
CHUNKS = 16
"""Read ahead of what was passed on, in each direction of a connection: a slow link fills up as a real one does."""
CALL_S = 10.0


class Link:
    """A way to one server: what connects to `port` is connected to `upstream`."""

    def __init__(self, name: str, upstream: int, loop: asyncio.AbstractEventLoop) -> None:
        self.name = name
        self.port = free_port()
        self.upstream = upstream
        self._loop = loop
        self._delay_s = 0.0
        self._bytes_per_s = 0.0
        self._flows = asyncio.Event()
        self._turn = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def mend(self) -> None:
        """As it was at the beginning: everything passes at once."""
        self._do(self._mend())

    def cut(self) -> None:
        """All connections end, new ones are refused."""
        self._do(self._cut())

    def stall(self) -> None:
        """Connections stay and can be made, and nothing passes."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def slow(self, delay_s: float) -> None:
        """Everything passes this much later, in both directions."""
        self._delay_s = delay_s

    def thin(self, bytes_per_s: float) -> None:
        """No more than that passes, in both directions and all connections together."""
        self._bytes_per_s = bytes_per_s

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(CALL_S)

    async def _mend(self) -> None:
        self._delay_s = self._bytes_per_s = 0.0
        self._flows.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._accepted, HOST, self.port)

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._open:
            writer.transport.abort()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, away = await asyncio.open_connection(HOST, self.upstream)
        except OSError:
            writer.transport.abort()  # the server is not there, which looks the same without us
            return
        for one, other in ((reader, away), (there, writer)):
            self._open.add(other)
            task = asyncio.create_task(self._carry(one, other))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction of a connection: a queue between what came and what may go on."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS)

        async def take() -> None:
            while data := await reader.read(CHUNK):
                await under_way.put((self._loop.time() + self._delay_s, data))
            await under_way.put((0.0, b""))

        taking = asyncio.create_task(take())
        try:
            while True:
                due, data = await self._next(under_way, taking)
                if not data:
                    break
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                await self._flows.wait()
                if self._bytes_per_s:
                    async with self._turn:
                        await asyncio.sleep(len(data) / (self._bytes_per_s or float("inf")))
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # one of the two ends is gone: so is the connection
        finally:
            taking.cancel()
            self._open.discard(writer)
            writer.close()

    @staticmethod
    async def _next(under_way: asyncio.Queue[tuple[float, bytes]], taking: asyncio.Task[None]) -> tuple[float, bytes]:
        """What comes next; the error of `taking` where it failed."""
        getting = asyncio.create_task(under_way.get())
        await asyncio.wait({getting, taking}, return_when=asyncio.FIRST_COMPLETED)
        if not getting.done() and taking.done() and taking.exception() is not None:
            getting.cancel()
            await taking
        return await getting


class Links:
    """All links of a run and their thread."""

    def __init__(self) -> None:
        self.by_name: dict[str, Link] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="links", daemon=True)
        self._thread.start()

    def add(self, name: str, upstream: int) -> Link:
        """A new link to the server on that port, open."""
        link = self.by_name[name] = Link(name, upstream, self._loop)
        link.mend()
        return link

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for link in self.by_name.values():
            link.cut()
        asyncio.run_coroutine_threadsafe(_finish(), self._loop).result(CALL_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_S)
        with contextlib.suppress(RuntimeError):
            self._loop.close()


async def _finish() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
