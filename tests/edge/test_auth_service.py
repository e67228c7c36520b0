"""The auth service asked over HTTP: what is asked, what each answer means, and how long anything may take."""

from __future__ import annotations

import gzip
import json
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from cryptography import x509
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.tcp import Client
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site
from zope.interface import implementer
from zope.interface.verify import verifyObject

from kraftek import __version__
from kraftek.contract.errors import Code, PeerError
from kraftek.contract.interfaces import IAccessChecker
from kraftek.contract.messages import Grant, Token
from kraftek.contract.settings import Auth
from kraftek.edge.auth_service import MESSAGE_CHARACTERS, HttpChecker
from kraftek.edge.http_client import ANSWER_BYTES
from tests.bus.test_endpoint import Authority
from tests.support.ports import free_port
from tests.support.waiting import until

SECRET = "s3cr3t-t0k3n"
YES = {"success": True, "userId": "ada", "roomId": "r"}
NOW = 1_700_000_000.0


class AuthService(Resource):
    """Answers what the test sets, as it sets it. ``body`` of ``None`` is no answer at all."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.status = 200
        self.body: bytes | None = json.dumps(YES).encode()
        self.headers: dict[str, str] = {}
        self.asked: list[dict[str, Any]] = []
        self.requests: list[Request] = []

    def render(self, request: Request) -> bytes | int:
        self.requests.append(request)
        assert request.content is not None
        self.asked.append(json.loads(request.content.read()))
        request.setResponseCode(self.status)
        for name, value in self.headers.items():
            request.setHeader(name, value)
        return NOT_DONE_YET if self.body is None else self.body

    def answer(self, body: Any, status: int = 200) -> None:
        """What it answers from now on: JSON of anything, or bytes as they are."""
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.status = status


class Counting(Site):
    """A site that knows its connections."""

    noisy = False

    def __init__(self, resource: Resource) -> None:
        super().__init__(resource)
        self.connections: list[Any] = []

    def buildProtocol(self, addr: Any) -> Any:
        channel = super().buildProtocol(addr)
        self.connections.append(channel)
        return channel

    def log(self, request: object) -> None:
        pass


class Rude(Protocol):
    """Answers the first bytes it gets with some of its own, and hangs up if it is told to."""

    def __init__(self, answer: bytes, hangs_up: bool) -> None:
        self.answer = answer
        self.hangs_up = hangs_up
        self.lost: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        answer, self.answer = self.answer, b""
        self.transport.write(answer)
        if self.hangs_up:
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


class CheckerCase(TestCase):
    timeout = 30

    async def listen(self, factory: Any, endpoint: str = "tcp:0:interface=127.0.0.1") -> int:
        port: Any = await serverFromString(reactor, endpoint).listen(factory)
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    async def rude(self, answer: bytes, *, hangs_up: bool = False, tls: str = "") -> tuple[int, list[Rude]]:
        connections: list[Rude] = []

        def connected() -> Rude:
            connections.append(Rude(answer, hangs_up))
            return connections[-1]

        factory = Factory.forProtocol(connected)
        factory.noisy = False
        return await self.listen(factory, tls or "tcp:0:interface=127.0.0.1"), connections

    def checker(self, port: int, scheme: str = "http", host: str = "127.0.0.1", **auth: Any) -> HttpChecker:
        config = Auth(check=f"{scheme}://{host}:{port}", **{"timeout": 5.0, **auth})
        checker = HttpChecker(reactor, config, now=lambda: NOW)
        self.addCleanup(checker.close)
        return checker

    async def refusal(self, checker: HttpChecker, room: str | None = "r") -> PeerError:
        with pytest.raises(PeerError) as caught:
            await checker.check(Token(SECRET), room)
        error = caught.value
        assert SECRET not in f"{error!r}{error}{error.__cause__!r}{error.__context__!r}"
        return error

    async def unavailable(self, checker: HttpChecker, room: str | None = "r") -> None:
        error = await self.refusal(checker, room)
        assert (error.code, error.closes, error.retry_after) == (Code.AUTH_UNAVAILABLE, False, 1.0)
        assert error.message == "access cannot be checked at present"


class AnswersTest(CheckerCase):
    async def setUp(self) -> None:  # type: ignore[override]
        self.service = AuthService()
        self.site = Counting(self.service)
        self.port = await self.listen(self.site)
        self.http = self.checker(self.port)

    async def no(self, message: str, room: str | None = "r", code: Code = Code.AUTH_FAILED) -> None:
        error = await self.refusal(self.http, room)
        assert (error.code, error.message, error.closes) == (code, message, True)

    # What is asked

    async def test_the_question(self) -> None:
        verifyObject(IAccessChecker, self.http)
        await self.http.check(Token(SECRET), "r")
        (request,) = self.service.requests
        assert (request.method, request.path) == (b"POST", b"/auth/check")
        assert self.service.asked == [{"token": SECRET, "roomId": "r"}]
        headers = {name.lower(): values for name, values in request.requestHeaders.getAllRawHeaders()}
        assert headers[b"user-agent"] == [f"kraftek-gateway/{__version__}".encode()]
        assert headers[b"content-type"] == [b"application/json; charset=UTF-8"]
        assert b"accept-encoding" not in headers
        assert b"cookie" not in headers

    async def test_no_room(self) -> None:
        self.service.answer({"success": True, "userId": "ada", "roomId": None})
        assert await self.http.check(Token(SECRET), None) == Grant("ada")
        assert self.service.asked == [{"token": SECRET, "roomId": None}]

    async def test_any_token(self) -> None:
        self.service.answer({"success": True, "userId": "ada"})
        for token in ('quote" and \\', "ünïcödé 𝄞", "nul \x00", ""):
            await self.http.check(Token(token), "r\n")
            assert self.service.asked.pop() == {"token": token, "roomId": "r\n"}

    async def test_half_a_character_is_no_token(self) -> None:
        for token, room in (("\udc80", "r"), ("t", "\udc80")):
            with pytest.raises(PeerError, match="Authentication failed"):
                await self.http.check(Token(token), room)
        assert self.service.asked == []

    async def test_under_a_path(self) -> None:
        for url in (f"http://127.0.0.1:{self.port}/api", f"http://127.0.0.1:{self.port}/api/"):
            checker = HttpChecker(reactor, Auth(check=url))
            self.addCleanup(checker.close)
            await checker.check(Token(SECRET), "r")
            assert self.service.requests[-1].path == b"/api/auth/check"

    async def test_nobody_gets_the_cookies_of_another(self) -> None:
        self.service.headers["Set-Cookie"] = "session=ada; Path=/"
        for _ in range(2):
            await self.http.check(Token(SECRET), "r")
        assert not self.service.requests[-1].requestHeaders.hasHeader("cookie")

    # Yes

    async def test_yes(self) -> None:
        assert await self.http.check(Token(SECRET), "r") == Grant("ada", "r")

    async def test_yes_with_everything(self) -> None:
        self.service.answer(
            {
                **YES,
                "permissions": ["stickyNotes:*:*", "chat:message:send", "*:*:*"],
                "expiresAt": NOW + 60,
                "ttl": 30,
                "more": [{"of": "theirs"}],
            }
        )
        assert await self.http.check(Token(SECRET), "r") == Grant(
            "ada", "r", ("stickyNotes:*:*", "chat:message:send", "*:*:*"), NOW + 60, 30
        )

    async def test_yes_with_nothing_permitted_or_optional(self) -> None:
        self.service.answer({**YES, "permissions": [], "expiresAt": None, "ttl": None})
        assert await self.http.check(Token(SECRET), "r") == Grant("ada", "r", ())

    async def test_yes_that_does_not_repeat_the_room(self) -> None:
        self.service.answer({"success": True, "userId": "ada"})
        assert await self.http.check(Token(SECRET), "r") == Grant("ada", "r")
        self.service.answer({"success": True, "userId": "ada"}, 201)
        assert await self.http.check(Token(SECRET), None) == Grant("ada")

    # No

    async def test_no(self) -> None:
        for status in (200, 400, 401, 403, 404, 422):
            self.service.answer({"success": False, "message": "Token expired"}, status)
            await self.no("Token expired")

    async def test_no_by_its_status_alone(self) -> None:
        for status in (401, 403):
            for body in (b"", b"<html>", b"\xff", b"[]", b'{"success": true, "userId": "ada"}'):
                self.service.answer(body, status)
                await self.no("Authentication failed")

    async def test_no_by_its_status_however_long_it_is(self) -> None:
        self.service.answer(b"<html>" * 100_000, 403)
        await self.no("Authentication failed")

    async def test_a_message_that_is_none(self) -> None:
        for message in (None, 7, {"de": "Nein"}, "", ["no"]):
            self.service.answer({"success": False, "message": message})
            await self.no("Authentication failed")
        self.service.answer({"success": False})
        await self.no("Authentication failed")

    async def test_a_no_may_have_anything_beside_it(self) -> None:
        self.service.answer({"success": False, "message": "No", "userId": 7, "permissions": "none"})
        await self.no("No")

    async def test_a_message_is_bounded(self) -> None:
        self.service.answer({"success": False, "message": "x" * 10_000})
        await self.no("x" * MESSAGE_CHARACTERS)

    async def test_a_message_does_not_tell_the_token(self) -> None:
        for status in (200, 401):
            self.service.answer({"success": False, "message": f"unknown token {SECRET}!"}, status)
            await self.no("Authentication failed")

    async def test_what_has_expired_already_is_a_no(self) -> None:
        for moment in (NOW, NOW - 1000, 0, -1):
            self.service.answer({**YES, "expiresAt": moment})
            await self.no("Access has expired", code=Code.TOKEN_EXPIRED)

    async def test_it_may_say_that_the_token_has_expired(self) -> None:
        for status in (200, 401, 403, 404):
            self.service.answer({"success": False, "message": "jwt expired", "code": "TOKEN_EXPIRED"}, status)
            await self.no("jwt expired", code=Code.TOKEN_EXPIRED)
            for code in ("ACCESS_REVOKED", "", None, 7, ["TOKEN_EXPIRED"]):
                self.service.answer({"success": False, "message": "no", "code": code}, status)
                await self.no("no")

    # Neither

    async def test_statuses(self) -> None:
        for status in (202, 500, 502, 503, 504):
            self.service.answer({"success": "?"}, status)
            await self.unavailable(self.http)
        for status in (408, 429, 500):
            self.service.answer({"success": False, "message": "too many questions"}, status)
            await self.unavailable(self.http)
        for status in (400, 404, 300):
            self.service.answer(YES, status)
            await self.unavailable(self.http)

    async def test_redirects_are_not_followed(self) -> None:
        other = AuthService()
        port = await self.listen(Counting(other))
        self.service.headers["Location"] = f"http://127.0.0.1:{port}/auth/check"
        for status in (301, 302, 303, 307, 308):
            self.service.answer(YES, status)
            await self.unavailable(self.http)
        assert other.asked == []
        assert len(self.service.asked) == 5

    async def test_unreadable_and_lying_answers(self) -> None:
        for body in (
            b"",
            b"\x80<html>It works!</html>",
            b"null",
            b"[]",
            b"true",
            b'{"success": true, "userId": "ada"',
            b'{"success": true, "userId": "ada", "roomId": "r"} and more',
            b'{"success": true, "userId": "\xff"}',
            {},
            {"success": "yes", "userId": {"admin": True}, "roomId": 7},
            {"success": 1, "userId": "ada"},
            {"success": None, "userId": "ada"},
            {"success": True},
            {"success": True, "userId": None},
            {"success": True, "userId": ""},
            {"success": True, "userId": 7},
            {**YES, "roomId": "another"},
            {**YES, "roomId": None},
            {**YES, "roomId": 7},
            {**YES, "permissions": "*:*:*"},
            {**YES, "permissions": {"*:*:*": True}},
            {**YES, "permissions": [7]},
            {**YES, "expiresAt": "tomorrow"},
            {**YES, "expiresAt": True},
            {**YES, "ttl": -1},
            {**YES, "ttl": "long"},
            b'{"success": true, "userId": "ada", "ttl": 1e999}',
            b'{"success": true, "userId": "ada", "expiresAt": NaN}',
        ):
            self.service.answer(body)
            await self.unavailable(self.http)

    async def test_a_room_that_nobody_asked_about(self) -> None:
        self.service.answer({"success": True, "userId": "ada", "roomId": "another"})
        await self.unavailable(self.http, None)

    async def test_malformed_patterns(self) -> None:
        for pattern in (
            "",
            "*",
            "a:b",
            "a:b:c:d",
            "a::c",
            ":b:c",
            "a:b:",
            "a b:c:d",
            "a:b:c\n",
            "a:b*:c",
            "**:b:c",
            "a:b:\x00",
            "x" * 65 + ":b:" + "c" * 65,
        ):
            self.service.answer({**YES, "permissions": ["a:b:c", pattern]})
            await self.unavailable(self.http)

    async def test_too_long(self) -> None:
        for padding, readable in ((ANSWER_BYTES - len(json.dumps(YES)), True), (ANSWER_BYTES, False)):
            self.service.answer(json.dumps(YES).encode() + b" " * padding)
            if readable:
                assert await self.http.check(Token(SECRET), "r") == Grant("ada", "r")
            else:
                await self.unavailable(self.http)

    async def test_compressed(self) -> None:
        """Nobody asked for that, and a little of it can be a lot."""
        self.service.headers["Content-Encoding"] = "gzip"
        for padding in (0, 60_000_000):
            self.service.answer(gzip.compress(json.dumps(YES).encode() + b" " * padding))
            await self.unavailable(self.http)

    # Connections

    async def test_connections_are_used_again(self) -> None:
        for _ in range(3):
            await self.http.check(Token(SECRET), "r")
        assert len(self.site.connections) == 1

    async def test_idle_connections_are_bounded(self) -> None:
        checker = self.checker(self.port, concurrency=3)
        checks = [checker.check(Token(SECRET), "r") for _ in range(20)]
        for check in checks:
            await check
        assert len(self.site.connections) <= 3

    async def test_a_connection_that_the_service_closed_is_no_trouble(self) -> None:
        await self.http.check(Token(SECRET), "r")
        self.site.connections[0]._channel.loseConnection()
        await until(
            lambda: not any(self.http._connections._pools[-1]._connections.values()), "that no connection is kept"
        )
        assert await self.http.check(Token(SECRET), "r") == Grant("ada", "r")
        assert len(self.site.connections) == 2

    # Time

    async def test_no_answer_in_time(self) -> None:
        checker = self.checker(self.port, timeout=1.0)
        self.service.body = None
        waiting = Deferred.fromCoroutine(self.unavailable(checker))
        await until(lambda: self.service.requests, "a request")
        gone = self.service.requests[0].notifyFinish()
        await waiting
        with pytest.raises(ConnectionLost):
            await gone
        self.service.answer(YES)
        assert await checker.check(Token(SECRET), "r") == Grant("ada", "r")

    # What is said about it

    async def test_no_token_is_told_to_anybody(self) -> None:
        echo = json.dumps({"success": SECRET, SECRET: SECRET, "message": SECRET}).encode()
        checkers = [self.checker(self.port) for _ in range(7)]
        with capturedLogs() as logs:
            for checker, (body, status) in zip(
                checkers,
                (
                    (echo, 200),
                    (echo, 401),
                    (echo, 500),
                    (SECRET.encode(), 200),
                    (json.dumps({**YES, "roomId": SECRET}).encode(), 200),
                    (json.dumps({**YES, "permissions": [SECRET]}).encode(), 200),
                    (json.dumps({**YES, "expiresAt": SECRET}).encode(), 200),
                ),
                strict=True,
            ):
                self.service.answer(body, status)
                await self.refusal(checker)
            # The status line itself is the token.
            port, _ = await self.rude(SECRET.encode() + b"\r\n\r\n", hangs_up=True)
            checker = self.checker(port)
            await self.unavailable(checker)
        said = [event for event in logs if "log_format" in event and "could not be asked" in event["log_format"]]
        assert len(said) == 7
        assert SECRET not in repr(logs)
        assert SECRET not in repr([vars(each) for each in (*checkers, checker)])

    async def test_connections_are_not_worth_a_line(self) -> None:
        with capturedLogs() as logs:
            await self.http.check(Token(SECRET), "r")
            await self.http.close()
        assert [event["log_format"] for event in logs if "log_format" in event] == []

    async def test_it_is_said_once_a_minute(self) -> None:
        with capturedLogs() as logs:
            for _ in range(3):
                self.service.answer(b"", 503)
                await self.unavailable(self.http)
        (said,) = [event for event in logs if "could not be asked" in event.get("log_format", "")]
        assert (said["where"], said["reason"]) == ("127.0.0.1", "unreadable answer: status 503")


class RudeServicesTest(CheckerCase):
    async def test_nobody_there(self) -> None:
        with capturedLogs() as logs:
            await self.unavailable(self.checker(free_port()))
        assert [event["reason"] for event in logs if "reason" in event] == ["ConnectionRefusedError"]

    async def test_half_an_answer(self) -> None:
        for answer in (
            b"",
            b"HTTP/1.1",
            b"HTTP/1.1 200 OK\r\nContent-Le",
            b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"success": true, "userId": "ada"}',
            b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n22\r\n{"success": true, "userId": "ada"}',
            b'HTTP/1.0 200 OK\r\n\r\n{"success": true, "userId": "ad',
            b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 500\r\n\r\n{",
        ):
            port, _ = await self.rude(answer, hangs_up=True)
            await self.unavailable(self.checker(port))

    async def test_an_answer_that_ends_with_the_connection(self) -> None:
        port, _ = await self.rude(b'HTTP/1.0 200 OK\r\n\r\n{"success": true, "userId": "ada"}', hangs_up=True)
        assert await self.checker(port).check(Token(SECRET), "r") == Grant("ada", "r")

    async def test_no_http_at_all(self) -> None:
        for answer in (b"+PONG\r\n", b"\x00" * 1000, b"SSH-2.0-OpenSSH_9.2\r\n"):
            port, _ = await self.rude(answer, hangs_up=True)
            await self.unavailable(self.checker(port))

    async def test_an_answer_that_stops_halfway(self) -> None:
        for answer in (
            b"HTTP/1.1 200 OK\r\nContent-Le",
            b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"success": true',
        ):
            port, connections = await self.rude(answer)
            await self.unavailable(self.checker(port, timeout=0.1))
            await connections[0].lost

    async def test_an_answer_that_never_ends_is_cut_off(self) -> None:
        port, connections = await self.rude(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (ANSWER_BYTES + 1))
        await self.unavailable(self.checker(port, timeout=20))
        await connections[0].lost


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")  # Twisted's own TLS server
class TLSTest(CheckerCase):
    def setUp(self) -> None:
        temporary = TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name)
        self.authority = Authority("ours")
        self.ca = self.authority.file(self.directory / "ca.crt")

    def endpoint(self, authority: Authority, *names: x509.GeneralName) -> str:
        authority.issue(self.directory, *names)
        return (
            f"ssl:0:interface=127.0.0.1:certKey={self.directory / 'redis.crt'}"
            f":privateKey={self.directory / 'redis.key'}"
        )

    async def serve(self, authority: Authority, *names: x509.GeneralName) -> tuple[int, AuthService]:
        service = AuthService()
        return await self.listen(Counting(service), self.endpoint(authority, *names)), service

    async def test_verified(self) -> None:
        port, _ = await self.serve(self.authority, x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1")))
        for host in ("localhost", "127.0.0.1"):
            checker = self.checker(port, "https", host, ca=self.ca)
            assert await checker.check(Token(SECRET), "r") == Grant("ada", "r")

    async def test_another_name_is_refused(self) -> None:
        port, service = await self.serve(self.authority, x509.DNSName("elsewhere.example"))
        await self.unavailable(self.checker(port, "https", "localhost", ca=self.ca))
        assert service.asked == []

    async def test_another_authority_is_refused(self) -> None:
        port, service = await self.serve(Authority("somebody's"), x509.DNSName("localhost"))
        await self.unavailable(self.checker(port, "https", "localhost", ca=self.ca))
        await self.unavailable(self.checker(port, "https", "localhost"))
        assert service.asked == []

    async def test_several_authorities_in_one_file(self) -> None:
        port, _ = await self.serve(self.authority, x509.DNSName("localhost"))
        both = self.directory / "both.crt"
        Authority("another").file(both)
        both.write_bytes(both.read_bytes() + Path(self.ca).read_bytes())
        checker = self.checker(port, "https", "localhost", ca=str(both))
        assert await checker.check(Token(SECRET), "r") == Grant("ada", "r")

    async def test_plain_where_tls_is_expected(self) -> None:
        port, _ = await self.rude(b"HTTP/1.1 200 OK\r\n\r\n", hangs_up=True)
        await self.unavailable(self.checker(port, "https", "localhost", ca=self.ca))

    async def test_a_connection_is_closed_without_waiting_for_the_other_side(self) -> None:
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"
        port, connections = await self.rude(answer, tls=self.endpoint(self.authority, x509.DNSName("localhost")))
        waiting = Deferred.fromCoroutine(
            self.unavailable(self.checker(port, "https", "localhost", ca=self.ca, timeout=0.5))
        )
        await until(lambda: connections and not connections[0].answer, "that the answer was written")
        transport: Any = connections[0].transport
        transport.pauseProducing()
        await waiting
        await until(
            lambda: not any(isinstance(reader, Client) for reader in reactor.getReaders()),
            lambda: f"no connection of ours among {reactor.getReaders()}",
        )
        transport.resumeProducing()
        await connections[0].lost


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_authorities_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    ca = tmp_path / "ca.crt"
    if content is not None:
        ca.write_bytes(content)
    with pytest.raises((OSError, ValueError)):
        HttpChecker(Clock(), Auth(ca=str(ca)))


# How many at a time, and how long for all of it


@implementer(IAgent)
class HeldAgent:
    """Holds every request until the test answers it."""

    def __init__(self) -> None:
        self.requests: list[Deferred[IResponse]] = []
        self.cancelled = 0

    def request(
        self, method: bytes, uri: bytes, headers: Headers | None = None, bodyProducer: IBodyProducer | None = None
    ) -> Deferred[IResponse]:
        self.requests.append(Deferred(self._cancel))
        return self.requests[-1]

    def _cancel(self, _: object) -> None:
        self.cancelled += 1


class Outcomes:
    """What checks came to, in the order in which they did."""

    def __init__(self) -> None:
        self.codes: list[tuple[str, Code]] = []

    def follow(self, name: str, check: Deferred[Grant]) -> None:
        check.addErrback(self._failed, name)

    def _failed(self, failure: Failure, name: str) -> None:
        assert isinstance(failure.value, PeerError)
        self.codes.append((name, failure.value.code))


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_so_many_at_a_time_and_so_many_waiting(clock: Clock) -> None:
    agent, outcomes = HeldAgent(), Outcomes()
    checker = HttpChecker(clock, Auth(concurrency=2, waiting=1), agent)
    for name in "abc":
        outcomes.follow(name, checker.check(Token(name), "r"))
    assert len(agent.requests) == 2
    assert outcomes.codes == []
    outcomes.follow("d", checker.check(Token("d"), "r"))
    assert outcomes.codes == [("d", Code.AUTH_UNAVAILABLE)]
    agent.requests[0].errback(ConnectionError())
    assert len(agent.requests) == 3
    outcomes.follow("e", checker.check(Token("e"), "r"))
    assert outcomes.codes == [("d", Code.AUTH_UNAVAILABLE), ("a", Code.AUTH_UNAVAILABLE)]


def test_none_may_wait(clock: Clock) -> None:
    agent, outcomes = HeldAgent(), Outcomes()
    checker = HttpChecker(clock, Auth(concurrency=1, waiting=0), agent)
    outcomes.follow("a", checker.check(Token("a"), "r"))
    outcomes.follow("b", checker.check(Token("b"), "r"))
    assert outcomes.codes == [("b", Code.AUTH_UNAVAILABLE)]


def test_waiting_counts(clock: Clock) -> None:
    agent, outcomes = HeldAgent(), Outcomes()
    checker = HttpChecker(clock, Auth(concurrency=1, timeout=3), agent)
    outcomes.follow("a", checker.check(Token("a"), "r"))
    clock.advance(1)
    outcomes.follow("b", checker.check(Token("b"), "r"))
    clock.advance(1)
    outcomes.follow("c", checker.check(Token("c"), "r"))
    clock.advance(1)
    assert outcomes.codes == [("a", Code.AUTH_UNAVAILABLE)]
    assert (agent.cancelled, len(agent.requests)) == (1, 2)
    clock.advance(1)
    assert outcomes.codes[1:] == [("b", Code.AUTH_UNAVAILABLE)]
    clock.advance(1)
    assert outcomes.codes[2:] == [("c", Code.AUTH_UNAVAILABLE)]
    assert (agent.cancelled, len(agent.requests)) == (3, 3)
    assert clock.getDelayedCalls() == []


def test_who_waited_too_long_is_not_asked_about(clock: Clock) -> None:
    agent, outcomes = HeldAgent(), Outcomes()
    checker = HttpChecker(clock, Auth(concurrency=1, timeout=3), agent)
    outcomes.follow("a", checker.check(Token("a"), "r"))
    outcomes.follow("b", checker.check(Token("b"), "r"))
    clock.advance(3)
    assert len(outcomes.codes) == 2
    assert len(agent.requests) <= 2
    assert checker.waiting == 0
    outcomes.follow("c", checker.check(Token("c"), "r"))
    assert len(agent.requests) == 3


def test_it_is_said_again_after_a_minute(clock: Clock) -> None:
    agent, outcomes = HeldAgent(), Outcomes()
    checker = HttpChecker(clock, Auth(check="http://user:password@auth.example/", timeout=1), agent)
    with capturedLogs() as logs:
        for seconds in (0, 59, 60):
            outcomes.follow("a", checker.check(Token("a"), "r"))
            clock.advance(1)
            clock.advance(seconds)
    assert [event["reason"] for event in logs] == ["TimeoutError", "TimeoutError"]
    assert {event["where"] for event in logs} == {"auth.example"}
    assert "password" not in repr(logs)


def test_a_fault_of_ours_lets_nobody_in(clock: Clock) -> None:
    class Broken(HeldAgent):
        def request(self, *args: Any, **kwargs: Any) -> Deferred[IResponse]:
            return succeed(None)  # type: ignore[arg-type]

    outcomes = Outcomes()
    with capturedLogs() as logs:
        outcomes.follow("a", HttpChecker(clock, Auth(), Broken()).check(Token(SECRET), "r"))
    assert outcomes.codes == [("a", Code.AUTH_UNAVAILABLE)]
    assert SECRET not in repr(logs)
