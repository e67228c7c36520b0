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
    """Each room's events in order, and the rooms in turn; what comes without a room goes by its socket.

    A user may have as many waiting, and as large ones, as is still free: one alone half of what there is. So one who
    sends without end is refused, and the others wait for one event of that one's rooms each time.
    """

    def __init__(self) -> None:
        self._rooms: OrderedDict[str, deque[tuple[Incoming, int]]] = OrderedDict()
        self._events, self._sizes = Counter[str](), Counter[str]()
        self._free_events, self._free_bytes = EVENTS, SIZE

    def __bool__(self) -> bool:
        return bool(self._rooms)

    def put(self, event: Incoming, size: int) -> bool:
        """Have the event, of so many bytes, wait. ``False``: it cannot."""
        user = event.user_id
        if self._rooms and (self._events[user] >= self._free_events or self._sizes[user] + size > self._free_bytes):
            return False
        self._count(user, 1, size)
        self._rooms.setdefault(event.room_id or event.socket_id, deque()).append((event, size))
        return True

    def take(self) -> Incoming:
        """The next one. Raises :class:`KeyError` when none waits."""
        room, events = self._rooms.popitem(last=False)
        event, size = events.popleft()
        if events:
            self._rooms[room] = events
        self._count(event.user_id, -1, -size)
        return event

    def _count(self, user: str, events: int, size: int) -> None:
        self._free_events -= events
        self._free_bytes -= size
        self._events[user] += events
        self._sizes[user] += size
        if not self._events[user]:
            del self._events[user], self._sizes[user]
