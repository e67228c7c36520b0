"""The auth service, asked over HTTP. Made by :mod:`kraftek.daemon.assembly`, called by
:mod:`kraftek.core.access.cache`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from treq.client import HTTPClient
from twisted.internet.defer import Deferred, fail, gatherResults, succeed
from twisted.internet.interfaces import IConsumer, IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import Agent, BrowserLikePolicyForHTTPS, HTTPConnectionPool, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from zope.interface import implementer

from kraftek import __version__
from kraftek.contract.errors import Code, PeerError
from kraftek.contract.interfaces import IAccessChecker
from kraftek.contract.messages import Grant, Token
from kraftek.contract.settings import Auth
from kraftek.contract.surrogates import HALF, is_whole, mended
from kraftek.contract.tls import trust_root
from kraftek.edge.questions import FullError, Questions

__all__ = ["HttpChecker"]

ANSWER_BYTES = 65_536
"""A longer answer is unreadable."""

MESSAGE_CHARACTERS = 256
"""So much of the auth service's message reaches the client."""

RETRY_AFTER = 1.0
"""Seconds after which a client may try again when the auth service could not be asked."""

IDLE_TIMEOUT = 1
"""Seconds that an idle connection is kept: servers close theirs after 2 (gunicorn) to 5 (Node), and a question
that meets the close on its way is lost. It is a POST, so Twisted rightly does not send it again."""

CONNECTION_AGE = 10.0
"""Seconds after which no connection is used again, however busy: the name may stand for another machine by then."""

LOG_INTERVAL = 60.0
"""Seconds between two log lines that say the auth service could not be asked."""

_ANY_URL = "http://auth-service/"
"""What treq is told. It cannot name an IPv6 address: it encodes each host as a name, and none has a colon."""

_HEADERS = {
    "User-Agent": [f"kraftek-gateway/{__version__}"],
    "Accept": ["application/json"],
    "Content-Type": ["application/json; charset=UTF-8"],
}

# Three parts, each a literal of what event names are made of, or all of it: "no*te" is more likely a mistake.
_PART = r"(?:\*|[^:*\s\x00-\x1f\x7f]+)"
_Pattern = Annotated[str, Meta(pattern=rf"^{_PART}:{_PART}:{_PART}\Z", max_length=128)]


class _Verdict(Struct):
    """What every answer says."""

    success: bool
    message: Any = None


class _Yes(Struct, rename="camel"):
    """What a yes says besides. Optional are what the gateway added to the auth service's contract."""

    user_id: Annotated[str, Meta(min_length=1)]
    room_id: str | UnsetType | None = UNSET
    permissions: tuple[_Pattern, ...] | None = None
    expires_at: float | None = None
    ttl: Annotated[float, Meta(ge=0)] | None = None


class _UnreadableError(Exception):
    """The auth service answered, but not the question. The text names no value: it may hold the token."""


@implementer(IAccessChecker)
class HttpChecker:
    """Asks ``POST <check>/auth/check``, so many questions at a time as ``auth`` allows.

    ``agent`` makes the requests instead of one with a connection pool of its own. ``now`` gives Unix seconds, for
    ``expiresAt``. Raises ``OSError`` or ``ValueError`` when the file of certificate authorities cannot be read.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, auth: Auth, agent: IAgent | None = None, now: Callable[[], float] = time.time
    ) -> None:
        self._clock = reactor
        self._questions = Questions(auth.concurrency, auth.waiting)
        self._given_agent = agent
        self._now = now
        self._quiet_until = self._clock.seconds()
        self._ask_at(auth, _Connections(reactor, auth))

    def reload(self, auth: Auth) -> Callable[[], None]:
        """What has later questions asked as ``auth`` says now, trusting what ``ca`` holds now; those under way stay as
        they are. Raises as the constructor.
        """
        return partial(self._ask_at, auth, _Connections(self._clock, auth))

    def _ask_at(self, auth: Auth, connections: _Connections) -> None:
        url = auth.check.rstrip("/") + "/auth/check"
        self._timeout = auth.timeout
        self._questions.at_a_time, self._questions.most_waiting = auth.concurrency, auth.waiting
        self._where = urlsplit(url).hostname
        self._connections = connections
        self._agent = _Service(url.encode(), self._given_agent or connections)

    @property
    def waiting(self) -> int:
        """Questions that wait to be asked."""
        return len(self._questions)

    def check(self, token: Token, room_id: str | None, turn: str = "") -> Deferred[Grant]:
        try:
            question = msgspec.json.encode({"token": token.value, "roomId": room_id})
        except UnicodeEncodeError:
            return fail(_no(None, token))  # half a character: nobody was ever given such a token
        d: Deferred[Grant] = Deferred.fromCoroutine(self._ask_in_turn(question, token, room_id, turn))
        d.addTimeout(self._timeout, self._clock)
        return d.addErrback(self._judge_failure)

    def close(self) -> Deferred[None]:
        """Close the idle connections. Fires when they are."""
        return self._connections.close()

    async def _ask_in_turn(self, question: bytes, token: Token, room_id: str | None, turn: str) -> Grant:
        await self._questions.begin(turn)
        try:
            # A client of its own for each question: it would give the next one the cookies of this one.
            response = await HTTPClient(self._agent).post(
                _ANY_URL,
                data=_Question(question),
                headers=Headers(_HEADERS),
                allow_redirects=False,
                unbuffered=True,
                reactor=self._clock,
            )
            body = await _body(response)
        finally:
            self._questions.end(turn)
        return self._judge(response.code, body, token, room_id)

    def _judge(self, status: int, body: bytes | None, token: Token, room_id: str | None) -> Grant:
        if status in (401, 403):
            raise _no(_message(body), token)
        # 408 and 429 are about the asking, not about who asks for.
        if status // 100 not in (2, 4) or status in (408, 429):
            raise _UnreadableError(f"status {status}")
        if body is None:
            raise _UnreadableError(f"more than {ANSWER_BYTES} bytes")
        whole = mended(body)
        try:
            verdict = msgspec.json.decode(whole or body, type=_Verdict)
            if not verdict.success:
                raise _no(verdict.message, token)
            yes = msgspec.json.decode(whole or body, type=_Yes)
            if whole is not None and not is_whole(yes):
                raise msgspec.ValidationError(HALF)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            # Its text says where and what was expected, never what was found.
            raise _UnreadableError(str(error)) from None
        if status // 100 != 2:
            raise _UnreadableError(f"a yes with status {status}")
        if yes.room_id is not UNSET and yes.room_id != room_id:
            raise _UnreadableError("a yes to another room")
        if yes.expires_at is not None and yes.expires_at <= self._now():
            raise _no("Access has expired", token)
        return Grant(yes.user_id, room_id, yes.permissions, yes.expires_at, yes.ttl)

    def _judge_failure(self, failure: Failure) -> Failure:
        error = failure.value
        if isinstance(error, FullError):
            return Failure(self._could_not_ask(str(error)))
        if isinstance(error, PeerError):
            return failure
        if isinstance(error, _UnreadableError):
            return Failure(self._could_not_ask(f"unreadable answer: {error}"))
        # Only names: the text of an error of twisted.web quotes what the other side sent, which may echo the token.
        reasons = getattr(error, "reasons", None) or [failure]
        return Failure(self._could_not_ask(", ".join(reason.type.__name__ for reason in reasons)))

    def _could_not_ask(self, reason: str) -> PeerError:
        seconds = self._clock.seconds()
        if seconds >= self._quiet_until:
            self._quiet_until = seconds + LOG_INTERVAL
            self._log.warn(
                "The auth service at {where} could not be asked (said once a minute): {reason}",
                where=self._where,
                reason=reason,
            )
        return PeerError(Code.AUTH_UNAVAILABLE, "access cannot be checked at present", retry_after=RETRY_AFTER)


def _no(message: object, token: Token) -> PeerError:
    if not isinstance(message, str) or not message or token.value in message:
        message = "Authentication failed"
    return PeerError(Code.AUTH_FAILED, message[:MESSAGE_CHARACTERS], closes=True)


def _message(body: bytes | None) -> object:
    """The message of an answer that is a no by its status, whatever else it says."""
    try:
        answer = msgspec.json.decode((body and mended(body)) or body or b"null")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return answer.get("message") if isinstance(answer, dict) else None


class _Pool(HTTPConnectionPool):
    """Its connections without the two log lines that Twisted has for each of them."""

    if hasattr(HTTPConnectionPool, "_factory"):  # a Twisted without it logs them
        _factory = type("_Quiet", (HTTPConnectionPool._factory,), {"noisy": False})  # type: ignore[assignment]  # noqa: SLF001


@implementer(IBodyProducer)
class _Question:
    """A request's body, written together with its head.

    What treq makes of ``json=`` is written a reactor turn later. Nagle's algorithm then holds it back until the head
    is acknowledged, which the other side delays: 40 ms for each question on a connection that was used before.
    """

    def __init__(self, body: bytes) -> None:
        self.length = len(body)
        self._body = body

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None:
        pass

    def resumeProducing(self) -> None:
        pass

    def stopProducing(self) -> None:
        pass


@implementer(IAgent)
class _Connections:
    """Requests over connections that are kept, but none of them for long."""

    def __init__(self, reactor: Any, auth: Auth) -> None:
        self._clock = reactor
        self._most = auth.concurrency
        self._trusting = BrowserLikePolicyForHTTPS(trust_root(auth.ca))
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
class _Service:
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


def _body(response: IResponse) -> Deferred[bytes | None]:
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
