"""The clients of the chaos run. They tell the ledger what they ask, and what they are told.

:class:`Person` is one with the client for Python, as a user would have it. :class:`Blunt` speaks the protocol by hand:
it drops its connection when it likes, sends requests again over the next, and counts the answers on each.
:class:`Guest` speaks Socket.IO. Those whose answers come in parts are in :mod:`tests.chaos.talkers`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from random import Random
from typing import TYPE_CHECKING, Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.typing import Subprotocol

from kraftek.client import Change, Closed, Message, QueueFull, Refused, State
from kraftek.client.asyncio import Client
from tests.chaos.ledger import Ask, Expected
from tests.chaos.visitors import GoneError, Polling, SocketIO

if TYPE_CHECKING:
    from tests.chaos.world import World

__all__ = ["SAID", "Bare", "Blunt", "Guest", "Person", "Visitor"]

SAID = "chat:said:room"
PATIENCE = 120.0
"""Seconds that a request may take; the gateways have answered long before."""
SERVICES = {"chat": "chat:say:back", "desk": "desk:say:back", "board": "board:note:heard"}


class Person:
    """A user with the client for Python. ``home``: the room of the token; ``lasts``: seconds of each token."""

    def __init__(self, world: World, name: str, home: str, lasts: float | None = None) -> None:
        self.world = world
        self.name = name
        self.home = home
        self.socket = ""
        self.entered: dict[str, float] = {}
        self.quiet = self.ends = False
        self._lasts = lasts
        self._random = Random(f"{world.seed} {name}")
        self._number = 0
        self._tasks: list[asyncio.Task[None]] = []
        self.client = Client(world.clients_url, self._token, room=home, timeout=PATIENCE)
        self.client.on(SAID, self._hears)
        self.client.on("state", self._changes)
        self.client.on("connected", self._connected)
        self.client.on("authenticated", lambda message: self._enters(message.payload["roomId"]))
        self.client.on("error", self._complains)

    def _token(self, _: bool) -> str:
        return self.world.auth.token(self.name, self._lasts)

    # What it is told

    def _connected(self, message: Message) -> None:
        self.socket = message.payload["socketId"]

    def _changes(self, change: Change) -> None:
        now = time.monotonic()
        if change.state in (State.WAITING, State.CLOSED) and not self.ends:
            gateway = self.socket.partition(".")[0]
            self.world.ledger.tell(now, f"{self.name} on {self.socket}: {change.state} {change.code} {change.reason}")
            self.world.ledger.closed(self.name, gateway, change.code or 1006, change.reason, now)
            for room in tuple(self.entered):
                self._leaves(room)
            self.socket = ""
        elif change.state is State.READY:
            for room in self.client.rooms:
                self.entered.setdefault(room, now)

    def _enters(self, room: str) -> None:
        now = time.monotonic()
        self.entered[room] = now
        self.world.ledger.admitted(self.name, self.socket.partition(".")[0], room, now)

    def _leaves(self, room: str) -> None:
        if self.entered.pop(room, None) is not None:
            self.world.ledger.ended(self.socket, room, time.monotonic())

    def _complains(self, message: Message) -> None:
        if message.room_id is not None and message.room_id not in self.client.rooms[:1]:
            self.world.ledger.tell(time.monotonic(), f"{self.name} on {self.socket} loses {message.room_id}")
            self._leaves(message.room_id)

    def _hears(self, message: Message) -> None:
        room, number = message.room_id, message.payload["n"]
        self.world.ledger.heard(self.name, self.socket, room or "", number, self.world.said[number], time.monotonic())

    def must_hear(self, room: str, number: int, now: float) -> None:
        """Something is said in a room: whether it is there, it has to hear it."""
        since = self.entered.get(room)
        if self.client.state is State.READY and since is not None and since < now - 3.0:
            gateway = self.socket.partition(".")[0]
            self.world.ledger.expect(Expected(self.name, gateway, self.socket, room, number, now))

    def there(self) -> dict[tuple[str, str], str]:
        """The rooms that it is in, with its socket."""
        if self.client.state is not State.READY:
            return {}
        return {(self.name, room): self.socket for room in self.client.rooms}

    # What it does

    def start(self) -> None:
        """Connect, and do everything."""
        loops = [self._stay(), self._move(), *(self._ask_all_the_time(service) for service in SERVICES)]
        self._tasks = [asyncio.create_task(loop) for loop in loops]

    async def stop(self) -> None:
        """Ask no more, once what is under way is answered; stay connected."""
        self.quiet = True
        await asyncio.gather(*self._tasks[1:])

    async def close(self) -> None:
        """End."""
        self.ends = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.client.close()

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds * self._random.uniform(0.5, 1.5))

    async def _stay(self) -> None:
        """Connect again also after what says not to."""
        while True:
            if self.client.state is State.CLOSED:
                with suppress(Closed):
                    await self.client.connect()
            await asyncio.sleep(0.3)

    async def _move(self) -> None:
        """Go into another room, and out of it."""
        while not self.quiet:
            await self._pause(1.0)
            other = self._random.choice(self.world.rooms)
            if self.home not in self.client.rooms:
                other = self.home
            if self.client.state is not State.READY or self.world.settling:
                continue
            with suppress(Closed, Refused, QueueFull):
                if other in self.client.rooms and other != self.home:
                    self._leaves(other)
                    await self.client.leave(other)
                elif other not in self.client.rooms:
                    socket = self.socket
                    await self.client.join(other)
                    if socket == self.socket:
                        self._enters(other)

    async def _ask_all_the_time(self, service: str) -> None:
        while not self.quiet:
            await self._pause(0.4)
            if self.client.state is State.CLOSED:
                continue
            if service == "chat" and self._random.random() < 0.1:
                await asyncio.gather(*(self._ask(service) for _ in range(5)))
            else:
                await self._ask(service, ordered=service == "board")

    async def _ask(self, service: str, *, ordered: bool = False) -> None:
        ledger = self.world.ledger
        rooms = [room for room in self.entered if room == self.home or not ordered]
        if not rooms:
            return
        self._number += 1
        key, room = f"{self.name}-{self._number}", self._random.choice(rooms)
        ask = Ask(key, service, self.name, room, time.monotonic(), self.socket.partition(".")[0], ordered)
        try:
            promise = self.client.request(SERVICES[service], key, room=room)
        except (Closed, QueueFull):
            return
        ledger.asked(ask)
        try:
            answer = await promise
        except Closed:
            outcome = "closed"
        except Refused as refused:
            # The client gives up only where the gateway has not answered.
            outcome = refused.code if refused.code != "TIMEOUT" or "in time" not in str(refused) else ""
        else:
            outcome = "ok" if answer == ({"receivers": 1} if service == "board" else key) else f"wrong: {answer}"
        if outcome.startswith("wrong"):
            ledger.wrong(f"{key} gets another answer: {outcome}")
        if outcome:
            ledger.settled(key, outcome, time.monotonic())


class Visitor:
    """A user without a library, who comes and goes."""

    def __init__(self, world: World, name: str, home: str) -> None:
        self.world = world
        self.name = name
        self.home = home
        self.socket = ""
        self._random = Random(f"{world.seed} {name}")
        self._number = 0
        self._task: asyncio.Task[None] | None = None
        self._stops = False

    def there(self) -> dict[tuple[str, str], str]:
        """The rooms that it is in, with its socket."""
        return {(self.name, self.home): self.socket} if self.socket else {}

    def must_hear(self, room: str, number: int, now: float) -> None:
        """It does not stay for long enough."""

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ask no more, once everything is answered; leave."""
        self._stops = True
        assert self._task is not None
        await self._task

    async def close(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        raise NotImplementedError


class Bare(Visitor):
    """Speaks the protocol by hand, stays for a while, and comes back as long as it has ``open`` requests."""

    def __init__(self, world: World, name: str, home: str) -> None:
        super().__init__(world, name, home)
        self._open: dict[str, Any] = {}

    async def _run(self) -> None:
        while not self._stops or self._open:
            with suppress(OSError, WebSocketException, TimeoutError), self._noting_close():
                async with connect(
                    self.world.clients_url, subprotocols=[Subprotocol("kraftek.v1.json")], compression=None, proxy=None,
                    open_timeout=5.0, close_timeout=0.5, ping_interval=2.0, ping_timeout=4.0,
                ) as socket:  # fmt: skip
                    async with asyncio.timeout(60.0):
                        if await self._enter(socket):
                            await self._talk(socket)
                    if self._random.random() < 0.5:
                        socket.transport.abort()
            self.socket = ""
            await asyncio.sleep(self._random.uniform(0.1, 0.5))
            # Who comes and goes all the time is never where services were told that it is.
            while self.world.settling and not self._open and not self._stops:
                await asyncio.sleep(0.1)

    @contextmanager
    def _noting_close(self) -> Iterator[None]:
        try:
            yield
        except ConnectionClosed as closed:
            code = 1006 if closed.rcvd is None else closed.rcvd.code
            gateway = self.socket.partition(".")[0]
            self.world.ledger.closed(self.name, gateway, code, str(closed), time.monotonic())
            raise

    async def _enter(self, socket: ClientConnection) -> bool:
        """Authenticate. Returns whether it is in its room."""
        name = json.loads(await socket.recv())["payload"]["socketId"]
        while True:
            payload = {"token": self.world.auth.token(self.name), "roomId": self.home}
            await socket.send(json.dumps({"type": "authenticate", "payload": payload}))
            answer = json.loads(await socket.recv())
            if answer["type"] == "authenticated":
                break
            if answer["payload"].get("code") != "AUTH_UNAVAILABLE":
                return False  # it was refused, or told that the gateway stops
            await asyncio.sleep(1.0)
        self.socket = name
        self.world.ledger.admitted(self.name, name.partition(".")[0], self.home, time.monotonic())
        return True

    async def _talk(self, socket: ClientConnection) -> None:
        raise NotImplementedError


class Blunt(Bare):
    """``_open``: each with its service, and whether it was sent again."""

    async def _talk(self, socket: ClientConnection) -> None:
        """Send everything that is open again, and some more; wait for all answers, or for some."""
        counts: Counter[str] = Counter()
        for key, (service, _) in tuple(self._open.items()):
            await self._send(socket, key, service, again=True)
        asked = set(self._open)
        for _ in range(0 if self._stops or self.world.settling else self._random.randrange(1, 6)):
            self._number += 1
            key, service = f"{self.name}-{self._number}", self._random.choice(list(SERVICES))
            self.world.ledger.asked(Ask(key, service, self.name, self.home, time.monotonic()))
            await self._send(socket, key, service)
            asked.add(key)
        wait_for = (
            asked if self._stops or self._random.random() < 0.5 else self._random.sample(sorted(asked), len(asked) // 2)
        )
        while not set(wait_for) <= set(counts):
            self._told(json.loads(await socket.recv()), counts)

    async def _send(self, socket: ClientConnection, key: str, service: str, again: bool = False) -> None:
        self._open[key] = service, again
        message = {"type": SERVICES[service], "payload": key, "id": key, "roomId": self.home}
        await socket.send(json.dumps({**message, "resent": True} if again else message))

    def _told(self, message: dict[str, Any], counts: Counter[str]) -> None:
        ledger, key, now = self.world.ledger, message.get("id"), time.monotonic()
        if message["type"] == SAID:
            number = message["payload"]["n"]
            ledger.heard(self.name, self.socket, message["roomId"], number, self.world.said[number], now)
        if key is None:
            return
        counts[key] += 1
        if counts[key] > 1 or key not in self._open:
            ledger.wrong(f"{self.name} on {self.socket} is answered {key} twice: {message}")
            return
        payload = message["payload"]
        service, _ = self._open.pop(key)
        outcome = payload["code"] if message["type"] == "error" else "ok"
        if outcome == "ok" and payload != ({"receivers": 1} if service == "board" else key):
            ledger.wrong(f"{key} gets another answer: {message}")
        ledger.settled(key, outcome, now)


class Guest(Visitor):
    """A user with Socket.IO, over WebSocket or long-polling, who comes, asks, waits for the answers, and is gone. What
    is not answered when its connection ends it never asks again.
    """

    def __init__(self, world: World, name: str, home: str) -> None:
        super().__init__(world, name, home)
        self._open: dict[int, tuple[str, str]] = {}

    async def _run(self) -> None:
        while not self._stops:
            visitor = self._random.choice((SocketIO, Polling))(self.world.clients_link.port)
            try:
                with suppress(OSError, GoneError, TimeoutError):
                    async with asyncio.timeout(60.0):
                        await self._visit(visitor)
                        if self._random.random() < 0.5:
                            await visitor.leave()
            finally:
                visitor.vanish()
            self.socket = ""
            for key, _ in self._open.values():
                self.world.ledger.settled(key, "closed", time.monotonic())
            self._open.clear()
            await asyncio.sleep(self._random.uniform(0.1, 0.5))
            while self.world.settling and not self._stops:
                await asyncio.sleep(0.1)

    async def _visit(self, visitor: SocketIO) -> None:
        await visitor.connect()
        await visitor.say("authenticate", {"token": self.world.auth.token(self.name), "roomId": self.home})
        if (await visitor.told())[0] != "authenticated":
            return
        self.socket = visitor.socket_id
        gateway = self.socket.partition(".")[0]
        self.world.ledger.admitted(self.name, gateway, self.home, time.monotonic())
        for _ in range(self._random.randrange(1, 6)):
            self._number += 1
            key, service = f"{self.name}-{self._number}", self._random.choice(list(SERVICES))
            self.world.ledger.asked(Ask(key, service, self.name, self.home, time.monotonic(), gateway))
            self._open[self._number] = key, service
            await visitor.say(SERVICES[service], key, self._number)
        while self._open:
            self._told(*await visitor.told())

    def _told(self, said: str, payload: Any, number: int | None) -> None:
        ledger, now = self.world.ledger, time.monotonic()
        if said == SAID:
            ledger.heard(self.name, self.socket, self.home, payload["n"], self.world.said[payload["n"]], now)
        if number is None:
            return
        key, service = self._open.pop(number)
        refused = payload.get("error") if isinstance(payload, dict) else None
        if not refused and payload != ({"receivers": 1} if service == "board" else key):
            ledger.wrong(f"{key} gets another answer: {payload}")
        # A request that is never sent again is not looked up: the gateway says that it does not know.
        outcome = "ok" if not refused else "uncertain" if "may not have" in refused["message"] else refused["code"]
        ledger.settled(key, outcome, now)
