"""Open access, for development: whoever comes is let in. Made by :mod:`kraftek.daemon` when it is configured so."""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from kraftek.errors import Code, PeerError
from kraftek.interfaces import IAccessChecker
from kraftek.messages import Grant, Token

__all__ = ["OpenChecker"]


@implementer(IAccessChecker)
class OpenChecker:
    """Says yes to every token, as the user ``user_<token>``; to nobody without a room, as the original did."""

    def check(self, token: Token, room_id: str | None) -> Deferred[Grant]:
        if not token.value or not room_id:
            return fail(PeerError(Code.AUTH_FAILED, "Token and roomId required", closes=True))
        return succeed(Grant(f"user_{token.value}", room_id))
