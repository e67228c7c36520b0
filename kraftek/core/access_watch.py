"""Checks the access of admitted sessions again when a grant expires, its cached answer expires, or it is revoked.

:mod:`kraftek.core.admission` passes it each grant; :class:`kraftek.contract.interfaces.IAccess` notifies it of answers
that are no longer valid.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable

from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.contract.errors import CLOSE_CODES, DENIALS, Code, PeerError
from kraftek.contract.interfaces import IAccess, IAccessListener
from kraftek.contract.messages import Grant, Token
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Limits
from kraftek.core.budgets import Asker
from kraftek.core.expired_tokens import ExpiredTokens
from kraftek.core.expiry_queue import ExpiryQueue
from kraftek.core.membership import Membership
from kraftek.core.rechecks import Rechecks
from kraftek.core.roster import Roster
from kraftek.core.session import HeldGrant, Session, SessionState
from kraftek.core.withheld import WithheldState, Withholding

__all__ = ["AccessWatch"]

_SET = 1.0
"""Seconds by which the wall clock and the monotonic clock may differ more than at the last sweep. A larger difference
means that the clock was set, or that the machine slept.
"""


@implementer(IAccessListener)
class AccessWatch:
    """Keeps the grants of this process's sessions up to date, and removes sessions from rooms that they lost access to.

    Access that was revoked, or has expired, is in question until the answer: what the client sends is held, and what it
    is sent waits. Access that is merely doubtful, or whose answer grew old, goes on until the answer.

    ``clock`` measures when to repeat a check, ``now`` returns Unix seconds for ``expiresAt``. ``limits``: its
    ``unsent_bytes`` bound what waits for each room of a socket.
    """

    def __init__(
        self,
        access: IAccess,
        membership: Membership,
        roster: Roster,
        counters: Counters,
        clock: IReactorTime,
        *,
        limits: Limits,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._access = access
        self._membership = membership
        self._roster = roster
        self._counters = counters
        self._clock = clock
        self._now = now
        self._ahead = now() - clock.seconds()
        self._expiry_queue = ExpiryQueue(now())
        self._again = Rechecks(_question)
        resuming = membership.resuming
        self._withholding = Withholding(roster, limits.unsent_bytes, resuming.place, resuming.interrupted)
        self._expired = ExpiredTokens()
        access.add_listener(self)
        membership.following.doubt = self.doubt

    def granted(self, session: Session, room_id: str | None, token: Token, grant: Grant, data: bytes = b"") -> None:
        """The session enters the room; the grant is watched until the session is out of it. ``data``: what it shows of
        itself there.
        """
        self._again.forget(session, room_id)
        self._membership.enter(session, room_id, HeldGrant(token, grant), data)
        self._renewed(session, room_id, token, grant)

    def seconds_left(self, *ends: float | None) -> float | None:
        """Seconds until the first of these, in Unix seconds, as clients are told; ``None`` if there is none."""
        first = min((end for end in ends if end is not None), default=None)
        return None if first is None else max(0.0, round(first - self._now(), 3))

    def doubt(self, session: Session) -> None:
        """It is about to be sent something that must not be lost: where its access has just expired that waits."""
        now = self._now()
        if session.is_expired(now) and session.outlet is session.link:
            self._check_due(session, now)

    def changed(self, session: Session) -> None:
        """The session's grants have changed. To leave the rooms that are in question answers nothing."""
        self._expired.judge(session)
        if not session.asked and self._withholding.withholds_all(session):
            self._recheck(session, None, True)
        self._withholding.judge(session)
        if session.state is not SessionState.CLOSED:
            self._expiry_queue.watch(session)

    def expired(self, session: Session, room_id: str | None) -> None:
        """The session's grant for the room has expired: nothing is permitted until the answer."""
        held, before = session.rooms[room_id], session.rooms[room_id].token
        held.asked(self._now())
        if session.token is not None:
            # A fresh token was shown since: the old one would not be allowed any more.
            held.token = session.token
            self._roster.hold(session, held.token.digest)
            self._roster.release(session, before.digest)
        self._membership.suspend(session, room_id)
        self._recheck(session, room_id, True)

    def revoke(self, session: Session, room_id: str | None) -> None:
        """Access was revoked: send the client an error, and remove it from the room if it is still there."""
        if _concerns(session, room_id):
            why = "has expired" if _is_expired(session, room_id, self._now()) else "was revoked"
            self.put_out(session, room_id, why, "revoked")

    def give(self, session: Session, room_id: str, grant: Grant) -> None:
        """A service puts the session into a room that it is not in. The grant is not watched."""
        assert session.token is not None
        self._membership.enter(session, room_id, HeldGrant(session.token, grant, given=True))
        self.changed(session)

    def put_out(self, session: Session, room_id: str | None, why: str, reason: str) -> None:
        """Put the session out of the room, whoever let it in. With its last room by its token it is closed.

        The client gets an error that says ``why``, services get the ``reason``.
        """
        self._counters.revoked += 1
        where = "" if room_id is None else f" to room {room_id}"
        session.refuse(PeerError(Code.ACCESS_REVOKED, f"Access{where} {why}", room_id=room_id))
        held = session.rooms.get(room_id)
        if held is not None:
            self._membership.leave(session, room_id, reason)
        if not (session.asked or (held is not None and held.given)):
            session.close(CLOSE_CODES[Code.ACCESS_REVOKED], Code.ACCESS_REVOKED)
        self._expired.judge(session)
        self._withholding.judge(session)

    def departed(self, session: Session) -> None:
        """The session has ended."""
        self._expiry_queue.forget(session)
        self._expired.forget(session)
        self._withholding.forget(session)

    def withheld(self, session: Session) -> WithheldState | None:
        """What waits for it until its access is certain."""
        return self._withholding.give(session)

    def refresh_by(self, session: Session) -> float | None:
        """When it has to have shown another token, if its own has expired."""
        return self._expired.end(session)

    def restore(self, session: Session, withheld: WithheldState | None, refresh_by: float | None) -> None:
        """Go on with a session of another version. What was in question there is asked again."""
        self._expiry_queue.watch(session)
        if refresh_by is not None:
            self._expired.restore(session, refresh_by)
        in_question = [room_id for room_id, held in session.rooms.items() if held.suspended and not held.expired]
        if withheld is not None:
            self._withholding.restore(session, withheld)
            in_question += [room_id for room_id in withheld.rooms if room_id not in in_question]
        for room_id in in_question:
            self._again.retry(session, room_id, self._clock.seconds(), suspended=True)

    def access_stale(self, digest: str | None, user_id: str | None, room_id: str | None, revoked: bool) -> None:
        if digest is not None:
            concerned = tuple(self._roster.digest(digest))
        elif user_id is not None:
            concerned = tuple(self._roster.user(user_id))
        else:
            for session in self._roster:
                # A revocation may have been missed, which also concerns a session without rooms.
                for its_room in _in_question(session, True):
                    self._again.doubt(session, its_room)
            self._access.hold(_held(self._roster))
            return
        for session in concerned:
            for its_room in _in_question(session, revoked):
                token = _token_of(session, its_room)
                if room_id in (None, its_room) and (digest is None or (token is not None and token.digest == digest)):
                    self._recheck(session, its_room, revoked)

    def sweep(self) -> None:
        """Check again what has expired, and repeat the checks that are due."""
        now, seconds = self._now(), self._clock.seconds()
        gained, self._ahead = now - seconds - self._ahead, now - seconds
        if abs(gained) > _SET:
            self._access.clock_set()
        self._access.sweep()
        for session in self._expiry_queue.due(now):
            self._check_due(session, now)
        for session in self._expired.due(seconds):
            session.refuse(PeerError(Code.TOKEN_EXPIRED, "no other token was shown in time"))
            session.close(CLOSE_CODES[Code.TOKEN_EXPIRED], Code.TOKEN_EXPIRED, returns=True)
        for session, its_room, revoked in self._again.due(seconds, self._access.gateways, settled=self._access.settled):
            self._recheck(session, its_room, revoked)

    def _check_due(self, session: Session, now: float) -> None:
        if not session.asked:
            self._recheck(session, None, True)  # its answer is watched, or closes the session
            return
        for room_id, held in tuple(session.rooms.items()):
            if session.rooms.get(room_id) is not held:
                continue  # an answer that came at once has closed the session
            if held.is_expired(now) and not held.suspended:
                self.expired(session, room_id)
            elif held.due <= now:
                held.asked(now)
                self._recheck(session, room_id, False)
        self.changed(session)

    def _renewed(self, session: Session, room_id: str | None, token: Token, grant: Grant) -> None:
        if session.token is not None and session.token.digest == token.digest:
            session.expires_at = grant.expires_at
        overrun = self._withholding.end(session, room_id)
        if overrun is not None:
            self._membership.resuming.interrupted(session, room_id, overrun.since)
            self._membership.presence.interrupted(session, room_id)
        if not session.asked:
            self._expired.forget(session)
        self.changed(session)

    def _recheck(self, session: Session, room_id: str | None, revoked: bool) -> None:
        token = _token_of(session, room_id)
        if token is None or not _matters(session, room_id, token):
            return
        if revoked:
            session.check_begins()
            self._withholding.begin(session, room_id)

        def confirmed(grant: Grant) -> None:
            if not _matters(session, room_id, token):
                return
            if grant.user_id != session.user_id:
                self.revoke(session, room_id)
            elif self.seconds_left(grant.expires_at) == 0:
                self._denied(session, room_id, Code.AUTH_FAILED)
            elif room_id in session.rooms:
                self.granted(session, room_id, token, grant)
            else:
                self._renewed(session, room_id, token, grant)

        d = self._access.check(token, room_id, Asker(session, token.digest))
        d.addCallbacks(confirmed, self._doubted, errbackArgs=(session, room_id, token, revoked))
        if revoked:
            d.addBoth(session.check_ends)
        else:
            d.addErrback(session.fail)

    def _doubted(self, failure: Failure, session: Session, room_id: str | None, token: Token, revoked: bool) -> None:
        error = failure.value
        if not isinstance(error, PeerError):
            session.fail(failure)
        elif not _matters(session, room_id, token):
            return
        elif error.code in DENIALS:
            self._denied(session, room_id, error.code)
        else:
            self._unanswered(session, room_id, revoked)

    def _denied(self, session: Session, room_id: str | None, code: Code) -> None:
        """A no: because the token has expired, if it says so, or if nothing is left that it permits."""
        now = self._now()
        ended = [session.rooms[each].is_expired(now) for each in session.asked] or [session.is_expired(now)]
        if code is not Code.TOKEN_EXPIRED and not all(ended):
            self.revoke(session, room_id)
            return
        held = session.rooms.get(room_id)
        if held is not None and not held.expired:
            self._membership.suspend(session, room_id)
            held.expired = True
        elif held is not None or self._expired.has(session):
            return
        self._withholding.begin(session, room_id)
        self._expired.begin(session, self._clock.seconds())
        where = "" if room_id is None else f" to room {room_id}"
        session.refuse(PeerError(Code.TOKEN_EXPIRED, f"Access{where} has expired", room_id=room_id))

    def _unanswered(self, session: Session, room_id: str | None, revoked: bool) -> None:
        """The auth service is unavailable: neither allow nor deny. A revoked grant is suspended, another one stays."""
        if _is_expired(session, room_id, self._now()):
            self._denied(session, room_id, Code.AUTH_FAILED)
            return
        if revoked and room_id in session.rooms:
            self._membership.suspend(session, room_id)
        self._again.retry(session, room_id, self._clock.seconds(), suspended=revoked)


def _question(session: Session, room_id: str | None) -> Hashable:
    """What a check of the session's access to the room asks; ``None`` if it has none."""
    token = _token_of(session, room_id)
    return None if token is None or not _concerns(session, room_id) else (token.digest, room_id)


def _held(sessions: Iterable[Session]) -> Iterable[tuple[str, str]]:
    """The digests of all tokens that these have something by, with their users."""
    for session in sessions:
        if session.user_id is not None and session.token is not None:
            yield session.token.digest, session.user_id
            for room_id in session.asked:
                yield session.rooms[room_id].token.digest, session.user_id


def _in_question(session: Session, revoked: bool) -> tuple[str | None, ...]:
    """The rooms to check again. A session without rooms still gets what is sent to its user, until that is revoked."""
    return tuple(session.asked) or ((None,) if revoked and session.user_id is not None else ())


def _concerns(session: Session, room_id: str | None) -> bool:
    """Whether the session has access to the room, and it is asked about; for ``None``, or is in no such room and has
    what is sent to its user.
    """
    asked = session.asked
    return session.state is not SessionState.CLOSED and (room_id in asked or (room_id is None and not asked))


def _token_of(session: Session, room_id: str | None) -> Token | None:
    """The token by which the session has access to the room."""
    held = session.rooms.get(room_id)
    return session.token if held is None else held.token


def _matters(session: Session, room_id: str | None, token: Token) -> bool:
    """Whether the session still has the access that was checked. It may have it by another token by now."""
    now = _token_of(session, room_id)
    return _concerns(session, room_id) and now is not None and now.digest == token.digest


def _is_expired(session: Session, room_id: str | None, now: float) -> bool:
    held = session.rooms.get(room_id)
    return session.is_expired(now) if held is None else held.is_expired(now)
