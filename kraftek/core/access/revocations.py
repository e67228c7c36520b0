"""Revocations that were heard, until Redis has forgotten what it had cached.

Used by :mod:`kraftek.core.access.cache`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from kraftek.core.access.redis import SharedAnswers

__all__ = ["Revocations"]

AGAIN = 1.0
"""Seconds between two attempts to clear what Redis refused to forget."""

AT_ONCE = 100
"""Clearings that are tried again at a time."""


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

    def __len__(self) -> int:
        return len(self._uncleared)

    def add(self, user_id: str, room_id: str | None) -> None:
        """Remove the user's cached answers from Redis, before it is read again; or else as soon as it takes that."""
        self._uncleared[user_id, room_id] = None
        self._uncleared.move_to_end((user_id, room_id))
        if len(self._uncleared) > self._size:
            self._uncleared.clear()
            self._too_many()
        self._again = self._clock.seconds() + AGAIN
        Deferred.fromCoroutine(self._shared.clear(user_id, room_id)).addCallback(self._tried, user_id, room_id)

    def concern(self, user_id: str, room_id: str | None) -> bool:
        """Whether what Redis has for the user in this room may be from before a revocation."""
        return bool(self._uncleared) and not self._uncleared.keys().isdisjoint(((user_id, None), (user_id, room_id)))

    def pending(self) -> frozenset[tuple[str, str | None]]:
        """Those that Redis has not done."""
        return frozenset(self._uncleared)

    def clear(self, most: int | None = None) -> None:
        """Try again, the oldest first: all of them, or so many."""
        for user_id, room_id in tuple(islice(self._uncleared, most)):
            self.add(user_id, room_id)

    def sweep(self) -> None:
        """Try some again, if the time has come."""
        if self._uncleared and self._again <= self._clock.seconds():
            self.clear(AT_ONCE)

    def _tried(self, digests: list[str] | None, user_id: str, room_id: str | None) -> None:
        if digests is None:
            # An earlier one about the same may have been done. What was too many once is not kept again.
            if len(self._uncleared) < self._size:
                self._uncleared[user_id, room_id] = None
            return
        self._uncleared.pop((user_id, room_id), None)
        if digests:
            self._cleared(user_id, digests)
