"""The rooms with history that somebody of this process is in: where each is, and what was delivered of it here.

:mod:`kraftek.core.membership` says which rooms are entered, and :mod:`kraftek.core.resuming` where a client begins in
one. What is told to a room comes with the next offset, and is delivered. Whatever else comes, or does not come, is
found by comparing with Redis, and read there: after each gap in listening, when an offset is missing, and all the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.contract.errors import NotPublished
from kraftek.contract.interfaces import IBus, IBusListener, IRoomLogs, Missed, RoomPosition
from kraftek.contract.log_once import OnceUntilItWorks, failing
from kraftek.contract.messages import Delivery, Positioned, Standing
from kraftek.contract.metrics import Counters, ResumeFailure
from kraftek.contract.names import room_channel
from kraftek.core.catch_up import CatchUp
from kraftek.core.deliveries import Deliveries
from kraftek.core.history.rules import Rules
from kraftek.core.roster import Roster
from kraftek.core.session import Session

__all__ = ["FOLLOW_INTERVAL", "FollowedRoom", "Following"]

FOLLOW_INTERVAL = 1.0
"""Seconds between two words of this process that it delivers by its rules: two may fail."""

_SWEEPS = 40
"""Sweeps in which every room is compared once: ten seconds."""

_AT_ONCE = 200
"""Rooms that one call of a script compares: it blocks Redis for a millisecond or two."""

_HEARD = 262_144
"""Bytes that are kept of what is told to a room while its history is read. What is beyond is read once more."""


class FollowedRoom:
    """One room. All up to ``epoch`` and ``offset`` was delivered to those of this process who are in it; the epoch is
    empty until that is known. ``busy``: it is subscribed to, or its history is read; ``heard`` is what is told
    meanwhile, and ``stale`` that something may be missed all the same. ``catching``: the clients that catch up with it.
    ``waiting``: who waits for the end of what it is busy with. ``owed``: somebody was not told where it is.
    """

    __slots__ = ("_heard_bytes", "busy", "catching", "epoch", "heard", "id", "offset", "owed", "stale", "waiting")

    def __init__(self, id: str, epoch: str = "", offset: int = 0) -> None:
        self.id = id
        self.epoch = epoch
        self.offset = offset
        self.busy = self.stale = self.owed = False
        self.heard: list[bytes] = []
        self._heard_bytes = 0
        self.catching: dict[Session, CatchUp] = {}
        self.waiting: list[Deferred[None]] = []

    @property
    def position(self) -> RoomPosition:
        return self.id, self.epoch, self.offset

    def keep(self, told: bytes) -> None:
        """Something was told while it is busy."""
        self._heard_bytes += len(told)
        if self._heard_bytes <= _HEARD:
            self.heard.append(told)
        else:
            self.stale = True

    def rest(self) -> list[bytes]:
        """It is not busy any more. Returns what was heard meanwhile."""
        heard, self.heard, self._heard_bytes, self.busy = self.heard, [], 0, False
        return heard


@implementer(IBusListener)
class Following:
    """``most``: bytes that a client, or a room, may have missed."""

    _log = Logger()

    def __init__(
        self,
        bus: IBus,
        logs: IRoomLogs,
        rules: Rules,
        roster: Roster,
        deliveries: Deliveries,
        counters: Counters,
        *,
        most: int,
    ) -> None:
        self._bus = bus
        self._logs = logs
        self._rules = rules
        self._roster = roster
        self._deliveries = deliveries
        self._counters = counters
        self._rooms: dict[str, FollowedRoom] = {}
        self.most = most
        self._round: Iterator[FollowedRoom] = iter(())
        self._once = OnceUntilItWorks()
        deliveries.followed = self
        if rules:
            bus.add_listener(self)

    def __len__(self) -> int:
        return len(self._rooms)

    def __contains__(self, room_id: object) -> bool:
        return room_id in self._rooms

    def keeps(self, room_id: str | None) -> bool:
        """Whether the room has a history."""
        return bool(self._rules) and room_id is not None and self._rules.keep(room_id)

    def enter(self, room_id: str) -> None:
        """Somebody of this process is in the room."""
        if self._rules and room_id not in self._rooms and self._rules.keep(room_id):
            self._follow(FollowedRoom(room_id))

    def find(self, room_id: str | None) -> FollowedRoom | None:
        """The room, if it has a history and somebody of this process is in it."""
        return None if room_id is None else self._rooms.get(room_id)

    async def position(self, room: FollowedRoom) -> None:
        """Return when Redis has said where the room is, or could not."""
        if not room.busy:
            self._read(room)
        if room.busy:
            waiting: Deferred[None] = Deferred()
            room.waiting.append(waiting)
            await waiting

    def let_go(self, room: FollowedRoom) -> None:
        """Nothing holds back what is told to clients any more that the room has caught up with."""
        for session, catch_up in tuple(room.catching.items()):
            if catch_up.until is not None and catch_up.until <= room.offset:
                del room.catching[session]
                self._roster.hold_back(session, room.id, None)

    def follow(self) -> None:
        """Called every :data:`FOLLOW_INTERVAL` seconds."""
        if self._rules and self._bus.available:
            self._logs.follow().addErrback(self._failed)

    def sweep(self) -> None:
        """Called several times a second: compare some rooms, and leave those in which nobody is any more."""
        if not self._rooms or not self._bus.available:
            return
        some = list(islice(self._round, 1 + len(self._rooms) // _SWEEPS))
        if not some:
            self._round = iter(tuple(self._rooms.values()))
            self._logs.offer().addErrback(self._failed)
        for room in some:
            if not room.busy and not self._roster.room(room.id):
                del self._rooms[room.id]
                self._bus.unfollow(room_channel(room.id))
        self._compare([room for room in some if room.id in self._rooms and not room.busy])

    def give(self) -> list[RoomPosition]:
        """For another version of the gateway, which compares them."""
        return [room.position for room in self._rooms.values() if room.epoch]

    def take(self, positions: Sequence[RoomPosition]) -> None:
        """Go on with them. All sessions are there."""
        for room_id, epoch, offset in positions:
            if self._rules.keep(room_id):
                self._follow(FollowedRoom(room_id, epoch, offset))

    # IBusListener

    def bus_up(self) -> None:
        self.follow()
        self._logs.offer().addErrback(self._failed)
        self._compare(list(self._rooms.values()))

    def bus_down(self) -> None:
        """Nothing to do: all is compared when Redis is back."""

    def epoch_changed(self) -> None:
        self.bus_up()

    # What is told

    def _heard(self, room: FollowedRoom, told: bytes) -> None:
        if room.busy or not room.epoch:
            room.keep(told)
            return
        try:
            epoch, number, message = told.split(b" ", 2)
            offset = int(number)
        except ValueError:
            self._counters.broadcasts_malformed += 1
            return
        if epoch.decode("ascii", "replace") != room.epoch or offset > room.offset + 1:
            self._read(room)
        elif offset == room.offset + 1:
            self._deliver(room, message)

    def _deliver(self, room: FollowedRoom, message: bytes) -> None:
        room.offset += 1
        self._counters.told += 1
        self._deliveries.told(room.id, room.offset, message)
        if room.catching:
            self.let_go(room)

    # Comparing with Redis

    def _follow(self, room: FollowedRoom) -> None:
        self._rooms[room.id] = room
        room.busy = True
        following = self._bus.follow(room_channel(room.id), partial(self._heard, room))
        following.addCallbacks(lambda _: self._read(room, anew=True), self._unread, errbackArgs=(room,))

    def _compare(self, rooms: Sequence[FollowedRoom]) -> None:
        asked = []
        for room in rooms:
            if room.busy:
                room.stale = True
            elif not room.epoch:
                self._read(room)
            else:
                asked.append(room.position)
        for start in range(0, len(asked), _AT_ONCE):
            comparing = self._logs.compare(asked[start : start + _AT_ONCE])
            comparing.addCallback(self._compared).addErrback(self._failed)

    def _compared(self, elsewhere: Sequence[RoomPosition]) -> None:
        for position in elsewhere:
            room = self._rooms.get(position[0])
            if room is not None and not room.busy and room.position == position:  # otherwise it has moved on
                self._read(room)

    def _read(self, room: FollowedRoom, *, anew: bool = False) -> None:
        if room.busy and not anew:
            return
        room.busy = True
        reading = self._logs.read(room.id, room.epoch, room.offset, self.most)
        reading.addCallbacks(self._was_read, self._unread, (room,), errbackArgs=(room,)).addErrback(self._failed)

    def _was_read(self, missed: Missed | None, room: FollowedRoom) -> None:
        self._once.works()
        heard, stale, room.stale = room.rest(), room.stale, False
        if missed is None:
            room.epoch, room.owed = "", True  # by the rules that stand it has no history
        else:
            self._move(room, missed)
        self._rested(room)
        for told in heard:
            self._heard(room, told)
        if stale:
            self._read(room)

    def _move(self, room: FollowedRoom, missed: Missed) -> None:
        """The room is there: by way of all that was missed, or without."""
        before, room.epoch = room.epoch, missed.epoch
        if not before:
            room.offset = missed.offset
            if room.owed:
                room.owed = False
                self._tell_position(room, ResumeFailure.UNAVAILABLE)
            return
        if missed.reason is not None:
            room.offset = missed.offset
            self._tell_position(room, missed.reason)
            return
        if before != room.epoch:
            self._tell_position(room, None)
        self._counters.told_fetched += len(missed.messages)
        for message in missed.messages:
            self._deliver(room, message)

    def _tell_position(self, room: FollowedRoom, reason: str | None) -> None:
        """Where the room is now, to those who did not see it move there; and the reason if they missed something."""
        message = Positioned(room.id, Standing(room.epoch, room.offset, reason is None, reason))
        for session in tuple(self._roster.room(room.id)):
            catch_up = room.catching.get(session)
            if catch_up is not None and catch_up.until is None:
                catch_up.clear()  # it reads what it has missed until now, or once more
                continue
            if catch_up is not None and reason is not None:
                del room.catching[session]
                self._roster.hold_back(session, room.id, None)
            outgoing = session.dialect.encode(message)
            if outgoing is not None:
                outgoing.about = Delivery("", room_id=room.id)
                self._roster.outlet(session, room.id).write(outgoing)

    def _unread(self, failure: Failure, room: FollowedRoom) -> None:
        room.rest()
        self._rested(room)
        self._failed(failure)

    def _rested(self, room: FollowedRoom) -> None:
        waiting, room.waiting = room.waiting, []
        for each in waiting:
            each.callback(None)

    def _failed(self, failure: Failure) -> None:
        if failure.check(NotPublished) is None:
            line = "The history of rooms cannot be read, until it can be"
            self._once.failed(failing(self._log, failure), line)
