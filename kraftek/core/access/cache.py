"""The access cache: one question for many equal checks, answers cached in Redis for all processes, and cached coherent.

Made by :mod:`kraftek.daemon.assembly`, called by :mod:`kraftek.core.admission` and :mod:`kraftek.core.access_watch`,
and by the bus when keys of the cache have changed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import islice
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import asdict
from twisted.internet.defer import Deferred, fail, gatherResults, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer
from zope.interface.verify import verifyObject

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.interfaces import IAccess, IAccessChecker, IAccessListener, IBus, IBusListener
from kraftek.contract.log_once import OnceAMinute
from kraftek.contract.messages import Grant, Token
from kraftek.contract.metrics import Counters
from kraftek.contract.names import ACCESS, INVALIDATION, token_key, user_key
from kraftek.contract.settings import Auth
from kraftek.core.access.local import Answers, Changes, Denials, Key, names
from kraftek.core.access.redis import CachedGrant, SharedAnswers
from kraftek.core.access.revocations import Revocations

__all__ = ["AccessCache"]

ATTEMPTS = 3
"""How often one check asks the auth service when access is revoked each time before the answer comes."""

RETRY_AFTER = 1.0
"""Seconds after which such a check may be retried."""

LONGEST = 31_536_000.0
"""Seconds that an answer is cached at most, whatever its ``ttl``: a year, as in the configuration."""

SKEW = 5.0
"""Seconds by which the clocks of two gateways may differ. An answer that claims to be fresh for longer than any may be
was stored before the clock was set back."""

DELAY = 60.0
"""Seconds after the deadline of a check within which its answer reaches Redis."""

COMPARED = 100
"""Cached answers that are compared with Redis when a key changed. A deletion removes all that depend on the key, so a
part of them shows it."""


def _jitter() -> float:
    """The part of its time that an answer is kept: those of a moment are not all asked for again at one."""
    return random.uniform(0.8, 1.0)  # noqa: S311  # it keeps no secret


class _Invalidation(Struct, rename="camel"):
    user_id: Annotated[str, Meta(min_length=1)]
    room_id: str | None = None


@implementer(IAccess, IBusListener)
class AccessCache:
    """The answers of ``checker``: see :mod:`kraftek.core.access.redis` for how all processes share them.

    An answer found in Redis is used from memory until Redis announces that one of its two keys changed. Redis does not
    say who changed what, and announces this process's own writes as well. So the answers that depend on the key are
    compared with Redis again, and listeners are notified only if one of them is missing or different.

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
        self._shared = SharedAnswers(bus, clock, auth.timeout + DELAY)
        self._answers = Answers(auth.cache_size)
        self._denials = Denials(auth.cache_size, auth.denied_ttl)
        self._changes = Changes()
        self._waiters: dict[Key, list[Deferred[Grant]]] = {}
        self._changed_keys: set[str] = set()
        self._comparing = False
        self._revocations = Revocations(self._shared, auth.cache_size, clock)
        self._listeners: list[IAccessListener] = []
        self._once_a_minute = OnceAMinute(clock.seconds)
        bus.track(ACCESS, self._changed)
        bus.subscribe(INVALIDATION, self._invalidated)
        bus.add_listener(self)

    # IAccess

    def check(self, token: Token, room_id: str | None) -> Deferred[Grant]:
        key = token.digest, room_id or None
        known = self._recall(key)
        if known is not None:
            self._counters.access_hits += 1
            return known
        waiter: Deferred[Grant] = Deferred()
        waiters = self._waiters.get(key)
        if waiters is not None:
            waiters.append(waiter)
            return waiter
        self._waiters[key] = [waiter]
        Deferred.fromCoroutine(self._find(token, key)).addBoth(self._answer, key)
        return waiter

    def add_listener(self, listener: IAccessListener) -> None:
        self._listeners.append(listener)

    def clock_set(self) -> None:
        self._answers.clear()
        self._stale(None, None, None, revoked=False)

    def sweep(self) -> None:
        self._revocations.sweep()

    # IBusListener

    def bus_up(self) -> None:
        """Revocations during the outage were missed: all access is checked again."""
        self._revocations.clear()
        self._changes.record_all()
        self._stale(None, None, None, revoked=False)

    def bus_down(self) -> None:
        self._answers.clear()
        self._denials.clear()

    def epoch_changed(self) -> None:
        self.bus_up()

    # One check

    def _recall(self, key: Key) -> Deferred[Grant] | None:
        known = self._answers.get(key)
        if known is not None:
            cached, position = known
            if self._is_fresh(cached) and not self._changes.since(position, names(key, cached.user_id)):
                return succeed(cached)
        denied = self._denials.get(key, self._clock.seconds(), self._changes)
        return None if denied is None else fail(_copy(denied))

    async def _find(self, token: Token, key: Key) -> Grant:
        for _ in range(ATTEMPTS):
            position = self._changes.position
            found = await self._shared.look_up(*key)
            if found is not None and found.grant is not None and self._counts(found.grant, key[1]):
                self._counters.access_hits += 1
                self._remember(key, found.grant, position)
                return found.grant
            grant = await self._ask(token, key)
            cached, seconds = self._dated(grant)
            # If there was an outage meanwhile, Redis may not know of revocations during it.
            if found is not None and not self._changes.since(position, ()):
                sent = self._changes.position
                stored = await self._shared.store(*key, cached, seconds, found.time)
                if stored is False:
                    continue
                if stored:
                    if self._remember(key, cached, sent):
                        return cached
                    position = sent
            # The answer is not cached, so only the changes announced meanwhile can invalidate it.
            if not self._changes.since(position, names(key, cached.user_id)):
                return cached if seconds > 0 else grant  # with ttl: 0 it is not checked again
        self._counters.access_failed += 1
        raise PeerError(Code.AUTH_UNAVAILABLE, "access cannot be checked at present", retry_after=RETRY_AFTER)

    async def _ask(self, token: Token, key: Key) -> Grant:
        position = self._changes.position
        self._counters.access_asked += 1
        try:
            return await self._checker.check(token, key[1])
        except PeerError as error:
            if error.code is Code.AUTH_FAILED:
                self._denials.put(key, error, self._clock.seconds(), position)
            else:
                self._counters.access_failed += 1
            raise

    def _answer(self, result: Grant | Failure, key: Key) -> None:
        for waiter in self._waiters.pop(key):
            if not isinstance(result, Failure):
                waiter.callback(result)
            elif isinstance(result.value, PeerError):
                waiter.errback(_copy(result.value))
            else:
                waiter.errback(result)

    def _counts(self, cached: CachedGrant, room_id: str | None) -> bool:
        return self._is_fresh(cached) and not self._revocations.concern(cached.user_id, room_id)

    def _is_fresh(self, cached: CachedGrant) -> bool:
        longest = self._auth.cache_ttl if cached.ttl is None else min(cached.ttl, LONGEST)
        return 0.0 < cached.fresh_until - self._now() <= longest + SKEW

    def _dated(self, grant: Grant) -> tuple[CachedGrant, float]:
        """The answer as it is cached, and for how many seconds."""
        now = self._now()
        seconds = self._auth.cache_ttl if grant.ttl is None else grant.ttl
        if grant.expires_at is not None:
            seconds = min(seconds, grant.expires_at - now)
        seconds = min(max(seconds, 0.0), LONGEST) * self._jitter()
        return CachedGrant(**{**asdict(grant), "fresh_until": now + seconds}), seconds

    def _remember(self, key: Key, cached: CachedGrant, position: int) -> bool:
        """Cache the answer in memory, if possible. ``position``: when it was stored in Redis or found there."""
        if not self._bus.available or not self._is_fresh(cached):
            return False
        self._answers.put(key, cached, position)
        if self._changes.since(position, names(key, cached.user_id)):
            self._compare(token_key(key[0]), user_key(cached.user_id))
        return True

    # What changes

    def _changed(self, keys: list[str] | None) -> None:
        if keys is None:
            self._counters.access_invalidations += 1
            self._changes.record_all()
            self._answers.clear()
            self._stale(None, None, None, revoked=False)
            return
        for name in keys:
            self._changes.record(name)
        self._compare(*keys)

    def _compare(self, *keys: str) -> None:
        self._changed_keys.update(key for key in keys if key.startswith((token_key(""), user_key(""))))
        if not self._comparing:
            self._comparing = True
            Deferred.fromCoroutine(self._compare_all()).addErrback(self._failed).addBoth(self._compared)

    async def _compare_all(self) -> None:
        """Compare the answers that depend on changed keys with Redis; keys that change meanwhile are next."""
        while self._changed_keys:
            changed, self._changed_keys = self._changed_keys, set()
            position = self._changes.position
            depending = {name: tuple(islice(self._answers.named(name), COMPARED)) for name in changed}
            known = {key: self._answers[key] for keys in depending.values() for key in keys}
            look_up = self._shared.look_up
            lookups = [Deferred.fromCoroutine(look_up(*key, cached.user_id)) for key, (cached, _) in known.items()]
            gone: dict[Key, CachedGrant] = {}
            results = await gatherResults(lookups, consumeErrors=True)
            for (key, answer), found in zip(known.items(), results, strict=True):
                cached, _ = answer
                if found is None or found.grant != cached:
                    gone[key] = cached
                if self._answers.get(key) is answer:
                    if key in gone:
                        self._answers.drop(key)
                    else:
                        self._answers.put(key, cached, position)
            now = self._now()
            for name, keys in depending.items():
                lost = [gone[key] for key in keys if key in gone]
                if lost or not keys:
                    self._counters.access_invalidations += bool(lost)
                    # Answers that were no longer fresh when their key was removed have merely expired.
                    self._stale_key(name, revoked=not lost or any(cached.fresh_until > now for cached in lost))

    def _compared(self, _: object) -> None:
        self._comparing = False

    def _failed(self, failure: Failure) -> None:
        self._log.failure("Comparing cached access with Redis failed: a bug, please report it", failure=failure)

    def _invalidated(self, body: bytes) -> None:
        try:
            message = msgspec.json.decode(body, type=_Invalidation)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._malformed(error)
            return
        user_id, room_id = message.user_id, message.room_id or None
        self._counters.access_invalidations += 1
        self._changes.record(user_key(user_id) if room_id is None else (user_id, room_id))
        self._changes.record(INVALIDATION)
        for key in self._answers.named(user_key(user_id)):
            if room_id in (None, key[1]):
                self._answers.drop(key)
        self._revocations.add(user_id, room_id)
        self._stale(None, user_id, room_id, revoked=True)

    def _malformed(self, error: Exception) -> None:
        self._once_a_minute(
            self._log.warn,
            "Ignored a malformed message on {channel} (logged once a minute): {error}",
            channel=INVALIDATION,
            error=str(error),
        )

    def _stale_key(self, name: str, *, revoked: bool) -> None:
        if name.startswith(token_key("")):
            self._stale(name.removeprefix(token_key("")), None, None, revoked=revoked)
        else:
            self._stale(None, name.removeprefix(user_key("")), None, revoked=revoked)

    def _stale(self, digest: str | None, user_id: str | None, room_id: str | None, *, revoked: bool) -> None:
        for listener in self._listeners:
            try:
                listener.access_stale(digest, user_id, room_id, revoked)
            except Exception:  # noqa: BLE001  # one listener's fault must not keep the others from being notified
                self._log.failure("Notifying a listener of changed access failed: a bug, please report it")


def _copy(error: PeerError) -> PeerError:
    """A copy for another waiter, which may set its attributes."""
    return PeerError(error.code, error.message, closes=error.closes, retry_after=error.retry_after)
