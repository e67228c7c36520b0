"""Closes the clients of a gateway that stops, one after the other, when their requests are answered.

Made by :mod:`kraftek.daemon.lifecycle`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from kraftek.contract.errors import RESTART
from kraftek.contract.messages import Drained
from kraftek.core.requests import Requests
from kraftek.core.session import Session, SessionState

__all__ = ["ClientDrain"]

_PACE = 200.0
"""Clients closed in a second, if there is time: each comes back at once, to another gateway, which has half a
millisecond of work with it. So few clients delay a stop by next to nothing."""

_FASTEST = 1000.0
"""Clients that come back in a second at most, however fast they were closed."""

_TICK = 0.05
"""Seconds between two looks at whose turn it is."""


class Sessions(Protocol):
    """Those that are closed, as they are at the moment."""

    def __iter__(self) -> Iterator[Session]: ...

    def __len__(self) -> int: ...


class ClientDrain:
    """Each client has a turn. From then on it is closed as soon as the requests that it had sent are answered: nobody
    whose next request follows an answer has one in flight then.

    Turns follow each other at an even pace, and take half of the time that there is, so that whoever comes last still
    has the other half for its requests. A client that is closed in its turn may come back at once. One that is closed
    before, because the stop is hurried or short, is told to wait for it.
    """

    _log = Logger()

    def __init__(self, roster: Sessions, requests: Requests, clock: IReactorTime) -> None:
        self._roster = roster
        self._requests = requests
        self._clock = clock
        self._looping = LoopingCall(self._look)
        self._looping.clock = clock
        self._reason = ""
        self._order: list[Session] = []
        self._given: set[Session] = set()
        self._began = self._ends = 0.0
        self._closing = self._returning = 0.0

    def begin(self, seconds: float, reason: str) -> Deferred[None]:
        """Close all clients with this reason, within so many seconds. Fires when all of them were told."""
        self._reason = reason
        self._order = list(self._roster)
        self._began = self._clock.seconds()
        self._ends = self._began + seconds
        total = len(self._order)
        self._closing = min(total / _PACE, seconds / 2)
        self._returning = max(total / _FASTEST, self._closing)
        over: Deferred[Any] = self._looping.start(_TICK)
        return over.addErrback(self._failed).addCallback(lambda _: None)

    def hurry(self) -> None:
        """Close all of them now."""
        self._ends = self._clock.seconds()
        if self._looping.running:
            self._look()

    def _look(self) -> None:
        passed = self._clock.seconds() - self._began
        if self._clock.seconds() >= self._ends:
            self._close_all()
        elif passed < self._closing:
            for number in range(len(self._given), int(len(self._order) * passed / self._closing) + 1):
                self._turn(self._order[number], number)
        else:
            for number, session in enumerate((*self._order, *self._roster)):
                self._turn(session, number)
        if not len(self._roster):
            self._looping.stop()

    def _turn(self, session: Session, number: int) -> None:
        if session not in self._given:
            self._given.add(session)
            self._requests.after_answers(session, partial(self._close, session, number))

    def _close(self, session: Session, number: int) -> None:
        if session.state is not SessionState.CLOSED:
            turn = self._began + self._returning * number / max(len(self._order), number, 1)
            session.send(Drained(round(max(0.0, turn - self._clock.seconds()), 3)))
            session.close(RESTART, self._reason)

    def _close_all(self) -> None:
        for number, session in enumerate((*self._order, *self._roster)):
            self._close(session, number)

    def _failed(self, failure: Failure) -> None:
        self._log.failure("Closing the clients one after the other failed", failure=failure)
        self._close_all()
