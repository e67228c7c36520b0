"""The coroutines of a running service. Made by :class:`kraftek.service.instance.Instance`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine
from itertools import count
from typing import Any

from kraftek.service.backend import Away, Backend, Job, Reader, Rejected, Signal

__all__ = ["PAUSE", "Jobs"]

PAUSE = 1.0
"""Seconds between attempts to reach Redis."""


class Jobs:
    """What runs, until it is done or cut off. ``warn`` logs a line, once a minute.

    ``stopping``: nothing new is taken. ``cut_off``: what still ran was cancelled, and nobody minds how it ends.
    """

    def __init__(self, backend: Backend, warn: Callable[[str], None]) -> None:
        self.stopping = False
        self.cut_off = False
        self._backend = backend
        self._warn = warn
        self._running: dict[int, Job | None] = {}
        self._numbers = count()
        self._changes: set[Signal] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> Job:
        """Run it beside all others."""
        number = next(self._numbers)
        self._running[number] = None
        job = self._backend.spawn(self._guarded(number, coroutine))
        if number in self._running:  # under Twisted it may be done by now
            self._running[number] = job
        return job

    async def steadily(self, work: Callable[[Reader], Awaitable[None]]) -> None:
        """Work until it is done; again and again when Redis is away or has forgotten the group."""
        reader = self._backend.reader()
        try:
            while True:
                try:
                    await work(reader)
                except (Away, Rejected) as error:
                    self._warn(f"Redis does not serve, trying again every {PAUSE:g} s: {error}")
                    if self.stopping:
                        return
                    await self.change_within(PAUSE)
                else:
                    return
        finally:
            reader.close()

    async def end(self, grace: float) -> None:
        """Wait until all are done, for so many seconds at most; then cut off the rest."""
        deadline = time.monotonic() + grace
        self.change()
        while self._running and (left := deadline - time.monotonic()) > 0:
            await self.change_within(left)
        self.cut_off = True
        for job in tuple(self._running.values()):
            if job is not None:
                job.cancel()

    def change(self) -> None:
        """Wake everybody that waits for a change."""
        for change in tuple(self._changes):
            change.set()

    async def change_within(self, seconds: float) -> None:
        """Return when a job is done or something else has changed, or time is up."""
        change = self._backend.signal()
        self._changes.add(change)
        try:
            await change.wait(seconds)
        finally:
            self._changes.discard(change)

    async def _guarded(self, number: int, coroutine: Coroutine[Any, Any, None]) -> None:
        """The one guard: a fault of ours ends one piece of work, and is logged."""
        try:
            await coroutine
        except Exception as error:  # noqa: BLE001
            if not self.cut_off:
                self._backend.failed("An event was lost", error)
        finally:
            del self._running[number]
            self.change()
