"""Whose turn it is to read the history of a room, and what that costs. Used by :mod:`kraftek.core.resuming`.

A client that asks for what it has missed sends a hundred bytes, and may get thousands of messages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from kraftek.contract.interfaces import Numbered
from kraftek.core.budgets import Budgets
from kraftek.core.session import Session, SessionState

__all__ = ["PATIENCE", "HistoryTurns"]

PATIENCE: Final = 10.0
"""Seconds that a client waits for its turn at most: then it is told that the history is not available."""

_FOR_ONE: Final = 4
"""Messages that count as one event: to read and to send one takes about a quarter of what an event takes."""


class HistoryTurns:
    """A user's clients take turns, one after the other, and wait while their user or address is over its budget. So
    what many sockets ask for at once is read as fast as one of them may get it.
    """

    def __init__(self, budgets: Budgets, clock: IReactorTime) -> None:
        self._budgets = budgets
        self._clock = clock
        # By users for whom one is read: the others, in order.
        self._waiting: dict[str, deque[Deferred[None]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    async def come(self, session: Session, user_id: str) -> bool:
        """It is its turn, until :meth:`end`. ``False``: it is gone, or would wait for too long, and has none.
        ``user_id``: whose it is, or is about to be.
        """
        until = self._clock.seconds() + PATIENCE
        waiting = self._waiting.get(user_id)
        if waiting is None:
            self._waiting[user_id] = deque()
        else:
            turn: Deferred[None] = Deferred()
            waiting.append(turn)
            await turn
        while session.state is not SessionState.CLOSED:
            over = self._budgets.overdrawn(user_id, session.address)
            if self._clock.seconds() + over > until:
                break
            if not over:
                return True
            waited: Deferred[None] = Deferred()
            self._clock.callLater(over, waited.callback, None)
            await waited
        self.end(session, user_id)
        return False

    def end(self, session: Session, user_id: str, messages: Sequence[Numbered] = ()) -> None:
        """So much was read for it: it counts as if the client had sent it."""
        if messages:
            events = -(-len(messages) // _FOR_ONE)
            self._budgets.spend(user_id, session.address, events, sum(len(body) for _, body in messages))
        waiting = self._waiting[user_id]
        if waiting:
            self._clock.callLater(0, waiting.popleft().callback, None)
        else:
            del self._waiting[user_id]
