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
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IConsumer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer
from zope.interface import implementer

from kraftek import __version__
from kraftek.contract.errors import Code, PeerError
from kraftek.contract.interfaces import IAccessChecker
from kraftek.contract.messages import Grant, Token
from kraftek.contract.settings import Auth
from kraftek.contract.surrogates import HALF, is_whole, mended
from kraftek.edge.http_client import ANSWER_BYTES, Connections, OneAddress, body_of
from kraftek.edge.questions import FullError, Questions

__all__ = ["HttpChecker"]

MESSAGE_CHARACTERS = 256
"""So much of the auth service's message reaches the client."""

RETRY_AFTER = 1.0
"""Seconds after which a client may try again when the auth service could not be asked."""

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
    code: Any = None


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
        self._questions = Questions(auth.concurrency, auth.waiting, reactor)
        self._given_agent = agent
        self._now = now
        self._quiet_until = self._clock.seconds()
        self._ask_at(auth, Connections(reactor, auth.ca, auth.concurrency))

    def reload(self, auth: Auth) -> Callable[[], None]:
        """What has later questions asked as ``auth`` says now, trusting what ``ca`` holds now; those under way stay as
        they are. Raises as the constructor.
        """
        return partial(self._ask_at, auth, Connections(self._clock, auth.ca, auth.concurrency))

    def _ask_at(self, auth: Auth, connections: Connections) -> None:
        url = auth.check.rstrip("/") + "/auth/check"
        self._timeout = auth.timeout
        self._questions.at_a_time, self._questions.most_waiting = auth.concurrency, auth.waiting
        self._where = urlsplit(url).hostname
        self._connections = connections
        self._agent = OneAddress(url.encode(), self._given_agent or connections)

    @property
    def waiting(self) -> int:
        """Questions that wait to be asked."""
        return len(self._questions)

    def check(self, token: Token, room_id: str | None, turn: str = "") -> Deferred[Grant]:
        try:
            question = msgspec.json.encode({"token": token.value, "roomId": room_id})
        except UnicodeEncodeError:
            return fail(_no(_Verdict(False), token))  # half a character: nobody was ever given such a token
        d: Deferred[Grant] = Deferred.fromCoroutine(self._ask_in_turn(question, token, room_id, turn))
        d.addTimeout(self._timeout, self._clock)
        return d.addErrback(self._judge_failure)

    def vouches(self, source: str) -> bool:
        return not source  # whatever address it was asked at: it revokes what it no longer says

    def on_change(self, listener: Callable[[], None]) -> None:
        """It takes back what it has said by ``auth:invalidate``, or by deleting keys."""

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
            body = await body_of(response)
        finally:
            self._questions.end(turn)
        return self._judge(response.code, body, token, room_id)

    def _judge(self, status: int, body: bytes | None, token: Token, room_id: str | None) -> Grant:
        if status in (401, 403):
            raise _no(_denial(body), token)
        # 408 and 429 are about the asking, not about who asks for.
        if status // 100 not in (2, 4) or status in (408, 429):
            raise _UnreadableError(f"status {status}")
        if body is None:
            raise _UnreadableError(f"more than {ANSWER_BYTES} bytes")
        whole = mended(body)
        try:
            verdict = msgspec.json.decode(whole or body, type=_Verdict)
            if not verdict.success:
                raise _no(verdict, token)
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
            raise _no(_Verdict(False, "Access has expired", Code.TOKEN_EXPIRED), token)
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


def _no(verdict: _Verdict, token: Token) -> PeerError:
    message = verdict.message
    if not isinstance(message, str) or not message or token.value in message:
        message = "Authentication failed"
    code = Code.TOKEN_EXPIRED if verdict.code == Code.TOKEN_EXPIRED else Code.AUTH_FAILED
    return PeerError(code, message[:MESSAGE_CHARACTERS], closes=True)


def _denial(body: bytes | None) -> _Verdict:
    """What an answer says that is a no by its status, whatever else it says."""
    try:
        answer = msgspec.json.decode((body and mended(body)) or body or b"null")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        answer = None
    found = answer if isinstance(answer, dict) else {}
    return _Verdict(False, found.get("message"), found.get("code"))


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
