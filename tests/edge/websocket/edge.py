"""The WebSocket edge on transports of strings and a clock, and clients made of an implementation that is not ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import txaio.tx
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from websockets.client import ClientProtocol as WebSocketClient
from websockets.datastructures import Headers
from websockets.extensions import ClientExtensionFactory
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from kraftek.contract.accounts import Accounts
from kraftek.contract.interfaces import IDialect
from kraftek.contract.names import SUBPROTOCOL
from kraftek.contract.settings import EventPolicy, Limits
from kraftek.contract.turns import Turns
from kraftek.edge.addresses import Addresses
from kraftek.edge.connections import Connections
from kraftek.edge.dialects.native import NativeDialect
from kraftek.edge.engineio.clients import EngineClients
from kraftek.edge.engineio.polling import Polling
from kraftek.edge.hosts import Hosts
from kraftek.edge.origins import Origins
from kraftek.edge.proxies import Proxies
from kraftek.edge.public_site import Page, PublicSite
from kraftek.edge.websocket.factory import ClientFactory
from tests.support.backlogs import make_backlogs
from tests.support.fastpath import FASTPATH, make_iteration
from tests.support.world import House

__all__ = ["TOKEN", "WRONG", "Edge", "Peer", "RecordingTransport", "UnreadTransport", "handshake"]

TOKEN = "s3cret-t0ken"


class RecordingTransport(StringTransport):
    """Notes each write by itself, and how it was closed; like a socket, it takes what it is told in any order."""

    def __init__(self, peer: Any = None) -> None:
        super().__init__(peerAddress=peer or IPv4Address("TCP", "127.0.0.1", 50000), lenient=True)
        self.writes: list[bytes] = []
        self.no_delay = False
        self.protocol: Any = None

    def connect(self, protocol: Any) -> None:
        """This is its connection. As on a socket, another protocol may take it over."""
        self.protocol = protocol
        protocol.makeConnection(self)

    def write(self, data: bytes) -> None:
        super().write(data)
        self.writes.append(data)

    def unregisterProducer(self) -> None:
        self.producer = None

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.no_delay = bool(enabled)

    @property
    def closed(self) -> str | None:
        """``lost`` when it was closed in order, ``aborted`` when not."""
        return ("aborted" if self.disconnected else "lost") if self.disconnecting else None


class UnreadTransport(RecordingTransport):
    """The other side reads when a test says so. Like a socket's, it pauses its producer while more than 64 KiB wait."""

    def __init__(self, peer: Any = None) -> None:
        super().__init__(peer)
        self.waiting = 0

    def write(self, data: bytes) -> None:
        super().write(data)
        before, self.waiting = self.waiting, self.waiting + len(data)
        if before <= 65_536 < self.waiting and self.producer is not None:
            self.producer.pauseProducing()

    def be_read(self) -> int:
        """All that waits is read: so many bytes."""
        read, self.waiting = self.waiting, 0
        if read > 65_536 and self.producer is not None:
            self.producer.resumeProducing()
        return read


class Edge:
    """A factory of client protocols in front of a house with nothing real in it; both keep the same time."""

    def __init__(
        self,
        *,
        origins: Sequence[str] = ("same-host",),
        limits: Limits | None = None,
        dialects: Mapping[str, Callable[[], IDialect]] | None = None,
        forwarded_for: int = 0,
        compression: bool = False,
        hosts: Sequence[str] = (),
        engine_clients: EngineClients | None = None,
        files: Mapping[bytes, Page] | None = None,
        fastpath: bool = FASTPATH,
        events: tuple[EventPolicy, ...] = (),
        started: float = 100.0,
    ) -> None:
        self.limits = limits or Limits()
        self.house = House(limits=self.limits)
        self.clock = self.house.clock
        self.clock.advance(started)
        # Autobahn's timers follow this, whatever reactor its factory is given.
        txaio.tx.config.loop = self.clock  # type: ignore[assignment]
        self.counters = self.house.counters
        by_address = Addresses(self.limits.connections_per_address)
        self.connections = Connections(self.clock, self.limits.connections or 1000, by_address, self.counters)
        self.backlogs = make_backlogs(self.clock, self.counters, self.limits, events)
        self.factory = ClientFactory(
            self.clock,
            self.house.gateway.open,
            dialects or {SUBPROTOCOL: NativeDialect},
            limits=self.limits,
            backlogs=self.backlogs,
            connections=self.connections,
            clients=Addresses(self.limits.connections_per_address),
            iteration=make_iteration(self.clock, fastpath),
            turns=Turns(self.clock, Accounts()),
            counters=self.counters,
            compression=compression,
            engine_clients=engine_clients,
            fastpath=fastpath,
        )
        self.site = PublicSite(
            self.clock,
            hosts=Hosts(hosts),
            origins=Origins(origins),
            proxies=Proxies(forwarded_for),
            limits=self.limits,
            counters=self.counters,
            connections=self.connections,
            websockets=self.factory,
            polling=Polling("/socket.io/", engine_clients) if engine_clients is not None else None,
            files=files or {},
        )

    def accept(self, peer: Any = None) -> tuple[Any, RecordingTransport]:
        """A connection is made; nothing has been said on it."""
        transport = RecordingTransport(peer)
        protocol = self.site.buildProtocol(transport.getPeer())
        assert protocol is not None
        transport.connect(protocol)
        return protocol, transport

    def refused(self) -> dict[str, int]:
        """The connections that were refused, by reason."""
        return {reason: number for reason, number in self.counters.connections_refused.items() if number}

    def settle(self) -> None:
        """The reactor's turn ends."""
        self.clock.advance(0)

    def done(self) -> None:
        """Nothing is left to happen."""
        self.settle()
        assert self.clock.getDelayedCalls() == []


class Peer:
    """One client, from its handshake on. ``response`` is what it got for that, ``greeting`` what came with it."""

    def __init__(
        self,
        edge: Edge,
        path: str = "/",
        *,
        subprotocols: Sequence[str] | None = None,
        extensions: Sequence[ClientExtensionFactory] | None = None,
        headers: Mapping[str, str] | None = None,
        host: str = "gateway.test",
        address: str = "127.0.0.1",
    ) -> None:
        self.edge = edge
        kind = IPv6Address if ":" in address else IPv4Address
        _, self.transport = edge.accept(kind("TCP", address, 50000))
        self.client = WebSocketClient(
            parse_uri(f"ws://{host}{path}"),
            extensions=extensions,
            subprotocols=subprotocols,  # type: ignore[arg-type]
        )
        request = self.client.connect()
        for name, value in (headers or {}).items():
            request.headers[name] = value
        self.request = request.serialize()
        self.client.send_request(request)
        self.flush()
        self.response: Response | None = None
        self.greeting = self.read()
        if self.greeting:
            self.response = self.greeting.pop(0)

    @property
    def protocol(self) -> Any:
        """What speaks on its connection: that of HTTP, or, after its handshake, that of WebSocket."""
        return self.transport.protocol

    @property
    def status(self) -> int:
        """The status of the response to the handshake."""
        assert self.response is not None
        return self.response.status_code

    @property
    def body(self) -> str:
        """What a refusal says."""
        assert self.response is not None
        return bytes(self.response.body or b"").decode()

    @property
    def response_headers(self) -> Headers:
        """The headers of that response."""
        assert self.response is not None
        return self.response.headers

    def send(self, text: str) -> None:
        """Send a text message."""
        self.client.send_text(text.encode())
        self.flush()

    def flush(self) -> None:
        """What the client has to say reaches the gateway."""
        for data in self.client.data_to_send():
            if data:
                self.protocol.dataReceived(data)

    def read(self) -> list[Any]:
        """What arrived by the end of the turn: a response, texts as ``str``, binary messages, frames of control."""
        self.edge.settle()
        data = self.transport.value()
        self.transport.clear()
        self.client.receive_data(data)
        read: list[Any] = []
        for event in self.client.events_received():
            if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                read.append(bytes(event.data).decode())
            elif isinstance(event, Frame) and event.opcode is Opcode.CLOSE:
                close = Close.parse(bytes(event.data))
                read.append((close.code, close.reason))
            else:
                read.append(event)
        return read

    def lose(self) -> None:
        """The connection is gone."""
        self.transport.connected = False
        self.protocol.connectionLost(Failure(ConnectionDone()))


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


WRONG: list[tuple[bytes, int | None]] = [
    (handshake(Host=None), 400),
    (handshake(Host=f"gateway.test:{TOKEN}"), 400),
    (handshake(Upgrade=f"websocket{TOKEN}"), 426),
    (handshake(Connection=None), 400),
    (handshake(Connection=f"keep-alive, {TOKEN}"), 400),
    (handshake(Sec_WebSocket_Key=None), 400),
    (handshake(Sec_WebSocket_Key=TOKEN), 400),
    (handshake(Sec_WebSocket_Key=f"{TOKEN:.<22}=="), 400),
    (handshake(Sec_WebSocket_Version=None), 400),
    (handshake(Sec_WebSocket_Version="8"), 426),
    (handshake(Sec_WebSocket_Version=TOKEN), 426),
    (handshake(Sec_WebSocket_Protocol=f"{TOKEN}, {TOKEN}"), 400),
    (handshake(Sec_WebSocket_Extensions=f"{TOKEN}; ={TOKEN}"), 101),
    (handshake(Origin="http://["), 403),
    (handshake(Origin="nowhere"), 403),
    (handshake().replace(b"GET / ", f"GET /?token={TOKEN}#part ".encode()), 400),
    (handshake().replace(b"GET / ", f"GET /?token={TOKEN} more ".encode()), 400),
    (handshake().replace(b"GET / ", f"GET http://[{TOKEN} ".encode()), 400),
    (handshake().replace(b"GET / ", f"{TOKEN} / ".encode()), 405),
    (handshake().replace(b"GET / ", f"POST /?token={TOKEN} ".encode()), 405),
    (handshake().replace(b"HTTP/1.1", b"HTTP/1.0"), 505),
    (handshake().replace(b"HTTP/1.1", f"HTTP/{TOKEN}".encode()), 400),
    (b"\xff\xfe" + handshake(), None),
]
"""Handshakes with something wrong, and the token where it must not be repeated; ``None``: let in or refused."""
