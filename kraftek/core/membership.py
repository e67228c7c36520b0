"""Which session is in which room: in the session, in the roster, and in the room cache that services read.

Called by :mod:`kraftek.core.admission` and :mod:`kraftek.core.access_watch`. What the room cache could not be told,
because Redis was away or had too much to do, is owed to it and written later.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from kraftek.contract.errors import Code, NotPublished
from kraftek.contract.interfaces import IBus, IRooms
from kraftek.contract.log_once import OnceUntilItWorks
from kraftek.contract.messages import Grant
from kraftek.contract.names import gateway_of, reply_channel
from kraftek.core.roster import Roster
from kraftek.core.session import SUSPENDED, Session

__all__ = ["Membership"]

_WRITES_PER_SWEEP = 500
"""Writes to the room cache that are made up for at a time: all of them would be too much for Redis again."""

_PAUSE = 0.025
"""Seconds between two such portions when everybody has left, and the process waits for nothing else."""


class Membership:
    """The rooms of the sessions on this process. ``single``: one socket per user and room, the newest."""

    _log = Logger()

    def __init__(self, rooms: IRooms, bus: IBus, roster: Roster, clock: IReactorTime, *, single: bool = True) -> None:
        self._rooms = rooms
        self._bus = bus
        self._roster = roster
        self._clock = clock
        self._single = single
        # What the room cache is owed: who entered a room, whose entries are left behind, and all that there is.
        self._unannounced: set[tuple[Session, str]] = set()
        self._ghosts: list[tuple[str, str, str, str]] = []
        self._unrestored = False
        self._once = OnceUntilItWorks()

    def enter(self, session: Session, room_id: str | None, grant: Grant) -> None:
        """The session has this grant from now on, and is in the room, or goes on being in it."""
        known = room_id in session.rooms
        session.rooms[room_id] = grant
        if room_id is None:
            return
        self._roster.enter(session, room_id)
        if session.room_id is None:
            session.room_id = room_id
        if known:
            return
        self._announce(session, room_id)
        if self._single:
            for other in tuple(self._roster.user(grant.user_id)):
                if other is not session and room_id in other.rooms:
                    other.supersede()

    def suspend(self, session: Session, room_id: str | None) -> None:
        """The session stays in the room, but may send nothing, and gets nothing, until it enters again."""
        session.rooms[room_id] = SUSPENDED
        if room_id is not None:
            self._roster.leave(session, room_id)

    def leave(self, session: Session, room_id: str | None, reason: str) -> None:
        """The session leaves the room, and services are told for what ``reason``."""
        del session.rooms[room_id]
        if room_id is None:
            return
        self._roster.leave(session, room_id)
        if session.room_id == room_id:
            session.room_id = next((other for other in session.rooms if other is not None), None)
        self._vacate(session, room_id, reason)

    def departed(self, session: Session) -> None:
        """The client is gone, and is in no room."""
        for room_id in session.rooms:
            if room_id is not None:
                self._vacate(session, room_id, "closed")
        self._roster.remove(session)
        session.rooms = {}

    def restore(self) -> None:
        """Write to the room cache what this process knows, wherever it has been lost."""
        if not self._bus.available:
            return
        # In this order: an entry that was left behind would supersede its user's new socket, and so would the entry of
        # an older login elsewhere supersede one that could not be announced.
        self._unrestored = False
        announced = self._catch_up(len(self._ghosts) + len(self._unannounced))
        entries = [
            (session.user_id, room_id, session.socket_id)
            for session in self._roster
            if session.user_id is not None
            for room_id in session.rooms
            if room_id is not None and (session, room_id) not in announced
        ]
        if entries:
            restoring = self._rooms.restore(entries)
            restoring.addErrback(self._not_restored)
            if self._single:
                restoring.addCallback(self._superseded)
            restoring.addCallbacks(self._room_cache_kept, self._room_cache_lost)

    def sweep(self) -> None:
        """Write a portion of what the room cache is owed."""
        if self._bus.available:
            self._catch_up(_WRITES_PER_SWEEP)
            if self._unrestored and not self._ghosts:
                self.restore()

    async def finish(self) -> None:
        """Return when the room cache was told of all that left, in portions that Redis can take; or when it is away."""
        while self._ghosts and self._bus.available:
            self._catch_up(_WRITES_PER_SWEEP)
            await deferLater(self._clock, _PAUSE)

    def _catch_up(self, most: int) -> set[tuple[Session, str]]:
        """Write what the room cache is owed. Gives who is announced by that."""
        ghosts, self._ghosts = self._ghosts[:most], self._ghosts[most:]
        for ghost in ghosts:
            self._withdraw(*ghost)
        announced = set(islice(self._unannounced, most))
        self._unannounced -= announced
        for session, room_id in announced:
            self._announce(session, room_id)
        return announced

    def _announce(self, session: Session, room_id: str) -> None:
        # After the ghosts, of which one may be of this very socket.
        if not self._bus.available or self._ghosts:
            self._unannounced.add((session, room_id))
            return

        def not_sent(failure: Failure) -> Failure:
            # When the connection was lost on the way it may have been written, and is restored.
            if failure.check(NotPublished) and self._bus.available:
                self._unannounced.add((session, room_id))
            return failure

        user_id = session.user_id
        assert user_id is not None
        entering = self._rooms.enter(user_id, room_id, session.socket_id)
        entering.addErrback(not_sent)
        if self._single:
            entering.addCallback(self._displaced, room_id)
        entering.addCallbacks(self._room_cache_kept, self._room_cache_lost)

    def _vacate(self, session: Session, room_id: str, reason: str) -> None:
        if (session, room_id) in self._unannounced:
            self._unannounced.remove((session, room_id))
            return
        user_id = session.user_id
        assert user_id is not None
        self._withdraw(user_id, room_id, session.socket_id, reason)

    def _withdraw(self, user_id: str, room_id: str, socket_id: str, reason: str) -> None:
        def left_behind(failure: Failure) -> Failure:
            if failure.check(NotPublished):
                self._ghosts.append((user_id, room_id, socket_id, reason))
            return failure

        leaving = self._rooms.leave(user_id, room_id, socket_id, reason)
        leaving.addErrback(left_behind).addCallbacks(self._room_cache_kept, self._room_cache_lost)

    def _displaced(self, socket_id: str | None, room_id: str) -> None:
        """The entry was that of another socket: its process closes it."""
        if socket_id is None or self._roster.socket(socket_id) is not None:
            return
        command = {
            "type": "disconnect",
            "recipients": [socket_id],
            "roomId": room_id,
            "payload": {"code": Code.DUPLICATE_CONNECTION},
        }
        channel = reply_channel(gateway_of(socket_id))
        self._bus.publish(channel, msgspec.json.encode(command), lambda _: None)

    def _superseded(self, socket_ids: Sequence[str]) -> None:
        for socket_id in socket_ids:
            session = self._roster.socket(socket_id)
            if session is not None:
                session.supersede()

    def _not_restored(self, failure: Failure) -> Failure:
        if failure.check(NotPublished) and self._bus.available:
            self._unrestored = True
        return failure

    def _room_cache_kept(self, _: None) -> None:
        self._once.works()

    def _room_cache_lost(self, failure: Failure) -> None:
        # Restored when Redis is back. What it refuses, as without memory, it refuses for everybody.
        if failure.check(NotPublished) is None:
            self._once.failed(self._log.failure, "The room cache is not written, until it can be", failure=failure)
