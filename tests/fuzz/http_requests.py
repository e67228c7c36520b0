"""What may arrive on an HTTP port: the same requests however the network cuts them, one answer each, and an end."""

from __future__ import annotations

import re
from typing import Any

from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock

from kraftek.edge.hosts import Hosts
from kraftek.edge.http_responses import Response
from kraftek.edge.http_server import HttpServer, Request
from tests.edge.websocket.edge import RecordingTransport
from tests.fuzz.material import cut
from tests.fuzz.watch import Target

__all__ = ["TARGET"]

_MAX_BODY = 10
_HEAD_BYTES = 16_384
_STATUSES = {100, 200, 204, 400, 405, 408, 413, 417, 421, 431, 501, 505}
_ANSWER = re.compile(rb"HTTP/1\.1 ([0-9]{3}) [^\r\n]*\r\n(?:[!-9;-~]+: [^\r\n]*\r\n)*\r\n")


class _Successor(Protocol):
    """Takes a connection over."""

    def __init__(self) -> None:
        self.received = b""

    def dataReceived(self, data: bytes) -> None:
        self.received += data


class _Server(HttpServer):
    """Notes each request, and answers it by its path."""

    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(self.clock, Hosts(), head_timeout=5.0, request_timeout=30.0, max_body=_MAX_BODY)
        self.asked: list[Any] = []
        self.held: list[Request] = []
        self.bodies: dict[Request, bytearray] = {}
        self.successor: _Successor | None = None

    def expect(self, request: Request) -> None:
        body = self.bodies[request] = bytearray()
        request.on_chunk = body.extend

    def respond(self, request: Request) -> None:
        body = bytes(self.bodies.pop(request, b""))
        assert len(body) <= _MAX_BODY
        assert len(request.path) <= _HEAD_BYTES
        assert request.path.startswith(b"/")
        self.asked.append((request.method, request.path, request.host_name, request.query, body))
        match request.path:
            case b"/held":
                self.held.append(request)
            case b"/switch":
                self.successor = _Successor()
                rest = request.take_rest()
                request.switch(self.successor)
                self.successor.dataReceived(rest)
            case b"/last":
                request.answer(Response(200, b"last", closes=True))
            case b"/none":
                request.answer(Response(204))
            case _:
                request.answer(Response(200, b"body"))


def _conversation(reads: list[bytes]) -> Any:
    """The requests, the statuses of the answers, what the successor got, and how the connection ended."""
    server = _Server()
    transport = RecordingTransport()
    transport.connect(server.buildProtocol(transport.getPeer()))
    for data in reads:
        transport.protocol.dataReceived(data)
    while server.held:
        server.held.pop(0).answer(Response(200))
    answers = transport.value()
    statuses = [int(status) for status in _ANSWER.findall(answers)]
    told = (server.asked, statuses, server.successor and server.successor.received, transport.closed)
    assert set(statuses) <= _STATUSES
    finals = [status for status in statuses if status != 100]
    assert len(server.asked) - bool(server.successor) <= len(finals) + (transport.closed is not None)
    server.clock.pump(30 * [5.0])
    assert server.successor is not None or transport.closed is not None, "a connection that nothing ends"
    transport.protocol.connectionLost()
    assert server.clock.getDelayedCalls() == []
    return told


def _run(data: bytes) -> None:
    how, data = sum(data[:1]), data[1:]
    whole = _conversation([data] if data else [])
    pieces = cut(data, how if len(data) <= 500 else how or 1)
    other = _conversation(pieces)
    assert other == whole, f"in {len(pieces)} pieces: {other}; whole: {whole}"


_GET = b"GET /a?b=c&b=d HTTP/1.1\r\nHost: a.test\r\n\r\n"
_CHUNKED = b"POST /b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
_SEEDS = [
    bytes((how,)) + text
    for how, text in enumerate(
        (
            _GET + b"HEAD /none HTTP/1.1\r\nHost: b\r\nAccept: */*\r\n\r\n" + _GET,
            b"POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello" + _GET,
            _CHUNKED + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n" + _GET,
            _CHUNKED + b"0\r\nTrailer: x\r\n\r\n" + _GET,
            _CHUNKED + b"b\r\n" + 11 * b"x" + b"\r\n0\r\n\r\n" + _GET,
            b"POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello world" + _GET,
            b"POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc" + _GET,
            b"POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _GET,
            b"POST /b HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc" + _GET,
            b"POST /b HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc" + _GET,
            b"GET /switch HTTP/1.1\r\nHost: a\r\n\r\nwhat it says",
            b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n" + _GET + _GET,
            b"GET /last HTTP/1.1\r\nHost: a\r\n\r\n" + _GET,
            b"GET / HTTP/1.0\r\n\r\n" + _GET,
            b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + _GET,
            b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n" + _GET,
            b"GET http://b.test:81/x HTTP/1.1\r\nHost: a\r\n\r\nGET * HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n" + _GET,
            b"GET /a  HTTP/1.1\r\nHost: a\r\n\r\n" + _GET,
            b"GET /a HTTP/1.1\r\nHost : a\r\n\r\n" + _GET,
            b"GET /a HTTP/1.1\r\nX: y\r\n z\r\n\r\n" + _GET,
            b"GET /a HTTP/1.1\nHost: a\n\n" + _GET,
            b"\r\n\r\n" + _GET,
            b"GET /a HTTP/2.0\r\nHost: a\r\n\r\n" + _GET,
            b"\x16\x03\x01\x02\x00",
            b"GET /" + 200 * b"x" + b" HTTP/1.1\r\n" + 200 * b"A: b\r\n" + b"\r\n",
        )
    )
]

TARGET = Target("http_requests", _run, _SEEDS, calls=(10_000, 100), memory=(1_000_000, 2_000))
