"""A client that is let in already shows another token: every room that it is in goes by that one from then on.

Made and called by :mod:`kraftek.core.admission`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

from twisted.internet.defer import Deferred, gatherResults

from kraftek.contract.errors import DENIALS, Code, PeerError
from kraftek.contract.interfaces import IAccess
from kraftek.contract.messages import Authenticate, Authenticated, Grant, Standing
from kraftek.core.access_watch import AccessWatch
from kraftek.core.budgets import Asker, Budgets
from kraftek.core.resuming import Resuming
from kraftek.core.roster import Roster
from kraftek.core.session import Session, SessionState

__all__ = ["Refreshes"]

_Answer = Grant | PeerError

_AT_ONCE = 8
"""Rooms that are asked about in one turn: with answers from memory that takes a third of a millisecond."""


class Refreshes:
    """Asks about each room of a session with its new token. What the client sends and is sent meanwhile goes on.

    A yes replaces the room's grant. A no puts the session out of that room alone; when there is no yes at all, the
    token is refused. Where nobody could be asked the old grant counts to its end; then it is asked with the new token.
    """

    def __init__(
        self, access: IAccess, access_watch: AccessWatch, roster: Roster, budgets: Budgets, resuming: Resuming
    ) -> None:
        self._resuming = resuming
        self._access = access
        self._access_watch = access_watch
        self._roster = roster
        self._budgets = budgets

    def begin(self, session: Session, message: Authenticate, data: bytes) -> Deferred[None]:
        """Fires when the client is answered. ``data``: what it shows of itself in the room that it names."""
        return Deferred.fromCoroutine(self._refresh(session, message, data))

    async def _refresh(self, session: Session, message: Authenticate, data: bytes) -> None:
        before = {room_id: session.rooms[room_id].token for room_id in session.asked}
        main = session.room_id if message.room_id is None else message.room_id
        answers = await self._replace_all(session, message, [room_id for room_id in before if room_id != main])
        # The answer about this one comes last: the client is answered before it is sent anything in a new room.
        answer = await self._ask(session, message, main)
        while message.room_id is None and main != session.room_id and session.state is not SessionState.CLOSED:
            # The client has left that room, or was told that it is out of it: so it is about its first one of now.
            main = session.room_id
            answer = await self._ask(session, message, main)
        answers[main] = answer
        if session.state is SessionState.CLOSED:
            return
        error = _reason(answers.values())
        if error is not None:
            _refuse(session, message, error)
            return
        there = main in session.asked
        entered = isinstance(answer, Grant) and (main is not None or not session.asked or None in session.rooms)
        resumes = isinstance(answer, Grant) and not there and self._resuming.following.keeps(main)
        if isinstance(answer, PeerError) and message.room_id is not None and not there:
            code = Code.ACCESS_DENIED if answer.code in DENIALS else answer.code
            _refuse(session, message, PeerError(code, answer.message, retry_after=answer.retry_after))
        else:
            ends = [held.expires_at for room_id, held in session.rooms.items() if room_id != main]
            ends.append(answer.expires_at if isinstance(answer, Grant) else None)
            left = self._access_watch.seconds_left(*ends)
            answered = partial(self._answer, session, message, main, left)
            if not resumes:
                answered(None if there else self._resuming.without(message.since))
        if entered:
            assert isinstance(answer, Grant)
            self._show(session, message)
            self._access_watch.granted(session, main, message.token, answer, data)
            if resumes:
                assert main is not None
                await self._resuming.resume(session, main, message.since, answered, last=message.last)
        for room_id, found in answers.items():
            held = session.rooms.get(room_id)
            if isinstance(found, PeerError) and found.code in DENIALS and held and held.token is before.get(room_id):
                self._access_watch.revoke(session, room_id)

    def _answer(
        self,
        session: Session,
        message: Authenticate,
        room_id: str | None,
        left: float | None,
        standing: Standing | None,
    ) -> None:
        assert session.user_id is not None
        session.send(Authenticated(session.user_id, room_id, message.id, left, standing))

    async def _replace_all(
        self, session: Session, message: Authenticate, rooms: Sequence[str | None]
    ) -> dict[str | None, _Answer]:
        """Ask about all of these, a few in each turn."""
        asked: dict[str | None, Deferred[_Answer]] = {}
        for number, room_id in enumerate(rooms):
            if number and not number % _AT_ONCE:
                await self._resuming.turns.next_turn()
            if room_id in session.rooms:
                asked[room_id] = Deferred.fromCoroutine(self._replace(session, message, room_id))
        answers = await gatherResults(list(asked.values()), consumeErrors=True)
        return dict(zip(asked, answers, strict=True))

    async def _replace(self, session: Session, message: Authenticate, room_id: str | None) -> _Answer:
        answer = await self._ask(session, message, room_id)
        if isinstance(answer, Grant) and room_id in session.rooms:
            self._show(session, message)
            self._access_watch.granted(session, room_id, message.token, answer)
        return answer

    async def _ask(self, session: Session, message: Authenticate, room_id: str | None) -> _Answer:
        asker = Asker(session, message.token.digest, self._budgets)
        try:
            grant: Grant = await self._access.check(message.token, room_id, asker)
        except PeerError as error:
            return error
        if grant.user_id != session.user_id:
            return PeerError(Code.ACCESS_DENIED, "this token belongs to another user")
        return grant

    def _show(self, session: Session, message: Authenticate) -> None:
        """The token was good: rooms are joined with it from now on."""
        before, token = session.token, message.token
        if before is token:
            return
        assert session.user_id is not None
        self._roster.identify(session, session.user_id, token.digest)
        session.token = token
        if before is not None:
            self._roster.release(session, before.digest)


def _reason(answers: Collection[_Answer]) -> PeerError | None:
    """Why the token as a whole is refused, or was not looked at: where nobody said yes."""
    errors = [answer for answer in answers if isinstance(answer, PeerError)]
    if len(errors) < len(answers):
        return None
    # Another user's, or nobody could be asked: that is no reason to close the socket.
    return next((error for error in errors if error.code not in DENIALS), errors[0])


def _refuse(session: Session, message: Authenticate, error: PeerError) -> None:
    error = error.copy()
    error.id = message.id
    session.refuse(error)
