"""What a page has of a room with history, over all of its connections, and what is wrong with it.

For the simulation and the chaos run: they pass in what was said, and tell a copy what its client was sent. It goes by
the rules for clients in ``docs/client-protocol.rst``, and holds the gateway to what that page promises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["MOST_SOCKETS", "Copy", "Said"]

MOST_SOCKETS = 8
"""Ids of former sockets that ``since`` may name."""


class Said(NamedTuple):
    """A message to a room: its number, and the sockets that it is not for."""

    number: int
    but_for: frozenset[str] = frozenset()


class Copy:
    """``said`` gives what survives of an epoch, at least to an offset, by offset from 1; ``None`` where nobody knows.
    ``wrong`` is told what must not be. ``epoch`` is empty as long as the page does not know where it is.

    ``seen``: the numbers by offset from 1, or ``None`` for what was not for this page, or is older than its snapshot.
    """

    def __init__(
        self, room: str, said: Callable[[str, str, int], Sequence[Said | None] | None], wrong: Callable[[str], None]
    ) -> None:
        self.room = room
        self.epoch = ""
        self.offset = 0
        self.sockets: list[str] = []
        self.seen: list[int | None] = []
        self.snapshots = 0
        self._said = said
        self._wrong = wrong

    def __repr__(self) -> str:
        return f"{self.room} at {self.epoch}:{self.offset}"

    @property
    def since(self) -> dict[str, Any] | None:
        """What the page sends when it comes back."""
        if not self.epoch:
            return None
        return {"epoch": self.epoch, "offset": self.offset, "socketIds": self.sockets[-MOST_SOCKETS:]}

    def connected(self, socket_id: str) -> None:
        """The page is told the id of its new connection."""
        if socket_id not in self.sockets:
            self.sockets.append(socket_id)

    def answered(self, payload: Mapping[str, Any], since: Mapping[str, Any] | None) -> None:
        """The page is told that it is in the room, when it had said ``since``, or nothing."""
        recovered = payload.get("recovered")
        if since is None and recovered is not None:
            self._wrong(f"{self} did not ask for what it had missed, and gets {payload}")
        if since is not None and recovered is None:
            self._wrong(f"{self} asked for what it had missed, and gets {payload}")
        if recovered:
            if payload["offset"] != self.offset:
                self._wrong(f"{self} goes on, by {payload}")
            self._goes_on(payload["epoch"], payload["offset"])
        else:
            self._begins(payload)

    def positioned(self, payload: Mapping[str, Any]) -> None:
        """The page is told where the room is, at another time."""
        if payload["recovered"]:
            self._goes_on(payload["epoch"], payload["offset"])
        else:
            self._begins(payload)

    def heard(self, offset: int, number: int) -> None:
        """The page is told a message."""
        if not self.epoch:
            self._wrong(f"{self.room} hears {number} at {offset}, and was not told where it is")
            return
        if offset <= self.offset:
            self._wrong(f"{self} hears {number} at {offset}: twice, or too late")
            return
        self._skips(offset - 1)
        known = self._at(self.epoch, offset)
        if known is not None and known.number != number:
            self._wrong(f"{self} hears {number} at {offset}, where {known.number} was said")
        if known is not None and self.sockets and self.sockets[-1] in known.but_for:
            self._wrong(f"{self} hears {number} at {offset}, which was not for {self.sockets[-1]}")
        self.seen.append(number)
        self.offset = offset

    def has_all(self, epoch: str, offset: int) -> None:
        """Nothing is under way: the page is there, and has what was said."""
        if epoch != self.epoch or offset < self.offset:
            self._wrong(f"{self}, and the room is at {epoch}:{offset}")
            return
        self._skips(offset)
        self._compare(epoch, offset)

    def _at(self, epoch: str, offset: int) -> Said | None:
        said = self._said(self.room, epoch, offset)
        return None if said is None or len(said) < offset else said[offset - 1]

    def _begins(self, payload: Mapping[str, Any]) -> None:
        """The page fetches the state, which is what was said until now, or at least until the position that it got."""
        if payload.get("offset") is None:
            self.epoch = ""
            return
        self.epoch, self.offset = payload["epoch"], payload["offset"]
        self.seen = [None] * self.offset
        self.snapshots += 1

    def _goes_on(self, epoch: str, offset: int) -> None:
        if offset < self.offset:
            self._wrong(f"{self} goes on at {epoch}:{offset}")
            return
        before, self.epoch = self.epoch, epoch
        self._skips(offset)
        if before != epoch:
            self._compare(epoch, offset)

    def _skips(self, offset: int) -> None:
        """It gets nothing of what there is until this offset: that was not for it."""
        for skipped in range(self.offset + 1, offset + 1):
            said = self._at(self.epoch, skipped)
            if said is None or said.but_for.isdisjoint(self.sockets[-1 - MOST_SOCKETS :]):
                self._wrong(f"{self} misses {skipped}, {said}")
            self.seen.append(None)
        self.offset = max(self.offset, offset)

    def _compare(self, epoch: str, offset: int) -> None:
        said = self._said(self.room, epoch, offset)
        differing = [
            (at, one, other)
            for at, (one, other) in enumerate(zip(self.seen[:offset], said or (), strict=False), 1)
            if one is not None and other is not None and one != other.number
        ]
        if differing or (said is not None and len(said) < offset):
            self._wrong(f"{self} has other messages than survive until {epoch}:{offset}: {differing[:5]}")
