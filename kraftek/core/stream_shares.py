"""How full a stream is, and what each user has in it, as far as this process knows.

Made by :mod:`kraftek.core.dispatch`, one for each stream. A user may have as much waiting as is free: so one alone
takes no more than half of a stream, two take a third each, and there is always room for another one. While less than
half of the stream is taken, nobody can meet that. (These are the dynamic thresholds of Choudhury and Hahne, 1998, for
the queues of a switch that share its memory.)

No command asks Redis for it: what a user sends is added up here, and what was handled meanwhile is taken off each
second, from all users alike.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["StreamShares"]

MOST_USERS = 10_000
"""Users of a stream whose events are added up. When there are more, those with little in it are forgotten."""

_LITTLE = 0.001
"""Of the stream: no more than a thousand users have more."""

_UNVERIFIED = 0.05
"""Of the stream: when so much was sent since Redis was looked at, it is looked at again before anybody is refused, and
until its answer comes as much again may be sent by users who have more than their share."""


class StreamShares:
    """Amounts are in bytes. An event counts for as much as its part of the stream is, in entries or in bytes, whichever
    is more. ``look`` has :meth:`seen` called soon.
    """

    __slots__ = (
        "_asked",
        "_bytes",
        "_handled",
        "_length",
        "_look",
        "_room",
        "_seen",
        "_sent",
        "_unit",
        "_users",
        "_weight",
    )

    def __init__(self, max_length: int, max_bytes: int, look: Callable[[], None]) -> None:
        self._length = max_length
        self._bytes = max_bytes
        self._look = look
        self._unit = max_bytes / max_length
        # What was sent so far, until Redis was looked at, and until it was asked again.
        self._sent = self._seen = self._asked = 0.0
        # What would be free if nothing had been sent.
        self._room = float(max_bytes)
        # What each user has waiting, times the weight. When something is handled the weight grows; no number falls.
        self._users: dict[str, float] = {}
        self._weight = 1.0
        self._handled = 0

    def takes(self, user_id: str, size: int) -> bool:
        """Whether the user may send so large an event now, unless the stream is full; then it counts as sent."""
        unit, users, weight = self._unit, self._users, self._weight
        cost = size if size > unit else unit  # noqa: FURB136  # a call of max() costs as much as all the rest
        used = users.get(user_id, 0.0) + cost * weight
        free = self._room - self._sent
        if used > free * weight and free >= cost:  # of a full stream Redis says that it is full
            unverified = self._bytes * _UNVERIFIED
            if self._sent - self._seen <= unverified:
                return False
            self._look()
            if self._sent - self._asked + cost > unverified:
                return False
        self._sent += cost
        users[user_id] = used
        return True

    def asked(self) -> float:
        """Redis is looked at now: to be passed to :meth:`seen` with its answer."""
        self._asked = self._sent
        return self._sent

    def seen(self, asked: float, length: int, waiting: int, handled: int) -> None:
        """So many entries and bytes wait in the stream, and so many bytes were handled in all its time."""
        self._seen = asked
        self._room = asked + self._bytes * (1 - max(length / self._length, waiting / self._bytes))
        handled, self._handled = max(0, handled - self._handled), handled
        if length == 0:
            self._users, self._weight = {}, 1.0
        elif waiting > 0:
            self._weight *= (waiting + handled) / waiting
        if len(self._users) > MOST_USERS or self._weight > 1e100:
            least = self._bytes * _LITTLE * self._weight
            self._users = {user: used / self._weight for user, used in self._users.items() if used > least}
            self._weight = 1.0
