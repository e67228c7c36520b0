"""The Engine.IO connection of one client, sans-IO, over WebSocket, HTTP long-polling, or changing over.

Called by :mod:`kraftek.edge.engineio.clients`: it hands in what arrived, writes what the connection owes, and passes
messages up to :mod:`kraftek.edge.dialects.socketio_packets`, or to whatever else speaks on top of Engine.IO. Nothing
here knows a socket, a timer or a clock: time is an argument.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, StrEnum
from math import inf
from typing import Final

import msgspec
from msgspec import Struct

from kraftek.contract.messages import Outgoing
from kraftek.edge.engineio.packets import (
    EngineError,
    ErrorCode,
    Message,
    Packet,
    PacketKind,
    decode_packet,
    decode_payload,
    encode_payload,
)

__all__ = ["CLOSE_TIMEOUT", "UPGRADE_TIMEOUT", "ConnectionState", "EngineSession", "EngineSettings", "Reason"]

UPGRADE_TIMEOUT: Final = 10.0
"""Seconds that a client has to change over from polling to WebSocket; the reference server's."""

CLOSE_TIMEOUT: Final = 5.0
"""Seconds that a client has to fetch what was left when we closed. One that is there polls again within a round trip;
one that is gone would count as a client until a ping is late."""

_CLOSE: Final = Outgoing(PacketKind.CLOSE.value)
_PING: Final = Outgoing(PacketKind.PING.value)
_NOOP: Final = Outgoing(PacketKind.NOOP.value)
_PROBE: Final = b"2probe"
_PROBE_ANSWER: Final = Outgoing(b"3probe")


class EngineSettings(Struct, frozen=True, kw_only=True):
    """What all sessions share. Times in seconds, sizes in bytes. The first three are the reference server's.

    ``max_payload``: of one POST; the WebSocket transport limits its messages to the same.
    """

    ping_interval: float = 25.0
    ping_timeout: float = 20.0
    max_payload: int = 1_000_000


class _Open(Struct, rename="camel"):
    sid: str
    upgrades: tuple[str, ...]
    ping_interval: int
    ping_timeout: int
    max_payload: int


class ConnectionState(Enum):
    """Where an :class:`EngineSession` is; the table there has the transitions."""

    POLLING = "HTTP long-polling alone"
    OFFERED = "a WebSocket was opened beside it, and has proven nothing yet"
    PROBED = "the WebSocket brought the probe, which we owe the answer to"
    PROVEN = "the probe is answered, the client has yet to change over"
    WEBSOCKET = "WebSocket alone"
    CLOSING = "we closed, and what is left waits to be fetched"
    CLOSED = "over"


_UPGRADING: Final = (ConnectionState.OFFERED, ConnectionState.PROBED, ConnectionState.PROVEN)


class Reason(StrEnum):
    """Why a session ended."""

    CLIENT = "client close"
    SERVER = "server close"
    PING_TIMEOUT = "ping timeout"
    LOST = "transport lost"
    MALFORMED = "protocol error"


class EngineSession:
    """One client, over polling, over a WebSocket, or on its way from one to the other.

    ``sid`` is the client's secret: whoever knows it can act as the client, so it must not be shown
    around. ``deadline`` is the time at which :meth:`tick` next has something to do. ``heartbeat``: when it is to
    be pinged, or once it was ``pinged``, to have answered. ``reason`` says why the session ended, or is ending.

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
    second poll [5]_    error → CLOSED  error → CLOSED   error           error → CLOSED  error
    poll lost           → CLOSED        → CLOSED         .               .               .
    POST                messages        messages         error           .               error
    second POST         error → CLOSED  error → CLOSED   error           error → CLOSED  error
    POST lost           → CLOSED        → CLOSED         .               .               .
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
    pong is late        → CLOSED        → CLOSED         → CLOSED        .               .
    fetching is late    .               .                .               → CLOSED        .
    =================== =============== ================ =============== =============== ========

    A dot: nothing happens. *error*: :class:`EngineError` is raised.

    .. [1] In ``PROBED`` and ``PROVEN`` it is answered at once, by a noop when there is nothing else: the
       client waits for its last poll before it changes over.
    .. [2] ``frames`` then gives the answer, and makes it ``PROVEN``.
    .. [3] But in ``OFFERED``, without a probe: error → ``POLLING``.
    .. [4] With a poll held and nothing left to send, at once ``CLOSED``.
    .. [5] While one is held, or while the answer to the last one is not read.

    A poll that is held when the session ends is answered by a close packet; by a noop when the client closed.
    A close packet never follows messages in one payload: the reference client would act on it first, and take
    its being put out for a failure of the connection.
    """

    __slots__ = (
        "_polled",
        "_posting",
        "_queue",
        "_settings",
        "_upgrade_by",
        "deadline",
        "heartbeat",
        "pinged",
        "reason",
        "sid",
        "state",
    )

    def __init__(self, sid: str, settings: EngineSettings, now: float, *, websocket: bool) -> None:
        self.sid = sid
        self.state = ConnectionState.WEBSOCKET if websocket else ConnectionState.POLLING
        self.reason: Reason | None = None
        self.deadline = now + settings.ping_interval
        self._settings = settings
        self.heartbeat = self.deadline
        self._upgrade_by = inf
        self.pinged = False
        self._polled = False
        self._posting = False
        handshake = _Open(
            sid,
            ("websocket",) if not websocket else (),
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
        if state is ConnectionState.WEBSOCKET:
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
        elif state is ConnectionState.CLOSING and text == PacketKind.UPGRADE.value:
            self._enter_closed()
        elif state is not ConnectionState.CLOSED:
            raise EngineError(ErrorCode.BAD_REQUEST, "a frame on a WebSocket that does not count")
        return None

    def post(self) -> None:
        """A POST arrives; its body may be yet to come. Raises :class:`EngineError`."""
        self._check_polling()
        if self._posting:
            self._end(Reason.MALFORMED, _CLOSE)
            raise EngineError(ErrorCode.BAD_REQUEST, "a second POST while one is under way")
        self._posting = True

    def receive_payload(self, body: bytes) -> Iterator[Message | None]:
        """The messages of the POST that arrived, one by one, up to a malformed one. Raises :class:`EngineError`.

        ``None`` is for a packet without a message, so that a million of them can be handled by and by.

        The next POST may come when :meth:`posted` was called.
        """
        self._check_polling()
        try:
            if len(body) > self._settings.max_payload:
                raise EngineError(ErrorCode.BAD_REQUEST, f"a payload of {len(body)} bytes", 413)
            for packet in decode_payload(body):
                if self.state is ConnectionState.CLOSED:
                    return
                message = self._receive_packet(packet)
                yield message if self.state is not ConnectionState.CLOSING else None
        except EngineError:
            self._end(Reason.MALFORMED, _CLOSE)
            raise

    def posted(self) -> None:
        """The POST is answered."""
        self._posting = False

    def post_lost(self) -> None:
        """The connection of the POST went away before its body was there."""
        self._posting = False
        self._lose()

    def poll(self, *, read: bool = True) -> None:
        """A GET arrived: hold it until :meth:`payload` returns its answer. ``read``: the client has read the answer to
        the last one. Raises :class:`EngineError`.
        """
        self._check_polling()
        if self._polled or not read:
            self._end(Reason.MALFORMED, _CLOSE)
            what = "a second poll while one is held" if read else "a poll before the last answer was read"
            raise EngineError(ErrorCode.BAD_REQUEST, what)
        self._polled = True
        if self.state is ConnectionState.CLOSING and not self._queue:
            self._end(Reason.SERVER, _CLOSE)

    def poll_lost(self) -> None:
        """The connection of the held GET went away."""
        self._polled = False
        self._lose()

    def offer(self, now: float) -> None:
        """A WebSocket with this ``sid`` was opened. Raises :class:`EngineError` when it is to be closed.

        That is how the reference server turns it down, and its clients know it: not by an HTTP error.
        """
        if self.state is not ConnectionState.POLLING:
            raise EngineError(ErrorCode.BAD_REQUEST, "a WebSocket that the session has no use for")
        self.state = ConnectionState.OFFERED
        self._upgrade_by = now + UPGRADE_TIMEOUT
        self.deadline = min(self.heartbeat, self._upgrade_by)

    def websocket_lost(self) -> None:
        """The session's WebSocket, offered or in use, went away."""
        if self.state is ConnectionState.WEBSOCKET:
            self._end(Reason.LOST, _CLOSE)
        elif self.state in _UPGRADING:
            self._leave_upgrade(ConnectionState.POLLING)

    def tick(self, now: float, *, read: bool = True) -> None:
        """It is ``now``, in the seconds of whichever clock the session was made with: ping, or give up.

        ``read``: the client was read since the last ping, so that its answer would have been noticed.
        """
        if now >= self._upgrade_by:
            self._leave_upgrade(ConnectionState.POLLING)
        if now < self.heartbeat:
            return
        if self.pinged and not read and self.state is not ConnectionState.CLOSING:
            self.heartbeat = now + self._settings.ping_timeout
            self.deadline = min(self.heartbeat, self._upgrade_by)
            return
        if self.pinged:
            self._end(Reason.PING_TIMEOUT, _CLOSE)
            return
        self.pinged = True
        self._queue.append(_PING)
        # From now, not from when the ping was due: this process may have stood still, or it waited for the last answer,
        # where the time-out is longer than the interval.
        self.heartbeat = now + self._settings.ping_timeout
        self.deadline = min(self.heartbeat, self._upgrade_by)

    # What goes out.

    def send(self, outgoing: Outgoing) -> None:
        """Queue a message for the client; once the session is closing or closed, do nothing.

        What must wait, because the session ``awaits_poll``, waits better elsewhere: here nothing is bounded.
        """
        if self.state is not ConnectionState.CLOSING and self.state is not ConnectionState.CLOSED:
            self._queue.append(outgoing)

    def fetch(self, outgoings: list[Outgoing]) -> None:
        """What was sent before, and has waited elsewhere, is fetched: queue it, also while the session is closing."""
        self._queue += outgoings

    @property
    def awaits_poll(self) -> bool:
        """Whether nothing can be sent before the client polls again, or has changed over."""
        return not self._polled and (self.state is ConnectionState.POLLING or self.state in _UPGRADING)

    @property
    def on_websocket(self) -> bool:
        """Whether a WebSocket takes what is left: it is all that the client has, or the last it was to have."""
        return self.state is ConnectionState.WEBSOCKET or self.state is ConnectionState.CLOSED

    @property
    def ends(self) -> float:
        """When it ends unless the client answers the ping, or ``inf``."""
        return self.heartbeat if self.pinged else inf

    def discard(self) -> None:
        """Forget what waits for the client: it does not fetch it."""
        self._take()

    def close(self, now: float) -> None:
        """End the session, as soon as the client has what was sent to it before, or has had the time to fetch it."""
        if self.state is ConnectionState.CLOSING or self.state is ConnectionState.CLOSED:
            return
        self.reason = Reason.SERVER
        if self.state is ConnectionState.WEBSOCKET:
            self._enter_closed()
        elif self._polled and not self._queue:
            self._end(Reason.SERVER, _CLOSE)
        else:
            # No more pings: when this is over, so is the session.
            self.pinged = True
            self.heartbeat = now + CLOSE_TIMEOUT
            self._leave_upgrade(ConnectionState.CLOSING)

    def payload(self) -> bytes | None:
        """The answer to the held poll; ``None`` when none is held, or when there is nothing to send yet."""
        if not self._polled:
            return None
        if self._queue and self.state is not ConnectionState.WEBSOCKET:
            packets = self._take()
        elif self.state in (ConnectionState.PROBED, ConnectionState.PROVEN, ConnectionState.WEBSOCKET):
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
        if self.state is ConnectionState.PROBED:
            self.state = ConnectionState.PROVEN
            return [_PROBE_ANSWER]
        if self.state is ConnectionState.WEBSOCKET or (self.state is ConnectionState.CLOSED and not self._polled):
            return self._take()
        return []

    def _take(self) -> list[Outgoing]:
        packets, self._queue = self._queue, []
        return packets

    def _check_polling(self) -> None:
        if self.state is ConnectionState.CLOSED:
            raise EngineError(ErrorCode.UNKNOWN_SID, "the session is over")
        if self.state is ConnectionState.WEBSOCKET:
            raise EngineError(ErrorCode.BAD_REQUEST, "polling after the upgrade")

    def _receive_packet(self, packet: Packet) -> Message | None:
        match packet.kind:
            case PacketKind.MESSAGE:
                return packet.data, packet.binary
            case PacketKind.PONG:
                if self.pinged and self.state is not ConnectionState.CLOSING:
                    self.pinged = False
                    # The next ping is due one interval after the last, or with the answer when that took longer.
                    self.heartbeat += self._settings.ping_interval - self._settings.ping_timeout
                    self.deadline = min(self.heartbeat, self._upgrade_by)
            case PacketKind.CLOSE:
                self._end(Reason.CLIENT, _NOOP)
            case PacketKind.NOOP:
                pass
            case _:
                raise EngineError(ErrorCode.BAD_REQUEST, f"{packet.kind.name} is not the client's to send")
        return None

    def _receive_probe(self, text: bytes) -> None:
        if text == _PROBE:
            self.state = ConnectionState.PROBED
        elif text == PacketKind.UPGRADE.value and self.state is not ConnectionState.OFFERED:
            self._leave_upgrade(ConnectionState.WEBSOCKET)
        else:
            self._leave_upgrade(ConnectionState.POLLING)
            raise EngineError(ErrorCode.BAD_REQUEST, "a WebSocket that does not probe and upgrade")

    def _lose(self) -> None:
        if self.state is ConnectionState.POLLING or self.state in _UPGRADING:
            self._end(Reason.LOST, _CLOSE)

    def _leave_upgrade(self, state: ConnectionState) -> None:
        self.state = state
        self._upgrade_by = inf
        self.deadline = self.heartbeat

    def _end(self, reason: Reason, farewell: Outgoing) -> None:
        self.reason = self.reason or reason
        self._enter_closed()
        self._take()
        if self._polled:
            self._queue.append(farewell)

    def _enter_closed(self) -> None:
        self.state = ConnectionState.CLOSED
        self.deadline = self.heartbeat = self._upgrade_by = inf
