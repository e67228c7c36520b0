"""The ceiling of ``limits.memory``. Made and swept by :mod:`kraftek.daemon.lifecycle`."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from kraftek.contract.accounts import Accounts
from kraftek.contract.log_once import OnceAMinute, OnceUntilItWorks
from kraftek.contract.metrics import Counters
from kraftek.contract.readiness import Readiness
from kraftek.contract.settings import Limits

__all__ = ["MemoryCeiling", "resident_bytes"]

_STATM = Path("/proc/self/statm")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Memory that the process has now; 0 where the system does not say so in ``/proc``."""
    with suppress(OSError):
        return int(_STATM.read_bytes().split()[1]) * _PAGE
    return 0


class MemoryCeiling:
    """``limits``: its ``memory`` is the ceiling, in bytes; 0 is none.

    What the accounts have above it is given up, the worst first, until they are below nine tenths of it.

    The memory of the process is more than that, and does not shrink by it: Python and the C library keep what was
    freed, also after ``malloc_trim`` (tried). So beyond the ceiling nothing more is given up. New clients are turned
    away, until it is a twentieth less: ``turn_away`` is called with the reason, and with an empty one when that ends.
    """

    _log = Logger()

    def __init__(
        self,
        limits: Limits,
        accounts: Accounts,
        counters: Counters,
        clock: IReactorTime,
        readiness: Readiness,
        turn_away: Callable[[str], None],
        *,
        resident: Callable[[], int] = resident_bytes,
    ) -> None:
        self._readiness = readiness
        self._limits = limits
        self._accounts = accounts
        self._counters = counters
        self._turn_away = turn_away
        self._resident = resident
        self._once_a_minute = OnceAMinute(clock.seconds)
        self._once = OnceUntilItWorks()

    def sweep(self) -> None:
        """Look, several times a second."""
        if most := self._limits.memory:
            self._shed(most)
            self._look(most)
        elif self._readiness.fault is not None:
            self._enough()

    def _shed(self, most: int) -> None:
        total = self._accounts.total
        if total <= most:
            return
        freed = self._accounts.shed(total - most * 9 // 10)
        self._counters.memory_shed_bytes += freed
        text = (
            "What waits for clients and Redis takes {total} bytes, and limits.memory is {most}: {freed} bytes are "
            "given up, of the slowest first (logged once a minute)"
        )
        self._once_a_minute(self._log.warn, text, total=total, most=most, freed=freed)

    def _look(self, most: int) -> None:
        resident = self._resident()
        if resident > most:
            if self._readiness.fault is None:
                self._counters.memory_exceeded += 1
                self._readiness.fault = "limits.memory is exceeded"
                self._turn_away("the gateway has too little memory")
            text = (
                "The process has {resident} bytes of memory, and limits.memory is {most}: new clients are turned away"
            )
            self._once.failed(self._log.error, text, resident=resident, most=most)
        elif self._readiness.fault is not None and resident <= most * 19 // 20:
            self._enough()
            self._log.info(
                "The process has {resident} bytes of memory: new clients are let in again", resident=resident
            )

    def _enough(self) -> None:
        self._readiness.fault = None
        self._turn_away("")
        self._once.works()
