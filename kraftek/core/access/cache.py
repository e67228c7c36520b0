"""Access as the gateway uses it: asked once for many, kept in Redis for all processes, and kept coherent.

Made by :mod:`kraftek.daemon.assembly`, asked by :mod:`kraftek.core.admission` and :mod:`kraftek.core.access_watch`;
Redis calls it when something of access changed.
"""

from __future__ import annotations

import time
from collections import OrderedDict
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
from kraftek.core.access.local import Answers, Changes, Key, names
from kraftek.core.access.redis import Kept, SharedAnswers

__all__ = ["AccessCache"]

ATTEMPTS = 3
"""How often one check asks when access is taken back each time before it has its answer."""

RETRY_AFTER = 1.0
"""Seconds until trying again makes sense after that."""

LONGEST = 31_536_000.0
"""Seconds that an answer may be kept, whatever the auth service says: a year, as in the configuration."""

SKEW = 5.0
"""Seconds by which the clocks of two gateways may differ. An answer that would be kept for longer than any may be was
written before the clock was set back."""

DELAY = 60.0
"""Seconds, beyond the deadline of a question, that its answer may take to Redis."""

LOOKS = 100
"""Answers looked at when a key changed. A deletion takes all that depend on the key: any of them would tell."""


class _Invalidation(Struct, rename="camel"):
    user_id: Annotated[str, Meta(min_length=1)]
    room_id: str | None = None


class _Denial(Struct, frozen=True):
    """A no. ``until``: by the clock. ``position``: it is older than later changes."""

    error: PeerError
    until: float
    position: int


@implementer(IAccess, IBusListener)
class AccessCache:
    """The answers of ``checker``: see :mod:`kraftek.core.access.redis` for how all processes share them.

    What Redis said once is used from memory until Redis says that one of its two keys changed. That need not mean
    much: Redis does not say who changed what, and this process's own writes are reported as well. So what depends on
    the key is looked at again, and only when it is not there unchanged are listeners told.

    With Redis away the checker is asked each time, and nothing is kept: nobody could take it back.

    ``clock`` measures time-outs, ``now`` gives Unix seconds.
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
    ) -> None:
        verifyObject(IAccessChecker, checker)
        verifyObject(IBus, bus)
        self._checker = checker
        self._bus = bus
        self._auth = auth
        self._clock = clock
        self._counters = counters
        self._now = now
        self._shared = SharedAnswers(bus, clock, auth.timeout + DELAY)
        self._answers = Answers(auth.cache_size)
        self._denials: OrderedDict[Key, _Denial] = OrderedDict()
        self._changes = Changes()
        self._waiters: dict[Key, list[Deferred[Grant]]] = {}
        self._suspects: set[str] = set()
        self._looking = False
        self._uncleared: OrderedDict[tuple[str, str | None], None] = OrderedDict()
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

    # IBusListener

    def bus_up(self) -> None:
        """What was taken back meanwhile was not told: everything is asked about again."""
        for user_id, room_id in tuple(self._uncleared):
            self._clear(user_id, room_id)
        self._changes.record_all()
        self._stale(None, None, None, revoked=False)

    def bus_down(self) -> None:
        self._answers.clear()
        self._denials.clear()

    # One check

    def _recall(self, key: Key) -> Deferred[Grant] | None:
        known = self._answers.get(key)
        if known is not None:
            kept, position = known
            if self._is_fresh(kept) and not self._changes.since(position, names(key, kept.user_id)):
                return succeed(kept)
        denial = self._denials.get(key)
        if (
            denial is not None
            and denial.until > self._clock.seconds()
            and not self._changes.since(denial.position, (token_key(key[0]), INVALIDATION))
        ):
            return fail(_copy(denial.error))
        return None

    async def _find(self, token: Token, key: Key) -> Grant:
        for _ in range(ATTEMPTS):
            position = self._changes.position
            found = await self._shared.look(*key)
            if found is not None and found.kept is not None and self._is_fresh(found.kept):
                self._counters.access_hits += 1
                self._remember(key, found.kept, position)
                return found.kept
            kept, seconds = self._dated(await self._ask(token, key))
            # After an outage Redis may not know either what was taken back during it.
            if found is not None and not self._changes.since(position, ()):
                sent = self._changes.position
                stored = await self._shared.store(*key, kept, seconds, found.time)
                if stored is False:
                    continue
                if stored:
                    if self._remember(key, kept, sent):
                        return kept
                    position = sent
            # Nobody will look at it again: what we heard meanwhile must do.
            if not self._changes.since(position, names(key, kept.user_id)):
                return kept
        self._counters.access_failed += 1
        raise PeerError(Code.AUTH_UNAVAILABLE, "access cannot be checked at present", retry_after=RETRY_AFTER)

    async def _ask(self, token: Token, key: Key) -> Grant:
        position = self._changes.position
        self._counters.access_asked += 1
        try:
            return await self._checker.check(token, key[1])
        except PeerError as error:
            if error.code is Code.AUTH_FAILED:
                self._denials[key] = _Denial(error, self._clock.seconds() + self._auth.denied_ttl, position)
                self._denials.move_to_end(key)
                if len(self._denials) > self._auth.cache_size:
                    self._denials.popitem(last=False)
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

    def _is_fresh(self, kept: Kept) -> bool:
        longest = self._auth.cache_ttl if kept.ttl is None else min(kept.ttl, LONGEST)
        return 0.0 < kept.fresh_until - self._now() <= longest + SKEW

    def _dated(self, grant: Grant) -> tuple[Kept, float]:
        """The answer as it is kept, and for how many seconds."""
        now = self._now()
        seconds = self._auth.cache_ttl if grant.ttl is None else grant.ttl
        if grant.expires_at is not None:
            seconds = min(seconds, grant.expires_at - now)
        seconds = min(max(seconds, 0.0), LONGEST)
        return Kept(**asdict(grant), fresh_until=now + seconds), seconds

    def _remember(self, key: Key, kept: Kept, position: int) -> bool:
        """Use this answer from memory, if that may be. It held at ``position``, when Redis was told or asked."""
        if not self._bus.available or not self._is_fresh(kept):
            return False
        self._answers.put(key, kept, position)
        if self._changes.since(position, names(key, kept.user_id)):
            self._look_again(token_key(key[0]), user_key(kept.user_id))
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
        self._look_again(*keys)

    def _look_again(self, *keys: str) -> None:
        self._suspects.update(key for key in keys if key.startswith((token_key(""), user_key(""))))
        if not self._looking:
            self._looking = True
            Deferred.fromCoroutine(self._look()).addErrback(self._failed).addBoth(self._looked)

    async def _look(self) -> None:
        """Look at what depends on the suspect keys; what came meanwhile has its turn in the next round."""
        while self._suspects:
            suspects, self._suspects = self._suspects, set()
            position = self._changes.position
            depending = {name: tuple(islice(self._answers.named(name), LOOKS)) for name in suspects}
            known = {key: self._answers[key] for keys in depending.values() for key in keys}
            looks = [Deferred.fromCoroutine(self._shared.look(*key, kept.user_id)) for key, (kept, _) in known.items()]
            gone: dict[Key, Kept] = {}
            for (key, answer), found in zip(known.items(), await gatherResults(looks, consumeErrors=True), strict=True):
                kept, _ = answer
                if found is None or found.kept != kept:
                    gone[key] = kept
                if self._answers.get(key) is answer:
                    if key in gone:
                        self._answers.drop(key)
                    else:
                        self._answers.put(key, kept, position)
            now = self._now()
            for name, keys in depending.items():
                lost = [gone[key] for key in keys if key in gone]
                if lost or not keys:
                    self._counters.access_invalidations += bool(lost)
                    # What had run out when its key went has merely expired.
                    self._stale_key(name, revoked=not lost or any(kept.fresh_until > now for kept in lost))

    def _looked(self, _: object) -> None:
        self._looking = False

    def _failed(self, failure: Failure) -> None:
        self._log.failure("Could not look at access again", failure=failure)

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
        self._clear(user_id, room_id)
        self._stale(None, user_id, room_id, revoked=True)

    def _clear(self, user_id: str, room_id: str | None) -> None:
        """Have Redis forget, before it is asked again; when it is away, as soon as it is back."""
        self._uncleared[user_id, room_id] = None
        if len(self._uncleared) > self._auth.cache_size:
            self._uncleared.popitem(last=False)
        Deferred.fromCoroutine(self._shared.clear(user_id, room_id)).addCallback(self._cleared, user_id, room_id)

    def _cleared(self, done: bool | None, user_id: str, room_id: str | None) -> None:
        if done:
            self._uncleared.pop((user_id, room_id), None)

    def _malformed(self, error: Exception) -> None:
        self._once_a_minute(
            self._log.warn,
            "A malformed message on {channel} (logged once a minute): {error}",
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
            except Exception:  # noqa: BLE001  # one listener's fault must not keep it from the others
                self._log.failure("A listener failed on stale access")


def _copy(error: PeerError) -> PeerError:
    """The same for somebody else, who may write into it."""
    return PeerError(error.code, error.message, closes=error.closes, retry_after=error.retry_after)
