"""Two checkers, of which both must say yes. Made by :mod:`kraftek.daemon.checkers`, called by
:mod:`kraftek.core.access.cache`.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from zope.interface import implementer
from zope.interface.verify import verifyObject

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.interfaces import IAccessChecker
from kraftek.contract.messages import Grant, Token

__all__ = ["ChainedChecker"]

Permissions = tuple[str, ...] | None


@implementer(IAccessChecker)
class ChainedChecker:
    """Asks ``first``, and ``second`` if that says yes. What both permit is permitted, until one of both expires."""

    _log = Logger()

    def __init__(self, first: IAccessChecker, second: IAccessChecker) -> None:
        verifyObject(IAccessChecker, first)
        verifyObject(IAccessChecker, second)
        self._first = first
        self._second = second

    def vouches(self, source: str) -> bool:
        first, both, second = source.partition("+")
        return bool(both) and self._first.vouches(first) and self._second.vouches(second)

    def on_change(self, listener: Callable[[], None]) -> None:
        self._first.on_change(listener)
        self._second.on_change(listener)

    def check(self, token: Token, room_id: str | None, turn: str = "") -> Deferred[Grant]:
        return Deferred.fromCoroutine(self._check(token, room_id, turn))

    async def _check(self, token: Token, room_id: str | None, turn: str) -> Grant:
        first = await self._first.check(token, room_id, turn)
        second = await self._second.check(token, room_id, turn)
        if first.user_id != second.user_id:
            self._log.warn("The auth service names another user than the token: that is a no")
            raise PeerError(Code.AUTH_FAILED, "Authentication failed", closes=True)
        return replace(
            second,
            permissions=_intersection(first.permissions, second.permissions),
            expires_at=min((at for at in (first.expires_at, second.expires_at) if at is not None), default=None),
            ttl=min((ttl for ttl in (first.ttl, second.ttl) if ttl is not None), default=None),
            source=f"{first.source}+{second.source}",
        )


def _intersection(first: Permissions, second: Permissions) -> Permissions:
    """Patterns of the events that both permit: those that a pattern of each covers."""
    if first is None or second is None:
        return second if first is None else first
    both = (_overlap(a.split(":"), b.split(":")) for a in dict.fromkeys(first) for b in dict.fromkeys(second))
    return tuple(dict.fromkeys(each for each in both if each is not None))


def _overlap(a: list[str], b: list[str]) -> str | None:
    """The pattern of what two patterns cover both, if there is anything."""
    if any(x != y and "*" not in (x, y) for x, y in zip(a, b, strict=True)):
        return None
    return ":".join(y if x == "*" else x for x, y in zip(a, b, strict=True))
