"""Socket.IO as a dialect: converts packets of Socket.IO clients to the gateway's messages, and back.

One instance for each connection, opened by :mod:`kraftek.daemon.lifecycle` on a client of
:mod:`kraftek.edge.engineio.clients`; the packets themselves are :mod:`kraftek.edge.dialects.socketio_packets`. The
mapping is in docs/socketio.rst.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace
from zope.interface import implementer

from kraftek.contract.errors import CLOSE_CODES, Code, PeerError
from kraftek.contract.interfaces import IClientLink, IDialect, IMovableReceiver, IReceiver
from kraftek.contract.messages import (
    NULL,
    Ack,
    Acknowledge,
    Admitted,
    Authenticate,
    Authenticated,
    Cancel,
    Closing,
    Connected,
    Delivery,
    Drained,
    ErrorMessage,
    ErrorPayload,
    Event,
    Gap,
    HistoryPage,
    Inbound,
    Joined,
    Left,
    Outbound,
    Outgoing,
    Progress,
    Recover,
    RequestId,
)
from kraftek.contract.order import Order
from kraftek.contract.surrogates import HALF, is_whole
from kraftek.edge.dialects.commands import (
    ask_presence,
    authenticate,
    cancel,
    expiry,
    history,
    join,
    leave,
    page,
    progress,
    standing,
)
from kraftek.edge.dialects.socketio_packets import (
    MAIN,
    AckPacket,
    ConnectPacket,
    DisconnectPacket,
    EventPacket,
    SocketError,
    SocketSession,
    SocketSettings,
    encode_ack,
    encode_event,
)

__all__ = ["SocketIOClient", "SocketIODialect"]


class _Refusal(Struct):
    error: ErrorPayload


_encode = msgspec.json.Encoder().encode

_LONGEST = 64
"""Characters of what a client says it was, and of where."""

_GOOD_BYE = frozenset(
    CLOSE_CODES[code]
    for code in (
        Code.INVALID_MESSAGE,
        Code.AUTH_FAILED,
        Code.ACCESS_REVOKED,
        Code.DUPLICATE_CONNECTION,
    )
)
"""Close codes after which a client is not to come back by itself. It is put out of the namespace: "io server
disconnect". After all others it loses its transport, and reconnects."""


Open = Callable[[IClientLink, IDialect], IReceiver]
"""Begins a session of the gateway on this link."""


class SocketIOState(Struct, kw_only=True):
    """A client as another version of the gateway reads it: the namespaces that it is in, the messages that have arrived
    of a binary packet, the id of its socket, the name by which it may come back, and its own names of requests.
    """

    joined: tuple[str, ...]
    arrived: list[bytes]
    socket_id: str
    pid: str = ""
    named: dict[int, RequestId] = {}


_decode_state = msgspec.msgpack.Decoder(SocketIOState).decode


@implementer(IMovableReceiver)
class SocketIOClient:
    """One client on its connection, which outlasts the namespace: who leaves that may enter it again, or close.

    Each time it leaves, its session ends, and the next one begins: so it has as long to come back as a new connection
    has to authenticate. ``open``: the gateway's. ``given``: what another version gave, and what finds its session.
    ``order``: as of :class:`SocketIODialect`.
    """

    __slots__ = ("_dialect", "_link", "_open", "_order", "_session", "_settings")

    def __init__(
        self,
        link: IClientLink,
        settings: SocketSettings,
        open: Open,
        given: tuple[bytes, Open] | None = None,
        *,
        order: Order | None = None,
    ) -> None:
        self._link = link
        self._settings = settings
        self._open = open
        self._order = order
        self._dialect = SocketIODialect(link, settings, order)
        if given is None:
            self._session = open(link, self._dialect)
        else:
            state, restore = given
            self._dialect.restore(_decode_state(state))
            self._session = restore(link, self._dialect)

    def give(self) -> bytes:
        return msgspec.msgpack.encode(self._dialect.give())

    def receive(self, data: bytes, binary: bool = False) -> None:
        self._session.receive(data, binary)
        if self._dialect.left:
            self._begin_anew()

    def charge(self, events: int, size: int) -> None:
        self._session.charge(events, size)

    def lost(self) -> None:
        self._session.lost()

    def overrun(self) -> Outgoing | None:
        return self._session.overrun()

    def gap(self, gap: Gap) -> Outgoing | None:
        return self._session.gap(gap)

    def _begin_anew(self) -> None:
        self._session.lost()
        self._dialect = SocketIODialect(self._link, self._settings, self._order)
        self._session = self._open(self._link, self._dialect)
        # The session that is over may have held up what the client sends.
        self._link.resume()


@implementer(IDialect)
class SocketIODialect:
    """The grammar of one Socket.IO client in the main namespace, the only one there is.

    ``link``: the client's. What Socket.IO answers by itself, without the gateway, is written to it. ``left``: the
    client has left the namespace, and this is over. ``order``: what each event ends in, if clients that lose their
    connection come back as what they were: the client keeps it, and shows it then. Without, they do not.

    Pages do not know the ids of their acknowledgements. Of a request whose answer is to come in parts they say what to
    name it by: ``_named`` has these names by the ids, until the request is answered.
    """

    __slots__ = ("_bounds", "_link", "_named", "_order", "_pid", "_put_out", "_session", "_socket_id", "_waits", "left")

    codec = "socket.io"
    lasting_ids = False  # the ids of acknowledgements begin from 0 with every connection

    def __init__(self, link: IClientLink, settings: SocketSettings, order: Order | None = None) -> None:
        self._link = link
        self._order = order
        self._pid = ""
        self._put_out = self._waits = self.left = False
        self._session = SocketSession(settings)
        self._bounds = settings.bounds
        self._socket_id = ""
        self._named: dict[int, RequestId] = {}

    def give(self) -> SocketIOState:
        """For another version of the gateway."""
        joined, arrived = self._session.give()
        return SocketIOState(
            joined=joined, arrived=arrived, socket_id=self._socket_id, pid=self._pid, named=self._named
        )

    def restore(self, state: SocketIOState) -> None:
        """Go on from what another version gave."""
        self._session.restore(state.joined, state.arrived)
        self._socket_id, self._pid, self._named = state.socket_id, state.pid, state.named

    @property
    def recovers(self) -> bool:
        """Who has left, or was put out, does not come back as what it was."""
        return self._order is not None and not self.left and not self._put_out

    def received(self, data: bytes, binary: bool) -> Inbound | None:
        try:
            packet = self._session.receive(data, binary)
        except SocketError as error:
            raise PeerError(Code.INVALID_MESSAGE, str(error), closes=error.closes, id=error.ack_id) from None
        if type(packet) is EventPacket:
            message = self._meant(packet)
            if packet.mended and message is not None and not is_whole(message):
                raise PeerError(Code.INVALID_MESSAGE, HALF, id=packet.ack_id)
            return message
        if type(packet) is ConnectPacket:
            return self._connected(packet)
        if type(packet) is AckPacket:
            return Acknowledge(packet.ack_id)
        if type(packet) is DisconnectPacket:
            self.left = True
        elif type(packet) is Outgoing:
            self._link.write(packet)
        return None

    def encode(self, message: Outbound) -> Outgoing | None:
        # The same for every client, connected or not: it is encoded once for all.
        if type(message) is Delivery:
            if message.room_id is None and _is_ack_id(message.id):
                refuses = message.type == "error"
                return self._ack(message.id, b'{"error":%b}' % message.payload if refuses else message.payload)
            try:
                if message.receipt is not None:
                    # The client keeps the last argument as its offset only if that is no function.
                    return encode_event(message.type, message.payload, ack_id=message.receipt)
                if message.append is not None:
                    payload = b"%b,%b" % (message.payload, _encode(message.append))
                    return self._event(message.type, payload, message.order)
                return self._event(message.type, message.payload, message.order)
            except ValueError:  # a reserved name
                return None
        if type(message) is Connected:
            self._socket_id, self._pid = message.socket_id, message.pid
            return None
        if type(message) is Admitted:
            self._waits = False
            self._socket_id, self._pid = message.socket_id, message.pid
            return self._session.accept(MAIN, self._socket_id, self._pid)
        return self._encode_answer(message) if self._session.connected else None

    def _encode_answer(self, message: Outbound) -> Outgoing | None:
        match message:
            case ErrorMessage():
                return self._error(message)
            case Ack(id, receivers):
                return self._ack(id, _encode({"receivers": receivers})) if _is_ack_id(id) else None
            case Authenticated(user_id, room_id, id, expires_in, where):
                entered = {"success": True, "userId": user_id, "roomId": room_id, **expiry(expires_in)}
                if message.recovered:
                    entered |= {"recovered": True, "socketId": message.socket_id}
                return self._answer("authenticated", {**entered, **standing(where)}, id, message.order)
            case Joined(room_id, id, expires_in, where):
                return self._answer("joined", {"roomId": room_id, **expiry(expires_in), **standing(where)}, id)
            case Left(room_id, id):
                return self._answer("left", {"roomId": room_id}, id)
            case HistoryPage():
                return self._page(message)
            case Progress():
                return self._part(message)
            case Gap(rooms):
                return self._event("gap", _encode({"rooms": rooms}))
            case Drained(reconnect_after):
                return self._event("drain", _encode({"reconnectAfter": reconnect_after}))
            # Without that packet the client comes back by itself, and calls its function for `auth` again.
            case Closing(close_code, returns) if close_code in _GOOD_BYE and not returns:
                self._put_out = True
                return self._session.disconnect()
        return None

    def _error(self, message: ErrorMessage) -> Outgoing:
        about, room_id, limit = message.event_type, message.room_id, message.limit
        error = ErrorPayload(message.code, message.message, about, message.retry_after, room_id, limit)
        if _is_ack_id(message.id):
            return self._ack(message.id, _encode(_Refusal(error)))
        return self._event("error", _encode(error))

    def _page(self, message: HistoryPage) -> Outgoing:
        found = _encode(page(message))
        return encode_ack(message.id, found) if _is_ack_id(message.id) else self._event("history", found)

    def _part(self, message: Progress) -> Outgoing | None:
        if not _is_ack_id(message.id) or message.id not in self._named:
            return None
        part = {"id": self._named[message.id], "number": message.place.number, "payload": message.payload}
        return self._event("progress", _encode(part))

    def _ack(self, ack_id: int, payload: bytes | Raw) -> Outgoing:
        """The one answer."""
        self._named.pop(ack_id, None)
        return encode_ack(ack_id, payload)

    def _event(self, name: str, payload: bytes | Raw, order: str | None = None) -> Outgoing:
        if self._order is None:
            return encode_event(name, payload)
        return encode_event(name, payload, b'"%b"' % (order or self._order.now).encode())

    def _answer(self, name: str, body: Any, id: RequestId | None, order: str | None = None) -> Outgoing:
        """The event that pages wait for; with an acknowledgement behind it, if that was asked for."""
        payload = _encode(body)
        event = self._event(name, payload, order)
        if not _is_ack_id(id):
            return event
        self._link.write(event)
        return encode_ack(id, payload)

    def _connected(self, packet: ConnectPacket) -> Inbound | None:
        if self._waits:
            raise PeerError(Code.INVALID_MESSAGE, "a second CONNECT to the same namespace", closes=True)
        was = None if self._order is None or packet.auth is None else _what_it_was(packet.auth)
        message = None if was is None or packet.auth is None else _credentials(packet, packet.auth, was)
        if message is not None:
            self._waits = True
            return message
        self._link.write(self._session.accept(MAIN, self._socket_id, self._pid))
        return None if packet.auth is None else _credentials(packet, packet.auth)

    def _meant(self, packet: EventPacket) -> Inbound | None:
        name, args, ack_id = packet.name, packet.args, packet.ack_id
        if len(args) > (2 if ":" in name else 1):
            raise PeerError(Code.INVALID_MESSAGE, f"expected one payload, found {len(args)} arguments", id=ack_id)
        payload = args[0] if args else NULL
        if len(payload) > self._bounds.harmless and (complaint := self._bounds.complaint(bytes(payload))):
            raise PeerError(Code.INVALID_MESSAGE, complaint, id=ack_id)
        match name:
            case "authenticate":
                return authenticate(payload, ack_id)
            case "join":
                return join(payload, ack_id)
            case "leave":
                return leave(payload, ack_id)
            case "history":
                return history(payload, ack_id)
            case "presence":
                return ask_presence(payload, ack_id)
            case "cancel":
                return self._cancels(cancel(payload, ack_id), ack_id)
            case _ if len(args) == 2:
                return self._in_parts(packet, payload)
            case _:
                return Event(name, payload, ack_id)

    def _in_parts(self, packet: EventPacket, payload: Raw) -> Event:
        """A request whose answer may come in parts."""
        ack_id = packet.ack_id
        named = progress(packet.args[1], ack_id)
        if packet.mended and not is_whole(named):
            raise PeerError(Code.INVALID_MESSAGE, HALF, id=ack_id)
        if ack_id is None:
            raise PeerError(Code.INVALID_MESSAGE, "an event without an acknowledgement has no parts of an answer")
        if self._named.get(ack_id, named) != named or (ack_id not in self._named and named in self._named.values()):
            raise PeerError(Code.INVALID_MESSAGE, "another request of this name waits for its answer", id=ack_id)
        self._named[ack_id] = named
        return Event(packet.name, payload, ack_id, progress=True)

    def _cancels(self, message: Cancel, ack_id: int | None) -> Cancel | None:
        """Answered at once: the request's own acknowledgement says what became of it."""
        if ack_id is not None:
            self._link.write(encode_ack(ack_id, b"{}"))
        if message.id is None:
            return message
        found = [number for number, name in self._named.items() if name == message.id]
        return Cancel(found[0], message.event_type) if found else None


class _Was(Struct):
    # A page may have fields of these names of its own.
    pid: object = None
    offset: object = None


_decode_was = msgspec.json.Decoder(_Was).decode


def _what_it_was(auth: Raw) -> Recover | None:
    """What the client's library adds to ``auth`` when it comes back. What cannot be read is judged with the token."""
    try:
        was = _decode_was(auth)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    pid, last = was.pid, was.offset
    if isinstance(pid, str) and isinstance(last, str) and 0 < len(pid) <= _LONGEST and len(last) <= _LONGEST:
        return Recover(pid, last)
    return None


def _credentials(packet: ConnectPacket, auth: Raw, recover: Recover | None = None) -> Authenticate | None:
    """``None`` where it shows no token. Raises :class:`PeerError`."""
    message = authenticate(auth, named="auth")
    if not message.token.value:
        return None
    if packet.mended and not is_whole(message):
        raise PeerError(Code.INVALID_MESSAGE, HALF)
    return message if recover is None else replace(message, recover=recover)


def _is_ack_id(id: RequestId | None) -> TypeGuard[int]:
    """Whether this id is one of a Socket.IO client: no other id may end up in an acknowledgement."""
    return type(id) is int and 0 <= id < 10**16
