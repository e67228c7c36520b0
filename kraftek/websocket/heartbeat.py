"""Pings to all clients from one sweep, instead of a timer for each (RFC 6455, section 5.5.2)."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

__all__ = ["Heartbeat", "Pinged"]


class Pinged(Protocol):
    """A connection that is pinged. ``heard``: something arrived since the last ping."""

    heard: bool
    gone: bool

    def ping(self) -> None:
        """Send a ping."""

    def silent(self) -> None:
        """Nothing arrived in time after a ping: drop the connection."""


class Heartbeat:
    """Pings each connection every ``interval`` seconds, and drops those silent for ``timeout`` seconds after it.

    Both queues are ordered by time because the intervals are the same for all.
    """

    def __init__(self, clock: IReactorTime, interval: float, timeout: float) -> None:
        self._clock = clock
        self._interval = interval
        self._timeout = timeout
        self._to_ping: deque[tuple[float, Pinged]] = deque()
        self._pinged: deque[tuple[float, Pinged]] = deque()

    def add(self, connection: Pinged) -> None:
        """Ping this connection from now on, until it is ``gone``."""
        self._to_ping.append((self._clock.seconds() + self._interval, connection))

    def sweep(self) -> None:
        """Do what is due. Called a few times a second."""
        now = self._clock.seconds()
        pinged = self._pinged
        while pinged and pinged[0][0] <= now:
            _, connection = pinged.popleft()
            if not connection.gone and not connection.heard:
                connection.silent()
        waiting = self._to_ping
        while waiting and waiting[0][0] <= now:
            _, connection = waiting.popleft()
            if not connection.gone:
                connection.heard = False
                connection.ping()
                pinged.append((now + self._timeout, connection))
                waiting.append((now + self._interval, connection))
