"""The bus: everything that the gateway sends to Redis and receives from it.

Made and started by :mod:`kraftek.daemon.lifecycle`; called through :class:`kraftek.contract.interfaces.IBus`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, fail, gatherResults
from twisted.logger import Logger
from twisted.python.failure import Failure
from txredisapi import ResponseError
from zope.interface import implementer

from kraftek.bus.connections import NO_BATCH, CommandConnection, RedisConnection, lead_apart
from kraftek.bus.endpoint import Backoff, ConnectionService, RedisEndpoint, Waiting
from kraftek.bus.outage import Outage
from kraftek.bus.reading import Reading
from kraftek.bus.resp import publish_head
from kraftek.bus.rights import Need, Rights
from kraftek.bus.sentinel import SentinelEndpoint
from kraftek.bus.server import UnsuitableServer
from kraftek.bus.standing import Standing
from kraftek.bus.subscriber import (
    TRACKING_CHANNEL,
    Channels,
    Deafness,
    SubscriberConnection,
    Tracked,
    cause_of,
)
from kraftek.contract.accounts import Accounts
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
    reader of a stream has another connection, which does not matter for that. ``endpoint``: where all of them connect;
    ``listening`` keeps up the one that listens.

    When only the connection that listens is lost, events are still sent for as long as it would take to notice that one
    is silent: Redis closes it when somebody publishes more than it buffers for a subscriber, and a new one takes some
    hundredths of a second. Longer than that nobody sends who cannot hear that he must not.

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
        accounts: Accounts | None = None,
        unsuitable: Callable[[UnsuitableServer], None] = lambda _: None,
        needs: Sequence[Need] = (),
    ) -> None:
        super().__init__()
        self.address = address = redis_address(config.url)
        self._clock: Any = reactor if clock is None else clock
        self._config = config
        self.endpoint = endpoint = _endpoint(self, reactor, self._clock, address, config)
        self.server_name = f"Redis at {endpoint.name}"
        self._outage = Outage(self.server_name, self._clock)
        self._unsuitable = unsuitable
        self._prefix = config.prefix
        self._in_flight, self._in_flight_bytes = config.in_flight, config.in_flight_bytes
        self._counters = counters
        self._heads = _Heads(config.prefix)
        self._channels = Channels()
        self._tracked = Tracked(config.prefix)
        self._told = BusListeners()
        self._batch = NO_BATCH
        self.commands: CommandConnection | None = None
        self.subscriber: SubscriberConnection | None = None
        self._sender: CommandConnection | None = None
        patience, deaf = config.ping_interval + config.ping_timeout, partial(setattr, self, "_sender", None)
        self._deafness = Deafness(self._clock, patience, deaf)
        self._keeps_epoch = keeps_epoch
        self._rights = Rights(endpoint, self._clock, address, config, needs)
        self._rights.setServiceParent(self)
        changed = partial(self._told.tell, "epoch_changed")
        self._standing = Standing(self.server_name, self._clock, config.prefix, self._rights, changed)
        self.available = False
        self._backoff = Backoff(endpoint.longest_wait, self._clock)
        self._waiting = Waiting(self._clock)
        self._accounts = accounts = Accounts() if accounts is None else accounts
        shared = self._clock, address, config, self, iteration, accounts
        for protocol in (
            partial(CommandConnection, *shared, self._standing.check if keeps_epoch else None),
            partial(SubscriberConnection, *shared, self._channels),
        ):
            self.listening = ConnectionService(endpoint, protocol, self._backoff, self._waiting, self._outage.failed)
            self.listening.setServiceParent(self)

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
        connection = self._sender
        if (
            connection is None
            or len(connection.waiting) + connection.batched >= self._in_flight
            or connection.unanswered >= self._in_flight_bytes
        ):
            raise self._not_published()
        connection.send(b"%b%d\r\n%b\r\n" % (self._heads[channel], len(body), body), receipt)

    def call(self, command: Any, keys: Sequence[str] = (), args: Sequence[Argument] = ()) -> Deferred[Any]:
        try:
            connection = self._with_room(hears=True)
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
        connection = self._with_room(hears=True)
        connection.open_batch(script).messages += messages
        connection.close_batch()

    def subscribe(self, channel: str, listener: Callable[[bytes], None]) -> None:
        self._channels.subscribe(self.channel_name(channel).encode(), listener)

    def unsubscribe(self, channel: str) -> Deferred[None]:
        return Deferred.fromCoroutine(self._channels.unsubscribe(self.channel_name(channel).encode()))

    def follow(self, channel: str, listener: Callable[[bytes], None]) -> Deferred[None]:
        return self._channels.follow(self.channel_name(channel).encode(), listener)

    def unfollow(self, channel: str) -> None:
        self._channels.unfollow(self.channel_name(channel).encode())

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
        where = self._clock, self.endpoint, self.address, self._config, self
        reading = Reading(
            *where,
            group=group,
            consumer=consumer,
            stream=stream,
            listener=listener,
            window=window,
            claim_after=claim_after,
            same_server=self._same_server,
            accounts=self._accounts,
            waiting=self._waiting,
        )
        self.add_listener(reading)
        reading.setServiceParent(self)
        return reading

    def track(self, prefix: str, listener: Callable[[list[str] | None], None]) -> None:
        self._tracked.add(prefix, listener)
        self._channels[TRACKING_CHANNEL] = (self._tracked.changed,)

    def settled(self) -> Deferred[None]:
        if not self.available or self.subscriber is None:
            return fail(NotPublished("Redis is unavailable"))
        return self.subscriber.ask("PING").addCallback(lambda _: None)

    def add_listener(self, listener: IBusListener) -> None:
        self._told.add(listener)
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
        self._deafness.end()
        if self.commands is not None:
            self.commands.flush()
        stopped: Deferred[Any] = super().stopService()
        return stopped

    # LinkOwner

    def connection_ready(self, connection: RedisConnection) -> None:
        """Once both are connected, subscribe to everything, track changes and find the epoch; then the bus is up."""
        if isinstance(connection, CommandConnection):
            self.commands = connection
        elif isinstance(connection, SubscriberConnection):
            self.subscriber = self._channels.connection = connection
        self._waiting.end()
        commands, subscriber = self.commands, self.subscriber
        if commands is None or subscriber is None or not self._same_server():
            return
        steps = [subscriber.listen(self._channels)]
        if self._tracked:
            steps.append(commands.track(subscriber.id))
        if self._keeps_epoch:
            steps.append(self._standing.check(commands))
        ready = gatherResults(steps, consumeErrors=True)
        ready.addCallbacks(lambda _: self._up(commands, subscriber), self._not_ready, errbackArgs=(commands,))

    def connection_lost(self, connection: RedisConnection, reason: str) -> None:
        if connection is self.commands:
            self.commands = self._sender = None
            self._deafness.end()
        elif connection is self.subscriber:
            self.subscriber = self._channels.connection = None
            if self._sender is not None and self.running:
                self._deafness.begin(connection.heard)
        if self.running:
            self._outage.failed(reason)
        self._standing.lost()
        if self.available:
            self.available = False
            self._told.tell("bus_down")
        if connection.demoted:
            self.drop(reason)
        if connection.unsuitable is not None:
            self._unsuitable(connection.unsuitable)
        elif connection.refused and "NOPERM" in reason:
            self._rights.look()

    # Within

    def _with_room(self, *, hears: bool = False) -> CommandConnection:
        """The connection, if it has room for one more message. ``hears``: only while the bus is up.

        :meth:`publish` has this in line, for each message. It does not close the batch of this iteration first, and so
        does not count its messages.
        """
        connection = self._sender
        if connection is not None:
            connection.close_batch()
        if connection is None or connection.full or (hears and not self.available):
            raise self._not_published()
        return connection

    def _not_published(self) -> NotPublished:
        if self._sender is None or not self._sender.full:
            return NotPublished("Redis is unavailable")
        bounds = f"{self._in_flight} messages and commands, or {self._in_flight_bytes} bytes of them"
        return NotPublished(f"{bounds}, are waiting for Redis's answer")

    def _same_server(self) -> bool:
        """Whether all connections lead to one server; otherwise drops them: a fail-over is under way."""
        readers = [service.connection for service in self if isinstance(service, Reading)]
        apart = lead_apart(self.commands, self.subscriber, *readers)
        if apart:
            self.drop("its connections lead to different servers")
        return not apart

    def _not_ready(self, failure: Failure, commands: CommandConnection) -> None:
        """What Redis refused, its connection was given up for; lost ones are reported elsewhere. Another fault, such as
        an answer that is none, keeps the bus down just as well, and may not last.
        """
        reason = cause_of(failure)
        if not reason.check(NotPublished, ResponseError):
            commands.give_up(f"it gives odd answers: {reason.getErrorMessage()}")

    def _up(self, commands: CommandConnection, subscriber: SubscriberConnection) -> None:
        if commands is not self.commands or subscriber is not self.subscriber:
            return  # one of them was lost meanwhile, and its successor does all this again
        self.available = True
        self._sender = commands
        self._deafness.end()
        if self._keeps_epoch:
            self._standing.met(commands.server)
        self._backoff.reset()
        self._counters.redis_connects += 1
        if not self._outage.over():
            self.log.info("{name} is there", name=self.server_name)
        self._told.tell("bus_up")


class _Heads(dict[str, bytes]):
    """``PUBLISH``, half written, by the channel."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def __missing__(self, channel: str) -> bytes:
        if len(self) >= HEADS_KEPT:
            self.clear()
        head = self[channel] = publish_head((self._prefix + channel).encode())
        return head


class BusListeners:
    """Who is notified when the connection is established or lost."""

    _log = Logger()

    def __init__(self) -> None:
        self._listeners: list[IBusListener] = []

    def add(self, listener: IBusListener) -> None:
        """Notify it, too."""
        self._listeners.append(listener)

    def tell(self, event: str) -> None:
        """Call this method of all of them."""
        for listener in tuple(self._listeners):
            try:
                getattr(listener, event)()
            except Exception:  # noqa: BLE001  # one listener's fault must not keep it from the others
                self._log.failure("Failed on {event}", event=event)


def _endpoint(
    parent: MultiService, reactor: Any, clock: Any, address: RedisAddress, config: Redis
) -> RedisEndpoint | SentinelEndpoint:
    if address.sentinels:
        endpoint = SentinelEndpoint(reactor, clock, address, config)
        endpoint.setServiceParent(parent)
        return endpoint
    return RedisEndpoint(reactor, address, config.ca, config.ping_timeout)
