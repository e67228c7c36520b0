"""When the access of open sockets expires: one look a second finds all that are due. Filled by the access watch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from kraftek.core.session import Session

__all__ = ["ExpiryQueue"]


class ExpiryQueue:
    """Sessions by the second in which the first of their grants expires, in Unix time."""

    def __init__(self, now: float) -> None:
        self._swept = int(now) - 1
        self._seconds: dict[Session, int] = {}
        self._due: defaultdict[int, set[Session]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._seconds)

    def watch(self, session: Session) -> None:
        """The session's grants have changed."""
        self.forget(session)
        grants = session.rooms.values()
        first = min((g.expires_at for g in grants if g.expires_at is not None), default=None)
        if first is not None:
            second = max(int(first), self._swept + 1)
            self._seconds[session] = second
            self._due[second].add(session)

    def forget(self, session: Session) -> None:
        """The session has ended."""
        second = self._seconds.pop(session, None)
        if second is not None:
            self._due[second].discard(session)
            if not self._due[second]:
                del self._due[second]

    def due(self, now: float) -> list[Session]:
        """Remove and return the sessions with a grant that has expired since the last call."""
        sessions: list[Session] = []
        seconds: Iterable[int] = range(self._swept + 1, int(now))
        if int(now) - self._swept > len(self._due):
            # The clock may have been set forward, by years on a machine that began in 1970.
            seconds = sorted(second for second in self._due if second < int(now))
        for second in seconds:
            sessions.extend(self._due.pop(second, ()))
        self._swept = int(now) - 1  # which may be less, for a clock may be set back
        for session in sessions:
            del self._seconds[session]
        return sessions
