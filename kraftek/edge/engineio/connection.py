"""Engine.IO protocol 4, sans-IO: packets, the payloads of HTTP long-polling, and the session of one client.

Called by the transports that serve ``/socket.io/``: they hand in what arrived (:func:`read_request`,
:class:`EngineSession`), write what the session owes, and pass messages up to
:mod:`kraftek.edge.dialects.socketio_packets`, or to whatever else speaks on top of Engine.IO. Nothing here knows a
socket, a timer or a clock: time is an argument.

The rules are https://github.com/socketio/engine.io-protocol; where they are silent, the reference server's
habits.
"""

from __future__ import annotations

from base64 import b64encode
from binascii import a2b_base64
from collections.abc import Iterable, Mapping
from enum import Enum, IntEnum, StrEnum
from math import inf
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from kraftek.contract.messages import Outgoing

__all__ = [
    "EngineError",
    "EngineOverflowError",
    "EngineSession",
    "EngineSettings",
    "ErrorCode",
    "Message",
    "Packet",
    "PacketKind",
    "Reason",
    "State",
    "decode_packet",
    "decode_payload",
    "encode_binary",
    "encode_message",
    "encode_payload",
    "read_request",
]

SEPARATOR: Final = b"\x1e"


class ErrorCode(IntEnum):
    """The protocol's numbers for what can be wrong with a request."""

    UNKNOWN_TRANSPORT = 0
    UNKNOWN_SID = 1
    BAD_HANDSHAKE_METHOD = 2
    BAD_REQUEST = 3
    FORBIDDEN = 4
    UNSUPPORTED_PROTOCOL_VERSION = 5


# To the letter as the reference server words them: there are clients that compare them.
_MESSAGES: Final = {
    ErrorCode.UNKNOWN_TRANSPORT: "Transport unknown",
    ErrorCode.UNKNOWN_SID: "Session ID unknown",
    ErrorCode.BAD_HANDSHAKE_METHOD: "Bad handshake method",
    ErrorCode.BAD_REQUEST: "Bad request",
    ErrorCode.UNSUPPORTED_PROTOCOL_VERSION: "Unsupported protocol version",
}


class EngineError(Exception):
    """The client broke the protocol, or is not let in: refuse the HTTP request, or close the WebSocket, it came by.

    ``status`` and ``body`` (``application/json``) are the HTTP answer. The exception's own text says what was
    wrong; it repeats nothing that the client sent. The client is told it with ``FORBIDDEN``, which the reference server
    leaves to its application to word; otherwise it is for our log alone.
    """

    def __init__(self, code: ErrorCode, detail: str, status: int | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.status = status or (403 if code is ErrorCode.FORBIDDEN else 400)

    @property
    def body(self) -> bytes:
        """What the client is told: ``{"code", "message"}``."""
        return msgspec.json.encode({"code": int(self.code), "message": _MESSAGES.get(self.code, str(self))})


class EngineOverflowError(Exception):
    """More waits for this client than it may: it does not fetch what it is sent. Nothing was queued."""


class PacketKind(Enum):
    """The first byte of a text packet."""

    OPEN = b"0"
    CLOSE = b"1"
    PING = b"2"
    PONG = b"3"
    MESSAGE = b"4"
    UPGRADE = b"5"
    NOOP = b"6"


Message = tuple[bytes, bool]
"""The data of a message packet, and whether it is binary. Text is UTF-8."""


class Packet(NamedTuple):
    """One packet. Only a message can be binary."""

    kind: PacketKind
    data: bytes = b""
    binary: bool = False


_KINDS: Final = {kind.value: kind for kind in PacketKind}


def decode_packet(text: bytes) -> Packet:
    """The packet that a text frame, or a piece of a payload, stands for. Raises :class:`EngineError`."""
    if text[:1] == b"b":
        try:
            return Packet(PacketKind.MESSAGE, a2b_base64(text[1:], strict_mode=True), True)
        except ValueError:
            raise EngineError(ErrorCode.BAD_REQUEST, "a binary packet that is not base64") from None
    kind = _KINDS.get(text[:1])
    if kind is None:
        raise EngineError(ErrorCode.BAD_REQUEST, "a packet of no known kind")
    return Packet(kind, text[1:])


def decode_payload(body: bytes, max_packets: int) -> list[Packet]:
    """The packets in a POST's body. Raises :class:`EngineError` for a malformed one, and for too many."""
    try:
        body.decode()
    except UnicodeDecodeError:
        raise EngineError(ErrorCode.BAD_REQUEST, "a payload that is not UTF-8") from None
    pieces = body.split(SEPARATOR, max_packets)
    if len(pieces) > max_packets:
        raise EngineError(ErrorCode.BAD_REQUEST, f"a payload of more than {max_packets} packets")
    return [decode_packet(piece) for piece in pieces]


def encode_message(text: bytes, attachments: tuple[bytes, ...] = ()) -> Outgoing:
    """A text message and the binary messages that belong right behind it."""
    return Outgoing(b"4" + text, attachments)


def encode_binary(data: bytes) -> Outgoing:
    """One binary message by itself: an ``Outgoing`` without text."""
    return Outgoing(b"", (data,))


def encode_payload(packets: Iterable[Outgoing]) -> bytes:
    """The body that answers a poll."""
    pieces = []
    for packet in packets:
        if packet.text:
            pieces.append(packet.text)
        pieces += [b"b" + b64encode(data) for data in packet.attachments]
    return SEPARATOR.join(pieces)


# Shared by all sessions, so that their framing too is made once.
_CLOSE: Final = Outgoing(PacketKind.CLOSE.value)
_PING: Final = Outgoing(PacketKind.PING.value)
_NOOP: Final = Outgoing(PacketKind.NOOP.value)
_PROBE: Final = b"2probe"
_PROBE_ANSWER: Final = Outgoing(b"3probe")


def read_request(method: str, query: Mapping[str, str], *, websocket: bool) -> str | None:
    """The session id that a request is for, or ``None`` when it asks for a new session.

    ``websocket``: it is a WebSocket handshake. Raises :class:`EngineError`. Whether the session exists, and
    whether the Origin may come here, is the caller's to say: ``UNKNOWN_SID`` and ``FORBIDDEN``.
    """
    transport = query.get("transport")
    if transport not in ("polling", "websocket"):
        raise EngineError(ErrorCode.UNKNOWN_TRANSPORT, "no transport of ours")
    if query.get("EIO") != "4":
        raise EngineError(ErrorCode.UNSUPPORTED_PROTOCOL_VERSION, "not protocol 4")
    if websocket is not (transport == "websocket"):
        raise EngineError(ErrorCode.BAD_REQUEST, f"transport {transport} by the wrong kind of request")
    sid = query.get("sid") or None
    if sid is None and method != "GET":
        raise EngineError(ErrorCode.BAD_HANDSHAKE_METHOD, "a handshake that is not a GET")
    if method not in ("GET", "POST"):
        raise EngineError(ErrorCode.BAD_REQUEST, "neither GET nor POST")
    return sid


class EngineSettings(Struct, frozen=True, kw_only=True):
    """What all sessions share. Times in seconds, sizes in bytes. The first four are the reference server's.

    ``max_payload``: of one POST; the WebSocket transport limits its messages to the same. ``max_packets``: in
    one POST; a client packs all that it emitted while a POST was under way into the next. ``max_queued``,
    ``max_queued_bytes``: what may wait for a client's next poll. ``upgrades``: polling may become WebSocket.
    """

    ping_interval: float = 25.0
    ping_timeout: float = 20.0
    upgrade_timeout: float = 10.0
    max_payload: int = 1_000_000
    max_packets: int = 10_000
    max_queued: int = 10_000
    max_queued_bytes: int = 1_048_576
    upgrades: bool = True


class _Open(Struct, rename="camel"):
    sid: str
    upgrades: tuple[str, ...]
    ping_interval: int
    ping_timeout: int
    max_payload: int


class State(Enum):
    """Where an :class:`EngineSession` is; the table there says what follows what."""

    POLLING = "HTTP long-polling alone"
    OFFERED = "a WebSocket was opened beside it, and has proven nothing yet"
    PROBED = "the WebSocket brought the probe, which we owe the answer to"
    PROVEN = "the probe is answered, the client has yet to change over"
    WEBSOCKET = "WebSocket alone"
    CLOSING = "we closed, and what is left waits to be fetched"
    CLOSED = "over"


_UPGRADING: Final = (State.OFFERED, State.PROBED, State.PROVEN)


class Reason(StrEnum):
    """Why a session ended."""

    CLIENT = "client close"
    SERVER = "server close"
    PING_TIMEOUT = "ping timeout"
    LOST = "transport lost"
    MALFORMED = "protocol error"


class EngineSession:
    """One client, over polling, over a WebSocket, or on its way from one to the other.

    ``sid`` is the client's secret: whoever knows it can speak for the client, so it is no name to show
    around. ``deadline`` is the time at which :meth:`tick` next has something to do. ``reason`` says why the
    session ended, or is ending.

    After every call, answer a held poll with what :meth:`payload` returns, write what :meth:`frames` returns
    to the WebSocket, and close the WebSocket when ``state`` is ``CLOSED``. It is also to be closed when the
    session raises :class:`EngineError` at one of its frames, and when it was offered and ``state`` is
    ``POLLING`` again.

    =================== =============== ================ =============== =============== ========
    input               POLLING         OFFERED, PROBED, WEBSOCKET       CLOSING         CLOSED
                                        PROVEN
    =================== =============== ================ =============== =============== ========
    poll                hold            hold [1]_        error           rest, or else   error
                                                                         close → CLOSED
    second poll         error → CLOSED  error → CLOSED   error           (none is held)  error
    poll lost           → CLOSED        → CLOSED         .               .               .
    POST                messages        messages         error           .               error
    POST, malformed     error → CLOSED  error → CLOSED   error           error → CLOSED  error
    offer               → OFFERED       error            error           error           error
    frame ``2probe``    error           → PROBED [2]_    error → CLOSED  error           .
    frame ``5``         error           → WEBSOCKET [3]_ error → CLOSED  rest → CLOSED   .
    frame, message      error           error → POLLING  message         error           .
    frame, malformed    error           error → POLLING  error → CLOSED  error           .
    ``1`` of the client → CLOSED        → CLOSED         → CLOSED        → CLOSED        .
    WebSocket lost      .               → POLLING        → CLOSED        .               .
    send                queue           queue            queue           .               .
    close               → CLOSING [4]_  → CLOSING [4]_   → CLOSED        .               .
    upgrade is late     .               → POLLING        .               .               .
    ping is due         ping            ping             ping            .               .
    pong is late        → CLOSED        → CLOSED         → CLOSED        → CLOSED        .
    =================== =============== ================ =============== =============== ========

    A dot: nothing happens. *error*: :class:`EngineError` is raised.

    .. [1] In ``PROBED`` and ``PROVEN`` it is answered at once, by a noop when there is nothing else: the
       client waits for its last poll before it changes over.
    .. [2] ``frames`` then gives the answer, and makes it ``PROVEN``.
    .. [3] But in ``OFFERED``, without a probe: error → ``POLLING``.
    .. [4] With a poll held and nothing left to send, at once ``CLOSED``.

    A poll that is held when the session ends is answered by a close packet; by a noop when the client closed.
    A close packet never follows messages in one payload: the reference client would act on it first, and take
    its being put out for a failure of the connection.
    """

    __slots__ = (
        "_heartbeat",
        "_pinged",
        "_polled",
        "_queue",
        "_queued_bytes",
        "_settings",
        "_upgrade_by",
        "deadline",
        "reason",
        "sid",
        "state",
    )

    def __init__(self, sid: str, settings: EngineSettings, now: float, *, websocket: bool) -> None:
        self.sid = sid
        self.state = State.WEBSOCKET if websocket else State.POLLING
        self.reason: Reason | None = None
        self.deadline = now + settings.ping_interval
        self._settings = settings
        self._heartbeat = self.deadline
        self._upgrade_by = inf
        self._pinged = False
        self._polled = False
        self._queued_bytes = 0
        handshake = _Open(
            sid,
            ("websocket",) if settings.upgrades and not websocket else (),
            round(settings.ping_interval * 1000),
            round(settings.ping_timeout * 1000),
            settings.max_payload,
        )
        self._queue = [Outgoing(b"0" + msgspec.json.encode(handshake))]

    # What comes in.

    def receive_frame(self, data: bytes, binary: bool) -> Message | None:
        """A WebSocket message arrived; returns the message in it, if any. Raises :class:`EngineError`.

        Whoever unframes it limits its size and sees to it that text is UTF-8.
        """
        state = self.state
        if state is State.WEBSOCKET:
            if binary:
                return data, True
            if data.startswith(b"4"):
                return data[1:], False
            try:
                return self._receive_packet(decode_packet(data))
            except EngineError:
                self._end(Reason.MALFORMED, _CLOSE)
                raise
        text = b"" if binary else data
        if state in _UPGRADING:
            self._receive_probe(text)
        elif state is State.CLOSING and text == PacketKind.UPGRADE.value:
            self._enter_closed()
        elif state is not State.CLOSED:
            raise EngineError(ErrorCode.BAD_REQUEST, "a frame on a WebSocket that does not count")
        return None

    def receive_payload(self, body: bytes) -> list[Message]:
        """A POST arrived; returns its messages, none when it is malformed. Raises :class:`EngineError`."""
        self._check_polling()
        try:
            if len(body) > self._settings.max_payload:
                raise EngineError(ErrorCode.BAD_REQUEST, f"a payload of {len(body)} bytes", 413)
            messages = []
            for packet in decode_payload(body, self._settings.max_packets):
                message = self._receive_packet(packet)
                if message is not None:
                    messages.append(message)
                elif self.state is State.CLOSED:
                    break
        except EngineError:
            self._end(Reason.MALFORMED, _CLOSE)
            raise
        return [] if self.state is State.CLOSING else messages

    def poll(self) -> None:
        """A GET arrived: hold it until :meth:`payload` returns its answer. Raises :class:`EngineError`."""
        self._check_polling()
        if self._polled:
            self._end(Reason.MALFORMED, _CLOSE)
            raise EngineError(ErrorCode.BAD_REQUEST, "a second poll while one is held")
        self._polled = True
        if self.state is State.CLOSING and not self._queue:
            self._end(Reason.SERVER, _CLOSE)

    def poll_lost(self) -> None:
        """The connection of the held GET went away."""
        self._polled = False
        if self.state is State.POLLING or self.state in _UPGRADING:
            self._end(Reason.LOST, _CLOSE)

    def offer(self, now: float) -> None:
        """A WebSocket with this ``sid`` was opened. Raises :class:`EngineError` when it is to be closed.

        That is how the reference server turns it down, and its clients know it: not by an HTTP error.
        """
        if self.state is not State.POLLING or not self._settings.upgrades:
            raise EngineError(ErrorCode.BAD_REQUEST, "a WebSocket that the session has no use for")
        self.state = State.OFFERED
        self._upgrade_by = now + self._settings.upgrade_timeout
        self.deadline = min(self._heartbeat, self._upgrade_by)

    def websocket_lost(self) -> None:
        """The session's WebSocket, offered or in use, went away."""
        if self.state is State.WEBSOCKET:
            self._end(Reason.LOST, _CLOSE)
        elif self.state in _UPGRADING:
            self._leave_upgrade(State.POLLING)

    def tick(self, now: float) -> None:
        """It is ``now``, in the seconds of whichever clock the session was made with: ping, or give up."""
        if now >= self._upgrade_by:
            self._leave_upgrade(State.POLLING)
        if now < self._heartbeat:
            return
        if self._pinged:
            self._end(Reason.PING_TIMEOUT, _CLOSE)
            return
        self._pinged = True
        if self.state is not State.CLOSING:
            self._queue.append(_PING)
        # From now, not from when the ping was due: this process may have stood still, or it waited for the last answer,
        # where the time-out is longer than the interval.
        self._heartbeat = now + self._settings.ping_timeout
        self.deadline = min(self._heartbeat, self._upgrade_by)

    # What goes out.

    def send(self, outgoing: Outgoing) -> None:
        """Queue a message for the client; once the session is closing or closed, do nothing.

        Raises :class:`EngineOverflowError`, which leaves the session as it was.
        """
        if self.state is State.CLOSING or self.state is State.CLOSED:
            return
        size = len(outgoing.text) + sum(map(len, outgoing.attachments))
        settings = self._settings
        if len(self._queue) >= settings.max_queued or self._queued_bytes + size > settings.max_queued_bytes:
            raise EngineOverflowError(f"{len(self._queue)} packets, {self._queued_bytes} bytes, wait to be fetched")
        self._queue.append(outgoing)
        self._queued_bytes += size

    def discard(self) -> None:
        """Forget what waits for the client: it does not fetch it."""
        self._take()

    def close(self) -> None:
        """End the session, as soon as the client has what was sent to it before."""
        if self.state is State.CLOSING or self.state is State.CLOSED:
            return
        self.reason = Reason.SERVER
        if self.state is State.WEBSOCKET:
            self._enter_closed()
        elif self._polled and not self._queue:
            self._end(Reason.SERVER, _CLOSE)
        else:
            self._leave_upgrade(State.CLOSING)

    def payload(self) -> bytes | None:
        """The answer to the held poll; ``None`` when none is held, or when there is nothing to say yet."""
        if not self._polled:
            return None
        if self._queue and self.state is not State.WEBSOCKET:
            packets = self._take()
        elif self.state in (State.PROBED, State.PROVEN, State.WEBSOCKET):
            # Releases the poll that the client waits for before it changes over.
            packets = [_NOOP]
        else:
            return None
        self._polled = False
        return encode_payload(packets)

    def frames(self) -> list[Outgoing]:
        """What is to be written to the WebSocket now, in order.

        In state ``WEBSOCKET``, and with nothing left here, a transport may as well write messages itself.
        """
        if self.state is State.PROBED:
            self.state = State.PROVEN
            return [_PROBE_ANSWER]
        if self.state is State.WEBSOCKET or (self.state is State.CLOSED and not self._polled):
            return self._take()
        return []

    def _take(self) -> list[Outgoing]:
        packets, self._queue = self._queue, []
        self._queued_bytes = 0
        return packets

    def _check_polling(self) -> None:
        if self.state is State.CLOSED:
            raise EngineError(ErrorCode.UNKNOWN_SID, "the session is over")
        if self.state is State.WEBSOCKET:
            raise EngineError(ErrorCode.BAD_REQUEST, "polling after the upgrade")

    def _receive_packet(self, packet: Packet) -> Message | None:
        match packet.kind:
            case PacketKind.MESSAGE:
                return packet.data, packet.binary
            case PacketKind.PONG:
                if self._pinged and self.state is not State.CLOSING:
                    self._pinged = False
                    # The next ping is due one interval after the last, or with the answer when that took longer.
                    self._heartbeat += self._settings.ping_interval - self._settings.ping_timeout
                    self.deadline = min(self._heartbeat, self._upgrade_by)
            case PacketKind.CLOSE:
                self._end(Reason.CLIENT, _NOOP)
            case PacketKind.NOOP:
                pass
            case _:
                raise EngineError(ErrorCode.BAD_REQUEST, f"{packet.kind.name} is not the client's to send")
        return None

    def _receive_probe(self, text: bytes) -> None:
        if text == _PROBE:
            self.state = State.PROBED
        elif text == PacketKind.UPGRADE.value and self.state is not State.OFFERED:
            self._leave_upgrade(State.WEBSOCKET)
        else:
            self._leave_upgrade(State.POLLING)
            raise EngineError(ErrorCode.BAD_REQUEST, "a WebSocket that does not probe and upgrade")

    def _leave_upgrade(self, state: State) -> None:
        self.state = state
        self._upgrade_by = inf
        self.deadline = self._heartbeat

    def _end(self, reason: Reason, farewell: Outgoing) -> None:
        self.reason = self.reason or reason
        self._enter_closed()
        self._take()
        if self._polled:
            self._queue.append(farewell)

    def _enter_closed(self) -> None:
        self.state = State.CLOSED
        self.deadline = self._heartbeat = self._upgrade_by = inf
