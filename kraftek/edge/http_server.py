"""HTTP/1.1 as our ports speak it: Twisted's parser, with bounds, deadlines and answers of our own.

It reads every request of a connection, and nobody else reads any: a WebSocket handshake is a request like the others,
which :meth:`Request.switch` ends. The base of the clients' port, :mod:`kraftek.edge.public_site`, and of that of the
operator, :mod:`kraftek.daemon.operator`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cached_property
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs

from twisted.internet.interfaces import IProtocol, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http
from twisted.web.http import HTTPChannel, HTTPFactory, datetimeToString

from kraftek.contract.turns import Turns
from kraftek.edge.hosts import Hosts
from kraftek.edge.http_body import CHUNK, Rest
from kraftek.edge.http_deadlines import Deadlines
from kraftek.edge.http_responses import Response, end_writing, printable

__all__ = ["SERVER", "HttpChannel", "HttpServer", "Request"]

SERVER = "kraftek-gateway"
"""The ``Server`` header, without a version, which would only help attackers."""

_HEAD_BYTES = 16_384
"""Request line and headers at most; Node's and nginx's limits are of the same size."""

_IDLE = 75.0
"""Seconds between two requests of a connection. A proxy must be the first to give up one that it keeps, or it loses
requests on it; nginx keeps them for 60."""

_LINGER = 10.0
"""Seconds for the other side to read the last answer."""

_READING = 30.0
"""Seconds for the other side to read some more of a large answer. Who waits for that has a bound of its own."""

_STEP = 8
"""Requests of a connection that are answered in one step: 64 KiB of small ones take 100 ms."""

_LINES = 512
"""Bytes of a head that count as one request more: as lines of a few bytes they take 0.2 ms."""

_PIECE = 1024
"""Bytes of a chunked body that are decoded in one step: as chunks of a byte they take 0.6 ms."""

_FIELDS = 100
"""Of a query. Clients send four, and those of their authors; the 8,000 of the longest one took 30 ms."""

_ABSOLUTE = re.compile(rb"(?i:(?:http|ws)s?)://([^/?]*)(.*)", re.DOTALL)
"""A target in absolute form (RFC 9112, section 3.2.2)."""


class Request(http.Request):
    """A request. ``path`` is without the query, and ``host`` what it was addressed to.

    ``on_chunk`` takes its body, piece by piece, and ``on_body`` is called at the end of it, for whoever asked for that
    when its head was there. Otherwise the body is read, up to its bound, and nothing of it is kept. ``unwritten``:
    bytes of its answer that the other side has yet to make room for; ``on_progress`` is called when they have become
    fewer.
    """

    channel: Any
    content: Any = None
    path = b""
    host_name = ""
    on_chunk: Callable[[bytes], None] | None = None
    on_body: Callable[[], None] | None = None
    on_progress: Callable[[], None] | None = None
    unwritten = 0
    clientproto = b"HTTP/1.1"
    _log = Logger()
    _refused = False
    _switched = False
    _raw_query = b""
    _size = 0

    # What was asked.

    def header(self, name: str) -> str | None:
        """The lines of this header, with commas between; ``None`` without one."""
        lines = self.requestHeaders.getRawHeaders(name.encode())
        return None if lines is None else ", ".join(line.decode("latin-1") for line in lines)

    def lines(self, name: str) -> list[str]:
        """The lines of this header."""
        return [line.decode("latin-1") for line in self.requestHeaders.getRawHeaders(name.encode(), [])]

    def tokens(self, name: str) -> list[str]:
        """The members of a header that is a list."""
        members = (self.header(name) or "").split(",")
        return [member for each in members if (member := each.strip(" \t"))]

    @cached_property
    def query(self) -> dict[str, str]:
        """The first value of each field of the query."""
        fields = parse_qs(self._raw_query.decode("latin-1"), keep_blank_values=True, errors="replace")
        return {name: values[0] for name, values in fields.items()}

    # What it is answered.

    def answer(self, response: Response) -> None:
        """Answer it, once and whole."""
        if response.closes:
            self.channel.persistent = False
        self._write(response)
        if len(response.body) > CHUNK:
            Rest(self, response.body)
        else:
            self.finish()

    def progressed(self) -> None:
        """Some of the answer was written, or all of it."""
        if self.unwritten:
            self.channel.await_reader()
        if self.on_progress is not None:
            self.on_progress()

    def refuse(self, response: Response) -> None:
        """Answer before the whole request has arrived, and close: the rest is not read."""
        self._refused = True
        self.host_name = self.header("host") or ""
        self.requestHeaders.removeHeader(b"Expect")
        self._write(response)
        self.channel.loseConnection()

    def abort(self) -> None:
        """Drop what is not written of its answer, and the connection."""
        self.channel.transport.abortConnection()

    def take_rest(self) -> bytes:
        """What has arrived behind this request already. It is not read any more."""
        rest: bytes = self.channel.clearLineBuffer()
        return rest

    def switch(self, successor: IProtocol) -> None:
        """Give the connection to ``successor``, which begins with the answer to this request."""
        self._switched = True
        self.channel.hand_over(successor)

    def _write(self, response: Response) -> None:
        self.setResponseCode(response.status, HTTPStatus(response.status).phrase.encode())
        for name, value in (*self.channel.factory.headers(self), *response.headers):
            self.setHeader(name, value)
        if response.body:
            self.setHeader(b"Content-Type", response.content_type)
        if response.status not in http.NO_BODY_CODES:
            self.setHeader(b"Content-Length", b"%d" % len(response.body))
        if response.closes or self._refused:
            self.setHeader(b"Connection", b"close")
        self.write(response.body[:CHUNK])

    # What Twisted's parser calls.

    def gotLength(self, length: int | None) -> None:
        # Twisted's own would keep the body, and write one of 100 kB to a file and wait for the disk.
        server = self.channel.factory
        refusal = None
        if length != 0:
            # Twisted does not pass on the request line until the body has arrived, which may take long.
            self.method = self.channel._command  # noqa: SLF001
            refusal = self._read_target(self.channel._path)  # noqa: SLF001
        refusal = refusal or server.refuse_head(self)
        if refusal is None and length != 0:
            refusal = server.refuse_body(self) or server.refuse_size(self, length or 0)
        if refusal is not None:
            self.refuse(refusal)
        elif length != 0:
            server.expect(self)

    def handleContentChunk(self, data: bytes) -> None:
        if not self._refused:
            self._size += len(data)
            refusal = self.channel.factory.refuse_size(self, self._size)
            if refusal is not None:
                self.refuse(refusal)
            elif self.on_chunk is not None:
                self.on_chunk(data)

    def parseCookies(self) -> None:
        # Nobody reads them, and Twisted's own takes 4 ms for 16 kB.
        pass

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        if self._refused:
            return
        refusal = self._read_target(path)
        if refusal is not None:
            self.refuse(refusal)
            return
        # Twisted's own would parse the body of a form, a second for 1 MB, and keep the query where it logs it.
        self.method, self.clientproto = command, version
        self.process()

    def _read_target(self, target: bytes) -> Response | None:
        """The refusal of what cannot be one."""
        if b"#" in target:
            return Response(400, b"expected a target without a fragment\n")
        self.host_name = self.header("host") or ""
        if found := _ABSOLUTE.fullmatch(target):
            self.host_name, target = found[1].decode("latin-1"), found[2]
        path, _, self._raw_query = target.partition(b"?")
        self.uri = self.path = path or b"/"
        if self._raw_query.count(b"&") >= _FIELDS:
            return Response(400, b"expected a query of at most %d fields\n" % _FIELDS)
        return None

    def process(self) -> None:
        channel = self.channel
        try:
            channel.factory.process(self)
        except Exception:  # noqa: BLE001  # Twisted would unwind its parser
            self._log.failure("A request failed")
            if self._switched or self.startedWriting:
                channel.transport.abortConnection()
            else:
                self.answer(Response(500, b"internal error\n", closes=True))


class HttpChannel(HTTPChannel):
    """A connection: its requests one after the other, each with its deadline.

    What still arrives when it closes is dropped until the other side has read its last answer. ``missed`` is called
    with it when its ``deadline`` has passed. ``counted_as``: the address that it counts for at present, if for any.
    """

    factory: Any
    transport: Any
    requestFactory: Any = Request
    persistent = True
    counted_as: str | None = None
    # We count line ends, too.
    totalHeadersSize = _HEAD_BYTES
    MAX_LENGTH = _HEAD_BYTES

    deadline = 0.0
    missed: Any = None
    _done = 0
    _head = 0
    rests = False
    _closing = False

    def connectionMade(self) -> None:
        super().connectionMade()
        self._within(self.factory.head_timeout, HttpChannel._late)

    def dataReceived(self, data: bytes) -> None:
        if not self._busyReceiving:
            self._done = 0
        if self.rests:
            self.rests = False
            self._within(self.factory.head_timeout, HttpChannel._late)
        super().dataReceived(data)

    def lineReceived(self, line: bytes) -> None:
        self._head += len(line) + 2
        if self._head > _HEAD_BYTES:
            self.lineLengthExceeded(line)
        elif line[:1] in (b" ", b"\t"):
            # RFC 9112, section 5.2. Twisted's own joins the lines one by one, 8 ms for 16 kB.
            self._refuse(400, b"expected no folded header\n")
        else:
            super().lineReceived(line)

    def rawDataReceived(self, data: bytes) -> None:
        if self._handlingRequest:
            # As Twisted's own does since 23.10, without which it has nothing to decode it with.
            self._dataBuffer.append(data)
            if sum(map(len, self._dataBuffer)) > self._optimisticEagerReadSize and not self._waitingForTransport:
                self._networkProducer.pauseProducing()
            return
        if self.length is not None:
            super().rawDataReceived(data)
            return
        # Twisted would decode all chunks of a read at once.
        super().rawDataReceived(data[:_PIECE])
        if not self._closing:
            self._buffer += data[_PIECE:]
            self._done += _STEP
            self._rest_in_turns()

    def _finishRequestBody(self, data: bytes) -> None:  # noqa: N802  # Twisted's name
        # Twisted's own, before 24.7, keeps what stands behind the body only after it was answered.
        self._dataBuffer.append(data)
        self.allContentReceived()

    def headerReceived(self, line: bytes) -> bool:
        try:
            return super().headerReceived(line)  # type: ignore[no-any-return]
        except ValueError:  # a Content-Length with more digits than ``int`` reads
            self._refuse(400, b"malformed header\n")
            return False

    def lineLengthExceeded(self, line: bytes) -> None:
        self._refuse(431, b"request head too large\n")

    def allHeadersReceived(self) -> None:
        self.rests = False
        super().allHeadersReceived()
        if self.length != 0 and not self._closing:
            self._within(self.factory.request_timeout, HttpChannel._late)

    def allContentReceived(self) -> None:
        self._done += 1 + self._head // _LINES
        self._head = 0
        if not self._closing:
            self._in_time()
        super().allContentReceived()

    def requestDone(self, request: Request) -> None:
        self.factory.answered(self)
        if self.persistent:
            self.rests = True
            self._within(_IDLE, HttpChannel.loseConnection)
        if self._dataBuffer:
            self._dataBuffer.append(self.clearLineBuffer())  # it came later
        super().requestDone(request)
        self._rest_in_turns()

    def _rest_in_turns(self) -> None:
        """What else has arrived is handled in another step, if this one is long enough."""
        turns = self.factory.turns
        if turns is None or self._handlingRequest or self._closing:
            return
        if self._done >= _STEP and self._buffer:
            self.paused = True
            self.transport.pauseProducing()
            turns.add(self)

    # What the turns call.

    def step(self) -> bool:
        """Go on with what arrived behind that which is handled."""
        if self.paused and not self._waitingForTransport and not self._closing:
            self.resumeProducing()
        return False

    def rest(self) -> None:
        """What it sends next is another read."""

    def failed(self) -> None:
        """A step raised an exception."""
        self._abort()

    # Twisted stops reading, but goes on with what it has read: 64 KiB of requests are 40 MB of files. In the middle of
    # an answer it does not even stop reading.

    def pauseProducing(self) -> None:
        super().pauseProducing()
        self.paused = True
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        self.paused = False
        self._done = 0
        self.transport.resumeProducing()
        super().resumeProducing()
        if self._closing:
            return
        if self.paused:
            self.transport.pauseProducing()  # the rest of an answer, or the next ones, were too much again
        elif self._buffer:
            self.dataReceived(b"")

    def loseConnection(self) -> None:
        if self._closing:
            return
        self._closing = True
        self.clearLineBuffer()
        self.dataReceived = _dropped  # type: ignore[method-assign]
        self._within(_LINGER, HttpChannel._abort)
        self.transport.unregisterProducer()
        self.transport.resumeProducing()
        end_writing(self.transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._in_time()
        if self.factory.turns is not None:
            self.factory.turns.remove(self)
        self.factory.lost(self)
        super().connectionLost(reason)

    def hand_over(self, successor: Any) -> None:
        """The rest of this connection is not HTTP."""
        self._in_time()
        self.requests.clear()
        transport = self.transport
        transport.unregisterProducer()
        self.dataReceived = successor.dataReceived  # type: ignore[method-assign]
        self.connectionLost = successor.connectionLost  # type: ignore[method-assign]
        # TCP's and TLS's transports then forget this channel, which would live for as long as the connection.
        for name in ("protocol", "wrappedProtocol"):
            if getattr(transport, name, None) is self:
                setattr(transport, name, successor)
        successor.makeConnection(transport)

    def await_reader(self) -> None:
        """The other side has to read some of an answer."""
        self._within(_READING, HttpChannel._abort)

    def _within(self, seconds: float, missed: Callable[[HttpChannel], None]) -> None:
        self.factory.deadlines.add(self, seconds)
        self.missed = missed

    def _in_time(self) -> None:
        self.factory.deadlines.remove(self)

    def _abort(self) -> None:
        self.transport.abortConnection()

    def _late(self) -> None:
        if self.requests:
            self._refuse(408, b"the request took too long\n")
        else:
            self.transport.abortConnection()

    def _respondToBadRequestAndDisconnect(self) -> None:  # noqa: N802  # Twisted's name
        # Twisted's answer to what it cannot parse. What stands behind a request that was refused is no request.
        if not self._closing:
            super()._respondToBadRequestAndDisconnect()

    def _refuse(self, status: int, why: bytes) -> None:
        request = self.requests[-1] if self.requests else Request(self)
        request.refuse(Response(status, why))


def _dropped(data: bytes) -> None:
    pass


class HttpServer(HTTPFactory):
    """What listens on a port. Times in seconds, sizes in bytes.

    ``head_timeout``: for request line and headers; ``request_timeout``: for the body. ``max_body``: of a request.
    ``hosts``: the names it may be addressed by. ``turns``: where connections wait that send many requests at a time.
    """

    protocol = HttpChannel  # type: ignore[assignment]
    noisy = False
    turns: Turns | None = None

    def __init__(
        self, reactor: IReactorTime, hosts: Hosts, *, head_timeout: float, request_timeout: float, max_body: int = 0
    ) -> None:
        super().__init__(timeout=None, reactor=reactor)  # type: ignore[arg-type]
        self.deadlines = Deadlines(reactor)
        self.head_timeout = head_timeout
        self.request_timeout = request_timeout
        self.max_body = max_body
        self.hosts = hosts

    def respond(self, request: Request) -> None:
        """Answer this request, now or later."""
        raise NotImplementedError

    def headers(self, request: Request) -> Iterator[tuple[bytes, bytes]]:
        """What every answer to this request has."""
        yield b"Server", SERVER.encode()
        yield b"Date", datetimeToString()

    def refuse_head(self, request: Request) -> Response | None:
        """The refusal of a request whose head has arrived, ``None`` when it may go on."""
        return None

    def refuse_body(self, request: Request) -> Response | None:
        """The refusal of a request that has a body, ``None`` when it may have one."""
        return None

    def refuse_size(self, request: Request, size: int) -> Response | None:
        """The refusal of a request whose body has at least ``size`` bytes, ``None`` when it may have them. Asked for
        every piece of it that arrives.
        """
        if size > self.max_body:
            return Response(413, b"request body too large: expected at most %d bytes\n" % self.max_body)
        return None

    def expect(self, request: Request) -> None:
        """The head of a request with a body has arrived."""

    def process(self, request: Request) -> None:
        """A whole request has arrived."""
        if not request.path.startswith(b"/"):
            request.answer(Response(400, b"expected a target that begins with /\n"))
        elif not self.hosts.allow(request.host_name):
            request.answer(self.refuse_host(request))
        else:
            self.respond(request)

    def refuse_host(self, request: Request) -> Response:
        """The answer to a request for another host."""
        found = printable(request.host_name) or "none"
        return Response(
            421, f'The host {found} is not served here: name it in "hosts" of the configuration.\n'.encode()
        )

    def answered(self, channel: HttpChannel) -> None:
        """A request of this connection has its answer."""

    def lost(self, channel: HttpChannel) -> None:
        """A connection is gone. One that was handed over is its successor's."""

    # Of Twisted's: a clock and a file for its access log, whose lines would hold the query.

    def startFactory(self) -> None:
        pass

    def stopFactory(self) -> None:
        pass

    def log(self, request: object) -> None:
        pass
