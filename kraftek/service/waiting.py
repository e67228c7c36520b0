"""The events over Pub/Sub that wait until a service has time for them. Used by :mod:`kraftek.service.sources`."""

from __future__ import annotations

from collections import Counter, deque
from heapq import heappop, heappush, nlargest
from itertools import count
from typing import Final

from kraftek.service.processor import Incoming

__all__ = ["EVENTS", "SIZE", "Waiting"]

EVENTS: Final = 10_000
"""Events that may wait."""

SIZE: Final = 64 * 1024 * 1024
"""Bytes that they may have together."""


LEAST: Final = 0.0001
"""Seconds that an event counts for at least."""

FORGOTTEN: Final = 1000
"""Users with nothing waiting whose time is known, beyond which those are forgotten who have had the least."""


class Waiting:
    """Each user's events in order, and the users in turn; what comes from no user goes by the service that sent it.

    Next is who has had the least of the service's time since it has something waiting: one whose events take long waits
    for those whose events do not. (It is start-time fair queueing, Goyal, Vin and Cheng, 1996.)

    A user may have as many waiting, and as large ones, as is still free: one alone half of what there is. So one who
    sends without end, from however many sockets and into whose rooms, is refused, and the others wait for one event of
    that one each time.
    """

    def __init__(self) -> None:
        self._users: dict[str, deque[tuple[Incoming, int]]] = {}
        # When it is whose turn, in seconds of the service's time; for each user with something waiting one entry.
        self._turns: list[tuple[float, int, str]] = []
        self._numbers = count()
        self._had: dict[str, float] = {}
        self._now = 0.0
        self._events, self._sizes = Counter[str](), Counter[str]()
        self._free_events, self._free_bytes = EVENTS, SIZE

    def __len__(self) -> int:
        return EVENTS - self._free_events

    def put(self, event: Incoming, size: int) -> bool:
        """Have the event, of so many bytes, wait. ``False``: it cannot."""
        user = _who(event)
        if self._users and (self._events[user] >= self._free_events or self._sizes[user] + size > self._free_bytes):
            return False
        self._count(user, 1, size)
        events = self._users.get(user)
        if events is None:
            events = self._users[user] = deque()
            self._had[user] = max(self._had.get(user, 0.0), self._now)
            self._wait(user)
        events.append((event, size))
        return True

    def take(self) -> Incoming:
        """The next one. Raises :class:`IndexError` when none waits."""
        while True:
            at, _, user = heappop(self._turns)
            if self._had[user] <= at:
                break
            self._wait(user)  # it has had more since
        self._now = at
        events = self._users[user]
        event, size = events.popleft()
        self._had[user] += LEAST
        if events:
            self._wait(user)
        else:
            del self._users[user]
            self._forget()
        self._count(user, -1, -size)
        return event

    def charge(self, event: Incoming, seconds: float) -> None:
        """To handle an event that was taken took so long."""
        user = _who(event)
        self._had[user] = self._had.get(user, self._now) + seconds

    def _forget(self) -> None:
        had, users = self._had, self._users
        if not users:
            had.clear()
            self._now = 0.0
        elif len(had) > len(users) + FORGOTTEN:
            idle = nlargest(FORGOTTEN // 2, had.keys() - users.keys(), had.__getitem__)
            self._had = {user: had[user] for user in (*users, *idle)}

    def _wait(self, user: str) -> None:
        heappush(self._turns, (self._had[user], next(self._numbers), user))

    def _count(self, user: str, events: int, size: int) -> None:
        self._free_events -= events
        self._free_bytes -= size
        self._events[user] += events
        self._sizes[user] += size
        if not self._events[user]:
            del self._events[user], self._sizes[user]


def _who(event: Incoming) -> str:
    return event.user_id or event.source or ""
