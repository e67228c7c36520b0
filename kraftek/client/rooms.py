"""The rooms of a client, across reconnects: docs/client-protocol.rst, "Rooms", "Reconnecting".

Used by :class:`kraftek.client.conversation.Conversation`. Times are in seconds of a monotonic clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Set
from itertools import chain
from typing import Any

import msgspec

from kraftek.client.backoff import Backoff
from kraftek.client.deadlines import PATIENCE, Deadlines
from kraftek.client.errors import Closed, Refused
from kraftek.client.frames import frame, is_for_later, refused
from kraftek.client.messages import Action, Hear, Message, Settle
from kraftek.client.outbox import Kind, Outbox
from kraftek.client.presence import Watching
from kraftek.client.recovery import Recovery
from kraftek.contract.messages import ReceivedError

__all__ = ["Rooms"]

_AGAIN = "again "
"""The prefix of a join's id for the deadline after which it is sent again, after ``AUTH_UNAVAILABLE``."""


class Rooms:
    """The rooms to be in: those that it was in, and those that are still to be joined. The rest is the conversation's.

    After a reconnect they are joined again, and nothing else is sent before the gateway has answered for each. A room
    that cannot be asked about yet is ``closed``: what is for it goes on waiting, and the rest does not. ``data``: what
    the client shows of itself in its rooms.
    """

    def __init__(
        self,
        rooms: tuple[str, ...],
        *,
        actions: deque[Action],
        deadlines: Deadlines,
        outbox: Outbox,
        ids: Iterator[str],
        backoff: Backoff,
        recovery: Recovery,
        watching: Watching,
        data: Any = None,
    ) -> None:
        self._actions = actions
        self._deadlines = deadlines
        self._outbox = outbox
        self._ids = ids
        self._backoff = backoff
        self._recovery = recovery
        self._watching = watching
        self._data = data
        # What it shows of itself in some rooms, where that is something else.
        self._shown: dict[str, Any] = {}
        self._rooms = dict.fromkeys(rooms)
        self._first: str | None = None
        self._joins: dict[str, str] = {}
        # The joins among them that rejoin rooms after a reconnect, and those that everything else waits for.
        self._rejoins: set[str] = set()
        self._awaited: set[str] = set()
        self._unknown: set[str] = set()
        self._leaves: set[str] = set()

    @property
    def names(self) -> list[str]:
        """The rooms that it is in, or joins as soon as it is connected; the first is the default room of events."""
        return [*dict.fromkeys((*self._rooms, *self._joins.values()))]

    @property
    def default(self) -> str | None:
        """The default room of events."""
        return next(chain(self._rooms, self._joins.values()), None)

    @property
    def are_asked_for(self) -> bool:
        """Whether the gateway has yet to answer for one that is entered with this socket."""
        return bool(self._awaited)

    @property
    def closed(self) -> Set[str]:
        """The rooms that could not be asked about yet: what is for them waits."""
        return self._unknown

    @property
    def joining(self) -> int:
        """How many calls wait to be in a room."""
        return len(self._joins)

    def show(self) -> dict[str, Any]:
        """The room to authenticate for: none if requests that were sent from none are to be sent again, before all."""
        self._first = None if self._outbox.is_from_nowhere else next(iter(self._rooms), None)
        return self._named(self._first)

    def enter(self, payload: Any, now: float) -> None:
        """The socket is authenticated, with this payload: join all others."""
        first = self._first
        for key in [key for key, room_id in self._joins.items() if room_id == first]:
            self._rooms[self._joins[key]] = None
            self._forget(key)
            self._settle(key, None)
        for room_id in self._rooms:
            if room_id not in {first, *self._joins.values()}:
                key = next(self._ids)
                self._joins[key] = room_id
                self._rejoins.add(key)
                self._deadlines.set(key, now + PATIENCE)
        self._outbox.put_first({key: frame("join", self._named(name), key) for key, name in self._joins.items()})
        self._awaited = {*self._joins}
        if first is not None and first in self._rooms:
            self._is_in(first, payload)
        elif first is not None:
            # It was left while it was being joined.
            self._leave(next(self._ids), first, now + PATIENCE)

    def join(self, room_id: str, due: float, *, ready: bool, data: Any = None) -> str:
        """Join a room, also after every reconnect; settled under the id returned, at ``due`` at the latest."""
        if data is not None:
            self._shown[room_id] = data
        key = next(self._ids)
        self._joins[key] = room_id
        self._deadlines.set(key, due)
        if ready:
            self._outbox.put(key, Kind.CONTROL, frame("join", self._named(room_id), key))
        return key

    def leave(self, room_id: str, due: float, *, ready: bool) -> str:
        """Leave a room; settled under the id returned, at ``due`` at the latest."""
        self._rooms.pop(room_id, None)
        self._is_out(room_id)
        for key in [key for key, its_room in self._joins.items() if its_room == room_id]:
            self._forget(key)
            self._settle(key, Refused("LEFT", f"room {room_id} was left before it was entered"))
        key = next(self._ids)
        if ready:
            self._leave(key, room_id, due)
        else:
            self._settle(key, None)
        return key

    def answered(self, key: object, message: Message, error: ReceivedError | None, now: float) -> str | None:
        """The gateway's answer to a ``join`` or a ``leave``. The room, if it was entered by it."""
        if key in self._leaves:
            # An error means that it is not in the room, so the room is left as well.
            self._leaves.discard(str(key))
            self._deadlines.cancel(str(key))
            self._settle(str(key), None)
        return self._entered(str(key), message, error, now) if key in self._joins else None

    def are_meant(self, key: object) -> bool:
        """Whether this is the id of a ``join`` or a ``leave`` that has no answer."""
        return key in self._joins or key in self._leaves

    def revoked(self, room_id: str | None) -> None:
        """Access to a room is taken back. The last one is kept: the socket is closed with it, and ``connect()`` joins
        it again. For the gateway it is not the last one while another is still to be left.
        """
        rest = {room: None for room in self._rooms if room != room_id}
        if room_id is not None and (rest or self._leaves):
            self._rooms = rest
            self._is_out(room_id)

    def wake(self, key: str, now: float, *, ready: bool) -> bool:
        """The time of this name has come. Whether it is one of rooms that needs no other socket."""
        if key.startswith(_AGAIN):
            self._join_again(key.removeprefix(_AGAIN), now)
            return True
        if not self.are_meant(key) or key in self._rejoins:
            return False
        room_id = self._joins.get(key)
        if room_id is None:
            self._leaves.remove(key)
            self._outbox.discard(key)
        else:
            self._forget(key)
            if ready and room_id not in {*self._rooms, *self._joins.values()}:
                # The join may still succeed, without its caller knowing.
                self._leave(next(self._ids), room_id, now + PATIENCE)
        self._settle(key, Refused("TIMEOUT", "no answer in time"))
        return True

    def socket_lost(self) -> None:
        """What was about the socket is over."""
        for key in tuple(self._rejoins):
            self._forget(key)
        for key in self._joins:
            self._deadlines.cancel(_AGAIN + key)
        for key in self._leaves:
            self._deadlines.cancel(key)
            self._settle(key, None)
        self._leaves.clear()
        self._awaited.clear()
        self._unknown.clear()

    def close(self, end: Closed) -> None:
        """The client is closed: nothing is joined any more."""
        for key in self._joins:
            self._settle(key, end)
        for key in self._leaves:
            self._settle(key, None)
        for part in (self._joins, self._rejoins, self._awaited, self._unknown, self._leaves):
            part.clear()

    def _entered(self, key: str, message: Message, error: ReceivedError | None, now: float) -> str | None:
        room_id = self._joins[key]
        again = room_id in self._rooms
        if error is not None and is_for_later(error):
            self._deadlines.set(_AGAIN + key, now + self._backoff.unavailable(error.retry_after))
            if key in self._rejoins:
                self._deadlines.cancel(key)
            self._awaited.discard(key)
            self._unknown.add(room_id)
            return None
        self._forget(key)
        if error is None:
            self._unknown.discard(room_id)
            self._rooms[room_id] = None
            self._settle(key, None)
            self._is_in(room_id, message.payload)
            return room_id
        self._rooms.pop(room_id, None)
        self._is_out(room_id)
        self._settle(key, refused(error))
        if again:
            # A rejoin: no caller waits for this answer.
            self._actions.append(Hear(msgspec.structs.replace(message, id=None, room_id=room_id)))
        return None

    def _join_again(self, key: str, now: float) -> None:
        self._outbox.put(key, Kind.CONTROL, frame("join", self._named(self._joins[key]), key))
        if key in self._rejoins:
            self._deadlines.set(key, now + PATIENCE)

    def _named(self, room_id: str | None) -> dict[str, Any]:
        data = self._shown.get(room_id or "", self._data)
        shown = {} if data is None or room_id is None else {"data": data}
        return {"roomId": room_id, **self._recovery.since(room_id), **shown}

    def _is_in(self, room_id: str, payload: Any) -> None:
        self._recovery.entered(room_id, payload)
        self._watching.entered(room_id)

    def _is_out(self, room_id: str) -> None:
        self._shown.pop(room_id, None)
        self._recovery.left(room_id)
        self._watching.left(room_id)

    def _leave(self, key: str, room_id: str, due: float) -> None:
        self._leaves.add(key)
        self._deadlines.set(key, due)
        self._outbox.put(key, Kind.CONTROL, frame("leave", {"roomId": room_id}, key))

    def _forget(self, key: str) -> None:
        room_id = self._joins.pop(key)
        if room_id not in self._joins.values():
            self._unknown.discard(room_id)
        self._rejoins.discard(key)
        self._awaited.discard(key)
        self._outbox.discard(key)
        self._deadlines.cancel(key)
        self._deadlines.cancel(_AGAIN + key)

    def _settle(self, key: str, outcome: Refused | Closed | None) -> None:
        self._actions.append(Settle(key, outcome))
