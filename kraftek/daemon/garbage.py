"""When Python's garbage collector looks for reference cycles.

The twistd plugin calls :func:`settle`; :mod:`kraftek.daemon.lifecycle` makes and sweeps :class:`Garbage`.

Everything else is freed without it, and clients, requests and messages leave no cycles behind. A full collection is a
pause for all clients, which grows with their number: docs/performance.rst has what was measured. By itself Python
collects again and again while many clients come and go. Here it does so when the memory of the process has grown, and
every minute as long as there are few clients.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sized

from twisted.internet.interfaces import IReactorTime

from kraftek.daemon.memory import resident_bytes

__all__ = ["INTERVAL", "Garbage", "settle"]

INTERVAL = 0.1
"""Seconds between two collections of what is new. Python goes by how many more objects there are: when as many clients
go as come it collects nothing for a long time, and then all that is new since. With 10,000 that took 24 to 80 ms."""

LOOK = 1.0
"""Seconds between two looks at whether it is time for a full collection."""

GROWN = 64 * 1024 * 1024
"""Bytes by which the memory of the process has grown before a full collection: what is in cycles takes no more."""

FEW = 1000
"""Clients up to which a full collection takes so little, 1 to 5 ms, that it is done more often."""

OFTEN = 60.0
"""Seconds between two full collections then; and where the system does not say how much memory there is."""

_YOUNG = 5_000
"""New objects after which Python looks for cycles among them. With its default, 700, that was a fifth of our part of a
request with 400 of them under way, each of which it looks at. To look at 10,000 took 3 to 8 ms."""

_MIDDLE = 0
"""Collections of new objects after which those that were left are looked at once more: every second collection is of
more. With the default, 10, some are of eleven times as many."""

_OLD = 1 << 30
"""Collections of both after which Python does a full one by itself: never."""


INCREMENTAL = sys.version_info >= (3, 14)
"""Whether each collection of Python is of what is new and of some of the rest, and none is full."""


def settle(*, incremental: bool = INCREMENTAL) -> None:
    """The program is made. Its modules stay, and are not looked at any more."""
    gc.collect()
    gc.freeze()
    if incremental:
        gc.set_threshold(_YOUNG)
    else:
        gc.set_threshold(_YOUNG, _MIDDLE, _OLD)


class Garbage:
    """``clients``: how many there are. ``resident`` gives the memory of the process, 0 if the system does not say.
    ``collect`` collects a generation.
    """

    def __init__(
        self,
        clock: IReactorTime,
        clients: Sized,
        *,
        resident: Callable[[], int] = resident_bytes,
        collect: Callable[[int], object] = gc.collect,
        incremental: bool = INCREMENTAL,
    ) -> None:
        self._clock = clock
        self._clients = clients
        self._resident = resident
        self._collect = collect
        self._incremental = incremental
        self._least = resident()
        self._looked = self._ended = clock.seconds()

    def sweep(self) -> None:
        """Collect what is new, and everything if it is time for that."""
        now = self._clock.seconds()
        if now < self._looked + LOOK:
            if not self._incremental:
                self._collect(1)
            return
        self._looked, resident = now, self._resident()
        self._least = min(self._least, resident)
        often = now >= self._ended + OFTEN and (len(self._clients) <= FEW or not resident)
        if often or resident >= self._least + GROWN:
            self._collect(2)
            self._least, self._ended = self._resident(), now
