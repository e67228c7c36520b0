"""One client: who it is, which rooms it is in, and what it may do now. Made by the gateway, fed by its
link.
"""

from __future__ import annotations

from collections.abc import Set
from enum import Enum
from math import inf
from typing import Protocol

from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.contract.accounts import Accounts
from kraftek.contract.errors import CLOSE_CODES, Code, PeerError
from kraftek.contract.interfaces import IClientLink, IDialect, IOutlet, IReceiver
from kraftek.contract.messages import Closing, Delivery, ErrorMessage, Gap, Grant, Inbound, Outbound, Outgoing, Token
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Limits
from kraftek.contract.turns import STEP
from kraftek.core.budgets import Budgets, Refusals
from kraftek.core.held import Held
from kraftek.core.kept import Kept

__all__ = ["Core", "HeldGrant", "Session", "SessionState"]


class HeldGrant:
    """What a session holds for a room: the token that gave it, what it permits, and when it is to be checked again.

    ``due``: Unix seconds; the answer has grown old then, or has expired. ``suspended``: it permits nothing, because it
    was revoked or has expired and the auth service has not answered since. ``expired``: so is its token, and the client
    has been told to show another one. ``given``: by a service, and never asked about.
    """

    __slots__ = ("due", "expired", "expires_at", "given", "permissions", "suspended", "token")

    def __init__(self, token: Token, grant: Grant, *, given: bool = False) -> None:
        self.token = token
        self.given = given
        self.permissions = grant.permissions
        self.expires_at = grant.expires_at
        self.suspended = self.expired = False
        self.due = min((at for at in (grant.expires_at, grant.fresh_until) if at is not None), default=inf)

    def suspend(self) -> None:
        """Permit nothing from now on. Another grant takes its place."""
        self.permissions = ()
        self.suspended = True

    def is_expired(self, now: float) -> bool:
        """Whether access by it has ended, at ``now`` in Unix seconds."""
        return self.expires_at is not None and self.expires_at <= now

    def asked(self, now: float) -> None:
        """It is being checked, because it was due: the next time is when it expires."""
        self.due = inf if self.expires_at is None or self.expires_at <= now else self.expires_at


class SessionState(Enum):
    """What a session does with what arrives: the table in :class:`Session`."""

    NEW = "new"
    CHECKING = "checking"
    READY = "ready"
    CLOSED = "closed"


_CHECKING, _CLOSED = SessionState.CHECKING, SessionState.CLOSED
"""For each message: to look a member of an enumeration up takes as long as the comparison."""


class Core(Protocol):
    """What a session needs of the gateway. ``accounts``: what it holds is in one of them."""

    accounts: Accounts

    def handle(self, session: Session, message: Inbound) -> None:
        """Do what the client asks. Raises ``PeerError`` for what the client must know."""

    def limit(self, session: Session, message: Inbound, error: PeerError) -> bool:
        """The client's user or address is over its budget: refuse the message with this error. ``False``: such a
        message is handled all the same. Raises ``PeerError``.
        """

    def release(self, session: Session) -> None:
        """The session holds messages that can be handled: call its ``step`` in its turns."""

    def closed(self, session: Session) -> None:
        """The session has ended, for whatever reason. Called once."""


@implementer(IReceiver)
class Session:
    """One client.

    ================  ===================  ======================  ==========  =======
    input             NEW                  CHECKING                READY       CLOSED
    ================  ===================  ======================  ==========  =======
    authenticate      → CHECKING           held, in order          refreshed;  ignored
                                                                   during one
                                                                   → CHECKING
    join              NOT_AUTHENTICATED    held, in order          → CHECKING  ignored
    leave, event      NOT_AUTHENTICATED    held, in order          handled     ignored
    access revoked    —                    checked again           → CHECKING  ignored
    last check ended  —                    → READY, or NEW without an identity, if nothing is held
    its turn          —                    some that are held are handled; after the last → READY, or NEW
    closed            → CLOSED             → CLOSED                → CLOSED    ignored
    lost              → CLOSED             held ones are handled unless a check is in flight; → CLOSED
    ================  ===================  ======================  ==========  =======

    What was held is handled in turns (:mod:`kraftek.contract.turns`): one read of Redis may end the checks of hundreds
    of sessions.

    ``rooms`` maps each room to its grant. The key ``None`` means "without a room", as in
    access checks: its grant, if the client has one, covers events outside of rooms. ``room_id`` is the default room,
    the first that was joined; ``None`` without rooms, and one that a service gave is none. ``token`` is the one that
    was shown last, with which rooms are joined; it expires at ``expires_at``, in Unix seconds. ``refreshes``: tokens
    that were shown since: one is being checked, another one waits for that. ``outages``: how often the gateway had lost
    Redis when the client connected. ``kept``: what is kept of it if its client may come back. ``outlet`` takes what
    services send to the user or the socket: the link, unless that has to wait.
    ``events``, ``size``: messages and bytes that may arrive before the ``budgets`` are looked at again.
    """

    __slots__ = (
        "_checks",
        "_core",
        "_counters",
        "_held",
        "_invalid",
        "_limits",
        "address",
        "budgets",
        "dialect",
        "events",
        "expires_at",
        "kept",
        "link",
        "outages",
        "outlet",
        "refreshes",
        "refusals",
        "room_id",
        "rooms",
        "size",
        "socket_id",
        "state",
        "superseded",
        "token",
        "user_id",
    )

    _log = Logger()

    def __init__(
        self,
        socket_id: str,
        core: Core,
        link: IClientLink,
        dialect: IDialect,
        limits: Limits,
        counters: Counters,
        *,
        budgets: Budgets,
    ) -> None:
        self.socket_id = socket_id
        self.address = budgets.address_of(link.peer)
        self.events = self.size = 0
        self.refusals: Refusals | None = None
        self.budgets = budgets
        self.link = link
        self.outlet: IOutlet = link
        self.dialect = dialect
        self.state = SessionState.NEW
        self.superseded = False
        self.kept: Kept | None = None
        self.outages = self.refreshes = self._checks = self._invalid = 0
        self.user_id: str | None = None
        self.token: Token | None = None
        self.expires_at: float | None = None
        self.room_id: str | None = None
        self.rooms: dict[str | None, HeldGrant] = {}
        self._core, self._limits, self._counters = core, limits, counters
        self._held: Held | None = None

    @property
    def due(self) -> float:
        """Unix seconds at which something of its access is to be checked."""
        if self.asked:
            return min(held.due for held in self.rooms.values())
        return inf if self.expires_at is None else self.expires_at

    @property
    def asked(self) -> Set[str | None]:
        """The rooms that access is asked about: all but those that a service gave."""
        return {room_id: None for room_id, held in self.rooms.items() if not held.given}.keys()

    def holds(self, digest: str) -> bool:
        """Whether it has something by the token of that digest."""
        token = self.token
        return (token is not None and token.digest == digest) or any(
            held.token.digest == digest for held in self.rooms.values() if not held.given
        )

    def is_expired(self, now: float) -> bool:
        """Whether it is in no room by its token, which has expired: then it has nothing any more."""
        return self.expires_at is not None and self.expires_at <= now and not self.asked

    def receive(self, data: bytes, binary: bool = False) -> None:
        """Handle one message from the client. Whatever goes wrong becomes an ``error`` message here."""
        if self.state is _CLOSED:
            return
        self._counters.received += 1
        events = self.events = self.events - 1
        size = self.size = self.size - len(data)
        over = self.budgets.draw(self) if events < 0 or size < 0 else None
        try:
            message = self.dialect.received(data, binary)
            if message is None:
                return
            self._invalid = 0
            if over is not None and self._core.limit(self, message, over):
                return
            if self.state is _CHECKING:
                self._hold(message, len(data))
            else:
                self._core.handle(self, message)
        except PeerError as error:
            self.refuse(error)
        except Exception:  # noqa: BLE001  # the guard of this edge: our fault is logged, and INTERNAL to the client
            self.fail(Failure())

    def charge(self, events: int, size: int) -> None:
        self.events -= events
        self.size -= size
        if (self.events < 0 or self.size < 0) and self.state is not SessionState.CLOSED:
            self.budgets.draw(self)

    def handle(self, message: Inbound) -> None:
        """As :meth:`receive`, for a decoded message: the credentials of the handshake, or a message that was held."""
        try:
            if self.state is SessionState.CHECKING:
                self._hold(message, 0)
            elif self.state is not SessionState.CLOSED:
                self._core.handle(self, message)
        except PeerError as error:
            self.refuse(error)
        except Exception:  # noqa: BLE001  # the guard of this edge: our fault is logged, and INTERNAL to the client
            self.fail(Failure())

    def send(self, message: Outbound) -> None:
        """Send the client a message, if its dialect can express it."""
        outgoing = self.dialect.encode(message)
        if outgoing is not None:
            self.link.write(outgoing)

    def send_in_order(self, message: Outbound, room_id: str | None) -> None:
        """As :meth:`send`, for what ends the messages of a room: it overtakes none of them."""
        outgoing = self.dialect.encode(message)
        if outgoing is not None:
            outgoing.about = Delivery("", room_id=room_id)
            self.link.write(outgoing)

    def refuse(self, error: PeerError) -> None:
        """Send the client an error, and close its socket where the error requires that."""
        if self.state is SessionState.CLOSED:
            return
        if error.limit is not None and not self.budgets.refused(self, error):
            return
        self._counters.errors_peer += 1
        room_id = error.room_id
        message = ErrorMessage(
            error.code, error.message, error.event_type, error.retry_after, error.id, room_id, error.limit
        )
        if room_id is None:
            self.send(message)
        else:
            self.send_in_order(message, room_id)
        closes = error.closes
        if error.code is Code.INVALID_MESSAGE:
            self._invalid += 1
            closes = closes or self._invalid >= self._limits.invalid_messages
        if closes:
            self.close(CLOSE_CODES[error.code], error.code)

    def fail(self, failure: Failure) -> None:
        """An internal error: logged with its cause, which the client does not get."""
        self._counters.errors_internal += 1
        self._log.failure("Session {socket_id} failed", failure=failure, socket_id=self.socket_id)
        if self.state is not SessionState.CLOSED:
            self.send(ErrorMessage(Code.INTERNAL, "Internal error"))
            self.close(CLOSE_CODES[Code.INTERNAL], Code.INTERNAL)

    def evict(self, code: str, message: str) -> None:
        """Close the client's socket on behalf of a service or another gateway; ``code`` may be a service's own."""
        self.send(ErrorMessage(code, message))
        self.close(CLOSE_CODES.get(code, CLOSE_CODES[Code.ACCESS_REVOKED]), code)

    def supersede(self) -> None:
        """Close the client's socket because another one of its user took a room."""
        self._counters.duplicates += 1
        self.superseded = True
        self.evict(Code.DUPLICATE_CONNECTION, "a newer login of the same user took this room")

    def close(self, code: int, reason: str, *, returns: bool = False) -> None:
        """Close the client's socket after everything queued for it has been sent. ``returns``: it is to come back."""
        if self.state is not SessionState.CLOSED:
            self.send(Closing(code, returns))
            self.link.close(code, reason)
            self._end()

    def lost(self) -> None:
        """The client disconnected. What waits for its turn is handled before."""
        while self.step():
            pass
        if self.state is not SessionState.CLOSED:
            self._end()

    def _end(self) -> None:
        self.state, held, self._held = SessionState.CLOSED, self._held, None
        if held is not None:
            held.give_up()
        self._core.closed(self)

    def overrun(self) -> Outgoing | None:
        message = "send buffer full: the client reads too slowly"
        return self.dialect.encode(ErrorMessage(Code.SLOW_CONSUMER, message, retry_after=1.0))

    def gap(self, gap: Gap) -> Outgoing | None:
        return None if self.state is SessionState.CLOSED else self.dialect.encode(gap)

    def check_begins(self) -> None:
        """An access check begins: hold what arrives until :meth:`check_ends` was called as often as this."""
        self._checks += 1
        self.state = SessionState.CHECKING

    def check_ends(self, result: object = None) -> None:
        """An access check ended. After the last one, held messages are handled. A ``Failure`` is an internal error."""
        if isinstance(result, Failure):
            self.fail(result)
        if self.state is SessionState.CLOSED:
            return
        self._checks -= 1
        if self._checks:
            return
        if self._held is None:
            self._settle()
        else:
            self._core.release(self)

    def _settle(self) -> None:
        self.state = SessionState.NEW if self.user_id is None else SessionState.READY

    # What the turns call, when nothing is checked and something is held.

    def step(self) -> bool:
        held = self._held
        if self.state is not _CHECKING or self._checks or held is None:
            return False
        # Emptied first: a check that is answered at once calls check_ends again, and must find nothing to do.
        self._held = None
        self._settle()
        for _ in range(min(STEP, len(held))):
            self.handle(held.take())
            if self.state is _CLOSED:
                held.give_up()
                return False
            if self.state is _CHECKING:
                break
        if held:
            if self._held is not None:
                held.follow(self._held)  # one that found its access expired goes back to the front
            self._held, self.state = held, _CHECKING
        if self._held is None or not self._held.full:
            self.link.resume()
        return self._held is not None and not self._checks

    def rest(self) -> None:
        pass

    def failed(self) -> None:
        self.close(CLOSE_CODES[Code.INTERNAL], Code.INTERNAL)

    def _hold(self, message: Inbound, size: int) -> None:
        if self._held is None:
            self._held = Held(self._limits, self._core.accounts)
        self._held.put(message, size)
        if self._held.full:
            self.link.pause()
