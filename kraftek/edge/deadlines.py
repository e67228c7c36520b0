"""How long the connections of :mod:`kraftek.edge.http_server` may take for what they are at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["SWEEP_INTERVAL", "Deadlines", "Limited"]

SWEEP_INTERVAL = 0.25
"""Seconds between two looks for deadlines that have passed: they are that exact."""


class Limited(Protocol):
    """A connection. ``missed`` is called with it when its ``deadline`` has passed. ``rests``: between two requests."""

    deadline: float
    missed: Callable[[Any], None]
    rests: bool

    def loseConnection(self) -> None:
        """Close it in order."""


class Deadlines:
    """The connections that have one, looked at in one sweep every quarter of a second while there are any."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._clock = reactor
        self._channels: set[Limited] = set()
        self._next: IDelayedCall | None = None

    def add(self, channel: Limited, seconds: float) -> None:
        """The connection has so many seconds from now on, unless it is removed before."""
        channel.deadline = self._clock.seconds() + seconds
        self._channels.add(channel)
        if self._next is None:
            self._next = self._clock.callLater(SWEEP_INTERVAL, self._sweep)

    def remove(self, channel: Limited) -> None:
        """The connection has all the time."""
        self._channels.discard(channel)
        if not self._channels and self._next is not None:
            self._next.cancel()
            self._next = None

    def end_rests(self) -> None:
        """Close the connections between two requests."""
        for channel in [channel for channel in self._channels if channel.rests]:
            channel.loseConnection()

    def _sweep(self) -> None:
        self._next = self._clock.callLater(SWEEP_INTERVAL, self._sweep)
        now = self._clock.seconds()
        for channel in [channel for channel in self._channels if channel.deadline <= now]:
            self.remove(channel)
            channel.missed(channel)
