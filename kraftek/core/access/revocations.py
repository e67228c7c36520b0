"""Revocations that were heard, until Redis has forgotten what it had cached.

Used by :mod:`kraftek.core.access.cache`.
"""

from __future__ import annotations

from collections import OrderedDict
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

    ``size``: more are not kept; the oldest goes first.
    """

    def __init__(self, shared: SharedAnswers, size: int, clock: IReactorTime) -> None:
        self._shared = shared
        self._size = size
        self._clock = clock
        self._again = 0.0
        self._uncleared: OrderedDict[tuple[str, str | None], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._uncleared)

    def add(self, user_id: str, room_id: str | None) -> None:
        """Remove the user's cached answers from Redis, before it is read again; or else as soon as it takes that."""
        self._uncleared[user_id, room_id] = None
        self._uncleared.move_to_end((user_id, room_id))
        if len(self._uncleared) > self._size:
            self._uncleared.popitem(last=False)
        self._again = self._clock.seconds() + AGAIN
        Deferred.fromCoroutine(self._shared.clear(user_id, room_id)).addCallback(self._cleared, user_id, room_id)

    def concern(self, user_id: str, room_id: str | None) -> bool:
        """Whether what Redis has for the user in this room may be from before a revocation."""
        return bool(self._uncleared) and not self._uncleared.keys().isdisjoint(((user_id, None), (user_id, room_id)))

    def clear(self, most: int | None = None) -> None:
        """Try again, the oldest first: all of them, or so many."""
        for user_id, room_id in tuple(islice(self._uncleared, most)):
            self.add(user_id, room_id)

    def sweep(self) -> None:
        """Try some again, if the time has come."""
        if self._uncleared and self._again <= self._clock.seconds():
            self.clear(AT_ONCE)

    def _cleared(self, done: bool | None, user_id: str, room_id: str | None) -> None:
        if done:
            self._uncleared.pop((user_id, room_id), None)
        else:
            self._uncleared[user_id, room_id] = None  # an earlier one about the same may have been done
