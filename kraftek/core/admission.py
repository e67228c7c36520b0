"""Who gets in, into which rooms, and who is put out again. The gateway hands it what concerns access.

Asks :class:`kraftek.contract.interfaces.IAccess`, keeps the roster and the room cache, and closes sockets whose access
ended.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import islice

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.contract.errors import CLOSE_CODES, Code, NotPublished, PeerError
from kraftek.contract.interfaces import IAccess, IAccessListener, IBus, IRooms
from kraftek.contract.messages import Authenticate, Authenticated, ErrorMessage, Grant, Join, Joined, Leave, Left
from kraftek.contract.metrics import Counters
from kraftek.contract.names import gateway_of, reply_channel
from kraftek.contract.settings import Limits
from kraftek.core.expiry_queue import ExpiryQueue
from kraftek.core.roster import Roster
from kraftek.core.session import Session, SessionState

__all__ = ["Admission"]

# After Redis was away, every socket is asked about again: so many a sweep, lest the auth service be flooded.
_RECHECKS_PER_SWEEP = 500

# What was too much for Redis at its time is written to the room cache later, lest it be too much again.
_WRITES_PER_SWEEP = 500

# Seconds between two such writes when everybody has left, and the process waits for nothing else.
_BREATH = 0.025

# Seconds until a question that could not be asked is asked again.
_RETRY_AFTER = 1.0


@implementer(IAccessListener)
class Admission:
    """Access of the sessions on this process. ``single``: one socket per user and room, the newest.

    ``clock`` measures time-outs, ``now`` gives Unix seconds for ``expiresAt``.
    """

    _log = Logger()

    def __init__(
        self,
        access: IAccess,
        rooms: IRooms,
        bus: IBus,
        roster: Roster,
        limits: Limits,
        counters: Counters,
        clock: IReactorTime,
        *,
        single: bool = True,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._access = access
        self._rooms = rooms
        self._bus = bus
        self._roster = roster
        self._limits = limits
        self._counters = counters
        self._clock = clock
        self._single = single
        self._now = now
        self._arrivals: deque[tuple[float, Session]] = deque()
        self._expiry_queue = ExpiryQueue(now())
        self._again: OrderedDict[tuple[Session, str | None], tuple[float, bool]] = OrderedDict()
        # What Redis is still to be told of the time when it was away, or could take no more: who entered a room, and
        # whose entries are left.
        self._unannounced: set[tuple[Session, str]] = set()
        self._ghosts: list[tuple[str, str, str, str]] = []
        self._unrestored = False
        self._cache_refused = False
        access.add_listener(self)

    def arrived(self, session: Session) -> None:
        """A client connected: it has so long to authenticate."""
        self._roster.add(session)
        self._arrivals.append((self._clock.seconds() + self._limits.authenticate_timeout, session))

    def departed(self, session: Session) -> None:
        """A client is gone: its rooms are told through the room cache."""
        for room_id in session.rooms:
            if room_id is not None:
                self._vacate(session, room_id, "closed")
        self._roster.remove(session)
        self._expiry_queue.forget(session)
        session.rooms = {}

    def authenticate(self, session: Session, message: Authenticate) -> None:
        """Ask whether this token may be in that room; the answer goes to the client."""
        token = message.token
        if not token.value:
            raise PeerError(Code.AUTH_FAILED, "Token and roomId required", closes=True, id=message.id)
        self._check_bound(session, message)
        session.check_begins()

        def admitted(grant: Grant) -> None:
            if session.state is SessionState.CLOSED:
                return
            if session.user_id not in (None, grant.user_id):
                raise PeerError(Code.ACCESS_DENIED, "this token belongs to another user", id=message.id)
            self._roster.identify(session, grant.user_id, token.digest)
            session.user_id, session.token = grant.user_id, token
            room_id = grant.room_id or message.room_id
            session.say(Authenticated(grant.user_id, room_id, message.id))
            self._enter(session, room_id, grant)
            self._expiry_queue.watch(session)

        d = self._access.check(token, message.room_id)
        d.addCallback(admitted)
        d.addErrback(self._refused, session, message)
        d.addBoth(self._ended, session)

    def join(self, session: Session, message: Join) -> None:
        """Ask whether the client may be in one room more."""
        token, room_id = session.token, message.room_id
        assert token is not None
        self._check_bound(session, message)
        session.check_begins()

        def admitted(grant: Grant) -> None:
            if session.state is SessionState.CLOSED:
                return
            if grant.user_id != session.user_id:
                raise PeerError(Code.ACCESS_DENIED, "the token belongs to another user now", id=message.id)
            session.say(Joined(room_id, message.id))
            self._enter(session, room_id, grant)
            self._expiry_queue.watch(session)

        def denied(failure: Failure) -> None:
            error = failure.value
            if isinstance(error, PeerError) and error.code is Code.AUTH_FAILED:
                raise PeerError(Code.ACCESS_DENIED, error.message, id=message.id)
            failure.raiseException()

        d = self._access.check(token, room_id)
        d.addCallbacks(admitted, denied)
        d.addErrback(self._refused, session, message)
        d.addBoth(self._ended, session)

    def leave(self, session: Session, message: Leave) -> None:
        """The client leaves a room, and stays."""
        if message.room_id not in session.rooms:
            raise PeerError(Code.ACCESS_DENIED, "not in this room", id=message.id)
        self._leave(session, message.room_id, "left")
        session.say(Left(message.room_id, message.id))

    def evict(self, session: Session, code: str, message: str) -> None:
        """Close a client's socket because somebody says so; ``code`` is one of ours, or a service's own."""
        if code == Code.DUPLICATE_CONNECTION:
            self._counters.duplicates += 1
        session.say(ErrorMessage(code, message))
        session.close(CLOSE_CODES.get(code, CLOSE_CODES[Code.ACCESS_REVOKED]), code)

    def access_stale(self, digest: str | None, user_id: str | None, room_id: str | None, revoked: bool) -> None:
        if digest is not None:
            concerned = tuple(self._roster.digest(digest))
        elif user_id is not None:
            concerned = tuple(self._roster.user(user_id))
        else:
            self.restore()
            for session in self._roster:
                for its_room in _in_question(session, revoked):
                    self._again[session, its_room] = (0.0, revoked)
            return
        for session in concerned:
            for its_room in _in_question(session, revoked):
                if room_id is None or its_room == room_id:
                    self._recheck(session, its_room, revoked)

    def restore(self) -> None:
        """Write to the room cache what this process knows, wherever it has been lost."""
        if not self._bus.available:
            return
        # In this order: an entry that was left behind would supersede its user's new socket, and so would the entry of
        # an older login elsewhere supersede one that could not be announced.
        self._unrestored = False
        announced = self._catch_up(len(self._ghosts) + len(self._unannounced))
        entries = [
            (session.user_id, room_id, session.socket_id)
            for session in self._roster
            if session.user_id is not None
            for room_id in session.rooms
            if room_id is not None and (session, room_id) not in announced
        ]
        if entries:
            restoring = self._rooms.restore(entries)
            restoring.addErrback(self._not_restored)
            if self._single:
                restoring.addCallback(self._superseded)
            restoring.addCallbacks(self._room_cache_kept, self._room_cache_lost)

    def sweep(self) -> None:
        """What time brings: clients that never authenticated, access that expired, questions to ask again."""
        seconds = self._clock.seconds()
        while self._arrivals and self._arrivals[0][0] <= seconds:
            _, session = self._arrivals.popleft()
            if session.state is SessionState.NEW:
                session.refuse(PeerError(Code.AUTH_TIMEOUT, "no authenticate in time", closes=True))
            elif session.state is SessionState.CHECKING and session.user_id is None:
                self._arrivals.append((seconds + self._limits.authenticate_timeout, session))
        now = self._now()
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
        if self._bus.available:
            self._catch_up(_WRITES_PER_SWEEP)
            if self._unrestored and not self._ghosts:
                self.restore()

    async def finish(self) -> None:
        """Return when Redis was told of all that left, which may be too much for it at once; or when it is away."""
        while self._ghosts and self._bus.available:
            self._catch_up(_WRITES_PER_SWEEP)
            await deferLater(self._clock, _BREATH)

    def _catch_up(self, most: int) -> set[tuple[Session, str]]:
        """Tell Redis what it is still to be told. Gives who is announced by that."""
        ghosts, self._ghosts = self._ghosts[:most], self._ghosts[most:]
        for ghost in ghosts:
            self._withdraw(*ghost)
        announced = set(islice(self._unannounced, most))
        self._unannounced -= announced
        for session, room_id in announced:
            self._announce(session, room_id)
        return announced

    def _refused(self, failure: Failure, session: Session, message: Authenticate | Join) -> None:
        error = failure.value
        if isinstance(error, PeerError):
            # The answer may be shared by many questions: what belongs to this one is not written into it.
            closes, retry_after = error.closes, error.retry_after
            session.refuse(PeerError(error.code, error.message, closes=closes, retry_after=retry_after, id=message.id))
        else:
            session.fail(failure)

    def _ended(self, result: object, session: Session) -> None:
        if isinstance(result, Failure):
            session.fail(result)
        session.check_ends()

    def _enter(self, session: Session, room_id: str | None, grant: Grant) -> None:
        known = room_id in session.rooms
        session.rooms[room_id] = grant
        if room_id is None:
            return
        self._roster.enter(session, room_id)
        if session.room_id is None:
            session.room_id = room_id
        if known:
            return
        self._announce(session, room_id)
        if self._single:
            for other in tuple(self._roster.user(grant.user_id)):
                if other is not session and room_id in other.rooms:
                    self._evict_duplicate(other)

    def _announce(self, session: Session, room_id: str) -> None:
        # After the ghosts, of which one may be of this very socket.
        if not self._bus.available or self._ghosts:
            self._unannounced.add((session, room_id))
            return

        def not_sent(failure: Failure) -> Failure:
            # When the connection was lost on the way it may have been written, and is restored.
            if failure.check(NotPublished) and self._bus.available:
                self._unannounced.add((session, room_id))
            return failure

        user_id = session.user_id
        assert user_id is not None
        entering = self._rooms.enter(user_id, room_id, session.socket_id)
        entering.addErrback(not_sent)
        if self._single:
            entering.addCallback(self._displaced, room_id)
        entering.addCallbacks(self._room_cache_kept, self._room_cache_lost)

    def _leave(self, session: Session, room_id: str, reason: str) -> None:
        del session.rooms[room_id]
        self._roster.leave(session, room_id)
        if session.room_id == room_id:
            session.room_id = next((other for other in session.rooms if other is not None), None)
        self._vacate(session, room_id, reason)

    def _vacate(self, session: Session, room_id: str, reason: str) -> None:
        if (session, room_id) in self._unannounced:
            self._unannounced.remove((session, room_id))
            return
        user_id = session.user_id
        assert user_id is not None
        self._withdraw(user_id, room_id, session.socket_id, reason)

    def _withdraw(self, user_id: str, room_id: str, socket_id: str, reason: str) -> None:
        def left_behind(failure: Failure) -> Failure:
            if failure.check(NotPublished):
                self._ghosts.append((user_id, room_id, socket_id, reason))
            return failure

        leaving = self._rooms.leave(user_id, room_id, socket_id, reason)
        leaving.addErrback(left_behind).addCallbacks(self._room_cache_kept, self._room_cache_lost)

    def _not_restored(self, failure: Failure) -> Failure:
        if failure.check(NotPublished) and self._bus.available:
            self._unrestored = True
        return failure

    def _superseded(self, socket_ids: list[str]) -> None:
        for socket_id in socket_ids:
            session = self._roster.socket(socket_id)
            if session is not None:
                self._evict_duplicate(session)

    def _displaced(self, socket_id: str | None, room_id: str) -> None:
        if socket_id is None or self._roster.socket(socket_id) is not None:
            return
        command = {
            "type": "disconnect",
            "recipients": [socket_id],
            "roomId": room_id,
            "payload": {"code": Code.DUPLICATE_CONNECTION},
        }
        channel = reply_channel(gateway_of(socket_id))
        self._bus.publish(channel, msgspec.json.encode(command), lambda _: None)

    def _evict_duplicate(self, session: Session) -> None:
        self.evict(session, Code.DUPLICATE_CONNECTION, "a newer login of the same user took this room")

    def _room_cache_kept(self, _: None) -> None:
        self._cache_refused = False

    def _room_cache_lost(self, failure: Failure) -> None:
        # Restored when Redis is back. What it refuses, as without memory, it refuses for everybody: it is said once.
        if failure.check(NotPublished) is None and not self._cache_refused:
            self._cache_refused = True
            self._log.failure("The room cache is not written, until it can be", failure=failure)

    def _check_bound(self, session: Session, message: Authenticate | Join) -> None:
        room_id, bound = message.room_id, self._limits.rooms
        if room_id is not None and room_id not in session.rooms and len(session.rooms.keys() - {None}) >= bound:
            raise PeerError(Code.ACCESS_DENIED, f"a socket may be in {bound} rooms at most", id=message.id)

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
                self._revoke(session, room_id)
                return
            if room_id in session.rooms:
                self._enter(session, room_id, grant)
            self._expiry_queue.watch(session)

        def doubted(failure: Failure) -> None:
            error = failure.value
            if not isinstance(error, PeerError):
                session.fail(failure)
            elif error.code is Code.AUTH_FAILED:
                self._revoke(session, room_id)
            else:
                self._unanswered(session, room_id, revoked)

        d = self._access.check(token, room_id)
        d.addCallbacks(confirmed, doubted)
        if revoked:
            d.addBoth(self._ended, session)
        else:
            d.addErrback(session.fail)

    def _unanswered(self, session: Session, room_id: str | None, revoked: bool) -> None:
        """Could not ask: never a yes, never a no. What was taken back stays suspended, what grew old stays."""
        if not _matters(session, room_id):
            return
        if _expired(session.rooms.get(room_id), self._now()):
            self._revoke(session, room_id)
            return
        if revoked and room_id in session.rooms:
            session.rooms[room_id] = None
            if room_id is not None:
                self._roster.leave(session, room_id)
        self._again[session, room_id] = (self._clock.seconds() + _RETRY_AFTER, revoked)

    def _revoke(self, session: Session, room_id: str | None) -> None:
        if not _matters(session, room_id):
            return
        self._counters.revoked += 1
        where = "" if room_id is None else f" to room {room_id}"
        session.refuse(PeerError(Code.ACCESS_REVOKED, f"Access{where} was taken back", room_id=room_id))
        if room_id is None:
            session.rooms.pop(None, None)
        else:
            self._leave(session, room_id, "revoked")
        if not session.rooms:
            session.close(CLOSE_CODES[Code.ACCESS_REVOKED], Code.ACCESS_REVOKED)


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
