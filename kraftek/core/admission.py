"""Answers ``authenticate``, ``join`` and ``leave`` of clients, and closes those that do not authenticate in time.

Called by the gateway. It checks access with :class:`kraftek.contract.interfaces.IAccess`, and passes each grant to
:mod:`kraftek.core.access_watch`.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from kraftek.contract.errors import DENIALS, Code, PeerError
from kraftek.contract.interfaces import IAccess
from kraftek.contract.messages import (
    Authenticate,
    Authenticated,
    Grant,
    Join,
    Joined,
    Leave,
    Left,
    Standing,
)
from kraftek.contract.settings import Limits
from kraftek.core.access_watch import AccessWatch
from kraftek.core.budgets import Asker, Budgets
from kraftek.core.catch_up import CatchUp
from kraftek.core.membership import Membership
from kraftek.core.recovering import Recovering
from kraftek.core.refreshes import Refreshes
from kraftek.core.rooms.shown import read_data
from kraftek.core.roster import Roster
from kraftek.core.session import Session, SessionState

__all__ = ["Admission"]


class Admission:
    """Lets clients of this process into rooms and out of them. ``clock`` measures their time to authenticate."""

    def __init__(
        self,
        access: IAccess,
        access_watch: AccessWatch,
        membership: Membership,
        recovering: Recovering,
        roster: Roster,
        budgets: Budgets,
        limits: Limits,
        *,
        clock: IReactorTime,
    ) -> None:
        self._access = access
        self._access_watch = access_watch
        self._membership = membership
        self.resuming = membership.resuming
        self.presence = membership.presence
        self._recovering = recovering
        self.recoverable = recovering.recoverable
        self._refreshes = Refreshes(access, access_watch, roster, budgets, membership.resuming)
        self._roster = roster
        self.budgets = budgets
        self._limits = limits
        self._clock = clock
        # Clients that have to authenticate, each with its deadline: the earliest first.
        self._arrivals: OrderedDict[Session, float] = OrderedDict()

    def arrived(self, session: Session) -> None:
        """A client connected: from now on it has ``authenticate_timeout`` seconds to authenticate."""
        self._roster.add(session)
        self.recoverable.begin(session)
        self._await_token(session)

    def deadline(self, session: Session) -> float | None:
        """When it has to have authenticated, if it has not."""
        return self._arrivals.get(session)

    def restore(self, session: Session, deadline: float | None) -> None:
        """Go on with a client of another version."""
        self._roster.add(session)
        if deadline is not None:
            self._arrivals[session] = deadline

    def departed(self, session: Session) -> None:
        """A client disconnected: remove it from its rooms and from the room cache."""
        self._arrivals.pop(session, None)
        self.recoverable.departed(session)
        self._membership.departed(session)
        self._access_watch.departed(session)

    def authenticate(self, session: Session, message: Authenticate) -> None:
        """Check whether the token grants access to the room, and answer the client."""
        token = message.token
        if not token.value:
            raise PeerError(Code.AUTH_FAILED, "Token and roomId required", closes=True, id=message.id)
        self._check_bound(session, message)
        data = self._data(message)
        if session.user_id is not None:
            if session.refreshes:
                # It waits until the one before is answered, and what the client sends after it waits with it.
                session.refreshes += 1
                session.check_begins()
                session.handle(message)
                return
            main = session.room_id if message.room_id is None else message.room_id
            self._charge(session, session.user_id, message, rooms=len(session.asked | {main}))
            self._refresh(session, message, data)
            return
        self._arrivals.pop(session, None)
        if message.recover is not None:
            self._recovering.begin(session, message, message.recover, data)
            return
        session.check_begins()

        def admitted(grant: Grant) -> Deferred[bool] | None:
            if session.state is SessionState.CLOSED:
                return None
            self._charge(session, grant.user_id, message)
            self._roster.identify(session, grant.user_id, token.digest)
            session.token, session.user_id = token, grant.user_id
            room_id = grant.room_id or message.room_id
            left = self._access_watch.seconds_left(grant.expires_at)
            early = CatchUp(self.resuming.following.most, lambda: session.outlet)

            def answer(standing: Standing | None, of_user: Standing | None) -> None:
                session.send(Authenticated(grant.user_id, room_id, message.id, left, standing, user_standing=of_user))
                ended(True)

            def ended(answered: bool) -> bool:
                if session.outlet is early:
                    session.outlet = session.link
                    self._access_watch.changed(session)
                if session.state is not SessionState.CLOSED:
                    early.open(0)
                return answered

            let_in = partial(self._access_watch.granted, session, room_id, token, grant, data)
            answering = self.resuming.admit(session, room_id, message, let_in, answer)
            if early.until is None and session.outlet is session.link:
                # A history is read: what its user, its socket or everybody is told meanwhile comes after the answer.
                session.outlet = early
            return answering.addCallback(ended)

        d = self._access.check(token, message.room_id, Asker(session, token.digest, self.budgets))
        d.addCallback(admitted)
        d.addErrback(_refused, session, message)
        d.addCallback(self._answered, session)
        d.addBoth(session.check_ends)

    def join(self, session: Session, message: Join) -> None:
        """Check whether the client may join one more room, and answer it."""
        token, room_id = session.token, message.room_id
        assert token is not None
        assert session.user_id is not None
        self._check_bound(session, message)
        data = self._data(message)
        self._charge(session, session.user_id, message)
        session.check_begins()

        def admitted(grant: Grant) -> Deferred[None] | None:
            if session.state is SessionState.CLOSED:
                return None
            if grant.user_id != session.user_id:
                denied("the token belongs to another user now")
                return None
            left = self._access_watch.seconds_left(grant.expires_at)

            def answer(standing: Standing | None) -> None:
                session.send(Joined(room_id, message.id, left, standing))

            def answered(done: bool) -> None:
                if not done:
                    raise PeerError(Code.ACCESS_DENIED, "not in this room any more")

            let_in = partial(self._access_watch.granted, session, room_id, token, grant, data)
            entering = self.resuming.enter(session, room_id, message.since, let_in, answer, last=message.last)
            return entering.addCallback(answered)

        def not_admitted(failure: Failure) -> Failure | None:
            error = failure.value
            if not isinstance(error, PeerError) or error.code not in DENIALS:
                return failure
            denied(error.message, Code.TOKEN_EXPIRED if error.code is Code.TOKEN_EXPIRED else Code.ACCESS_DENIED)
            return None

        def denied(reason: str, code: Code = Code.ACCESS_DENIED) -> None:
            session.refuse(PeerError(code, reason, id=message.id))
            if code is Code.TOKEN_EXPIRED:
                return  # it is watched, where it matters
            # It may be in the room because of an older answer.
            self._access_watch.revoke(session, room_id)

        d = self._access.check(token, room_id, Asker(session, token.digest, self.budgets))
        d.addCallbacks(admitted, not_admitted)
        d.addErrback(_refused, session, message)
        d.addBoth(session.check_ends)

    def _refresh(self, session: Session, message: Authenticate, data: bytes) -> None:
        """The client goes on meanwhile, unless it enters a room by that: what follows may be for that room."""
        enters = message.room_id is not None and message.room_id not in session.rooms
        if enters:
            session.check_begins()
        session.refreshes = 1
        d = self._refreshes.begin(session, message, data)
        d.addBoth(_refreshed, session)
        if enters:
            d.addBoth(session.check_ends)
        else:
            d.addErrback(session.fail)

    def leave(self, session: Session, message: Leave) -> None:
        """The client leaves a room and stays connected."""
        if message.room_id not in session.rooms:
            raise PeerError(Code.ACCESS_DENIED, "not in this room", id=message.id)
        assert session.user_id is not None
        self.budgets.joins(session.user_id, refusing=False)
        self._membership.leave(session, message.room_id, "left")
        self._access_watch.changed(session)
        session.send_in_order(Left(message.room_id, message.id), message.room_id)

    def expired(self, session: Session, room_id: str | None) -> None:
        """Access has just expired: it is checked again, and the session holds what arrives until the answer."""
        self._access_watch.expired(session, room_id)

    def sweep(self) -> None:
        """Close the sockets of clients that have not authenticated in time."""
        seconds = self._clock.seconds()
        while self._arrivals:
            session, deadline = next(iter(self._arrivals.items()))
            if deadline > seconds:
                break
            del self._arrivals[session]
            session.refuse(PeerError(Code.AUTH_TIMEOUT, "no authenticate in time", closes=True))

    def _await_token(self, session: Session) -> None:
        self._arrivals[session] = self._clock.seconds() + self._limits.authenticate_timeout

    def _answered(self, _: object, session: Session) -> None:
        """A client that could not be authenticated tries again: its time counts from this answer."""
        if session.state is not SessionState.CLOSED and session.user_id is None:
            self._await_token(session)

    def _charge(self, session: Session, user_id: str, message: Authenticate | Join, rooms: int = 1) -> None:
        try:
            self.budgets.joins(user_id, rooms)
        except PeerError as error:
            error.id = message.id
            raise
        if message.room_id is not None and message.room_id not in session.rooms:
            bound = self._limits.rooms_per_user
            if 0 < bound <= sum(len(other.rooms) - (None in other.rooms) for other in self._roster.user(user_id)):
                raise PeerError(Code.ACCESS_DENIED, f"a user may be in {bound} rooms at most", id=message.id)

    def _data(self, message: Authenticate | Join) -> bytes:
        try:
            return read_data(message.data, self._limits.presence_bytes)
        except ValueError as error:
            raise PeerError(Code.INVALID_MESSAGE, str(error), id=message.id) from None

    def _check_bound(self, session: Session, message: Authenticate | Join) -> None:
        room_id, bound = message.room_id, self._limits.rooms
        if room_id is not None and room_id not in session.rooms and len(session.rooms.keys() - {None}) >= bound:
            raise PeerError(Code.ACCESS_DENIED, f"a socket may be in {bound} rooms at most", id=message.id)


def _refreshed(result: object, session: Session) -> object:
    waiting, session.refreshes = session.refreshes - 1, 0
    if waiting:
        session.check_ends()
    return result


def _refused(failure: Failure, session: Session, message: Authenticate | Join) -> None:
    error = failure.value
    if isinstance(error, PeerError):
        # The error may answer many checks at once: the id of this request is not written into it.
        error = error.copy()
        error.id = message.id
        session.refuse(error)
    else:
        session.fail(failure)
