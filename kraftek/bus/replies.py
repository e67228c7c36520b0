"""What came of Redis together, handed out in time: whoever else this process serves has their turns in between.

Made by :class:`kraftek.bus.connections.RedisConnection`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from twisted.internet.interfaces import IReactorTime
from txredisapi import InvalidData

__all__ = ["INCOMPLETE", "ODD", "Connection", "Replies", "oddly"]

INCOMPLETE: Final = object()
"""What the reader gives as long as a reply is not all there. Its own ``False`` is also a reply, of RESP3."""

ODD: Final = (InvalidData, LookupError, TypeError, ValueError)
"""What is raised where Redis said something odd, such as an answer to nothing. Waiters and listeners raise nothing."""

_FEW = 4
"""Replies that are handed out at once, however long that takes: most come in such numbers."""

_STEP = 0.002
"""Seconds for which others are handed out at a time, before the reactor looks at its sockets again. After a stall of
Redis 10,000 receipts come together, which take 100 ms.
"""


def oddly(error: Exception) -> str:
    """Why the connection is given up then."""
    return f"it does not speak Redis's protocol: {error}"


class Connection(Protocol):
    """Whose replies they are."""

    transport: Any

    def hand_out(self, replies: list[Any], *, more: bool = False) -> None:
        """Pass them to those who wait. ``more``: others that came together with them follow at once."""

    def give_up(self, reason: str) -> None:
        """Close at once."""


class Replies:
    """Those of one connection, which is not read while some wait here."""

    def __init__(self, connection: Connection, clock: IReactorTime) -> None:
        self._connection = connection
        self._clock = clock
        self._waiting: deque[Any] = deque()

    def take(self, replies: list[Any]) -> None:
        """They have come."""
        if self._waiting:
            self._waiting.extend(replies)  # TLS hands out what it has read, also when it is told to pause
        elif len(replies) <= _FEW:
            self._connection.hand_out(replies)
        else:
            self._waiting.extend(replies)
            self._hand_out()

    def hand_out_all(self) -> None:
        """There is no other iteration for them."""
        if self._waiting:
            replies, self._waiting = list(self._waiting), deque()
            self._guarded(self._connection.hand_out, replies)

    def _hand_out(self) -> None:
        waiting, seconds = self._waiting, self._clock.seconds
        until = seconds() + _STEP
        while waiting:
            reply = waiting.popleft()
            self._connection.hand_out([reply], more=bool(waiting))
            if seconds() >= until:
                break
        if waiting:
            self._connection.transport.pauseProducing()
            self._clock.callLater(0, self._go_on)

    def _go_on(self) -> None:
        """In another iteration."""
        if not self._waiting:
            return
        self._connection.transport.resumeProducing()
        self._guarded(self._hand_out)

    def _guarded(self, hand_out: Callable[..., None], *replies: list[Any]) -> None:
        try:
            hand_out(*replies)
        except ODD as error:
            self._connection.give_up(oddly(error))
