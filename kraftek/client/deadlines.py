"""When a client has to act again. Used by :class:`kraftek.client.conversation.Conversation`."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

__all__ = ["PATIENCE", "Deadlines"]

PATIENCE = 10.0
"""Seconds from opening a socket to being authenticated on it, and until the gateway answers for a room or a token: as
long as it waits for a token itself."""


class Deadlines:
    """One time for each name. Times are in seconds, of any clock that does not jump."""

    def __init__(self) -> None:
        self._dues: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        """Entries in memory: at most twice the names that have a time, and a few more."""
        return len(self._heap)

    def set(self, name: str, due: float) -> None:
        """Set the time of the name."""
        self._dues[name] = due
        heappush(self._heap, (due, name))
        # Most requests are answered long before their time-out: their entries are removed here.
        if len(self._heap) > 2 * len(self._dues) + 64:
            self._heap = [(due, name) for name, due in self._dues.items()]
            heapify(self._heap)

    def of(self, name: str) -> float | None:
        """The time of the name, if it has one."""
        return self._dues.get(name)

    def extend(self, name: str, due: float) -> float:
        """As :meth:`set`, unless it has a later time. Returns its time."""
        due = max(due, self._dues.get(name, due))
        self.set(name, due)
        return due

    def cancel(self, name: str) -> None:
        """Remove the time of the name, if it has one."""
        self._dues.pop(name, None)

    def clear(self) -> None:
        """Remove all times."""
        self._dues.clear()
        self._heap.clear()

    def first(self) -> float | None:
        """The earliest time; ``None`` when there is none."""
        while self._heap and self._dues.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, now: float) -> str | None:
        """Remove and return the name that was due first; ``None`` when none is due by ``now``."""
        due = self.first()
        if due is None or due > now:
            return None
        _, name = heappop(self._heap)
        del self._dues[name]
        return name
