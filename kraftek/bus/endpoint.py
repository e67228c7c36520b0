"""The endpoint of Redis: TCP, TLS or a Unix socket; and a connection to it that is kept up.

Made by :class:`kraftek.bus.RedisBus`, for itself and for its readers of streams.
"""

from __future__ import annotations

from collections.abc import Callable
from random import uniform
from typing import Any, Protocol

from twisted.application.internet import ClientService
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import (
    IDelayedCall,
    IProtocol,
    IProtocolFactory,
    IReactorTime,
    IStreamClientEndpoint,
)
from twisted.internet.protocol import Factory
from twisted.internet.ssl import optionsForClientTLS
from twisted.logger import ILogObserver, Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.contract.redis_url import RedisAddress
from kraftek.contract.tls import trust_root

__all__ = ["Backoff", "ConnectionService", "RedisEndpoint", "Waiting"]


_FIRST_WAIT = 0.05
"""Seconds of the first wait, about; each wait that follows is twice as long."""

_STEADY = 1.0
"""Seconds for which a connection has worked that is made again without a wait: none that is lost again and again is."""


class _GivesUp(Protocol):
    def give_up(self, reason: str) -> None: ...


class Backoff:
    """Seconds until the next attempt, as ``ClientService`` asks for them: none after the loss of a connection that was
    steady, because most are lost with Redis alive; then up to ``longest``, and up to a fifth more.

    It counts by itself: ``ClientService``'s own count begins anew with every connection, refused ones included.
    """

    def __init__(self, longest: float, clock: IReactorTime) -> None:
        self._failures = 0
        self._longest = longest
        self._clock = clock
        self._works_since: float | None = None

    def __call__(self, _: int) -> float:
        since, self._works_since = self._works_since, None
        if since is not None and self._clock.seconds() >= since + _STEADY:
            return 0.0
        wait = min(_FIRST_WAIT * 2.0 ** min(self._failures, 100), self._longest)
        self._failures += 1
        return wait + uniform(0.0, wait / 5)  # noqa: S311  # no secret

    def reset(self) -> None:
        """It works."""
        if self._works_since is None:
            self._failures, self._works_since = 0, self._clock.seconds()


class Waiting:
    """The clock of all connections to one Redis for the waits between two attempts, as ``ClientService`` has them. When
    Redis is seen by one of them, the others wait no longer.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._calls: list[IDelayedCall] = []

    def callLater(self, delay: float, attempt: Callable[[], object]) -> IDelayedCall:
        """Try again after so many seconds, or earlier."""
        call = self._clock.callLater(delay, attempt)
        self._calls = [call, *(each for each in self._calls if each.active())]
        return call

    def end(self) -> None:
        """All that wait try at once: Redis is there."""
        for call in self._calls:
            if call.active():
                call.reset(0.0)


@implementer(IStreamClientEndpoint)
class RedisEndpoint:
    """Where Redis is.

    ``ca``: file of the certificate authorities that may vouch for the server, in PEM; empty is the
    platform's. ``timeout``: seconds that connecting may take. ``name`` is for logs: it holds no password.
    ``longest_wait``: seconds between two attempts, when some have failed. ``address``: as given. Raises ``OSError`` or
    ``ValueError`` when ``ca`` cannot be read.
    """

    longest_wait = 1.0

    def __init__(self, reactor: Any, address: RedisAddress, ca: str, timeout: float) -> None:
        self.address: RedisAddress | None = address
        endpoint: IStreamClientEndpoint
        if address.kind == "unix":
            self.name = address.path
            endpoint = UNIXClientEndpoint(reactor, address.path, timeout=timeout)
        else:
            self.name = f"{address.host}:{address.port}"
            endpoint = HostnameEndpoint(reactor, address.host, address.port, timeout=timeout)
        if address.kind == "tls":
            endpoint = wrapClientTLS(optionsForClientTLS(address.host, trust_root(ca)), endpoint)
        self._endpoint = endpoint

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        connecting: Deferred[IProtocol] = self._endpoint.connect(protocolFactory)
        return connecting


class ConnectionService(ClientService):
    """A connection that is made again whenever it is lost.

    ``failed`` is called with the reason why an attempt failed, unless it was stopped: Twisted logs each attempt, but
    not the reason. ``clock``, perhaps a :class:`Waiting`, measures the delay until the next attempt, which ``backoff``
    returns.

    An attempt that is cancelled may succeed all the same: ``HostnameEndpoint`` reports a look-up that is cancelled as a
    name that is not found, and then another sentinel is asked. ``ClientService`` would leave such a connection open,
    and raise ``NoTransition`` when it is lost (Twisted 26.10).
    """

    _log = Logger(observer=implementer(ILogObserver)(lambda _: None))

    def __init__(
        self,
        endpoint: IStreamClientEndpoint,
        protocol: Callable[[], IProtocol],
        backoff: Callable[[int], float],
        clock: Any,
        failed: Callable[[str], None],
    ) -> None:
        factory: Any = Factory()
        factory.protocol = protocol
        factory.noisy = False
        factory.inherited = None
        self._own_factory = factory
        self._report = failed
        self._connection: _GivesUp | None = None
        self._stops = 0
        self._reporting = _Reporting(endpoint, self._attempt)
        super().__init__(self._reporting, factory, retryPolicy=backoff, clock=clock)

    def adopt(self, make: Callable[[IProtocolFactory], IProtocol | None], inherited: object) -> None:
        """Begin with the connection that ``make`` makes of the factory, if it does, in place of a new one. Its protocol
        finds what is ``inherited`` in its factory.
        """

        def made(factory: IProtocolFactory) -> IProtocol | None:
            self._own_factory.inherited = inherited
            try:
                return make(factory)
            finally:
                self._own_factory.inherited = None

        self._reporting.adopted = made

    def drop(self, reason: str) -> None:
        """Give up the connection, ready or not, and connect anew."""
        if self._connection is not None:
            self._connection.give_up(reason)

    def stopService(self) -> Deferred[None]:
        """End the connection, or the attempt. Fires when that has happened."""
        self._stops += 1
        stopping: Deferred[None] = super().stopService()
        return stopping

    def _attempt(self, connecting: Deferred[IProtocol]) -> Deferred[IProtocol]:
        return connecting.addCallbacks(self._attempt_succeeded, self._attempt_failed, (self._stops,))

    def _attempt_succeeded(self, protocol: Any, stops: int) -> Any:
        self._connection = protocol
        if stops != self._stops:
            protocol.give_up("it was stopped meanwhile")
            return Deferred()  # the end of the connection is that of the attempt
        return protocol

    def _attempt_failed(self, failure: Failure) -> Failure:
        if self.running:
            self._report(failure.getErrorMessage())
        return failure


@implementer(IStreamClientEndpoint)
class _Reporting:
    """An endpoint that reports each attempt to connect, which ``ClientService`` does not."""

    def __init__(
        self, endpoint: IStreamClientEndpoint, attempt: Callable[[Deferred[IProtocol]], Deferred[IProtocol]]
    ) -> None:
        self._endpoint = endpoint
        self._attempt = attempt
        self.adopted: Callable[[IProtocolFactory], IProtocol | None] | None = None

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        adopted, self.adopted = self.adopted, None
        if adopted is not None and (protocol := adopted(protocolFactory)) is not None:
            return self._attempt(succeed(protocol))
        return self._attempt(self._endpoint.connect(protocolFactory))
