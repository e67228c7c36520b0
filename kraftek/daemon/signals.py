"""What signals do to the daemon. Made by :mod:`kraftek.daemon.lifecycle`."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

__all__ = ["Signals"]


_STDIN = 0

_ALL = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR2}


class Signals:
    """SIGTERM and SIGINT: the first stops the reactor, as Twisted has it; the second is a wish to have that sooner,
    ``hurry``; the third ends the process on the spot. ``stops``: whether it stops already.

    SIGUSR2 calls ``upgrade``. SIGHUP calls ``reload``, unless it says that the terminal is gone on which the process
    was started: that stops it.
    """

    def __init__(
        self,
        reactor: Any,
        reload: Callable[[], None],
        hurry: Callable[[], None],
        stops: Callable[[], bool],
        upgrade: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._upgrade = upgrade
        self._reload = reload
        self._on_terminal = False
        self._hurry = hurry
        self._stops = stops
        self._stop: Any = None
        self._received = 0

    def install_early(self) -> None:
        """From now on SIGHUP and SIGUSR2 do not end the process, as they do otherwise."""
        self._on_terminal = os.isatty(_STDIN)
        signal.signal(signal.SIGHUP, self._hang_up)
        signal.signal(signal.SIGUSR2, lambda *_: self._reactor.callFromThread(self._upgrade))

    def install(self) -> None:
        """Take over from Twisted's handlers, which are there once the reactor runs, if it has any."""
        stop = signal.getsignal(signal.SIGTERM)
        if callable(stop):
            self._stop = stop
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._handle)
        # Another version has had them wait for this.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ALL)

    def _hang_up(self, number: int, frame: object) -> None:
        if self._stop is not None and self._on_terminal and not os.isatty(_STDIN):
            self._handle(signal.SIGTERM, frame)
        else:
            self._reactor.callFromThread(self._reload)

    def _handle(self, number: int, frame: object) -> None:
        self._received = max(self._received, int(self._stops())) + 1
        if self._received == 1:
            self._stop(number, frame)
        elif self._received == 2:
            self._reactor.callFromThread(self._hurry)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
