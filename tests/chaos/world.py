"""The chaos run: it starts everything, has it go wrong as the schedule says, and looks at what came of it.

Redis and everything else are real processes; clients, the auth service, the links and the schedule are in this one.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from kraftek.client import State
from tests.chaos.accepted import STREAMS, Listener
from tests.chaos.auth import AuthService
from tests.chaos.crowd import PAGES, is_one
from tests.chaos.faults import Faults
from tests.chaos.histories import CONFIG as ROOMS_WITH_HISTORY
from tests.chaos.histories import Histories
from tests.chaos.ledger import CALM, MACHINE, Ledger
from tests.chaos.links import Link, to_port, to_unix
from tests.chaos.masters import Masters
from tests.chaos.people import SAID, Blunt, Guest, Person, Visitor
from tests.chaos.presences import CONFIG as ROOMS_WITH_PRESENCE
from tests.chaos.presences import Presences
from tests.chaos.processes import CrowdProgram, Gateway, Program, RedisServer, Service
from tests.chaos.receipts import Receipts, Tellers
from tests.chaos.schedule import FAULTS, QUIET, WITH_SENTINEL, WITHOUT_SENTINEL, Fault, schedule
from tests.chaos.service import DONE, order_key
from tests.chaos.talkers import Chatter, Talker
from tests.chaos.talks import Talks

__all__ = ["World"]

SETTLED = 15.0
"""Seconds after the last fault: the room cache is right, and everything is answered and handled."""
TOLD = 60.0
"""Seconds in which services have handled what waited for them."""
LOOKS = 60
"""And that often, at least, the room cache is looked at before it counts as wrong."""
STALL = 0.25
"""Seconds that this process may be late before it counts as a trouble of the machine."""
STARVED, LOOKED = 0.5, 1.0
"""What a process may be late for want of a processor, in so many seconds, before that counts as a trouble of its."""
SAID_EVERY = 0.05
CALM_ROUND = 8.0
"""Seconds in which nothing is wrong but what clients do."""

CONFIG = """
sessions = "{sessions}"
listen = ["tcp:{port}:interface=127.0.0.1"]
operator.listen = ["tcp:{operator}:interface=127.0.0.1"]
redis.url = "{redis}"

[auth]
check = "http://127.0.0.1:{auth}"
timeout = 2.0

[limits]
events_per_user = 200
ping_interval = 4.0
ping_timeout = 3.0

[socketio]
ping_interval = 4.0
ping_timeout = 3.0

[services]
chat = {{channel = "events:chat", reply = true, timeout = 5.0}}
desk = {{channel = "events:desk", reply = true, transport = "stream", timeout = 8.0}}
board = {{channel = "events:board", transport = "stream", partitions = 4, presence = true}}
"""

ROOM_CACHE = """
local found = {}
for _, key in ipairs(redis.call('KEYS', 'room:*')) do
    local entries = redis.call('HGETALL', key)
    for at = 1, #entries, 2 do
        for _, each in ipairs({key, entries[at], entries[at + 1]}) do found[#found + 1] = each end
    end
end
return {found, redis.call('KEYS', 'socket:*')}
"""

SERVICES = {
    "chat-0": ("chat", "asyncio", "pubsub", "0"),
    "desk-0": ("desk", "asyncio", "stream", "0"),
    "desk-1": ("desk", "twisted", "stream", "0"),
    "board-0": ("board", "twisted", "stream", "4"),
    "board-1": ("board", "asyncio", "stream", "4"),
}
FEWER = ("chat-0", "desk-1", "board-0", "board-1")


class World:
    """One run. ``pages``: those of :mod:`tests.chaos.histories`; ``watchers``: those of :mod:`tests.chaos.presences`.
    In one of three runs a user has one connection in a room at most. ``talk``: parts of a long answer, and seconds
    between two of them, at most: more than its service's timeout, unless the run is short.
    """

    def __init__(
        self,
        seed: int,
        directory: Path,
        *,
        short: bool = False,
        sentinel: bool = False,
        pages: int = 500,
        watchers: int = 300,
    ) -> None:
        self.seed = seed
        self.directory = directory
        self.ledger = Ledger()
        self.said: dict[int, float] = {}
        self.rooms = [f"r{number}" for number in range(4)]
        self.settling = False
        self.clients_url = ""
        self.auth = AuthService(self.ledger)
        self.people: list[Person | Visitor] = []
        self._random = Random(seed)
        self._short = short
        self.numbers = count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._works: list[asyncio.Future[None]] = []
        self.redis = RedisServer("redis", directory, self.ledger.wrong)
        self.masters = Masters() if sentinel else None
        self.publisher = self._redis_client()
        self.gateways: list[Gateway] = []
        self.services: list[Service] = []
        self.links: list[Link] = []
        self.faults = Faults(self)
        self._sessions = "many" if seed % 3 else "single"
        self._every = 2.0 if short else 20.0
        self.histories = Histories(self, 20 if short else pages)
        self.receipts = Receipts(self.ledger)
        self._tellers = Tellers(self, self.receipts, self.histories.callers)
        self.talks = Talks(self.ledger)
        self.talk = (8, 0.1) if short else (20, 0.4)
        self.presences = Presences(self.ledger, 8 if short else watchers, 5 if seed % 3 else 1)
        self.crowd = CrowdProgram(directory, self.ledger.wrong, self._orders)

    def _redis_client(self) -> Any:
        options: dict[str, Any] = {"socket_timeout": 1.0, "decode_responses": True}
        if self.masters is not None:
            return self.masters.publisher(**options)
        return redis.asyncio.Redis(unix_socket_path=self.redis.path, retry=Retry(NoBackoff(), 0), **options)

    # The start

    async def start(self) -> None:
        """Start everything, in the order of who needs whom."""
        wrong = self.ledger.wrong
        self.ledger.began = time.monotonic()
        if self.masters is None:
            self.redis.start()
            await self.until(self.redis.ready, "Redis")
        else:
            await asyncio.to_thread(self.masters.start)
        await self.auth.start()
        many = 2 if self._short or self.masters is not None else 3
        self.gateways = [Gateway(f"gateway-{each}", self.directory, wrong, self._config) for each in range(many)]
        to_redis = to_unix(self.redis.path)
        kinds = {name: kind for name, kind in SERVICES.items() if not self._short or name in FEWER}
        names = [*(gateway.name for gateway in self.gateways), *kinds]
        self.redis_links = {name: Link(f"{name} to redis", to_redis) for name in names}
        self.auth_links = {
            each.name: Link(f"{each.name} to auth", to_port(lambda: self.auth.port)) for each in self.gateways
        }
        self.clients_link = Link("clients", to_port(self.any_gateway))
        self.links = [*self.redis_links.values(), *self.auth_links.values(), self.clients_link]
        for link in self.links:
            await link.start()
        self.clients_url = f"ws://127.0.0.1:{self.clients_link.port}/"
        self.services = [
            Service(name, self.directory, wrong, (*kind, self._redis_url(name))) for name, kind in kinds.items()
        ]
        started = [*self.gateways, *self.services]
        self.programs: list[Program] = [*([self.redis] if self.masters is None else []), *started]
        for program in started:
            program.start()
        for program in started:
            await self.ready(program)
        self.know_gateways()
        self._speaking = asyncio.create_task(self._speak())
        self.crowd.start()
        await self.ready(self.crowd)
        self.programs.append(self.crowd)
        self.histories.start()
        self._tellers.start(self.masters.url if self.masters else f"unix://{self.redis.path}")
        listener = Listener(self.ledger, self._redis_client)
        loops = (self._watch(), self._measure(), self._look_for_starved(), listener.listen())
        self._tasks = [self._speaking, *(asyncio.create_task(loop) for loop in loops)]

    def _orders(self) -> dict[str, Any]:
        """What the crowd is started with."""
        ports = [gateway.port for gateway in self.gateways]
        return {
            "ports": ports,
            "every": self._every,
            "callers": {**self.histories.callers, **self.presences.callers},
        }

    async def ready(self, program: Program) -> None:
        """Return once it does its work."""
        await self.until(program.ready, lambda: f"{program.name}: {program.log()}")

    def _config(self, gateway: Gateway) -> str:
        return (
            CONFIG.format(
                port=gateway.port,
                operator=gateway.operator_port,
                redis=self._redis_url(gateway.name),
                auth=self.auth_links[gateway.name].port,
                sessions=self._sessions,
            )
            + ROOMS_WITH_HISTORY
            + ROOMS_WITH_PRESENCE
        )

    def _redis_url(self, name: str) -> str:
        return self.masters.url if self.masters else f"redis://127.0.0.1:{self.redis_links[name].port}/0"

    def any_gateway(self) -> int:
        """Where a balancer sends the next client: to any gateway that lives."""
        living = [gateway for gateway in self.gateways if gateway.lives]
        return self._random.choice(living or self.gateways).port

    def know_gateways(self) -> None:
        """Read off the logs which ids the gateways have now."""
        for gateway in self.gateways:
            if "is ready" in (log := gateway.log()):
                self.ledger.processes[log.partition(" is ready")[0].rpartition("Gateway ")[2]] = gateway.name

    def begin(self) -> None:
        """Clients come."""
        for each in range(6 if self._short else 12):
            home = self.rooms[each % len(self.rooms)]
            if each % 5 == 4:
                self.people.append(Blunt(self, f"blunt{each}", home))
            else:
                self.people.append(Person(self, f"user{each}", home, lasts=7.0 if each % 5 == 3 else None))
        self.people += [Guest(self, f"guest{each}", self.rooms[each]) for each in range(1 if self._short else 3)]
        self.people += [Talker(self, f"talker{each}") for each in range(1 if self._short else 3)]
        self.people += [Chatter(self, f"chatter{each}") for each in range(1 if self._short else 2)]
        for person in self.people:
            person.start()

    # What goes on

    async def until(self, seen: Callable[[], bool], what: str | Callable[[], str], timeout: float = 30.0) -> None:
        """Return once it is so."""
        began = time.monotonic()
        while not seen():
            if time.monotonic() > began + timeout:
                raise TimeoutError(f"not within {timeout:g} s: {what if isinstance(what, str) else what()}")
            await asyncio.sleep(0.02)

    async def _watch(self) -> None:
        """Notice programs that end by themselves, and read what services write."""
        while True:
            for program in self.programs:
                if program.name not in self.faults.busy:
                    program.watch()
            self._read()
            self.read_crowd()
            await asyncio.sleep(0.2)

    def _read(self) -> None:
        clock = time.monotonic() - time.time()
        for service in self.services:
            for line in service.handled():
                name = service.name.partition("-")[0]
                if "how" in line:
                    self.talks.ran(line)
                elif str(line["type"]).startswith("gateway:"):
                    self.ledger.present(line)
                elif not str(line["user"]).startswith("flooder"):
                    self.ledger.handled(name, line, clock)

    def read_crowd(self) -> None:
        """Read on in what the crowd writes."""
        for line in self.crowd.lines():
            for ledger in (self.histories, self.receipts) if line["user"].startswith(PAGES) else (self.presences,):
                ledger.take(line)

    async def end_crowd(self) -> None:
        """It goes, and everything that it wrote is read."""
        self.faults.busy.add(self.crowd.name)
        self.presences.over = True
        self.crowd.end()
        await self.until(self.crowd.ended, "the end of the crowd")
        self.read_crowd()

    async def _measure(self) -> None:
        """What this process did not see for want of a processor, others did not do either."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.02)
            if (now := time.monotonic()) > before + STALL:
                self.ledger.troubles.add(MACHINE, before, now)
                self.ledger.tell(now, f"this process stood still for {now - before:.2f} s")

    async def _look_for_starved(self) -> None:
        """A program that has no processor is late; if it is late by itself, that is a fault of its own."""
        waited: dict[int, float] = {}
        while True:
            before = time.monotonic()
            await asyncio.sleep(LOOKED)
            for program in self.programs:
                if program.lives:
                    now, last = program.waited(), waited.get(program.pid, 0.0)
                    waited[program.pid] = now
                    if now - last > STARVED and last:
                        self.ledger.troubles.add(program.name, before, time.monotonic())
                        self.ledger.seen["starved"] += 1

    async def _speak(self) -> None:
        """A service that always has something to say to some room."""
        while True:
            await asyncio.sleep(SAID_EVERY)
            room = self._random.choice(self.rooms)
            await self.say(room)

    async def say(self, room: str, padding: int = 0) -> int:
        """Say something in a room."""
        number, now = next(self.numbers), time.monotonic()
        self.said[number] = now
        payload: dict[str, Any] = {"n": number, "padding": "x" * padding} if padding else {"n": number}
        message = {"type": SAID, "roomId": room, "payload": payload}
        for person in self.people:
            person.must_hear(room, number, now)
        with suppress(RedisError, OSError):
            await self.publisher.publish("events:broadcast", json.dumps(message))
        return number

    # What came of it

    async def settle(self) -> None:
        """Nothing is wrong any more: the room cache is right within :data:`SETTLED`, whatever goes on."""
        self.settling = True
        self.crowd.quiet()
        self.ledger.tell(time.monotonic(), "nothing is wrong any more")
        await asyncio.gather(*self._works)
        self._works.clear()
        await asyncio.gather(self._settle_rooms(), self._settle_presences())
        self.settling = False
        self.crowd.quiet(quiet=False)

    async def _settle_rooms(self) -> None:
        began = time.monotonic()
        await self._until_none(self.differences, SETTLED)
        self.ledger.tell(time.monotonic(), f"the room cache is right after {time.monotonic() - began:.2f} s")
        await self._until_none(self._untold, TOLD)

    async def _settle_presences(self) -> None:
        if not self.presences.over:
            began = time.monotonic()
            await self._until_none(self._unknown, SETTLED)
            self.ledger.tell(time.monotonic(), f"all know who is there after {time.monotonic() - began:.2f} s")

    async def calm(self, faults: Sequence[Fault]) -> None:
        """Once nothing has been wrong for long enough, only what clients do is: nobody else loses anything."""
        await asyncio.sleep(CALM + 0.5)
        self.ledger.tell(time.monotonic(), "only clients do as they like")
        await self.faults.play(faults)

    def has_seen(self, kinds: Collection[str]) -> bool:
        self.read_crowd()
        return all(self.ledger.seen[kind] for kind in kinds)

    def later(self, work: Awaitable[None]) -> None:
        """Have it done beside everything else; :meth:`settle` waits for it."""
        self._works.append(asyncio.ensure_future(work))

    async def _until_none(self, look: Callable[[], Awaitable[list[str]]], seconds: float) -> None:
        """Return once nothing differs any more; what does after so long is a hole. Time in which any program had no
        processor does not count.
        """
        names = [MACHINE, *(program.name for program in self.programs)]
        left, looks, differences, end = seconds, 0, [""], time.monotonic() + 4 * seconds
        while differences and (left > 0 or looks < LOOKS) and time.monotonic() < end:
            before = time.monotonic()
            await asyncio.sleep(0.2)
            looks, differences = looks + 1, await look()
            if self.ledger.troubles.quiet(names, before - 2 * LOOKED, now := time.monotonic()):
                left -= now - before
        for difference in differences:
            self.ledger.wrong(f"{seconds:g} s after the last fault: {difference}")

    async def _unknown(self) -> list[str]:
        """How what watchers were told differs from who is there."""
        self.read_crowd()
        return self.presences.differences()

    async def _untold(self) -> list[str]:
        """How what services were told differs from what they read."""
        found = await self._room_cache()
        self._read()
        there = ((user, key.removeprefix("room:")) for key, user, _ in found[0])
        return self.ledger.judge_told(there, is_one)

    async def _room_cache(self) -> tuple[list[tuple[str, str, str]], list[str]]:
        try:
            flat, keys = await self.publisher.eval(ROOM_CACHE, 0)
        except (RedisError, OSError):
            return [], []
        entries = zip(flat[::3], flat[1::3], flat[2::3], strict=True)
        without_crowd = [key for key in keys if not is_one(key.removeprefix("socket:"))]
        return [entry for entry in entries if not is_one(entry[1])], without_crowd

    def _there(self) -> dict[tuple[str, str], str]:
        return {key: socket for person in self.people for key, socket in person.there().items()}

    async def differences(self) -> list[str]:
        """How what services read differs from who is there."""
        there = self._there()
        entries, keys = await self._room_cache()
        if there != self._there():
            return ["clients come and go"]
        found = {(user, key.removeprefix("room:")): socket for key, user, socket in entries}
        differing = self.ledger.judge_rooms(found, there)
        if set(keys) != {f"socket:{user}:{room}" for user, room in found}:
            differing.append(f"the keys are {sorted(keys)}")
        away = [each.name for each in self.people if isinstance(each, Person) and each.client.state is not State.READY]
        return [*differing, *(f"{user} is not connected" for user in away)]

    async def end(self) -> None:
        """Nobody asks any more; everything is answered, handled, and left as it was found."""
        self.settling = True
        self.crowd.quiet()
        try:
            async with asyncio.timeout(SETTLED + 10.0):
                await asyncio.gather(*(person.stop() for person in self.people))
        except TimeoutError:
            self.ledger.tell(time.monotonic(), "not everything is answered")
        self._speaking.cancel()
        await self._drained()
        self._read()
        done = {key: int(number) for key, number in (await self.publisher.hgetall(DONE)).items()}
        await self._judge_order()
        await self._settle_presences()
        await self._tellers.stop()
        await self.histories.end()
        await self.settle()
        self.presences.judge()
        self.receipts.judge()
        self.ledger.judge_requests(done)
        self.talks.judge(done)
        self.ledger.judge_access()
        self.ledger.judge_presence()
        await asyncio.gather(*(person.close() for person in self.people))
        self.people = []
        await self.settle()
        await self._look_at_gateways()

    async def _judge_order(self) -> None:
        self.ledger.judge_senders_order()
        for service in {kind[0] for kind in SERVICES.values()}:
            done = [each.split(" ", 1) for each in await self.publisher.lrange(order_key(service), 0, -1)]
            for room in self.rooms:
                self.ledger.judge_rooms_order(service, room, [key for where, key in done if where == room])

    async def _drained(self) -> None:
        """Everything in a stream is handled, and nothing was given up."""
        for stream in STREAMS:
            for number, fields in await self.publisher.xrange(f"{stream}:dead"):
                self.ledger.wrong(f"{stream} has the dead letter {number}: {fields}")
        until = time.monotonic() + SETTLED
        while time.monotonic() < until:
            waiting = 0
            for stream in STREAMS:
                waiting += await self.publisher.xlen(stream)
            if not waiting:
                return
            await asyncio.sleep(0.2)
        self.ledger.wrong(f"{waiting} events still wait in streams")

    async def _look_at_gateways(self) -> None:
        for gateway in self.gateways:
            if not gateway.lives:
                continue
            until = time.monotonic() + SETTLED
            while True:
                metrics = await asyncio.to_thread(gateway.metrics)
                left = {gauge: metrics[f"kraftek_{gauge}"] for gauge in ("sockets", "requests", "rooms")}
                if not any(left.values()) or time.monotonic() > until:
                    break
                await asyncio.sleep(0.2)
            if any(left.values()):
                self.ledger.wrong(f"{gateway.name} has {left}, and nobody is there")
            if metrics["kraftek_errors_internal_total"]:
                self.ledger.wrong(
                    f"{gateway.name} counted {metrics['kraftek_errors_internal_total']:g} faults of its own"
                )
            self.ledger.tell(time.monotonic(), f"{gateway.name} has {gateway.resident() / 1e6:.0f} MB")

    async def stop(self) -> None:
        """Take everything down, and look at how it ends and what it has logged."""
        self.histories.stop()
        await self._tellers.stop()
        self.crowd.kill()
        for person in self.people:
            await person.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for program in (*self.services, *self.gateways):
            program.terminate()
        for program in (*self.services, *self.gateways):
            try:
                await self.until(program.ended, program.name, 20.0)
            except TimeoutError:
                self.ledger.wrong(f"{program.name} did not end:\n{program.log()[-2000:]}")
                program.kill()
        await self.publisher.aclose()
        self.redis.kill()
        if self.masters is not None:
            await asyncio.to_thread(self.masters.close)
        for link in self.links:
            await link.close()
        await self.auth.close()
        for program in (*self.services, *self.gateways):
            program.look_at_logs()


async def run(
    seed: int,
    seconds: float,
    directory: Path,
    *,
    short: bool = False,
    sentinel: bool = False,
    only: frozenset[str] = frozenset(),
    pages: int = 500,
    watchers: int = 300,
    until: Collection[str] = (),
) -> Ledger:
    """One run of about so many seconds, in rounds: faults, time to settle, and time for clients alone. At the end they
    go on until all this was ``seen``.
    """
    world = World(seed, directory, short=short, sentinel=sentinel, pages=pages, watchers=watchers)
    only = (only or frozenset(FAULTS)) - (WITHOUT_SENTINEL if sentinel else WITH_SENTINEL)
    try:
        await world.start()
        world.begin()
        random = Random(seed)
        round_lasts = 5.0 if short else 15.0
        began = time.monotonic()
        while True:
            await world.faults.play(schedule(random, round_lasts, 0.5 if short else 0.8, only))
            await world.settle()
            if not short:
                await world.calm(schedule(random, CALM_ROUND, 1.5, only & QUIET))
            if time.monotonic() > began + seconds:
                break
        await world.until(lambda: world.has_seen(until), lambda: f"all of {until}: {world.ledger.seen}", 60.0)
        await world.end()
    finally:
        await world.stop()
    return world.ledger
