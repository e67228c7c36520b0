"""A client that has lost its socket comes back as what it was: in its rooms, with all that these were told meanwhile.

Called by :mod:`kraftek.core.admission` for a client that shows what it was (:class:`kraftek.contract.messages.Recover`)
together with a token. What was kept of it is in :mod:`kraftek.core.recoverable`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace
from twisted.internet.defer import Deferred, gatherResults
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.contract.errors import NotPublished, PeerError, Refusal
from kraftek.contract.interfaces import IAccess, IBus, IOutlet, Recovered, SocketRecord, TopicPosition
from kraftek.contract.messages import Admitted, Authenticate, Authenticated, Delivery, Grant, Outgoing, Recover
from kraftek.contract.metrics import Counters, RecoveryFailure
from kraftek.contract.names import room_topic
from kraftek.contract.order import number_in
from kraftek.core.access_watch import AccessWatch
from kraftek.core.budgets import Asker, Budgets
from kraftek.core.deliveries import Deliveries
from kraftek.core.followed import STEP
from kraftek.core.membership import Membership
from kraftek.core.recoverable import Recoverable
from kraftek.core.roster import Roster
from kraftek.core.session import Session, SessionState

__all__ = ["Recovering"]

_SOCKETS = 8
"""Sockets that a client has had before and that are remembered: of what was not for them it is not told."""


class _NotRecoveredError(Exception):
    """With the :class:`RecoveryFailure`."""

    def __init__(self, reason: RecoveryFailure) -> None:
        super().__init__(reason)
        self.reason = reason


@implementer(IOutlet)
class _Hold:
    """What is sent to a client that is about to be let in, up to so many bytes."""

    def __init__(self, most: int) -> None:
        self._left = most
        self.kept: list[Outgoing] = []

    @property
    def overrun(self) -> bool:
        return self._left < 0

    def forget_others(self) -> None:
        """What is not part of a history was sent before the client is let in."""
        self.kept = [each for each in self.kept if each.about is not None and each.about.offset is not None]

    def later_than(self, offsets: Mapping[str, int]) -> list[Outgoing]:
        """What the rooms were told after these offsets."""
        return [each for each in self.kept if not _is_told(each.about, offsets)]

    def write(self, outgoing: Outgoing) -> None:
        """As that of a link."""
        self._left -= len(outgoing.text) + sum(map(len, outgoing.attachments))
        if not self.overrun:
            self.kept.append(outgoing)


def _as_answer(failure: Failure) -> PeerError:
    failure.trap(PeerError)
    assert isinstance(failure.value, PeerError)
    return failure.value


def _is_told(about: Delivery | None, offsets: Mapping[str, int]) -> bool:
    if about is None or about.offset is None or about.room_id is None:
        return False
    return about.offset <= offsets[about.room_id]


class Recovering:
    """Lets clients in as what they were. Whatever is not certain is a no, and the client is let in as another one."""

    def __init__(
        self,
        access: IAccess,
        access_watch: AccessWatch,
        membership: Membership,
        roster: Roster,
        deliveries: Deliveries,
        budgets: Budgets,
        counters: Counters,
        *,
        recoverable: Recoverable,
        bus: IBus,
    ) -> None:
        self._access = access
        self._access_watch = access_watch
        self._membership = membership
        self._following = membership.following
        self._roster = roster
        self._deliveries = deliveries
        self._budgets = budgets
        self._counters = counters
        self.recoverable = recoverable
        self._ordering = membership.following.ordering
        self._logs = membership.resuming.logs
        self._turns = membership.resuming.turns
        self._bus = bus

    def begin(self, session: Session, message: Authenticate, was: Recover, data: bytes) -> None:
        """The client says what it was. It is answered, and let in. ``data``: what it shows of itself in the room that
        it names.
        """
        session.check_begins()
        recovering = Deferred.fromCoroutine(self._begin(session, message, was, data))
        recovering.addBoth(session.check_ends)

    async def _begin(self, session: Session, message: Authenticate, was: Recover, data: bytes) -> None:
        hold = _Hold(self._following.most)
        rooms: Sequence[str] = ()
        try:
            owner, record = await self._found(was)
            if session.state is SessionState.CLOSED:
                return
            rooms = [room_id for room_id, _, _ in record.rooms]
            missed = await self._missed(session, record, was.last, hold)
            past = await self._past(session, (*record.sockets, session.socket_id), rooms, missed)
            checking = [self._check(session, message, room_id).addErrback(_as_answer) for room_id in rooms]
            answers = await gatherResults(checking, consumeErrors=True)
            for answer in answers:
                if isinstance(answer, PeerError):
                    raise answer
                if answer.user_id != record.user_id:
                    raise _NotRecoveredError(RecoveryFailure.UNKNOWN)
            self._budgets.joins(record.user_id, len(rooms))
            record = replace(
                record, sockets=(*record.sockets, session.socket_id)[-_SOCKETS - 1 :], floor=was.last
            )  # fmt: skip
            if not await self.recoverable.records.keep(was.pid, owner, session.socket_id, record):
                raise _NotRecoveredError(RecoveryFailure.UNKNOWN)
            offsets = {room_id: offset for room_id, (_, offset) in zip(rooms, missed.positions, strict=True)}
            await self._enter(session, message, record, hold, data)
            later = hold.later_than(offsets)
            if not _in_order(later):
                raise _NotRecoveredError(RecoveryFailure.UNAVAILABLE)
        except _NotRecoveredError as error:
            self._give_up(session, message, rooms, error.reason)
        except (NotPublished, Refusal):
            self._give_up(session, message, rooms, RecoveryFailure.UNAVAILABLE)
        except PeerError:
            self._give_up(session, message, rooms, RecoveryFailure.ACCESS)
        else:
            self._tell(session, message, was, record, past, later)

    async def _found(self, was: Recover) -> tuple[str, SocketRecord]:
        last = number_in(was.last)
        found = None if last is None else await self.recoverable.records.find(was.pid)
        floor = None if found is None else number_in(found[1].floor)
        if last is None or found is None or floor is None or last < floor:
            raise _NotRecoveredError(RecoveryFailure.UNKNOWN)
        return found

    async def _missed(self, session: Session, record: SocketRecord, last: str, hold: _Hold) -> Recovered:
        """What it has missed, up to some moment. All that its rooms are told later is in ``hold``."""
        for room_id, _, _ in record.rooms:
            if not self._following.keeps(room_id):
                raise _NotRecoveredError(RecoveryFailure.HISTORY)
            self._following.enter(room_id)
            self._roster.enter(session, room_id)
            self._roster.hold_back(session, room_id, hold)
        for room_id, _, _ in record.rooms:
            room = self._following.find(room_id)
            if room is not None and not room.epoch:
                await self._following.position(room)
            if room is None or not room.epoch:
                raise _NotRecoveredError(RecoveryFailure.UNAVAILABLE)
        entered = [(room_topic(room_id), epoch, offset) for room_id, epoch, offset in record.rooms]
        missed = await self._read(session, record.user_id, last, entered)
        if missed.reason is not None:
            raise _NotRecoveredError(RecoveryFailure.HISTORY)
        await self._bus.settled()
        self._ordering.reached(missed.order)
        hold.forget_others()
        return missed

    async def _read(self, session: Session, user_id: str, last: str, entered: Sequence[TopicPosition]) -> Recovered:
        turns, missed = self._membership.resuming.reading, None
        if not await turns.come(session, user_id):
            raise _NotRecoveredError(RecoveryFailure.UNAVAILABLE)
        try:
            missed = await self._logs.recover(last, entered, self._following.most)
        finally:
            turns.end(
                session, user_id, () if missed is None else [(offset, body) for _, offset, _, body in missed.messages]
            )
        return missed

    async def _past(
        self, session: Session, sockets: Sequence[str], rooms: Sequence[str], missed: Recovered
    ) -> list[Outgoing]:
        """What it is to be sent of that, a little in each turn."""
        epoch, _, _ = missed.order.partition(".")
        found: list[Outgoing] = []
        for number, (room, offset, place, body) in enumerate(sorted(missed.messages, key=lambda each: each[2])):
            if number and not number % STEP:
                await self._turns.next_turn()
            for delivery in self._deliveries.past(rooms[room], [(offset, body)], but_for=sockets):
                again = replace(delivery, order=f"{epoch}.{place}")
                outgoing = session.dialect.encode(again)
                if outgoing is not None:
                    outgoing.about = again
                    found.append(outgoing)
        return found

    def _check(self, session: Session, message: Authenticate, room_id: str) -> Deferred[Grant]:
        token = message.token
        return self._access.check(token, room_id, Asker(session, token.digest, self._budgets))

    async def _enter(
        self, session: Session, message: Authenticate, record: SocketRecord, hold: _Hold, data: bytes
    ) -> None:
        """It is let into its rooms. What it may do there is asked again: it is known by now, usually at once, and may
        have changed. Where a room's access has come into question, or something was lost, meanwhile it is let in anew.
        """
        token = message.token
        for room_id, _, _ in record.rooms:
            grant = await self._check(session, message, room_id)
            if session.state is SessionState.CLOSED:
                return
            if grant.user_id != record.user_id:
                raise _NotRecoveredError(RecoveryFailure.UNKNOWN)
            if session.user_id is None:
                self._roster.identify(session, grant.user_id, token.digest)
                session.token, session.user_id, session.outlet = token, grant.user_id, hold
                self._membership.following.enter_user(grant.user_id)
            self._access_watch.granted(session, room_id, token, grant, data if room_id == message.room_id else b"")
        order, kept = self.recoverable.order, session.kept
        if order is None or not order.certain or hold.overrun or kept is None or kept.spoiled:
            raise _NotRecoveredError(RecoveryFailure.UNAVAILABLE)
        rooms = {room_id for room_id, _, _ in record.rooms}
        in_question = any(self._roster.outlet(session, each) is not session.link for each in rooms)
        if session.rooms.keys() != rooms or in_question:
            raise _NotRecoveredError(RecoveryFailure.ACCESS)

    def _give_up(self, session: Session, message: Authenticate, rooms: Sequence[str], reason: RecoveryFailure) -> None:
        self._counters.not_recovered[reason] += 1
        if isinstance(session.outlet, _Hold):
            session.outlet = session.link
        for room_id in rooms:
            if room_id in session.rooms:
                self._membership.leave(session, room_id, "left")
            else:
                self._roster.leave(session, room_id)
        if session.state is SessionState.CLOSED or session.kept is None:
            return
        session.kept.spoiled = False
        if session.user_id is not None:
            self._access_watch.changed(session)
        session.send(Admitted(session.socket_id, session.kept.pid))
        session.handle(replace(message, recover=None))

    def _tell(
        self,
        session: Session,
        message: Authenticate,
        was: Recover,
        record: SocketRecord,
        past: Sequence[Outgoing],
        later: Sequence[Outgoing],
    ) -> None:
        if session.state is SessionState.CLOSED:
            for room_id, _, _ in record.rooms:
                self._roster.leave(session, room_id)
            return
        self._counters.recovered += 1
        self._counters.resumed_messages += len(past)
        self._counters.delivered += len(past)
        session.room_id = record.room_id if record.room_id in session.rooms else session.room_id
        if isinstance(session.outlet, _Hold):
            session.outlet = session.link
        rooms = [room_id for room_id, _, _ in record.rooms]
        for room_id in rooms:
            self._roster.hold_back(session, room_id, None)
        self.recoverable.recovered(session, was.pid, record)
        assert session.kept is not None
        session.kept.changed()
        ends = [held.expires_at for held in session.rooms.values()]
        left = self._access_watch.seconds_left(*ends)
        session.send(Admitted(record.sid, was.pid))
        session.send(
            Authenticated(
                record.user_id,
                session.room_id,
                message.id,
                left,
                recovered=True,
                order=was.last,
                socket_id=session.socket_id,
            )
        )
        for outgoing in (*past, *later):
            session.link.write(outgoing)


def _in_order(messages: Sequence[Outgoing]) -> bool:
    """Whether those of several rooms came as they were told."""
    words = [each.about.order for each in messages if each.about is not None and each.about.order is not None]
    numbers = [number for word in words if (number := number_in(word)) is not None]
    return numbers == sorted(numbers)
