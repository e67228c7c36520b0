"""Access of sessions that were let in: asked about again when it expires, grows old or is taken back.

:mod:`kraftek.core.admission` hands it each grant; :class:`kraftek.contract.interfaces.IAccess` tells it what no longer
counts.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.contract.errors import CLOSE_CODES, Code, PeerError
from kraftek.contract.interfaces import IAccess, IAccessListener
from kraftek.contract.messages import Grant
from kraftek.contract.metrics import Counters
from kraftek.core.expiry_queue import ExpiryQueue
from kraftek.core.membership import Membership
from kraftek.core.roster import Roster
from kraftek.core.session import Session, SessionState

__all__ = ["AccessWatch"]

_RECHECKS_PER_SWEEP = 500
"""Questions to ask again at a time: after Redis was away every socket is asked about, and the auth service has to bear
it.
"""

_SET = 1.0
"""Seconds that the wall clock may gain on the monotonic one between two sweeps. More is a clock that was set, or a
machine that slept.
"""

_RETRY_AFTER = 1.0
"""Seconds until a question that could not be asked is asked again."""


@implementer(IAccessListener)
class AccessWatch:
    """Keeps the grants of this process's sessions true, and takes back those that no longer are.

    ``clock`` measures when to ask again, ``now`` gives Unix seconds for ``expiresAt``.
    """

    def __init__(
        self,
        access: IAccess,
        membership: Membership,
        roster: Roster,
        counters: Counters,
        clock: IReactorTime,
        *,
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
        # Questions to ask again, each with the time when it is due, and whether access was taken back.
        self._again: OrderedDict[tuple[Session, str | None], tuple[float, bool]] = OrderedDict()
        access.add_listener(self)

    def granted(self, session: Session, room_id: str | None, grant: Grant) -> None:
        """The session enters the room; the grant is watched until the session is out of it."""
        self._membership.enter(session, room_id, grant)
        self._expiry_queue.watch(session)

    def revoke(self, session: Session, room_id: str | None) -> None:
        """Access was taken back: the client is told, and is out of the room, if it still is in it."""
        if not _matters(session, room_id):
            return
        self._counters.revoked += 1
        where = "" if room_id is None else f" to room {room_id}"
        session.refuse(PeerError(Code.ACCESS_REVOKED, f"Access{where} was taken back", room_id=room_id))
        if room_id in session.rooms:
            self._membership.leave(session, room_id, "revoked")
        if not session.rooms:
            session.close(CLOSE_CODES[Code.ACCESS_REVOKED], Code.ACCESS_REVOKED)

    def departed(self, session: Session) -> None:
        """The session has ended."""
        self._expiry_queue.forget(session)

    def access_stale(self, digest: str | None, user_id: str | None, room_id: str | None, revoked: bool) -> None:
        if digest is not None:
            concerned = tuple(self._roster.digest(digest))
        elif user_id is not None:
            concerned = tuple(self._roster.user(user_id))
        else:
            self._membership.restore()  # Redis may have lost the room cache with the rest
            for session in self._roster:
                for its_room in _in_question(session, revoked):
                    self._again[session, its_room] = (0.0, revoked)
            return
        for session in concerned:
            for its_room in _in_question(session, revoked):
                if room_id is None or its_room == room_id:
                    self._recheck(session, its_room, revoked)

    def sweep(self) -> None:
        """What time brings: access that expired, and questions to ask again."""
        now, seconds = self._now(), self._clock.seconds()
        gained, self._ahead = now - seconds - self._ahead, now - seconds
        if abs(gained) > _SET:
            self._access.clock_set()
        for session in self._expiry_queue.due(now):
            for its_room in tuple(session.rooms):
                if _expired(session.rooms.get(its_room), now):
                    self._recheck(session, its_room, True)
            self._expiry_queue.watch(session)
        for _ in range(min(_RECHECKS_PER_SWEEP, len(self._again))):
            (session, its_room), (due, revoked) = self._again.popitem(last=False)
            if due <= seconds:
                self._recheck(session, its_room, revoked)
            elif session.state is not SessionState.CLOSED:
                self._again[session, its_room] = (due, revoked)

    def _recheck(self, session: Session, room_id: str | None, revoked: bool) -> None:
        token = session.token
        if token is None or not _matters(session, room_id):
            return
        if revoked:
            session.check_begins()

        def confirmed(grant: Grant) -> None:
            if not _matters(session, room_id):
                return
            if grant.user_id != session.user_id:
                self.revoke(session, room_id)
            elif room_id in session.rooms:
                self.granted(session, room_id, grant)

        def doubted(failure: Failure) -> None:
            error = failure.value
            if not isinstance(error, PeerError):
                session.fail(failure)
            elif error.code is Code.AUTH_FAILED:
                self.revoke(session, room_id)
            else:
                self._unanswered(session, room_id, revoked)

        d = self._access.check(token, room_id)
        d.addCallbacks(confirmed, doubted)
        if revoked:
            d.addBoth(session.check_ends)
        else:
            d.addErrback(session.fail)

    def _unanswered(self, session: Session, room_id: str | None, revoked: bool) -> None:
        """Could not ask: never a yes, never a no. What was taken back is suspended, what grew old stays."""
        if not _matters(session, room_id):
            return
        if _expired(session.rooms.get(room_id), self._now()):
            self.revoke(session, room_id)
            return
        if revoked and room_id in session.rooms:
            self._membership.suspend(session, room_id)
        self._again[session, room_id] = (self._clock.seconds() + _RETRY_AFTER, revoked)


def _in_question(session: Session, revoked: bool) -> tuple[str | None, ...]:
    """What to ask about again: its rooms. Who is in none gets what is sent to its user, until that is taken back."""
    return tuple(session.rooms) or ((None,) if revoked and session.user_id is not None else ())


def _matters(session: Session, room_id: str | None) -> bool:
    """Whether there still is what access was asked about."""
    return session.state is not SessionState.CLOSED and (
        room_id in session.rooms or (room_id is None and not session.rooms)
    )


def _expired(grant: Grant | None, now: float) -> bool:
    return grant is not None and grant.expires_at is not None and grant.expires_at <= now
