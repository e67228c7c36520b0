"""Pings to all clients from one sweep, instead of a timer for each (RFC 6455, section 5.5.2)."""

from __future__ import annotations

from math import ceil
from typing import Protocol

from twisted.internet.interfaces import IReactorTime

__all__ = ["Heartbeat", "Pinged"]

_SLOTS = 64
"""Parts of an interval: so exact are its times, and so evenly are pings spread over it."""

_SHORTEST = 1.0
"""Seconds that a time-out is at least: some sweeps, because an answer is not noticed before the next one."""


class Pinged(Protocol):
    """A connection that is pinged. ``heard``: something arrived since the last ping. ``slot`` is the heartbeat's."""

    heard: bool
    slot: int

    def ping(self) -> None:
        """Send a ping."""

    def silent(self) -> None:
        """Nothing arrived in time after a ping: drop the connection."""


class Heartbeat:
    """Pings each connection every ``interval`` seconds, and drops those silent for ``timeout`` seconds after it.

    A wheel: each connection is in one slot, and as time passes the slots are pinged one after the other. ``timeout``
    is shorter than ``interval``, so that at most one ping waits for its answer.
    """

    def __init__(self, clock: IReactorTime, interval: float, timeout: float) -> None:
        self._clock = clock
        self._width = interval / _SLOTS
        self._lag = min(ceil(max(timeout, _SHORTEST) / self._width), _SLOTS - 1)
        self._wheel: list[set[Pinged]] = [set() for _ in range(_SLOTS)]
        self._done = self._position()

    def add(self, connection: Pinged) -> None:
        """Ping this connection from now on, for the first time after one interval."""
        connection.slot = self._done % _SLOTS
        self._wheel[connection.slot].add(connection)

    def restore(self, connection: Pinged, slot: int) -> None:
        """Go on with a connection that had this slot in another version."""
        connection.slot = slot % _SLOTS
        connection.heard = True
        self._wheel[connection.slot].add(connection)

    def remove(self, connection: Pinged) -> None:
        """The connection was lost."""
        self._wheel[connection.slot].discard(connection)

    def sweep(self) -> None:
        """Do what is due. Called a few times a second."""
        now = self._position()
        if not 0 <= now - self._done < self._lag:
            # The process was paused, or its clock was set: missing answers are not the clients' fault.
            self._done = now
            for slot in self._wheel:
                for connection in slot:
                    connection.heard = True
        while self._done < now:
            self._done += 1
            for connection in tuple(self._wheel[(self._done - self._lag) % _SLOTS]):
                if not connection.heard:
                    connection.silent()
            for connection in self._wheel[self._done % _SLOTS]:
                connection.heard = False
                connection.ping()

    def _position(self) -> int:
        return int(self._clock.seconds() / self._width)
