"""Pages of the chaos run that lose their connections at random and go on where they were: a process of its own, because
the one that runs it all has other things to do.

It is started with a number of pages, the seconds between two losses of one page, the ports of the gateways, the names
of the rooms, and a file, to which it writes a line for each thing that a page is told. It reads orders: ``quiet`` (lose
nothing, and be there), ``on``, and the end of input. A page speaks the protocol by hand, and goes by its rules alone.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import suppress
from itertools import count
from random import Random
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

__all__ = ["PAGES", "Crowd", "Page"]

PAGES = "page"
"""What the names of their users begin with."""

FORMER = 8
"""Ids of former sockets that ``since`` may name."""


class Crowd:
    """All pages. ``quiet``: they keep what they have."""

    def __init__(self, pages: int, every: float, ports: list[int], rooms: list[str], path: str) -> None:
        self.every = every
        self.ports = ports
        self.random = Random(pages)
        self.quiet = False
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        self._lines: list[bytes] = []
        self.pages = [Page(self, f"{PAGES}{each}", self._some(rooms, each)) for each in range(pages)]

    def _some(self, rooms: list[str], number: int) -> list[str]:
        """Two in five are in two rooms."""
        first = number % len(rooms)
        return [rooms[first], rooms[(first + 1) % len(rooms)]] if number % 5 < 2 else [rooms[first]]

    def note(self, page: str, what: str, room: str, **more: Any) -> None:
        """A page was told something."""
        line = {"at": time.monotonic(), "page": page, "what": what, "room": room, **more}
        self._lines.append(json.dumps(line).encode() + b"\n")

    async def run(self) -> None:
        """Until there are no more orders."""
        tasks = [asyncio.create_task(page.run()) for page in self.pages]
        tasks.append(asyncio.create_task(self._write()))
        print("the pages come", flush=True)
        while order := await asyncio.to_thread(sys.stdin.readline):
            self.quiet = order == "quiet\n"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._flush()

    async def _write(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            self._flush()

    def _flush(self) -> None:
        os.write(self._file, b"".join(self._lines))
        self._lines.clear()


class Page:
    """One of them. ``positions``: epoch and offset in each of its rooms."""

    numbers = count(1)

    def __init__(self, crowd: Crowd, user: str, rooms: list[str]) -> None:
        self._crowd = crowd
        self._user = user
        self._rooms = rooms
        self._positions: dict[str, tuple[str, int]] = {}
        self._sockets: list[str] = []

    async def run(self) -> None:
        """Come, and come back."""
        random = self._crowd.random
        await asyncio.sleep(random.uniform(0, min(self._crowd.every, 3.0)))
        while True:
            with suppress(OSError, WebSocketException, TimeoutError):
                url = f"ws://127.0.0.1:{random.choice(self._crowd.ports)}/"
                async with connect(
                    url, subprotocols=[Subprotocol("kraftek.v1.json")], compression=None, proxy=None,
                    open_timeout=5.0, close_timeout=0.5, ping_interval=3.0, ping_timeout=6.0,
                ) as socket:  # fmt: skip
                    until = asyncio.get_running_loop().time() + random.expovariate(1 / self._crowd.every)
                    await self._stay(socket, until)
                    if random.random() < 0.5:
                        socket.transport.abort()
            self._crowd.note(self._user, "gone", "")
            await asyncio.sleep(random.expovariate(1.0))

    async def _stay(self, socket: ClientConnection, until: float) -> None:
        """Read until it is time to lose the connection."""
        self._sockets = [*self._sockets[-FORMER:], json.loads(await socket.recv())["payload"]["socketId"]]
        asked: dict[str, tuple[str, Any]] = {}
        await self._ask(socket, asked, self._rooms[0])
        loop = asyncio.get_running_loop()
        while self._crowd.quiet or loop.time() < until:
            if self._crowd.quiet:
                until = loop.time() + self._crowd.random.expovariate(1 / self._crowd.every)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(until - loop.time(), 0.05)):
                    message = json.loads(await socket.recv())
                if not await self._told(socket, message, asked):
                    return

    async def _ask(self, socket: ClientConnection, asked: dict[str, tuple[str, Any]], room: str) -> None:
        """Enter a room: the first one with a token."""
        known, number = self._positions.get(room), str(next(self.numbers))
        since = None
        if known is not None:
            since = {"epoch": known[0], "offset": known[1], "socketIds": self._sockets[:-1]}
        payload: dict[str, Any] = {"roomId": room} if since is None else {"roomId": room, "since": since}
        first = room == self._rooms[0]
        message: dict[str, Any] = {"type": "authenticate" if first else "join", "id": number}
        message["payload"] = {**payload, "token": f"{self._user}.0"} if first else payload
        asked[number] = room, since
        await socket.send(json.dumps(message))

    async def _told(self, socket: ClientConnection, message: Any, asked: dict[str, tuple[str, Any]]) -> bool:
        """Go by the rules. Returns whether the connection is of use."""
        what, payload, room = message["type"], message.get("payload"), message.get("roomId")
        if what in {"authenticated", "joined"}:
            room, since = asked.pop(message["id"])
            self._stands(room, payload)
            self._crowd.note(self._user, "answered", room, payload=payload, since=since, socket=self._sockets[-1])
            if what == "authenticated":
                for other in self._rooms[1:]:
                    await self._ask(socket, asked, other)
        elif what == "position":
            self._stands(room, payload)
            self._crowd.note(self._user, "position", room, payload=payload, socket=self._sockets[-1])
        elif "offset" in message:
            epoch, _ = self._positions.get(room, ("", 0))
            self._positions[room] = epoch, message["offset"]
            number = payload["n"]
            self._crowd.note(self._user, "heard", room, epoch=epoch, offset=message["offset"], n=number)
        elif what == "error":
            self._crowd.note(self._user, "error", room or "", payload=payload)
            await asyncio.sleep(1.0)
            return False
        return True

    def _stands(self, room: str, payload: Any) -> None:
        if payload.get("offset") is None:
            self._positions.pop(room, None)
        else:
            self._positions[room] = payload["epoch"], payload["offset"]


def main() -> None:
    """Run until the end of input."""
    _, pages, every, ports, rooms, path = sys.argv
    asyncio.run(Crowd(int(pages), float(every), [*map(int, ports.split(","))], rooms.split(","), path).run())


if __name__ == "__main__":
    main()
