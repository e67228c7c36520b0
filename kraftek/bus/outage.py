"""Logs an outage: a line when it begins, one a minute, and one when it is over."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

__all__ = ["Outage"]

INTERVAL = 60.0
"""Seconds between two lines while it lasts."""


class Outage:
    """Called at each failure, and when the connection works. ``name`` begins the line, as in ``Redis at 127.0.0.1``."""

    log = Logger()

    def __init__(self, name: str, clock: IReactorTime) -> None:
        self._name = name
        self._clock = clock
        self._began: float | None = None
        self._next = 0.0

    def failed(self, reason: str) -> None:
        """It is unavailable, or still is."""
        reason = reason.rstrip(".")
        now = self._clock.seconds()
        if self._began is None:
            self._began = now
            self.log.warn("{name} is unavailable, trying again: {reason}", name=self._name, reason=reason)
        elif now >= self._next:
            seconds = f"{now - self._began:.0f}"
            line = "{name} is still unavailable after {seconds} s: {reason}"
            self.log.warn(line, name=self._name, seconds=seconds, reason=reason)
        else:
            return
        self._next = now + INTERVAL

    def over(self) -> bool:
        """The connection works. Returns whether it was unavailable."""
        if self._began is None:
            return False
        seconds = f"{self._clock.seconds() - self._began:.0f}"
        self.log.info("{name} is back after {seconds} s", name=self._name, seconds=seconds)
        self._began = None
        return True
