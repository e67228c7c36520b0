"""Which session is in which room: in the session, in the roster, and in the room cache that services read.

Called by :mod:`kraftek.core.admission` and :mod:`kraftek.core.access_watch`. Changes that could not be written to the
room cache, because Redis was unavailable or overloaded, are written later.
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
from kraftek.contract.names import gateway_of, reply_channel
from kraftek.core.roster import Roster
from kraftek.core.session import HeldGrant, Session

__all__ = ["Membership"]

_WRITES_PER_SWEEP = 500
"""Late writes to the room cache per sweep: all of them at once would overload Redis again."""

_PAUSE = 0.025
"""Seconds between two such batches while the process stops and waits for nothing else."""


class Membership:
    """The rooms of the sessions on this process. ``single``: one socket per user and room, the newest."""

    _log = Logger()

    def __init__(self, rooms: IRooms, bus: IBus, roster: Roster, clock: IReactorTime, *, single: bool = True) -> None:
        self._rooms = rooms
        self._bus = bus
        self._roster = roster
        self._clock = clock
        self._single = single
        # Late writes: sessions that entered a room, entries to remove, and whether all entries are to be restored.
        self._late_entries: set[tuple[Session, str]] = set()
        self._removals: list[tuple[str, str, str, str]] = []
        self._restore_pending = False
        # Older sockets elsewhere that are to be closed, each with the room and the session that took their place.
        self._unclosed: dict[tuple[str, str], Session] = {}
        self._once = OnceUntilItWorks()

    def enter(self, session: Session, room_id: str | None, held: HeldGrant) -> None:
        """Store the session's grant, and put it into the room if it is not there yet."""
        known = session.rooms.get(room_id)
        session.rooms[room_id] = held
        self._roster.hold(session, held.token.digest)
        if known is not None:
            self._roster.release(session, known.token.digest)
        if room_id is None:
            return
        self._roster.enter(session, room_id)
        if session.room_id is None:
            session.room_id = room_id
        if known is not None:
            return
        self._write(session, room_id)
        if self._single:
            assert session.user_id is not None
            for other in tuple(self._roster.user(session.user_id)):
                if other is not session and room_id in other.rooms:
                    other.supersede()

    def suspend(self, session: Session, room_id: str | None) -> None:
        """The session stays in the room, but can neither send nor receive there until it enters again."""
        session.rooms[room_id].suspend()
        if room_id is not None:
            self._roster.leave(session, room_id)

    def leave(self, session: Session, room_id: str | None, reason: str) -> None:
        """Remove the session from the room. Services get the ``reason``."""
        self._roster.release(session, session.rooms.pop(room_id).token.digest)
        if room_id is None:
            return
        self._roster.leave(session, room_id)
        if session.room_id == room_id:
            session.room_id = next((other for other in session.rooms if other is not None), None)
        self._vacate(session, room_id, reason)

    def departed(self, session: Session) -> None:
        """The client disconnected: remove its session from all rooms."""
        for room_id in session.rooms:
            if room_id is not None:
                self._vacate(session, room_id, "closed")
        self._roster.remove(session)
        session.rooms = {}

    def restore(self) -> None:
        """Write this process's entries to the room cache wherever they are missing."""
        if not self._bus.available:
            return
        # Late writes come first: an entry that still has to be removed would supersede its user's new socket, and the
        # entry of an older login on another process would supersede one that has not been written yet.
        self._restore_pending = False
        written = self._catch_up(len(self._removals) + len(self._late_entries))
        entries = [
            (session.user_id, room_id, session.socket_id)
            for session in self._roster
            if session.user_id is not None
            for room_id in session.rooms
            if room_id is not None and (session, room_id) not in written
        ]
        if entries:
            restoring = self._rooms.restore(entries)
            restoring.addErrback(self._not_restored)
            if self._single:
                restoring.addCallback(self._superseded)
            restoring.addCallbacks(self._room_cache_written, self._room_cache_failed)

    def sweep(self) -> None:
        """Write a batch of late writes to the room cache."""
        if self._bus.available:
            unclosed, self._unclosed = self._unclosed, {}
            for (socket_id, room_id), session in unclosed.items():
                self._displaced(socket_id, session, room_id)
            self._catch_up(_WRITES_PER_SWEEP)
            if self._restore_pending and not self._removals:
                self.restore()

    async def finish(self) -> None:
        """Return when all departed sessions are removed from the room cache, or when Redis is unavailable."""
        while self._removals and self._bus.available:
            self._catch_up(_WRITES_PER_SWEEP)
            await deferLater(self._clock, _PAUSE)

    def _catch_up(self, most: int) -> set[tuple[Session, str]]:
        """Write up to ``most`` removals and entries that are late. Returns the entries."""
        removals, self._removals = self._removals[:most], self._removals[most:]
        for removal in removals:
            self._remove(*removal)
        written = set(islice(self._late_entries, most))
        self._late_entries -= written
        for session, room_id in written:
            self._write(session, room_id)
        return written

    def _write(self, session: Session, room_id: str) -> None:
        # Only after the removals, of which one may be of this very socket.
        if not self._bus.available or self._removals:
            self._late_entries.add((session, room_id))
            return

        def not_sent(failure: Failure) -> Failure:
            # If the connection was lost meanwhile it may have been written; it is restored then.
            if failure.check(NotPublished) and self._bus.available:
                self._late_entries.add((session, room_id))
            return failure

        user_id = session.user_id
        assert user_id is not None
        entering = self._rooms.enter(user_id, room_id, session.socket_id)
        entering.addErrback(not_sent)
        if self._single:
            entering.addCallback(self._displaced, session, room_id)
        entering.addCallbacks(self._room_cache_written, self._room_cache_failed)

    def _vacate(self, session: Session, room_id: str, reason: str) -> None:
        if (session, room_id) in self._late_entries:
            self._late_entries.remove((session, room_id))
            return
        user_id = session.user_id
        assert user_id is not None
        self._remove(user_id, room_id, session.socket_id, reason)

    def _remove(self, user_id: str, room_id: str, socket_id: str, reason: str) -> None:
        def not_removed(failure: Failure) -> Failure:
            if failure.check(NotPublished):
                self._removals.append((user_id, room_id, socket_id, reason))
            return failure

        leaving = self._rooms.leave(user_id, room_id, socket_id, reason)
        leaving.addErrback(not_removed).addCallbacks(self._room_cache_written, self._room_cache_failed)

    def _displaced(self, socket_id: str | None, session: Session, room_id: str) -> None:
        """The entry was that of another socket: have its process close it, unless it has its place again."""
        if socket_id is None or self._roster.socket(socket_id) is not None:
            return
        if room_id not in session.rooms and not session.superseded:
            return

        def sent(receipt: int) -> None:
            if receipt < 0:
                self._unclosed[socket_id, room_id] = session

        command = {
            "type": "disconnect",
            "recipients": [socket_id],
            "roomId": room_id,
            "payload": {"code": Code.DUPLICATE_CONNECTION},
        }
        try:
            self._bus.publish(reply_channel(gateway_of(socket_id)), msgspec.json.encode(command), sent)
        except NotPublished:
            self._unclosed[socket_id, room_id] = session

    def _superseded(self, socket_ids: Sequence[str]) -> None:
        for socket_id in socket_ids:
            session = self._roster.socket(socket_id)
            if session is not None:
                session.supersede()

    def _not_restored(self, failure: Failure) -> Failure:
        if failure.check(NotPublished) and self._bus.available:
            self._restore_pending = True
        return failure

    def _room_cache_written(self, _: None) -> None:
        self._once.works()

    def _room_cache_failed(self, failure: Failure) -> None:
        # Restored when Redis is available again. What it refuses, as without memory, it refuses for all entries.
        if failure.check(NotPublished) is None:
            self._once.failed(self._log.failure, "The room cache is not written, until it can be", failure=failure)
