"""The end of a reactor turn: what was collected while reading is written once, after all reading.

Used by the WebSocket outbox and the Redis publisher: one scheduled call a turn, however many take part.
"""

from __future__ import annotations

from typing import Protocol

from twisted.internet.interfaces import IReactorTime

__all__ = ["Flushable", "Turn"]


class Flushable(Protocol):
    """Somebody with something to write at the end of the turn. ``flush`` must not raise."""

    def flush(self) -> None: ...


class Turn:
    """Collects who has something to write in this reactor turn."""

    __slots__ = ("_reactor", "_waiting")

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._waiting: list[Flushable] = []

    def at_end(self, flushable: Flushable) -> None:
        """Call ``flushable.flush()`` once at the end of this turn. Callers see to it that they ask once."""
        waiting = self._waiting
        if not waiting:
            self._reactor.callLater(0, self._end)
        waiting.append(flushable)

    def _end(self) -> None:
        waiting, self._waiting = self._waiting, []
        for flushable in waiting:
            flushable.flush()
