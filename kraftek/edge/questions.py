"""Whose question to the auth service is next. Made by :mod:`kraftek.edge.auth_service`."""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IReactorTime

from kraftek.contract.errors import Code, Limit, PeerError
from kraftek.contract.rates import share

__all__ = ["FullError", "Questions"]

RETRY_AFTER = 1.0
"""Seconds after which a client may try again when too many questions of its user were waiting."""


AT_ONCE = 8
"""Questions that are begun in one iteration of the reactor: one on a new connection takes a quarter of a millisecond,
and one read of Redis may say of hundreds that they have to be asked."""


class FullError(Exception):
    """As many questions wait as may."""


class Questions:
    """So many questions at a time, a few of them begun in each iteration of the reactor, and so many more that wait: in
    rotation between those on whose behalf they are asked, each of whom has a ``turn``. One alone may have half of each:
    for whoever comes next there is room at once. Questions with an empty turn may have all. Both numbers may be
    changed: with the next question.
    """

    def __init__(self, at_a_time: int, waiting: int, clock: IReactorTime) -> None:
        self._clock = clock
        self._begun = 0  # in this iteration
        self.at_a_time = at_a_time
        self.most_waiting = waiting
        self._asked = 0
        self._asked_by: dict[str, int] = {}
        self._waiting = 0
        # The turn that is next comes first.
        self._waiting_by: OrderedDict[str, dict[Deferred[None], None]] = OrderedDict()
        self._choosing = False

    def __len__(self) -> int:
        """How many wait."""
        return self._waiting

    def begin(self, turn: str) -> Deferred[None]:
        """Fires when the question may be asked, and :meth:`end` is to be called after it; unless it is cancelled.
        Raises :class:`FullError` if too many wait, and ``PeerError`` if too many wait of this turn.
        """
        if self._may_ask(turn):
            self._begins(turn)
            return succeed(None)
        mine = self._waiting_by.get(turn)
        if self._waiting >= self.most_waiting:
            raise FullError("too many questions are waiting")
        if turn and mine:
            most = share(self._waiting, self.most_waiting, len(self._waiting_by))
            if len(mine) >= max(most, 1):
                message = "too many questions about the access of this user are waiting"
                raise PeerError(Code.RATE_LIMITED, message, retry_after=RETRY_AFTER, limit=Limit.SHARE)
        if mine is None:
            mine = self._waiting_by[turn] = {}
        question: Deferred[None] = Deferred(lambda question: self._remove(turn, question))
        mine[question] = None
        self._waiting += 1
        return question

    def end(self, turn: str) -> None:
        """It was answered, or is not waited for any more: the next one begins."""
        self._count(turn, -1)
        self._choose()

    def _go_on(self) -> None:
        """The next iteration."""
        self._begun = 0
        self._choose()

    def _choose(self) -> None:
        # One that fails at once calls this again.
        if self._choosing:
            return
        self._choosing = True
        while (question := self._next()) is not None:
            question.callback(None)
        self._choosing = False

    def _next(self) -> Deferred[None] | None:
        if self._begun >= AT_ONCE:
            return None
        # Who has to wait although there is room has something that is asked, or an iteration has had its share.
        for turn in islice(self._waiting_by, len(self._asked_by) + 1):
            if self._may_ask(turn):
                question = next(iter(self._waiting_by[turn]))
                self._waiting_by.move_to_end(turn)
                self._remove(turn, question)
                self._begins(turn)
                return question
        return None

    def _may_ask(self, turn: str) -> bool:
        if self._asked >= self.at_a_time or self._begun >= AT_ONCE:
            return False
        mine = self._asked_by.get(turn, 0)
        if not turn or not mine:
            return True
        return mine < share(self._asked, self.at_a_time, max(len(self._asked_by), len(self._waiting_by)))

    def _begins(self, turn: str) -> None:
        self._count(turn, 1)
        if not self._begun:
            self._clock.callLater(0, self._go_on)
        self._begun += 1

    def _count(self, turn: str, more: int) -> None:
        self._asked += more
        number = self._asked_by.pop(turn, 0) + more
        if number:
            self._asked_by[turn] = number

    def _remove(self, turn: str, question: Deferred[None]) -> None:
        waiting = self._waiting_by[turn]
        del waiting[question]
        self._waiting -= 1
        if not waiting:
            del self._waiting_by[turn]
