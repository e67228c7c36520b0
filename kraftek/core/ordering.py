"""Where the order is in which rooms are told: :mod:`kraftek.contract.order`. It is certain as long as this process has
heard all that was told to the rooms that it follows.

Called by :mod:`kraftek.core.following`, which finds what is missing, and only where Socket.IO clients are recovered.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred

from kraftek.contract.errors import NotPublished, Refusal
from kraftek.contract.interfaces import IBus, ITopicLogs
from kraftek.contract.order import UNCERTAIN, Order, number_in, same_order

__all__ = ["Ordering"]


class Ordering:
    """``order`` is what clients are told; ``None``: nobody is, and nothing here does anything. ``compare`` finds what
    is missing of all rooms: to be set before Redis is available. ``owed``: how many things stand in the way elsewhere.

    It is certain again when all rooms were compared, nothing is read any more, Redis has said where the order is, and
    all was handled that it had sent to us by then.
    """

    def __init__(self, bus: IBus, logs: ITopicLogs, order: Order | None) -> None:
        self.order = order
        self.compare: Callable[[], Deferred[bool]] | None = None
        self.owed = 0
        self._bus = bus
        self._logs = logs
        self._heard = UNCERTAIN
        self._incomplete: set[str] = set()
        self._disturbances = 1
        self._compared = 0
        self._settling = False

    def heard(self, word: str) -> str:
        """A room was told this. Returns what its clients are told with it, if it is delivered next."""
        order = self.order
        if order is None:
            return word
        if order.certain and not same_order(word, order.now):
            self.disturbed()
        self._heard = word
        if order.now is not UNCERTAIN:
            order.now = word
            return word
        return UNCERTAIN

    def again(self, word: str) -> str:
        """It was heard before, and is delivered only now."""
        return word if self.order is None or self.order.certain else UNCERTAIN

    def disturbed(self) -> None:
        """Anything may be missing."""
        self._disturbances += 1
        self.doubt()

    def doubt(self) -> None:
        """Something is missing, or stands in the way."""
        if self.order is not None:
            self.order.now = UNCERTAIN

    def incomplete(self, room_id: str) -> None:
        """Something may be missing of this room: it is read."""
        self._incomplete.add(room_id)
        self.doubt()

    def complete(self, room_id: str) -> None:
        """It was read, or nobody is there any more."""
        self._incomplete.discard(room_id)

    def reached(self, word: str) -> None:
        """All up to there was handled."""
        order = self.order
        if order is not None and order.certain:
            order.now = _later(order.now, word)

    def sweep(self) -> bool:
        """Called several times a second: find out, if it is not certain. Returns whether it begins with that."""
        order = self.order
        if order is None or order.certain or self._settling or not self._bus.available:
            return False
        self._settling = True
        Deferred.fromCoroutine(self._settle(order)).addBoth(self._settled)
        return True

    async def _settle(self, order: Order) -> None:
        disturbances = self._disturbances
        try:
            if self._compared != disturbances and self.compare is not None:
                if not await self.compare():
                    return
                self._compared = disturbances
            if self._incomplete or self.owed:
                return
            word = await self._logs.order()
            await self._bus.settled()
        except (NotPublished, Refusal):
            return
        if word and disturbances == self._disturbances and not self._incomplete and not self.owed:
            order.now = _later(word, self._heard)

    def _settled(self, result: object) -> object:
        self._settling = False
        return result


def _later(word: str, other: str) -> str:
    """The later one, where they can be compared; otherwise the first."""
    if same_order(word, other):
        return max(word, other, key=lambda each: number_in(each) or 0)
    return word
