"""Revocations that were heard, until Redis has forgotten what it had cached.

Used by :mod:`kraftek.core.access.cache`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from kraftek.core.access.redis import SharedAnswers

__all__ = ["Revocations"]

AGAIN = 1.0
"""Seconds between two attempts to clear what Redis refused to forget."""

AT_ONCE = 100
"""Clearings that are tried again at a time: they take us ten milliseconds. The next begin as these are answered."""


class Revocations:
    """Each user whose cached access is to be removed from Redis, in one room or, for ``None``, in all.

    ``size``: with more than these, all are forgotten, and ``too_many`` is called. ``cleared`` is called with a user and
    the digests of the tokens whose keys have changed, and are not tracked any more.
    """

    def __init__(
        self,
        shared: SharedAnswers,
        size: int,
        clock: IReactorTime,
        cleared: Callable[[str, Sequence[str]], None],
        too_many: Callable[[], None],
    ) -> None:
        self._shared = shared
        self._size = size
        self._clock = clock
        self._cleared = cleared
        self._too_many = too_many
        self._again = 0.0
        self._uncleared: OrderedDict[tuple[str, str | None], None] = OrderedDict()
        # Those of which it is not known yet whether they can be done now, and how many of them Redis was asked to do.
        self._untried: deque[tuple[str, str | None]] = deque()
        self._asked = 0

    def __len__(self) -> int:
        return len(self._uncleared)

    def add(self, user_id: str, room_id: str | None) -> None:
        """Remove the user's cached answers from Redis, before it is read again; or else as soon as it takes that."""
        self._uncleared[user_id, room_id] = None
        self._uncleared.move_to_end((user_id, room_id))
        if len(self._uncleared) > self._size:
            self._uncleared.clear()
            self._too_many()
        self._try(user_id, room_id)

    def concern(self, user_id: str, room_id: str | None) -> bool:
        """Whether what Redis has for the user in this room may be from before a revocation."""
        return bool(self._uncleared) and not self._uncleared.keys().isdisjoint(((user_id, None), (user_id, room_id)))

    def pending(self) -> frozenset[tuple[str, str | None]]:
        """Those that Redis has not done."""
        return frozenset(self._uncleared)

    def clear(self) -> None:
        """Try all of them again, the oldest first, by and by."""
        self._untried = deque(self._uncleared)
        self._try_some()

    def sweep(self) -> None:
        """Try some again, if the time has come."""
        if self._uncleared and self._again <= self._clock.seconds():
            if self._untried:
                self._try_some()
            else:
                self.clear()

    def _try(self, user_id: str, room_id: str | None) -> Deferred[bool]:
        self._again = self._clock.seconds() + AGAIN
        trying = Deferred.fromCoroutine(self._shared.clear(user_id, room_id))
        return trying.addCallback(self._tried, user_id, room_id)

    def _try_some(self) -> None:
        for _ in range(AT_ONCE - self._asked):
            if not self._untried:
                return
            entry = self._untried.popleft()
            if entry in self._uncleared:
                self._asked += 1
                self._uncleared.move_to_end(entry)
                self._try(*entry).addCallback(self._try_next)

    def _try_next(self, done: bool) -> None:
        self._asked -= 1
        if done:  # otherwise Redis is away or refuses: the others are tried when the time has come
            self._try_some()

    def _tried(self, digests: list[str] | None, user_id: str, room_id: str | None) -> bool:
        if digests is None:
            # An earlier one about the same may have been done. What was too many once is not kept again.
            if len(self._uncleared) < self._size:
                self._uncleared[user_id, room_id] = None
            return False
        self._uncleared.pop((user_id, room_id), None)
        if digests:
            self._cleared(user_id, digests)
        return True
