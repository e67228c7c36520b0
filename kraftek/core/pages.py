"""Answers ``history`` of clients: a page of what was told to a room before.

Called by :mod:`kraftek.core.gateway`, which knows that the client may be in the room. Whoever is, may read its history,
unless a grant that says what it permits does not permit :data:`kraftek.contract.names.ROOM_HISTORY`.
"""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from kraftek.contract.errors import Code, Limit, NotPublished, PeerError, Refusal
from kraftek.contract.interfaces import Page
from kraftek.contract.messages import History, HistoryPage, Position
from kraftek.contract.names import ROOM_HISTORY, room_topic
from kraftek.core.access.permissions import may_read
from kraftek.core.budgets import Budgets
from kraftek.core.resuming import Resuming
from kraftek.core.roster import Roster
from kraftek.core.session import Session, SessionState

__all__ = ["Pages"]

_RETRY_AFTER = 1.0
"""Seconds after which a client may ask again when Redis was not available."""


class Pages:
    """Reads them where ``resuming`` does. A session holds what arrives until its page was read, as it does during a
    check of its access: so it reads one at a time, in the turn of its user.
    """

    def __init__(self, resuming: Resuming, roster: Roster, budgets: Budgets) -> None:
        self._logs, self._following, self._turns = resuming.logs, resuming.following, resuming.reading
        self._deliveries, self._counters = resuming.deliveries, resuming.counters
        self._roster = roster
        self._budgets = budgets

    def answer(self, session: Session, message: History) -> None:
        """Read the page, and send it. Raises ``PeerError``."""
        self._check(session, message)
        assert session.user_id is not None
        self._budgets.joins(session.user_id)
        session.check_begins()
        reading = Deferred.fromCoroutine(self._read(session, message))
        reading.addCallback(self._was_read, session, message)
        reading.addErrback(self._refuse, session, message)
        reading.addBoth(session.check_ends)

    def _check(self, session: Session, message: History) -> None:
        if not may_read(session.rooms[message.room_id].permissions):
            raise PeerError(Code.ACCESS_DENIED, f"{ROOM_HISTORY} is not permitted in this room")
        if not self._following.keeps(message.room_id):
            raise PeerError(Code.NO_HISTORY, "no history is kept of this room")

    async def _read(self, session: Session, message: History) -> Page | None:
        epoch, before = ("", 0) if message.before is None else (message.before.epoch, message.before.offset)
        topic, most, user_id = room_topic(message.room_id), self._following.most, session.user_id
        assert user_id is not None
        if not await self._turns.come(session, user_id):
            text = "this user reads too much"
            raise PeerError(Code.RATE_LIMITED, text, retry_after=_RETRY_AFTER, limit=Limit.USER)
        page: Page | None = None
        try:
            page = await self._logs.page(topic, epoch, before, message.limit, most)
        finally:
            self._turns.end(session, user_id, () if page is None else page.messages)
        return page

    def _was_read(self, page: Page | None, session: Session, message: History) -> None:
        room_id = message.room_id
        if session.state is SessionState.CLOSED:
            return
        if room_id not in session.rooms:
            raise PeerError(Code.ACCESS_DENIED, "not in this room any more")
        if self._roster.outlet(session, room_id) is not session.link:
            session.handle(message)  # its access has come into question: it is read again if the answer is a yes
            return
        self._check(session, message)
        if page is None:
            raise PeerError(Code.NO_HISTORY, "no history is kept of this room at present")
        if page.first is None:
            raise PeerError(Code.NO_HISTORY, "the history begins anew since then: ask without `before`")
        its = (session.socket_id, *message.socket_ids)
        found = self._deliveries.past(room_id, page.messages, but_for=its)
        self._counters.history_messages += len(found)
        before = Position(page.epoch, page.first) if page.more else None
        session.send(HistoryPage(room_id, page.epoch, found, before, message.id))

    def _refuse(self, failure: Failure, session: Session, message: History) -> None:
        error = failure.value
        if isinstance(error, NotPublished | Refusal):
            text = "the history cannot be read at present"
            error = PeerError(Code.SERVICE_UNAVAILABLE, text, retry_after=_RETRY_AFTER)
        if isinstance(error, PeerError):
            error.id = message.id
            session.refuse(error)
        else:
            session.fail(failure)
