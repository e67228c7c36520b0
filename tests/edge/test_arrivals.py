"""How often clients may connect from an address."""

from __future__ import annotations

from twisted.internet.address import IPv4Address

from kraftek.contract.settings import Limits
from tests.edge.test_public_site import Response
from tests.edge.websocket.edge import Edge
from tests.edge.websocket.test_factory import with_engine

HANDSHAKE = (
    "Host: gateway.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


def connect(
    edge: Edge, forwarded: str = "", path: str = "/", peer: str = "10.0.0.1", head: str = HANDSHAKE
) -> Response:
    protocol, transport = edge.accept(IPv4Address("TCP", peer, 1))
    reported = f"X-Forwarded-For: {forwarded}\r\n" if forwarded else ""
    protocol.dataReceived(f"GET {path} HTTP/1.1\r\n{head}{reported}\r\n".encode())
    edge.settle()
    return Response(transport)


def test_an_address_from_which_too_many_come_is_told_when_to_come_again() -> None:
    edge = Edge(limits=Limits(connects_per_address=2, burst=1.0), forwarded_for=1)
    answers = [connect(edge, "192.0.2.1") for _ in range(6)]
    assert [answer.status for answer in answers] == [101] * 3 + [429] * 3
    assert answers[-1].headers["retry-after"] == "1"
    assert answers[-1].body == b"too many clients connect from this address\n"
    assert edge.refused() == {"rate": 3}
    assert connect(edge, "192.0.2.2").status == 101, "another address"
    edge.clock.advance(1.0)
    assert [connect(edge, "192.0.2.1").status for _ in range(4)] == [101, 101, 429, 429]
    edge = Edge(limits=Limits(connects_per_address=2, burst=10.0), forwarded_for=1)
    assert [connect(edge, f"2001:db8::{number}").status for number in range(23)] == [101] * 21 + [429] * 2


def test_an_address_that_all_may_have_is_nobodys() -> None:
    edge = Edge(limits=Limits(connects_per_address=1, burst=1.0))
    assert {connect(edge).status for _ in range(20)} == {101}
    assert [connect(edge, peer="8.8.8.8").status for _ in range(4)] == [101, 101, 429, 429]
    unlimited = Edge(limits=Limits(connects_per_address=0))
    assert {connect(unlimited, peer="8.8.8.8").status for _ in range(20)} == {101}


def test_a_client_of_engine_io_counts_once() -> None:
    edge, clients, _ = with_engine(Limits(connects_per_address=1, burst=1.0))
    polling, websocket = ("/socket.io/?EIO=4&transport=" + name for name in ("polling", "websocket"))
    plain = "Host: gateway.test\r\n"
    answer = connect(edge, path=polling, peer="8.8.8.8", head=plain)
    assert answer.status == 200
    sid = next(iter(clients._by_sid))
    assert connect(edge, path=f"{websocket}&sid={sid}", peer="8.8.8.8").status == 101
    assert connect(edge, path=websocket, peer="8.8.8.8").status == 101
    for path, head in ((polling, plain), (websocket, HANDSHAKE)):
        refused = connect(edge, path=path, peer="8.8.8.8", head=head)
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert refused.body == b'{"code":4,"message":"too many clients connect from this address"}'
    assert edge.refused() == {"rate": 2}
