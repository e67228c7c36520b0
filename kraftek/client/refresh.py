"""When a client shows another token on its open socket: docs/client-protocol.rst, "Tokens that expire".

Used by :class:`kraftek.client.conversation.Conversation`. Times are in seconds of a monotonic clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from kraftek.client.deadlines import PATIENCE, Deadlines
from kraftek.client.errors import Refused
from kraftek.client.frames import frame, refused
from kraftek.client.messages import Action, Ask, Message, Settle
from kraftek.client.outbox import Kind, Outbox
from kraftek.contract.messages import ReceivedError

__all__ = ["LONGEST_TIMER", "REFRESH", "Refresh"]

REFRESH = "refresh"
"""The name of the deadline at which another token is asked for."""

LONGEST_TIMER = 2.0**31 / 1000 - 1
"""Seconds, 24 days, that every timer can count. Later than that nothing is set: ``TOKEN_EXPIRED`` comes in time."""

_FIRST_WAIT = 1.0
_LONGEST_WAIT = 30.0
"""Seconds: the bounds of the back-off, which doubles with each token that was of no use."""


class Refresh:
    """When the rooms' access expires, and what becomes of the tokens that replace the one shown at first.

    ``random`` returns numbers from 0 to 1; the rest is the conversation's own. ``key``: the id of the ``authenticate``
    that is not answered yet. ``shown``: the token that was shown last. ``waiting``: the ids of calls that wait.
    """

    def __init__(
        self,
        random: Callable[[], float],
        actions: deque[Action],
        deadlines: Deadlines,
        outbox: Outbox,
        ids: Iterator[str],
    ) -> None:
        self._random = random
        self._actions = actions
        self._deadlines = deadlines
        self._outbox = outbox
        self._ids = ids
        self._ends: dict[str | None, float] = {}
        self._failures = 0
        self._asking = False
        self.key: str | None = None
        self.shown = ""
        self.waiting: set[str] = set()

    def wanted(self, attempt: int | None) -> str:
        """The user wants another token to be shown now, or on the next socket: settled under the id returned."""
        key = next(self._ids)
        self.waiting.add(key)
        self.ask(attempt)
        return key

    def ask(self, attempt: int | None) -> None:
        """Ask the user for another token, unless that is under way. ``attempt``: of the open socket."""
        if attempt is not None and not self._under_way:
            self._asking = True
            self._actions.append(Ask(attempt, False))

    def show(self, token: str, now: float) -> None:
        """The user has returned a token."""
        if not self._asking:
            return
        if token == self.shown:
            self.failed(Refused("SAME_TOKEN", "the token is the one that was shown before"), now)
            return
        self._asking, self.shown = False, token
        self.key = key = next(self._ids)
        self._deadlines.set(key, now + PATIENCE)
        self._outbox.put(key, Kind.CONTROL, frame("authenticate", {"token": token}, key))

    def answered(self, message: Message, error: ReceivedError | None, now: float) -> bool:
        """The gateway's answer to ``authenticate``. Whether it counts for all rooms."""
        if error is not None:
            self.shown = ""  # the same may be good later
            self.failed(refused(error), now, error.retry_after)
            return False
        self._ends.clear()
        self._failures = 0
        self._end()
        self._deadlines.cancel(REFRESH)
        self._settle(None)
        self.watch(None, message.payload, now)
        return True

    def timed_out(self, now: float) -> None:
        """The gateway has not answered."""
        self.shown = ""
        self.failed(Refused("TIMEOUT", "no answer in time"), now)

    def failed(self, why: Refused, now: float, retry_after: float | None = None) -> None:
        """There is no other token, or it was of no use: ask again later."""
        self._end()
        wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(self._failures, 10))
        self._failures += 1
        self._deadlines.set(REFRESH, now + max(wait, retry_after or 0.0) * (1.0 + self._random()))
        self._settle(why)

    def watch(self, room_id: str | None, payload: Any, now: float) -> None:
        """What the gateway says of the access to this room, or to all: show another token in time."""
        seconds = payload.get("expiresIn") if isinstance(payload, dict) else None
        self._ends.pop(room_id, None)
        if isinstance(seconds, int | float):
            self._ends[room_id] = now + max(0.0, seconds)
        if self._ends and not self._under_way:
            wait = (min(self._ends.values()) - now) * (0.7 + 0.2 * self._random())
            if wait <= LONGEST_TIMER:
                self._deadlines.set(REFRESH, now + max(0.0, wait))

    def lost(self) -> None:
        """The socket was lost: the next one is shown a token anyway."""
        self._ends.clear()
        self._end()
        self._deadlines.cancel(REFRESH)

    def clear(self) -> None:
        """The client was closed."""
        self.lost()
        self.waiting.clear()

    def _end(self) -> None:
        if self.key is not None:
            self._outbox.discard(self.key)
            self._deadlines.cancel(self.key)
        self.key, self._asking = None, False

    @property
    def _under_way(self) -> bool:
        return self._asking or self.key is not None

    def _settle(self, outcome: Refused | None) -> None:
        self._actions.extend(Settle(key, outcome) for key in self.waiting)
        self.waiting.clear()
