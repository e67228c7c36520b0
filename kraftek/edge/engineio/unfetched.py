"""What a polling client was sent and has not fetched. Made by :mod:`kraftek.edge.engineio.clients` for each."""

from __future__ import annotations

from math import inf
from sys import maxsize
from typing import Protocol

from kraftek.contract.messages import Outgoing
from kraftek.edge.backlogs import Backlog, Backlogs, SlowClient
from kraftek.edge.engineio.connection import CLOSE_TIMEOUT

__all__ = ["Unfetched", "Unread"]

_TURNAROUND = 1.0
"""Seconds that a client has from the answer to its poll to the next one, before what waits is held against it."""


class Unread(Protocol):
    """An answer that its client has not read, and that is in the account until it has. ``left``: bytes of it that the
    transport has not been given, 0 when it has all of them.
    """

    @property
    def left(self) -> int: ...

    def abort(self) -> None:
        """Drop what is left, and the connection; nothing when all was read."""


class Unfetched:
    """The messages that wait for the client's next poll, and the answer to the last one as long as it is ``unread``.

    All of it is in the account ``unsent``. In the first second after an answer began, or was read, the client is on its
    way to the next poll, and policies do not apply.
    """

    __slots__ = ("_answered_at", "_backlog", "_backlogs", "_client", "_unread")

    def __init__(self, client: SlowClient, backlogs: Backlogs) -> None:
        self._client = client
        self._backlogs = backlogs
        self._answered_at = -inf
        self._backlog: Backlog | None = None
        self._unread: Unread | None = None

    @property
    def unread(self) -> bool:
        """Whether the client has yet to read some of the last answer."""
        return self._unread is not None

    def put(self, outgoing: Outgoing) -> bool:
        """Have it wait. ``False``: there is no room for it."""
        backlog = self._waiting()
        if self._backlogs.clock.seconds() < self._answered_at + _TURNAROUND:
            return backlog.keep(outgoing)
        return backlog.put(outgoing)

    def take(self) -> list[Outgoing]:
        """The client fetches all that waits."""
        backlog, self._backlog = self._backlog, None
        messages: list[Outgoing] = []
        if backlog is not None:
            while more := backlog.take(maxsize):  # what was found too old is told after the others
                messages += more
            backlog.end()
        return messages

    def answered(self) -> None:
        """Its poll is about to be answered."""
        self._answered_at = self._backlogs.clock.seconds()

    def begin(self, unread: Unread) -> None:
        """Its transport did not take all of the answer."""
        self._unread = unread
        backlog = self._waiting()
        backlog.due, backlog.begun = True, unread.left

    def progress(self) -> None:
        """It has read some of the answer, or all of it."""
        unread, backlog, now = self._unread, self._backlog, self._backlogs.clock.seconds()
        if unread is None:
            return
        if not unread.left:
            self._unread = None
            self._answered_at = now
        if backlog is not None:
            backlog.due, backlog.begun, backlog.progress = unread.left > 0, unread.left, now

    def drop(self) -> None:
        """It fetches nothing of what waits. What it has begun to read it may go on with, unless that is too much."""
        unread, backlog, self._backlog = self._unread, self._backlog, None
        if backlog is not None:
            backlog.end()
        if unread is not None and unread.left > self._backlogs.limit:
            self._unread = None
            unread.abort()

    def end(self) -> None:
        """It polls no more. It has as long to read the rest of an answer as to fetch what was left."""
        self.drop()
        unread, self._unread = self._unread, None
        if unread is not None:
            self._backlogs.clock.callLater(CLOSE_TIMEOUT, unread.abort)

    def lost(self) -> None:
        """The connection of the last answer is gone."""
        self._unread = None

    def _waiting(self) -> Backlog:
        if self._backlog is None:
            self._backlog = self._backlogs.begin(self._client, 0)
        return self._backlog
