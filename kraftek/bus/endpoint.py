"""The way to Redis: TCP, TLS or a Unix socket.

Made by :class:`kraftek.bus.RedisBus`, connected by its two ``ClientService`` children.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography.x509 import load_pem_x509_certificates
from OpenSSL.crypto import X509
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from kraftek.config import RedisAddress

__all__ = ["RedisEndpoint"]


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
            endpoint = wrapClientTLS(optionsForClientTLS(address.host, _trust_root(ca)), endpoint)
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


def _trust_root(ca: str) -> Any:
    if not ca:
        return None
    found = load_pem_x509_certificates(Path(ca).read_bytes())
    return trustRootFromCertificates([Certificate(X509.from_cryptography(each)) for each in found])
