"""What the daemon does to its whole process, which it has for itself under ``twistd kraftek-gateway``. In a process of
somebody else it does nothing of this. Made by :mod:`kraftek.daemon.lifecycle`.
"""

from __future__ import annotations

import atexit
import faulthandler
import os
from collections.abc import Sized
from typing import Any

from kraftek.daemon.garbage import INTERVAL, Garbage
from kraftek.daemon.signals import Signals
from kraftek.daemon.sweeps import Sweep

__all__ = ["OwnProcess"]


class OwnProcess:
    """``signals``: those that the process is sent."""

    def __init__(self, reactor: Any, signals: Signals) -> None:
        self._reactor = reactor
        self._signals = signals

    def begin(self) -> None:
        """The daemon is about to start."""
        self._signals.install_early()
        faulthandler.enable(2)  # the watchdog ends a process that hangs with SIGABRT: where that was is printed
        self._reactor.callWhenRunning(self._signals.install)

    def sweeps(self, clients: Sized) -> tuple[Sweep, ...]:
        """What is to be done by and by."""
        return ((Garbage(self._reactor, clients).sweep, INTERVAL),)

    def leave_with(self, status: int) -> None:
        """The process ends soon, with this status."""
        # twistd leaves with 0 when a service fails after its start, and systemd would take that for success. Last
        # registered is first called: the pid file has been removed by then.
        atexit.register(os._exit, status)
