"""Sessions whose token has expired: each has a while to show another one, and keeps its place until then.

Used by :mod:`kraftek.core.access_watch`.
"""

from __future__ import annotations

from kraftek.core.session import Session

__all__ = ["GRACE", "ExpiredTokens"]

GRACE = 10.0
"""Seconds for that: as long as a new client has to authenticate by default. After them the socket is closed."""


class ExpiredTokens:
    """The sessions by when their time is over, in seconds of a monotonic clock."""

    def __init__(self) -> None:
        self._ends: dict[Session, float] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def begin(self, session: Session, now: float) -> None:
        """A grant of the session has expired."""
        self._ends.setdefault(session, now + GRACE)

    def judge(self, session: Session) -> None:
        """The session's grants have changed."""
        if session in self._ends and session.asked and not any(held.expired for held in session.rooms.values()):
            del self._ends[session]

    def forget(self, session: Session) -> None:
        """The session has ended, or is in no room and has shown another token."""
        self._ends.pop(session, None)

    def has(self, session: Session) -> bool:
        """Whether the session has been told."""
        return session in self._ends

    def due(self, now: float) -> list[Session]:
        """Remove and return those whose time is over."""
        due = [session for session, end in self._ends.items() if end <= now]
        for session in due:
            del self._ends[session]
        return due

    def end(self, session: Session) -> float | None:
        """When its time is over."""
        return self._ends.get(session)

    def restore(self, session: Session, end: float) -> None:
        """Go on with a session of another version."""
        self._ends[session] = end
