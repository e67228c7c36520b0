"""redis-py's client for the Redis of a service: one server, or the master that sentinels name.

Made by :mod:`kraftek.service.asyncio`. redis-py asks the sentinels for each new connection. What it leaves to its
callers is here:

* That the server is a master is seen on each connection: sentinels may be late.
* A fail-over is heard of from the sentinels, also where a connection is in use and quiet. The old master may go on as
  one for a while, and what is written there is lost: see :mod:`kraftek.bus.sentinel`.
* Of two sentinels that differ the one with the newer configuration is believed.
* The error has what each sentinel answered. redis-py's own has the representation of its client there, and with some
  versions the password.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from redis import Redis as BlockingRedis
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.asyncio.connection import UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.connection import HiredisRespSerializer
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from kraftek.contract.lua import Argument
from kraftek.contract.redis_errors import shows_replica
from kraftek.contract.redis_url import RedisAddress, redis_address
from kraftek.service.backend import Away

__all__ = ["QUIET", "RETRY", "BlockingClient", "RedisClient", "came_from_replica", "end", "text_of"]

QUIET = 2.0
"""Seconds without data from Redis after which it gets a ping; without an answer in as many more it is unavailable."""

RETRY = 1.0
"""Seconds between two attempts to listen; to Redis behind sentinels half as many, because a fail-over takes seconds."""

SWITCH = "+switch-master"
"""The channel on which a sentinel tells of a fail-over: ``<name> <old host> <old port> <host> <port>``."""


_AGAIN = 0.5
"""Seconds after which a task is cancelled again."""

_BLOCKING: dict[str, Any] = {"protocol": 2, "socket_timeout": QUIET, "socket_connect_timeout": QUIET}

_pack = HiredisRespSerializer().pack

_CODES = {
    "BusyLoadingError": "LOADING",
    "MasterDownError": "MASTERDOWN",
    "NoScriptError": "NOSCRIPT",
    "OutOfMemoryError": "OOM",
    "ReadOnlyError": "READONLY",
}
"""What redis-py takes off the text of these. Older versions do not know all of them."""


def text_of(error: RedisError) -> str:
    """What Redis has answered."""
    code = _CODES.get(type(error).__name__)
    return f"{code} {error}" if code else str(error)


def came_from_replica(answer: object) -> bool:
    """Whether a server that answers so is no master any more."""
    if not isinstance(answer, RedisError):
        return False
    return shows_replica(text_of(answer))


class BlockingClient:
    """A client for a thread beside the loop, see :class:`kraftek.service.backend.Blocking`. ``make`` connects nothing
    yet; it raises ``OSError`` while it is not known where the master is.
    """

    def __init__(self, make: Callable[[], BlockingRedis]) -> None:
        self._make = make
        self._redis: BlockingRedis | None = None

    def call(self, *command: Argument) -> Any:
        try:
            if self._redis is None:
                self._redis = self._make()
                self._redis.response_callbacks.clear()
            return self._redis.execute_command(*command)
        except (RedisError, OSError) as error:
            raise Away(str(error)) from error

    def close(self) -> None:
        """Disconnect; the next call asks for the master again."""
        redis, self._redis = self._redis, None
        if redis is not None:
            redis.close()


async def end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks until they have ended. A cancellation may be lost: before Python 3.12 ``asyncio.wait_for``, by which
    redis-py sends, swallows one that comes when it has just sent (https://github.com/python/cpython/issues/86296).
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN)


class RedisClient:
    """``redis`` is the client. ``retry``: seconds between two attempts to subscribe.

    ``url``: as in ``[redis]`` of the gateway; :exc:`ValueError` when it is none.
    """

    def __init__(self, url: str) -> None:
        # RESP2, so that answers are the same as through the other backend; and no retries by redis-py: a message that
        # is published again would be received twice, and a sentinel that is gone would be asked again and again.
        retry: Any = Retry(NoBackoff(), 0)
        options: dict[str, Any] = {
            "protocol": 2,
            "retry": retry,
            "socket_timeout": 2 * QUIET,
            "socket_connect_timeout": QUIET,
        }
        self._sentinels: _Sentinels | None = None
        self._blocking = lambda: BlockingRedis.from_url(url, **_BLOCKING)
        self._tasks: list[asyncio.Task[None]] = []
        self._moved = asyncio.Event()
        self.retry = RETRY
        if url.startswith(("redis+sentinel:", "rediss+sentinel:")):
            address = redis_address(url)
            options["ssl"] = address.kind == "tls"
            self.retry = RETRY / 2
            self._sentinels = _Sentinels(address, options)
            self._blocking = partial(self._sentinels.blocking, address)
            self.redis: Redis = self._sentinels.master_for(
                address.master,
                db=address.database,
                username=address.username,
                password=address.password,
                redis_connect_func=self._sentinels.greet,
                **options,
            )
        else:
            self.redis = Redis.from_url(url, redis_connect_func=_greet, **options)
        self.redis.response_callbacks.clear()

    def start(self) -> None:
        """Leave a server that is no master any more; listen to the sentinels, if there are any."""
        self._tasks = [asyncio.create_task(self._check())]
        if self._sentinels is not None:
            listeners = [self._listen(self._sentinels, client) for client in self._sentinels.sentinels]
            self._tasks += [asyncio.create_task(listener) for listener in listeners]

    def blocking(self) -> BlockingClient:
        """A client for a thread beside the loop."""
        return BlockingClient(self._blocking)

    async def pause(self, seconds: float) -> None:
        """Return after so many seconds, or as soon as the master is found elsewhere."""
        self._moved.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._moved.wait(), seconds)

    async def drop(self) -> None:
        """Give up every connection: the next ones are made to where Redis is by then. Raises nothing."""
        # One that is lost already may fail to close, and the others are closed all the same.
        with suppress(RedisError, OSError):
            await self.redis.connection_pool.disconnect()

    async def close(self) -> None:
        """Disconnect."""
        await end(self._tasks)
        await self.redis.aclose()
        # Redis.aclose() closes what it made itself, and in some versions redis-py does not count this pool as such.
        await self.drop()
        if self._sentinels is not None:
            for client in self._sentinels.sentinels:
                await client.aclose()

    async def _check(self) -> None:
        """A service that only subscribes and publishes is refused nothing by a replica, and heard by nobody there."""
        while True:
            await asyncio.sleep(QUIET)
            try:
                role, *_ = await self.redis.execute_command("ROLE")
            except ResponseError:
                return  # as in _greet
            except (RedisError, OSError):
                continue
            if role != b"master":
                await self.drop()

    async def _listen(self, sentinels: _Sentinels, client: Redis) -> None:
        while True:
            pubsub = client.pubsub()
            try:
                await pubsub.subscribe(SWITCH)
                # It may have been told while nobody listened.
                await self._compare(sentinels, client)
                await self._hear(sentinels, client, pubsub)
            except (RedisError, OSError, ValueError):
                pass  # it is asked for each connection as well, and that says what is wrong
            finally:
                await pubsub.aclose()
            await asyncio.sleep(RETRY)

    async def _compare(self, sentinels: _Sentinels, client: Redis) -> None:
        state = await sentinels.state(client)
        if state["config-epoch"] > sentinels.epoch:
            await self._found(sentinels, client, (state["ip"], state["port"]), state["config-epoch"])

    async def _hear(self, sentinels: _Sentinels, client: Redis, pubsub: PubSub) -> None:
        asked = False
        while True:
            message = await pubsub.get_message(timeout=QUIET)
            if message is None:
                if asked:
                    return
                await pubsub.ping()
            elif message["type"] == "message":
                name, _, _, host, port = message["data"].decode("utf-8", "replace").split(" ")
                if name == sentinels.name:
                    await self._found(sentinels, client, (host, int(port)), sentinels.epoch)
            asked = message is None

    async def _found(self, sentinels: _Sentinels, client: Redis, place: tuple[str, int], epoch: int) -> None:
        moved = sentinels.place != place
        sentinels.found(client, place, epoch)
        if moved:
            await self.drop()
            self._moved.set()


class _Sentinels(Sentinel):
    """``place`` is where the master is, as far as is known. ``epoch``: what is older than it is not believed."""

    def __init__(self, address: RedisAddress, options: dict[str, Any]) -> None:
        login = {"username": address.sentinel_username, "password": address.sentinel_password}
        super().__init__(address.sentinels, sentinel_kwargs={**options, **login})
        self.name = address.master
        self.place: tuple[str, int] | None = None
        self.epoch = 0

    def blocking(self, address: RedisAddress) -> BlockingRedis:
        """A client for the master, where it was last found. Raises ``OSError`` before that."""
        if self.place is None:
            raise OSError("no sentinel has named the master yet")
        host, port = self.place
        return BlockingRedis(
            host=host,
            port=port,
            db=address.database,
            username=address.username,
            password=address.password,
            ssl=address.kind == "tls",
            **_BLOCKING,
        )

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Ask one after the other; those that are of no use are asked last from then on. redis-py calls this."""
        reasons: list[str] = []
        outdated: list[tuple[int, Redis, tuple[str, int]]] = []
        for client in tuple(self.sentinels):
            try:
                state = await self.state(client)
            except (RedisError, OSError) as error:
                where = client.connection_pool.connection_kwargs
                reasons.append(f"the sentinel at {where['host']}:{where['port']}: {error or type(error).__name__}")
            else:
                answer = (state["config-epoch"], client, (state["ip"], state["port"]))
                if answer[0] >= self.epoch:
                    return self.found(client, answer[2], answer[0])
                outdated.append(answer)
            self.sentinels.remove(client)
            self.sentinels.append(client)
        if outdated and not reasons:
            # All were set up anew: if one was merely cut off, the others would contradict it, or not answer.
            epoch, client, place = max(outdated, key=lambda answer: answer[0])
            return self.found(client, place, epoch)
        if outdated:
            reasons.append("what the others know is older than what was known before")
        raise MasterNotFoundError("; ".join(reasons))

    async def state(self, client: Redis) -> dict[str, Any]:
        """What a sentinel knows of the master."""
        masters: Any = await client.sentinel_masters()
        if self.name not in masters:
            raise RedisConnectionError(f"it knows no master named {self.name}")
        state: dict[str, Any] = masters[self.name]
        return state

    def found(self, client: Redis, place: tuple[str, int], epoch: int) -> tuple[str, int]:
        """The master is there: the sentinel that said so is asked first if this is new."""
        if place != self.place:
            self.sentinels.remove(client)
            self.sentinels.insert(0, client)
        self.place = place
        self.epoch = epoch
        return place

    async def greet(self, connection: Any) -> None:
        """Called by redis-py for each connection to what :meth:`discover_master` named some milliseconds ago."""
        await _greet(connection)
        if (connection.host, connection.port) != self.place:
            raise RedisConnectionError(f"the master is no longer at {connection.host}:{connection.port}")


async def _greet(connection: Any) -> None:
    """Log in as redis-py does, and see that this is no replica: it would take no event. hiredis packs what is sent from
    then on: redis-py's connections for asyncio do so in Python, which takes five times as long.
    """
    connection.pack_command = _pack
    await connection.on_connect()
    await connection.send_command("ROLE")
    try:
        role, *_ = await connection.read_response()
    except ResponseError:
        return  # we may not ask, or ROLE was renamed: what it does will show it
    if role != b"master":
        unix = isinstance(connection, UnixDomainSocketConnection)
        where = connection.path if unix else f"{connection.host}:{connection.port}"
        raise RedisConnectionError(f"{where} is a replica; expected the master")
