"""The handshake: what is spoken, who may connect, how many, and that nothing of it is kept."""

from __future__ import annotations

import gc
import json
import types
from collections.abc import Iterator
from typing import Any

import pytest
import txaio
from twisted.internet.address import UNIXAddress
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from zope.interface import implementer

from kraftek.contract.accounts import Accounts
from kraftek.contract.interfaces import IReceiver
from kraftek.contract.iteration import Iteration
from kraftek.contract.messages import Gap, Outgoing, Token
from kraftek.contract.metrics import Counters, RefusalReason
from kraftek.contract.names import SUBPROTOCOL
from kraftek.contract.settings import Limits
from kraftek.contract.turns import Turns
from kraftek.core.session import Session
from kraftek.edge.addresses import Addresses
from kraftek.edge.dialects.native import NativeDialect
from kraftek.edge.engineio.clients import EngineClients
from kraftek.edge.engineio.connection import EngineSettings
from kraftek.edge.engineio.packets import EngineError
from tests.edge.websocket.edge import TOKEN, WRONG, Edge, Peer
from tests.support.backlogs import make_backlogs

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
    assert SUBPROTOCOL in peer.body
    assert peer.transport.closed == "lost"
    assert edge.refused() == {"subprotocol": 1}
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
    assert edge.refused() == ({} if status == 101 else {"origin": 1})
    assert (peer.transport.closed is None) is (status == 101)


def test_origins_may_be_everybody() -> None:
    for origin in ("null", "http://evil.test", "file:///"):
        assert Peer(Edge(origins=["*"]), headers={"Origin": origin}).status == 101


# How many.


def test_a_connection_that_is_gone_leaves_its_place() -> None:
    edge = Edge(limits=Limits(connections=1))
    for _ in range(5):
        peer = Peer(edge)
        assert peer.status == 101
        peer.lose()
    assert edge.connections.count == 0


def test_nobody_is_let_in_any_more_when_the_process_stops() -> None:
    edge, clients, _ = with_engine()
    there = Peer(edge)
    edge.site.turn_away("the gateway stops")
    for path in ("/", "/socket.io/?EIO=4&transport=websocket"):
        refused = Peer(edge, path)
        assert (refused.status, refused.body) == (503, "the gateway stops\n")
    with pytest.raises(EngineError, match="the gateway stops") as polled:
        clients.poll("192.0.2.1", lambda _: None)
    assert polled.value.status == 503
    assert edge.refused() == {"stopping": 2}
    assert clients.counters.connections_refused["stopping"] == 1
    assert there.transport.closed is None


def test_nobody_is_let_in_for_a_while() -> None:
    edge, clients, _ = with_engine()
    edge.site.turn_away("too little memory", RefusalReason.MEMORY)
    refused = Peer(edge)
    assert (refused.status, refused.body) == (503, "too little memory\n")
    with pytest.raises(EngineError, match="too little memory"):
        clients.poll("192.0.2.1", lambda _: None)
    assert (edge.refused(), clients.counters.connections_refused["memory"]) == ({"memory": 1}, 1)
    edge.site.turn_away("", RefusalReason.MEMORY)
    assert Peer(edge).status == 101
    assert clients.poll("192.0.2.1", lambda _: None)
    edge.site.turn_away("the gateway stops")
    edge.site.turn_away("", RefusalReason.MEMORY)
    assert Peer(edge).status == 503


def test_connections_of_an_address_are_bounded() -> None:
    edge = Edge(limits=Limits(connections_per_address=2))
    peers = [Peer(edge, address="192.0.2.1") for _ in range(3)]
    assert [peer.status for peer in peers] == [101, 101, 429]
    assert Peer(edge, address="192.0.2.2").status == 101
    peers[2].lose()
    again = Peer(edge, address="192.0.2.1")
    assert again.status == 429
    again.lose()
    peers[0].lose()
    assert Peer(edge, address="192.0.2.1").status == 101


@pytest.mark.parametrize("forwarded", [False, True])
def test_nothing_is_kept_of_an_address_that_is_gone(forwarded: bool) -> None:
    edge = Edge(limits=Limits(connections_per_address=1), forwarded_for=int(forwarded))
    for number in range(5):
        peer = Peer(edge, address=f"192.0.2.{number}", headers={"X-Forwarded-For": f"192.0.2.{number}"})
        assert len(edge.connections.by_address) == len(edge.factory.clients) == 1
        peer.lose()
    assert len(edge.connections.by_address) == len(edge.factory.clients) == 0


@pytest.mark.parametrize(
    ("one", "other"),
    [("2001:db8::1", "2001:db8:0:1::1"), ("2001:db8::1", "2001:db9::1"), ("192.0.2.1", "192.0.2.2")],
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
    edge.settle()
    assert transport.value().startswith(b"HTTP/1.1 101 ")


# How long.


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
    assert edge.connections.count == 0


# Engine.IO.


@implementer(IReceiver)
class Speaking:
    """What speaks on top of Engine.IO: it notes what it receives."""

    def __init__(self) -> None:
        self.received: list[bytes] = []

    def receive(self, data: bytes, binary: bool = False) -> None:
        self.received.append(data)

    def charge(self, events: int, size: int) -> None:
        pass

    def lost(self) -> None:
        self.received.append(b"lost")

    def overrun(self) -> Outgoing | None:
        return None

    def gap(self, gap: Gap) -> Outgoing | None:
        return None


def with_engine(limits: Limits | None = None) -> tuple[Edge, EngineClients, Speaking]:
    clock, speaking = Clock(), Speaking()
    clock.advance(100.0)
    settings, addresses = EngineSettings(max_payload=100), Addresses(0)
    backlogs = make_backlogs(clock, counters := Counters(), Limits())
    clients = EngineClients(
        clock,
        Iteration(clock),
        counters,
        settings,
        lambda _: speaking,
        addresses,
        5,
        turns=Turns(clock, Accounts()),
        backlogs=backlogs,
    )
    return Edge(engine_clients=clients, limits=limits), clients, speaking


def test_its_path_speaks_engine_io_and_every_other_does_not() -> None:
    edge, _, speaking = with_engine()
    peer = Peer(edge, "/socket.io/?EIO=4&transport=websocket")
    assert peer.status == 101
    assert peer.greeting[0].startswith('0{"sid":')
    peer.send("4hello")
    assert speaking.received == [b"hello"]
    peer.lose()
    assert speaking.received == [b"hello", b"lost"]
    assert json.loads(Peer(edge, "/?EIO=4&transport=websocket").greeting[0])["type"] == "connected"


def test_without_it_no_path_does() -> None:
    assert json.loads(Peer(Edge(), "/socket.io/?EIO=4&transport=websocket").greeting[0])["type"] == "connected"


@pytest.mark.parametrize(
    "query", ["", "?EIO=3&transport=websocket", "?EIO=4&transport=polling", "?EIO=4&transport=websocket&sid=unknown"]
)
def test_a_handshake_that_is_not_for_it_is_refused(query: str) -> None:
    edge, _, _ = with_engine()
    assert Peer(edge, f"/socket.io/{query}").status == 400


def test_it_has_its_own_size_of_messages() -> None:
    edge, _, _ = with_engine()
    peer = Peer(edge, "/socket.io/?EIO=4&transport=websocket")
    peer.send("4" + "x" * 100)
    assert peer.read()[0][0] == 1009
    assert Peer(edge).protocol.message_limit == edge.limits.message_bytes


def test_it_has_its_own_heartbeat() -> None:
    edge, _, _ = with_engine()
    peer = Peer(edge, "/socket.io/?EIO=4&transport=websocket")
    for _ in range(240):
        edge.clock.advance(0.25)
        edge.factory.heartbeat.sweep()
    assert peer.read() == []
    assert peer.transport.closed is None
    peer.lose()


def test_origins_and_bounds_hold_for_it_too() -> None:
    edge, _, _ = with_engine()
    evil = {"Origin": "http://evil.test"}
    assert Peer(edge, "/socket.io/?EIO=4&transport=websocket", headers=evil).status == 403


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
    kept["outbox"] = kept["outbox"]._pending
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
