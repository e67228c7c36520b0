"""Engine.IO clients at the WebSocket edge: an echo on the gateway's own factory."""

from __future__ import annotations

import json
from typing import Any

import pytest
import txaio.tx
from twisted.internet.task import Clock
from websockets.frames import Frame, Opcode

from tests.edge.dialects.servers import SETTINGS, Echo, serve
from tests.edge.websocket.edge import Peer, RecordingTransport

PATH = "/engine.io/?EIO=4&transport=websocket"


class EchoEdge:
    """As ``Edge``, for the echo server."""

    def __init__(self) -> None:
        self.clock = Clock()
        timers: Any = txaio.tx.config
        timers.loop = self.clock
        self.site, self.clients = serve(self.clock, "/engine.io/", Echo)

    def accept(self, peer: Any = None) -> tuple[Any, RecordingTransport]:
        transport = RecordingTransport(peer)
        protocol = self.site.buildProtocol(transport.getPeer())
        transport.connect(protocol)
        return protocol, transport

    def settle(self) -> None:
        self.clock.advance(0)

    def connect(self, path: str = PATH) -> Peer:
        return Peer(self, path)  # type: ignore[arg-type]


@pytest.fixture
def edge() -> EchoEdge:
    return EchoEdge()


def test_it_echoes(edge: EchoEdge) -> None:
    peer = edge.connect()
    assert peer.status == 101
    (handshake,) = peer.greeting
    assert json.loads(handshake[1:])["maxPayload"] == SETTINGS.max_payload
    peer.send("4héllo")
    assert peer.read() == ["4héllo"]
    peer.client.send_binary(b"\0\1")
    peer.flush()
    (frame,) = peer.read()
    assert isinstance(frame, Frame)
    # No empty text before it.
    assert (frame.opcode, bytes(frame.data)) == (Opcode.BINARY, b"\0\1")


def test_messages_may_be_as_large_as_the_handshake_says(edge: EchoEdge) -> None:
    peer = edge.connect()
    largest = "4" + "x" * (SETTINGS.max_payload - 1)
    peer.send(largest)
    assert peer.read() == [largest]
    peer.send(largest + "x")
    assert peer.read()[-1][0] == 1009


@pytest.mark.parametrize(
    "query",
    ["", "EIO=4", "EIO=3&transport=websocket", "EIO=4&transport=polling", "EIO=4&transport=websocket&sid=nobody"],
)
def test_what_is_refused(edge: EchoEdge, query: str) -> None:
    assert edge.connect(f"/engine.io/?{query}").status == 400


def test_the_ping_is_engine_ios_own(edge: EchoEdge) -> None:
    peer = edge.connect()
    edge.site._websockets.heartbeat.sweep()
    edge.clock.advance(SETTINGS.ping_interval)
    edge.clients.sweep()
    edge.site._websockets.heartbeat.sweep()
    assert peer.read() == ["2"]
    edge.clock.advance(SETTINGS.ping_timeout)
    edge.clients.sweep()
    assert peer.read() == [(1000, "")]


def test_a_client_that_leaves_is_forgotten(edge: EchoEdge) -> None:
    peer = edge.connect()
    assert len(edge.clients._by_sid) == 1
    peer.lose()
    assert edge.clients._by_sid == {}


def test_a_close_packet_closes_the_websocket(edge: EchoEdge) -> None:
    peer = edge.connect()
    peer.send("1")
    assert peer.read() == [(1000, "")]
