"""Services in the gateway's own process, whose events and answers do not go through Redis.

Made by :mod:`kraftek.daemon.lifecycle` for :mod:`kraftek.gateway`. They are instances like those of the service kit,
over the gateway's own connections; :mod:`kraftek.core.local_dispatch` hands them the events of this gateway.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from msgspec.structs import replace
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList

from kraftek.bus import RedisBus
from kraftek.contract.accounts import Accounts
from kraftek.contract.errors import ConfigError
from kraftek.contract.interfaces import IServiceRegistry
from kraftek.contract.names import GATEWAY_NAME, is_reserved, reply_channel
from kraftek.contract.settings import Config, Registration
from kraftek.core.dispatch import Dispatch
from kraftek.core.local_dispatch import Listeners, LocalDispatch
from kraftek.service.commits import Command
from kraftek.service.handling import Entry, Handling
from kraftek.service.instance import Instance
from kraftek.service.processor import EventProcessor
from kraftek.service.twisted import TwistedBackend

__all__ = ["LocalServices", "with_services"]


def with_services(config: Config, processors: Sequence[EventProcessor]) -> Config:
    """With a registration for each that has none: it replies. Their handlers may take as long as those say. Raises
    :class:`ConfigError`.
    """
    registered = {service.name: service for service in config.services}
    mistakes: list[str] = []
    for processor in processors:
        mistakes += (f"service {processor.name}: expected {text}" for text in _mistakes(processor, config, registered))
        channel = processor.channel.removeprefix(config.redis.prefix)
        own = Registration(name=processor.name, channel=channel, reply=True)
        processor.registered(registered.setdefault(processor.name, own).timeout)
    names = [processor.name for processor in processors]
    mistakes += (f"service {name}: expected one processor" for name in {*names} if names.count(name) > 1)
    if mistakes:
        raise ConfigError(mistakes)
    return replace(config, services=(*registered.values(),))


def _mistakes(processor: EventProcessor, config: Config, registered: dict[str, Registration]) -> list[str]:
    redis, given = config.redis, registered.get(processor.name)
    channel = processor.channel.removeprefix(redis.prefix)
    mistakes = []
    if processor.name == GATEWAY_NAME or is_reserved(channel):
        mistakes.append(f"a name and a channel that are none of the gateway's own, found {channel!r}")
    if processor.transport != "pubsub":
        mistakes.append('transport "pubsub" in the gateway\'s process: a stream is read by an EventService beside it')
    if processor.prefix != redis.prefix:
        mistakes.append(f"the prefix {redis.prefix!r} of redis.prefix, found {processor.prefix!r}")
    elif processor.broadcast != redis.prefix + redis.broadcast:
        mistakes.append(f"the channel {redis.broadcast!r} of redis.broadcast, found {processor.broadcast!r}")
    if given is not None and (given.channel, given.transport) != (channel, "pubsub"):
        mistakes.append(f'channel {channel!r} and transport "pubsub" in its registration, as in this process')
    return mistakes


class LocalServices(Service):
    """The services while the gateway runs. ``listeners``: by their channels, who takes their events, if anybody does.

    ``deliver`` takes what they send to this gateway alone; it is to be set before any is handled.
    """

    def __init__(
        self, reactor: Any, config: Config, processors: Sequence[EventProcessor], bus: RedisBus, gateway_id: str
    ) -> None:
        prefix = config.redis.prefix
        self.deliver: Callable[[bytes], None]
        self.listeners: Listeners = {each.channel.removeprefix(prefix): None for each in processors}
        self._bus, self._clock, self._most_bytes = bus, reactor, config.redis.in_flight_bytes
        backend = _Backend(reactor, config, bus, self.listeners)
        handling = partial(_Handling, own=prefix + reply_channel(gateway_id), deliver=self._delivered)
        # Their registrations were compared with them when the gateway was made: with_services.
        self._instances = [Instance(processor, backend, handling, compares=False) for processor in processors]

    def dispatch(self, registry: IServiceRegistry, accounts: Accounts) -> Dispatch:
        """What hands them their events: without services the usual one."""
        if not self.listeners:
            return Dispatch(registry, self._bus)
        most = self._most_bytes
        return LocalDispatch(registry, self._bus, self._clock, accounts, self.listeners, most_bytes=most)

    def _delivered(self, body: bytes) -> None:
        self.deliver(body)

    def startService(self) -> None:
        """At once: Redis need not be there."""
        super().startService()
        for instance in self._instances:
            instance.start()

    def stopService(self) -> Deferred[Any]:
        """Finish the events in hand, within the ``grace`` of each service."""
        super().stopService()
        return DeferredList([Deferred.fromCoroutine(instance.stop()) for instance in self._instances])


class _Backend(TwistedBackend):
    """Has channels on the gateway's bus: whatever is published there, by another gateway, say, is handled here too."""

    def __init__(self, reactor: Any, config: Config, bus: RedisBus, listeners: Listeners) -> None:
        super().__init__(reactor, config.redis, bus)
        self._prefix = config.redis.prefix
        self._listeners = listeners

    async def subscribe(self, channel: str, listener: Callable[[bytes], None]) -> None:
        """Returns at once, as the gateway is ready once its bus is up with all channels, or waits no longer."""
        name = channel.removeprefix(self._prefix)
        self._bus.subscribe(name, listener)
        if name in self._listeners:
            self._listeners[name] = listener

    def unsubscribe(self, channel: str) -> Coroutine[Any, Any, None]:
        name = channel.removeprefix(self._prefix)
        if name in self._listeners:
            self._listeners[name] = None
        return super().unsubscribe(name)


class _Handling(Handling):
    """``own``: the reply channel of this gateway. What goes there is handed to ``deliver``, once Redis has the rest."""

    def __init__(self, *args: Any, own: str, deliver: Callable[[bytes], None]) -> None:
        super().__init__(*args)
        self._own = own
        self._deliver = deliver

    async def commit(self, entry: Entry | None, commands: Sequence[Command]) -> bool:
        here: list[bytes] = []
        others: list[Command] = []
        heard = False
        for command in commands:
            if heard and command.when == "unheard":
                continue
            heard = command.parts[:2] == ("PUBLISH", self._own)
            if heard:
                here.append(command.parts[2])  # type: ignore[arg-type]  # a message is bytes
            else:
                others.append(command)
        done = await super().commit(entry, others)
        for body in here:
            self._deliver(body)
        return done
