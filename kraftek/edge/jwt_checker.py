"""Tokens that speak for themselves: JSON Web Tokens (RFC 7519), checked here, without a question to anybody.

Made by :mod:`kraftek.daemon.checkers`, called by :mod:`kraftek.core.access.cache`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import sha256
from typing import Annotated, Any

import msgspec
from jwt import PyJWS
from jwt.exceptions import PyJWTError
from msgspec import Meta, Struct
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.iweb import IAgent
from zope.interface import implementer

from kraftek.contract.errors import Code, NotPublished, PeerError, Refusal
from kraftek.contract.interfaces import IAccessChecker, INotBefore
from kraftek.contract.log_once import OnceAMinute
from kraftek.contract.messages import ROOM_ID_LENGTH, Grant, Token
from kraftek.contract.settings import Auth, EventPattern, Jwt
from kraftek.edge.http_client import Connections
from kraftek.edge.key_set import Key, KeySet, keys_of_files

__all__ = ["JwtChecker"]

RETRY_AFTER = 1.0
"""Seconds after which a client may try again when Redis could not be asked what was revoked."""

_Permissions = Annotated[tuple[EventPattern, ...], Meta(max_length=256)]
_Rooms = Annotated[frozenset[Annotated[str, Meta(min_length=1, max_length=ROOM_ID_LENGTH)]], Meta(max_length=4096)]


class _Header(Struct):
    alg: str
    kid: str | None = None
    crit: Any = None


class _Claims(Struct):
    """The claims that every token has, with the types that they must have."""

    iss: str
    aud: str | tuple[str, ...]
    exp: float
    iat: float
    sub: Annotated[str, Meta(min_length=1)]
    nbf: float | None = None


class _RefusedError(Exception):
    """The token is not good. The text is for its owner, and names no value of it."""


@implementer(IAccessChecker)
class JwtChecker:
    """Checks tokens with the keys of ``jwt``. ``not_before``: when access was revoked. ``now`` returns Unix seconds.

    ``agent`` fetches the key set instead of one that trusts ``auth.ca``. Raises ``OSError`` or ``ValueError`` when a
    file cannot be used.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        auth: Auth,
        jwt: Jwt,
        not_before: INotBefore,
        agent: IAgent | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._clock = reactor
        self._not_before = not_before
        self._given_agent = agent
        self._now = now
        self._once_a_minute = OnceAMinute(self._clock.seconds)
        self._listeners: list[Callable[[], None]] = []
        self._key_set: KeySet | None = None
        self._files: list[Key] = []
        self._fingerprint = ""
        self.reload(auth, jwt)()

    def reload(self, auth: Auth, jwt: Jwt) -> Callable[[], None]:
        """What makes it go by these settings from now on, and by what their files hold. Raises as the constructor."""
        keys = keys_of_files(jwt.key_files, jwt.algorithm)
        agent = self._given_agent or Connections(self._clock, auth.ca, 1)

        def use() -> None:
            before = self._fingerprint, {key.name for key in self._files}
            self._jwt, self._timeout, self._files = jwt, auth.timeout, keys
            self._jws = PyJWS(algorithms=[jwt.algorithm])
            self._fingerprint = sha256(msgspec.json.encode(_decisive(jwt))).hexdigest()[:16]
            self._use_key_set(
                KeySet(self._clock, jwt.key_set, jwt.algorithm, agent, auth.timeout, vanished=self._changed)
                if jwt.key_set
                else None
            )
            if before != (self._fingerprint, {key.name for key in keys}):
                self._changed()

        return use

    def vouches(self, source: str) -> bool:
        fingerprint, _, key = source.partition(".")
        names = (each.name for each in self._files) if self._key_set is None else self._key_set.names
        return fingerprint == self._fingerprint and key in names

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def check(self, token: Token, room_id: str | None, turn: str = "") -> Deferred[Grant]:
        checking: Deferred[Grant] = Deferred.fromCoroutine(self._check(token.value, room_id))
        checking.addTimeout(self._timeout, self._clock)
        return checking.addErrback(self._judge_failure)

    def sweep(self) -> None:
        """Do what is overdue. To be called several times a second."""
        if self._key_set is not None:
            self._key_set.sweep()

    def close(self) -> None:
        """Ask nobody any more."""
        if self._key_set is not None:
            self._key_set.close()

    async def _check(self, token: str, room_id: str | None) -> Grant:
        payload, key = await self._verified(token)
        claims = msgspec.json.decode(payload, type=_Claims)
        everything = msgspec.json.decode(payload, type=dict[str, Any])
        jwt, now = self._jwt, self._now()
        expires_at = claims.exp + jwt.leeway
        self._check_claims(claims, now)
        if expires_at <= now:
            raise PeerError(Code.TOKEN_EXPIRED, "Token has expired", closes=True)
        user_id = everything.get(jwt.user)
        if not isinstance(user_id, str) or not user_id:
            raise _RefusedError(f"the claim {jwt.user} is no text")
        if room_id is not None and jwt.rooms and room_id not in _read(everything.get(jwt.rooms), _Rooms, frozenset()):
            raise PeerError(Code.AUTH_FAILED, "The token is not for this room", closes=True)
        permissions = _read(everything.get(jwt.permissions), _Permissions, ()) if jwt.permissions else None
        if claims.iat <= await self._not_before.find(user_id, room_id):
            raise PeerError(Code.AUTH_FAILED, "The token was revoked", closes=True)
        return Grant(user_id, room_id, permissions, expires_at, source=f"{self._fingerprint}.{key.name}")

    async def _verified(self, token: str) -> tuple[bytes, Key]:
        """The token's payload, and the key that has signed it."""
        text = token.encode()
        # What it says of keys (jku, x5u, jwk) is not looked at.
        header = msgspec.convert(self._jws.get_unverified_header(text), _Header)
        algorithm = self._jwt.algorithm
        if header.alg != algorithm:
            raise _RefusedError(f"its algorithm is not {algorithm}")
        if header.crit is not None:
            raise _RefusedError("it has a header that must be understood (crit), and is not")
        keys = self._files
        if self._key_set is not None:
            found = await self._key_set.find(header.kid)
            keys = [] if found is None else [found]
            if not keys:
                raise _RefusedError("the key set has no key with its kid")
        for key in keys[:-1]:
            try:
                return self._jws.decode_complete(text, key.value, algorithms=[algorithm])["payload"], key
            except PyJWTError:
                continue  # it may be signed by another of them
        return self._jws.decode_complete(text, keys[-1].value, algorithms=[algorithm])["payload"], keys[-1]

    def _check_claims(self, claims: _Claims, now: float) -> None:
        jwt = self._jwt
        audience = (claims.aud,) if isinstance(claims.aud, str) else claims.aud
        if claims.iss != jwt.issuer:
            raise _RefusedError("its issuer (iss) is not jwt.issuer")
        if jwt.audience not in audience:
            raise _RefusedError("its audience (aud) is without jwt.audience")
        if max(claims.iat, claims.nbf or claims.iat) > now + jwt.leeway:
            raise _RefusedError("its time (iat, nbf) has not come: is a clock wrong?")
        if claims.exp - claims.iat > jwt.longest:
            raise _RefusedError("it lives (iat to exp) longer than jwt.longest")

    def _judge_failure(self, failure: Failure) -> Failure:
        """A no, whatever went wrong with the token; only when somebody could not be asked it is none."""
        error = failure.value
        if isinstance(error, PeerError):
            return failure
        if isinstance(error, NotPublished | Refusal | defer.TimeoutError):
            text = "access cannot be checked at present"
            return Failure(PeerError(Code.AUTH_UNAVAILABLE, text, retry_after=RETRY_AFTER))
        # Of a library's error only the name: its text may quote the token.
        reason = str(error) if isinstance(error, _RefusedError) else type(error).__name__
        text = "A token was refused (said once a minute for each reason): {reason}"
        self._once_a_minute(self._log.warn, text, about=reason, reason=reason)
        message = f"The token is not valid: {reason}" if isinstance(error, _RefusedError) else "The token is not valid"
        return Failure(PeerError(Code.AUTH_FAILED, message, closes=True))

    def _use_key_set(self, key_set: KeySet | None) -> None:
        before, self._key_set = self._key_set, key_set
        if key_set is not None:
            if before is not None:
                key_set.take_over(before)
            key_set.sweep()
        if before is not None:
            before.close()

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()


def _decisive(jwt: Jwt) -> tuple[Any, ...]:
    """What a grant depends on beside its key."""
    claims = jwt.user, jwt.rooms, jwt.permissions
    return jwt.issuer, jwt.audience, jwt.algorithm, jwt.key_set, *claims, jwt.leeway, jwt.longest


def _read(value: Any, kind: Any, otherwise: Any) -> Any:
    """The value of a claim, or ``otherwise`` if it is missing or anything else than it should be."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return otherwise
