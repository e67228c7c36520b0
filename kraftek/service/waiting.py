"""The events over Pub/Sub that wait until a service has time for them. Used by :mod:`kraftek.service.sources`."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from typing import Final

from kraftek.service.processor import Incoming

__all__ = ["EVENTS", "SIZE", "Waiting"]

EVENTS: Final = 10_000
"""Events that may wait."""

SIZE: Final = 64 * 1024 * 1024
"""Bytes that they may have together."""


class Waiting:
    """Each user's events in order, and the users in turn; what comes from no user goes by the service that sent it.

    A user may have as many waiting, and as large ones, as is still free: one alone half of what there is. So one who
    sends without end, from however many sockets and into whose rooms, is refused, and the others wait for one event of
    that one each time.
    """

    def __init__(self) -> None:
        self._users: OrderedDict[str, deque[tuple[Incoming, int]]] = OrderedDict()
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
        self._users.setdefault(user, deque()).append((event, size))
        return True

    def take(self) -> Incoming:
        """The next one. Raises :class:`KeyError` when none waits."""
        user, events = self._users.popitem(last=False)
        event, size = events.popleft()
        if events:
            self._users[user] = events
        self._count(user, -1, -size)
        return event

    def _count(self, user: str, events: int, size: int) -> None:
        self._free_events -= events
        self._free_bytes -= size
        self._events[user] += events
        self._sizes[user] += size
        if not self._events[user]:
            del self._events[user], self._sizes[user]


def _who(event: Incoming) -> str:
    return event.user_id or event.source or ""
