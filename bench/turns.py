"""Starts a gateway whose reactor is watched: ``python -P bench/turns.py FILE ARGUMENTS-OF-TWISTD``.

A *step* is what is done about one file that is ready, or all that timers and the end of an iteration do; a *turn* is
all that is done between two looks for files that are ready. On SIGRTMIN the longest of both since the last time are
written into ``FILE``, in seconds of processor time, how many steps were longer than 10 ms, and the longest collection
of Python's garbage collector: on a machine that others use, too, the wall clock says how long they were.
"""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import thread_time
from typing import Any

from twisted.internet import epollreactor

LONG = 0.01


class _Events(list[tuple[int, int]]):
    """What ``epoll.poll`` returned, one after the other: whoever asks for the next has done with the last."""

    done: Callable[[], None]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for event in super().__iter__():
            yield event
            self.done()


class Watched:
    """Stands before the reactor's ``select.epoll``."""

    def __init__(self, poller: Any) -> None:
        self._poller = poller
        self._began = self._last = self._collecting = 0.0
        self.step = self.turn = self.collection = 0.0
        self.long = 0
        gc.callbacks.append(self._collects)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._poller, name)

    def poll(self, *arguments: Any) -> list[tuple[int, int]]:
        if self._last:
            self._done()
            self.turn = max(self.turn, self._last - self._began)
        events = _Events(self._poller.poll(*arguments))
        events.done = self._done
        self._began = self._last = thread_time()
        return events

    def _done(self) -> None:
        now = thread_time()
        seconds, self._last = now - self._last, now
        self.step = max(self.step, seconds)
        self.long += seconds > LONG

    def _collects(self, phase: str, _: object) -> None:
        if phase == "start":
            self._collecting = thread_time()
        else:
            self.collection = max(self.collection, thread_time() - self._collecting)

    def report(self, file: Path) -> None:
        """Write it, and begin anew."""
        following = file.with_suffix(".new")
        following.write_text(f"{self.step} {self.turn} {self.long} {self.collection}")
        following.rename(file)
        self.step = self.turn = self.collection = 0.0
        self.long = 0


def main() -> None:
    file = Path(sys.argv.pop(1))
    epollreactor.install()
    from twisted.internet import reactor  # noqa: PLC0415  # the one just installed

    running: Any = reactor
    watched = running._poller = Watched(running._poller)  # noqa: SLF001
    signal.signal(signal.SIGRTMIN, lambda *_: watched.report(file))
    from twisted.scripts.twistd import run  # noqa: PLC0415  # imports the reactor

    run()


if __name__ == "__main__":
    main()
