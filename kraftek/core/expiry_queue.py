"""When the access of open sockets is to be checked: one look finds all that are due. Filled by the access watch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from math import inf

from kraftek.core.session import Session

__all__ = ["ExpiryQueue"]


_A_SECOND = 4
"""Intervals a second: as many as there are sweeps."""


class ExpiryQueue:
    """Sessions by the quarter of a second in which the first of their grants is due, in Unix time."""

    def __init__(self, now: float) -> None:
        self._swept = int(now * _A_SECOND) - 1
        self._intervals: dict[Session, int] = {}
        self._due: defaultdict[int, dict[Session, None]] = defaultdict(dict)

    def __len__(self) -> int:
        return len(self._intervals)

    def watch(self, session: Session) -> None:
        """The session's grants have changed."""
        self.forget(session)
        first = session.due
        if first != inf:
            interval = max(int(first * _A_SECOND), self._swept + 1)
            self._intervals[session] = interval
            self._due[interval][session] = None

    def forget(self, session: Session) -> None:
        """The session has ended."""
        interval = self._intervals.pop(session, None)
        if interval is not None:
            self._due[interval].pop(session, None)
            if not self._due[interval]:
                del self._due[interval]

    def due(self, now: float) -> list[Session]:
        """Remove and return the sessions with a grant that was due since the last call."""
        sessions: list[Session] = []
        current = int(now * _A_SECOND)
        intervals: Iterable[int] = range(self._swept + 1, current)
        if current - self._swept > len(self._due):
            # The clock may have been set forward, by years on a machine that began in 1970.
            intervals = sorted(interval for interval in self._due if interval < current)
        for interval in intervals:
            sessions.extend(self._due.pop(interval, ()))
        self._swept = current - 1  # which may be less, for a clock may be set back
        for session in sessions:
            del self._intervals[session]
        return sessions
