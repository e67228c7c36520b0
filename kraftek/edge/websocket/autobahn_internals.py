"""What reaches past Autobahn's public surface for speed and memory, and may be left out: the gateway works the same.

Each part says what it saves. :func:`quickened` takes those whose guard finds the Autobahn that they were written for:
it makes a connection and looks what there is. What it leaves out it logs. Called by
:class:`kraftek.edge.websocket.factory.ClientFactory`. (The half that is Twisted's is :mod:`kraftek.fastpath`.)
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import autobahn.twisted.websocket
import autobahn.websocket.protocol
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket import xormasker
from autobahn.websocket.utf8validator import Utf8Validator
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.logger import Logger
from twisted.python.failure import Failure

from kraftek.contract.guards import UnexpectedError, expect_names, expect_values, usable
from kraftek.edge.http_server import SERVER
from kraftek.edge.websocket.frames import plain_messages
from kraftek.edge.websocket.handshake import accept_token
from kraftek.edge.websocket.protocol import HANDSHAKE, Silent, succeed

__all__ = ["quickened"]

_EMPTY_PONG = b"\x8a\x80"
"""And its mask: the answer to a ping of the gateway, which carries nothing else (RFC 6455, section 5.5.3)."""

_log = Logger()


def quickened(protocol: Any, factory: Any, base: Any = WebSocketServerProtocol) -> Any:
    """The class of client connections ``protocol``, a subclass of Autobahn's ``base``, with all that can be overridden.

    It has ``factory``'s configuration, which must not change any more.
    """
    parts: list[tuple[str, Callable[[], None], Callable[[], tuple[tuple[type, ...], dict[str, Any]]]]] = [
        ("unframing whole reads", lambda: _check_unframing(base), lambda: ((_Unframing,), {})),
        ("slim connections", lambda: _check_slimming(base), lambda: ((_Slim,), {**_AT_REST, **_NOT_NEEDED})),
        ("settings on the class", lambda: _check_settings(base, factory), lambda: ((), _settings(base, factory))),
    ]
    mixins: tuple[type, ...] = ()
    attributes: dict[str, Any] = {}
    for part, check, made in parts:
        if usable(part, check, _log.warn):
            classes, names = made()
            mixins += classes
            attributes.update(names)
    at_rest = {*_AT_REST, "CONFIG_ATTRS"} <= attributes.keys()
    if at_rest and usable("beginning at rest", lambda: _check_accepting(base), _log.warn):
        mixins += (_Accepting,)
    if usable("log lines without colours", _check_colours, _log.warn):
        _leave_colours()
    return type(protocol.__name__, (*mixins, protocol), attributes)


# Reading.


def unmask(mask: bytes, payload: bytes) -> bytes:
    """The payload unmasked or masked, by Autobahn's C code where it exists."""
    unmasked: bytes = xormasker.create_xor_masker(mask, len(payload)).process(payload)  # type: ignore[attr-defined]
    return unmasked


class _Unframing:
    """Handles the plain messages of a whole read in one pass, and leaves everything else to Autobahn.

    ``_amid``: Autobahn has the beginning of something, or is closing. That is found out after each of its steps and not
    at each read, which took one per cent of an event.
    """

    _amid = False

    def step(self: Any, data: bytes, at: int) -> int:
        session = self.session
        if session is not None and not self._amid:
            messages, end = plain_messages(data, at, self.message_limit, unmask)
            if messages:
                self.heard = True
                for message in messages:
                    session.receive(message)
                return end
            if len(data) == 6 and data.startswith(_EMPTY_PONG):
                if self.heard:  # nobody asked
                    session.charge(1, 0)
                self.heard = True
                return 6
        after: int = super().step(data, at)  # type: ignore[misc]
        amid = bool(self.data) or self.current_frame is not None or self.inside_message or self.state != self.STATE_OPEN
        if amid is not self._amid:
            self._amid = amid
        return after

    def sendCloseFrame(self: Any, *args: Any, **kwargs: Any) -> None:
        super().sendCloseFrame(*args, **kwargs)  # type: ignore[misc]
        self._amid = True


def _check_unframing(base: Any) -> None:
    expect_names(base, "dataReceived", "STATE_OPEN")
    expect_names(xormasker, "create_xor_masker")
    if unmask(b"\1\2\3\4", b"abcde") != b"````d":
        raise UnexpectedError("create_xor_masker masks otherwise")
    made, _ = _opened(base)
    expect_values(made, {"state": made.STATE_OPEN, "data": b"", "current_frame": None, "inside_message": False})
    made.dataReceived(_client_frame(0x01, b"first"))
    if not made.inside_message:
        raise UnexpectedError("inside_message is not set between the fragments of a message")
    made.dataReceived(_client_frame(0x80, b"last"))
    made.dataReceived(_client_frame(0x81, b"half")[:3])
    if not made.data and made.current_frame is None:
        raise UnexpectedError("half a frame is in neither data nor current_frame")


# Accepting.


def _settings(base: Any, factory: Any) -> dict[str, Any]:
    """The factory's configuration as attributes of a class.

    Autobahn copies some thirty settings into every instance and formats them for a debug line that nobody reads: two
    thirds of the cost of accepting a client.
    """
    settings = {name: getattr(factory, name) for name in base.CONFIG_ATTRS}
    static = {name: staticmethod(value) if callable(value) else value for name, value in settings.items()}
    return {**static, "CONFIG_ATTRS": ()}


def _check_settings(base: Any, factory: Any) -> None:
    expect_names(base, "CONFIG_ATTRS")
    expect_names(factory, *base.CONFIG_ATTRS)
    if not base.CONFIG_ATTRS:
        raise UnexpectedError("CONFIG_ATTRS names no settings")
    made, _ = _opened(base, _settings(base, _probe_factory(base)))
    copied = [name for name in base.CONFIG_ATTRS if name in made.__dict__]
    if copied:
        raise UnexpectedError(f"settings are copied without being in CONFIG_ATTRS: {', '.join(copied)}")


_LOGGING: tuple[Any, ...] = (autobahn.twisted.websocket, autobahn.websocket.protocol)


def _check_colours() -> None:
    for module in _LOGGING:
        expect_names(module, "hltype", "hlval")


def _leave_colours() -> None:
    """Autobahn colours the arguments of its log lines before it logs them, some twenty for each connection."""
    for module in _LOGGING:
        module.hltype = module.hlval = lambda *_, **__: ""


# Keeping.


class _Nobody:
    """Replaces a Deferred that Autobahn fires and that has no callbacks."""

    def callback(self, result: object) -> None:
        """Take it for done."""


_NOBODY = _Nobody()

_AT_REST = {
    "autoPingPending": None,
    "autoPingPendingCall": None,
    "autoPingPendingSent": None,
    "autoPingPendingSeq": 0,
    "autoPingTimeoutCall": None,
    "closeHandshakeTimeoutCall": None,
    "closedByMe": False,
    "current_frame": None,
    "data": b"",
    "droppedByMe": False,
    "failedByMe": False,
    "inside_message": False,
    "localCloseCode": None,
    "localCloseReason": None,
    "openHandshakeTimeoutCall": None,
    "remoteCloseCode": None,
    "remoteCloseReason": None,
    "send_state": 0,
    "trackedTimings": None,
    "triggered": False,
    "wasClean": False,
    "wasCloseHandshakeTimeout": False,
    "wasMaxFramePayloadSizeExceeded": False,
    "wasMaxMessagePayloadSizeExceeded": False,
    "wasNotCleanReason": None,
    "wasOpenHandshakeTimeout": False,
    "wasServerConnectionDropTimeout": False,
    "wasServingFlashSocketPolicyFile": False,
    "websocket_version": 13,
    "_perMessageCompress": None,
}
"""The state that Autobahn stores in the instance of an open, idle connection."""

_NOT_NEEDED = {
    "is_closed": _NOBODY,
    "is_open": _NOBODY,
    "send_queue": (),  # of chopped and synchronous sends, which there are none of
    "trafficStats": autobahn.websocket.protocol.TrafficStats(),
    "_transport_details": None,
    "_valid_events": None,
}
"""Other attributes that Autobahn stores in the instance and the gateway does not use, with values that replace them."""


_DROPPED = HANDSHAKE | _NOT_NEEDED.keys() | {"credentials"}


class _Slim:
    """Stores of an open connection only what differs from its class.

    A dictionary of some eighty entries, two Deferreds, a deque and a handful of counters: about 5 KiB a connection.
    """

    def forget_handshake(self) -> None:
        self.__dict__ = {
            name: value
            for name, value in self.__dict__.items()
            if name not in _DROPPED and not (name in _AT_REST and value == _AT_REST[name])
        }


def _check_slimming(base: Any) -> None:
    whole, _ = _opened(base)
    expect_values(whole, _AT_REST)
    for name in (*_NOT_NEEDED, *HANDSHAKE):
        if name not in whole.__dict__:
            raise UnexpectedError(f"{base.__name__} keeps no {name}")
    if whole.send_queue:
        raise UnexpectedError(f"send_queue of {base.__name__} is not empty when nothing was sent")
    # Code that needs a dropped attribute fails in one of these.
    for server_closes in (False, True):
        made, transport = _opened(type(base.__name__, (_Slim, base), {**_AT_REST, **_NOT_NEEDED}))
        made.forget_handshake()
        for data in (_client_frame(0x81, b"plain"), _client_frame(0x01, b"in "), _client_frame(0x80, b"pieces")):
            made.dataReceived(data)
        transport.written.clear()
        made.dataReceived(_client_frame(0x89, b"?"))
        if transport.written != [b"\x8a\x01?"]:
            raise UnexpectedError("a ping is answered otherwise without the state that is dropped")
        if server_closes:
            made.sendClose(1000)
        made.dataReceived(_client_frame(0x88, b"\x03\xe8"))
        made.connectionLost(Failure(ConnectionDone()))
        if not made.wasClean or not transport.closed:
            raise UnexpectedError("a connection does not close cleanly without the state that is dropped")


# Beginning.


class _Accepting:
    """Begins with the state at rest, and answers the handshake, in place of four functions of Autobahn's.

    They make state that :class:`_Slim` drops at once, and look for settings and extensions that there are none of: a
    sixth of the cost of accepting a client. The class has to have the state at rest and the settings.
    """

    def connectionMade(self: Any) -> None:
        with suppress(AttributeError, OSError):  # there is nothing like it on a UNIX socket
            self.transport.setTcpNoDelay(True)
        self.state = self.STATE_CONNECTING
        self.utf8validator = Utf8Validator()
        self.factory.countConnections += 1
        self.attach_outbox()

    def answer_handshake(self: Any, key: str, subprotocol: str | None, extensions: str | None) -> None:
        answer = f"{_SWITCHING}Sec-WebSocket-Accept: {accept_token(key)}\r\n"
        if subprotocol is not None:
            answer += f"Sec-WebSocket-Protocol: {subprotocol}\r\n"
        if extensions is not None:
            answer += f"Sec-WebSocket-Extensions: {extensions}\r\n"
        self.sendData(f"{answer}\r\n".encode())
        self.websocket_protocol_in_use = subprotocol
        self.state = self.STATE_OPEN
        self.onOpen()


_SWITCHING = f"HTTP/1.1 101 Switching Protocols\r\nServer: {SERVER}\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\n"

_BEGINNING = {"connected", "factory", "peer", "state", "transport", "utf8validator"}
"""What a connection has of its own beside its state at rest and its handshake."""


def _check_accepting(base: Any) -> None:
    expect_names(base, "STATE_CONNECTING", "STATE_OPEN")
    whole, transport = _opened(base)
    known = _BEGINNING | _AT_REST.keys() | _NOT_NEEDED.keys() | HANDSHAKE | {*base.CONFIG_ATTRS}
    if unknown := sorted(whole.__dict__.keys() - known):
        raise UnexpectedError(f"{base.__name__} keeps {', '.join(unknown)}, too")
    factory, beside = _probe_factory(base), _Nowhere()
    own = {**_AT_REST, **_NOT_NEEDED, **_settings(base, factory), "attach_outbox": lambda _: None}
    factory.protocol = type(base.__name__, (_Accepting, factory.protocol), own)
    made = factory.buildProtocol(None)
    made.makeConnection(beside)
    made.answer_handshake(_KEY, None, None)
    if _lines(beside.written) != _lines(transport.written) or made.state != whole.state:
        raise UnexpectedError(f"{base.__name__} answers a handshake with {_lines(transport.written)}")
    made.dataReceived(_client_frame(0x89, b"?"))
    if beside.written[1:] != [b"\x8a\x01?"]:
        raise UnexpectedError("a ping is answered otherwise on a connection that begins at rest")


def _lines(written: list[bytes]) -> list[bytes]:
    return sorted(written[0].split(b"\r\n"))


# A connection to look at.


_KEY = "dGhlIHNhbXBsZSBub25jZQ=="
"""That of RFC 6455, section 1.3."""


class _Nowhere:
    """A transport that notes what is written to it."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def loseConnection(self) -> None:
        self.closed = True

    abortConnection = loseConnection

    def unregisterProducer(self) -> None:
        pass

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 1)

    getHost = getPeer


def _probe_factory(base: Any) -> Any:
    """Its connections begin no timers, which would outlive them."""
    factory: Any = WebSocketServerFactory(reactor=Clock(), server=SERVER)
    factory.log = Silent()
    factory.protocol = type(base.__name__, (base,), {"log": Silent()})
    factory.setProtocolOptions(openHandshakeTimeout=0, closeHandshakeTimeout=0, autoPingInterval=0)
    return factory


def _opened(base: Any, attributes: dict[str, Any] | None = None) -> tuple[Any, _Nowhere]:
    """A connection of that class whose handshake is done, and its transport."""
    factory, transport = _probe_factory(base), _Nowhere()
    factory.protocol = type(base.__name__, (factory.protocol,), attributes or {})
    made = factory.buildProtocol(transport.getPeer())
    made.makeConnection(transport)
    succeed(made, _KEY, None, {})
    if not transport.written or not transport.written[0].startswith(b"HTTP/1.1 101 "):
        raise UnexpectedError(f"{base.__name__} does not answer a handshake")
    return made, transport


def _client_frame(opcode: int, payload: bytes) -> bytes:
    return bytes((opcode, 0x80 | len(payload), 0, 0, 0, 0)) + payload
