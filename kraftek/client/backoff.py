"""How long a client waits before it connects again: docs/client-protocol.rst, "Reconnecting".

Kept by :class:`kraftek.client.conversation.Conversation`.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["LATER", "Backoff"]

LATER = frozenset({4408, 4413, 4429})
"""Of the close codes 4400 to 4499, which say "do not come back like this", those that say "back off first"."""

_RESTARTED = frozenset({1012, 1013})
"""Said to everybody at once, by what is restarted or full."""

_FAILURES_AT_LEAST = 3
"""After all of these the back-off is that of so many failures at least."""

_LATER_WAIT = 1.0

_FIRST_WAIT = 0.5
"""Seconds: the bound of the first back-off. It doubles with each failure."""

_LONGEST_WAIT = 30.0

_FAILURES_THAT_COUNT = 10


class Backoff:
    """Exponential, with full jitter. ``random`` gives numbers from 0 to 1."""

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._failures = 0

    def reset(self) -> None:
        """Begin from the bottom: the last connection was a good one, or the user wants a new one."""
        self._failures = 0

    def after(self, code: int, retry_after: float | None) -> float:
        """Seconds until the next attempt, now that another socket was lost with this close code.

        ``retry_after``: what the gateway asked for, if it did.
        """
        later = code in LATER
        if later or code in _RESTARTED:
            self._failures = max(self._failures, _FAILURES_AT_LEAST)
        bound = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0**self._failures)
        # After a night of them 2.0 to their power is no number any more, and the bound was reached long ago.
        self._failures = min(self._failures + 1, _FAILURES_THAT_COUNT)
        return (retry_after or (_LATER_WAIT if later else 0.0)) + self._random() * bound

    def unavailable(self, retry_after: float | None) -> float:
        """Seconds until the same is asked again on a socket that stays, because the auth service could not be asked."""
        return (retry_after or 1.0) * (1.0 + self._random())
