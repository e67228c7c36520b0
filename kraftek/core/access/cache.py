"""The access cache: one question for many equal checks, answers cached in Redis for all processes, and cached coherent.

Made by :mod:`kraftek.daemon.assembly`, called by :mod:`kraftek.core.admission` and :mod:`kraftek.core.access_watch`,
and by the bus when keys of the cache have changed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence

import msgspec
from msgspec.structs import replace
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from kraftek.contract.errors import DENIALS, Code, PeerError
from kraftek.contract.interfaces import IAccess, IAccessChecker, IAccessListener, IAsker, IBus, IBusListener
from kraftek.contract.log_once import OnceAMinute
from kraftek.contract.messages import Grant, Token
from kraftek.contract.metrics import Counters
from kraftek.contract.names import ACCESS, INVALIDATION, token_key, user_key
from kraftek.contract.settings import Auth
from kraftek.core.access.comparison import Comparison
from kraftek.core.access.invalidation import Invalidation
from kraftek.core.access.listening import Listening
from kraftek.core.access.local import Answers, Changes, Denials, Key, Recent, names
from kraftek.core.access.redis import CachedGrant, Found, SharedAnswers
from kraftek.core.access.revocations import Revocations
from kraftek.core.access.validity import Validity

__all__ = ["AccessCache"]

ATTEMPTS = 3
"""How often one check asks the auth service when access is revoked each time before the answer comes."""

RETRY_AFTER = 1.0
"""Seconds after which such a check may be retried."""

DELAY = 60.0
"""Seconds after the deadline of a check within which its answer reaches Redis."""

LATENESS = 5.0
"""Seconds after the deadline of a check for which Redis notes that it is under way, which is less than :data:`DELAY`:
no token's key outlives its user's."""


def _jitter() -> float:
    """The part of its time that an answer is kept: those of a moment are not all asked for again at one."""
    return random.uniform(0.8, 1.0)  # noqa: S311  # it keeps no secret


@implementer(IAccess, IBusListener)
class AccessCache:
    """The answers of ``checker``: see :mod:`kraftek.core.access.redis` for how all processes share them.

    An answer found in Redis is believed if it was asked for since when no invalidation can have been missed
    (:mod:`kraftek.core.access.listening`), and in this epoch. It is used from memory until Redis announces that one of
    its two keys changed. Then it is compared with Redis (:mod:`kraftek.core.access.comparison`), and listeners are
    notified only if it is missing or different.

    While Redis is unavailable the checker is asked each time and nothing is cached, because nobody could revoke it.

    ``clock`` measures time-outs, ``now`` returns Unix seconds.
    """

    _log = Logger()

    def __init__(
        self,
        checker: IAccessChecker,
        bus: IBus,
        auth: Auth,
        clock: IReactorTime,
        counters: Counters,
        now: Callable[[], float] = time.time,
        jitter: Callable[[], float] = _jitter,
    ) -> None:
        verifyObject(IAccessChecker, checker)
        verifyObject(IBus, bus)
        self._checker = checker
        self._bus = bus
        self._auth = auth
        self._clock = clock
        self._counters = counters
        self._now = now
        self._jitter = jitter
        self._shared = SharedAnswers(bus, clock, now, patience=auth.timeout + LATENESS, memory=auth.timeout + DELAY)
        self._answers = Answers(auth.cache_size)
        self._users: Recent[str] = Recent(auth.cache_size)
        self._denials = Denials(auth.cache_size, auth.denied_ttl)
        self._changes = Changes()
        self._waiters: dict[Key, list[Deferred[Grant]]] = {}
        memory = self._answers, self._users, self._changes
        self._revocations = Revocations(self._shared, auth.cache_size, clock, self._cleared, self._too_many)
        self._listening = Listening(bus, self._revocations, clock)
        self._validity = validity = Validity(checker, bus, auth, self._revocations, self._listening, now=now)
        self._comparison = Comparison(self._shared, *memory, validity.counts, self._stale, counters)
        self._listeners: list[IAccessListener] = []
        self._once_a_minute = OnceAMinute(clock.seconds)
        bus.track(ACCESS, self._changed)
        bus.subscribe(INVALIDATION, self._invalidated)
        bus.add_listener(self)
        checker.on_change(self._checker_changed)

    # IAccess

    def check(self, token: Token, room_id: str | None, asker: IAsker | None = None) -> Deferred[Grant]:
        key = token.digest, room_id or None
        known = self._recall(key)
        if known is not None:
            self._counters.access_hits += 1
            return known
        waiter: Deferred[Grant] = Deferred()
        waiters = self._waiters.setdefault(key, [])
        waiters.append(waiter)
        if len(waiters) == 1:
            Deferred.fromCoroutine(self._find(token, key, asker)).addBoth(self._answer, key)
        return waiter

    def add_listener(self, listener: IAccessListener) -> None:
        self._listeners.append(listener)

    def clock_set(self) -> None:
        self._answers.clear()
        self._stale(None, None, None, False)

    @property
    def gateways(self) -> int:
        return self._listening.gateways

    @property
    def settled(self) -> bool:
        return self._listening.settled

    def hold(self, held: Iterable[tuple[str, str]]) -> None:
        names: list[str] = []
        for digest, user_id in held:
            self._users.put(digest, user_id)
            names += token_key(digest), user_key(user_id)
        self._shared.hold(names)

    def sweep(self) -> None:
        self._revocations.sweep()
        self._listening.sweep()

    # IBusListener

    def bus_up(self) -> None:
        """Revocations during the outage were missed: all access is checked again."""
        self._revocations.clear()
        self._changes.record_all()
        self._answers.clear()
        self._listening.begin()
        self._stale(None, None, None, False)

    def bus_down(self) -> None:
        self._listening.lost()
        self._answers.clear()
        self._denials.clear()

    def epoch_changed(self) -> None:
        self.bus_up()

    # One check

    def _recall(self, key: Key) -> Deferred[Grant] | None:
        known = self._answers.get(key)
        if known is not None:
            cached, position = known
            if self._validity.is_fresh(cached) and not self._changes.since(position, names(key, cached.user_id)):
                return succeed(cached)
        denied = self._denials.get(key, self._clock.seconds(), self._changes)
        return None if denied is None else fail(denied.copy())

    async def _find(self, token: Token, key: Key, asker: IAsker | None) -> Grant:
        for _ in range(ATTEMPTS):
            refusal = _refusal(asker)
            if refusal is not None and not await self._shared.has(*key):
                raise refusal
            position = self._changes.position
            found = await self._look_up(key)
            if found is not None and found.grant is not None and self._validity.counts(found.grant, key[1]):
                if asker is not None and refusal is None:
                    asker.unasked()
                self._counters.access_hits += 1
                self._users.put(key[0], found.grant.user_id)
                self._remember(key, found.grant, position)
                return found.grant
            if refusal is not None:
                raise refusal
            asked = self._clock.seconds()
            grant = await self._ask(token, key, asker)
            if self._clock.seconds() - asked > self._auth.timeout + LATENESS:
                continue  # the process was paused: nobody knows how old that is
            cached, seconds = self._validity.dated(grant, found, self._jitter())
            self._users.put(key[0], cached.user_id)
            # If there was an outage meanwhile, Redis may not know of revocations during it.
            foreign = found is not None and self._validity.is_foreign(found.grant)
            if found is not None and not foreign and not self._changes.since(position, ()):
                sent = self._changes.position
                stored = await self._shared.store(*key, cached, seconds, found)
                if stored is False or (stored and self._revocations.concern(cached.user_id, key[1])):
                    continue
                if stored:
                    self._comparison.read(found.time, token_key(key[0]), user_key(cached.user_id))
                    if self._remember(key, cached, sent):
                        return cached
                    position = sent
            # The answer is not cached, so only the changes announced meanwhile can invalidate it.
            if not self._changes.since(position, names(key, cached.user_id)):
                return cached if seconds > 0 else grant  # with ttl: 0 it is not checked again
        self._counters.access_failed += 1
        raise PeerError(Code.AUTH_UNAVAILABLE, "access cannot be checked at present", retry_after=RETRY_AFTER)

    async def _look_up(self, key: Key) -> Found | None:
        found = await self._look_up_once(key)
        if found is not None and found.grant is not None and not self._listening.settled:
            await self._listening.settle()
            found = await self._look_up_once(key)
        return found

    async def _look_up_once(self, key: Key) -> Found | None:
        if self._bus.epoch is None:
            return None
        user_id = self._users.get(key[0])
        found = await self._shared.look_up(*key, user_id)
        if found is not None:
            self._comparison.read(found.time, token_key(key[0]), *(() if user_id is None else (user_key(user_id),)))
        if found is None or found.grant is None or found.grant.user_id == user_id:
            return found
        # Whose token it is has only now been found: changes of this user's key are not announced yet.
        user_id = found.grant.user_id
        if self._validity.counts(found.grant, key[1]):
            found = await self._shared.look_up(*key, user_id)
        same = found is not None and found.grant is not None and found.grant.user_id == user_id
        return found if same or found is None else replace(found, grant=None)

    async def _ask(self, token: Token, key: Key, asker: IAsker | None) -> Grant:
        position = self._changes.position
        self._counters.access_asked += 1
        try:
            return await self._checker.check(token, key[1], "" if asker is None else asker.turn)
        except PeerError as error:
            if error.code in DENIALS:
                self._denials.put(key, error, self._clock.seconds(), position)
            elif error.code is not Code.RATE_LIMITED:
                self._counters.access_failed += 1
            raise

    def _answer(self, result: Grant | Failure, key: Key) -> None:
        result = _unless_expired(result, self._now())
        for waiter in self._waiters.pop(key):
            if not isinstance(result, Failure):
                waiter.callback(result)
            elif isinstance(result.value, PeerError):
                waiter.errback(result.value.copy())
            else:
                waiter.errback(result)

    def _remember(self, key: Key, cached: CachedGrant, position: int) -> bool:
        """Cache the answer in memory, if possible. ``position``: when it was stored in Redis or found there."""
        if not self._bus.available or not self._validity.is_fresh(cached):
            return False
        self._answers.put(key, cached, position)
        if self._changes.since(position, names(key, cached.user_id)):
            self._comparison.changed(token_key(key[0]), user_key(cached.user_id))
        return True

    # What changes

    def _checker_changed(self) -> None:
        self._changes.record_all()
        self._answers.clear()
        self._stale(None, None, None, False)

    def _changed(self, keys: list[str] | None) -> None:
        if keys is None:
            self._counters.access_invalidations += 1
            self._checker_changed()
        else:
            self._changes.record(*keys)
            self._comparison.changed(*keys)

    def _invalidated(self, body: bytes) -> None:
        try:
            message = msgspec.json.decode(body, type=Invalidation)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            text = "Ignored a malformed message on {channel} (logged once a minute): {error}"
            self._once_a_minute(self._log.warn, text, channel=INVALIDATION, error=str(error))
            return
        user_id, room_id = message.user_id, message.room_id or None
        self._counters.access_invalidations += 1
        self._changes.record(user_key(user_id) if room_id is None else (user_id, room_id), INVALIDATION)
        for key in self._answers.named(user_key(user_id)):
            if room_id in (None, key[1]):
                self._answers.drop(key)
        self._revocations.add(user_id, room_id)
        self._stale(None, user_id, room_id, True)

    def _too_many(self) -> None:
        self._log.warn("Redis refuses to forget access that was revoked: no cached access from before now is used")
        self._listening.begin()

    def _cleared(self, user_id: str, digests: Sequence[str]) -> None:
        # Our own script has changed these keys, which ended their tracking.
        self._comparison.changed(user_key(user_id), *map(token_key, digests))

    def _stale(self, digest: str | None, user_id: str | None, room_id: str | None, revoked: bool) -> None:
        for listener in self._listeners:
            try:
                listener.access_stale(digest, user_id, room_id, revoked)
            except Exception:  # noqa: BLE001  # one listener's fault must not keep the others from being notified
                self._log.failure("Notifying a listener of changed access failed: a bug, please report it")


def _refusal(asker: IAsker | None) -> PeerError | None:
    """Why the auth service may not be asked; otherwise it counts as asked. Who may not ask leaves no note in Redis."""
    try:
        if asker is not None:
            asker.asks()
    except PeerError as error:
        return error
    return None


def _unless_expired(result: Grant | Failure, now: float) -> Grant | Failure:
    if isinstance(result, Grant) and result.expires_at is not None and result.expires_at <= now:
        return Failure(PeerError(Code.TOKEN_EXPIRED, "Access has expired", closes=True))
    return result
