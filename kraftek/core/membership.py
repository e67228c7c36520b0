"""Which session is in which room: in the session, in the roster, and in the room cache that services read.

Called by :mod:`kraftek.core.admission` and :mod:`kraftek.core.access_watch`. It tells
:mod:`kraftek.core.rooms.reconciliation` what should stand in the room cache, and hears from it of users' other sockets.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from twisted.internet.interfaces import IReactorTime

from kraftek.contract.errors import Code, NotPublished
from kraftek.contract.fleet import Fleet
from kraftek.contract.interfaces import IBus, IRooms, Mended, RoomEntry
from kraftek.contract.names import gateway_of, reply_channel
from kraftek.core.presence import Presence
from kraftek.core.resuming import Resuming
from kraftek.core.rooms.reconciliation import Reconciliation
from kraftek.core.roster import Roster
from kraftek.core.session import HeldGrant, Session

__all__ = ["Membership"]


class Membership:
    """The rooms of the sessions on this process. ``single``: one socket per user and room, the newest of those that are
    in it by their tokens: a room that a service gives is no login. ``following``: those of the rooms that have a
    history; ``resuming``: where clients begin in them. ``presence``: what they see of each other.
    """

    def __init__(
        self,
        rooms: IRooms,
        bus: IBus,
        roster: Roster,
        resuming: Resuming,
        clock: IReactorTime,
        fleet: Fleet,
        *,
        presence: Presence,
        single: bool = True,
    ) -> None:
        self._bus = bus
        self.presence = presence
        self.resuming = resuming
        self.following = resuming.following
        self._roster = roster
        self._single = single
        self.reconciliation = Reconciliation(rooms, bus, clock, fleet, self._found)

    def enter(self, session: Session, room_id: str | None, held: HeldGrant, data: bytes = b"") -> None:
        """Store the session's grant, and put it into the room if it is not there yet. ``data``: what it shows of itself
        there, if it has said so.
        """
        known = session.rooms.get(room_id)
        session.rooms[room_id] = held
        if not held.given:
            self._roster.hold(session, held.token.digest)
        if known is not None:
            self._roster.release(session, known.token.digest)
        if room_id is None:
            return
        self.following.enter(room_id)
        self._roster.enter(session, room_id)
        if session.room_id is None and not held.given:
            session.room_id = room_id
        entry = _entry(session, room_id)
        shows_another = bool(data) and self.presence.shown.show(entry, data)
        if known is not None:
            self.presence.judge(session, room_id)
            if known.given == held.given:
                if shows_another:
                    self.reconciliation.doubt(entry)
                return
        self.reconciliation.enter(entry, given=held.given)
        if self._single and not held.given:
            assert session.user_id is not None
            for other in self._roster.user_in(session.user_id, room_id):
                if other is not session:
                    other.supersede()

    def suspend(self, session: Session, room_id: str | None) -> None:
        """The session stays in the room, but cannot send there until it enters again."""
        session.rooms[room_id].suspend()

    def leave(self, session: Session, room_id: str | None, reason: str) -> None:
        """Remove the session from the room. Services get the ``reason``."""
        self._roster.release(session, session.rooms.pop(room_id).token.digest)
        if room_id is None:
            return
        self._roster.leave(session, room_id)
        if session.room_id == room_id:
            session.room_id = next((other for other in session.asked if other is not None), None)
        self._left(session, room_id, reason)

    def shown(self, session: Session) -> list[tuple[str, bytes]]:
        """What it shows of itself, in which rooms: for another version of the gateway."""
        rooms = [room_id for room_id in session.rooms if room_id is not None] if self.presence else []
        given = [(room_id, self.presence.shown.data(_entry(session, room_id))) for room_id in rooms]
        return [(room_id, data) for room_id, data in given if data != b"null"]

    def show(self, session: Session, shown: Iterable[tuple[str, bytes]]) -> None:
        """Go on with it."""
        for room_id, data in shown:
            if room_id in session.rooms:
                self.presence.shown.show(_entry(session, room_id), data)

    def departed(self, session: Session) -> None:
        """The client disconnected: remove its session from all rooms."""
        for room_id in session.rooms:
            if room_id is not None:
                self._left(session, room_id, "closed")
        self._roster.remove(session)
        session.rooms = {}

    def _left(self, session: Session, room_id: str, reason: str) -> None:
        entry = _entry(session, room_id)
        if self.presence:
            self.presence.left(session, room_id)
            self.presence.shown.forget(entry)
        self.reconciliation.leave(entry, reason)

    def _found(self, mended: Mended) -> None:
        """The user has other sockets in the room. Only the newest may stay, and each process closes its own."""
        socket_id = mended.entry[2]
        session = self._roster.socket(socket_id)
        if not self._single or session is None or mended.entry[1] not in session.asked:
            return
        if not mended.newest:
            session.supersede()
            return
        for older in mended.older:
            self._order_to_close(older, mended.entry)

    def _order_to_close(self, socket_id: str, newer: RoomEntry) -> None:
        """Have the process of an older socket close it. It is repeated until the socket is gone."""
        if self._roster.socket(socket_id) is not None:
            return  # closed here already, or about to be found

        def sent(receipt: int) -> None:
            if receipt < 0:
                self.reconciliation.doubt(newer)

        command = {
            "type": "disconnect",
            "recipients": [socket_id],
            "roomId": newer[1],
            "payload": {"code": Code.DUPLICATE_CONNECTION},
        }
        try:
            self._bus.publish(reply_channel(gateway_of(socket_id)), msgspec.json.encode(command), sent)
        except NotPublished:
            self.reconciliation.doubt(newer)


def _entry(session: Session, room_id: str) -> RoomEntry:
    user_id = session.user_id
    assert user_id is not None
    return user_id, room_id, session.socket_id
