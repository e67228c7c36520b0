"""The backend for Twisted: a service on the gateway's own connections to Redis.

``run(processor)`` is a whole program. In an application, :class:`EventService` is an ``IService`` among others.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger, globalLogBeginner, textFileLogObserver
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.bus import RedisBus, RedisError
from kraftek.bus.blocking import BlockingConnection
from kraftek.bus.connections import RedisConnection
from kraftek.bus.endpoint import Backoff, ConnectionService, RedisEndpoint
from kraftek.bus.reading import ReadingConnection
from kraftek.bus.sentinel import SentinelEndpoint
from kraftek.contract.clock import MonotonicClock
from kraftek.contract.errors import NotPublished
from kraftek.contract.interfaces import IBusListener
from kraftek.contract.iteration import Iteration
from kraftek.contract.lua import Argument, Script
from kraftek.contract.metrics import Counters
from kraftek.contract.names import BROADCAST
from kraftek.contract.redis_errors import may_pass
from kraftek.contract.redis_url import redis_address
from kraftek.contract.settings import Redis
from kraftek.fastpath import wanted, write_at_once
from kraftek.service.backend import Away, Refusing, Rejected, redis_url
from kraftek.service.instance import Instance
from kraftek.service.processor import MESSAGE_BYTES, EventProcessor
from kraftek.service.publisher import Publishing

__all__ = ["EventService", "Publisher", "TwistedBackend", "run"]


def run(processor: EventProcessor, url: str | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then finish the events in hand.

    ``url``: as in ``[redis]`` of the gateway; left out it is that of the environment's ``REDIS_URL``, or the local one.
    """
    from twisted.internet import reactor  # noqa: PLC0415  # importing it chooses one

    running: Any = reactor
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stderr)], redirectStandardIO=False)
    service = EventService(running, processor, url or redis_url())
    service.startService()
    running.addSystemEventTrigger("before", "shutdown", service.stopService)
    running.run()


class EventService(MultiService):
    """A service that runs while it is started. Stopping finishes the events in hand, and accepts no more.

    ``ca``: as in ``[redis]`` of the gateway. Raises as :class:`kraftek.bus.RedisBus` does.
    """

    def __init__(self, reactor: Any, processor: EventProcessor, url: str, ca: str = "") -> None:
        super().__init__()
        self._instance = Instance(processor, _connected(self, reactor, Redis(url=url, ca=ca)))

    def startService(self) -> None:
        super().startService()
        self._instance.start()

    def stopService(self) -> Deferred[Any]:
        stopping = Deferred.fromCoroutine(self._instance.stop())
        return stopping.addCallback(lambda _: MultiService.stopService(self))


class Publisher(MultiService, Publishing):
    """Sends outside of a handler, while it is started: its methods return Deferreds. See :class:`Publishing`.

    ``url``, ``ca``, ``prefix``, ``broadcast``: as in ``[redis]`` of the gateway; ``message_bytes`` as of a processor.
    """

    def __init__(
        self,
        reactor: Any,
        url: str | None = None,
        source: str = "",
        *,
        ca: str = "",
        prefix: str = "",
        broadcast: str = BROADCAST,
        message_bytes: int = MESSAGE_BYTES,
    ) -> None:
        MultiService.__init__(self)
        backend = _connected(self, reactor, Redis(url=url or redis_url(), ca=ca))
        Publishing.__init__(self, backend, source, prefix=prefix, broadcast=broadcast, message_bytes=message_bytes)

    def startService(self) -> None:
        super().startService()
        self._begin()

    def stopService(self) -> Deferred[Any]:
        ending = Deferred.fromCoroutine(self._end())
        return ending.addCallback(lambda _: MultiService.stopService(self))


@implementer(IBusListener)
class TwistedBackend:
    """Redis and the reactor, see :class:`kraftek.service.backend.Backend`. ``config``: that of ``bus``."""

    _log = Logger(namespace="kraftek.service")

    def __init__(self, reactor: Any, config: Redis, bus: RedisBus) -> None:
        self._reactor = reactor
        self._clock: Any = MonotonicClock(reactor)
        self._config = config
        self._bus = bus
        self._unconfirmed: list[Deferred[None]] = []
        bus.add_listener(self)

    # IBusListener

    def bus_up(self) -> None:
        """The bus is up once all its channels are subscribed to."""
        unconfirmed, self._unconfirmed = self._unconfirmed, []
        for waiting in unconfirmed:
            waiting.callback(None)

    def bus_down(self) -> None:
        """The bus logs it, and reconnects automatically."""

    def epoch_changed(self) -> None:
        """Services have no evidence that could be of another epoch."""

    # Backend

    async def call(self, *command: Argument) -> Any:
        return await _translated(self._bus.call(command[0], [], command[1:]))

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        return await _translated(self._bus.call(script, keys, args))

    def reader(self) -> _Reader:
        return _Reader(self._clock, self._config, self._bus.endpoint)

    def blocking(self) -> _Blocking:
        return _Blocking(lambda: self._bus.endpoint.address, self._config.ca, self._config.ping_timeout)

    async def subscribe(self, channel: str, listener: Callable[[bytes], None]) -> None:
        self._bus.subscribe(channel, listener)
        if self._bus.available:
            with suppress(Away):
                await _translated(self._bus.settled())
                return
        waiting: Deferred[None] = Deferred()
        self._unconfirmed.append(waiting)
        await waiting

    async def unsubscribe(self, channel: str) -> None:
        await self._bus.unsubscribe(channel)

    def signal(self) -> _Signal:
        return _Signal(self._clock)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> Deferred[None]:
        return Deferred.fromCoroutine(coroutine)

    def awaitable(self, coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
        return Deferred.fromCoroutine(coroutine)

    def from_thread(self, call: Callable[[], None]) -> None:
        self._reactor.callFromThread(call)

    @property
    def fault(self) -> str | None:
        return self._bus.fault

    def pause(self) -> Deferred[None]:
        return deferLater(self._clock, 0)

    def info(self, text: str) -> None:
        self._log.info("{text}", text=text)

    def warn(self, text: str) -> None:
        self._log.warn("{text}", text=text)

    def failed(self, text: str, error: BaseException) -> None:
        self._log.failure("{text}", Failure(error), text=text)


def _connected(parent: MultiService, reactor: Any, config: Redis) -> TwistedBackend:
    """A backend with connections of its own, which are there while ``parent`` is started."""
    iteration = Iteration(reactor)
    if wanted(os.environ):
        write_at_once(iteration)
    bus = RedisBus(reactor, config, iteration, Counters(), MonotonicClock(reactor), keeps_epoch=False)
    bus.setServiceParent(parent)
    return TwistedBackend(reactor, config, bus)


class _Blocking(BlockingConnection):
    def call(self, *parts: Argument) -> Any:
        try:
            return super().call(*parts)
        except OSError as error:
            raise Away(str(error)) from error


class _Reader:
    """A connection of its own: a command that waits blocks all others on its connection."""

    def __init__(self, clock: Any, config: Redis, endpoint: RedisEndpoint | SentinelEndpoint) -> None:
        address = redis_address(config.url)
        self._backoff = Backoff(endpoint.longest_wait, clock)
        self._connection = ConnectionService(
            endpoint,
            lambda: ReadingConnection(clock, address, config, self),
            self._backoff,
            clock,
            lambda _: None,  # the bus has the same Redis, and logs it
        )
        self._connection.startService()

    async def read(self, *command: Argument) -> Any:
        try:
            link: Any = await self._connection.whenConnected(failAfterFailures=1)
        except Exception as error:
            raise Away(str(error)) from error
        return await _translated(link.ask(*command))

    def close(self) -> None:
        self._connection.stopService()

    # LinkOwner

    def connection_ready(self, link: RedisConnection) -> None:
        """Commands wait already, and are sent in order."""
        self._backoff.reset()

    def connection_lost(self, link: RedisConnection, reason: str) -> None:
        """Nothing to do: the connection fails the commands that wait."""


class _Signal:
    def __init__(self, clock: MonotonicClock) -> None:
        self._clock = clock
        self._set: Deferred[Any] = Deferred()

    def set(self, value: Any = True) -> None:
        if not self._set.called:
            self._set.callback(value)

    async def wait(self, seconds: float | None) -> Any:
        if seconds is None:
            return await self._set
        time_is_up = self._clock.callLater(max(0.0, seconds), self.set, None)
        try:
            return await self._set
        finally:
            if time_is_up.active():
                time_is_up.cancel()


async def _translated(answer: Deferred[Any]) -> Any:
    try:
        return await answer
    except NotPublished as error:
        raise Away(str(error)) from error
    except RedisError as error:
        raise (Refusing if may_pass(str(error)) else Rejected)(str(error)) from error
