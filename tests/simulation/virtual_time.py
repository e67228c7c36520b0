"""Time that passes when the simulation says so, and the processes that live in it.

A gateway is given a :class:`Process` where the daemon has its reactor. A process can be paused (it does nothing, and
then all at once what was due meanwhile), and killed.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

__all__ = ["WALL", "Call", "Process", "VirtualTime"]

WALL = 1_700_000_000.0
"""Unix seconds when the simulation's time is 0."""


@implementer(IDelayedCall)
class Call:
    """A call that is to come."""

    __slots__ = ("args", "at", "kwargs", "number", "owner", "run", "time")

    def __init__(
        self, time: VirtualTime, owner: Process | None, at: float, run: Callable[..., object], args: Any, kwargs: Any
    ) -> None:
        self.time = time
        self.owner = owner
        self.at = at
        self.run: Callable[..., object] | None = run
        self.args = args
        self.kwargs = kwargs
        self.number = 0

    def active(self) -> bool:
        """Whether it is still to come."""
        return self.run is not None

    def cancel(self) -> None:
        """Do not call."""
        assert self.run is not None, "cancelled or called before"
        self.run = None

    def getTime(self) -> float:
        """When it is due."""
        return self.at

    def reset(self, seconds: float) -> None:
        """Call so many seconds from now."""
        self.at = self.time.now + seconds
        self.time.push(self)

    def delay(self, seconds: float) -> None:
        """Call so many seconds later."""
        self.at += seconds
        self.time.push(self)


class VirtualTime:
    """A heap of calls. ``now`` is in seconds from the beginning of the simulation."""

    def __init__(self) -> None:
        self.now = 0.0
        self._numbers = count(1)
        self._heap: list[tuple[float, int, Call]] = []

    def seconds(self) -> float:
        """The monotonic clock of everybody."""
        return self.now

    def wall(self) -> float:
        """The wall clock of everybody but Redis."""
        return WALL + self.now

    def push(self, call: Call) -> None:
        """Put a call where it belongs; where it stood before it does not count any more."""
        call.number = number = next(self._numbers)
        heappush(self._heap, (call.at, number, call))

    def later(
        self, owner: Process | None, delay: float, run: Callable[..., object], *args: object, **kwargs: object
    ) -> Call:
        """Call after ``delay`` seconds, if ``owner`` lives and is not paused then."""
        call = Call(self, owner, self.now + delay, run, args, kwargs)
        self.push(call)
        return call

    def forget(self) -> None:
        """Nothing is to come."""
        self._heap.clear()

    def pass_until(self, end: float) -> None:
        """Call everything that is due until ``end``, in order. What a call raises ends the simulation."""
        heap = self._heap
        while heap and heap[0][0] <= end:
            at, number, call = heappop(heap)
            run, owner = call.run, call.owner
            if run is None or number != call.number or (owner is not None and owner.dead):
                continue
            if owner is not None and owner.paused:
                owner.missed.append(call)
                continue
            self.now = max(self.now, at)
            call.run = None
            run(*call.args, **call.kwargs)
        self.now = max(self.now, end)


@implementer(IReactorTime)
class Process:
    """One process: its clock, and the way to Redis, ``connect``, where it has one."""

    def __init__(self, time: VirtualTime, name: str = "", connect: Callable[..., Any] | None = None) -> None:
        self.time = time
        self.name = name
        self.paused = False
        self.dead = False
        self.missed: list[Call] = []
        self.seconds = time.seconds
        self._connect = connect

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kwargs: object) -> Call:
        """As ``IReactorTime`` has it."""
        return self.time.later(self, delay, callable, *args, **kwargs)

    def getDelayedCalls(self) -> list[Call]:
        """Nobody asks."""
        raise NotImplementedError

    def connectUNIX(self, address: str, factory: Any, timeout: float = 30, checkPID: bool = False) -> Any:
        """Connect to Redis."""
        assert self._connect is not None
        return self._connect(self, address, factory)

    def resume(self) -> None:
        """Go on, with what was missed while it was paused."""
        self.paused = False
        missed, self.missed = self.missed, []
        for call in missed:
            if call.run is not None:
                call.at = self.time.now
                self.time.push(call)
