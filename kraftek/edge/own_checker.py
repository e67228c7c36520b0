"""A checker of one's own, from outside of the gateway, guarded. Made by :mod:`kraftek.daemon.checkers`, called by
:mod:`kraftek.core.access.cache`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import PurePath
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import asdict, replace
from twisted.cred.error import LoginDenied, Unauthorized
from twisted.internet import defer
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import Invalid, implementer
from zope.interface.verify import verifyObject

from kraftek.contract.errors import DENIALS, Code, PeerError
from kraftek.contract.interfaces import IAccessChecker
from kraftek.contract.log_once import OnceAMinute
from kraftek.contract.messages import Grant, Token
from kraftek.contract.settings import Auth, EventPattern
from kraftek.edge.questions import FullError, Questions

__all__ = ["OwnChecker"]

MESSAGE_CHARACTERS = 256
"""So much of a message reaches the client."""

RETRY_AFTER = 1.0
"""Seconds after which a client may try again when the checker gave no answer."""


class _Yes(Struct):
    """What every grant must be, whatever made it."""

    user_id: Annotated[str, Meta(min_length=1)]
    room_id: str | None
    permissions: tuple[EventPattern, ...] | None
    expires_at: float | None
    ttl: Annotated[float, Meta(ge=0)] | None
    source: str


class _WrongAnswerError(Exception):
    """The checker gave an answer that is none. The text names no value: it may hold the token."""


@implementer(IAccessChecker)
class OwnChecker:
    """Asks ``checker``, for ``auth.timeout`` seconds at most, and ``auth.concurrency`` questions at a time. Its no is
    an ``AUTH_FAILED`` or a ``TOKEN_EXPIRED``, or ``Unauthorized`` or ``LoginDenied`` of ``twisted.cred``. Every other
    error counts as could not be asked, and is logged by its name alone.

    ``fingerprint``: of where it comes from; what was kept of another one does not count. ``now`` returns Unix seconds.
    Raises ``ValueError`` when it is no ``IAccessChecker``.
    """

    _log = Logger()

    def __init__(
        self, reactor: Any, auth: Auth, checker: Any, fingerprint: str, now: Callable[[], float] = time.time
    ) -> None:
        try:
            verifyObject(IAccessChecker, checker)
        except Invalid as error:
            raise ValueError(f"an IAccessChecker of kraftek.contract.interfaces ({_one_line(error)})") from None
        self._checker = checker
        self._fingerprint = fingerprint
        self._clock = reactor
        self._now = now
        self._questions = Questions(auth.concurrency, auth.waiting, reactor)
        self._once_a_minute = OnceAMinute(self._clock.seconds)
        self.reload(auth)()

    def reload(self, auth: Auth) -> Callable[[], None]:
        """What has later questions asked as ``auth`` says now."""

        def use() -> None:
            self._timeout = auth.timeout
            self._questions.at_a_time, self._questions.most_waiting = auth.concurrency, auth.waiting

        return use

    def check(self, token: Token, room_id: str | None, turn: str = "") -> Deferred[Grant]:
        checking: Deferred[Grant] = Deferred.fromCoroutine(self._check(token, room_id, turn))
        checking.addTimeout(self._timeout, self._clock)
        return checking.addErrback(self._judge_failure, token)

    def vouches(self, source: str) -> bool:
        fingerprint, _, own = source.partition(".")
        return fingerprint == self._fingerprint and bool(self._checker.vouches(own))

    def on_change(self, listener: Callable[[], None]) -> None:
        self._checker.on_change(listener)

    async def _check(self, token: Token, room_id: str | None, turn: str) -> Grant:
        await self._questions.begin(turn)
        try:
            grant = await maybeDeferred(self._checker.check, token, room_id, turn)
        finally:
            self._questions.end(turn)
        if not isinstance(grant, Grant):
            raise _WrongAnswerError(f"expected a Grant, got `{type(grant).__name__}`")
        try:
            yes = msgspec.convert(asdict(grant), _Yes)
        except msgspec.ValidationError as error:
            raise _WrongAnswerError(str(error)) from None
        if yes.room_id not in (None, room_id):
            raise _WrongAnswerError("a Grant for another room")
        if yes.expires_at is not None and yes.expires_at <= self._now():
            raise PeerError(Code.TOKEN_EXPIRED, "Access has expired", closes=True)
        return replace(grant, room_id=room_id, fresh_until=None, source=f"{self._fingerprint}.{yes.source}")

    def _judge_failure(self, failure: Failure, token: Token) -> Failure:
        error = failure.value
        if isinstance(error, PeerError) and error.code in DENIALS:
            return _no(error.code, error.message, token)
        if isinstance(error, Unauthorized | LoginDenied):
            return _no(Code.AUTH_FAILED, "", token)
        if isinstance(error, PeerError) and error.code is Code.RATE_LIMITED:
            return failure
        if not isinstance(error, PeerError):
            reason = _reason(failure)
            text = "The checker of auth.check gave no answer (said once a minute for each reason): {reason}"
            self._once_a_minute(self._log.warn, text, about=reason, reason=reason)
        message = "access cannot be checked at present"
        retry_after = getattr(error, "retry_after", None) or RETRY_AFTER
        return Failure(PeerError(Code.AUTH_UNAVAILABLE, message, retry_after=retry_after))


def _no(code: Code, message: str, token: Token) -> Failure:
    if not message or token.value in message:
        message = "Authentication failed"
    return Failure(PeerError(code, message[:MESSAGE_CHARACTERS], closes=True))


def _reason(failure: Failure) -> str:
    """Of a foreign error its name, and where it was raised: its text may quote the token."""
    error = failure.value
    if isinstance(error, _WrongAnswerError | FullError):
        return str(error)
    if isinstance(error, defer.TimeoutError):
        return "TimeoutError"
    where = ""
    if failure.frames:
        _, file, line, *_ = failure.frames[-1]
        where = f" at {PurePath(file).name}:{line}"
    return f"{type(error).__name__}{where}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
