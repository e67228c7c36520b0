"""Clients of the chaos run whose answers come in parts, and who cancel some: by hand, and with the client for Python.

Each has a room of its own, because a service handles one event of a room at a time. What they ask and are told is in
:mod:`tests.chaos.talks`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from random import Random
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import ClientConnection

from kraftek.client import Closed, QueueFull, Refused
from tests.chaos.people import Bare, Person

if TYPE_CHECKING:
    from tests.chaos.world import World

__all__ = ["Chatter", "Talker"]

SERVICES = {"chat": "chat:talk:long", "desk": "desk:talk:long"}
CANCELS = 0.4
"""How many of the requests are cancelled."""
AGAIN = 0.3
"""How often an answer that was given is asked for again, after a reconnect."""


@dataclass
class Asked:
    """A request. ``due``: when it is to be cancelled, unless it is answered before. ``place``: of the last part."""

    key: str
    service: str
    payload: dict[str, Any]
    due: float
    place: dict[str, Any] | bool = True
    cancelled: bool = False
    sent: bool = False


class Draws:
    """What a client asks for next."""

    def __init__(self, world: World, name: str, random: Random) -> None:
        self._world = world
        self._name = name
        self._random = random
        self._number = 0

    def next(self) -> Asked:
        """One more."""
        random = self._random
        self._number += 1
        most, longest = self._world.talk
        parts, every = random.randrange(1, most), random.uniform(0.02, longest)
        key = f"{self._name}-{self._number}"
        due = time.monotonic() + random.uniform(0, 1.2 * parts * every) if random.random() < CANCELS else inf
        return Asked(key, random.choice(list(SERVICES)), {"key": key, "parts": parts, "every": every}, due)


class Talker(Bare):
    """By hand: it loses its connection when it likes, goes on over another one after the part that was the last, and
    cancels there what it had asked here. ``_waits``: what is to be answered on the present connection.
    """

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name, f"talk-{name}")
        self._draws = Draws(world, name, self._random)
        self._waits: set[str] = set()
        self._settled: deque[Asked] = deque(maxlen=20)

    async def _talk(self, socket: ClientConnection) -> None:
        self._waits.clear()
        for asked in tuple(self._open.values()):
            if self._is_due(asked):
                await self._cancel(socket, asked)
                if not self._stops and self._random.random() < 0.5:
                    continue  # it is sent again over the next connection
            await self._send(socket, asked)
        if self._settled and self._random.random() < AGAIN:
            await self._send(socket, self._random.choice(self._settled))
        until = time.monotonic() + self._random.uniform(1.0, 6.0)
        while self._waits if self._stops or self.world.settling else time.monotonic() < until:
            if not self._open and not self._stops and not self.world.settling:
                asked = self._draws.next()
                self._open[asked.key] = asked
                await self._send(socket, asked)
            for asked in self._open.values():
                if asked.key in self._waits and self._is_due(asked):
                    await self._cancel(socket, asked)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    message = json.loads(await socket.recv())
                self._told(message)

    def _is_due(self, asked: Asked) -> bool:
        return not asked.cancelled and time.monotonic() >= asked.due

    async def _send(self, socket: ClientConnection, asked: Asked) -> None:
        self._waits.add(asked.key)
        gateway = self.socket.partition(".")[0]
        self.world.talks.asked(asked.key, asked.service, gateway, asked.payload["parts"], time.monotonic())
        more = {"resent": True} if asked.sent else {}
        asked.sent = True
        message = {"type": SERVICES[asked.service], "payload": asked.payload, "id": asked.key, "roomId": self.home}
        await socket.send(json.dumps({**message, **more, "progress": asked.place}))

    async def _cancel(self, socket: ClientConnection, asked: Asked) -> None:
        asked.cancelled = True
        self.world.talks.cancelled(asked.key, time.monotonic())
        by_name = {} if asked.key in self._waits else {"payload": {"eventType": SERVICES[asked.service]}}
        await socket.send(json.dumps({"type": "cancel", "id": asked.key, **by_name}))

    def _told(self, message: dict[str, Any]) -> None:
        key, now, payload = message.get("id"), time.monotonic(), message.get("payload")
        if key is None:
            return
        if key not in self._waits:
            self.world.ledger.wrong(
                f"{self.name} on {self.socket} is answered {key}, for which it does not wait: {message}"
            )
            return
        asked = self._open.get(key)
        if message["type"] == "progress":
            self.world.talks.part(key, message["run"], message["number"], payload, now)
            if asked is not None:
                asked.place = {"run": message["run"], "number": message["number"]}
            return
        self._waits.discard(key)
        if asked is not None:
            self._settled.append(self._open.pop(key))
        outcome = _outcome(self.world, key, message["type"], payload)
        self.world.talks.settled(key, outcome, now)


class Chatter(Person):
    """With the client for Python, which does all that by itself."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name, f"talk-{name}")
        self._draws = Draws(world, name, self._random)

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._stay()), asyncio.create_task(self._talk())]

    async def _talk(self) -> None:
        while not self.quiet:
            await self._pause(0.3)
            if self.entered and not self.world.settling:
                await self._ask_long(self._draws.next())

    async def _ask_long(self, asked: Asked) -> None:
        talks, key = self.world.talks, asked.key

        def sends() -> None:
            talks.asked(key, asked.service, self.socket.partition(".")[0], asked.payload["parts"], time.monotonic())

        def hears(part: Any) -> None:
            sends()
            talks.part(key, part.run, part.number, part.payload, time.monotonic())

        try:
            promise = self.client.request(SERVICES[asked.service], asked.payload, room=self.home, on_progress=hears)
        except (Closed, QueueFull):
            return
        sends()
        await asyncio.wait([promise], timeout=None if asked.due == inf else max(asked.due - time.monotonic(), 0.0))
        if not promise.done():
            talks.cancelled(key, time.monotonic())
            talks.given_up(key)
            promise.cancel()
            return
        try:
            outcome = _outcome(self.world, key, "", promise.result())
        except Closed:
            outcome = "closed"
        except Refused as refused:
            outcome = refused.code
        sends()  # over the present connection, if the first one was lost
        talks.settled(key, outcome, time.monotonic())


def _outcome(world: World, key: str, type: str, payload: Any) -> str:
    if type == "error":
        return str(payload["code"])
    if payload["key"] != key:
        world.ledger.wrong(f"{key} gets another answer: {payload}")
    return "ok"
