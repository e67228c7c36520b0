"""The connection that listens to Redis, which passes from one version of the gateway to another in the same process.

Used by :mod:`kraftek.daemon.upgrade`. Redis keeps its subscriptions, and what it sends meanwhile waits in the socket.
So nothing is missed, and nothing comes twice. With TLS, whose keys stay in the process, another version listens anew.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any

import msgspec
from twisted.internet.interfaces import IProtocol, IProtocolFactory

from kraftek.bus.redis_bus import RedisBus
from kraftek.bus.subscriber import SubscriberState

__all__ = ["BusMove"]


class BusMove:
    """That of a bus."""

    def __init__(self, bus: RedisBus) -> None:
        self._bus = bus

    @property
    def idle(self) -> bool:
        """Whether Redis is available and has answered everything."""
        commands = self._bus.commands
        return self._bus.available and commands is not None and commands.idle

    def freeze(self) -> bool:
        """Hear nothing more. ``False``: not yet, as :meth:`kraftek.bus.subscriber.SubscriberConnection.freeze`."""
        return self._bus.subscriber is None or self._bus.subscriber.freeze()

    def thaw(self) -> None:
        """Go on."""
        if self._bus.subscriber is not None:
            self._bus.subscriber.thaw()

    def give(self) -> tuple[int, bytes] | None:
        """The descriptor of the frozen connection, and what it is; ``None`` with TLS."""
        subscriber = self._bus.subscriber
        if subscriber is None or self._bus.address.kind == "tls":
            return None
        state = SubscriberState(id=subscriber.id, server=subscriber.server)
        return subscriber.transport.fileno(), msgspec.msgpack.encode(state)

    def take(self, reactor: Any, descriptor: int, given: bytes) -> None:
        """Go on with a connection that another version gave. Before the start of the bus."""
        state = msgspec.msgpack.decode(given, type=SubscriberState)

        def adopted(factory: IProtocolFactory) -> IProtocol | None:
            with socket.socket(fileno=descriptor) as taken, suppress(OSError):  # unless Redis has closed it
                made: IProtocol = reactor.adoptStreamConnection(taken.fileno(), taken.family, factory).protocol
                return made
            return None

        self._bus.listening.adopt(adopted, state)
