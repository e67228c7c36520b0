"""Open access, for development: lets every client in. Made by :mod:`kraftek.daemon.assembly` for ``check = "open"``."""

from __future__ import annotations

from collections.abc import Iterable

from twisted.internet.defer import Deferred, fail, succeed
from zope.interface import implementer

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.interfaces import IAccess, IAccessListener, IAsker, IBus, IBusListener
from kraftek.contract.messages import Grant, Token
from kraftek.contract.names import ACCESS

__all__ = ["OpenAccess"]


@implementer(IAccess, IBusListener)
class OpenAccess:
    """Grants access for every token, as the user ``user_<token>``, but not without a room, as the original gateway.

    No service is asked, so nothing is cached, and nothing can be revoked.
    """

    gateways = 1
    settled = True

    def __init__(self, bus: IBus) -> None:
        self._listeners: list[IAccessListener] = []
        bus.track(ACCESS, self._changed)
        bus.add_listener(self)

    def check(self, token: Token, room_id: str | None, asker: IAsker | None = None) -> Deferred[Grant]:
        if not token.value or not room_id:
            return fail(PeerError(Code.AUTH_FAILED, "Token and roomId required", closes=True))
        return succeed(Grant(f"user_{token.value}", room_id))

    def add_listener(self, listener: IAccessListener) -> None:
        self._listeners.append(listener)

    def hold(self, held: Iterable[tuple[str, str]]) -> None:
        pass

    def sweep(self) -> None:
        pass

    def clock_set(self) -> None:
        """Nothing expires."""

    def bus_up(self) -> None:
        self._changed(None)

    def bus_down(self) -> None:
        pass

    def epoch_changed(self) -> None:
        pass

    def _changed(self, keys: list[str] | None) -> None:
        if keys is None:
            for listener in self._listeners:
                listener.access_stale(None, None, None, revoked=False)
