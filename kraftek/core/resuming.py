"""Where a client begins in a room with history, and what it has missed since it was there.

Called by :mod:`kraftek.core.admission` and its like, when the client has entered the room. What is told to the room
from then on waits until the client has got what came before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable
from functools import partial
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, succeed

from kraftek.contract.errors import Code, NotPublished, PeerError, Refusal
from kraftek.contract.interfaces import ITopicLogs, Missed
from kraftek.contract.messages import Positioned, Since, Standing
from kraftek.contract.metrics import Counters, ResumeFailure
from kraftek.contract.names import ROOM_HISTORY
from kraftek.contract.turns import Turns
from kraftek.core.access.permissions import may_read
from kraftek.core.catch_up import CatchUp
from kraftek.core.deliveries import Deliveries
from kraftek.core.followed import Followed
from kraftek.core.following import Following
from kraftek.core.history_turns import HistoryTurns
from kraftek.core.session import Session, SessionState

__all__ = ["STEP", "Answer", "Resuming"]

T = TypeVar("T")

_ATTEMPTS = 3
"""Times that the history is read for a client, if its room gets another epoch meanwhile, or too much is delivered."""

STEP = 100
"""Messages that a client gets in one of its turns: they take half a millisecond."""

Answer = Callable[[Standing | None], None]
"""Tells the client that it is in the room, and where."""


class _Turn:
    """A client has more to get: it comes in its turn."""

    def __init__(self, turns: Turns) -> None:
        self.comes: Deferred[None] = Deferred()
        turns.add(self)

    def step(self) -> bool:
        self.comes.callback(None)
        return False

    def rest(self) -> None:
        """It has had its turn."""

    failed = rest


class Resuming:
    """The clients that enter rooms which ``following`` follows. Histories are read for them in the turns of
    ``reading``, and what is more than a little of it they get in ``turns``.
    """

    def __init__(
        self,
        following: Following,
        logs: ITopicLogs,
        deliveries: Deliveries,
        counters: Counters,
        *,
        reading: HistoryTurns,
        turns: Turns,
    ) -> None:
        self.following = following
        self.reading = reading
        self._turns = turns
        self.logs = logs
        self.deliveries = deliveries
        self.counters = counters
        self._reading: dict[Hashable, list[Deferred[Any]]] = {}

    def without(self, since: Since | None) -> Standing | None:
        """Where a client begins in a room that has no history, or not any more."""
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

    def resume(
        self, session: Session, room_id: str, since: Since | None, answer: Answer, *, last: int = 0
    ) -> Deferred[bool]:
        """The session has entered the room: ``answer`` is called with where it begins, and then it gets what it has
        missed since, or the ``last`` messages. Fires with whether that was so: it was not if the session is out of the
        room again.
        """
        room = self.following.find(room_id)
        assert room is not None
        if last and not may_read(session.rooms[room_id].permissions):
            last, answer = 0, partial(self._answer_without, session, room_id, answer)
        if room.epoch and (not last if since is None else (since.epoch, since.offset) == (room.epoch, room.offset)):
            answer(self._standing(Missed(room.epoch, room.offset), since))
            return succeed(True)
        catch_up = CatchUp(self.following.most, partial(room.outlet, session))
        room.hold_back(session, catch_up)
        return Deferred.fromCoroutine(self._catch_up(session, room, since, last, catch_up, answer))

    def _answer_without(self, session: Session, room_id: str, answer: Answer, standing: Standing | None) -> None:
        """The client has asked for more than it may read."""
        answer(standing)
        text = f"{ROOM_HISTORY} is not permitted in room {room_id}"
        session.refuse(PeerError(Code.ACCESS_DENIED, text, event_type=ROOM_HISTORY, room_id=room_id))

    def place(self, session: Session, room_id: str) -> Since | None:
        """Up to where the session has been sent what the room was told, as far as that is known."""
        room = self.following.find(room_id)
        if room is None or not room.epoch:
            return None
        catch_up = room.catching.get(session)
        if catch_up is None:
            return Since(room.epoch, room.offset)
        return None if catch_up.until is None else Since(room.epoch, catch_up.until)

    def interrupted(self, session: Session, room_id: str | None, since: Since | None) -> None:
        """The session has not got all that was delivered to the room since then, for reasons of its own."""
        room = self.following.find(room_id)
        if room is None or room.room_id is None:
            return
        catch_up = room.catching.get(session)
        if catch_up is not None and catch_up.until is None:
            return  # it gets all of it
        tell = partial(self._tell_position, session, room.room_id)
        here = self.place(session, room.room_id)
        if since is not None:
            session.check_begins()
            self.resume(session, room.room_id, since, tell).addBoth(session.check_ends)
        elif here is not None:
            self.counters.not_resumed[ResumeFailure.TOO_MANY] += 1
            tell(Standing(here.epoch, here.offset, False, ResumeFailure.TOO_MANY))

    def _tell_position(self, session: Session, room_id: str | None, standing: Standing | None) -> None:
        if (standing is None or not standing.recovered) and self.following.lost is not None:
            self.following.lost(session)
        # Without an epoch it is told when Redis is back, with all others who are owed it.
        if standing is not None and standing.epoch is not None:
            session.send_in_order(Positioned(room_id, standing), room_id)

    async def _catch_up(
        self, session: Session, room: Followed, since: Since | None, last: int, catch_up: CatchUp, answer: Answer
    ) -> bool:
        missed = await self._missed(session, room, since, last, catch_up)
        if not _catches_up(session, room, catch_up):
            return False
        if missed is None:
            room.owed = room.owed or not room.epoch
            answer(self._unavailable(room, since, last))
        else:
            answer(self._standing(missed, since))
            missed = await self._tell(session, room, since, missed, catch_up)
            if not _catches_up(session, room, catch_up):
                return True
        catch_up.open(room.offset if missed is None else missed.offset)
        self.following.let_go(room)
        return True

    async def _tell(
        self, session: Session, room: Followed, since: Since | None, missed: Missed, catch_up: CatchUp
    ) -> Missed | None:
        """What it has missed, or the last messages, up to where the room is now. Returns up to where that was."""
        its = () if since is None else since.socket_ids
        resumed = since is not None and missed.reason is None
        while True:
            told = await self._tell_in_turns(session, room, missed, catch_up, (session.socket_id, *its))
            if resumed:
                self.counters.resumed_messages += len(missed.messages)
            else:
                self.counters.history_messages += told
            if not _catches_up(session, room, catch_up) or (missed.epoch == room.epoch and not catch_up.overrun):
                return missed
            # Meanwhile too much was told to the room, or it got another epoch.
            since = Since(missed.epoch, missed.offset, its)
            more = await self._missed(session, room, since, 0, catch_up)
            if not _catches_up(session, room, catch_up):
                return None
            if more is None:
                room.owed = room.owed or not room.epoch
                self._tell_position(session, room.room_id, self._unavailable(room, since, 0))
                return None
            if more.reason is not None:
                self._tell_position(session, room.room_id, self._standing(more, since))
                return more
            if more.epoch != missed.epoch:
                self._tell_position(session, room.room_id, Standing(more.epoch, since.offset, True))
            missed = more

    async def _tell_in_turns(
        self, session: Session, room: Followed, missed: Missed, catch_up: CatchUp, but_for: Collection[str]
    ) -> int:
        """Returns how many of the messages were for it."""
        told, first = 0, _begin(missed) + 1
        for start in range(0, len(missed.messages), STEP):
            if start:
                await _Turn(self._turns).comes
                if not _catches_up(session, room, catch_up):
                    break
            some = missed.messages[start : start + STEP]
            found = self.deliveries.past(room.room_id, first + start, some, but_for=but_for)
            for message in found:
                self.deliveries.tell_again(session, room, message)
            told += len(found)
        return told

    async def _missed(
        self, session: Session, room: Followed, since: Since | None, last: int, catch_up: CatchUp
    ) -> Missed | None:
        """What the client gets, up to somewhere in the room's own epoch; ``None`` when it cannot be read."""
        user_id = session.user_id
        assert user_id is not None
        for _ in range(_ATTEMPTS):
            if not room.epoch:
                await self.following.position(room)
            if not room.epoch:
                return None
            if since is None and not last:
                return Missed(room.epoch, room.offset)
            if not await self.reading.come(session, user_id):
                return None
            missed: Missed | None = None
            try:
                catch_up.clear()
                delivered = room.offset
                missed = await self._read(room.topic, since, last)
            except (NotPublished, Refusal):
                return None
            finally:
                self.reading.end(session, user_id, () if missed is None else missed.messages)
            if missed is None:
                return None
            if missed.epoch != room.epoch:
                await self.following.position(room)
            elif missed.offset >= delivered and not catch_up.overrun:
                return missed
        return None

    async def _read(self, topic: str, since: Since | None, last: int) -> Missed | None:
        """What was missed since then, or the last messages, and in that case why not."""
        missed, most = None, self.following.most
        if since is not None:
            read = partial(self.logs.read, topic, since.epoch, since.offset, most)
            missed = await self._read_for_all((topic, since.epoch, since.offset), read)
            if missed is None or missed.reason is None or not last:
                return missed
        page = await self._read_for_all((topic, last), partial(self.logs.page, topic, "", 0, last, most))
        if page is None or page.first is None:
            return None
        end = page.first + len(page.messages) - 1
        return Missed(page.epoch, end, None if missed is None else missed.reason, page.messages)

    async def _read_for_all(self, asked: Hashable, read: Callable[[], Deferred[T | None]]) -> T | None:
        """As clients that were on one gateway ask for the same, it is read once for all who ask meanwhile."""
        answer: Deferred[Any] = Deferred()
        waiting = self._reading.setdefault(asked, [])
        waiting.append(answer)
        if len(waiting) == 1:
            read().addBoth(self._was_read_for_all, asked)
        return await answer  # type: ignore[no-any-return]  # of what is asked so

    def _was_read_for_all(self, result: object, asked: Hashable) -> None:
        for waiting in self._reading.pop(asked):
            waiting.callback(result)

    def _standing(self, missed: Missed, since: Since | None) -> Standing:
        """Where a client begins that gets these messages."""
        begin = _begin(missed)
        if since is None:
            return Standing(missed.epoch, begin)
        if missed.reason is not None:
            self.counters.not_resumed[missed.reason] += 1
            return Standing(missed.epoch, begin, False, missed.reason)
        self.counters.resumed += 1
        return Standing(missed.epoch, begin, True)

    def _unavailable(self, room: Followed, since: Since | None, last: int) -> Standing | None:
        epoch, offset = (room.epoch, room.offset) if room.epoch else (None, None)
        if since is None and not last:
            return None if epoch is None else Standing(epoch, offset)
        self.counters.not_resumed[ResumeFailure.UNAVAILABLE] += 1
        return Standing(epoch, offset, False, ResumeFailure.UNAVAILABLE)


def _begin(missed: Missed) -> int:
    """The offset after which these messages come."""
    return missed.offset - len(missed.messages)


def _catches_up(session: Session, room: Followed, catch_up: CatchUp) -> bool:
    """Whether the session still does. If it does not, it is out of the room, or was told that it missed something."""
    catching = room.catching.get(session) is catch_up
    if catching and (session.state is SessionState.CLOSED or not room.hears(session)):
        room.let_go(session)
        return False
    return catching
