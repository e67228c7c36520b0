"""What HTTP of ours to others has in common: connections that are not kept for long, and answers of bounded size.

Used by :mod:`kraftek.edge.auth_service` and :mod:`kraftek.edge.key_set`.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS, HTTPConnectionPool, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from kraftek.contract.tls import trust_root

__all__ = ["ANSWER_BYTES", "Connections", "OneAddress", "body_of"]

ANSWER_BYTES = 65_536
"""A longer answer is unreadable."""

IDLE_TIMEOUT = 1
"""Seconds that an idle connection is kept: servers close theirs after 2 (gunicorn) to 5 (Node), and a question
that meets the close on its way is lost. It is a POST, so Twisted rightly does not send it again."""

CONNECTION_AGE = 10.0
"""Seconds after which no connection is used again, however busy: the name may stand for another machine by then."""


class _Pool(HTTPConnectionPool):
    """Its connections without the two log lines that Twisted has for each of them."""

    if hasattr(HTTPConnectionPool, "_factory"):  # a Twisted without it logs them
        _factory = type("_Quiet", (HTTPConnectionPool._factory,), {"noisy": False})  # type: ignore[assignment]  # noqa: SLF001


@implementer(IAgent)
class Connections:
    """Requests over connections that are kept, but none of them for long. ``ca``: file of certificate authorities
    instead of the platform's; raises ``OSError`` or ``ValueError`` when it cannot be read. ``most``: kept to one host.
    """

    def __init__(self, reactor: Any, ca: str, most: int) -> None:
        self._clock = reactor
        self._most = most
        self._trusting = BrowserLikePolicyForHTTPS(trust_root(ca))
        self._pools: list[HTTPConnectionPool] = []  # what the last but one has still is in use, or closed soon
        self._agent: IAgent | None = None
        self._renewal = 0.0

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        now = self._clock.seconds()
        if self._agent is None or now >= self._renewal:
            self._renewal = now + CONNECTION_AGE
            pool = _Pool(self._clock)
            pool.maxPersistentPerHost = self._most
            pool.cachedConnectionTimeout = IDLE_TIMEOUT
            self._pools = [*self._pools[-1:], pool]
            self._agent = Agent(self._clock, self._trusting, pool=pool)
        return self._agent.request(method, uri, headers, bodyProducer)

    def close(self) -> Deferred[None]:
        """Close those that are idle. Fires when they are."""
        closing = gatherResults([pool.closeCachedConnections() for pool in self._pools])
        return closing.addCallback(lambda _: None)


@implementer(IAgent)
class OneAddress:
    """Requests to ``url``, whatever treq was told, without ``Accept-Encoding``, whose answers are read as they came.

    treq asks for gzip and unpacks it on the way: what arrives with one read can be 64 megabytes then.
    """

    def __init__(self, url: bytes, agent: IAgent) -> None:
        self._url = url
        self._agent = agent

    def request(
        self,
        method: bytes,
        uri: bytes,
        headers: Headers | None = None,
        bodyProducer: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        if headers is not None:
            headers.removeHeader(b"Accept-Encoding")
        return self._agent.request(method, self._url, headers, bodyProducer).addCallback(self._as_it_came)

    def _as_it_came(self, response: IResponse) -> IResponse:
        response.headers.removeHeader(b"Content-Encoding")
        return response


def body_of(response: IResponse) -> Deferred[bytes | None]:
    """Fires with the body, or with ``None`` when it is too long. Cancelling closes the connection."""
    body = _Body()
    response.deliverBody(body)
    return body.read


class _Body(Protocol):
    """Collects a response's body in ``read``."""

    def __init__(self) -> None:
        self.read: Deferred[bytes | None] = Deferred(lambda _: self._stop())
        self._received = bytearray()

    def dataReceived(self, data: bytes) -> None:
        if len(self._received) <= ANSWER_BYTES:
            self._received += data
            if len(self._received) > ANSWER_BYTES:
                self._stop()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.read.called:
            return
        if len(self._received) > ANSWER_BYTES:
            self.read.callback(None)
        # PotentialDataLoss: the body ended with the connection, as HTTP/1.0 has it. Cut short, it is no JSON.
        elif reason.check(ResponseDone, PotentialDataLoss):
            self.read.callback(bytes(self._received))
        else:
            self.read.errback(reason)

    def _stop(self) -> None:
        # Not loseConnection, which over TLS waits for the other side's farewell; abortConnection is not passed on.
        if self.transport is not None:
            IPushProducer(self.transport).stopProducing()
