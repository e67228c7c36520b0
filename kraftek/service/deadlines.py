"""How long handlers may take. Made by :class:`kraftek.service.handling.Handling`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from msgspec import Struct

from kraftek.contract.messages import REQUEST_LONGEST
from kraftek.service.backend import Backend
from kraftek.service.jobs import Jobs

__all__ = ["Deadlines"]

T = TypeVar("T")

TICK = 0.25
"""Seconds between two looks at deadlines, at most. Who is that late was blocked."""


class _Deadline(Struct, Generic[T], eq=False):
    at: float
    work: T
    last: float


class Deadlines(Generic[T]):
    """Calls ``passed`` with a work whose deadline has passed, by one job for all of them.

    A time in which nothing ran is not counted: the process was stopped, or a call has blocked the loop, which others
    did not do. Whoever did is named by :mod:`kraftek.service.pulse`.
    """

    def __init__(self, backend: Backend, jobs: Jobs, passed: Callable[[T], None]) -> None:
        self._backend = backend
        self._jobs = jobs
        self._passed = passed
        self._all: set[_Deadline[T]] = set()
        self._next = float("inf")
        self._earlier = backend.signal()

    @contextmanager
    def watch(self, seconds: float, work: T) -> Iterator[None]:
        """The block has so many seconds for this work."""
        deadline = _Deadline((now := time.monotonic()) + seconds, work, now + max(seconds, REQUEST_LONGEST))
        self._all.add(deadline)
        if self._next == float("inf"):
            self._next = deadline.at
            self._jobs.spawn(self._wait)
        elif deadline.at < self._next:
            self._earlier.set()
        try:
            yield
        finally:
            self._all.discard(deadline)
            if self._jobs.stopping:
                self.stop()

    def renew(self, work: T, seconds: float) -> None:
        """It has so many seconds from now on."""
        for deadline in self._all:
            if deadline.work is work:
                deadline.at = min(time.monotonic() + seconds, deadline.last)

    def watched(self) -> list[T]:
        """All works that have a deadline."""
        return [deadline.work for deadline in self._all]

    def stop(self) -> None:
        """Wait no longer than handlers take."""
        if not self._all:
            self._earlier.set()

    async def _wait(self) -> None:
        try:
            while self._all:
                self._next = min(time.monotonic() + TICK, *(deadline.at for deadline in self._all))
                self._earlier = self._backend.signal()
                await self._earlier.wait(max(0.0, self._next - time.monotonic()))
                self._look()
        finally:
            self._next = float("inf")

    def _look(self) -> None:
        now = time.monotonic()
        late = now - self._next
        for deadline in tuple(self._all):
            if late > TICK:
                deadline.at = max(deadline.at + late, now + TICK)
            elif deadline.at <= now:
                self._all.discard(deadline)
                self._passed(deadline.work)
