"""Checks of open sockets' access that wait: those that could not be answered, and all of them after a gap in listening.

Filled and emptied by :mod:`kraftek.core.access_watch`.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator

from kraftek.core.session import Session

__all__ = ["FLEET_PACE", "Rechecks"]

FLEET_PACE = 2000.0
"""Questions a second of all gateway processes together: after an outage of Redis the access of every socket is checked
again, and the auth service has to handle that."""

RETRY_AFTER = 1.0
"""Seconds until a check that the auth service could not answer is repeated."""

_MOST_AT_ONCE = 5000
"""Sockets that one sweep looks at, however few questions that takes."""

_Place = tuple[Session, str | None]


def _jitter() -> float:
    """By how much a process asks faster or more slowly than its share, so that many do not ask in step."""
    return random.uniform(0.75, 1.25)  # noqa: S311  # it keeps no secret


class Rechecks:
    """Sessions and rooms in the order in which they are to be checked: those whose access is suspended first.

    ``question``: what a check asks, or ``None`` if it asks nothing. Equal ones at a time count as one.
    """

    def __init__(
        self, question: Callable[[Session, str | None], Hashable], jitter: Callable[[], float] = _jitter
    ) -> None:
        self._question = question
        self._jitter = jitter
        self._swept = 0.0
        self._allowance = 0.0
        self._suspended: OrderedDict[_Place, float] = OrderedDict()
        self._unanswered: OrderedDict[_Place, float] = OrderedDict()
        self._doubtful: OrderedDict[_Place, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._suspended) + len(self._unanswered) + len(self._doubtful)

    def doubt(self, session: Session, room_id: str | None) -> None:
        """Check it when its turn has come."""
        if (session, room_id) not in self._suspended:
            self.forget(session, room_id)
            self._doubtful[session, room_id] = 0.0

    def retry(self, session: Session, room_id: str | None, now: float, *, suspended: bool) -> None:
        """Check it again a while after ``now``, by the clock."""
        self.forget(session, room_id)
        (self._suspended if suspended else self._unanswered)[session, room_id] = now + RETRY_AFTER

    def forget(self, session: Session, room_id: str | None) -> None:
        """It has been checked."""
        for places in (self._suspended, self._unanswered, self._doubtful):
            places.pop((session, room_id), None)

    def due(self, now: float, gateways: int, *, settled: bool) -> Iterator[tuple[Session, str | None, bool]]:
        """Remove and return those to check at ``now``, and whether they are suspended, at this process's share of the
        pace of so many. Unless ``settled``, doubtful ones wait.
        """
        share = FLEET_PACE / gateways
        self._allowance = min(max(share / 2, 1), self._allowance + (now - self._swept) * share * self._jitter())
        self._swept = now
        asked: set[Hashable] = set()
        most = _MOST_AT_ONCE
        for places in (self._suspended, self._doubtful, self._unanswered):
            if places is self._doubtful and not settled:
                continue
            while places and most:
                (session, room_id), at = next(iter(places.items()))
                question = self._question(session, room_id)
                asks = question is not None and question not in asked
                if at > now or (asks and self._allowance < 1):
                    break
                del places[session, room_id]
                most -= 1
                if asks:
                    asked.add(question)
                    self._allowance -= 1
                yield session, room_id, places is self._suspended
