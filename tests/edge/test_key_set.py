"""The keys of an issuer, fetched: which of them are used, how often they are asked for, and when they cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from msgspec.structs import replace
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import ConnectError
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import ResponseDone
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent
from twisted.web.resource import Resource
from twisted.web.server import Request, Site
from zope.interface import implementer

from kraftek.contract.errors import Code, PeerError
from kraftek.contract.messages import Token
from kraftek.contract.settings import Auth, Jwt
from kraftek.edge.http_client import ANSWER_BYTES, Connections
from kraftek.edge.jwt_checker import JwtChecker
from kraftek.edge.key_set import REFETCH, REFRESH, Key, KeySet
from tests.bus.test_endpoint import Authority
from tests.edge.test_jwt_checker import NOW, RSA, Times, public, signed
from tests.support.waiting import until

OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SMALL = rsa.generate_private_key(public_exponent=65537, key_size=1024)
EC = ec.generate_private_key(ec.SECP256R1())
URL = "https://id.example.org/keys"


def jwk(key: Any, kid: str | None, *, private: bool = False, **members: Any) -> dict[str, Any]:
    kind: Any = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    found: dict[str, Any] = json.loads(kind.to_jwk(key if private else key.public_key()))
    found.pop("key_ops", None)
    return {**found, **({} if kid is None else {"kid": kid}), **members}


class Response:
    """What an issuer answers."""

    def __init__(self, code: int, body: bytes) -> None:
        self.code, self.body, self.headers = code, body, Headers()
        self.version, self.phrase, self.length, self.previousResponse = (b"HTTP", 1, 1), b"", len(body), None
        self.request: Any = None

    def deliverBody(self, protocol: Any) -> None:
        protocol.makeConnection(StringTransport())
        protocol.dataReceived(self.body)
        protocol.connectionLost(Failure(ResponseDone()))


@implementer(IAgent)
class Issuer:
    """Answers what the test sets: keys, bytes, an exception, or nothing yet (``None``)."""

    def __init__(self) -> None:
        self.answer: Any = []
        self.code = 200
        self.asked: list[bytes] = []
        self.unanswered: list[Deferred[Any]] = []

    def request(self, method: bytes, uri: bytes, headers: Any = None, bodyProducer: Any = None) -> Deferred[Any]:
        self.asked.append(uri)
        if self.answer is None:
            self.unanswered.append(Deferred())
            return self.unanswered[-1]
        return fail(self.answer) if isinstance(self.answer, Exception) else succeed(self.response())

    def response(self) -> Any:
        body = self.answer if isinstance(self.answer, bytes) else json.dumps({"keys": self.answer}).encode()
        return Response(self.code, body)

    def say(self, answer: Any) -> None:
        """Answer what is unanswered."""
        self.answer = answer
        self.unanswered.pop(0).callback(self.response())


class KeySetCase(SynchronousTestCase):
    algorithm = "RS256"

    def setUp(self) -> None:
        self.clock = Clock()
        self.issuer = Issuer()
        self.vanished = 0
        self.keys = KeySet(self.clock, URL, self.algorithm, self.issuer, 3.0, self.vanish)

    def vanish(self) -> None:
        self.vanished += 1

    def find(self, kid: str | None) -> list[Any]:
        """What comes of it, at once or later."""
        found: list[Any] = []
        finding: Deferred[Key | None] = Deferred.fromCoroutine(self.keys.find(kid))
        finding.addCallbacks(found.append, lambda failure: found.append(failure.value))
        return found

    def has(self, kid: str | None) -> bool:
        (found,) = self.find(kid)
        return isinstance(found, Key)

    def unavailable(self, kid: str) -> float:
        """After how many seconds to try again."""
        (error,) = self.find(kid)
        assert isinstance(error, PeerError), error
        assert error.code is Code.AUTH_UNAVAILABLE
        assert error.retry_after is not None
        return error.retry_after

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.keys.sweep()


class RsaTest(KeySetCase):
    def test_a_key_by_its_id(self) -> None:
        self.issuer.answer = [jwk(RSA, "a"), jwk(OTHER, "b")]
        assert self.has("a")
        assert self.has("b")
        assert not self.has("c")
        assert not self.has(None)
        assert self.issuer.asked == [URL.encode()]

    def test_without_an_id_the_only_key(self) -> None:
        self.issuer.answer = [jwk(RSA, "a"), jwk(EC, "b")]
        assert self.has(None)

    def test_a_key_without_an_id_is_for_tokens_without_one_if_it_is_the_only_one(self) -> None:
        self.issuer.answer = [jwk(RSA, None), jwk(OTHER, "b")]
        assert not self.has(None)
        self.issuer.answer = [jwk(RSA, None)]
        self.pass_time(REFRESH)
        assert self.has(None)

    def test_keys_that_are_not_for_this(self) -> None:
        secret = {"kty": "oct", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY", "kid": "a"}
        odd: list[dict[str, Any]] = [
            secret,
            {**secret, "alg": "RS256"},
            jwk(EC, "a"),
            jwk(SMALL, "a"),
            jwk(RSA, "a", private=True),
            jwk(RSA, "a", use="enc"),
            jwk(RSA, "a", key_ops=["sign"]),
            jwk(RSA, "a", key_ops=7),
            jwk(RSA, "a", alg="RS512"),
            jwk(RSA, "a", alg="HS256"),
            {**jwk(RSA, None), "kid": 7},
            {"kty": "RSA", "kid": "a"},
            {"kid": "a"},
            {},
        ]
        for key in odd:
            self.issuer.answer = [key, jwk(OTHER, "b", use="sig", key_ops=["verify"], alg="RS256")]
            self.pass_time(REFRESH)
            assert not self.has("a"), key
            assert self.has("b")

    def test_an_unknown_id_fetches_once_in_half_a_minute_for_all(self) -> None:
        self.issuer.answer = [jwk(RSA, "a")]
        assert self.has("a")
        self.issuer.answer = [jwk(RSA, "a"), jwk(OTHER, "b")]
        for _ in range(100):
            assert not self.has("b")  # that is a no: the set was looked at just now
        self.clock.advance(REFETCH - 0.1)
        assert not self.has("b")
        assert len(self.issuer.asked) == 1
        self.clock.advance(0.1)
        assert self.has("b")
        assert len(self.issuer.asked) == 2

    def test_who_comes_meanwhile_waits_for_the_same_fetch(self) -> None:
        self.issuer.answer = None
        waiting = [self.find("a"), self.find("b")]
        assert waiting == [[], []]
        self.issuer.say([jwk(RSA, "a")])
        ((one,), (other,)) = waiting
        assert isinstance(one, Key)
        assert other is None
        assert len(self.issuer.asked) == 1

    def test_keys_are_looked_at_from_time_to_time(self) -> None:
        self.keys.sweep()
        assert len(self.issuer.asked) == 1
        self.pass_time(REFRESH - 1)
        assert len(self.issuer.asked) == 1
        self.pass_time(1)
        assert len(self.issuer.asked) == 2

    def test_old_keys_serve_while_they_cannot_be_fetched(self) -> None:
        self.issuer.answer = [jwk(RSA, "a")]
        self.keys.sweep()
        for answer in (ConnectError(), b"", b"{}", b"[]", b'{"keys":7}', b" " * (ANSWER_BYTES + 1)):
            self.issuer.answer = answer
            self.pass_time(REFRESH)
            assert self.has("a"), answer
            assert self.unavailable("b") == REFETCH
        self.issuer.answer = [jwk(OTHER, "b")]
        for self.issuer.code in (301, 302, 404, 500, 204):
            self.pass_time(REFRESH)
            assert self.has("a")
        assert self.vanished == 0
        self.issuer.code = 200
        self.pass_time(REFETCH)  # it is tried again sooner than it would be looked at
        assert self.has("b")

    def test_who_does_not_answer(self) -> None:
        self.issuer.answer = None
        found = self.find("a")
        with capturedLogs() as events:
            self.clock.advance(3.0)
        (error,) = found
        assert error.code is Code.AUTH_UNAVAILABLE
        assert error.retry_after == REFETCH - 3
        assert [(event["url"], event["reason"]) for event in events] == [(URL, "TimeoutError")]

    def test_a_key_that_vanishes(self) -> None:
        self.issuer.answer = [jwk(RSA, "a"), jwk(OTHER, "b")]
        self.keys.sweep()
        names = self.keys.names
        self.issuer.answer = [jwk(OTHER, "b")]
        self.pass_time(REFRESH)
        assert self.vanished == 1
        assert self.keys.names < names
        self.issuer.answer = [jwk(RSA, "a"), jwk(OTHER, "b")]
        self.pass_time(REFRESH)
        assert self.vanished == 1
        self.issuer.answer = [jwk(OTHER, "a"), jwk(RSA, "b")]  # the same keys by other ids
        self.pass_time(REFRESH)
        assert self.vanished == 1
        self.issuer.answer = []
        with capturedLogs() as events:
            self.pass_time(REFRESH)
        assert self.vanished == 2
        assert "no token is good" in events[0]["log_format"]
        assert not self.has("a")

    def test_nothing_is_fetched_after_the_end(self) -> None:
        self.issuer.answer = None
        found = self.find("a")
        with capturedLogs() as events:
            self.keys.close()
        assert found[0].code is Code.AUTH_UNAVAILABLE
        assert events == []
        self.pass_time(REFRESH)
        assert len(self.issuer.asked) == 1
        self.keys.close()

    def test_keys_from_the_same_place_are_taken_over(self) -> None:
        self.issuer.answer = [jwk(RSA, "a")]
        self.keys.sweep()
        self.issuer.answer = ConnectError()
        for url, has in ((URL, True), ("https://elsewhere/", False)):
            other = KeySet(self.clock, url, "RS256", self.issuer, 3.0, self.vanish)
            other.take_over(self.keys)
            assert bool(other.names) is has


class EcTest(KeySetCase):
    algorithm = "ES256"

    def test_keys_of_the_curve(self) -> None:
        self.issuer.answer = [jwk(RSA, "a"), jwk(EC, "b"), jwk(ec.generate_private_key(ec.SECP384R1()), "c")]
        assert [self.has(kid) for kid in "abc"] == [False, True, False]


class CheckerTest(SynchronousTestCase):
    """A checker whose keys are fetched."""

    def setUp(self) -> None:
        self.clock, self.issuer = Clock(), Issuer()
        self.issuer.answer = [jwk(RSA, "a")]
        self.settings = Jwt(issuer="https://id.example.org/", audience="gateway", key_set=URL)
        self.checker = JwtChecker(self.clock, Auth(), self.settings, Times(), self.issuer, lambda: NOW)

    def check(self, key: Any, kid: str) -> Any:
        found: list[Any] = []
        token = Token(signed(key, "RS256", {"kid": kid}))
        self.checker.check(token, "r1").addCallbacks(found.append, lambda failure: found.append(failure.value))
        return found[0]

    def test_a_key_that_vanishes_ends_what_it_signed(self) -> None:
        source, told = self.check(RSA, "a").source, []
        self.checker.on_change(lambda: told.append(self.checker.vouches(source)))
        assert self.checker.vouches(source)
        self.issuer.answer = [jwk(OTHER, "b")]
        self.clock.advance(REFRESH)
        self.checker.sweep()
        assert told == [False]
        assert self.check(RSA, "a").message == "The token is not valid: the key set has no key with its kid"
        assert self.check(OTHER, "b").user_id == "ada"

    def test_a_kid_of_another_key(self) -> None:
        assert self.check(OTHER, "a").message == "The token is not valid"

    def test_a_reload_keeps_the_keys_until_there_are_new_ones(self) -> None:
        source = self.check(RSA, "a").source
        self.issuer.answer = ConnectError()
        self.checker.reload(Auth(), self.settings)()
        assert self.checker.vouches(source)
        assert self.check(RSA, "a").user_id == "ada"
        self.checker.close()
        self.checker.sweep()

    def test_from_a_key_set_to_files(self) -> None:
        source = self.check(RSA, "a").source
        with TemporaryDirectory() as directory:
            file = Path(directory) / "key"
            file.write_bytes(public(RSA))
            self.checker.reload(Auth(), replace(self.settings, key_set="", key_files=(str(file),)))()
        assert not self.checker.vouches(source)
        assert self.check(RSA, "other").user_id == "ada"


class Keys(Resource):
    """An issuer's web server."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.moved = False
        self.asked = 0

    def render_GET(self, request: Request) -> bytes:
        self.asked += 1
        if self.moved and request.path == b"/keys":
            request.redirect(b"/elsewhere")
            return b""
        assert request.getHeader("accept-encoding") is None
        return json.dumps({"keys": [jwk(RSA, "a")]}).encode()


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")  # Twisted's own TLS server
class WireTest(TestCase):
    """Over TLS."""

    timeout = 30

    async def setUp(self) -> None:  # type: ignore[override]
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = Path(directory.name)
        authority = Authority("ours")
        authority.issue(path, x509.DNSName("localhost"))
        self.ca = authority.file(path / "ca.pem")
        self.keys = Keys()
        site = Site(self.keys)
        site.noisy = False
        site.log = lambda request: None  # type: ignore[method-assign]
        endpoint = f"ssl:0:interface=127.0.0.1:privateKey={path}/redis.key:certKey={path}/redis.crt"
        port: Any = await serverFromString(reactor, endpoint).listen(site)
        self.addCleanup(port.stopListening)
        self.url = f"https://localhost:{port.getHost().port}/keys"

    def key_set(self, ca: str) -> KeySet:
        connections = Connections(reactor, ca, 1)
        self.addCleanup(connections.close)
        return KeySet(reactor, self.url, "RS256", connections, 5.0, lambda: None)

    async def test_keys_over_tls(self) -> None:
        assert isinstance(await self.key_set(self.ca).find("a"), Key)

    async def test_a_redirect_is_not_followed(self) -> None:
        self.keys.moved = True
        with pytest.raises(PeerError) as caught:
            await self.key_set(self.ca).find("a")
        assert caught.value.code is Code.AUTH_UNAVAILABLE
        assert self.keys.asked == 1

    async def test_an_issuer_that_nobody_vouches_for(self) -> None:
        keys = self.key_set("")
        keys.sweep()
        await until(lambda: keys._fetching is None, "the end of the fetch")
        assert keys.names == frozenset()
        assert self.keys.asked == 0
