"""The handshake: what is spoken, who may connect, how many, and that nothing of it is kept."""

from __future__ import annotations

import gc
import types
from collections.abc import Iterator
from resource import RLIMIT_NOFILE, getrlimit
from typing import Any

import pytest
import txaio
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.logger import capturedLogs

from kraftek.config import Limits
from kraftek.dialects.native import SUBPROTOCOL, NativeDialect
from kraftek.messages import Token
from kraftek.session import Session
from tests.websocket.edge import Edge, Peer

TOKEN = "s3cret-t0ken"


# Subprotocols.


def test_a_client_that_offers_nothing_speaks_the_native_dialect() -> None:
    peer = Peer(Edge())
    assert peer.status == 101
    assert "Sec-WebSocket-Protocol" not in peer.response_headers
    assert len(peer.greeting) == 1


def test_a_client_that_offers_the_native_dialect_is_told_that_it_is_spoken() -> None:
    peer = Peer(Edge(), subprotocols=["mqtt", SUBPROTOCOL])
    assert peer.status == 101
    assert peer.response_headers["Sec-WebSocket-Protocol"] == SUBPROTOCOL


def test_a_client_that_offers_others_only_is_told_what_there_is() -> None:
    edge = Edge()
    peer = Peer(edge, subprotocols=["mqtt", "kraftek.v2.json"])
    assert peer.status == 400
    assert peer.response is not None
    assert SUBPROTOCOL in peer.response.reason_phrase
    assert peer.transport.closed == "lost"
    assert edge.counters.connections_refused == 1
    assert len(edge.house.roster) == 0


class OtherDialect(NativeDialect):
    codec = "other"


def test_the_gateway_prefers_and_the_client_gets_its_own_dialect() -> None:
    edge = Edge(dialects={SUBPROTOCOL: NativeDialect, "other": OtherDialect})
    spoken: list[tuple[str | None, object]] = []
    for offered in (["other"], ["other", SUBPROTOCOL], None):
        peer = Peer(edge, subprotocols=offered)
        session = peer.protocol.session
        assert isinstance(session, Session)
        spoken.append((peer.response_headers.get("Sec-WebSocket-Protocol"), session.dialect.codec))
    assert spoken == [("other", "other"), (SUBPROTOCOL, SUBPROTOCOL), (None, SUBPROTOCOL)]


# Credentials.


@pytest.mark.parametrize(
    ("path", "headers", "asked"),
    [
        ("/", {"Authorization": f"Bearer {TOKEN}"}, (TOKEN, None)),
        ("/", {"Authorization": f"bearer   {TOKEN} "}, (TOKEN, None)),
        (f"/?token={TOKEN}", {}, (TOKEN, None)),
        (f"/ws?roomId=a%20%D0%B6&token={TOKEN}&more=1", {}, (TOKEN, "a ж")),
        ("/?token=other&roomId=r", {"Authorization": f"Bearer {TOKEN}"}, (TOKEN, "r")),
        (f"/?token={TOKEN}", {"Authorization": "Basic dTpw"}, (TOKEN, None)),
        (f"/?token={TOKEN}&token=other&roomId=r&roomId=s", {}, (TOKEN, "r")),
        ("/?token=a%2Bb%2F%3D", {}, ("a+b/=", None)),
    ],
)
def test_a_token_may_come_with_the_handshake(path: str, headers: dict[str, str], asked: Any) -> None:
    edge = Edge()
    peer = Peer(edge, path, headers=headers)
    question = edge.house.access.next()
    assert (question.token, question.room_id) == asked
    question.yes("alice")
    assert '"type":"authenticated"' in peer.read()[0]


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {}),
        ("/?token=", {}),
        ("/?token=%20", {}),
        ("/?roomId=r", {}),
        ("/", {"Authorization": "Basic dTpw"}),
        ("/", {"Authorization": "Bearer"}),
        ("/", {"Authorization": "Bearer "}),
    ],
)
def test_a_handshake_without_a_token_asks_nobody(path: str, headers: dict[str, str]) -> None:
    edge = Edge()
    assert Peer(edge, path, headers=headers).status == 101
    assert edge.house.access.questions == []


def test_a_refused_token_of_the_handshake_is_told_over_the_websocket() -> None:
    edge = Edge()
    peer = Peer(edge, f"/?token={TOKEN}")
    edge.house.access.next().no("Invalid token")
    error, close = peer.read()
    assert '"code":"AUTH_FAILED","message":"Invalid token"' in error
    assert close == (4401, "AUTH_FAILED")


def test_a_room_of_the_handshake_is_bounded_like_any_other() -> None:
    edge = Edge()
    assert Peer(edge, f"/?token={TOKEN}&roomId={'r' * 256}").status == 101
    assert Peer(edge, f"/?token={TOKEN}&roomId={'r' * 257}").status == 400
    assert len(edge.house.access.questions) == 1


# Origins. All the rules are in test_origins.


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 101),
        ("http://gateway.test", 101),
        ("https://gateway.test", 101),
        ("http://evil.test", 403),
        ("http://gateway.test:81", 403),
        ("null", 403),
    ],
)
def test_an_origin_is_held_to_the_rules(origin: str | None, status: int) -> None:
    edge = Edge()
    peer = Peer(edge, headers={"Origin": origin} if origin else {})
    assert peer.status == status
    assert edge.counters.connections_refused == (status != 101)
    assert (peer.transport.closed is None) is (status == 101)


def test_origins_may_be_everybody() -> None:
    for origin in ("null", "http://evil.test", "file:///"):
        assert Peer(Edge(origins=["*"]), headers={"Origin": origin}).status == 101


# How many.


def test_connections_of_a_process_are_bounded() -> None:
    edge = Edge(limits=Limits(connections=2))
    peers = [Peer(edge) for _ in range(3)]
    assert [peer.status for peer in peers] == [101, 101, 503]
    assert peers[2].transport.closed == "lost"
    assert edge.counters.connections_refused == 1
    peers[2].lose()
    assert Peer(edge).status == 503
    peers[0].lose()
    assert edge.factory.countConnections == 2


def test_a_connection_that_is_gone_leaves_its_place() -> None:
    edge = Edge(limits=Limits(connections=1))
    for _ in range(5):
        peer = Peer(edge)
        assert peer.status == 101
        peer.lose()
    assert edge.factory.countConnections == 0


def test_far_too_many_are_not_even_told() -> None:
    edge = Edge(limits=Limits(connections=1))
    for _ in range(33):
        edge.accept()
    assert edge.factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 1)) is None
    assert edge.counters.connections_refused == 1


def test_the_bound_is_what_the_open_files_allow_when_none_is_set() -> None:
    assert Edge().factory.max_connections == max(1, getrlimit(RLIMIT_NOFILE)[0] - 64)


def test_connections_of_an_address_are_bounded() -> None:
    edge = Edge(limits=Limits(connections_per_address=2))
    peers = [Peer(edge, address="192.0.2.1") for _ in range(3)]
    assert [peer.status for peer in peers] == [101, 101, 429]
    assert Peer(edge, address="192.0.2.2").status == 101
    peers[2].lose()
    assert Peer(edge, address="192.0.2.1").status == 429
    peers[0].lose()
    assert Peer(edge, address="192.0.2.1").status == 101


def test_nothing_is_kept_of_an_address_that_is_gone() -> None:
    edge = Edge(limits=Limits(connections_per_address=1))
    for number in range(5):
        Peer(edge, address=f"192.0.2.{number}").lose()
    assert not edge.factory._addresses


@pytest.mark.parametrize(
    ("one", "other"),
    [("2001:db8::1", "2001:db8::2"), ("2001:db8::1", "2001:db9::1"), ("::1", "::2"), ("192.0.2.1", "192.0.2.2")],
)
@pytest.mark.parametrize("forwarded", [False, True])
def test_addresses_of_both_kinds_are_told_apart(one: str, other: str, forwarded: bool) -> None:
    edge = Edge(limits=Limits(connections_per_address=1), forwarded_for=int(forwarded))

    def connect(address: str) -> int:
        if forwarded:
            return Peer(edge, headers={"X-Forwarded-For": f"203.0.113.9, {address}"}).status
        return Peer(edge, address=address).status

    assert [connect(one), connect(other), connect(one), connect(other)] == [101, 101, 429, 429]


def test_a_forwarded_address_counts_only_where_proxies_are_trusted() -> None:
    edge = Edge(limits=Limits(connections_per_address=1))
    statuses = [Peer(edge, headers={"X-Forwarded-For": f"192.0.2.{n}"}).status for n in range(2)]
    assert statuses == [101, 429]


def test_a_unix_socket_has_one_address() -> None:
    edge = Edge(limits=Limits(connections_per_address=1))
    protocol, transport = edge.accept(UNIXAddress("/run/kraftek.sock"))
    protocol.dataReceived(Peer(Edge()).request)
    assert transport.value().startswith(b"HTTP/1.1 101 ")


# How long, and how much.


def test_a_handshake_that_does_not_come_is_aborted_in_time() -> None:
    edge = Edge(limits=Limits(handshake_timeout=5.0), started=100.9)
    _, transport = edge.accept()
    edge.clock.advance(4.9)
    assert transport.closed is None
    edge.clock.advance(1.1)
    assert transport.closed == "aborted"
    edge.done()


def test_a_handshake_that_came_is_not() -> None:
    edge = Edge(limits=Limits(handshake_timeout=5.0, authenticate_timeout=1000))
    peer = Peer(edge)
    edge.done()
    edge.clock.advance(100)
    assert peer.transport.closed is None
    peer.lose()
    edge.done()


def test_a_handshake_that_was_given_up_leaves_no_timer() -> None:
    edge = Edge()
    protocol, _ = edge.accept()
    protocol.dataReceived(b"GET / HTTP/1.1\r\n")
    protocol.connectionLost()
    edge.done()
    assert edge.factory.countConnections == 0


@pytest.mark.parametrize("piece", [1, 1000, 100_000])
def test_a_head_without_an_end_is_refused(piece: int) -> None:
    edge = Edge()
    protocol, transport = edge.accept()
    data = b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000
    for at in range(0, len(data), piece):
        if transport.closed is None:
            protocol.dataReceived(data[at : at + piece])
    assert transport.value().startswith(b"HTTP/1.1 431 ")
    assert transport.closed == "lost"
    protocol.connectionLost()
    edge.done()


@pytest.mark.parametrize(("size", "status"), [(15_000, b"101"), (17_000, b"431"), (60_000, b"431")])
def test_a_whole_head_is_bounded_too(size: int, status: bytes) -> None:
    edge = Edge()
    protocol, transport = edge.accept()
    protocol.dataReceived(Peer(edge).request.replace(b"\r\n\r\n", b"\r\nX: " + b"x" * size + b"\r\n\r\n"))
    assert transport.value().split(b" ")[1] == status


# What is wrong with a handshake.


def handshake(**headers: str | None) -> bytes:
    """A handshake's request, with these headers (``_`` for ``-``) in the place of the usual ones."""
    usual: dict[str, str | None] = {
        "Host": "gateway.test",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    for name, value in headers.items():
        usual[name.replace("_", "-")] = value
    lines = [f"{name}: {value}" for name, value in usual.items() if value is not None]
    return "\r\n".join(["GET / HTTP/1.1", *lines, "", ""]).encode()


WRONG = [
    (handshake(Host=None), 400),
    (handshake(Host=f"gateway.test:{TOKEN}"), 400),
    (handshake(Upgrade=f"websocket{TOKEN}"), 400),
    (handshake(Connection=None), 400),
    (handshake(Connection=f"keep-alive, {TOKEN}"), 400),
    (handshake(Sec_WebSocket_Key=None), 400),
    (handshake(Sec_WebSocket_Key=TOKEN), 400),
    (handshake(Sec_WebSocket_Key=f"{TOKEN:.<22}=="), 400),
    (handshake(Sec_WebSocket_Version=None), 400),
    (handshake(Sec_WebSocket_Version="8"), 400),
    (handshake(Sec_WebSocket_Version=TOKEN), 400),
    (handshake(Sec_WebSocket_Protocol=f"{TOKEN}, {TOKEN}"), 400),
    (handshake(Sec_WebSocket_Extensions=f"{TOKEN}; ={TOKEN}"), None),
    (handshake(Origin=f"http://[{TOKEN}"), None),
    (handshake(Origin=TOKEN), None),
    (handshake().replace(b"GET / ", f"GET /?token={TOKEN}#part ".encode()), 400),
    (handshake().replace(b"GET / ", f"GET /?token={TOKEN} more ".encode()), 400),
    (handshake().replace(b"GET / ", f"GET http://[{TOKEN} ".encode()), 400),
    (handshake().replace(b"GET / ", f"{TOKEN} / ".encode()), 405),
    (handshake().replace(b"GET / ", f"POST /?token={TOKEN} ".encode()), 405),
    (handshake().replace(b"HTTP/1.1", b"HTTP/1.0"), 505),
    (handshake().replace(b"HTTP/1.1", f"HTTP/{TOKEN}".encode()), 505),
    (b"\xff\xfe" + handshake(), None),
]


@pytest.mark.parametrize(("request_", "status"), WRONG)
def test_a_malformed_handshake_is_refused_without_repeating_what_was_said(request_: bytes, status: int | None) -> None:
    edge = Edge()
    protocol, transport = edge.accept()
    with capturedLogs() as logged:
        protocol.dataReceived(request_)
    answer = transport.value()
    assert status is None or answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 505 ")) or b" 101 " in answer
    assert TOKEN.encode() not in answer
    assert TOKEN not in repr(logged)
    if b" 101 " not in answer:
        assert transport.closed == "lost"
        assert b"\r\nContent-Length: 0\r\n" in answer
    protocol.connectionLost()
    assert edge.factory.countConnections == 0


def test_another_version_is_told_which_one_there_is() -> None:
    protocol, transport = Edge().accept()
    protocol.dataReceived(handshake(Sec_WebSocket_Version="8"))
    assert b"\r\nSec-WebSocket-Version: 13\r\n" in transport.value()


def test_our_own_fault_in_a_handshake_is_logged_and_told_as_no_more_than_that() -> None:
    edge = Edge()

    class Broken:
        def allow(self, origin: str | None, host: str) -> bool:
            raise RuntimeError("the cause")

    edge.factory.origins = Broken()  # type: ignore[assignment]
    with capturedLogs() as logged:
        peer = Peer(edge)
    assert peer.status == 500
    assert b"the cause" not in b"".join(peer.transport.writes)
    assert [str(event["log_failure"].value) for event in logged] == ["the cause"]


# What is kept.


def texts(*roots: object) -> Iterator[str]:
    """Every text that can be reached from these, through anything but sessions, transports, classes and code."""
    seen: set[int] = set()
    waiting = list(roots)
    strangers = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.FrameType, Session)
    while waiting:
        found = waiting.pop()
        if id(found) in seen or isinstance(found, strangers):
            continue
        seen.add(id(found))
        if isinstance(found, str):
            yield found
        elif isinstance(found, bytes):
            yield found.decode("latin-1")
        else:
            waiting += gc.get_referents(found)


@pytest.mark.parametrize("path", ["/", f"/?token={TOKEN}&roomId=r"])
def test_nothing_of_the_handshake_is_kept(path: str) -> None:
    edge = Edge()
    headers = {"Cookie": "c00kie=1"} if "token" in path else {"Authorization": f"Bearer {TOKEN}", "Cookie": "c00kie=1"}
    peer = Peer(edge, path, headers=headers)
    assert edge.house.access.questions.pop().token == TOKEN
    protocol = peer.protocol
    kept = {name: value for name, value in vars(protocol).items() if name not in {"factory", "transport", "session"}}
    for text in texts(kept):
        assert TOKEN not in text
        assert "c00kie" not in text
        assert "Sec-WebSocket" not in text
    assert protocol.credentials is None
    assert protocol.session is not None
    assert not any(TOKEN in text for text in texts({n: getattr(protocol.session, n) for n in ("rooms", "user_id")}))


@pytest.mark.parametrize("level", ["info", "debug", "trace"])
def test_no_log_shows_a_token_at_any_level(level: str) -> None:
    txaio.set_global_log_level(level)  # type: ignore[attr-defined]
    try:
        with capturedLogs() as logged:
            edge = Edge()
            for path, headers in [
                (f"/?token={TOKEN}", {}),
                ("/", {"Authorization": f"Bearer {TOKEN}"}),
                (f"/?token={TOKEN}", {"Origin": "http://evil.test"}),
                (f"/?token={TOKEN}", {"Sec-WebSocket-Protocol": TOKEN}),
            ]:
                peer = Peer(edge, path, headers=headers)
                if peer.status == 101:
                    peer.send(f'{{"type":"authenticate","payload":{{"token":"{TOKEN}","roomId":5}}}}')
                    peer.send(f'{{"type":"authenticate","payload":{{"token":"{TOKEN}","roomId":"r"}}}}')
                    while edge.house.access.questions:
                        edge.house.access.next().no()
                peer.read()
                peer.lose()
            for request, _ in WRONG:
                protocol, _ = edge.accept()
                protocol.dataReceived(request)
                protocol.connectionLost()
            protocol, _ = edge.accept()
            protocol.dataReceived(f"GET /?token={TOKEN} HTTP/1.1\r\n\r\n".encode())
    finally:
        txaio.set_global_log_level("info")  # type: ignore[attr-defined]
    assert TOKEN not in repr(logged)
    assert Token(TOKEN).digest not in repr(logged)
