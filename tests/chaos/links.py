"""A link between two programs of the chaos run, which can be cut, held or slowed: a small TCP proxy on asyncio.

*Held* means what a broken cable means: both ends keep their connection, and nothing arrives. What was sent meanwhile
arrives when the link is let go, or is lost when it is cut: nothing is ever taken out of the middle of a stream.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

__all__ = ["Link", "Pipe", "to_port", "to_unix"]

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Streams]]
WAYS = ("there", "back")


def to_port(port: Callable[[], int]) -> Connect:
    """To a port of this machine, which is asked for at each connection."""
    return lambda: asyncio.open_connection("127.0.0.1", port())


def to_unix(path: str) -> Connect:
    """To a UNIX socket."""
    return lambda: asyncio.open_unix_connection(path)


class Pipe:
    """One connection through a link: ``there`` is from who connected, ``back`` is to it."""

    def __init__(self, near: Streams, far: Streams) -> None:
        self._near = near
        self._far = far
        self._open = {way: asyncio.Event() for way in WAYS}
        self.delay = 0.0
        self.let_go()

    async def run(self) -> None:
        """Pass everything on until one end is closed, then close the other, too."""
        ways = (("there", self._near[0], self._far[1]), ("back", self._far[0], self._near[1]))
        tasks = [asyncio.create_task(self._pass_on(*way)) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for _, writer in (self._near, self._far):
                writer.close()

    async def _pass_on(self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._open[way].wait()
                if self.delay:
                    await asyncio.sleep(self.delay)
                writer.write(data)
                await writer.drain()
        await self._open[way].wait()  # the end does not arrive either

    def hold(self, *ways: str) -> None:
        """Nothing arrives that way any more."""
        for way in ways:
            self._open[way].clear()

    def let_go(self) -> None:
        """What was held arrives."""
        for event in self._open.values():
            event.set()

    def cut(self) -> None:
        """Reset the connection at both ends; what was under way is lost."""
        for _, writer in (self._near, self._far):
            writer.transport.abort()
        self.let_go()  # whoever waits there finds the end


class Link:
    """Listens on ``port``, and connects each connection through. ``pipes``: those that are open."""

    def __init__(self, name: str, connect: Connect) -> None:
        self.name = name
        self.pipes: list[Pipe] = []
        self._connect = connect
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._server: asyncio.Server | None = None
        self.port: int = self._listener.getsockname()[1]
        self._refuses = False
        self._held: tuple[str, ...] = ()
        self._delay = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._accept, sock=self._listener)

    async def close(self) -> None:
        """Stop listening, and cut what is open."""
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._opened(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _opened(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            return
        try:
            far = await self._connect()
        except OSError:
            writer.transport.abort()
            return
        pipe = Pipe((reader, writer), far)
        pipe.delay = self._delay
        pipe.hold(*self._held)
        self.pipes.append(pipe)
        try:
            await pipe.run()
        finally:
            self.pipes.remove(pipe)

    # What goes wrong

    def cut(self) -> None:
        """Cut all that is open."""
        for pipe in tuple(self.pipes):
            pipe.cut()

    def refuse(self) -> None:
        """Cut all that is open, and whoever connects."""
        self._refuses = True
        self.cut()

    def hold(self, *ways: str) -> None:
        """Nothing arrives that way, on new connections either."""
        self._held = ways
        for pipe in self.pipes:
            pipe.hold(*ways)

    def slow(self, seconds: float) -> None:
        """Everything takes so much longer, read by read."""
        self._delay = seconds
        for pipe in self.pipes:
            pipe.delay = seconds

    def mend(self) -> None:
        """All is well again; what was held arrives."""
        self._refuses, self._held = False, ()
        self.slow(0.0)
        for pipe in self.pipes:
            pipe.let_go()
