"""The bus: everything that the gateway sends to Redis and receives from it.

Made and started by :mod:`kraftek.daemon.lifecycle`; called through :class:`kraftek.contract.interfaces.IBus`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, fail, gatherResults, succeed
from twisted.logger import Logger
from zope.interface import implementer

from kraftek.bus.connections import (
    NO_BATCH,
    TRACKING_CHANNEL,
    CommandConnection,
    RedisConnection,
    SubscriberConnection,
    lead_apart,
)
from kraftek.bus.endpoint import Backoff, ConnectionService, RedisEndpoint
from kraftek.bus.outage import Outage
from kraftek.bus.reading import Reading
from kraftek.bus.resp import publish_head
from kraftek.bus.rights import Need, Rights
from kraftek.bus.sentinel import SentinelEndpoint
from kraftek.bus.server import UnsuitableServer
from kraftek.bus.standing import Standing
from kraftek.contract.errors import NotPublished
from kraftek.contract.interfaces import EntryListener, IBus, IBusListener
from kraftek.contract.iteration import Iteration
from kraftek.contract.lua import Argument, ForEach, Script
from kraftek.contract.metrics import Counters
from kraftek.contract.redis_url import RedisAddress, redis_address
from kraftek.contract.settings import Redis

__all__ = ["RedisBus"]

HEADS_KEPT = 1024
"""Channels whose ``PUBLISH`` is cached half written. Services are few: the bound is for callers with many channels."""


@implementer(IBus)
class RedisBus(MultiService):
    """Two connections, kept up by two ``ConnectionService`` children: the bus is up while both are connected. Each
    reader of a stream has another connection, which does not matter for that. ``endpoint``: where all of them connect.

    ``reactor`` connects. ``clock`` keeps the time, which is monotonic; unless given it is the reactor. Without
    ``keeps_epoch`` the epoch stays ``None``, and it is not checked whether Redis takes writes: services need neither.
    ``unsuitable`` is called when a server answers that cannot be used. ``needs``: the rights that are named if our user
    lacks them. Raises as :class:`kraftek.bus.endpoint.RedisEndpoint` does.
    """

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        config: Redis,
        iteration: Iteration,
        counters: Counters,
        clock: Any = None,
        *,
        keeps_epoch: bool = True,
        unsuitable: Callable[[UnsuitableServer], None] = lambda _: None,
        needs: Sequence[Need] = (),
    ) -> None:
        super().__init__()
        self._address = address = redis_address(config.url)
        self._clock: Any = reactor if clock is None else clock
        self._config = config
        self.endpoint = endpoint = _endpoint(self, reactor, self._clock, address, config)
        self.server_name = f"Redis at {endpoint.name}"
        self._outage = Outage(self.server_name, self._clock)
        self._unsuitable = unsuitable
        self._prefix = config.prefix
        self._in_flight = config.in_flight
        self._counters = counters
        self._heads: dict[str, bytes] = {}
        self._channels: dict[bytes, tuple[Callable[[Any], None], ...]] = {}
        self._tracked: dict[str, Callable[[list[str] | None], None]] = {}
        self._listeners: list[IBusListener] = []
        self._batch = NO_BATCH
        self._commands: CommandConnection | None = None
        self._subscriber: SubscriberConnection | None = None
        self._keeps_epoch = keeps_epoch
        self._rights = Rights(endpoint, self._clock, address, config, needs)
        self._rights.setServiceParent(self)
        changed = partial(self._tell, "epoch_changed")
        self._standing = Standing(self.server_name, self._clock, config.prefix, self._rights, changed)
        self.available = False
        self._backoff = Backoff(endpoint.longest_wait)
        check = self._standing.check if keeps_epoch else None
        for protocol in (
            partial(CommandConnection, self._clock, address, config, self, iteration, check),
            partial(SubscriberConnection, self._clock, address, config, self, iteration, self._channels),
        ):
            service = ConnectionService(endpoint, protocol, self._backoff, self._clock, self._outage.failed)
            service.setServiceParent(self)

    # IBus

    @property
    def epoch(self) -> str | None:
        return self._standing.epoch

    @property
    def fault(self) -> str | None:
        return self._standing.fault if self.available else self._outage.reason or "it has not answered yet"

    def channel_name(self, channel: str) -> str:
        return self._prefix + channel

    def publish(self, channel: str, body: bytes, receipt: Callable[[int], None]) -> None:
        connection = self._commands
        if connection is None or not self.available or len(connection.waiting) + connection.batched >= self._in_flight:
            raise self._not_published()
        head = self._heads.get(channel)
        if head is None:
            head = self._head(channel)
        connection.send(b"%b%d\r\n%b\r\n" % (head, len(body), body), receipt)

    def call(self, command: Any, keys: Sequence[str] = (), args: Sequence[Argument] = ()) -> Deferred[Any]:
        try:
            connection = self._with_room()
        except NotPublished:
            return fail()
        names = [self._prefix + key for key in keys]
        if isinstance(command, Script):
            return connection.run(command, names, args)
        return connection.ask(command, *names, *args)

    def run(self, script: ForEach, message: tuple[Any, ...]) -> None:
        batch = self._batch
        if batch.script is not script or len(batch.messages) >= batch.room:
            batch = self._batch = self._with_room().open_batch(script)
        batch.messages.append(message)

    def run_all(self, script: ForEach, messages: Sequence[tuple[Any, ...]]) -> None:
        connection = self._with_room()
        connection.open_batch(script).messages += messages
        connection.close_batch()

    def subscribe(self, channel: str, listener: Callable[[bytes], None]) -> None:
        name = self.channel_name(channel).encode()
        known = self._channels.get(name, ())
        self._channels[name] = (*known, listener)
        if self._subscriber is not None and not known:
            self._subscriber.listen([name]).addErrback(lambda _: None)

    def unsubscribe(self, channel: str) -> Deferred[None]:
        """Fires when everything that Redis still sent on it was received, or when the connection is lost."""
        name = self.channel_name(channel).encode()
        if self._subscriber is None:
            self._channels.pop(name, None)
            return succeed(None)
        ending = self._subscriber.ask("UNSUBSCRIBE", name).addErrback(lambda _: None)
        return ending.addCallback(lambda _: self._channels.pop(name, None)).addCallback(lambda _: None)

    def read(
        self,
        group: str,
        consumer: str,
        stream: str,
        listener: EntryListener,
        *,
        window: int = 100,
        claim_after: float = 5.0,
    ) -> Reading:
        reading = Reading(
            self._clock,
            self.endpoint,
            self._address,
            self._config,
            self,
            group=group,
            consumer=consumer,
            stream=stream,
            listener=listener,
            window=window,
            claim_after=claim_after,
            same_server=self._same_server,
        )
        self.add_listener(reading)
        reading.setServiceParent(self)
        return reading

    def track(self, prefix: str, listener: Callable[[list[str] | None], None]) -> None:
        self._tracked[prefix] = listener
        self._channels[TRACKING_CHANNEL] = (self._invalidated,)

    def settled(self) -> Deferred[None]:
        if not self.available or self._subscriber is None:
            return fail(NotPublished("Redis is unavailable"))
        return self._subscriber.ask("PING").addCallback(lambda _: None)

    def add_listener(self, listener: IBusListener) -> None:
        self._listeners.append(listener)
        if self.available:
            listener.bus_up()

    def drop(self, reason: str) -> None:
        """Give up every connection, and connect anew: the name may lead to another server now."""
        for service in self:
            if isinstance(service, ConnectionService):
                service.drop(reason)

    # IService

    def stopService(self) -> Deferred[Any]:
        """Write what was sent in this iteration, and disconnect."""
        if self._commands is not None:
            self._commands.flush()
        stopped: Deferred[Any] = super().stopService()
        return stopped

    # LinkOwner

    def connection_ready(self, connection: RedisConnection) -> None:
        """Once both are connected, subscribe to everything, track changes and find the epoch; then the bus is up."""
        if isinstance(connection, CommandConnection):
            self._commands = connection
        elif isinstance(connection, SubscriberConnection):
            self._subscriber = connection
        commands, subscriber = self._commands, self._subscriber
        if commands is None or subscriber is None or not self._same_server():
            return
        steps = [subscriber.listen(self._channels)]
        if self._tracked:
            steps.append(commands.track(subscriber.id))
        if self._keeps_epoch:
            steps.append(self._standing.check(commands))
        ready = gatherResults(steps, consumeErrors=True)
        ready.addCallbacks(lambda _: self._up(commands, subscriber), lambda _: None)

    def connection_lost(self, connection: RedisConnection, reason: str) -> None:
        if connection is self._commands:
            self._commands = None
        elif connection is self._subscriber:
            self._subscriber = None
        if self.running:
            self._outage.failed(reason)
        self._standing.lost()
        if self.available:
            self.available = False
            self._tell("bus_down")
        if connection.demoted:
            self.drop(reason)
        if connection.unsuitable is not None:
            self._unsuitable(connection.unsuitable)
        elif connection.refused and "NOPERM" in reason:
            self._rights.look()

    # Within

    def _with_room(self) -> CommandConnection:
        """The connection, if it has room for one more message.

        :meth:`publish` has this in line, for each message. It does not close the batch of this iteration first, and so
        does not count its messages.
        """
        connection = self._commands
        if connection is not None:
            connection.close_batch()
        if connection is None or not self.available or len(connection.waiting) + connection.batched >= self._in_flight:
            raise self._not_published()
        return connection

    def _not_published(self) -> NotPublished:
        if self._commands is None or not self.available:
            return NotPublished("Redis is unavailable")
        return NotPublished(f"{self._in_flight} messages and commands are waiting for Redis's answer")

    def _head(self, channel: str) -> bytes:
        if len(self._heads) >= HEADS_KEPT:
            self._heads.clear()
        head = self._heads[channel] = publish_head(self.channel_name(channel).encode())
        return head

    def _invalidated(self, changed: list[bytes] | None) -> None:
        for prefix, listener in self._tracked.items():
            if changed is None:
                listener(None)
                continue
            names = [key.decode("utf-8", "replace").removeprefix(self._prefix) for key in changed]
            names = [name for name in names if name.startswith(prefix)]
            if names:
                listener(names)

    def _same_server(self) -> bool:
        """Whether all connections lead to one server; otherwise drops them: a fail-over is under way."""
        readers = [service.connection for service in self if isinstance(service, Reading)]
        apart = lead_apart(self._commands, self._subscriber, *readers)
        if apart:
            self.drop("its connections lead to different servers")
        return not apart

    def _up(self, commands: CommandConnection, subscriber: SubscriberConnection) -> None:
        if commands is not self._commands or subscriber is not self._subscriber:
            return  # one of them was lost meanwhile, and its successor does all this again
        self.available = True
        if self._keeps_epoch:
            self._standing.met(commands.server)
        self._backoff.reset()
        self._counters.redis_connects += 1
        if not self._outage.over():
            self.log.info("{name} is there", name=self.server_name)
        self._tell("bus_up")

    def _tell(self, event: str) -> None:
        for listener in tuple(self._listeners):
            try:
                getattr(listener, event)()
            except Exception:  # noqa: BLE001  # one listener's fault must not keep it from the others
                self.log.failure("Failed on {event}", event=event)


def _endpoint(
    parent: MultiService, reactor: Any, clock: Any, address: RedisAddress, config: Redis
) -> RedisEndpoint | SentinelEndpoint:
    if address.sentinels:
        endpoint = SentinelEndpoint(reactor, clock, address, config)
        endpoint.setServiceParent(parent)
        return endpoint
    return RedisEndpoint(reactor, address, config.ca, config.ping_timeout)
