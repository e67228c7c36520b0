"""Logs a trouble that lasts: a line when it begins, one a minute, and one when it is over."""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

__all__ = ["Outage"]

INTERVAL = 60.0
"""Seconds between two lines while it lasts."""


class Outage:
    """``reason``: why it does not work, or ``None``.

    Called at each failure, and when it works. ``name`` begins the line, as in ``Redis at 127.0.0.1``; then comes what
    is said at first, later, and at last.
    """

    log = Logger()

    def __init__(
        self,
        name: str,
        clock: IReactorTime,
        first: str = "is unavailable, trying again:",
        still: str = "is still unavailable after",
        back: str = "is back after",
    ) -> None:
        self._name = name
        self._words = first, still, back
        self._clock = clock
        self.reason: str | None = None
        self._began: float | None = None
        self._next = 0.0

    def failed(self, reason: str) -> None:
        """It does not work, or still does not."""
        self.reason = reason = reason.rstrip(".")
        first, still, _ = self._words
        now = self._clock.seconds()
        if self._began is None:
            self._began = now
            self.log.warn("{name} {first} {reason}", name=self._name, first=first, reason=reason)
        elif now >= self._next:
            seconds = f"{now - self._began:.0f}"
            line = "{name} {still} {seconds} s: {reason}"
            self.log.warn(line, name=self._name, still=still, seconds=seconds, reason=reason)
        else:
            return
        self._next = now + INTERVAL

    def over(self) -> bool:
        """It works. Returns whether it did not before."""
        self.reason = None
        if self._began is None:
            return False
        seconds = f"{self._clock.seconds() - self._began:.0f}"
        self.log.info("{name} {back} {seconds} s", name=self._name, back=self._words[2], seconds=seconds)
        self._began = None
        return True
