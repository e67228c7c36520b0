"""Clients of the chaos run that lose their connections at random and come back: a process of its own, because the one
that runs it all has other things to do.

*Pages* go on where they were in rooms with history; *watchers* are users with several connections each, who want to
know who else is in their rooms. The process is started with what there is to do, as JSON, and writes a line to a file
for each thing that any of them is told. It reads orders: ``quiet`` (lose nothing, and be there), ``on``, and the end of
input. Its clients speak the protocol by hand, and go by its rules alone.
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

__all__ = ["PAGES", "WATCHERS", "Crowd", "Page", "Watcher", "is_mute", "is_one"]

PAGES, WATCHERS = "page", "watcher"
"""What the names of their users begin with."""

FORMER = 8
"""Ids of former sockets that ``since`` may name."""


def is_one(user: str) -> bool:
    """Whether the user is one of the crowd."""
    return user.startswith((PAGES, WATCHERS))


def is_mute(user: str) -> bool:
    """Whether the page never acknowledges anything."""
    return user.startswith(PAGES) and int(user.removeprefix(PAGES)) % 7 == 6


class Crowd:
    """All of them. ``quiet``: they keep what they have; ``over``: and are there at the end. ``callers``: the rooms of
    each page, and those of each watcher with the number of its connections, by user.
    """

    def __init__(self, ports: list[int], every: float, path: str, callers: dict[str, tuple[list[str], int]]) -> None:
        self.every = every
        self.ports = ports
        self.random = Random(len(callers))
        self.quiet = self.over = False
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        self._lines: list[bytes] = []
        self._callers: list[Caller] = []
        for user, (rooms, connections) in callers.items():
            kind = Page if user.startswith(PAGES) else Watcher
            self._callers += [kind(self, user, rooms, f"{user}/{number}") for number in range(connections)]

    def note(self, caller: Caller, what: str, room: str, **more: Any) -> None:
        """One of them was told something."""
        line = {"at": time.monotonic(), "user": caller.user, "seat": caller.seat, "what": what, "room": room, **more}
        self._lines.append(json.dumps(line).encode() + b"\n")

    async def run(self) -> None:
        """Until there are no more orders."""
        tasks = [asyncio.create_task(caller.run()) for caller in self._callers]
        tasks.append(asyncio.create_task(self._write()))
        print("the crowd comes", flush=True)
        while order := await asyncio.to_thread(sys.stdin.readline):
            self.quiet = order == "quiet\n"
        self.over = True
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


class Caller:
    """Connects, enters its rooms, and comes back when it has lost its connection. ``seat``: a name of its own."""

    numbers = count(1)

    def __init__(self, crowd: Crowd, user: str, rooms: list[str], seat: str) -> None:
        self.user = user
        self.seat = seat
        self._crowd = crowd
        self._rooms = rooms
        self._sockets: list[str] = []

    async def run(self) -> None:
        """Come, and come back."""
        random, every = self._crowd.random, self._crowd.every
        await asyncio.sleep(random.uniform(0, min(every, 3.0)))
        while True:
            with suppress(OSError, WebSocketException, TimeoutError):
                url = f"ws://127.0.0.1:{random.choice(self._crowd.ports)}/"
                async with connect(
                    url, subprotocols=[Subprotocol("kraftek.v1.json")], compression=None, proxy=None,
                    open_timeout=5.0, close_timeout=0.5, ping_interval=3.0, ping_timeout=6.0,
                ) as socket:  # fmt: skip
                    until = asyncio.get_running_loop().time() + random.expovariate(1 / every)
                    try:
                        await self._stay(socket, until)
                    finally:
                        if not self._crowd.over:
                            self._crowd.note(self, "gone", "")
                    if random.random() < 0.5:
                        socket.transport.abort()
            await asyncio.sleep(min(random.expovariate(1 / min(every / 10, 1.0)), 4.0))

    async def _stay(self, socket: ClientConnection, until: float) -> None:
        """Read until it is time to lose the connection."""
        self._sockets = [*self._sockets[-FORMER:], json.loads(await socket.recv())["payload"]["socketId"]]
        asked: dict[str, tuple[str, Any]] = {}
        await self._enter(socket, asked, self._rooms[0])
        loop = asyncio.get_running_loop()
        while self._crowd.quiet or loop.time() < until:
            if self._crowd.quiet:
                until = loop.time() + self._crowd.random.expovariate(1 / self._crowd.every)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(until - loop.time(), 0.05)):
                    message = json.loads(await socket.recv())
                if not await self._told(socket, message, asked):
                    return

    async def _enter(self, socket: ClientConnection, asked: dict[str, tuple[str, Any]], room: str) -> None:
        """Enter a room: the first one with a token."""
        number, more = str(next(self.numbers)), self._shows(room)
        first = room == self._rooms[0]
        payload = {"roomId": room, **more, **({"token": f"{self.user}.0"} if first else {})}
        asked[number] = room, more.get("since")
        await socket.send(json.dumps({"type": "authenticate" if first else "join", "id": number, "payload": payload}))

    def _shows(self, room: str) -> dict[str, Any]:
        """What it says when it enters."""
        raise NotImplementedError

    async def _told(self, socket: ClientConnection, message: Any, asked: dict[str, tuple[str, Any]]) -> bool:
        """Go by the rules. Returns whether the connection is of use."""
        if message["type"] in {"authenticated", "joined"}:
            room, since = asked.pop(message["id"])
            await self._is_in(socket, room, message["payload"], since)
            if message["type"] == "authenticated":
                for other in self._rooms[1:]:
                    await self._enter(socket, asked, other)
        elif message["type"] == "error":
            self._crowd.note(self, "error", message.get("roomId") or "", payload=message["payload"])
            await asyncio.sleep(1.0)
            return False
        return True

    async def _is_in(self, socket: ClientConnection, room: str, payload: Any, since: Any) -> None:
        """It is in a room."""
        raise NotImplementedError


class Page(Caller):
    """``positions``: epoch and offset in each of its rooms."""

    def __init__(self, crowd: Crowd, user: str, rooms: list[str], seat: str) -> None:
        super().__init__(crowd, user, rooms, seat)
        self._positions: dict[str, tuple[str, int]] = {}

    def _shows(self, room: str) -> dict[str, Any]:
        known = self._positions.get(room)
        if known is None:
            return {}
        return {"since": {"epoch": known[0], "offset": known[1], "socketIds": self._sockets[:-1]}}

    async def _told(self, socket: ClientConnection, message: Any, asked: dict[str, tuple[str, Any]]) -> bool:
        payload, room = message.get("payload"), message.get("roomId")
        if message["type"] == "position":
            self._stands(room, payload)
            self._crowd.note(self, "position", room, payload=payload, socket=self._sockets[-1])
        elif "offset" in message:
            epoch, _ = self._positions.get(room, ("", 0))
            self._positions[room] = epoch, message["offset"]
            self._crowd.note(self, "heard", room, epoch=epoch, offset=message["offset"], n=payload["n"])
        elif "receipt" in message and not is_mute(self.user):
            self._crowd.note(self, "acknowledges", "", n=payload["n"])
            await socket.send(json.dumps({"type": "receipt", "id": message["receipt"]}))
        return await super()._told(socket, message, asked)

    async def _is_in(self, socket: ClientConnection, room: str, payload: Any, since: Any) -> None:
        self._stands(room, payload)
        self._crowd.note(self, "answered", room, payload=payload, since=since, socket=self._sockets[-1])

    def _stands(self, room: str, payload: Any) -> None:
        if payload.get("offset") is None:
            self._positions.pop(room, None)
        else:
            self._positions[room] = payload["epoch"], payload["offset"]


class Watcher(Caller):
    """``versions``: of what it knows of each room, also from former connections."""

    def __init__(self, crowd: Crowd, user: str, rooms: list[str], seat: str) -> None:
        super().__init__(crowd, user, rooms, seat)
        self._versions: dict[str, str] = {}
        self._asked: dict[str, str] = {}

    def _shows(self, room: str) -> dict[str, Any]:
        return {"data": {"is": self.user}}

    async def _is_in(self, socket: ClientConnection, room: str, payload: Any, since: Any) -> None:
        self._crowd.note(self, "entered", room, socket=self._sockets[-1])
        await self._ask(socket, room)

    async def _ask(self, socket: ClientConnection, room: str) -> None:
        number, version = str(next(self.numbers)), self._versions.get(room)
        self._asked[number] = room
        payload = {"roomId": room} if version is None else {"roomId": room, "version": version}
        await socket.send(json.dumps({"type": "presence", "payload": payload, "id": number}))

    async def _told(self, socket: ClientConnection, message: Any, asked: dict[str, tuple[str, Any]]) -> bool:
        asked_about = self._asked.pop(message.get("id"), None)
        if message["type"] == "presence":
            payload = message["payload"]
            self._versions[payload["roomId"]] = payload["version"]
            self._crowd.note(self, "told", payload["roomId"], payload=payload, answers=asked_about is not None)
        elif asked_about is not None and message["payload"].get("retryAfter"):
            self._crowd.note(self, "error", asked_about, payload=message["payload"])
            await asyncio.sleep(message["payload"]["retryAfter"])
            await self._ask(socket, asked_about)
            return True
        return await super()._told(socket, message, asked)


def main() -> None:
    """Run until the end of input."""
    asyncio.run(Crowd(**json.loads(sys.argv[1])).run())


if __name__ == "__main__":
    main()
