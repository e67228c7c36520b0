"""One WebSocket connection: Autobahn's protocol on one side, a session and its outbox on the other.

Made by :class:`kraftek.edge.websocket.factory.ClientFactory`.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Protocol

from autobahn.twisted.websocket import WebSocketServerProtocol
from autobahn.websocket.types import ConnectionDeny, ConnectionRequest
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IProtocolFactory
from twisted.logger import Logger
from twisted.python.failure import Failure

from kraftek.contract.errors import CLOSE_CODES, Code
from kraftek.contract.interfaces import IReceiver
from kraftek.contract.iteration import Iteration
from kraftek.contract.messages import Authenticate
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Limits
from kraftek.edge.websocket.closings import Closings
from kraftek.edge.websocket.frames import wire
from kraftek.edge.websocket.outbox import Outbox

__all__ = ["HANDSHAKE", "Acceptor", "ClientProtocol", "Silent"]

_HEAD_BYTES = 16_384
"""Request line and headers at most; Node's and nginx's limits are of the same size."""

_CLIENT_LEFT = Failure(ConnectionDone())


HANDSHAKE = frozenset(
    {
        "_results",
        "_wskey",
        "http_headers",
        "http_request_data",
        "http_request_host",
        "http_request_params",
        "http_request_path",
        "http_request_uri",
        "http_response_data",
        "http_status_line",
        "websocket_extensions",
        "websocket_extensions_in_use",
        "websocket_origin",
        "websocket_protocol_in_use",
        "websocket_protocols",
    }
)
"""What Autobahn keeps of a handshake for as long as the connection lives. It holds tokens, and memory."""


class Silent:
    """Autobahn's log, which would hold request heads with their tokens, and a line per message.

    What an operator needs is logged and counted here instead.
    """

    def _ignore(self, *args: object, **kwargs: object) -> None:
        pass

    critical = debug = error = failure = info = trace = warn = warning = _ignore


class Acceptor(Protocol):
    """Whoever makes these connections, and decides about them."""

    closings: Closings
    countConnections: int
    counters: Counters
    http: IProtocolFactory
    limits: Limits
    reactor: Any
    iteration: Iteration

    def is_plain_http(self, head: bytes) -> bool:
        """Whether this request asks for anything but a WebSocket."""

    def admit(self, protocol: ClientProtocol, request: ConnectionRequest) -> str | None:
        """The subprotocol to speak, ``None`` for a client that offers none. Raises ``ConnectionDeny``."""

    def opened(self, protocol: ClientProtocol) -> IReceiver | None:
        """The handshake is done: a session for the connection, or ``None`` to close it."""

    def closed(self, protocol: ClientProtocol) -> None:
        """The connection is gone, or is none of ours."""


class ClientProtocol(WebSocketServerProtocol):
    """A client on a WebSocket. ``credentials`` came with its handshake; ``counted_as`` is the address it counts for.

    ``outbox`` is what writes to its transport, and its session's link. ``engine_sid`` is set when it speaks Engine.IO:
    the session that it is for, empty for a new one.

    What is slow about it, :mod:`kraftek.edge.websocket.autobahn_internals` overrides.
    """

    log: Any = Silent()
    _log = Logger()
    # Autobahn turns Nagle's algorithm off before it has copied the factory's options, and swallows the AttributeError.
    tcpNoDelay = True

    factory: Acceptor
    transport: Any
    outbox: Outbox
    session: IReceiver | None = None
    engine_sid: str | None = None
    maxFramePayloadSize: int
    maxMessagePayloadSize: int
    credentials: Authenticate | None = None
    counted_as: str | None = None
    heard = True
    slot = -1
    _refusal: str | None = None

    def _connectionMade(self) -> None:  # noqa: N802  # Autobahn's name
        super()._connectionMade()
        self.outbox = Outbox(self, self.factory.iteration, self.factory.limits.unsent_bytes)

    def processHandshake(self) -> None:
        head_end = self.data.find(b"\r\n\r\n", 0, _HEAD_BYTES)
        if head_end < 0:
            if len(self.data) >= _HEAD_BYTES:
                self.failHandshake("request head too large", 431)
        elif self.factory.is_plain_http(self.data[: head_end + 2]):
            self._hand_over()
        else:
            super().processHandshake()

    def onConnect(self, request: ConnectionRequest) -> str | None:
        try:
            subprotocol: str | None = self.factory.admit(self, request)
        except ConnectionDeny as denial:
            self.factory.counters.connections_refused += 1
            self._refusal = denial.reason
            raise
        except Exception as error:  # Autobahn would send the exception's text to the client
            self._log.failure("Handshake failed")
            raise ConnectionDeny(500, "internal error") from error
        return subprotocol

    def onOpen(self) -> None:
        # A trusted proxy may have told another address than that of the transport.
        self.outbox.peer = self.peer or ""
        if self._perMessageCompress is not None:
            self.outbox.window_bits = self._perMessageCompress.server_max_window_bits
        try:
            self.session = self.factory.opened(self)
            if self.session is None:
                self.close(1000, "")
        except Exception:  # noqa: BLE001  # Autobahn would unwind the handshake
            self._log.failure("Opening a session failed")
            self.close(CLOSE_CODES[Code.INTERNAL], Code.INTERNAL)

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.heard = True
        if self._perMessageCompress is not None:
            self.release_window()
        if self.session is not None and self.state == self.STATE_OPEN:
            self.session.receive(payload, isBinary)

    def onPing(self, payload: bytes) -> None:
        self.heard = True
        # Who does not read gets no more pongs: they would pile up, a ping each, past every bound.
        if not self.outbox.blocked:
            super().onPing(payload)

    def onPong(self, payload: bytes) -> None:  # Autobahn's signature
        self.heard = True

    def connectionLost(self, reason: Failure = _CLIENT_LEFT) -> None:
        self.outbox.lost()
        super().connectionLost(reason)
        self.factory.closed(self)
        session, self.session = self.session, None
        if session is not None:
            session.lost()

    def failHandshake(self, reason: str, code: int = 400, responseHeaders: Any = None) -> None:
        # Autobahn puts what it could not parse into its reasons, and that may be a token.
        if self._refusal is not None:
            reason = self._refusal
        elif code == HTTPStatus.BAD_REQUEST:
            reason = "not a WebSocket handshake (RFC 6455, section 4.2.1)"
        else:
            reason = HTTPStatus(code).phrase
        super().failHandshake(reason, code, responseHeaders)

    def sendHttpErrorResponse(self, code: int, reason: str, responseHeaders: Any = None) -> None:
        headers = [("Content-Length", "0"), ("Connection", "close"), *(responseHeaders or ())]
        super().sendHttpErrorResponse(code, reason, headers)

    # What Autobahn says leaves by the outbox too, and keeps its place among what sessions say.

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        self.outbox.put(data)

    def sendCloseFrame(self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False) -> None:
        super().sendCloseFrame(code, reasonUtf8, isReply)
        self.outbox.finish()
        self.factory.closings.begin(self)

    def dropConnection(self, abort: bool = False) -> None:
        self.outbox.finish()
        # Autobahn resets a client that has answered, and a page is then told that it was not closed cleanly.
        super().dropConnection(abort and not self.wasClean)

    def forget_handshake(self) -> None:
        """The handshake is done, and what it was made of is of no use any more."""
        self.__dict__.update(dict.fromkeys(HANDSHAKE & self.__dict__.keys()))

    def release_window(self) -> None:
        """Give back what decompressing a message took, where that can be."""

    # What the outbox needs.

    def close(self, code: int, reason: str) -> None:
        """Send what was written, then a close frame."""
        if self.state == self.STATE_OPEN:
            self.sendCloseFrame(code, reason.encode())
            # Its answer is read, whether the session had stopped reading or not.
            self.transport.resumeProducing()

    def pause(self) -> None:
        """Stop reading."""
        self.heard = True
        self.transport.pauseProducing()

    def resume(self) -> None:
        """Read again."""
        self.transport.resumeProducing()

    def overrun(self) -> None:
        """More waits to be sent than may: say so, and close."""
        self.factory.counters.slow_consumers += 1
        session, code = self.session, Code.SLOW_CONSUMER
        if session is not None:
            last = session.overrun()
            if last is not None:
                self.outbox.put(wire(last))
            # Not at once: the roster may be in the middle of telling everybody in a room.
            self.factory.reactor.callLater(0, session.lost)
        self.close(CLOSE_CODES[code], code)

    # What the heartbeat needs.

    def ping(self) -> None:
        self.outbox.ping()

    def silent(self) -> None:
        self.factory.counters.ping_timeouts += 1
        # Not dropConnection, which takes a connection for closed that still waits for its last bytes to be read.
        self.transport.abortConnection()

    def _hand_over(self) -> None:
        """The rest of this connection is plain HTTP: another protocol takes it, and all that was read of it."""
        timeout: Any = self.openHandshakeTimeoutCall
        timeout.cancel()
        self.factory.closed(self)
        data, self.data = self.data, b""
        successor: Any = self.factory.http.buildProtocol(self.transport.getPeer())

        def lost(reason: Failure = _CLIENT_LEFT) -> None:
            self.factory.countConnections -= 1
            successor.connectionLost(reason)

        # Not every transport has an attribute for its protocol that may be changed (TLS has another than TCP).
        self.dataReceived = successor.dataReceived  # type: ignore[method-assign]
        self.connectionLost = lost  # type: ignore[method-assign]
        successor.makeConnection(self.transport)
        successor.dataReceived(data)
