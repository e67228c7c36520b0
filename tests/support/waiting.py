"""How tests wait: for a condition, within a bound. What fails says what was awaited, and what was there instead."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO, TypeVar

from twisted.internet import reactor
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, formatEvent

__all__ = ["Lines", "until", "until_logged", "wait_until"]

T = TypeVar("T")

What = str | Callable[[], str]
"""What is awaited; as a function it is asked at the end, and can say what is there instead."""


def _late(timeout: float, what: What) -> AssertionError:
    return AssertionError(f"not within {timeout:g} s: {what if isinstance(what, str) else what()}")


def wait_until(seen: Callable[[], T], what: What, timeout: float = 10.0) -> T:
    """What ``seen`` returns, as soon as that is true; after ``timeout`` seconds fails with ``what``."""
    deadline = time.monotonic() + timeout
    while not (found := seen()):
        if time.monotonic() > deadline:
            raise _late(timeout, what)
        time.sleep(0.005)
    return found


async def until(seen: Callable[[], T], what: What, timeout: float = 10.0) -> T:
    """As :func:`wait_until`, while the reactor runs."""
    deadline = time.monotonic() + timeout
    while not (found := seen()):
        if time.monotonic() > deadline:
            raise _late(timeout, what)
        await deferLater(reactor, 0.002)
    return found


async def until_logged(events: Sequence[LogEvent], what: str, times: int = 1, timeout: float = 10.0) -> None:
    """Return once ``events``, which are captured meanwhile, say ``what`` so often."""

    def lines() -> list[str]:
        return [formatEvent(event) or "" for event in events]

    await until(
        lambda: sum(what in line for line in lines()) >= times, lambda: f"{what!r} {times} times in {lines()}", timeout
    )


class Lines:
    """What a process writes to a pipe, line by line. The pipe is closed once the process has closed its end."""

    def __init__(self, pipe: IO[str]) -> None:
        self._pipe = pipe
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._pipe:
            for line in self._pipe:
                self._lines.put(line.removesuffix("\n"))
        self._lines.put(None)

    def next(self, what: str = "a line", timeout: float = 10.0) -> str:
        """The next line, without its end; fails when none comes."""
        try:
            line = self._lines.get(timeout=timeout)
        except queue.Empty:
            raise _late(timeout, f"{what}; the process has written nothing more") from None
        if line is None:
            raise AssertionError(f"the process ended instead of writing {what}")
        return line

    def rest(self, timeout: float = 10.0) -> list[str]:
        """All lines that are left, once the process has ended."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"the process still holds its pipe after {timeout:g} s"
        found = []
        while not self._lines.empty():
            found.append(self._lines.get())
        return [line for line in found if line is not None]
