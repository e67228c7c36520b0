"""Rooms that services give: they put users or sockets into a room, and take them out of one, by commands to gateways.

Called by :mod:`kraftek.core.deliveries`. Such a room is a grant of its own kind. The auth service is not asked about
it, and it lasts until the socket is gone, leaves the room or is taken out, or its user's access is invalidated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Final

import msgspec
from msgspec import Raw, Struct
from twisted.logger import Logger

from kraftek.contract.interfaces import IBus
from kraftek.contract.log_once import OnceAMinute
from kraftek.contract.messages import ROOM_ID_LENGTH, Grant, Joined, Standing
from kraftek.contract.metrics import Counters
from kraftek.contract.names import INVALIDATION, ROOM_PUT, ROOM_REMOVE
from kraftek.contract.settings import Limits
from kraftek.core.access.invalidation import Invalidation
from kraftek.core.access_watch import AccessWatch
from kraftek.core.resuming import Resuming
from kraftek.core.roster import Roster
from kraftek.core.session import Session, SessionState

__all__ = ["GivenRooms"]


class _Put(Struct):
    """``permissions``: patterns over the events that may be sent from the room; without any it is only heard."""

    permissions: tuple[str, ...] = ()


_decode_put: Final = msgspec.json.Decoder(_Put | None).decode
_decode_invalidation: Final = msgspec.json.Decoder(Invalidation).decode


class GivenRooms:
    """Carries the commands out, and ends what invalidations end. ``limits``: its ``rooms`` bound those of a socket,
    these included. ``now`` returns Unix seconds.
    """

    _log = Logger()

    def __init__(
        self,
        bus: IBus,
        access_watch: AccessWatch,
        resuming: Resuming,
        roster: Roster,
        limits: Limits,
        counters: Counters,
        *,
        seconds: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self._access_watch = access_watch
        self._resuming = resuming
        self._roster = roster
        self._limits = limits
        self._counters = counters
        self._now = now
        self._once_a_minute = OnceAMinute(seconds)
        bus.subscribe(INVALIDATION, self._invalidated)

    def obey(self, command: str, room_id: str | None, sessions: Collection[Session], payload: Raw) -> None:
        """Do it for these sessions. Raises ``msgspec.DecodeError`` for what is no such command."""
        if not room_id or len(room_id) > ROOM_ID_LENGTH:
            raise msgspec.ValidationError(f"expected a roomId of 1 to {ROOM_ID_LENGTH} characters")
        if command == ROOM_PUT:
            put = _decode_put(payload) or _Put()
            for session in tuple(sessions):
                self._put(session, room_id, put.permissions)
        elif command == ROOM_REMOVE:
            for session in tuple(sessions):
                if session.state is not SessionState.CLOSED and room_id in session.rooms:
                    self._access_watch.put_out(session, room_id, "was ended by a service", "removed")
        else:
            raise msgspec.ValidationError("expected a command that this version knows")

    def _put(self, session: Session, room_id: str, permissions: tuple[str, ...]) -> None:
        user_id = session.user_id
        if session.state is SessionState.CLOSED or user_id is None or session.is_expired(self._now()):
            return
        held = session.rooms.get(room_id)
        if held is not None:
            if held.given:
                held.permissions = permissions
            return  # what the auth service has allowed goes by what it said
        if len(session.rooms.keys() - {None}) >= self._limits.rooms:
            self._counters.rooms_not_given += 1
            line = "A service puts sockets into more than {most} rooms (limits.rooms): into {room} it did not"
            self._once_a_minute(self._log.warn, line, most=self._limits.rooms, room=room_id)
            return
        self._counters.rooms_given += 1
        let_in = partial(self._access_watch.give, session, room_id, Grant(user_id, room_id, permissions))
        self._resuming.enter(session, room_id, None, let_in, partial(self._tell, session, room_id))

    def _tell(self, session: Session, room_id: str, standing: Standing | None) -> None:
        session.send(Joined(room_id, standing=standing))

    def _invalidated(self, body: bytes) -> None:
        try:
            message = _decode_invalidation(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return  # the access cache says so
        for session in tuple(self._roster.user(message.user_id)):
            given = [room_id for room_id, held in session.rooms.items() if held.given]
            for room_id in given:
                if not message.room_id or message.room_id == room_id:
                    self._access_watch.put_out(session, room_id, "was revoked", "revoked")
