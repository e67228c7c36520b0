"""Tokens that the gateway checks itself: what makes one good, and all that does not."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.utils import base64url_encode
from msgspec.structs import replace
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from zope.interface import implementer
from zope.interface.verify import verifyObject

from kraftek.contract.errors import Code, NotPublished, PeerError, Refusal
from kraftek.contract.interfaces import IAccessChecker, INotBefore
from kraftek.contract.messages import Grant, Token
from kraftek.contract.settings import Auth, Jwt
from kraftek.edge.jwt_checker import JwtChecker

NOW = 1_700_000_000.0
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SECRET = b"0123456789abcdef0123456789abcdef"
CLAIMS: dict[str, Any] = {
    "iss": "https://id.example.org/",
    "aud": "gateway",
    "iat": NOW - 60,
    "exp": NOW + 600,
    "sub": "ada",
    "rooms": ["r1", "r2"],
    "permissions": ["notes:*:*"],
}


def public(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def signed(key: Any = SECRET, algorithm: str = "HS256", headers: Any = None, **claims: Any) -> str:
    """A token that is good but for these claims; one that is ``...`` is left out."""
    payload = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not ...}
    return jwt.PyJWS().encode(json.dumps(payload).encode(), key, algorithm, headers=headers)


def by_hand(header: dict[str, Any], key: bytes) -> str:
    """A token with any header, whose signature is good."""
    body = base64url_encode(json.dumps(header).encode()) + b"." + base64url_encode(json.dumps(CLAIMS).encode())
    return (body + b"." + base64url_encode(hmac.digest(key, body, hashlib.sha256))).decode()


@implementer(INotBefore)
class Times:
    """When access was revoked; ``error``: why nobody knows."""

    def __init__(self) -> None:
        self.times: dict[tuple[str, str | None], float] = {}
        self.error: Exception | None = None
        self.silent = False

    def find(self, user_id: str, room_id: str | None) -> Deferred[float]:
        if self.silent:
            return Deferred()
        if self.error is not None:
            return fail(self.error)
        return succeed(max(self.times.get((user_id, None), 0), self.times.get((user_id, room_id), 0)))


class Running:
    """A checker whose keys are in files."""

    def __init__(self, directory: Path, algorithm: str = "HS256", *keys: bytes, **settings: Any) -> None:
        files = []
        for number, key in enumerate(keys or (SECRET + b"\n",)):
            file = directory / f"{number}.key"
            file.write_bytes(key)
            files.append(str(file))
        self.clock = Clock()
        self.times = Times()
        self.now = NOW
        self.settings = Jwt(
            issuer="https://id.example.org/",
            audience="gateway",
            algorithm=algorithm,  # type: ignore[arg-type]
            key_files=tuple(files),
            **settings,
        )
        self.checker = JwtChecker(self.clock, Auth(), self.settings, self.times, now=lambda: self.now)

    def yes(self, token: str, room: str | None = "r1") -> Grant:
        (grant,) = self.outcome(token, room)
        assert isinstance(grant, Grant), grant
        return grant

    def no(self, token: str, room: str | None = "r1", code: Code = Code.AUTH_FAILED) -> str:
        """The message of a no."""
        (error,) = self.outcome(token, room)
        assert isinstance(error, PeerError), error
        assert (error.code, error.closes) == (code, True)
        return error.message

    def unknown(self, token: str) -> None:
        (error,) = self.outcome(token, "r1")
        assert isinstance(error, PeerError), error
        assert (error.code, error.closes, error.retry_after) == (Code.AUTH_UNAVAILABLE, False, 1.0)

    def outcome(self, token: str, room: str | None) -> list[Any]:
        outcome: list[Any] = []
        checking = self.checker.check(Token(token), room)
        checking.addCallbacks(outcome.append, lambda failure: outcome.append(failure.value))
        if self.times.silent:
            self.clock.advance(Auth().timeout)
        return outcome


@pytest.fixture
def running(tmp_path: Path) -> Running:
    return Running(tmp_path)


def test_keeps_its_interface(running: Running) -> None:
    verifyObject(IAccessChecker, running.checker)
    verifyObject(INotBefore, running.times)


@pytest.mark.parametrize(("algorithm", "key"), [("HS256", None), ("RS256", RSA), ("ES256", EC)])
def test_a_good_token(algorithm: str, key: Any, tmp_path: Path) -> None:
    running = Running(tmp_path, algorithm, SECRET if key is None else public(key))
    grant = running.yes(signed(key or SECRET, algorithm))
    assert (grant.user_id, grant.room_id, grant.permissions) == ("ada", "r1", ("notes:*:*",))
    assert (grant.expires_at, grant.ttl) == (NOW + 600 + 10, None)
    assert running.checker.vouches(grant.source)


def test_without_a_room_the_token_need_not_name_one(running: Running) -> None:
    assert running.yes(signed(rooms=...), None).room_id is None


def test_an_audience_among_several(running: Running) -> None:
    assert running.yes(signed(aud=["shop", "gateway"])).user_id == "ada"


@pytest.mark.parametrize("claim", ["iss", "aud", "exp", "iat", "sub"])
def test_what_a_token_must_have(running: Running, claim: str) -> None:
    odd: list[Any] = [..., None, True, [], {}, [7], "" if claim == "sub" else "x"]
    for value in odd:
        assert running.no(signed(**{claim: value})).startswith("The token is not valid")


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"iss": "https://id.example.org"}, "its issuer (iss) is not jwt.issuer"),
        ({"aud": ["shop"]}, "its audience (aud) is without jwt.audience"),
        ({"iat": NOW + 11}, "its time (iat, nbf) has not come: is a clock wrong?"),
        ({"nbf": NOW + 11}, "its time (iat, nbf) has not come: is a clock wrong?"),
        ({"exp": NOW - 60 + 86_401}, "it lives (iat to exp) longer than jwt.longest"),
        ({"exp": 4_102_444_800}, "it lives (iat to exp) longer than jwt.longest"),
    ],
)
def test_claims_that_do_not_hold(running: Running, claims: dict[str, Any], why: str) -> None:
    with capturedLogs() as events:
        assert running.no(signed(**claims)) == f"The token is not valid: {why}"
        running.no(signed(**claims))
    assert [event["reason"] for event in events] == [why]


def test_clocks_may_differ_by_the_leeway_everywhere(running: Running) -> None:
    token = signed(exp=NOW - 9, iat=NOW + 9 - 60)
    assert running.yes(token).expires_at == NOW + 1  # who is let in is not put out at once
    assert running.yes(signed(iat=NOW + 10, nbf=NOW + 10)).user_id == "ada"
    running.now += 1
    assert running.no(token, code=Code.TOKEN_EXPIRED) == "Token has expired"


@pytest.mark.parametrize("exp", [float("nan"), float("inf"), "1700000600", 10**400])
def test_odd_numbers(running: Running, exp: Any) -> None:
    running.no(signed(exp=exp))


# Keys and headers


def test_each_key_has_one_algorithm(tmp_path: Path) -> None:
    running = Running(tmp_path, "RS256", public(RSA))
    # A token signed with the public key as if that were a secret.
    forged = by_hand({"alg": "HS256", "typ": "JWT"}, public(RSA))
    assert running.no(forged) == "The token is not valid: its algorithm is not RS256"
    assert running.no(signed(EC, "ES256")) == "The token is not valid: its algorithm is not RS256"
    assert running.no(signed(RSA, "RS512")) == "The token is not valid: its algorithm is not RS256"
    none = base64url_encode(b'{"alg":"none"}') + b"." + base64url_encode(json.dumps(CLAIMS).encode()) + b"."
    assert running.no(none.decode()) == "The token is not valid: its algorithm is not RS256"
    assert running.yes(signed(RSA, "RS256")).user_id == "ada"


def test_a_signature_of_another_key(tmp_path: Path) -> None:
    running = Running(tmp_path, "RS256", public(RSA))
    assert running.no(signed(OTHER_RSA, "RS256")) == "The token is not valid"
    good = signed(RSA, "RS256")
    assert running.no(good[:-6] + "AAAAAA") == "The token is not valid"


def test_where_the_token_says_its_key_is_does_not_matter(tmp_path: Path) -> None:
    running = Running(tmp_path, "RS256", public(RSA))
    jwk = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(OTHER_RSA.public_key()))
    for headers in ({"jku": "https://evil.example/"}, {"x5u": "https://evil.example/"}, {"jwk": jwk}):
        assert running.no(signed(OTHER_RSA, "RS256", headers)) == "The token is not valid"
        assert running.yes(signed(RSA, "RS256", headers)).user_id == "ada"


def test_what_must_be_understood_is_refused(running: Running) -> None:
    assert running.yes(by_hand({"alg": "HS256"}, SECRET)).user_id == "ada"
    for crit in (["exp"], ["b64"], [], "x", 7):
        assert running.no(by_hand({"alg": "HS256", "crit": crit, "exp": 1}, SECRET)).startswith(
            "The token is not valid"
        )
    assert running.no(by_hand({"alg": "HS256", "b64": False}, SECRET)).startswith("The token is not valid")


@pytest.mark.parametrize(
    "token",
    ["x", "..", "a.b.c", "e30.e30.", "\ud83d.e30.AAAA", "é.é.é", "ey" * 30_000, "[].e30.AAAA", ".e30.AAAA"],
)
def test_whatever_goes_wrong_is_a_no(running: Running, token: str) -> None:
    with capturedLogs() as events:
        assert running.no(token) == "The token is not valid"
    assert token[:20] not in repr(events) or len(token) < 3


@pytest.mark.parametrize("payload", [b"", b"[]", b"7", b"{", b"\xff", b"[" * 100_000, b'{"sub":"\\ud83d"}'])
def test_a_payload_that_is_none(running: Running, payload: bytes) -> None:
    assert running.no(jwt.PyJWS().encode(payload, SECRET, "HS256")) == "The token is not valid"


def test_one_of_several_keys(tmp_path: Path) -> None:
    running = Running(tmp_path, "RS256", public(RSA), public(OTHER_RSA))
    one, other = running.yes(signed(RSA, "RS256")), running.yes(signed(OTHER_RSA, "RS256"))
    assert one.source != other.source
    assert running.no(signed(rsa.generate_private_key(public_exponent=65537, key_size=2048), "RS256"))


@pytest.mark.parametrize(
    ("algorithm", "content", "what"),
    [
        ("HS256", b"short\n", "expected a secret of at least 32 bytes"),
        ("HS256", public(RSA), "expected a secret of at least 32 bytes"),
        ("RS256", public(EC), "expected a public key for RS256 in PEM"),
        ("ES256", public(RSA), "expected a public key for ES256 in PEM"),
        ("RS256", SECRET, "expected a public key for RS256 in PEM"),
        (
            "ES256",
            public(ec.generate_private_key(ec.SECP384R1())),
            "expected a public key for ES256 in PEM",
        ),
        (
            "RS256",
            public(rsa.generate_private_key(public_exponent=65537, key_size=1024)),
            "expected a public key for RS256 in PEM",
        ),
    ],
)
def test_files_that_hold_no_such_key(algorithm: str, content: bytes, what: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=what) as caught:
        Running(tmp_path, algorithm, content)
    assert str(tmp_path) in str(caught.value)


# Rooms, permissions, user


@pytest.mark.parametrize("rooms", [..., None, "r1", "*", ["r2"], ["r1", 7], ["r1", ""], {"r1": True}, [["r1"]], 7])
def test_rooms_that_do_not_permit_this_one(running: Running, rooms: Any) -> None:
    assert running.no(signed(rooms=rooms)) == "The token is not for this room"
    assert running.yes(signed(rooms=rooms), None).room_id is None


@pytest.mark.parametrize("permissions", [..., None, "notes:*:*", ["notes:*:*", "odd"], ["no*:a:b"], [7], {}, True])
def test_odd_permissions_permit_nothing(running: Running, permissions: Any) -> None:
    assert running.yes(signed(permissions=permissions)).permissions == ()


def test_claims_have_the_names_that_are_configured(tmp_path: Path) -> None:
    running = Running(tmp_path, user="email", rooms="https://example.org/rooms", permissions="may")
    claims: dict[str, Any] = {"email": "ada@example.org", "https://example.org/rooms": ["r9"], "may": ["a:b:*"]}
    grant = running.yes(signed(**claims), "r9")
    assert (grant.user_id, grant.permissions) == ("ada@example.org", ("a:b:*",))
    for email in (..., "", 7, None):
        assert running.no(signed(email=email), None) == "The token is not valid: the claim email is no text"


def test_a_claim_without_a_name_is_not_asked(tmp_path: Path) -> None:
    running = Running(tmp_path, rooms="", permissions="")
    grant = running.yes(signed(rooms=..., permissions=...), "any")
    assert (grant.room_id, grant.permissions) == ("any", None)


# Revocation


def test_tokens_from_before_a_revocation(running: Running) -> None:
    running.times.times["ada", None] = NOW - 60
    assert running.no(signed()) == "The token was revoked"
    assert running.no(signed(), None) == "The token was revoked"
    assert running.yes(signed(iat=NOW - 59)).user_id == "ada"


def test_tokens_from_before_a_revocation_in_one_room(running: Running) -> None:
    running.times.times["ada", "r1"] = NOW
    assert running.no(signed(), "r1") == "The token was revoked"
    assert running.yes(signed(), "r2").room_id == "r2"


def test_nobody_is_let_in_while_it_is_not_known_what_was_revoked(running: Running) -> None:
    for error in (NotPublished(), Refusal("NOPERM")):
        running.times.error = error
        running.unknown(signed())
    running.times.silent = True
    running.unknown(signed())


# The configuration


CHANGES: list[dict[str, Any]] = [
    {"issuer": "x"},
    {"audience": "x"},
    {"user": "x"},
    {"rooms": "x"},
    {"permissions": ""},
    {"leeway": 1.0},
    {"longest": 900.0},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_a_grant_counts_under_the_configuration_that_gave_it(running: Running, change: dict[str, Any]) -> None:
    source = running.yes(signed()).source
    told: list[bool] = []
    running.checker.on_change(lambda: told.append(running.checker.vouches(source)))
    running.checker.reload(Auth(), replace(running.settings))()
    assert told == []
    assert running.checker.vouches(source)
    running.checker.reload(Auth(), replace(running.settings, **change))()
    assert told == [False]


def test_others_grants_do_not_count(running: Running) -> None:
    source = running.yes(signed()).source
    for other in ("", f"{source}+", source.partition(".")[0], f"{source}x", f"x{source}"):
        assert not running.checker.vouches(other)


def test_a_key_whose_file_is_gone_ends_what_it_signed(tmp_path: Path) -> None:
    running = Running(tmp_path, "RS256", public(RSA), public(OTHER_RSA))
    source = running.yes(signed(RSA, "RS256")).source
    told: list[bool] = []
    running.checker.on_change(lambda: told.append(running.checker.vouches(source)))
    use = running.checker.reload(Auth(), replace(running.settings, key_files=running.settings.key_files[1:]))
    assert running.checker.vouches(source)
    use()
    assert told == [False]
    assert running.no(signed(RSA, "RS256")) == "The token is not valid"
    assert running.yes(signed(OTHER_RSA, "RS256")).user_id == "ada"


def test_a_reload_that_cannot_be_changes_nothing(tmp_path: Path, running: Running) -> None:
    with pytest.raises(OSError, match="No such file"):
        running.checker.reload(Auth(), replace(running.settings, key_files=(str(tmp_path / "missing"),)))
    assert running.yes(signed()).user_id == "ada"
