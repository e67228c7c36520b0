"""The end of a reactor iteration: what was collected while reading is written once, after all reading.

Used by the WebSocket outbox and the Redis publisher, however many of them have something to write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

__all__ = ["Flushable", "Iteration"]


class Flushable(Protocol):
    """Has something to write at the end of the iteration."""

    def flush(self) -> None: ...


def _write(transport: Any, data: bytes) -> None:
    transport.write(data)


class Iteration:
    """Collects who has something to write in this reactor iteration.

    ``driven``: somebody calls :meth:`end` after every iteration (:func:`kraftek.fastpath.drive`). Otherwise it is
    scheduled when there is something to do. ``ending``: the current caller has nothing more to send in this iteration,
    so that what has nothing waiting before it need not wait either. ``write``: how they write to their transports, as
    :func:`kraftek.fastpath.write_now` has it; unless that is put here it gives ``None``.
    """

    __slots__ = ("_reactor", "_waiting", "driven", "ending", "write")

    _log = Logger()

    def __init__(self, reactor: IReactorTime) -> None:
        self.driven = False
        self.ending = False
        self.write: Callable[[Any, bytes], Callable[[bytes], int] | None] = _write
        self._reactor = reactor
        self._waiting: list[Flushable] = []

    def at_end(self, flushable: Flushable) -> None:
        """Call ``flushable.flush()`` once at the end of this iteration. Callers make sure that they ask once."""
        waiting = self._waiting
        if not waiting and not self.driven:
            self._reactor.callLater(0, self.end)
        waiting.append(flushable)

    def end(self) -> None:
        """The iteration is over."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            for flushable in waiting:
                try:
                    flushable.flush()
                except Exception:  # noqa: BLE001  # one's fault must not keep the others from writing
                    self._log.failure("Writing at the end of a reactor iteration failed: a bug, please report it")
