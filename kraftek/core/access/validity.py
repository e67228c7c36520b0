"""Which kept answers may be used, and for how long an answer is kept. Used by :mod:`kraftek.core.access.cache`."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import asdict

from kraftek.contract.interfaces import IAccessChecker, IBus
from kraftek.contract.messages import Grant
from kraftek.contract.settings import Auth
from kraftek.core.access.listening import Listening
from kraftek.core.access.redis import CachedGrant, Found
from kraftek.core.access.revocations import Revocations

__all__ = ["Validity"]

LONGEST = 31_536_000.0
"""Seconds that an answer is cached at most, whatever its ``ttl``: a year, as in the configuration."""

SKEW = 5.0
"""Seconds by which Redis's clock may be set back. An answer that claims to be fresh for longer than any may be was
stored before it was set back further."""


class Validity:
    """What of a kept answer counts: its age, its epoch, and who gave it. ``now`` returns Unix seconds."""

    def __init__(
        self,
        checker: IAccessChecker,
        bus: IBus,
        auth: Auth,
        revocations: Revocations,
        listening: Listening,
        *,
        now: Callable[[], float],
    ) -> None:
        self._checker = checker
        self._bus = bus
        self._auth = auth
        self._revocations = revocations
        self._listening = listening
        self._now = now

    def counts(self, cached: CachedGrant, room_id: str | None) -> bool:
        """Whether an answer that Redis has for this room may be used."""
        return (
            cached.epoch == self._bus.epoch
            and self._listening.believes(cached.asked_at)
            and self.is_fresh(cached)
            and not self._revocations.concern(cached.user_id, room_id)
        )

    def is_fresh(self, cached: CachedGrant) -> bool:
        """Whether it need not be asked for again yet."""
        return self._is_young(cached) and self._checker.vouches(cached.source)

    def is_foreign(self, cached: CachedGrant | None) -> bool:
        """Whether it is fresh, but of another configuration. It is not replaced then: two gateways that replace each
        other's answers would not come to an end.
        """
        return (
            cached is not None
            and cached.epoch == self._bus.epoch
            and self._is_young(cached)
            and not self._checker.vouches(cached.source)
        )

    def dated(self, grant: Grant, found: Found | None, part: float) -> tuple[CachedGrant, float]:
        """The answer as it is cached, and for how many seconds: this ``part`` of what it may be. ``found``: by the
        look-up before it was asked for.
        """
        now = self._now()
        seconds = self._auth.cache_ttl if grant.ttl is None else grant.ttl
        if grant.expires_at is not None:
            seconds = min(seconds, grant.expires_at - now)
        seconds = min(max(seconds, 0.0), LONGEST) * part
        asked_at = 0 if found is None else found.time
        dates = {"fresh_until": now + seconds, "asked_at": asked_at, "epoch": self._bus.epoch or ""}
        return CachedGrant(**{**asdict(grant), **dates}), seconds

    def _is_young(self, cached: CachedGrant) -> bool:
        longest = self._auth.cache_ttl if cached.ttl is None else min(cached.ttl, LONGEST)
        return 0.0 < cached.fresh_until - self._now() <= longest + SKEW
