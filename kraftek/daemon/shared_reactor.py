"""The reactor of another program, as the gateway uses it when it is embedded there: :mod:`kraftek.gateway`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from zope.interface import directlyProvides, providedBy

from kraftek.contract.clock import MonotonicClock
from kraftek.daemon.hostnames import HostnameResolver

__all__ = ["SharedReactor"]


class SharedReactor(MonotonicClock):
    """A reactor whose time is monotonic, and whose names are looked up by :class:`HostnameResolver`; all else is that
    of ``reactor``, which stays as it is. Under twistd the daemon's own reactor is changed instead.
    """

    def __init__(self, reactor: Any) -> None:
        super().__init__(reactor)
        self.nameResolver = HostnameResolver(reactor)
        directlyProvides(self, providedBy(reactor))

    def callLater(self, delay: float, callable: Callable[..., object], *args: object, **kwargs: object) -> IDelayedCall:  # type: ignore[override]
        """Call after ``delay`` seconds, unless that is cancelled before."""
        if not delay:  # in the next iteration, whatever the time is
            soon: IDelayedCall = self._reactor.callLater(0, callable, *args, **kwargs)
            return soon
        return super().callLater(delay, callable, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reactor, name)
