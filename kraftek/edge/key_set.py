"""The keys that sign tokens: read from files, or fetched as a JWK Set (RFC 7517). Made and called by
:mod:`kraftek.edge.jwt_checker`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from math import inf
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from msgspec import Struct
from treq.client import HTTPClient
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent

from kraftek import __version__
from kraftek.contract.errors import Code, PeerError
from kraftek.contract.log_once import OnceAMinute
from kraftek.edge.http_client import ANSWER_BYTES, OneAddress, body_of

__all__ = ["REFETCH", "REFRESH", "Key", "KeySet", "keys_of_files"]

REFRESH = 300.0
"""Seconds between two looks at the key set: a key that vanished ends what it has signed within so many."""

REFETCH = 30.0
"""Seconds between two fetches at least, however many tokens name keys that are not known."""

SECRET_BYTES = 32
"""RFC 7518, section 3.2: a key for HS256 is at least as long as its digest."""

RSA_BITS = 2048
"""RFC 7518, section 3.3."""

_HEADERS = {"User-Agent": [f"kraftek-gateway/{__version__}"], "Accept": ["application/jwk-set+json, application/json"]}


class Key(Struct, frozen=True, eq=False):
    """A key that verifies. ``name``: its thumbprint, which says nothing about it."""

    value: Any
    name: str


def keys_of_files(files: Iterable[str], algorithm: str) -> list[Key]:
    """The keys in these files. Raises ``OSError`` or ``ValueError``, with the file's name."""
    return [_key_of_file(file, algorithm) for file in files]


def _key_of_file(file: str, algorithm: str) -> Key:
    content = Path(file).read_bytes()
    if algorithm == "HS256":
        secret = content.rstrip(b"\r\n")
        if len(secret) < SECRET_BYTES or secret.startswith(b"-----BEGIN "):
            raise ValueError(f"{file}: expected a secret of at least {SECRET_BYTES} bytes")
        return Key(secret, sha256(b"kraftek-gateway " + secret).hexdigest()[:16])
    try:
        key = load_pem_public_key(content)
    except Exception:  # noqa: BLE001  # cryptography raises many kinds, and their texts may quote the file
        key = None
    if not _is_suitable(key, algorithm):
        raise ValueError(f"{file}: expected a public key for {algorithm} in PEM")
    return _named(key)


def _is_suitable(key: object, algorithm: str) -> bool:
    if algorithm == "RS256":
        return isinstance(key, RSAPublicKey) and key.key_size >= RSA_BITS
    return isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)


def _named(key: Any) -> Key:
    return Key(key, sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()[:16])


class _Jwks(Struct):
    keys: list[dict[str, Any]]


class KeySet:
    """The keys at ``url``, for one ``algorithm``: others there are ignored, secrets among them.

    While they cannot be fetched those that were fetched last are used. ``vanished`` is called when one of them is no
    longer there. ``agent`` makes the requests, ``timeout`` seconds long at most.
    """

    _log = Logger()

    def __init__(
        self,
        clock: Any,
        url: str,
        algorithm: str,
        agent: IAgent,
        timeout: float,
        vanished: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._url = url
        self._algorithm = algorithm
        self._client = HTTPClient(OneAddress(url.encode(), agent))
        self._timeout = timeout
        self._vanished = vanished
        self._keys: Mapping[str | None, Key] = {}
        self._began = -inf
        self._fetching: Deferred[None] | None = None
        self._waiting: list[Deferred[None]] = []
        self._failed = True
        self._once_a_minute = OnceAMinute(clock.seconds)

    @property
    def names(self) -> frozenset[str]:
        """The names of all keys."""
        return frozenset(key.name for key in self._keys.values())

    async def find(self, kid: str | None) -> Key | None:
        """The key with this id; without one, the only key. ``None`` if the set has none. Raises ``PeerError`` when the
        set that would have it cannot be fetched now.
        """
        if kid not in self._keys:
            if self._fetching is None and self._began + REFETCH <= self._clock.seconds():
                self._fetch()
            if self._fetching is not None:
                waiting: Deferred[None] = Deferred()
                self._waiting.append(waiting)
                await waiting
        key = self._keys.get(kid)
        if key is None and self._failed:
            after = max(1.0, self._began + REFETCH - self._clock.seconds())
            raise PeerError(Code.AUTH_UNAVAILABLE, "access cannot be checked at present", retry_after=after)
        return key

    def take_over(self, other: KeySet) -> None:
        """Begin with the keys of another one, if they are from the same place."""
        if (other._url, other._algorithm) == (self._url, self._algorithm):
            self._keys, self._failed = other._keys, other._failed

    def sweep(self) -> None:
        """Fetch the keys, if the time has come."""
        interval = REFETCH if self._failed else REFRESH
        if self._fetching is None and self._began + interval <= self._clock.seconds():
            self._fetch()

    def close(self) -> None:
        """Fetch no more."""
        self._began = inf
        if self._fetching is not None:
            self._fetching.cancel()

    def _fetch(self) -> None:
        self._began = self._clock.seconds()
        fetching: Deferred[bytes] = Deferred.fromCoroutine(self._get())
        fetching.addTimeout(self._timeout, self._clock)
        self._fetching = fetching.addCallback(self._take).addErrback(self._could_not)
        self._fetching.addCallback(self._fetched)

    async def _get(self) -> bytes:
        # What treq is told is no address: see OneAddress.
        response = await self._client.get(
            "http://key-set/", headers=Headers(_HEADERS), allow_redirects=False, unbuffered=True, reactor=self._clock
        )
        body = await body_of(response)
        if response.code != 200:
            raise ValueError(f"status {response.code}")
        if body is None:
            raise ValueError(f"more than {ANSWER_BYTES} bytes")
        return body

    def _take(self, body: bytes) -> None:
        keys: dict[str | None, Key] = {}
        for jwk in msgspec.json.decode(body, type=_Jwks).keys:
            kid, key = jwk.get("kid"), self._key_of(jwk)
            if key is not None and (kid is None or isinstance(kid, str)):
                keys.setdefault(kid, key)
        if len(keys) == 1:
            keys[None] = next(iter(keys.values()))
        else:
            keys.pop(None, None)
        if not keys:
            text = "The key set at {url} has no key for {algorithm} (said once a minute): no token is good"
            self._once_a_minute(self._log.warn, text, url=self._url, algorithm=self._algorithm)
        before, self._keys, self._failed = self.names, keys, False
        if before - self.names:
            self._vanished()

    def _key_of(self, jwk: Mapping[str, Any]) -> Key | None:
        """The key, if it is a public one, for signatures, and of our algorithm."""
        kind: Any = RSAAlgorithm if self._algorithm == "RS256" else ECAlgorithm
        try:
            for_signatures = jwk.get("use", "sig") == "sig" and "verify" in jwk.get("key_ops", ("verify",))
            if not for_signatures or jwk.get("alg", self._algorithm) != self._algorithm or "d" in jwk:
                return None
            key = kind.from_jwk(msgspec.json.encode(jwk).decode())
        except Exception:  # noqa: BLE001  # one odd key of many, of whatever kind
            return None
        return _named(key) if _is_suitable(key, self._algorithm) else None

    def _could_not(self, failure: Failure) -> None:
        self._failed = True
        if failure.check(CancelledError):
            return
        reasons = getattr(failure.value, "reasons", None) or [failure]
        reason = str(failure.value) if failure.check(ValueError) else ", ".join(each.type.__name__ for each in reasons)
        text = "The key set at {url} could not be fetched (said once a minute): {reason}"
        self._once_a_minute(self._log.warn, text, url=self._url, reason=reason)

    def _fetched(self, _: object) -> None:
        self._fetching = None
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.callback(None)
