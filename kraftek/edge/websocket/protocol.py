"""One WebSocket connection: Autobahn's protocol on one side, a session and its outbox on the other.

Made by :class:`kraftek.edge.websocket.factory.ClientFactory`.
"""

from __future__ import annotations

from typing import Any, Protocol

from autobahn.twisted.websocket import WebSocketServerProtocol
from twisted.internet.error import ConnectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from kraftek.contract.errors import CLOSE_CODES, Code
from kraftek.contract.interfaces import IReceiver
from kraftek.contract.iteration import Iteration
from kraftek.contract.messages import Authenticate, Gap, Outgoing
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Limits
from kraftek.contract.turns import BUDGET, FROZEN, HELD, Turns
from kraftek.edge.backlogs import Backlogs
from kraftek.edge.http_responses import end_writing
from kraftek.edge.websocket.closings import Closings
from kraftek.edge.websocket.deflate import TOO_LARGE, Deflate, Inflater
from kraftek.edge.websocket.frames import wire
from kraftek.edge.websocket.incoming import Incoming, TooLargeError
from kraftek.edge.websocket.moving import between_messages
from kraftek.edge.websocket.outbox import Outbox
from kraftek.edge.websocket.unhandled import Unhandled

__all__ = ["HANDSHAKE", "Acceptor", "ClientProtocol", "Silent", "succeed"]

_CLIENT_LEFT = Failure(ConnectionDone())

_SLICE = 256
"""Bytes that Autobahn is given at a time. It looks for frames in all it has for as long as there are any: 64 KiB of
small ones took 80 to 290 ms, and a slice of them takes 0.5 ms."""

_LONGEST = 16_384
"""Bytes of one frame that it is given at a time. Where it has no C code to check UTF-8 these take 2 ms."""

HANDSHAKE = frozenset(
    {
        "_results",
        "_wskey",
        "http_response_data",
        "websocket_extensions",
        "websocket_extensions_in_use",
        "websocket_protocol_in_use",
        "websocket_protocols",
    }
)
"""What Autobahn stores of a handshake for the lifetime of the connection."""


def succeed(protocol: Any, key: str, subprotocol: str | None, headers: dict[str, str]) -> None:
    """Have Autobahn answer a handshake that it has not read. It came with this key; nothing is left to negotiate."""
    protocol._wskey = key  # noqa: SLF001
    protocol.websocket_version = 13
    protocol.websocket_protocols = [subprotocol]
    protocol.websocket_extensions = []
    protocol.succeedHandshake((subprotocol, headers))


class Silent:
    """Autobahn's log, which would hold request heads with their tokens, and a line per message.

    What an operator needs is logged and counted here instead.
    """

    def _ignore(self, *args: object, **kwargs: object) -> None:
        pass

    critical = debug = error = failure = info = trace = warn = warning = _ignore


class Acceptor(Protocol):
    """The maker of these connections, which decides about them."""

    backlogs: Backlogs
    closings: Closings
    counters: Counters
    limits: Limits
    reactor: Any
    iteration: Iteration
    turns: Turns
    freezing: bool

    def opened(self, protocol: ClientProtocol) -> IReceiver | None:
        """The handshake is done: a session for the connection, or ``None`` to close it."""

    def closed(self, protocol: ClientProtocol) -> None:
        """The connection was lost."""


class ClientProtocol(WebSocketServerProtocol):
    """A client on a WebSocket, from the answer to its handshake on.

    ``credentials`` came with that; ``peer`` is its client's address, and ``counted_as`` what it counts for as a
    connection, if for any. ``outbox`` is what writes to its transport, and its session's link. ``engine_sid`` is set
    when it speaks Engine.IO: the session that it is for, empty for a new one. ``message_limit``: bytes of a message.

    What is read is handled in steps. What takes more than a moment waits for its turns, as ``unhandled``; as long as
    there is one, for that reason or another, the client is not blamed for its silence.

    Once it has failed, by a violation of the protocol or a message that is too large, nothing more is read of it
    (RFC 6455, section 7.1.7): what still arrives is dropped.

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
    message_limit: int
    credentials: Authenticate | None = None
    counted_as: str | None = None
    heard = True
    slot = -1
    unhandled: Unhandled | None = None
    _incoming: Incoming | None = None
    _frame_left = 0

    def _connectionMade(self) -> None:  # noqa: N802  # Autobahn's name
        super()._connectionMade()
        self.attach_outbox()

    def attach_outbox(self) -> None:
        """From here on all that is written goes through an outbox."""
        self.outbox = Outbox(self, self.factory.iteration, self.factory.backlogs)

    def begin(self, key: str, subprotocol: str | None, deflate: Deflate | None) -> None:
        """Answer the handshake that came with this key: it is accepted."""
        if deflate is not None:
            self._perMessageCompress: Any = Inflater(self.message_limit)
            self.outbox.window_bits = deflate.window_bits
        self.answer_handshake(key, subprotocol, None if deflate is None else deflate.header)

    def answer_handshake(self, key: str, subprotocol: str | None, extensions: str | None) -> None:
        """Send the answer; the connection is open."""
        succeed(self, key, subprotocol, {} if extensions is None else {"Sec-WebSocket-Extensions": extensions})

    def dataReceived(self, data: bytes) -> None:
        unhandled = self.unhandled
        if unhandled is not None:
            unhandled.add(data)
        elif (at := self.step(data, 0)) < len(data):
            self._own_unhandled().begin(data, at)

    def step(self, data: bytes, at: int) -> int:
        """Handle a little of ``data``, from ``at`` on; where the rest begins."""
        if self.failedByMe:
            return len(data)
        # The rest of a long frame is cheap: its head and its end are what costs something.
        piece = data[at : at + (min(self._frame_left, _LONGEST) or _SLICE)]
        super().dataReceived(piece)
        if self.failedByMe:
            self.data = b""
            return len(data)
        if len(piece) < _SLICE and (self._incoming is not None or self.data):
            self._charge()  # a read of a few bytes costs as much as one of a message
        return at + len(piece)

    def processData(self) -> bool:
        if self.failedByMe or (self.factory.freezing and self.state == self.STATE_OPEN and between_messages(self)):
            return False
        return super().processData()

    def onOpen(self) -> None:
        # A trusted proxy may have reported another address than that of the transport.
        self.outbox.peer = self.peer or ""
        try:
            self.session = self.factory.opened(self)
            if self.session is None:
                self.close(1000, "")
        except Exception:  # noqa: BLE001  # Autobahn would unwind the handshake
            self._log.failure("Opening a session failed")
            self.close(CLOSE_CODES[Code.INTERNAL], Code.INTERNAL)

    # A message in frames. Autobahn's own bounds know nothing of empty frames, and cut compressed messages off.

    def onMessageBegin(self, isBinary: bool) -> None:
        self._incoming = Incoming(self.message_limit, isBinary, self._perMessageCompress)
        self.message_data_total_length = 0  # where it counts, too

    def onMessageFrameBegin(self, length: int) -> None:
        if self._incoming is not None:
            inflater = self._perMessageCompress
            self._frame_left = 0 if inflater is not None and inflater.under_way else length
            try:
                if not self._incoming.announce(length):
                    self._charge()
            except TooLargeError as error:
                self._fail(TOO_LARGE, str(error))

    def onMessageFrameData(self, payload: bytes) -> None:
        if self._incoming is not None:
            if self._frame_left:
                self._frame_left -= len(payload)
            self._incoming.data += payload
            self._check_inflater()

    def onMessageFrameEnd(self) -> None:
        pass

    def onMessageEnd(self) -> None:
        self._check_inflater()
        incoming, self._incoming = self._incoming, None
        if incoming is not None and self.session is not None and self.state == self.STATE_OPEN:
            self.heard = True
            self.session.receive(bytes(incoming.data), incoming.binary)

    def onPing(self, payload: bytes) -> None:
        self.heard = True
        self._charge(len(payload))
        # A client that does not read gets no more pongs: they would pile up without bound, one for each ping.
        if not self.outbox.blocked:
            super().onPing(payload)

    def onPong(self, payload: bytes) -> None:  # Autobahn's signature
        self.heard = True
        self._charge(len(payload))

    def connectionLost(self, reason: Failure = _CLIENT_LEFT) -> None:
        self.outbox.lost()
        if self.unhandled is None or not self.unhandled.end(reason):
            self.ended(reason)

    def ended(self, reason: Failure) -> None:
        """The connection was lost, and all that was read of it is handled."""
        super().connectionLost(reason)
        self.factory.closed(self)
        session, self.session = self.session, None
        if session is not None:
            session.lost()

    # Autobahn's frames go through the outbox, too, in order with those of sessions.

    def sendData(self, data: bytes, sync: bool = False, chopsize: int | None = None) -> None:
        self.outbox.put(data)

    def sendCloseFrame(self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False) -> None:
        super().sendCloseFrame(code, reasonUtf8, isReply)
        self.outbox.finish()
        self.factory.closings.begin(self)
        if self.failedByMe:
            self._incoming = None
            lost = self.unhandled is not None and self.unhandled.lost
            self._drop_unhandled()
            if not lost:
                end_writing(self.transport)

    def dropConnection(self, abort: bool = False) -> None:
        self.outbox.finish()
        self._drop_unhandled()
        # Autobahn resets a client that has answered, and a page then sees a connection that was not closed cleanly.
        super().dropConnection(abort and not self.wasClean)

    def forget_handshake(self) -> None:
        """The handshake is done, and what it was made of is of no use any more."""
        self.__dict__.update(dict.fromkeys(HANDSHAKE & self.__dict__.keys()))

    # What the outbox needs.

    def close(self, code: int, reason: str) -> None:
        """Send what was written, then a close frame."""
        if self.state == self.STATE_OPEN:
            self.sendCloseFrame(code, reason.encode())
            if self.unhandled is not None:
                # Its answer is read, whether the session had stopped reading or not.
                self.unhandled.go(HELD | BUDGET)

    def pause(self) -> None:
        """Stop reading."""
        self._own_unhandled().stop(HELD)

    def resume(self) -> None:
        """Read again, unless there is another reason not to."""
        if self.unhandled is not None:
            self.unhandled.go(HELD)

    def slow(self, seconds: float) -> None:
        """Stop reading for so long."""
        unhandled = self._own_unhandled()
        unhandled.stop(BUDGET)
        self.factory.turns.slow(unhandled, seconds)

    def give_up(self) -> None:
        """The client does not read: send the last message, and close."""
        self.factory.counters.slow_consumers += 1
        session, code = self.session, Code.SLOW_CONSUMER
        if session is not None:
            # Not at once: a broadcast to a room may be in progress.
            self.factory.reactor.callLater(0, session.lost)
        if not self.outbox.abandon(self.factory.limits.unsent_bytes):
            self.transport.abortConnection()
            return
        last = None if session is None else session.overrun()
        if last is not None:
            self.outbox.put(wire(last))
        self.close(CLOSE_CODES[code], code)

    def gap(self, gap: Gap) -> Outgoing | None:
        """The message that says what the client missed."""
        return None if self.session is None else self.session.gap(gap)

    # What the heartbeat needs.

    def ping(self) -> None:
        self.outbox.ping()

    def silent(self) -> None:
        if self.unhandled is not None:
            return  # its answer may be in what is not read, or not handled
        self.factory.counters.ping_timeouts += 1
        # Not dropConnection, which treats a connection as closed whose last bytes are still to be read.
        self.transport.abortConnection()

    # What another version of the gateway needs.

    def freeze(self) -> bool:
        """Neither read nor handle anything more, once this is not in the middle of a message."""
        if not between_messages(self):
            return False
        self._own_unhandled().freeze()
        return True

    def thaw(self) -> None:
        """Go on. What is in Autobahn's buffer was left there."""
        if self.unhandled is not None:
            buffered, self.data = self.data, b""
            if buffered:
                self.unhandled.put_back(buffered)
            self.unhandled.go(FROZEN)

    def unread(self) -> bytes:
        """What was read and not handled."""
        rest: bytes = self.data + (b"" if self.unhandled is None else self.unhandled.left)
        return rest

    def _own_unhandled(self) -> Unhandled:
        return self.unhandled or Unhandled(self, self.factory.turns)

    def _drop_unhandled(self) -> None:
        if self.unhandled is not None:
            self.unhandled.drop()

    def _charge(self, size: int = 0) -> None:
        """What is no message counts as one event."""
        if self.session is not None:
            self.session.charge(1, size)

    def _check_inflater(self) -> None:
        inflater = self._perMessageCompress
        if inflater is not None and inflater.failure is not None and not self.failedByMe:
            self._fail(inflater.failure, "")

    def _fail(self, code: int, reason: str) -> None:
        self.failedByMe = True
        self.close(code, reason)
