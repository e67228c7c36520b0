"""Monotonic time on a reactor that reads the machine's wall clock.

Twisted's ``reactor.seconds`` is ``time.time``. When that clock is set forward, all that waits is due at once; set back,
everything waits longer by as much. The daemon gives the monotonic clock to its reactor (:mod:`kraftek.daemon.tap`). The
client and the service kit run on the reactor of another program, which they do not change: they use this instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

__all__ = ["MonotonicClock", "Timer"]

_EXACT = 0.001
"""Seconds that a call may come early: two clocks never agree to the microsecond."""


@implementer(IReactorTime)
class MonotonicClock:
    """The reactor's time, by the monotonic clock.

    A call never comes early, whatever happens to the wall clock. It may come late: by as much as the wall clock is set
    back while the call waits. Only the reactor could change that.

    ``reactor``: an ``IReactorTime``. ``now``: seconds since any fixed time.
    """

    def __init__(self, reactor: Any, now: Callable[[], float] = time.monotonic) -> None:
        self._reactor = reactor
        self.seconds = now

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kwargs: object) -> Timer:
        """Call after ``delay`` seconds, unless that is cancelled before."""
        return Timer(self._reactor, self.seconds, delay, lambda: callable(*args, **kwargs))

    def getDelayedCalls(self) -> Any:
        """The reactor's."""
        return self._reactor.getDelayedCalls()


@implementer(IDelayedCall)
class Timer:
    """One call of a :class:`MonotonicClock`."""

    def __init__(self, reactor: Any, now: Callable[[], float], delay: float, call: Callable[[], object]) -> None:
        self._reactor = reactor
        self._now = now
        self._due = now() + delay
        self._call = call
        self._pending = reactor.callLater(delay, self._fired)

    def _fired(self) -> None:
        early = self._due - self._now()
        if early > _EXACT:
            self._pending = self._reactor.callLater(early, self._fired)
        else:
            self._call()

    def active(self) -> bool:
        """Whether the call is still to come."""
        return bool(self._pending.active())

    def cancel(self) -> None:
        """Do not call. Raises as ``IDelayedCall`` does unless it is ``active``."""
        self._pending.cancel()

    def getTime(self) -> float:
        """When it is due, by the clock's ``seconds``."""
        return self._due

    def delay(self, seconds: float) -> None:
        """Call so many seconds later."""
        self._move(self._due + seconds)

    def reset(self, seconds: float) -> None:
        """Call so many seconds from now."""
        self._move(self._now() + seconds)

    def _move(self, due: float) -> None:
        self._due = due
        self._pending.reset(max(0.0, due - self._now()))
