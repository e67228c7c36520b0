"""Answers that come in parts. Used by :class:`kraftek.client.conversation.Conversation`."""

from __future__ import annotations

from collections import deque

from kraftek.client.deadlines import Deadlines
from kraftek.client.messages import Action, Message, Part
from kraftek.client.outbox import Outbox

__all__ = ["Parts"]


class Parts:
    """The requests that ask for parts, with their time limits: each part gives a request its time anew."""

    def __init__(self, actions: deque[Action], deadlines: Deadlines, outbox: Outbox) -> None:
        self._actions = actions
        self._deadlines = deadlines
        self._outbox = outbox
        self._limits: dict[str, float] = {}

    def ask(self, key: str, limit: float) -> None:
        """Have a request that is yet to be sent ask for parts."""
        if len(self._limits) > 2 * self._outbox.pending:
            self._limits = {each: self._limits[each] for each in self._outbox.requests() if each in self._limits}
        self._limits[key] = limit
        self._outbox.ask_for_parts(key)

    def heard(self, key: str, message: Message, now: float) -> bool:
        """Whether this is not the answer to a request of this socket, but a part of it: told, if it asked for parts,
        and this one is new.
        """
        if message.type != "progress":
            return False
        limit, run, number = self._limits.get(key), message.run, message.number
        if limit is not None and run is not None and number is not None and self._outbox.progressed(key, run, number):
            self._deadlines.set(key, now + limit)
            self._actions.append(Part(key, message.payload, run, number))
        return True

    def clear(self) -> None:
        """Forget all of them."""
        self._limits.clear()
