"""The part of :class:`kraftek.client.backend.Backend` that is about what rooms were told before."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar, Unpack

from kraftek.client.frames import check_room
from kraftek.client.history import HistoryOptions
from kraftek.client.recovery import Recovery

__all__ = ["Older"]

P = TypeVar("P")


class Older(ABC, Generic[P]):
    """``_recovery``: that of the conversation; ``_timeout``: of what is asked, in seconds."""

    _recovery: Recovery
    _timeout: float

    def history(self, room: str, **which: Unpack[HistoryOptions]) -> P:
        """Get messages that a room was told before, if the gateway keeps its history: the last ones, or those
        ``before`` a position. Fires with a :class:`~kraftek.client.HistoryPage`, whose ``before`` gets the next older
        one. At most ``limit`` messages, 1 to 1,000; 50 if it is left out. Some may be heard by listeners, too: compare
        the offsets. ``timeout``: as that of a request. Fails and raises as ``request``.
        """
        due = self._now() + self._limit(which.get("timeout"))
        return self._promised(self._recovery.ask(due, room, which.get("before"), which.get("limit")))

    def _begin_with(self, room: str | None, history: int) -> None:
        """So many messages come first when the room is entered. Raises ``ValueError`` for what is no room's name."""
        if room is not None:
            check_room(room)
        if history:
            self._recovery.last[room] = history

    def _limit(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else timeout

    @abstractmethod
    def _now(self) -> float:
        """Seconds of a monotonic clock."""

    @abstractmethod
    def _promised(self, key: str) -> P:
        """What fires when that id is settled."""
