"""Who is in a room, for clients that ask: they are told, and of changes from then on: docs/client-protocol.rst.

Called by :mod:`kraftek.core.gateway` when a client asks, by :mod:`kraftek.core.membership` when it is out of a room.
Nothing is remembered of who comes and goes. What there is stands in the room cache; what clients of this process were
told of it stands here, the same for all of them. A word on the room's channel says that these may differ: then the room
is read again, at most once in :data:`PACE` seconds, and the difference is told. A word that was lost costs time only,
because every room is read by and by; so do lost data and a dead gateway. After Redis has lost its data each gateway
writes anew what it knows, as soon as it notices: who is missing until then is not said to have left.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from itertools import islice
from math import inf

import msgspec
from msgspec import Raw, Struct
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.contract.errors import Code, NotPublished, PeerError
from kraftek.contract.interfaces import Here, IBus, IBusListener, IRooms
from kraftek.contract.log_once import OnceUntilItWorks, failing
from kraftek.contract.messages import AskPresence, Delivery, RequestId
from kraftek.contract.metrics import Counters
from kraftek.contract.names import GATEWAY_PRESENCE, shown_key
from kraftek.core.access.permissions import permits
from kraftek.core.budgets import Budgets
from kraftek.core.deliveries import Deliveries
from kraftek.core.rooms.leases import LEASE
from kraftek.core.rooms.shown import Shown
from kraftek.core.roster import Roster
from kraftek.core.session import Session, SessionState

__all__ = ["LARGE_PACE", "PACE", "Presence"]

PACE = 1.0
"""Seconds between two readings of a room, and so between two messages to each of its clients, at least."""

LARGE_PACE = 2.0
"""The same where more users are in the room than clients are told of: a room of 5,000 that fills in ten seconds costs
each of them seven messages."""

_AFTER_GAP = 1.0
"""Seconds until rooms are read after Redis was away: gateways write first what it may have lost."""

_LOOK = 9.0
"""Seconds after which a room may have been read again, and is read although nothing was heard of it."""

_SWEEPS = 4
"""Sweeps in which every room is looked at: a second."""

_AT_ONCE = 250
"""Rooms that one sweep reads: a thousand in a second."""

_TYPE = "presence"


class _User(Struct, rename="camel", omit_defaults=True):
    """One that is there. ``data``: what it shows of itself."""

    user_id: str
    data: Raw | None = None


class _Payload(Struct, rename="camel", omit_defaults=True):
    """``users``: all that the client is told of; or those who are new among them, or show something else, and those who
    are not among them any more. ``count``: how many there are. ``version``: a name for all of that.
    """

    room_id: str
    count: int
    version: str
    users: list[_User] | None = None
    joined: list[_User] | None = None
    left: list[str] | None = None


class WatchedRoom:
    """One room. ``users``, ``count`` and ``version`` are what its ``watchers`` were told, once it is ``known``.
    ``most``: users that are listed. ``asked``: who waits until it is read. ``busy``: it is being read. ``stale``:
    something may have changed since. ``not_before``: when it may be read again, by the clock. ``before``: who was there
    when Redis lost its data, if that is known.
    """

    __slots__ = (
        "asked",
        "before",
        "busy",
        "count",
        "id",
        "known",
        "most",
        "not_before",
        "stale",
        "users",
        "version",
        "watchers",
    )

    def __init__(self, id: str, most: int) -> None:
        self.id = id
        self.most = most
        self.users: Mapping[str, bytes] = {}
        self.count = 0
        self.version = ""
        self.known = False
        self.watchers: dict[Session, None] = {}
        self.asked: list[tuple[Session, AskPresence]] = []
        self.busy = False
        self.stale = True
        self.not_before = 0.0
        self.before: Here | None = None

    @property
    def idle(self) -> bool:
        """Nobody wants to know."""
        return not (self.watchers or self.asked)


@implementer(IBusListener)
class Presence:
    """The rooms that clients of this process watch. False where no room has presence."""

    _log = Logger()

    def __init__(
        self,
        bus: IBus,
        cache: IRooms,
        roster: Roster,
        deliveries: Deliveries,
        budgets: Budgets,
        clock: IReactorTime,
        counters: Counters,
    ) -> None:
        self._bus = bus
        self._cache = cache
        self.shown: Shown = cache.shown
        self._roster = roster
        self._deliveries = deliveries
        self._budgets = budgets
        self._clock = clock
        self._counters = counters
        self._rooms: dict[str, WatchedRoom] = {}
        self._due: dict[WatchedRoom, None] = {}
        self._round: Iterator[WatchedRoom] = iter(())
        self._once = OnceUntilItWorks()
        # The epoch of the data that Redis had last; and until it has all again that it had, when that will be.
        self._epoch: str | None = None
        self._whole_from: float | None = None
        if self.shown:
            bus.add_listener(self)

    def __bool__(self) -> bool:
        return bool(self.shown)

    def __len__(self) -> int:
        return len(self._rooms)

    def ask(self, session: Session, message: AskPresence) -> None:
        """The client wants to know who is in a room that it is in. To be told of everybody costs as much as to join.
        Raises ``PeerError``.
        """
        if not self.shown.most(message.room_id):
            raise PeerError(Code.NO_PRESENCE, "nobody is told who is in this room")
        if not _is_permitted(session, message.room_id):
            raise PeerError(Code.ACCESS_DENIED, f"{GATEWAY_PRESENCE} is not permitted in this room")
        assert session.user_id is not None
        self._budgets.joins(session.user_id)
        room = self._rooms.get(message.room_id) or self._watch(message.room_id)
        if message.version and self._whole_from is not None and room.before is None:
            session.refuse(_unavailable(message))  # it knows of more than can be read
            return
        if not message.changes:
            room.watchers.pop(session, None)
        if room.known and not self._outdated(room, session):
            self._answer(room, session, message)
        elif not room.busy and not self._may_read(room):
            session.refuse(_unavailable(message))
        else:
            session.check_begins()
            room.asked.append((session, message))
            if not room.busy:
                self._read(room)

    def judge(self, session: Session, room_id: str) -> None:
        """The session has another grant for the room."""
        room = self._rooms.get(room_id)
        if room is not None and session in room.watchers and not _is_permitted(session, room_id):
            del room.watchers[session]
            text = "it is not permitted any more to see who is in this room"
            session.refuse(PeerError(Code.ACCESS_DENIED, text, event_type=GATEWAY_PRESENCE, room_id=room_id))

    def interrupted(self, session: Session, room_id: str | None) -> None:
        """The session has not got all that it was sent in the room: tell it of everybody."""
        room = None if room_id is None else self._rooms.get(room_id)
        if room is not None and room.known and session in room.watchers:
            self._send(room, _whole(room), session)

    def left(self, session: Session, room_id: str) -> None:
        """The session is out of the room."""
        room = self._rooms.get(room_id)
        if room is not None:
            room.watchers.pop(session, None)

    def sweep(self) -> None:
        """Called several times a second: read what is due, and let go of rooms that nobody watches."""
        if not self._bus.available:
            return
        now = self._clock.seconds()
        if self._whole_from is not None and self._whole_from <= now:
            self._whole_from = None
            for room in self._rooms.values():
                self._changed(room)
        some = list(islice(self._round, 1 + len(self._rooms) // _SWEEPS))
        if not some:
            self._round = iter(tuple(self._rooms.values()))
        for room in some:
            if room.busy or now < room.not_before + _LOOK:
                continue
            if room.idle:
                del self._rooms[room.id]
                self._due.pop(room, None)
                self._bus.unfollow(shown_key(room.id))
            else:
                self._changed(room)
        for room in list(islice((room for room in self._due if room.not_before <= now), _AT_ONCE)):
            self._read(room)

    # For another version of the gateway

    def watched(self, session: Session) -> list[str]:
        """The rooms of which it is told."""
        rooms = (self._rooms.get(room_id) for room_id in session.rooms if room_id is not None)
        return [room.id for room in rooms if room is not None and session in room.watchers]

    def restore(self, session: Session, room_ids: Sequence[str]) -> None:
        """Go on telling it."""
        for room_id in room_ids:
            if room_id in session.rooms and self.shown.most(room_id):
                (self._rooms.get(room_id) or self._watch(room_id)).watchers[session] = None

    def give(self) -> list[tuple[str, str]]:
        """The version of each room, by which another process knows whether all is as it was told."""
        return [(room.id, room.version) for room in self._rooms.values() if room.version]

    def take(self, versions: Sequence[tuple[str, str]]) -> None:
        """Go on with them. All sessions are there."""
        for room_id, version in versions:
            room = self._rooms.get(room_id)
            if room is not None and not room.known:
                room.version = version
            elif room is not None and room.version != version:
                self._send(room, _whole(room), *room.watchers)

    # IBusListener

    def bus_up(self) -> None:
        """Anything may have been missed. What Redis has lost a gateway that lives writes anew within a lease."""
        now, epoch = self._clock.seconds(), self._bus.epoch
        if self._epoch not in (None, epoch):
            if self._whole_from is None:
                for room in self._rooms.values():
                    room.before = Here(room.count, room.users) if room.known else None
            self._whole_from = inf if epoch is None else now + LEASE
        elif self._whole_from == inf:
            self._whole_from = now
        self._epoch = epoch or self._epoch
        for room in self._rooms.values():
            if room.known:
                room.not_before = max(room.not_before, now + _AFTER_GAP)
            self._changed(room)

    def bus_down(self) -> None:
        """Nothing to do: all is read when Redis is back."""

    def epoch_changed(self) -> None:
        self.bus_up()

    # Reading

    def _watch(self, room_id: str) -> WatchedRoom:
        room = self._rooms[room_id] = WatchedRoom(room_id, self.shown.most(room_id))
        room.busy = True
        following = self._bus.follow(shown_key(room_id), partial(self._woken, room))
        following.addCallbacks(lambda _: self._read(room), self._not_read, errbackArgs=(room,))
        return room

    def _outdated(self, room: WatchedRoom, session: Session) -> bool:
        """Whether it is worth to read the room before this client is answered. One that has just come is to find itself
        there.
        """
        lacks = session.user_id not in room.users and room.count <= room.most
        return (room.stale or lacks) and (room.busy or self._may_read(room))

    def _may_read(self, room: WatchedRoom) -> bool:
        return self._bus.available and room.not_before <= self._clock.seconds()

    def _woken(self, room: WatchedRoom, _: bytes) -> None:
        self._changed(room)
        if room in self._due and self._whole_from is None and self._may_read(room):
            self._read(room)

    def _changed(self, room: WatchedRoom) -> None:
        room.stale = True
        if not (room.idle or room.busy):
            self._due[room] = None

    def _read(self, room: WatchedRoom) -> None:
        self._due.pop(room, None)
        room.busy, room.stale = True, False
        self._counters.presence_reads += 1
        reading = self._cache.here(room.id, room.most, list(room.users))
        reading.addCallbacks(self._was_read, self._not_read, (room,), errbackArgs=(room,)).addErrback(self._failed)

    def _was_read(self, here: Here, room: WatchedRoom) -> None:
        self._once.works()
        room.not_before = self._clock.seconds() + (PACE if here.count <= room.most else LARGE_PACE)
        if self._whole_from is not None and room.before is not None:
            here = _with_missing(here, room.before, room.most)
        if not room.known or (here.count, here.users) != (room.count, room.users):
            before, whole, told = room.users, not room.known, room.version
            room.users, room.count, room.version, room.known = here.users, here.count, _version(here), True
            if room.watchers and room.version != told:
                self._send(room, _whole(room) if whole else _difference(room, before), *room.watchers)
        for session, message in self._rest(room):
            self._answer(room, session, message)
            session.check_ends()

    def _not_read(self, failure: Failure, room: WatchedRoom) -> None:
        room.not_before = self._clock.seconds() + PACE
        asked = self._rest(room)
        self._changed(room)
        for session, message in asked:
            if room.known:
                self._answer(room, session, message)
            else:
                session.refuse(_unavailable(message))
            session.check_ends()
        self._failed(failure)

    def _rest(self, room: WatchedRoom) -> list[tuple[Session, AskPresence]]:
        """It is not busy any more. Returns who has asked meanwhile."""
        asked, room.asked, room.busy = room.asked, [], False
        if room.stale:
            self._changed(room)
        return asked

    # Telling

    def _answer(self, room: WatchedRoom, session: Session, message: AskPresence) -> None:
        if session.state is SessionState.CLOSED:
            return
        if not _is_permitted(session, room.id):
            session.refuse(PeerError(Code.ACCESS_DENIED, "not in this room any more", id=message.id))
            return
        if message.changes:
            room.watchers[session] = None
            if room.stale:
                self._changed(room)
        payload = _whole(room) if message.version != room.version else _Payload(room.id, room.count, room.version)
        session.charge(0, self._send(room, payload, session, id=message.id))

    def _send(self, room: WatchedRoom, payload: _Payload, *sessions: Session, id: RequestId | None = None) -> int:
        body = msgspec.json.encode(payload)
        delivery = Delivery(_TYPE, Raw(body), room.id if id is None else None, id)
        self._deliveries.send(delivery, self._roster.audience_among(room.id, sessions))
        self._counters.presence_told += len(sessions)
        return len(body)

    def _failed(self, failure: Failure) -> None:
        if failure.check(NotPublished) is None:
            line = "It cannot be read who is in rooms, until it can be"
            self._once.failed(failing(self._log, failure), line)


def _is_permitted(session: Session, room_id: str) -> bool:
    """Whether the session may see who is in the room."""
    held = session.rooms.get(room_id)
    return held is not None and (held.permissions is None or permits(held.permissions, GATEWAY_PRESENCE))


def _unavailable(message: AskPresence) -> PeerError:
    return PeerError(Code.SERVICE_UNAVAILABLE, "this cannot be read at present", retry_after=PACE, id=message.id)


def _listed(users: Mapping[str, bytes]) -> list[_User]:
    return [_User(user_id, Raw(data) if data else None) for user_id, data in users.items()]


def _whole(room: WatchedRoom) -> _Payload:
    return _Payload(room.id, room.count, room.version, _listed(room.users))


def _difference(room: WatchedRoom, before: Mapping[str, bytes]) -> _Payload:
    joined = _listed({user_id: data for user_id, data in room.users.items() if before.get(user_id) != data})
    left = [user_id for user_id in before if user_id not in room.users]
    return _Payload(room.id, room.count, room.version, None, joined or None, left or None)


def _with_missing(here: Here, before: Here, most: int) -> Here:
    """Who is there, and who was there before."""
    users = {**before.users, **here.users}
    return Here(max(here.count, before.count, len(users)), dict(islice(users.items(), most)))


def _version(here: Here) -> str:
    """By what is there, not by when: so it is the same on each gateway, and after each fault."""
    text = msgspec.json.encode((here.count, sorted(here.users.items())))
    return blake2b(text, digest_size=8).hexdigest()
