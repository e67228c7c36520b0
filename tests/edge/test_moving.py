"""Connections that pass from one version of the gateway to another, on real sockets: their clients see nothing."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import pytest
from twisted.internet import ssl
from twisted.internet.error import ConnectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure

from kraftek.contract.accounts import Accounts
from kraftek.contract.messages import Outgoing
from kraftek.contract.settings import Limits
from kraftek.contract.turns import Turns
from kraftek.edge.addresses import Addresses
from kraftek.edge.dialects.socketio_client import SocketIOClient
from kraftek.edge.dialects.socketio_packets import SocketSettings
from kraftek.edge.engineio.clients import EngineClients
from kraftek.edge.engineio.connection import EngineSettings
from kraftek.edge.engineio.polling import Polling
from kraftek.edge.moving import EdgeMove
from kraftek.edge.sockets import adopt, plain_transport, unwritten
from kraftek.edge.websocket.moving import decode
from tests.edge.websocket.edge import Edge
from tests.support.backlogs import make_backlogs
from tests.support.fastpath import make_iteration

PACKETS = SocketSettings()
SHAKE = b"GET %b HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


class Reactor:
    """Of a reactor what transports need of it; its time is that of an edge. :meth:`turn` does what there is to do."""

    made: ClassVar[list[Reactor]] = []

    def __init__(self, edge: Edge) -> None:
        self.made.append(self)
        self.clock = edge.clock
        self.seconds, self.callLater = edge.clock.seconds, edge.clock.callLater
        self.all: set[Any] = set()
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()
        self.removeReader = self.readers.discard
        self.addWriter, self.removeWriter = self.writers.add, self.writers.discard

    def addReader(self, reader: Any) -> None:
        self.readers.add(reader)
        self.all.add(reader)

    def turn(self) -> None:
        """Read and write, until nothing happens any more."""
        for _ in range(8):
            for each in [*self.readers]:
                if (why := each.doRead()) is not None:
                    self.removeWriter(each)
                    each.connectionLost(Failure(why))
            for each in [*self.writers]:
                each.doWrite()
            self.clock.advance(0)


class Version:
    """A version of the gateway: its edge and its core, with Socket.IO."""

    def __init__(
        self, *, limits: Limits | None = None, compression: bool = False, before: Version | None = None
    ) -> None:
        started = 100.0 if before is None else before.edge.clock.seconds()
        self.edge: Edge = Edge(limits=limits, compression=compression, started=started)
        edge, house = self.edge, self.edge.house
        self.engine_clients = EngineClients(
            edge.clock,
            make_iteration(edge.clock),
            edge.counters,
            EngineSettings(),
            lambda client: SocketIOClient(client, PACKETS, house.gateway.open),
            Addresses(0),
            1000,
            turns=Turns(edge.clock, Accounts()),
            backlogs=make_backlogs(edge.clock, edge.counters, edge.limits),
        )
        edge.factory._engine_clients = self.engine_clients
        edge.site._polling = Polling("/socket.io/", self.engine_clients)
        self.reactor = Reactor(edge)
        edge.factory.reactor = self.reactor

        def speaks(client: Any, moved: tuple[bytes, Any]) -> SocketIOClient:
            return SocketIOClient(client, PACKETS, house.gateway.open, moved)

        self.move = EdgeMove(edge.factory, self.engine_clients, speaks)

    def accept(self, descriptor: int) -> None:
        """A client connects."""
        protocol = self.edge.site.buildProtocol(None)
        protocol.makeConnection(adopt(self.reactor, descriptor, protocol))

    def hand_over(self, to: Version) -> None:
        """Everything is frozen and given, and the other version goes on."""
        roster, core = self.edge.house.roster, self.edge.house.move
        self.move.freezes(True)
        links: list[Any] = [self.move.movable(session.link) for session in roster]
        assert all(link.freeze() for link in links)
        given = [(*link.give(), core.give_session(session)) for link, session in zip(links, roster, strict=True)]
        rest = core.give()
        thawed = []
        for descriptor, connection, session in given:
            copy = socket.dup(descriptor)
            thawed.append(to.move.restore(copy, connection, partial(to.edge.house.move.take_session, session)))
        to.edge.house.move.take(rest)
        for link in thawed:
            link.thaw()
        to.reactor.turn()


class Person:
    """A client, on a socket that blocks for a moment at most."""

    def __init__(
        self, version: Version, path: bytes = b"/", more: bytes = b"", *wrappers: Callable[[Any], Any]
    ) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.socket = socket.create_connection(listener.getsockname())
        self.socket.settimeout(1.0)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted, _ = listener.accept()
        listener.close()
        self.version = version
        version.accept(accepted.detach())
        self.socket.sendall(SHAKE % path + KEY + more + b"\r\n")
        version.reactor.turn()
        self._data = b""
        while b"\r\n\r\n" not in self._data:
            self._data += self.socket.recv(65536)
        self.head, _, self._data = self._data.partition(b"\r\n\r\n")

    def send(self, text: str, *, opcode: int = 0x81) -> None:
        """Send a message in one frame."""
        self.send_raw(frame(text.encode(), opcode))

    def send_raw(self, data: bytes) -> None:
        self.socket.sendall(data)
        self.version.reactor.turn()

    def read(self) -> tuple[int, bytes]:
        """The next frame: its first byte, and its payload."""
        head = self._exactly(2)
        size = head[1]
        if size == 126:
            size = int.from_bytes(self._exactly(2), "big")
        elif size == 127:
            size = int.from_bytes(self._exactly(8), "big")
        return head[0], self._exactly(size)

    def told(self) -> Any:
        """The next message."""
        opcode, payload = self.read()
        assert opcode == 0x81
        return json.loads(payload)

    def _exactly(self, size: int) -> bytes:
        while len(self._data) < size:
            self.version.reactor.turn()
            self._data += self.socket.recv(65536)
        data, self._data = self._data[:size], self._data[size:]
        return data


def frame(payload: bytes, opcode: int = 0x81) -> bytes:
    assert len(payload) < 126
    return bytes((opcode, 0x80 | len(payload))) + b"\0\0\0\0" + payload


@pytest.fixture
def people() -> Iterator[Callable[..., Person]]:
    made: list[Person] = []

    def person(*arguments: Any) -> Person:
        made.append(Person(*arguments))
        return made[-1]

    yield person
    for each in made:
        each.socket.close()
    for reactor in Reactor.made:
        for transport in reactor.all:
            if hasattr(transport, "socket"):  # otherwise it was closed
                transport.socket.close()
    Reactor.made.clear()


def test_a_client_goes_on_where_it_was(people: Callable[..., Person]) -> None:
    old = Version()
    ann = people(old)
    assert ann.told()["type"] == "connected"
    new = Version(before=old)
    old.hand_over(new)
    ann.version = new
    ann.send('{"type":"ping","id":1}')
    assert ann.told() == {"type": "pong", "id": 1, "payload": None}
    assert new.edge.connections.count == 1
    assert len(new.edge.house.roster) == 1
    ann.send("x" * 3)
    assert ann.told()["payload"]["code"] == "INVALID_MESSAGE"
    ann.socket.close()
    new.reactor.turn()
    assert len(new.edge.house.roster) == 0
    assert new.edge.connections.count == 0


@pytest.mark.parametrize("cut", [1, 2, 5, 6, 17, 27])
def test_what_has_arrived_of_a_message_is_not_lost(people: Callable[..., Person], cut: int) -> None:
    """Whole messages behind it, half a head of a frame."""
    old, new = Version(), None
    ann = people(old)
    ann.told()
    data = frame(b'{"type":"ping","id":1}')
    assert len(data) == 28
    for link in [old.move.movable(session.link) for session in old.edge.house.roster]:
        assert link is not None
        ann.send_raw(data[:cut])
        if not link.freeze():
            ann.send_raw(data[cut:])
            data, cut = data + data, len(data)
            ann.told()
    new = Version(before=old)
    old.hand_over(new)
    ann.version = new
    ann.send_raw(data[cut:])
    assert ann.told()["id"] == 1


def test_messages_that_were_read_and_not_handled_are_handled_by_the_other(people: Callable[..., Person]) -> None:
    old = Version()
    ann = people(old)
    ann.told()
    link = old.move.movable(next(iter(old.edge.house.roster)).link)
    assert link is not None
    ann.send_raw(frame(b'{"type":', 0x01))
    old.move.freezes(True)
    assert not link.freeze()
    ann.send_raw(frame(b'"ping"}', 0x80) + frame(b'{"type":"ping","id":2}') + frame(b'{"type":"ping","id":3}')[:9])
    assert link.freeze()
    assert ann.told()["type"] == "pong"
    new = Version(before=old)
    old.hand_over(new)
    ann.version = new
    assert ann.told()["id"] == 2
    ann.send_raw(frame(b'{"type":"ping","id":3}')[9:])
    assert ann.told()["id"] == 3


def test_what_waits_for_a_client_that_does_not_read_is_sent_by_the_other(people: Callable[..., Person]) -> None:
    old = Version(limits=Limits(unsent_bytes=64_000_000))
    ann = people(old)
    ann.told()
    link = next(iter(old.edge.house.roster)).link
    for number in range(100):
        link.write(Outgoing(b'{"number":%d,"text":"%b"}' % (number, b"x" * 300_000)))
        old.reactor.turn()
    new = Version(limits=old.edge.limits, before=old)
    old.hand_over(new)
    ann.version = new
    new_link = next(iter(new.edge.house.roster)).link
    new_link.write(Outgoing(b'{"number":100}'))
    assert [ann.told()["number"] for _ in range(101)] == [*range(101)]


def test_compression_goes_on(people: Callable[..., Person]) -> None:
    old = Version(compression=True)
    ann = people(old, b"/", b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=10\r\n")
    assert b"server_max_window_bits=10" in ann.head
    ann.told()
    new = Version(compression=True, before=old)
    old.hand_over(new)
    ann.version = new
    ann.send_raw(b"\xc1\x87\0\0\0\0\xaaV*\xa9,HU\x02\x00"[:2] + b"\0\0\0\0" + b"\xabV*\xa9,H")
    next(iter(new.edge.house.roster)).link.write(Outgoing(b"x" * 1000))
    new.reactor.turn()
    assert ann.read()[0] in (0xC1, 0x88)


def test_a_socketio_client_goes_on_where_it_was(people: Callable[..., Person]) -> None:
    old = Version()
    sue = people(old, b"/socket.io/?EIO=4&transport=websocket")
    assert sue.read()[1].startswith(b'0{"sid":')
    sue.send("40")
    assert sue.read()[1].startswith(b'40{"sid":')
    sue.send('451-7["chat:a:b",{"_placeholder":true,"num":0}]')
    old.edge.clock.advance(25.0)
    old.engine_clients.sweep()
    assert sue.read()[1] == b"2"
    new = Version(before=old)
    old.hand_over(new)
    sue.version = new
    sue.send("\1\2", opcode=0x82)
    assert sue.read()[1].startswith(b'437[{"error":{"code":"NOT_AUTHENTICATED"')
    new.edge.clock.advance(21.0)
    new.engine_clients.sweep()
    sue.send("3")
    new.edge.clock.advance(10.0)
    new.engine_clients.sweep()
    sue.send('428["chat:a:b"]')
    assert sue.read()[1].startswith(b'438[{"error":')
    sue.send("41")
    sue.send("40")
    assert sue.read()[1].startswith(b'40{"sid":')


def test_there_may_be_no_socketio_any_more(people: Callable[..., Person]) -> None:
    old = Version()
    people(old, b"/socket.io/?EIO=4&transport=websocket")
    new = Version(before=old)
    new.move._speaks = None
    with pytest.raises(ValueError, match="is off"):
        old.hand_over(new)


def test_a_client_that_has_just_reset_is_lost_as_always(people: Callable[..., Person]) -> None:
    old = Version()
    ann = people(old)
    new = Version(before=old)
    ann.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    ann.socket.close()
    old.hand_over(new)
    new.reactor.turn()
    assert len(new.edge.house.roster) == 0


def test_it_can_be_called_off(people: Callable[..., Person]) -> None:
    old = Version()
    ann, sue = people(old), people(old, b"/socket.io/?EIO=4&transport=websocket")
    ann.told()
    sue.read()
    links: list[Any] = [old.move.movable(session.link) for session in old.edge.house.roster]
    old.move.freezes(True)
    assert all(link.freeze() for link in links)
    ann.send_raw(frame(b'{"type":"ping","id":1}'))
    assert all(link.give() for link in links)
    old.move.freezes(False)
    for link in links:
        link.thaw()
    assert ann.told()["id"] == 1
    sue.send("40")
    assert sue.read()[1].startswith(b'40{"sid":')


def test_a_connection_that_is_being_closed_is_not_handed_over(people: Callable[..., Person]) -> None:
    old = Version()
    people(old)
    session = next(iter(old.edge.house.roster))
    link: Any = session.link
    session.close(1012, "")
    assert not link.movable
    assert link.freeze()
    link.thaw()


def test_the_socket_is_below_what_reads_a_proxys_header_and_not_below_tls() -> None:
    version = Version()
    ours, theirs = socket.socketpair()
    wrapped = WrappingFactory(version.edge.site)
    wrapped.protocol = ProtocolWrapper
    protocol = wrapped.buildProtocol(None)
    transport: Any = adopt(version.reactor, ours.detach(), protocol)
    protocol.makeConnection(transport)
    assert [plain_transport(protocol), plain_transport(transport)] == [transport, transport]
    tls: Any = TLSMemoryBIOFactory(ssl.CertificateOptions(), False, version.edge.site)
    secured = tls.buildProtocol(None)
    transport.unregisterProducer()
    secured.makeConnection(transport)
    assert plain_transport(secured) is None
    transport.unregisterProducer()
    secured.connectionLost(Failure(ConnectionDone()))
    assert plain_transport(object()) is None
    transport.write(b"a")
    transport.write(b"b")
    assert unwritten(transport).endswith(b"ab")
    theirs.close()
    transport.socket.close()


def test_what_is_not_said_is_as_it_always_was() -> None:
    assert decode(b"\x81\xa4peer\xa4ann1").unsent == []
