"""The coroutines of a running service. Made by :class:`kraftek.service.instance.Instance`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from itertools import count
from typing import Any, ParamSpec

from kraftek.service.backend import Away, Backend, Job, Reader, Rejected, Signal

__all__ = ["PAUSE", "Jobs"]

P = ParamSpec("P")

PAUSE = 1.0
"""Seconds between attempts to reach Redis."""


class Jobs:
    """The running coroutines. ``warn`` logs a line, once a minute.

    ``begins``: the number of the job that begins just now, for that job itself. ``stopping``: no new events are
    accepted. ``cut_off``: the rest was cancelled, and its errors are ignored.
    """

    def __init__(self, backend: Backend, warn: Callable[[str], None]) -> None:
        self.begins = -1
        self.stopping = False
        self.cut_off = False
        self._backend = backend
        self.warn = warn
        self._running: dict[int, Job | None] = {}
        self._numbers = count()
        self._changes: set[Signal] = set()

    def spawn(self, work: Callable[P, Coroutine[Any, Any, None]], *args: P.args, **named: P.kwargs) -> int:
        """Run ``work(*args)`` concurrently. It is called when it begins: a job may be cancelled before that. Returns
        the job's number.
        """
        number = next(self._numbers)
        self._running[number] = None
        job = self._backend.spawn(self._guarded(number, partial(work, *args, **named)))
        if number in self._running:  # under Twisted it may have ended by now
            self._running[number] = job
        return number

    def cancel(self, number: int) -> None:
        """Cancel a job, if it is running."""
        job = self._running.get(number)
        if job is not None:
            job.cancel()

    async def persistently(self, work: Callable[[Reader], Awaitable[None]]) -> None:
        """Run ``work`` until it ends; again when Redis was unavailable or has lost the group."""
        reader = self._backend.reader()
        try:
            while True:
                try:
                    await work(reader)
                except (Away, Rejected) as error:
                    self.warn(f"Redis is unavailable, retrying every {PAUSE:g} s: {error}")
                    if self.stopping:
                        return
                    await self.change_within(PAUSE)
                else:
                    return
        finally:
            reader.close()

    async def end(self, grace: float) -> None:
        """Wait until all have ended, for so many seconds at most; then cancel the rest."""
        deadline = time.monotonic() + grace
        self.change()
        while self._running and (left := deadline - time.monotonic()) > 0:
            await self.change_within(left)
        self.cut_off = True
        for job in tuple(self._running.values()):
            if job is not None:
                job.cancel()

    def change(self) -> None:
        """Wake all that wait for a change."""
        for change in tuple(self._changes):
            change.set()

    async def change_within(self, seconds: float) -> None:
        """Return when a job has ended or something else has changed, or after so many seconds."""
        change = self._backend.signal()
        self._changes.add(change)
        try:
            await change.wait(seconds)
        finally:
            self._changes.discard(change)

    async def _guarded(self, number: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """The one guard: an internal error ends one job, and is logged."""
        self.begins = number
        try:
            await work()
        except Exception as error:  # noqa: BLE001
            if not self.cut_off:
                self._backend.failed("An event was lost", error)
        finally:
            del self._running[number]
            self.change()
