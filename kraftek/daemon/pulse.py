"""The pulse of the reactor: how late its timers are, and the heartbeat for the service manager's watchdog.

Made by :mod:`kraftek.daemon.lifecycle`.
"""

from __future__ import annotations

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from kraftek.daemon.systemd import notify

__all__ = ["Pulse"]

_INTERVAL = 0.25
"""Seconds between two beats."""

_WINDOW = 15.0
"""Seconds that the longest delay is remembered at least, and twice as long at most: whoever looks as often sees
all."""


class Pulse:
    """Beats for as long as the reactor comes round. ``watchdog``: seconds between two heartbeats; 0 is none."""

    def __init__(self, clock: IReactorTime, watchdog: float) -> None:
        self._clock = clock
        self._watchdog = watchdog
        self._interval = min(_INTERVAL, watchdog or _INTERVAL)
        self._due = self._heartbeat_due = self._window_ends = 0.0
        self._longest = [0.0, 0.0]
        self._next: IDelayedCall | None = None

    def start(self) -> None:
        """From now on."""
        now = self._clock.seconds()
        self._due = self._heartbeat_due = now
        self._window_ends = now + _WINDOW
        self._beat()

    def stop(self) -> None:
        """No more."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def lag(self) -> float:
        """Seconds that a timer was late at most, lately: so long the reactor was busy with something else."""
        return max(self._longest)

    def _beat(self) -> None:
        now = self._clock.seconds()
        self._longest[1] = max(self._longest[1], now - self._due)
        if now >= self._window_ends:
            self._longest = [self._longest[1], 0.0]
            self._window_ends = now + _WINDOW
        if self._watchdog and now >= self._heartbeat_due:
            self._heartbeat_due = now + self._watchdog
            notify("WATCHDOG=1")
        self._due = now + self._interval
        self._next = self._clock.callLater(self._interval, self._beat)
