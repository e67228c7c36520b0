"""A thread beside the loop of a service. It keeps what the instance has in Redis, also while a handler blocks the loop,
and says which one does. Made by :class:`kraftek.service.instance.Instance`.

Without it an instance that is busy would look dead: others would take its leases and entries over, begin the same
event, and be blocked by it in turn. One that is stopped as a whole (SIGSTOP, a frozen virtual machine) does look dead.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import CodeType, FrameType

from kraftek.service.backend import Away, Backend, Command

__all__ = ["Pulse"]

LOOK = 1.0
"""Seconds between two looks at the loop, at most."""


class Pulse:
    """Sends the commands of ``beats`` every ``interval`` seconds, on a connection of its own; ``None`` is none.

    A loop that has done nothing else for ``limit()`` seconds is warned of, once each time, by the event whose handler
    it is in: ``handlers`` has these by code.
    """

    def __init__(
        self,
        backend: Backend,
        interval: float,
        limit: Callable[[], float],
        handlers: Mapping[CodeType, str],
        *beats: Callable[[], Command | None],
    ) -> None:
        self._backend = backend
        self._interval = interval
        self._limit = limit
        self._handlers = handlers
        self._beats = beats
        self._ended = threading.Event()
        self._loop = 0
        self._asked: float | None = None
        self._warned = False

    def start(self) -> None:
        """Called on the loop's thread."""
        self._loop = threading.get_ident()
        threading.Thread(target=self._run, name="kraftek-pulse", daemon=True).start()

    def stop(self) -> None:
        """Send nothing more; a command that waits for Redis may end later."""
        self._ended.set()

    def _run(self) -> None:
        link = self._backend.blocking() if self._beats else None
        due = 0.0
        while not self._ended.wait(min(self._interval, LOOK)):
            now = time.monotonic()
            self._look(now)
            if link is not None and now >= due:
                due = now + self._interval
                try:
                    for beat in self._beats:
                        if (command := beat()) is not None:
                            link.call(*command)
                except Away:
                    link.close()  # the loop has the same Redis, and says so
        if link is not None:
            link.close()

    def _look(self, now: float) -> None:
        """Ask the loop to answer, and see for how long it has not."""
        if self._asked is None:
            self._asked, self._warned = now, False
            self._backend.from_thread(self._answer)
        elif now - self._asked > (limit := self._limit()) and not self._warned:
            self._warned = True
            self._backend.warn(f"The loop is blocked for more than {limit:g} s, by {self._culprit()}")

    def _answer(self) -> None:
        self._asked = None

    def _culprit(self) -> str:
        """What the loop's thread does: the handler, if it is in one, and the line in any case."""
        frame: FrameType | None = sys._current_frames().get(self._loop)  # noqa: SLF001  # the only way to see a thread
        if frame is None:
            return "nothing: its thread has ended"
        where = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        while frame is not None:
            if (name := self._handlers.get(frame.f_code)) is not None:
                return f"the handler of {name}, at {where}: one that blocks wants thread=True"
            frame = frame.f_back
        return where
