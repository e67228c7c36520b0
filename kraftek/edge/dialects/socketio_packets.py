"""Socket.IO protocol 5, sans-IO: packets, and one client's side of the protocol.

Called by whoever serves Socket.IO clients, between the transport (:mod:`kraftek.edge.engineio.connection` hands it
messages, and takes what it encodes) and an application. Payloads stay JSON: they are cut out of packets and
put into packets as ``msgspec.Raw``, never parsed.

Binary attachments have no place in JSON. Towards the application each stands in its payload as
``{"_binary": "<base64>"}``, where the client had a buffer; and such an object, alone with that key, in a
payload that the application sends becomes an attachment, which the client sees as a buffer.

The rules are https://github.com/socketio/socket.io-protocol; where they are silent, the reference server's
habits. A client that breaks them is to be disconnected, as the reference server does.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import IntEnum
from itertools import chain, islice
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import astuple, replace

from kraftek.contract.json_text import JsonBounds
from kraftek.contract.messages import Outgoing
from kraftek.contract.settings import Limits
from kraftek.contract.surrogates import HALF, is_whole, mended
from kraftek.edge.engineio.packets import encode_message

__all__ = [
    "MAIN",
    "MAX_ARGUMENTS",
    "MAX_ATTACHMENTS",
    "MAX_NAMESPACE",
    "RESERVED_EVENTS",
    "AckPacket",
    "ConnectPacket",
    "DisconnectPacket",
    "EventPacket",
    "Header",
    "PacketKind",
    "SocketError",
    "SocketPacket",
    "SocketSession",
    "SocketSettings",
    "decode_header",
    "encode_ack",
    "encode_connect_error",
    "encode_event",
]

MAIN: Final = "/"
"""The namespace that packets are in when they name none."""

MAX_ARGUMENTS: Final = 16
"""Of one event or acknowledgement. Without a bound, a megabyte of ``[0,0,0…`` becomes 40 MB of objects."""

MAX_ATTACHMENTS: Final = 10
"""Of one packet: the default of the reference server, and what its clients accept."""

MAX_NAMESPACE: Final = 256
"""Bytes. It comes back to the client in a connect error."""

RESERVED_EVENTS: Final = frozenset(
    ("connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener")
)
"""Names that no event may have: clients use them for themselves, and disconnect when a packet carries one."""


class PacketKind(IntEnum):
    """The first byte of a packet."""

    CONNECT = 0
    DISCONNECT = 1
    EVENT = 2
    ACK = 3
    CONNECT_ERROR = 4
    BINARY_EVENT = 5
    BINARY_ACK = 6


class SocketError(ValueError):
    """The client broke the protocol: close its connection, unless it only gets an error (``closes``).

    The text repeats nothing it sent. ``ack_id``: that of the event which is refused, where it has one.
    """

    def __init__(self, text: str, *, closes: bool = True) -> None:
        super().__init__(text)
        self.closes = closes
        self.ack_id: int | None = None


class ConnectPacket(Struct, frozen=True):
    """The client wants into a namespace that there is: ``accept`` it, or send it an ``encode_connect_error``.

    ``auth``: the JSON object that it sent along, which may hold a secret. ``mended``: as in :class:`EventPacket`.
    """

    namespace: str
    auth: Raw | None = None
    mended: bool = False


class EventPacket(Struct, frozen=True, gc=False):
    """The client emitted an event. With an ``ack_id``, it waits for one ``encode_ack`` that carries it.

    ``mended``: halves of surrogate pairs were replaced in ``args`` (:mod:`kraftek.contract.surrogates`).
    """

    name: str
    args: tuple[Raw, ...] = ()
    ack_id: int | None = None
    namespace: str = MAIN
    mended: bool = False


class AckPacket(Struct, frozen=True, gc=False):
    """The client answers the event that was sent to it with this ``ack_id``, if there was one."""

    ack_id: int
    args: tuple[Raw, ...] = ()
    namespace: str = MAIN


class DisconnectPacket(Struct, frozen=True):
    """The client left a namespace. Its connection stays until it closes that too."""

    namespace: str


SocketPacket = ConnectPacket | EventPacket | AckPacket | DisconnectPacket


class Header(NamedTuple):
    """A decoded packet. ``payload`` is JSON, unchecked; empty when there is none."""

    kind: PacketKind
    attachments: int
    namespace: str
    ack_id: int | None
    payload: bytes


_KINDS: Final = {b"%d" % kind: kind for kind in PacketKind}

_ACKNOWLEDGED: Final = (PacketKind.EVENT, PacketKind.ACK, PacketKind.BINARY_EVENT, PacketKind.BINARY_ACK)

# An acknowledgement id is a JavaScript integer, of 16 digits at most. What follows them is the payload.
_HEADER: Final = re.compile(rb"([0-6])(?:([0-9]{1,9})-)?(?:(/[^,]*),?)?([0-9]{1,16})?")


def decode_header(text: bytes) -> Header:
    """Take a text packet apart. Raises :class:`SocketError`."""
    match = _HEADER.match(text)
    if match is None:
        raise SocketError("a packet of no known kind")
    digit, attachments, namespace, ack_id = match.groups()
    kind = _KINDS[digit]
    if (attachments is None) is (kind >= PacketKind.BINARY_EVENT):
        raise SocketError(f"{kind.name} and its number of attachments do not fit")
    if ack_id is not None and kind not in _ACKNOWLEDGED:
        raise SocketError(f"{kind.name} with an acknowledgement id")
    name = MAIN
    if namespace is not None:
        if len(namespace) > MAX_NAMESPACE:
            raise SocketError(f"a namespace of {len(namespace)} bytes")
        try:
            name = namespace.decode()
        except UnicodeDecodeError:
            raise SocketError("a namespace that is not UTF-8") from None
    return Header(
        kind,
        0 if attachments is None else int(attachments),
        name,
        None if ack_id is None else int(ack_id),
        text[match.end() :],
    )


def _array_decoder(*head: Any) -> msgspec.json.Decoder[Any]:
    """Decodes an array of ``head`` and at most ``MAX_ARGUMENTS`` raw values; stops at the first too many."""
    fields = [(f"head{i}", kind) for i, kind in enumerate(head)]
    args = [(f"arg{i}", Raw, Raw()) for i in range(MAX_ARGUMENTS)]
    array = msgspec.defstruct("Array", [*fields, *args], array_like=True, forbid_unknown_fields=True, gc=False)
    return msgspec.json.Decoder(array)


class _Auth(Struct):
    """Any object. What is in it is not looked at here: a megabyte of keys would be a hundred thousand strings."""


_decode_simple_event = msgspec.json.Decoder(tuple[str, Raw]).decode
_decode_event = _array_decoder(str | int | float).decode
_decode_args = _array_decoder().decode
_decode_auth = msgspec.json.Decoder(_Auth).decode
_encode = msgspec.json.Encoder().encode


def _decode(decode: Callable[[bytes], Any], payload: bytes) -> tuple[Any, bytes]:
    """The value, and the JSON that it was made from: ``payload``, or that mended. Raises :class:`SocketError`."""
    try:
        try:
            return decode(payload), payload
        except msgspec.DecodeError:
            whole = mended(payload)
            if whole is None:
                raise
            return decode(whole), whole
    except RecursionError:
        raise SocketError("JSON is nested too deeply", closes=False) from None
    except ValueError as error:
        raise SocketError(str(error)) from None


def _parse_event(payload: bytes) -> tuple[str, tuple[Raw, ...], bool]:
    """The name, the arguments, and whether these were mended. Raises :class:`SocketError`."""
    was_mended = False
    try:
        name, arg = _decode_simple_event(payload)
        args: tuple[Raw, ...] = (arg,)
    except (ValueError, RecursionError):
        event, json = _decode(_decode_event, payload)
        head, *rest = astuple(event)
        name = str(head)
        args = tuple(filter(None, rest))
        was_mended = json is not payload
        if was_mended and not is_whole(name):
            raise SocketError(HALF, closes=False) from None
    if name in RESERVED_EVENTS:
        raise SocketError("an event with a reserved name")
    return name, args, was_mended


def _read_event(payload: bytes, ack_id: int | None, namespace: str) -> EventPacket:
    try:
        name, args, was_mended = _parse_event(payload)
    except SocketError as error:
        error.ack_id = ack_id
        raise
    return EventPacket(name, args, ack_id, namespace, was_mended)


def _parse_args(payload: bytes) -> tuple[Raw, ...]:
    return tuple(filter(None, astuple(_decode(_decode_args, payload)[0])))


# Replacing in the text is exact. In JSON, a brace that is followed by a quote opens an object: inside a
# string that quote would end the string, and what follows here could not.
_PLACEHOLDER: Final = re.compile(
    rb'\{\s*+(?:"_placeholder"\s*+:\s*+true\s*+,\s*+"num"\s*+:\s*+([0-9]{1,4}+)'
    rb'|"num"\s*+:\s*+([0-9]{1,4}+)\s*+,\s*+"_placeholder"\s*+:\s*+true)\s*+\}'
)
_BINARY: Final = re.compile(rb'\{\s*+"_binary"\s*+:\s*+("[^"\\]*+(?:\\.[^"\\]*+)*+")\s*+\}')

# A placeholder that was forged, even in escaped letters, would make clients take a binary packet
# for malformed, and disconnect. No usual encoder escapes letters.
_ESCAPED_LETTER: Final = re.compile(rb"\\u00[4-7]")


class _Awaited:
    """A binary packet whose attachments have not all arrived yet."""

    __slots__ = ("_attachments", "_bytes_left", "_count", "_packet", "_places", "text")

    def __init__(self, packet: EventPacket | AckPacket, count: int, max_bytes: int) -> None:
        # Looked for once: a megabyte of what looks like them takes 5 ms.
        self._places = [list(islice(_PLACEHOLDER.finditer(arg), count + 1)) for arg in packet.args]
        # Each once: a client that places one attachment many times would have us multiply it.
        if sorted(map(_number, chain(*self._places))) != list(range(count)):
            raise SocketError("placeholders do not match the attachments")
        self._packet = packet
        self._count = count
        self._bytes_left = max_bytes
        self._attachments: list[bytes] = []
        self.text = b""

    @property
    def arrived(self) -> list[bytes]:
        """The messages of which it has come so far."""
        return [self.text, *self._attachments]

    def add(self, data: bytes) -> None:
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            raise SocketError("attachments are too big")
        self._attachments.append(data)

    def packet(self) -> EventPacket | AckPacket | None:
        """The packet, when it is complete."""
        if len(self._attachments) < self._count:
            return None
        return replace(self._packet, args=tuple(map(self._placed, self._packet.args, self._places)))

    def _placed(self, arg: Raw, places: list[re.Match[bytes]]) -> Raw:
        binaries = [b'{"_binary":"%b"}' % b64encode(self._attachments[_number(place)]) for place in places]
        return Raw(_with(bytes(arg), places, binaries))


class SocketSettings(Struct, frozen=True, kw_only=True):
    """What all sessions share.

    ``namespaces``: those that there are. ``max_attachment_bytes``: of all attachments of one packet. ``bounds``: of an
    event's payload, which the caller asks.
    """

    namespaces: frozenset[str] = frozenset((MAIN,))
    max_attachment_bytes: int = 1_000_000
    bounds: JsonBounds = JsonBounds(Limits().json_depth)


class SocketSession:
    """One client's namespaces, and the binary packet that is arriving.

    How long a client may be ``connected`` nowhere is for the shell to limit.
    """

    __slots__ = ("_awaited", "_joined", "_settings")

    def __init__(self, settings: SocketSettings) -> None:
        self._settings = settings
        self._joined: tuple[str, ...] = ()
        self._awaited: _Awaited | None = None

    @property
    def connected(self) -> bool:
        """The client is in some namespace."""
        return bool(self._joined)

    def receive(self, data: bytes, binary: bool) -> SocketPacket | Outgoing | None:
        """A message arrived; returns what it means.

        ``Outgoing`` is an answer to be sent, and all there is to it; with ``None`` the packet is not complete
        yet. Raises :class:`SocketError`.
        """
        if binary or self._awaited is not None:
            return self._receive_attachment(data, binary)
        # Most packets: an event in the main namespace that wants no acknowledgement. Taking a header apart
        # would double what it costs.
        if data.startswith(b"2[") and MAIN in self._joined:
            name, args, was_mended = _parse_event(data[1:])
            return EventPacket(name, args, mended=was_mended)
        packet = self._receive_packet(decode_header(data))
        if self._awaited is not None:
            self._awaited.text = data
        return packet

    def give(self) -> tuple[tuple[str, ...], list[bytes]]:
        """The namespaces that the client is in, and the messages that have arrived of a binary packet."""
        return self._joined, [] if self._awaited is None else self._awaited.arrived

    def restore(self, joined: tuple[str, ...], arrived: list[bytes]) -> None:
        """Go on from what another one gave."""
        self._joined = joined
        for number, data in enumerate(arrived):
            self.receive(data, number > 0)

    def accept(self, namespace: str, sid: str, pid: str = "") -> Outgoing:
        """Let the client into the namespace of its :class:`ConnectPacket`; returns what to send.

        ``sid``: the name it has there, which others may know. ``pid``: a secret one by which it may come back.
        """
        self._joined = (*self._joined, namespace)
        return encode_message(b"0" + _prefix(namespace) + _encode({"sid": sid, "pid": pid} if pid else {"sid": sid}))

    def disconnect(self, namespace: str = MAIN) -> Outgoing:
        """Put the client out of a namespace that it is in; returns what to send."""
        self._leave(namespace)
        return encode_message(b"1" + _prefix(namespace))

    def _receive_packet(self, header: Header) -> SocketPacket | Outgoing | None:
        kind, attachments, namespace, ack_id, payload = header
        if kind is PacketKind.CONNECT:
            return self._receive_connect(namespace, payload)
        if namespace not in self._joined:
            raise SocketError(f"{kind.name} in a namespace that the client is not in")
        if kind is PacketKind.EVENT or kind is PacketKind.BINARY_EVENT:
            packet: EventPacket | AckPacket = _read_event(payload, ack_id, namespace)
        elif kind is PacketKind.ACK or kind is PacketKind.BINARY_ACK:
            if ack_id is None:
                raise SocketError("an acknowledgement of nothing")
            packet = AckPacket(ack_id, _parse_args(payload), namespace)
        elif kind is PacketKind.DISCONNECT and not payload:
            self._leave(namespace)
            return DisconnectPacket(namespace)
        else:
            raise SocketError(f"a malformed {kind.name}")
        if kind < PacketKind.BINARY_EVENT:
            return packet
        if attachments > MAX_ATTACHMENTS:
            raise SocketError(f"{attachments} attachments")
        self._awaited = _Awaited(packet, attachments, self._settings.max_attachment_bytes)
        return self._complete()

    def _receive_connect(self, namespace: str, payload: bytes) -> ConnectPacket | Outgoing:
        if namespace in self._joined:
            raise SocketError("a second CONNECT to the same namespace")
        if namespace not in self._settings.namespaces:
            return encode_connect_error(namespace, "Invalid namespace")
        try:
            auth = _decode(_decode_auth, payload)[1] if payload else None
        except SocketError as error:
            # Whoever is in no namespace can be told nothing else.
            error.closes = True
            raise
        return ConnectPacket(namespace, None if auth is None else Raw(auth), auth is not None and auth is not payload)

    def _receive_attachment(self, data: bytes, binary: bool) -> SocketPacket | None:
        if self._awaited is None:
            raise SocketError("an attachment to nothing")
        if not binary:
            raise SocketError("a packet where an attachment was awaited")
        self._awaited.add(data)
        return self._complete()

    def _complete(self) -> SocketPacket | None:
        assert self._awaited is not None
        packet = self._awaited.packet()
        if packet is not None:
            self._awaited = None
        return packet

    def _leave(self, namespace: str) -> None:
        self._joined = tuple(name for name in self._joined if name != namespace)


def encode_event(name: str, *args: bytes | Raw, ack_id: int | None = None, namespace: str = MAIN) -> Outgoing:
    """An event for the client; ``args`` are JSON. With ``ack_id`` it is asked for an acknowledgement.

    Raises ``ValueError`` for a reserved name. With more than ``MAX_ATTACHMENTS`` binary values, or with a
    placeholder among them that the client would misread, the payload goes out as it is, without attachments.
    """
    if name in RESERVED_EVENTS:
        raise ValueError(f"{name} is a reserved event name")
    return _encode_array(PacketKind.EVENT, (_encode(name), *args), ack_id, namespace)


def encode_ack(ack_id: int, *args: bytes | Raw, namespace: str = MAIN) -> Outgoing:
    """The answer to the event that came with ``ack_id``; ``args`` are JSON, as in :func:`encode_event`."""
    return _encode_array(PacketKind.ACK, args, ack_id, namespace)


def encode_connect_error(namespace: str, message: str) -> Outgoing:
    """No to a :class:`ConnectPacket`."""
    return encode_message(b"4" + _prefix(namespace) + _encode({"message": message}))


def _encode_array(kind: PacketKind, items: Sequence[bytes | Raw], ack_id: int | None, namespace: str) -> Outgoing:
    payload = b",".join(items)
    attachments: tuple[bytes, ...] = ()
    if b'"_binary"' in payload:
        payload, attachments = _detach(payload)
    head = b"%d%d-" % (kind + 3, len(attachments)) if attachments else b"%d" % kind
    number = b"" if ack_id is None else b"%d" % ack_id
    return encode_message(b"%b%b%b[%b]" % (head, _prefix(namespace), number, payload), attachments)


def _detach(payload: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """Put placeholders for the binary values in ``payload``; as it was, and nothing, where that cannot be."""
    # No more are looked at than there may be: a megabyte of them takes 40 ms.
    found = list(islice(_BINARY.finditer(payload), MAX_ATTACHMENTS + 1))
    if len(found) > MAX_ATTACHMENTS or b"_placeholder" in payload or _ESCAPED_LETTER.search(payload):
        return payload, ()
    places: list[re.Match[bytes]] = []
    attachments: list[bytes] = []
    for match in found:
        # What is not base64 is an object of the application's own.
        with suppress(ValueError):
            attachments.append(msgspec.json.decode(match[1], type=bytes))
            places.append(match)
    return _with(payload, places, [b'{"_placeholder":true,"num":%d}' % at for at in range(len(places))]), (
        *attachments,
    )


def _with(payload: bytes, places: list[re.Match[bytes]], others: list[bytes]) -> bytes:
    """These in the places of what was found."""
    pieces: list[bytes] = []
    end = 0
    for place, other in zip(places, others, strict=True):
        pieces += payload[end : place.start()], other
        end = place.end()
    return b"".join((*pieces, payload[end:]))


def _number(place: re.Match[bytes]) -> int:
    return int(place[1] or place[2])


def _prefix(namespace: str) -> bytes:
    return b"" if namespace == MAIN else namespace.encode() + b","
