"""The end of a reactor iteration: what was collected while reading is written once, after all reading.

Used by the WebSocket outbox and the Redis publisher, however many of them have something to write.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from operator import length_hint
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

__all__ = ["Flushable", "Iteration"]


class Flushable(Protocol):
    """Has something to write at the end of the iteration."""

    def flush(self) -> None: ...


def _write(transport: Any, data: bytes) -> None:
    transport.write(data)


_STEP = 0.0025
"""Seconds that writing takes at a time, before the reactor reads again. It is done before and after it reads."""

_LOOK = 32
"""Writers after which the time is looked at: so many take a quarter of a millisecond."""


class Iteration:
    """Collects who has something to write in this reactor iteration.

    ``driven``: somebody calls :meth:`end` after every iteration (:func:`kraftek.fastpath.drive`). Otherwise it is
    scheduled when there is something to do. ``ending``: the current caller has nothing more to send in this iteration,
    so that what has nothing waiting before it need not wait either. ``write``: how they write to their transports, as
    :func:`kraftek.fastpath.write_now` has it; unless that is put here it gives ``None``.

    A broadcast to 10,000 sockets is 40 ms of writing, and would hold up everybody else for as long. So it is done in
    steps: who has not been reached is *late*, and goes on after those of the next iterations. Each keeps what it has to
    write in order itself, so that nothing is overtaken.
    """

    __slots__ = ("_late", "_reactor", "_waiting", "driven", "ending", "write")

    _log = Logger()

    def __init__(self, reactor: IReactorTime) -> None:
        self.driven = False
        self.ending = False
        self.write: Callable[[Any, bytes], Callable[[bytes], int] | None] = _write
        self._reactor = reactor
        self._waiting: list[Flushable] = []
        self._late: deque[Iterator[Flushable]] = deque()

    def at_end(self, flushable: Flushable, *, first: bool = False) -> None:
        """Call ``flushable.flush()`` once at the end of this iteration, or in the next ones when too many have
        something to write; ``first``: before all others. Callers make sure that they ask once.
        """
        waiting = self._waiting
        if not waiting and not self.driven:
            self._reactor.callLater(0, self.end)
        if first:
            waiting.insert(0, flushable)
        else:
            waiting.append(flushable)

    @property
    def idle(self) -> bool:
        """Whether nobody has anything to write."""
        return not self._waiting and not self._late

    def end(self) -> None:
        """The iteration is over."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            if len(waiting) > _LOOK or self._late:
                self._flush_in_time(waiting)
            else:
                self._flush(waiting)
        elif self._late:
            self._flush_in_time([])

    def _flush(self, writers: Iterable[Flushable]) -> None:
        for flushable in writers:
            try:
                flushable.flush()
            except Exception:  # noqa: BLE001  # one's fault must not keep the others from writing
                self._log.failure("Writing at the end of a reactor iteration failed: a bug, please report it")

    def _flush_in_time(self, waiting: list[Flushable]) -> None:
        """Half of the time is for those that are late, if there are any."""
        late, clock, new = self._late, self._reactor, iter(waiting)
        now = clock.seconds()
        until, half = now + _STEP, now + (_STEP / 2 if late else _STEP)
        while now < half and length_hint(new):
            self._flush(islice(new, _LOOK))
            now = clock.seconds()
        while now < until and late:
            self._flush(islice(late[0], _LOOK))
            if not length_hint(late[0]):
                late.popleft()
            now = clock.seconds()
        if length_hint(new):
            late.append(new)
        if late:
            # The reactor must not wait for something to read.
            clock.callLater(0, _nothing if self.driven else self.end)


def _nothing() -> None:
    pass
