"""What each socket, user and address may use of this process in a second: ``[limits]`` in the configuration.

Asked by :mod:`kraftek.core.session` for what arrives, by :mod:`kraftek.core.gateway` for events with a rate of their
own, by :mod:`kraftek.core.admission` and :mod:`kraftek.core.access_watch` for joins and questions about access.

A socket over its own budget is not read for a while: whatever it sends comes later. What is over the budget of a user
or of an address is refused, because other sockets may have used that up.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

from msgspec import Struct
from twisted.internet.interfaces import IReactorTime
from zope.interface import implementer

from kraftek.contract.errors import Code, Limit, PeerError
from kraftek.contract.interfaces import IAsker, IClientLink
from kraftek.contract.messages import RequestId
from kraftek.contract.metrics import Counters
from kraftek.contract.rates import Buckets
from kraftek.contract.settings import Limits, Registration
from kraftek.core.access.permissions import permits

__all__ = ["Asker", "Budgets", "Refusals", "Spender"]

RETRY_AFTER = 1.0
"""Seconds that whoever is refused is told to wait, at least: so clients that obey are told from others."""

_EVENTS_AT_ONCE, _BYTES_AT_ONCE = 64, 65_536
"""What a socket is allowed at a time, and pays in advance. A look at all buckets takes 3 µs: a tenth of an event."""

_ALLOWED_AHEAD = 0.05
"""Seconds in which it may use that up at its rate: a low rate is not exceeded by what is allowed at a time."""

_LONGEST = 1.0
"""Seconds for which a socket is not read at a time."""

_PAUSE = 0.1
"""Seconds for which it is not read after a refusal: refusing costs a third of handling."""

_TOLD_EVERY = 1.0
"""Seconds between two answers to events without an id: an error is five times as long as a small event."""

_GAP = 0.5
"""Seconds without a refusal after which a socket has kept within its budgets for a while."""

_PATIENCE = 10.0
"""Seconds that a socket may go on above its budgets before it is closed."""

_UNLIMITED = 2**62

_CLOSING = frozenset({Limit.USER, Limit.ADDRESS, Limit.JOINS, Limit.QUESTIONS})
"""The others protect a service and not the gateway."""

_MESSAGES = {
    Limit.USER: "this user sends too much",
    Limit.ADDRESS: "too much comes from this address",
    Limit.EVENT: "too many events of this kind",
    Limit.JOINS: "this user joins too many rooms",
    Limit.QUESTIONS: "access has to be checked too often",
}


class Refusals:
    """Of one socket: since when it goes on above its budgets, when that was last refused, and when it was last told."""

    __slots__ = ("last", "since", "told")

    def __init__(self, since: float, last: float, told: float) -> None:
        self.since = since
        self.last = last
        self.told = told


_FullAt = list[tuple[str, float]]
"""When the bucket of each is full."""


class BudgetState(Struct, kw_only=True):
    """For another version of the gateway: the buckets for events and for bytes, and the others."""

    users: tuple[_FullAt, _FullAt]
    addresses: tuple[_FullAt, _FullAt]
    joins: _FullAt
    questions: _FullAt
    address_questions: _FullAt
    rates: list[tuple[str, float, _FullAt]]


class Spender(Protocol):
    """What uses budgets up: a session. ``events``, ``size``: what is left to it of its allowance. ``address``: what its
    client counts for, empty where that is not known.
    """

    address: str
    events: int
    link: IClientLink
    refusals: Refusals | None
    size: int
    user_id: str | None


class _Flow:
    """Buckets for events and for bytes."""

    __slots__ = ("_events", "_size")

    def __init__(self, events: float, size: float, burst: float) -> None:
        self._events: Buckets[object] = Buckets(events, burst)
        self._size: Buckets[object] = Buckets(size, burst)

    def __len__(self) -> int:
        return max(len(self._events), len(self._size))

    def give(self) -> tuple[_FullAt, _FullAt]:
        return self._events.give(), self._size.give()  # type: ignore[return-value]  # but for those of sockets

    def take(self, events: _FullAt, size: _FullAt) -> None:
        self._events.take(events)
        self._size.take(size)

    def full_at(self, key: object) -> tuple[float, float]:
        return self._events.full_at(key), self._size.full_at(key)

    def over(self, key: object, now: float) -> float:
        return max(self._events.over(key, now), self._size.over(key, now))

    def charge(self, key: object, events: int, size: int, now: float) -> float:
        return max(self._events.charge(key, events, now), self._size.charge(key, size, now))


class Budgets:
    """All budgets of this process. ``address_of``: whose budget clients at an address use up, empty for nobody's."""

    def __init__(
        self,
        limits: Limits,
        counters: Counters,
        clock: IReactorTime,
        address_of: Callable[[str], str] = lambda _: "",
    ) -> None:
        self.address_of = address_of
        self._limits = limits
        self._counters = counters
        self._seconds = clock.seconds
        self.renew()

    def renew(self) -> None:
        """Begin anew with what the limits are now: everybody's budgets are full. What a spender was allowed before it
        still has.
        """
        limits, burst = self._limits, self._limits.burst
        self._burst = burst
        self._sockets = _Flow(limits.events_per_socket, limits.bytes_per_socket, burst)
        self._users = _Flow(limits.events_per_user, limits.bytes_per_user, burst)
        self._addresses = _Flow(limits.events_per_address, limits.bytes_per_address, burst)
        self._joins: Buckets[str] = Buckets(limits.joins_per_user, burst)
        self._questions: Buckets[str] = Buckets(limits.questions_per_user, burst)
        self._address_questions: Buckets[str] = Buckets(limits.questions_per_address, burst)
        self._rates: dict[tuple[str, float], Buckets[str]] = {}
        events = limits.events_per_socket, limits.events_per_user, limits.events_per_address
        size = limits.bytes_per_socket, limits.bytes_per_user, limits.bytes_per_address
        self._limited = any(events) or any(size)
        self._allowance = _allowance(events, _EVENTS_AT_ONCE), _allowance(size, _BYTES_AT_ONCE)

    def give(self) -> BudgetState:
        """What is not of a socket."""
        return BudgetState(
            users=self._users.give(),
            addresses=self._addresses.give(),
            joins=self._joins.give(),
            questions=self._questions.give(),
            address_questions=self._address_questions.give(),
            rates=[(*rate, buckets.give()) for rate, buckets in self._rates.items()],
        )

    def take(self, state: BudgetState) -> None:
        """Go on with it."""
        self._users.take(*state.users)
        self._addresses.take(*state.addresses)
        self._joins.take(state.joins)
        self._questions.take(state.questions)
        self._address_questions.take(state.address_questions)
        for pattern, rate, full_at in state.rates:
            buckets: Buckets[str] = Buckets(rate, self._burst)
            buckets.take(full_at)
            self._rates[pattern, rate] = buckets

    def full_at(self, spender: Spender) -> tuple[float, float]:
        """When its own buckets are full: of events, and of bytes."""
        return self._sockets.full_at(spender.link)

    def restore(self, spender: Spender, full_at: tuple[float, float]) -> None:
        """Go on with them."""
        events, size = ([(spender.link, at)] if at else [] for at in full_at)
        self._sockets.take(events, size)  # type: ignore[arg-type]  # as above

    def __len__(self) -> int:
        """Sockets, users and addresses of which is known what they have used."""
        return len(self._sockets) + len(self._users) + len(self._addresses) + len(self._joins)

    def draw(self, spender: Spender) -> PeerError | None:
        """Its allowance is used up: charge what it has used beyond that, and allow it more. An error: its user or its
        address is over budget, and it is allowed nothing.
        """
        if not self._limited:
            spender.events = spender.size = _UNLIMITED
            return None
        now = self._seconds()
        events, size = max(-spender.events, 0), max(-spender.size, 0)
        user_id, address = spender.user_id, spender.address
        over, limit = -self._burst, Limit.USER
        if user_id is not None:
            over = self._users.over(user_id, now)
        if address and (by_address := self._addresses.over(address, now)) > over:
            over, limit = by_address, Limit.ADDRESS
        refused = over > 0
        # What one that sends now and then was allowed is not there for other sockets of its user.
        if over * 2 <= -self._burst:
            spender.events, spender.size = self._allowance
        else:
            spender.events = spender.size = 0
        events, size = events + spender.events, size + spender.size
        if not refused:
            if user_id is not None:
                self._users.charge(user_id, events, size, now)
            if address:
                self._addresses.charge(address, events, size, now)
        slow = self._sockets.charge(spender.link, events, size, now)
        if slow > 0:
            self._counters.slowed += 1
            if slow > _LONGEST:
                spender.events = spender.size = 0
        if refused:
            slow = max(slow, _PAUSE)
        if slow > 0:
            spender.link.slow(min(slow, _LONGEST))
        return _limited(limit, over) if refused else None

    def overdrawn(self, user_id: str, address: str) -> float:
        """Seconds until neither of them is over budget. ``address``: as that of a spender."""
        now = self._seconds()
        over = self._users.over(user_id, now)
        if address:
            over = max(over, self._addresses.over(address, now))
        return max(over, 0.0)

    def spend(self, user_id: str, address: str, events: int, size: int) -> None:
        """What they have caused counts as so many events and bytes of both."""
        now = self._seconds()
        self._users.charge(user_id, events, size, now)
        if address:
            self._addresses.charge(address, events, size, now)

    def joins(self, user_id: str, rooms: int = 1, *, refusing: bool = True) -> None:
        """The user joins so many rooms, or leaves them. Raises ``PeerError`` if it has done that too often and that is
        a reason to refuse.
        """
        now = self._seconds()
        over = self._joins.over(user_id, now)
        if refusing and over > 0:
            raise _limited(Limit.JOINS, over)
        self._joins.charge(user_id, rooms, now)

    def event(self, user_id: str, service: Registration, name: str) -> PeerError | None:
        """The user sends such an event to a service that has rates of its own. An error: too many of them."""
        rate = _rate(tuple(service.rate.items()), name)
        if rate is None:
            return None
        buckets = self._rates.get(rate)
        if buckets is None:
            buckets = self._rates[rate] = Buckets(rate[1], self._burst)
        now = self._seconds()
        over = buckets.over(user_id, now)
        if over > 0:
            return _limited(Limit.EVENT, over)
        buckets.charge(user_id, 1, now)
        return None

    def question(self, user_id: str | None, address: str) -> None:
        """Somebody's access makes it necessary to ask the auth service. Raises ``PeerError`` if it has too often."""
        now = self._seconds()
        over = -self._burst
        if user_id is not None:
            over = self._questions.over(user_id, now)
        if address:
            over = max(over, self._address_questions.over(address, now))
        if over > 0:
            raise _limited(Limit.QUESTIONS, over)
        self._count_questions(user_id, address, 1, now)

    def unasked(self, user_id: str | None, address: str) -> None:
        """A question that was charged was not necessary."""
        self._count_questions(user_id, address, -1, self._seconds())

    def _count_questions(self, user_id: str | None, address: str, number: int, now: float) -> None:
        if user_id is not None:
            self._questions.charge(user_id, number, now)
        if address:
            self._address_questions.charge(address, number, now)

    def refused(self, spender: Spender, error: PeerError) -> bool:
        """What it sent was refused with ``RATE_LIMITED``. Returns whether it is to be told: an event without an id may
        have been answered by an earlier error. The error closes the socket when it has gone on for too long.
        """
        assert error.limit is not None
        self._counters.rate_limited[error.limit] += 1
        now = self._seconds()
        refusals = spender.refusals
        if refusals is None:
            refusals = spender.refusals = Refusals(now, now, now - _TOLD_EVERY)
        if error.limit in _CLOSING:
            if now - refusals.last > _GAP:
                refusals.since = now
            refusals.last = now
            if now - refusals.since >= _PATIENCE:
                self._counters.rate_limited_closed += 1
                error.closes = True
                return True
        if error.id is not None or error.event_type is None:
            return True
        if now - refusals.told < _TOLD_EVERY:
            return False
        refusals.told = now
        return True


@implementer(IAsker)
class Asker:
    """On whose behalf the auth service is asked. ``budgets``: what to charge; ``None`` if the client has not asked."""

    __slots__ = ("_address", "_budgets", "_digest", "_user_id")

    def __init__(self, spender: Spender, digest: str, budgets: Budgets | None = None) -> None:
        self._budgets = budgets
        self._user_id = spender.user_id
        self._address = spender.address
        self._digest = digest

    @property
    def turn(self) -> str:
        # Different kinds of names do not meet: that of a user begins with a letter of its own.
        if self._user_id is not None:
            return f"u{self._user_id}"
        return f"a{self._address}" if self._address else f"t{self._digest}"

    def asks(self) -> None:
        if self._budgets is not None:
            self._budgets.question(self._user_id, self._address)

    def unasked(self) -> None:
        if self._budgets is not None:
            self._budgets.unasked(self._user_id, self._address)


def _allowance(rates: tuple[int, ...], most: int) -> int:
    """What a socket may be allowed at a time of what is limited by all of these."""
    return min(most, *(int(rate * _ALLOWED_AHEAD) for rate in rates if rate), most)


@lru_cache(maxsize=8192)
def _rate(rates: tuple[tuple[str, float], ...], name: str) -> tuple[str, float] | None:
    """The first of the rates whose pattern covers the event's name."""
    return next((rate for rate in rates if permits((rate[0],), name)), None)


def _limited(limit: Limit, over: float, id: RequestId | None = None) -> PeerError:
    message = _MESSAGES[limit]
    return PeerError(Code.RATE_LIMITED, message, retry_after=max(RETRY_AFTER, round(over, 3)), id=id, limit=limit)
