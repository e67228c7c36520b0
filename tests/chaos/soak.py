"""Connections that come and go, and what is left of them: ``make soak CYCLES=100000``.

Each cycle is a client that connects, authenticates, joins a second room, asks a service over Pub/Sub and one on a
stream, leaves a room, and is gone: with a close frame, or without. Every tenth is an impostor's, which is denied. The
gateway's memory, its open files, Redis's keys and the gauges are looked at after a tenth of the cycles, which warms
everything up, and at the end, each time when nobody is there any more.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import redis.asyncio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.chaos.auth import AuthService
from tests.chaos.ledger import Ledger
from tests.chaos.processes import Gateway, RedisServer, Service

__all__ = ["Soak", "main"]

AT_ONCE = 50
"""Clients at a time."""
USERS = 500
"""Users, each of whom has ever new tokens; their names come back."""
IMPOSTOR = "impostor"
GROWN = 4 << 20
"""Bytes by which the gateway's memory may be larger than after the warm-up."""
LASTS = 1.0
"""Seconds that an answer about access is cached, and that a request is remembered for."""
EXPIRED = 200.0
"""Seconds after which no key is left that lives for a time: what is known of invalidations lives for two minutes."""

CONFIG = """
listen = ["tcp:{port}:interface=127.0.0.1"]
operator.listen = ["tcp:{operator}:interface=127.0.0.1"]
redis.url = "unix://{redis}"
auth.check = "http://127.0.0.1:{auth}"
limits.request_window = 1.0

[services]
chat = {{channel = "events:chat", reply = true, timeout = 5.0}}
desk = {{channel = "events:desk", reply = true, transport = "stream", timeout = 5.0}}
"""


class Soak:
    """One Redis, one gateway, two services, an auth service; ``holes``: what is wrong."""

    def __init__(self, directory: Path) -> None:
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
        self.auth.ban(IMPOSTOR, None, "nothing")
        await self.auth.start()
        for program in (self.redis, self.gateway, *self.services):
            program.start()
            deadline = time.monotonic() + 60.0
            while not program.ready():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{program.name}: {program.log()}")
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
        """So many clients, one after the other, some at a time."""
        left = iter(range(number))

        async def some() -> None:
            for each in left:
                await self._cycle(each)

        await asyncio.gather(*(some() for _ in range(min(AT_ONCE, number))))

    async def _cycle(self, each: int) -> None:
        number = next(self._numbers)
        user = IMPOSTOR if number % 10 == 0 else f"user{number % USERS}"
        room = f"room{number}"
        async with connect(
            f"ws://127.0.0.1:{self.gateway.port}/", subprotocols=[Subprotocol("kraftek.v1.json")], compression=None,
            proxy=None, ping_interval=None, open_timeout=30.0, close_timeout=5.0,
        ) as socket:  # fmt: skip
            await _told(socket, "connected")
            await _say(socket, "authenticate", {"token": self.auth.token(user), "roomId": room})
            if user == IMPOSTOR:
                with suppress(ConnectionClosed):
                    await _told(socket, "error")
                return
            await _told(socket, "authenticated")
            await _say(socket, "join", {"roomId": f"{room}-too"})
            await _told(socket, "joined")
            for service in ("chat", "desk"):
                key = f"{room}-{service}"
                await socket.send(
                    json.dumps({"type": f"{service}:say:back", "payload": key, "id": key, "roomId": room})
                )
                answer = await _told(socket, f"{service}:say:back")
                if answer["payload"] != key:
                    self.ledger.wrong(f"{key} is answered {answer}")
            await _say(socket, "leave", {"roomId": room})
            await _told(socket, "left")
            if each % 3 == 0:
                socket.transport.abort()

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
        metrics = await asyncio.to_thread(self.gateway.metrics)
        found = {name: metrics[f"kraftek_{name}"] for name in ("sockets", "requests", "rooms", "connections_open")}
        lives = {key: await self._client.ttl(key) async for key in self._client.scan_iter(count=1000)}
        found["keys"] = sum(seconds == -1 for seconds in lives.values())
        found["expiring keys"] = sum(seconds >= 0 for seconds in lives.values())
        found["files"] = self.gateway.files()
        found["memory"] = self.gateway.resident()
        return found

    def compare(self, before: Mapping[str, float], after: Mapping[str, float]) -> None:
        """Note what has grown."""
        for name in before.keys() - {"memory", "expiring keys"}:
            if after[name] > before[name]:
                self.ledger.wrong(f"{name}: {before[name]:g}, then {after[name]:g}")
        if after["memory"] > before["memory"] + GROWN:
            self.ledger.wrong(f"memory: {before['memory'] / 1e6:.1f} MB, then {after['memory'] / 1e6:.1f}")


async def _say(socket: ClientConnection, type: str, payload: object) -> None:
    await socket.send(json.dumps({"type": type, "payload": payload}))


async def _told(socket: ClientConnection, type: str) -> Any:
    message = json.loads(await asyncio.wait_for(socket.recv(), 30.0))
    if message["type"] != type:
        raise AssertionError(f"expected {type}: {message}")
    return message


async def soak(cycles: int, directory: Path, *, expired: bool = True) -> list[str]:
    """Run; what is wrong. ``expired``: wait until every key is gone that lives for a time."""
    run = Soak(directory)
    try:
        await run.start()
        await run.cycles(max(cycles // 10, 2 * AT_ONCE))
        before = await run.left(expired=expired)
        print(f"warm: {_shown(before)}", flush=True)
        began = time.monotonic()
        await run.cycles(cycles)
        took = time.monotonic() - began
        after = await run.left(expired=expired)
        print(f"after {cycles} cycles in {took:.0f} s: {_shown(after)}", flush=True)
        run.compare(before, after)
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
