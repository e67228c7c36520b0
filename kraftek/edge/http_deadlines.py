"""The times by which the connections of a port must have done what they are doing. Made by
:mod:`kraftek.edge.http_server`.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall, IReactorTime

__all__ = ["SWEEP_INTERVAL", "Deadlines"]

SWEEP_INTERVAL = 0.25
"""Seconds between two looks for deadlines that have passed: they are that exact."""


class Timed(Protocol):
    """A connection. ``missed`` is called with it when its ``deadline`` has passed. It ``rests`` between requests."""

    deadline: float
    missed: Any
    rests: bool

    def loseConnection(self) -> None:
        """Close it."""


class Deadlines:
    """The connections that have one, looked at in one sweep every quarter of a second while there are any."""

    def __init__(self, reactor: IReactorTime) -> None:
        self._clock = reactor
        self._channels: set[Timed] = set()
        self._next: IDelayedCall | None = None

    def add(self, channel: Timed, seconds: float) -> None:
        """The connection has so many seconds from now on, unless it is removed before."""
        channel.deadline = self._clock.seconds() + seconds
        self._channels.add(channel)
        if self._next is None:
            self._next = self._clock.callLater(SWEEP_INTERVAL, self._sweep)

    def remove(self, channel: Timed) -> None:
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
