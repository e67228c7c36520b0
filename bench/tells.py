"""What it costs Redis that a service tells users something, with a history and without: ``python -m bench.tells``.

Microseconds of Redis's processor for each message (``INFO cpu``), to one user and to ten: what the SDKs send, and the
Function; many commands in one write. With a history the logs of all users are full. All take turns on a redis-server of
their own, with two gateways that follow and nobody who subscribes; of the rounds the least counts, as everything else
only adds to it. Then what Redis keeps (``MEMORY USAGE``), by the bytes of a message; and what a user costs who connects
to a gateway, each in a room of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any
from uuid import uuid4

from bench.measure import cpu_seconds
from bench.websocket_client import WebSocketClient
from kraftek.contract.history import LIBRARY, USERS_FUNCTION
from kraftek.contract.names import HISTORY_RULES, history_ids_key, history_log_key, history_position_key, user_topic
from kraftek.service.commits import TELL
from kraftek.service.live_gateway import LiveGateway
from tests.support.redis_server import PrivateRedis

CALLS = 1000
"""Of a script in a round."""

CONNECTED = 400
"""Users who connect, and then as many more."""

KEPT = 100
USERS = [[f"user-{number:04}" for number in range(many)] for many in (1, 10)]
BROADCAST = "events:broadcast"

ids = count(1)


def rules(redis: Any, topic: str, most: int = KEPT) -> None:
    """A history of these topics alone, and two gateways that follow."""
    redis.flushall()
    given = json.dumps([[topic, "", most, 600_000, 67_108_864]])
    redis.hset(HISTORY_RULES, mapping={"rules": given, "generation": "g"})
    until = time.time() + 3600
    for key in ("gateways", "gateways:history:following"):
        redis.zadd(key, {"3f0c5a7d9e21": until, "9a1e0c44d7b2": until})


def message(users: list[str], size: int = 64) -> tuple[str, str, str]:
    """One to these users, as the SDKs write it, whom it is for, and as a stranger writes it."""
    text = json.dumps({"type": "inbox:mail:came", "payload": "x" * (size - 41)}, separators=(",", ":"))
    names = json.dumps(users, separators=(",", ":"))
    return f'{text[:-1]},"userIds":{names}}}', f"users:{names}", text


def words(digest: str, way: str, users: list[str], id: str) -> tuple[Any, ...]:
    """The command by which that is said."""
    whole, whom, text = message(users)
    match way:
        case "PUBLISH":
            return "PUBLISH", BROADCAST, whole
        case "FCALL":
            return "FCALL", USERS_FUNCTION, 0, whom.removeprefix("users:"), text, id
        case _:
            return "EVALSHA", digest, 0, "", BROADCAST, whom, whole, id


def used(redis: Any) -> float:
    """Seconds of its processor."""
    cpu = redis.info("cpu")
    return float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])


def cost(redis: Any, digest: str, way: str, users: list[str], *, with_id: bool) -> float:
    """Microseconds of one message."""

    def say(many: int) -> None:
        with redis.pipeline(transaction=False) as pipeline:
            for _ in range(many):
                pipeline.execute_command(*words(digest, way, users, f"m{next(ids)}" if with_id else ""))
            pipeline.execute()

    say(KEPT)
    before = used(redis)
    say(CALLS)
    return (used(redis) - before) / CALLS * 1e6


def main() -> None:
    """Print both tables."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=10)
    rounds = arguments.parse_args().rounds
    server = PrivateRedis()
    server.start()
    try:
        redis = server.client()
        redis.execute_command("FUNCTION", "LOAD", LIBRARY)
        digest = redis.script_load(TELL.source)
        least: dict[tuple[str, int], float] = {}
        for _ in range(rounds):
            for what, topic, way, with_id in (
                ("PUBLISH, no rules", "", "PUBLISH", False),
                ("SDK, rooms have a history", "room:", "EVALSHA", False),
                ("SDK, users have one", "user:", "EVALSHA", False),
                ("SDK, users have one, with an id", "user:", "EVALSHA", True),
                ("Function, users have one", "user:", "FCALL", False),
            ):
                for users in USERS:
                    rules(redis, topic)
                    found = cost(redis, digest, way, users, with_id=with_id)
                    least[what, len(users)] = min(found, least.get((what, len(users)), found))
        print(f"Redis {redis.info('server')['redis_version']}, µs a message\n")
        for what in dict.fromkeys(what for what, _ in least):
            each = "  ".join(f"{len(users)} user(s) {least[what, len(users)]:7.1f}" for users in USERS)
            print(f"{what:34} {each}")
        kept(redis, digest)
        redis.flushall()
        print("\na user who connects: µs of the gateway and of Redis")
        for _ in range(3):
            for history in (0, KEPT):
                which = "with a history" if history else "without one"
                print("{:15} {:6.0f} {:6.0f}".format(which, *connecting(server.url, redis, history)))
    finally:
        server.close()


def kept(redis: Any, digest: str) -> None:
    """What Redis keeps of a user: with the first message, and for each further one."""
    print("\nbytes of a user with one message, and of each further message")
    for size in (64, 256, 1000):
        for with_id in (False, True):
            found = []
            for many in (1, 500, 1000):
                rules(redis, "user:", 1000)
                (user,) = USERS[0]
                for _ in range(many):
                    whole, whom, _ = message([user], size)
                    redis.evalsha(digest, 0, "", BROADCAST, whom, whole, str(uuid4()) if with_id else "")
                keys = (key(user_topic(user)) for key in (history_position_key, history_log_key, history_ids_key))
                found.append(sum(redis.memory_usage(key, samples=0) or 0 for key in keys))
            each = (found[2] - found[1]) / 500
            print(f"{size:5} bytes{', with an id' if with_id else '':12}  {found[0]:7}  {each:7.0f}")


class Device(WebSocketClient):
    """Of a user of its own. ``there`` is called once the gateway has said so."""

    def __init__(self, number: int, there: Callable[[], None]) -> None:
        super().__init__()
        self._number, self._there = number, there

    @property
    def path(self) -> str:
        return f"/?token={self._number}&roomId=room-{self._number}"

    def text(self, payload: bytes) -> None:
        if b'"authenticated"' in payload:
            self._there()


def connecting(url: str, redis: Any, history: int) -> tuple[float, float]:
    """What each of so many users costs: microseconds of the gateway and of Redis."""
    config: dict[str, Any] = {"redis": {"url": url}, "auth": {"check": "open"}, "users": {"history": history}}
    gateway = LiveGateway(config)
    try:
        pid = [gateway._process.pid]  # noqa: SLF001  # its time is what this is about
        port = int(gateway.url.rstrip("/").rpartition(":")[2])

        async def connect(first: int, many: int) -> tuple[float, float]:
            loop, there, all_there = asyncio.get_running_loop(), count(1), asyncio.Event()

            def one() -> None:
                if next(there) == many:
                    all_there.set()

            before = cpu_seconds(pid), used(redis)
            for number in range(first, first + many):
                await loop.create_connection(partial(Device, number, one), "127.0.0.1", port)
            await all_there.wait()
            await asyncio.sleep(0.5)  # what is written afterwards
            gateway, server = cpu_seconds(pid) - before[0], used(redis) - before[1]
            return gateway / many * 1e6, server / many * 1e6

        async def twice() -> tuple[float, float]:
            await connect(0, CONNECTED)
            return await connect(CONNECTED, CONNECTED)

        return asyncio.run(twice())
    finally:
        gateway.close()
        redis.flushall()


if __name__ == "__main__":
    main()
