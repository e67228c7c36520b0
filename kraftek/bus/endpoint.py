"""The way to Redis: TCP, TLS or a Unix socket.

Made by :class:`kraftek.bus.RedisBus`, connected by its ``ClientService`` children.
"""

from __future__ import annotations

from typing import Any

from twisted.application.internet import backoffPolicy
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.ssl import optionsForClientTLS
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.contract.redis_url import RedisAddress
from kraftek.contract.tls import trust_root

__all__ = ["Backoff", "RedisEndpoint"]


class Backoff:
    """Seconds until the next attempt, with jitter, as ``ClientService`` asks for them: up to 5 of them.

    It counts by itself: ``ClientService``'s own count begins anew with every connection, refused ones included.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._delay = backoffPolicy(initialDelay=0.05, maxDelay=5.0, factor=2.0)

    def __call__(self, _: int) -> float:
        self._failures += 1
        return self._delay(self._failures)

    def reset(self) -> None:
        """It worked."""
        self._failures = 0


@implementer(IStreamClientEndpoint)
class RedisEndpoint:
    """Where Redis is, and what to say when it is not there.

    ``ca``: file of the certificate authorities that may vouch for the server, in PEM; empty is the
    platform's. ``timeout``: seconds that connecting may take. ``name`` is for logs: it holds no password.
    Raises ``OSError`` or ``ValueError`` when ``ca`` cannot be read.
    """

    _log = Logger()

    def __init__(self, reactor: Any, address: RedisAddress, ca: str, timeout: float) -> None:
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
        """Log failures as well, which ``ClientService`` keeps to itself."""
        connecting: Deferred[IProtocol] = self._endpoint.connect(protocolFactory)
        return connecting.addErrback(self._unreachable)

    def _unreachable(self, failure: Failure) -> Failure:
        if not failure.check(CancelledError):
            reason = failure.getErrorMessage()
            self._log.warn("Redis at {name} cannot be reached: {reason}", name=self.name, reason=reason)
        return failure
