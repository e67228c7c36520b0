"""Sessions whose token has expired: each has a while to show another one, and keeps its place until then.

Used by :mod:`kraftek.core.access_watch`.
"""

from __future__ import annotations

from collections import OrderedDict

from kraftek.core.session import Session

__all__ = ["GRACE", "ExpiredTokens"]

GRACE = 10.0
"""Seconds for that: as long as a new client has to authenticate by default. After them the socket is closed."""


class ExpiredTokens:
    """The sessions by when their time is over, the earliest first. Times are in seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._ends: OrderedDict[Session, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ends)

    def begin(self, session: Session, now: float) -> None:
        """A grant of the session has expired."""
        self._ends.setdefault(session, now + GRACE)

    def judge(self, session: Session) -> None:
        """The session's grants have changed."""
        if session in self._ends and session.rooms and not any(held.expired for held in session.rooms.values()):
            del self._ends[session]

    def forget(self, session: Session) -> None:
        """The session has ended, or is in no room and has shown another token."""
        self._ends.pop(session, None)

    def has(self, session: Session) -> bool:
        """Whether the session has been told."""
        return session in self._ends

    def due(self, now: float) -> list[Session]:
        """Remove and return those whose time is over."""
        due: list[Session] = []
        while self._ends and next(iter(self._ends.values())) <= now:
            due.append(self._ends.popitem(last=False)[0])
        return due
