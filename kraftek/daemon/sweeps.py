"""What is done by and by, while the daemon runs. Made by :mod:`kraftek.daemon.lifecycle`."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from kraftek.contract.metrics import Counters
from kraftek.daemon.assembly import Sweep

__all__ = ["Sweeps"]


class Sweeps:
    """Functions that are called repeatedly, from :meth:`start` to :meth:`stop`, as often as these are called."""

    _log = Logger()

    def __init__(self, reactor: Any, counters: Counters) -> None:
        self._reactor = reactor
        self._counters = counters
        self._calls: list[tuple[LoopingCall, float]] = []

    def add(self, *sweeps: Sweep) -> None:
        """Call these too, from the next start on."""
        for sweep, interval in sweeps:
            looping = LoopingCall(self._guarded, sweep)
            looping.clock = self._reactor
            self._calls.append((looping, interval))

    def start(self) -> None:
        """From now on."""
        for looping, interval in self._calls:
            looping.start(interval, now=False)

    def stop(self) -> None:
        """No more."""
        for looping, _ in self._calls:
            if looping.running:
                looping.stop()

    def _guarded(self, sweep: Any) -> None:
        try:
            sweep()
        except Exception:  # noqa: BLE001  # one bad entry must not end all sweeps
            self._counters.errors_internal += 1
            self._log.failure("A sweep failed: a bug, please report it")
