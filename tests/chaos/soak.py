"""Connections that come and go, and what is left of them: ``make soak CYCLES=100000``.

Each cycle is a client that connects, authenticates, joins a second room, asks a service over Pub/Sub and one on a
stream, leaves a room, and is gone: with a close frame, or without. They are native clients and those of Socket.IO, over
its WebSocket, over long-polling, and over both (:mod:`tests.chaos.visitors`). Every tenth is an impostor's, which is
denied. The gateway's memory, its open files, Redis's keys and the gauges are looked at after as many cycles as a tenth
of all, which warm everything up, and at the end, each time when nobody is there any more. In between the memory is
looked at as often as :data:`PARTS`: a straight line through those of the second half does not rise.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from statistics import linear_regression
from typing import Any

import redis.asyncio

from kraftek.contract.names import LAST_LOOK, LISTENED, REGISTRATIONS, lease_key
from tests.chaos.auth import AuthService
from tests.chaos.ledger import Ledger
from tests.chaos.processes import Gateway, RedisServer, Service
from tests.chaos.visitors import PATIENCE, VISITORS, GoneError, Visitor

__all__ = ["GROWN", "Soak", "grew", "main", "soak"]

AT_ONCE = 50
"""Clients at a time."""
USERS = 500
"""Users, each of whom has ever new tokens; their names come back."""
IMPOSTOR, IMPOSTORS = "impostor", 200
PARTS = 20
"""Into so many the cycles are divided; after each the memory is looked at when nobody is there."""
GROWN = 4 << 20
"""Bytes by which the gateway's memory may be larger than after the warm-up."""
LASTS = 1.0
"""Seconds that an answer about access is cached, and that a request is remembered for."""
RENEWED = {LISTENED, REGISTRATIONS, lease_key("events:desk", "desk")}
"""Keys that live for a time, and are renewed for as long as the gateway and the service run."""
EXPIRED = 200.0
"""Seconds after which no key is left that lives for a time: what is known of invalidations lives for two minutes."""

CONFIG = """
listen = ["tcp:{port}:interface=127.0.0.1"]
operator.listen = ["tcp:{operator}:interface=127.0.0.1"]
redis.url = "unix://{redis}"
auth.check = "http://127.0.0.1:{auth}"
auth.cache_size = 500
limits.request_window = 1.0
socketio.ping_interval = 2.0
socketio.ping_timeout = 5.0

[services]
chat = {{channel = "events:chat", reply = true, timeout = 5.0}}
desk = {{channel = "events:desk", reply = true, transport = "stream", timeout = 5.0}}
"""


class Soak:
    """One Redis, one gateway, two services, an auth service. ``short``: nobody goes without being noticed at once."""

    def __init__(self, directory: Path, *, short: bool = False) -> None:
        self._short = short
        self.ledger = Ledger(ttl=LASTS)
        self.directory = directory
        self.auth = AuthService(self.ledger)
        self.redis = RedisServer("redis", directory, self.ledger.wrong)
        self.gateway = Gateway("gateway", directory, self.ledger.wrong, self._config)
        url = f"unix://{self.redis.path}"
        self.services = [
            Service("chat", directory, self.ledger.wrong, ("chat", "asyncio", "pubsub", "0", url)),
            Service("desk", directory, self.ledger.wrong, ("desk", "twisted", "stream", "0", url)),
        ]
        self._numbers = count(1)
        self._client: Any = redis.asyncio.Redis(unix_socket_path=self.redis.path, decode_responses=True)

    def _config(self, gateway: Gateway) -> str:
        return CONFIG.format(
            port=gateway.port, operator=gateway.operator_port, redis=self.redis.path, auth=self.auth.port
        )

    async def start(self) -> None:
        """Start everything."""
        for each in range(0, IMPOSTORS, 10):
            self.auth.ban(f"{IMPOSTOR}{each}", None, "nothing")
        await self.auth.start()
        for program in (self.redis, self.gateway, *self.services):
            program.start()
            deadline = time.monotonic() + 60.0
            while not program.ready():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{program.name}: {program.log()}")
                await asyncio.sleep(0.02)
        # They write these keys some seconds after their start, and they stay.
        stay = (LAST_LOOK, *RENEWED)
        while await self._client.exists(*stay) < len(stay):
            if time.monotonic() > deadline:
                raise TimeoutError(f"not all of {stay}: {self.gateway.log()}")
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """End everything."""
        for program in (*self.services, self.gateway):
            program.terminate()
            deadline = time.monotonic() + 20.0
            while not program.ended():
                if time.monotonic() > deadline:
                    self.ledger.wrong(f"{program.name} did not end")
                    program.kill()
                await asyncio.sleep(0.02)
            program.look_at_logs()
        await self._client.aclose()
        self.redis.kill()
        await self.auth.close()

    async def cycles(self, number: int) -> None:
        """So many clients, some at a time."""
        left = iter(range(number))

        async def some() -> None:
            for _ in left:
                await self._cycle()

        await asyncio.gather(*(some() for _ in range(min(AT_ONCE, number))))

    async def _cycle(self) -> None:
        number = next(self._numbers)
        visitor = VISITORS[(number + number // 10) % len(VISITORS)](self.gateway.port)
        impostor = number % 10 == 0
        user = f"{IMPOSTOR}{number % IMPOSTORS}" if impostor else f"user{number % USERS}"
        room = f"room{number}"
        await visitor.connect()
        who = {"token": self.auth.token(user), "roomId": room}
        if impostor:
            await visitor.say("authenticate", who)
            await visitor.expect("error")
            with suppress(GoneError):
                await visitor.told()
            visitor.vanish()
            return
        await self._enter(visitor, "authenticate", who, "authenticated")
        await self._enter(visitor, "join", {"roomId": f"{room}-too"}, "joined")
        for each, service in enumerate(("chat", "desk"), 2 * number):
            await visitor.say(f"{service}:say:back", f"{room}-{service}", each, room)
            if (payload := await visitor.expect(f"{service}:say:back", each)) != f"{room}-{service}":
                self.ledger.wrong(f"{room} is answered {payload} by {service}")
        await visitor.say("leave", {"roomId": room})
        await visitor.expect("left")
        if number % 3 == 0 and not (self._short and visitor.lingers):
            visitor.vanish()
        else:
            await visitor.leave()

    async def _enter(self, visitor: Visitor, how: str, payload: object, answer: str) -> None:
        """It is let in, and asks again if it is told to: on a busy machine the auth service, which is here, is late."""
        await visitor.say(how, payload)
        while True:
            said, found, _ = await asyncio.wait_for(visitor.told(), PATIENCE)
            if said == answer:
                return
            if said != "error" or found.get("code") != "AUTH_UNAVAILABLE":
                raise AssertionError(f"{payload} is answered {said}: {found}")
            self.ledger.seen["asked again"] += 1
            await asyncio.sleep(found["retryAfter"])
            await visitor.say(how, payload)

    async def left(self, *, expired: bool) -> dict[str, float]:
        """What there is when nobody is there any more; ``expired``: and every key is gone that lives for a time."""
        deadline = time.monotonic() + EXPIRED
        waits_for = ["sockets", "requests", "rooms", "connections_open", *(["expiring keys"] if expired else [])]
        while sum(map((found := await self._look()).__getitem__, waits_for)):
            if time.monotonic() > deadline:
                self.ledger.wrong(f"not gone: {found}")
                break
            await asyncio.sleep(0.5)
        return found

    async def _look(self) -> dict[str, float]:
        files = self.gateway.files() - self.auth.connections  # before there is one for the metrics
        metrics = await asyncio.to_thread(self.gateway.metrics)
        found = {name: metrics[f"kraftek_{name}"] for name in ("sockets", "requests", "rooms", "connections_open")}
        lives = {key: await self._client.ttl(key) async for key in self._client.scan_iter(count=1000)}
        stay = [key for key, seconds in lives.items() if seconds == -1 or key in RENEWED]
        found["keys"] = len(stay)
        found["expiring keys"] = sum(seconds >= 0 for seconds in lives.values()) - len(RENEWED.intersection(lives))
        found["files"] = files
        found["memory"] = self.gateway.resident()
        return found

    def compare(self, before: Mapping[str, float], after: Mapping[str, float]) -> None:
        """Note what is left."""
        for name in before.keys() - {"memory", "expiring keys"}:
            if after[name] > before[name]:
                self.ledger.wrong(f"{name}: {before[name]:g}, then {after[name]:g}")
        if after["memory"] > before["memory"] + GROWN:
            self.ledger.wrong(f"memory: {before['memory'] / 1e6:.1f} MB, then {after['memory'] / 1e6:.1f}")


def grew(memory: Sequence[float]) -> float:
    """By how much the memory grew in these looks: the straight line through them, from its beginning to its end."""
    looks = range(len(memory))
    return linear_regression(looks, memory).slope * looks[-1]


async def soak(cycles: int, directory: Path, *, short: bool = False) -> list[str]:
    """Run; what is wrong. ``short``: without waiting for what lives for a time, and without looks on the way."""
    run = Soak(directory, short=short)
    parts = 1 if short else PARTS
    try:
        await run.start()
        await run.cycles(max(cycles // 10, 2 * AT_ONCE))
        before = await run.left(expired=False)
        print(f"warm: {_shown(before)}", flush=True)
        began, memory = time.monotonic(), []
        for _ in range(parts):
            await run.cycles(cycles // parts)
            memory.append((await run.left(expired=False))["memory"])
            print(f"{time.monotonic() - began:6.0f} s: {memory[-1] / 1e6:.1f} MB", flush=True)
        after = await run.left(expired=not short)
        print(f"after {cycles} cycles: {_shown(after)}; {run.ledger.seen['asked again']} had to ask again", flush=True)
        run.compare(before, after)
        if not short and (more := grew(memory[parts // 2 :])) > GROWN:
            run.ledger.wrong(f"memory grows all the time: by {more / 1e6:.1f} MB in the last half")
    finally:
        await run.stop()
    return run.ledger.holes


def _shown(found: Mapping[str, float]) -> str:
    shown = {**found, "memory": f"{found['memory'] / 1e6:.1f} MB"}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def main() -> int:
    """Run; the exit status is 1 if anything is left."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--cycles", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kraftek-soak-") as directory:
        holes = asyncio.run(soak(options.cycles, Path(directory)))
    print("\n".join(f"HOLE {hole}" for hole in holes) or "nothing is left")
    return int(bool(holes))


if __name__ == "__main__":
    sys.exit(main())
