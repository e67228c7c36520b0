"""The backend for asyncio: a service on redis-py's asyncio client.

``run(processor)`` is a whole program. A program with more on its loop uses :class:`EventService`.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Self

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError

from kraftek.contract.log_once import OnceAMinute
from kraftek.contract.lua import Argument, Script
from kraftek.contract.names import BROADCAST
from kraftek.contract.redis_errors import is_no_script, may_pass
from kraftek.service.backend import Away, Refusing, Rejected, redis_url
from kraftek.service.instance import Instance
from kraftek.service.processor import MESSAGE_BYTES, EventProcessor
from kraftek.service.publisher import Publishing
from kraftek.service.redis_client import QUIET, BlockingClient, RedisClient, came_from_replica, end, text_of

__all__ = ["EventService", "Publisher", "run"]

AGAIN = 0.1
"""Seconds to the first of these attempts, after a connection that worked."""

_log = logging.getLogger("kraftek.service")


def run(processor: EventProcessor, url: str | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then finish the events in hand. Logs to standard error, unless logging is set up.

    ``url``: as in ``[redis]`` of the gateway; left out it is that of the environment's ``REDIS_URL``, or the local one.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [%(name)s#%(levelname)s] %(message)s")
    asyncio.run(_serve(processor, url or redis_url()))


async def _serve(processor: EventProcessor, url: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with EventService(processor, url):
        await stop.wait()


class EventService:
    """A service that runs on this loop, between ``start`` and ``stop`` or inside ``async with``."""

    def __init__(self, processor: EventProcessor, url: str) -> None:
        self._backend = _Backend(url)
        self._instance = Instance(processor, self._backend)

    async def start(self) -> None:
        """Start. Redis may be unavailable; the service subscribes when it is available."""
        self._backend.start()
        self._instance.start()

    async def stop(self) -> None:
        """Accept no more events, finish those in hand within the processor's ``grace``, and disconnect."""
        await self._instance.stop()
        await self._backend.close()

    async def __aenter__(self) -> EventService:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()


class Publisher(Publishing):
    """Sends outside of a handler, between ``start`` and ``stop`` or inside ``async with``. See :class:`Publishing`.

    ``url``, ``prefix``, ``broadcast``: as in ``[redis]`` of the gateway; ``message_bytes`` as of a processor.
    """

    def __init__(
        self,
        url: str | None = None,
        source: str = "",
        *,
        prefix: str = "",
        broadcast: str = BROADCAST,
        message_bytes: int = MESSAGE_BYTES,
    ) -> None:
        self._redis = _Backend(url or redis_url())
        super().__init__(self._redis, source, prefix=prefix, broadcast=broadcast, message_bytes=message_bytes)

    async def start(self) -> None:
        """Start. Redis may be unavailable; what is sent waits five seconds for it."""
        self._redis.start()
        self._begin()

    async def stop(self) -> None:
        """Disconnect, when Redis has what was sent."""
        await self._end()
        await self._redis.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.stop()


class _Backend:
    """Redis and the event loop, see :class:`kraftek.service.backend.Backend`."""

    def __init__(self, url: str) -> None:
        self._client = RedisClient(url)
        self._redis = self._client.redis
        self._once_a_minute = OnceAMinute(time.monotonic)
        self._queue: list[tuple[Sequence[Argument], asyncio.Future[Any]]] = []
        self._sending = False
        self._sent_scripts: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._channels: dict[bytes, _Channel] = {}
        self._listening: asyncio.Task[None] | None = None
        self._fault: str | None = None
        # Of the listener: whether it is subscribed, whether it waits for a message, and whether the wanted channels
        # differ from the subscribed ones.
        self._subscribed = self._waits = self._changed = False

    def start(self) -> None:
        """Follow the master."""
        self._loop = asyncio.get_running_loop()
        self._client.start()

    async def close(self) -> None:
        """Disconnect, when Redis has answered what was sent, or has not in ``QUIET`` seconds.

        Sentinels that are silent are asked one after the other, for longer than whoever stops it waits.
        """
        listening, self._listening = self._listening, None
        if listening is not None:
            listening.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=QUIET)
        await end(self._tasks)
        await self._client.close()

    # Backend

    async def call(self, *command: Argument) -> Any:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append((command, answer))
        if not self._sending:
            self._sending = True
            self.spawn(self._send())
        return await _translated(answer)

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        rest = (len(keys), *keys, *args)
        if script.digest in self._sent_scripts:
            try:
                return await self.call("EVALSHA", script.digest, *rest)
            except Rejected as error:
                if not is_no_script(str(error)):
                    raise
        self._sent_scripts.add(script.digest)
        return await self.call("EVAL", script.source, *rest)

    def reader(self) -> _Reader:
        return _Reader(self._redis)

    def blocking(self) -> BlockingClient:
        return self._client.blocking()

    async def subscribe(self, channel: str, listener: Callable[[bytes], None]) -> None:
        name = channel.encode()
        self._channels[name] = wanted = _Channel(listener)
        if self._listening is None:
            self._listening = self.spawn(self._listen())
        self._change(self._listening)
        await wanted.begun.wait()

    async def unsubscribe(self, channel: str) -> None:
        name = channel.encode()
        unwanted = self._channels.get(name)
        if unwanted is None:
            return
        if self._listening is None or not self._subscribed:
            self._forget(name)
            return
        unwanted.wanted = False
        self._change(self._listening)
        await unwanted.ended.wait()

    def signal(self) -> _Signal:
        return _Signal()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def awaitable(self, coroutine: Coroutine[Any, Any, Any]) -> Awaitable[Any]:
        return coroutine

    def from_thread(self, call: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(call)

    @property
    def fault(self) -> str | None:
        return self._fault

    async def pause(self) -> None:
        await asyncio.sleep(0)

    def info(self, text: str) -> None:
        _log.info("%s", text)

    def warn(self, text: str) -> None:
        _log.warning("%s", text)

    def failed(self, text: str, error: BaseException) -> None:
        _log.error("%s", text, exc_info=error)

    # Within

    async def _send(self) -> None:
        """Commands queued until Redis answers go in one write, on one connection, which keeps their order."""
        while self._queue:
            batch, self._queue = self._queue, []
            pipeline = self._redis.pipeline(transaction=False)
            for command, _ in batch:
                pipeline.execute_command(*command)
            try:
                answers = await pipeline.execute(raise_on_error=False)
            except Exception as error:  # noqa: BLE001  # whatever it is, each command fails with it
                answers = [error] * len(batch)
            except asyncio.CancelledError:
                for _, answer in (*batch, *self._queue):
                    if not answer.done():
                        answer.set_exception(RedisConnectionError("disconnected before it was answered"))
                raise
            if any(map(came_from_replica, answers)):
                await self._client.drop()
            for (_, answer), reply in zip(batch, answers, strict=True):
                if answer.done():
                    continue  # its caller was cancelled
                if isinstance(reply, Exception):
                    answer.set_exception(reply)
                else:
                    answer.set_result(reply)
        self._sending = False

    def _change(self, listening: asyncio.Task[None]) -> None:
        """Have the listener subscribe to the channels that are wanted.

        Only the listener uses its connection: if two tasks found it lost, each would connect again.
        """
        self._changed = True
        if self._waits:
            self._waits = False
            listening.cancel()

    async def _listen(self) -> None:
        pubsub = self._redis.pubsub()
        while True:
            connected = False
            try:
                await self._update(pubsub)
                self.info("Redis is connected")
                self._subscribed, self._fault = True, None
                await self._receive(pubsub)
            except Exception as error:  # noqa: BLE001  # whatever it is, subscribe again
                delay = AGAIN if self._subscribed else self._client.retry
                self._fault = str(error) or type(error).__name__
                retrying = f"retrying every {self._client.retry:g} s"
                self._once_a_minute(self.warn, f"Redis is unavailable, {retrying}: {error}")
                # redis-py may have connected and subscribed again by itself: what has arrived there since is not lost.
                connected = isinstance(error, RedisConnectionError) and _is_connected(pubsub)
            finally:
                self._subscribed = False
                if not connected:
                    await pubsub.aclose()
            if connected:
                continue
            await self._client.pause(delay)
            for name, channel in tuple(self._channels.items()):
                if not channel.wanted:
                    self._forget(name)
            pubsub = self._redis.pubsub()

    async def _update(self, pubsub: PubSub) -> None:
        self._changed = False
        unwanted = [name for name, channel in self._channels.items() if not channel.wanted]
        if unwanted:
            await pubsub.unsubscribe(*unwanted)
        missing = [name for name, channel in self._channels.items() if channel.wanted and name not in pubsub.channels]
        if missing:
            await pubsub.subscribe(*missing)

    async def _receive(self, pubsub: PubSub) -> None:
        asked = False
        while True:
            if self._changed:
                await self._update(pubsub)
            self._waits = True
            try:
                message = await pubsub.get_message(timeout=QUIET)
            except asyncio.CancelledError:
                if not self._changed or self._listening is None:
                    raise
                self._listening.uncancel()
                continue
            finally:
                self._waits = False
            if message is None:
                if asked:
                    raise TimeoutError(f"no answer for {QUIET:g} s")
                await pubsub.ping()
            asked = message is None
            channel = self._channels.get(message["channel"]) if message is not None else None
            if message is None or channel is None:
                continue
            if message["type"] == "message":
                channel.listener(message["data"])
            elif message["type"] == "subscribe":
                channel.begun.set()
            elif message["type"] == "unsubscribe":
                self._forget(message["channel"])

    def _forget(self, name: bytes) -> None:
        self._channels.pop(name).ended.set()


class _Channel:
    """The listener of a channel, whether it is still wanted, and when Redis confirmed the beginning and the end."""

    def __init__(self, listener: Callable[[bytes], None]) -> None:
        self.listener = listener
        self.wanted = True
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()


class _Reader:
    """A reader: redis-py uses another connection of its pool while a command waits."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def read(self, *command: Argument) -> Any:
        return await _translated(self._redis.execute_command(*command))

    def close(self) -> None:
        pass


class _Signal:
    def __init__(self) -> None:
        self._set: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def set(self, value: Any = True) -> None:
        if not self._set.done():
            self._set.set_result(value)

    async def wait(self, seconds: float | None) -> Any:
        await asyncio.wait([self._set], timeout=seconds)
        return self._set.result() if self._set.done() else None


def _is_connected(pubsub: PubSub) -> bool:
    return pubsub.connection is not None and bool(pubsub.connection.is_connected)


async def _translated(answer: Awaitable[Any]) -> Any:
    try:
        return await answer
    except ResponseError as error:
        text = text_of(error)
        raise (Refusing if may_pass(text) else Rejected)(text) from error
    except (RedisError, OSError) as error:
        raise Away(str(error) or type(error).__name__) from error
