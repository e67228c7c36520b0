"""Where a client begins in a room with history, and what it has missed since it was there.

Called by :mod:`kraftek.core.admission` and its like, when the client has entered the room. What is told to the room
from then on waits until the client has got what came before.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from kraftek.contract.errors import NotPublished, Refusal
from kraftek.contract.interfaces import ITopicLogs, Missed
from kraftek.contract.messages import Positioned, Since, Standing
from kraftek.contract.metrics import Counters, ResumeFailure
from kraftek.core.catch_up import CatchUp
from kraftek.core.deliveries import Deliveries
from kraftek.core.followed import Followed
from kraftek.core.following import Following
from kraftek.core.session import Session, SessionState

__all__ = ["Answer", "Resuming"]

_ATTEMPTS = 3
"""Times that the history is read for a client, if its room gets another epoch meanwhile, or too much is delivered."""

Answer = Callable[[Standing | None], None]
"""Tells the client that it is in the room, and where."""


class Resuming:
    """The clients that enter rooms which ``following`` follows."""

    def __init__(self, following: Following, logs: ITopicLogs, deliveries: Deliveries, counters: Counters) -> None:
        self.following = following
        self._logs = logs
        self._deliveries = deliveries
        self._counters = counters
        self._reading: dict[tuple[str, str, int], list[Deferred[Missed | None]]] = {}

    def without(self, since: Since | None) -> Standing | None:
        """Where a client begins in a room that has no history, or not any more."""
        return None if since is None else self._not_resumed(None, since, ResumeFailure.EPOCH)

    def enter(
        self, session: Session, room_id: str | None, since: Since | None, let_in: Callable[[], None], answer: Answer
    ) -> Deferred[bool]:
        """Have it let in, and answered before it is sent anything from the room. In one with history it first gets what
        it has missed. Fires with whether it was answered: its access may have been revoked meanwhile.
        """
        if room_id is None or not self.following.keeps(room_id):
            answer(self.without(since))
            let_in()
            return succeed(True)
        let_in()
        return self.resume(session, room_id, since, answer)

    def resume(self, session: Session, room_id: str, since: Since | None, answer: Answer) -> Deferred[bool]:
        """The session has entered the room: ``answer`` is called with where it begins, and then it gets what it has
        missed since. Fires with whether that was so: it was not if the session is out of the room again.
        """
        room = self.following.find(room_id)
        assert room is not None
        if room.epoch and (since is None or (since.epoch, since.offset) == (room.epoch, room.offset)):
            answer(self._resumed(Missed(room.epoch, room.offset), since))
            return succeed(True)
        catch_up = CatchUp(self.following.most, partial(room.outlet, session))
        room.hold_back(session, catch_up)
        return Deferred.fromCoroutine(self._catch_up(session, room, since, catch_up, answer))

    def interrupted(self, session: Session, room_id: str | None) -> None:
        """The session has not got all that was delivered to the room, for reasons of its own."""
        room = self.following.find(room_id)
        if room is not None and room.epoch and session not in room.catching:
            standing = Standing(room.epoch, room.offset, False, ResumeFailure.TOO_MANY)
            session.send_in_order(Positioned(room.room_id, standing), room.room_id)

    async def _catch_up(
        self, session: Session, room: Followed, since: Since | None, catch_up: CatchUp, answer: Answer
    ) -> bool:
        missed = await self._missed(room, since, catch_up)
        is_there = room.catching.get(session) is catch_up
        if session.state is SessionState.CLOSED or not room.hears(session) or not is_there:
            if is_there:
                room.let_go(session)
            return False
        if missed is None:
            room.owed = room.owed or not room.epoch
            answer(self._not_resumed(room, since, ResumeFailure.UNAVAILABLE))
        elif missed.reason is not None:
            answer(self._not_resumed(missed, since, missed.reason))
        else:
            answer(self._resumed(missed, since))
            if since is not None:
                self._counters.resumed_messages += len(missed.messages)
                for offset, message in enumerate(missed.messages, since.offset + 1):
                    its = (session.socket_id, *since.socket_ids)
                    self._deliveries.tell_again(session, room, offset, message, but_for=its)
        catch_up.open(room.offset if missed is None else missed.offset)
        self.following.let_go(room)
        return True

    async def _missed(self, room: Followed, since: Since | None, catch_up: CatchUp) -> Missed | None:
        """What the client has missed, up to somewhere in the room's own epoch; ``None`` when it cannot be read."""
        for _ in range(_ATTEMPTS):
            if not room.epoch:
                await self.following.position(room)
            if not room.epoch:
                return None
            if since is None:
                return Missed(room.epoch, room.offset)
            catch_up.clear()
            delivered = room.offset
            try:
                missed = await self._read_for_all(room.topic, since.epoch, since.offset)
            except (NotPublished, Refusal):
                return None
            if missed is None:
                return None
            if missed.epoch != room.epoch:
                await self.following.position(room)
            elif missed.offset >= delivered and not catch_up.overrun:
                return missed
        return None

    async def _read_for_all(self, topic: str, epoch: str, offset: int) -> Missed | None:
        """As clients that were on one gateway ask for the same, it is read once for all who ask meanwhile."""
        asked, answer = (topic, epoch, offset), Deferred[Missed | None]()
        waiting = self._reading.setdefault(asked, [])
        waiting.append(answer)
        if len(waiting) == 1:
            self._logs.read(topic, epoch, offset, self.following.most).addBoth(self._was_read_for_all, asked)
        return await answer

    def _was_read_for_all(self, result: Missed | Failure | None, asked: tuple[str, str, int]) -> None:
        for waiting in self._reading.pop(asked):
            waiting.callback(result)

    def _resumed(self, missed: Missed, since: Since | None) -> Standing:
        if since is None:
            return Standing(missed.epoch, missed.offset)
        self._counters.resumed += 1
        return Standing(missed.epoch, since.offset, True)

    def _not_resumed(self, where: Missed | Followed | None, since: Since | None, reason: str) -> Standing | None:
        known = where is not None and bool(where.epoch)
        if since is None:
            return Standing(where.epoch, where.offset) if where is not None and known else None
        self._counters.not_resumed[reason] += 1
        if where is None or not known:
            return Standing(None, None, False, reason)
        return Standing(where.epoch, where.offset, False, reason)
