"""How long a client waits before it connects again: docs/client-protocol.rst, "Reconnecting".

Used by :class:`kraftek.client.conversation.Conversation`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["LATER", "Backoff"]

LATER = frozenset({4408, 4413, 4429})
"""Close codes of 4400 to 4499 after which a client reconnects with a back-off; after the others it does not."""

_RESTARTED = frozenset({1012, 1013})
"""Sent to all clients at once, by a server that restarts or is full."""

_FAILURES_AT_LEAST = 3
"""After all of these codes the back-off is that of so many failures at least."""

_LATER_WAIT = 1.0

_FIRST_WAIT = 0.5
"""Seconds: the bound of the first back-off. It doubles with each failure."""

_LONGEST_WAIT = 30.0

_FAILURES_THAT_COUNT = 10

_LONGEST_ABSENCE = 60.0
"""Seconds that a gateway which stops may ask for at most: the word comes from the network."""


class Backoff:
    """Exponential back-off with full jitter. ``random`` returns numbers from 0 to 1."""

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._failures = 0
        self._absence: float | None = None

    def drained(self, payload: Any) -> None:
        """A gateway that stops says with this payload of ``drain`` when to come back: that is the next wait."""
        seconds = payload.get("reconnectAfter") if isinstance(payload, dict) else None
        if isinstance(seconds, int | float):
            self._absence = min(max(0.0, seconds), _LONGEST_ABSENCE)

    def reset(self) -> None:
        """Start again from the shortest back-off: the last connection was stable, or the user wants a new one."""
        self._failures = 0

    def after(self, code: int, retry_after: float | None) -> float:
        """Seconds until the next attempt, now that another socket was lost with this close code.

        ``retry_after``: what the gateway asked for, if it did; it counts after codes that say "not so soon".
        """
        absence, self._absence = self._absence, None
        if absence is not None:
            return absence
        later = code in LATER
        if later or code in _RESTARTED:
            self._failures = max(self._failures, _FAILURES_AT_LEAST)
        bound = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0**self._failures)
        # The bound was reached long before; without a limit 2.0 to this power overflows after a night of failures.
        self._failures = min(self._failures + 1, _FAILURES_THAT_COUNT)
        return (max(_LATER_WAIT, retry_after or 0.0) if later else 0.0) + self._random() * bound

    def unavailable(self, retry_after: float | None) -> float:
        """Seconds until the token or the room is sent again on the same socket, after ``AUTH_UNAVAILABLE``."""
        return (retry_after or 1.0) * (1.0 + self._random())
