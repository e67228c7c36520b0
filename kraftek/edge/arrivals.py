"""How often new clients come from each address. Made and asked by :mod:`kraftek.edge.public_site`."""

from __future__ import annotations

from math import ceil

from twisted.internet.interfaces import IReactorTime

from kraftek.contract.metrics import RefusalReason
from kraftek.contract.rates import Buckets
from kraftek.contract.settings import Limits
from kraftek.edge.addresses import owner
from kraftek.edge.engineio.packets import EngineError, ErrorCode
from kraftek.edge.http_responses import RefusedError

__all__ = ["Arrivals"]

_TEXT = "too many clients connect from this address"


class Arrivals:
    """The budgets of all addresses. ``reported``: by proxies in front of the gateway."""

    def __init__(self, clock: IReactorTime, limits: Limits, *, reported: bool) -> None:
        self._seconds = clock.seconds
        self._reported = reported
        self._limits = limits
        self._buckets: Buckets[str] | None = None
        self.renew()

    def renew(self) -> None:
        """Begin anew with what the limits are now."""
        limits = self._limits
        limited = limits.connects_per_address > 0
        self._buckets = Buckets(limits.connects_per_address, limits.burst) if limited else None

    def charge(self, address: str, *, engine: bool) -> None:
        """A client connects, ``engine``: by Engine.IO. Raises :class:`RefusedError` if too many came lately."""
        if self._buckets is None:
            return
        its_owner = owner(address, reported=self._reported)
        if not its_owner:
            return
        now = self._seconds()
        over = self._buckets.over(its_owner, now)
        if over > 0:
            json = EngineError(ErrorCode.FORBIDDEN, _TEXT).body if engine else None
            headers = ((b"Retry-After", b"%d" % ceil(over)),)
            raise RefusedError(429, RefusalReason.RATE, _TEXT, json=json, headers=headers)
        self._buckets.charge(its_owner, 1, now)
