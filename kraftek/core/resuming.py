"""Where a client begins in a history, that of a room or of its user, and what it has missed since it was there.

Called by :mod:`kraftek.core.admission` and its like, when the client has entered the room, or is known to be that user.
What is told from then on waits until the client has got what came before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import NamedTuple

from twisted.internet.defer import Deferred, gatherResults, succeed

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.interfaces import ITopicLogs, Missed
from kraftek.contract.messages import Authenticate, Since, Standing
from kraftek.contract.metrics import Counters, ResumeFailure
from kraftek.contract.names import ROOM_HISTORY
from kraftek.contract.turns import Turns
from kraftek.core.access.permissions import may_read
from kraftek.core.catch_up import CatchUp
from kraftek.core.deliveries import Deliveries
from kraftek.core.followed import STEP, Followed
from kraftek.core.following import Following
from kraftek.core.history_turns import HistoryTurns
from kraftek.core.missed import MissedMessages
from kraftek.core.roster import Roster
from kraftek.core.session import Session, SessionState
from kraftek.core.withheld import Withheld

__all__ = ["Answer", "Resuming", "UserAnswer"]

Answer = Callable[[Standing | None], None]
"""Tells the client that it is in the room, and where."""

UserAnswer = Callable[[Standing | None, Standing | None], None]
"""Tells the client that it is its user, where it is in the room, and where in what its user is told."""


class _Start(NamedTuple):
    """A client begins in a topic: ``since`` then, or with the ``last`` messages."""

    topic: Followed
    since: Since | None
    last: int = 0

    @property
    def gets_nothing(self) -> bool:
        topic, since, last = self
        if not topic.epoch:
            return False
        return not last if since is None else (since.epoch, since.offset) == (topic.epoch, topic.offset)


class Resuming:
    """The clients that begin in topics which ``following`` follows. Histories are read for them in the turns of
    ``reading``, and what is more than a little of it they get in ``turns``.
    """

    def __init__(
        self,
        following: Following,
        logs: ITopicLogs,
        roster: Roster,
        deliveries: Deliveries,
        counters: Counters,
        *,
        reading: HistoryTurns,
        turns: Turns,
    ) -> None:
        self.following = following
        self.reading = reading
        self.turns = turns
        self.logs = logs
        self._roster = roster
        self.deliveries = deliveries
        self.counters = counters
        self._missed = MissedMessages(following, logs, reading, turns)
        following.read_on = self.interrupted

    def without(self, since: Since | None) -> Standing | None:
        """Where a client begins in what has no history, or not any more."""
        if since is None:
            return None
        self.counters.not_resumed[ResumeFailure.EPOCH] += 1
        return Standing(None, None, False, ResumeFailure.EPOCH)

    def enter(
        self,
        session: Session,
        room_id: str | None,
        since: Since | None,
        let_in: Callable[[], None],
        answer: Answer,
        *,
        last: int = 0,
    ) -> Deferred[bool]:
        """Have it let in, and answered before it is sent anything from the room. In one with history it first gets what
        it has missed, or else the ``last`` messages. Fires with whether it was answered: its access may have been
        revoked meanwhile.
        """
        if room_id is None or not self.following.keeps(room_id):
            answer(self.without(since))
            let_in()
            return succeed(True)
        let_in()
        return self.resume(session, room_id, since, answer, last=last)

    def admit(
        self,
        session: Session,
        room_id: str | None,
        message: Authenticate,
        let_in: Callable[[], None],
        answer: UserAnswer,
    ) -> Deferred[bool]:
        """As :meth:`enter`, for a client of which it has just become known who it is."""
        assert session.user_id is not None
        self.following.enter_user(session.user_id)
        user, of_user = self.following.find_user(session.user_id), message.user_since
        if user is None:
            where = self.without(of_user)
            answer_room = partial(_answer_both, answer, where)
            return self.enter(session, room_id, message.since, let_in, answer_room, last=message.last)
        let_in()
        if room_id is not None and self.following.find(room_id) is not None:
            start, answered = self._start_in(session, room_id, message.since, message.last, answer)
            return self._begin(session, [start, _Start(user, of_user)], answered)
        if room_id is not None:
            # What the room is told before the answer is not for the client.
            self._roster.hold_back(session, room_id, CatchUp(0, partial(self._roster.outlet, session, room_id)))

        def answer_user(where: Standing | None) -> None:
            if room_id is not None:
                self._roster.hold_back(session, room_id, None)
            answer(self.without(message.since), where)

        return self._begin(session, [_Start(user, of_user)], answer_user)

    def resume(
        self, session: Session, room_id: str, since: Since | None, answer: Answer, *, last: int = 0
    ) -> Deferred[bool]:
        """The session has entered the room: ``answer`` is called with where it begins, and then it gets what it has
        missed since, or the ``last`` messages. Fires with whether that was so: it was not if the session is out of the
        room again.
        """
        start, answered = self._start_in(session, room_id, since, last, answer)
        return self._begin(session, [start], answered)

    def _start_in(
        self, session: Session, room_id: str, since: Since | None, last: int, answer: Callable[..., None]
    ) -> tuple[_Start, Callable[..., None]]:
        room = self.following.find(room_id)
        assert room is not None
        if last and not may_read(session.rooms[room_id].permissions):
            last, answer = 0, partial(self._answer_without, session, room_id, answer)
        return _Start(room, since, last), answer

    def _begin(self, session: Session, starts: Sequence[_Start], answer: Callable[..., None]) -> Deferred[bool]:
        """``answer`` is called with where the session begins in each of them, in order."""
        if all(start.gets_nothing for start in starts):
            answer(*[self._standing(Missed(topic.epoch, topic.offset), since) for topic, since, _ in starts])
            return succeed(True)
        catch_ups = [CatchUp(self.following.most, partial(start.topic.outlet, session)) for start in starts]
        for start, catch_up in zip(starts, catch_ups, strict=True):
            start.topic.hold_back(session, catch_up)
        return Deferred.fromCoroutine(self._catch_up(session, starts, catch_ups, answer))

    def _answer_without(
        self, session: Session, room_id: str, answer: Callable[..., None], *standings: Standing | None
    ) -> None:
        """The client has asked for more than it may read."""
        answer(*standings)
        text = f"{ROOM_HISTORY} is not permitted in room {room_id}"
        session.refuse(PeerError(Code.ACCESS_DENIED, text, event_type=ROOM_HISTORY, room_id=room_id))

    def place(self, session: Session, room_id: str | None) -> Since | None:
        """Up to where the session has been sent what the room was told, or without one its user, as far as that is
        known.
        """
        topic = self._topic(session, room_id)
        if topic is None or not topic.epoch:
            return None
        catch_up = topic.catching.get(session)
        if catch_up is None:
            return Since(topic.epoch, topic.offset)
        return None if catch_up.until is None else Since(topic.epoch, catch_up.until)

    def interrupted(self, session: Session, room_id: str | None, since: Since | None) -> None:
        """The session has not got all that was delivered to the room, or without one to its user, since then, for
        reasons of its own.
        """
        topic = self._topic(session, room_id)
        if topic is None or session.state is SessionState.CLOSED:
            return
        catch_up = topic.catching.get(session)
        if catch_up is not None and catch_up.until is None:
            return  # it gets all of it
        tell = partial(self._tell_position, session, topic)
        here = self.place(session, room_id)
        if since is not None:
            session.check_begins()
            self._begin(session, [_Start(topic, since)], tell).addBoth(session.check_ends)
        elif here is not None:
            self.counters.not_resumed[ResumeFailure.TOO_MANY] += 1
            tell(Standing(here.epoch, here.offset, False, ResumeFailure.TOO_MANY))

    def _topic(self, session: Session, room_id: str | None) -> Followed | None:
        if room_id is not None:
            return self.following.find(room_id)
        return None if session.user_id is None else self.following.find_user(session.user_id)

    def _tell_position(self, session: Session, topic: Followed, standing: Standing | None) -> None:
        if (standing is None or not standing.recovered) and self.following.lost is not None:
            self.following.lost(session)
        # Without an epoch it is told when Redis is back, with all others who are owed it.
        if standing is not None and standing.epoch is not None:
            topic.tell_standing(session, standing)

    async def _catch_up(
        self, session: Session, starts: Sequence[_Start], catch_ups: Sequence[CatchUp], answer: Callable[..., None]
    ) -> bool:
        each = [(*start, catch_up) for start, catch_up in zip(starts, catch_ups, strict=True)]
        finding = [Deferred.fromCoroutine(self._missed.find(session, *one)) for one in each]
        found = await gatherResults(finding, consumeErrors=True)
        while (withheld := _withheld(session, starts, catch_ups)) is not None:
            await withheld.until_over()
        there = [topic for topic, _, _, catch_up in each if _catches_up(session, topic, catch_up)]
        if len(there) < len(each):
            for topic in there:
                topic.let_go(session)
            return False
        answers = zip(starts, found, strict=True)
        answer(*[self._standing(has, start.since) if has else self._unavailable(*start) for start, has in answers])
        going = [self._go_on(session, *one, has) for one, has in zip(each, found, strict=True)]
        await gatherResults([Deferred.fromCoroutine(one) for one in going], consumeErrors=True)
        return True

    async def _go_on(
        self, session: Session, topic: Followed, since: Since | None, _: int, catch_up: CatchUp, missed: Missed | None
    ) -> None:
        """It was told where it begins: now it gets what comes next."""
        if missed is not None:
            missed = await self._tell(session, topic, since, missed, catch_up)
            if not _catches_up(session, topic, catch_up):
                return
        catch_up.open(topic.offset if missed is None else missed.offset)
        topic.let_go_who_are_there()

    async def _tell(
        self, session: Session, topic: Followed, since: Since | None, missed: Missed, catch_up: CatchUp
    ) -> Missed | None:
        """What it has missed, or the last messages, up to where the topic is now. Returns up to where that was."""
        its = () if since is None else since.socket_ids
        resumed = since is not None and missed.reason is None
        while True:
            told = await self._tell_in_turns(session, topic, missed, catch_up, (session.socket_id, *its))
            if resumed:
                self.counters.resumed_messages += len(missed.messages)
            else:
                self.counters.history_messages += told
            if not _catches_up(session, topic, catch_up) or (missed.epoch == topic.epoch and not catch_up.overrun):
                return missed
            # Meanwhile too much was told to the topic, or it got another epoch.
            since = Since(missed.epoch, missed.offset, its)
            more = await self._missed.find(session, topic, since, 0, catch_up)
            if not _catches_up(session, topic, catch_up):
                return None
            if more is None:
                self._tell_position(session, topic, self._unavailable(topic, since, 0))
                return None
            if more.reason is not None:
                self._tell_position(session, topic, self._standing(more, since))
                return more
            if more.epoch != missed.epoch:
                self._tell_position(session, topic, Standing(more.epoch, since.offset, True))
            missed = more

    async def _tell_in_turns(
        self, session: Session, topic: Followed, missed: Missed, catch_up: CatchUp, but_for: Collection[str]
    ) -> int:
        """Returns how many of the messages were for it."""
        told = 0
        for start in range(0, len(missed.messages), STEP):
            if start:
                await self.turns.next_turn()
                if not _catches_up(session, topic, catch_up):
                    break
            some = missed.messages[start : start + STEP]
            found = self.deliveries.past(topic.room_id, some, but_for=but_for)
            for message in found:
                self.deliveries.tell_again(session, topic, message)
            told += len(found)
            outlet = topic.outlet(session)
            if isinstance(outlet, Withheld) and outlet.overrun:
                topic.let_go(session)  # it is told so when its access is certain
                break
        return told

    def _standing(self, missed: Missed, since: Since | None) -> Standing:
        """Where a client begins that gets these messages."""
        begin = _begin(missed, since)
        if since is None:
            return Standing(missed.epoch, begin)
        if missed.reason is not None:
            self.counters.not_resumed[missed.reason] += 1
            return Standing(missed.epoch, begin, False, missed.reason)
        self.counters.resumed += 1
        return Standing(missed.epoch, begin, True)

    def _unavailable(self, topic: Followed, since: Since | None, last: int) -> Standing | None:
        topic.owed = topic.owed or not topic.epoch
        if topic.ruled_out:
            return self.without(since)
        epoch, offset = (topic.epoch, topic.offset) if topic.epoch else (None, None)
        if since is None and not last:
            return None if epoch is None else Standing(epoch, offset)
        self.counters.not_resumed[ResumeFailure.UNAVAILABLE] += 1
        return Standing(epoch, offset, False, ResumeFailure.UNAVAILABLE)


def _answer_both(answer: UserAnswer, of_user: Standing | None, in_room: Standing | None) -> None:
    answer(in_room, of_user)


def _begin(missed: Missed, since: Since | None) -> int:
    """The offset after which these messages come."""
    if since is not None and missed.reason is None:
        return since.offset
    return missed.messages[0][0] - 1 if missed.messages else missed.offset


def _withheld(session: Session, starts: Sequence[_Start], catch_ups: Sequence[CatchUp]) -> Withheld | None:
    """What keeps back some topic that the session catches up with, because its access is in question."""
    outlets = (
        start.topic.outlet(session)
        for start, catch_up in zip(starts, catch_ups, strict=True)
        if _catches_up(session, start.topic, catch_up)
    )
    return next((outlet for outlet in outlets if isinstance(outlet, Withheld)), None)


def _catches_up(session: Session, topic: Followed, catch_up: CatchUp) -> bool:
    """Whether the session still does. If it does not, it is out of the room, or was told that it missed something."""
    catching = topic.catching.get(session) is catch_up
    if catching and (session.state is SessionState.CLOSED or not topic.hears(session)):
        topic.let_go(session)
        return False
    return catching
