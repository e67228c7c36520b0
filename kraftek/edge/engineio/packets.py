"""Engine.IO protocol 4: packets, the payloads of HTTP long-polling, and what a request asks for.

The rules are https://github.com/socketio/engine.io-protocol; where they are silent, the reference server's habits.
"""

from __future__ import annotations

from base64 import b64encode
from binascii import a2b_base64
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum, IntEnum
from typing import Final, NamedTuple

import msgspec

from kraftek.contract.messages import Outgoing

__all__ = [
    "EngineError",
    "ErrorCode",
    "Message",
    "Packet",
    "PacketKind",
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
        """The body of the answer: ``{"code", "message"}``."""
        return msgspec.json.encode({"code": int(self.code), "message": _MESSAGES.get(self.code, str(self))})


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


def decode_payload(body: bytes) -> Iterator[Packet]:
    """The packets in a POST's body, one by one: a megabyte of the smallest would be 70 MB at once.

    Raises :class:`EngineError` at the first malformed one.
    """
    try:
        body.decode()
    except UnicodeDecodeError:
        raise EngineError(ErrorCode.BAD_REQUEST, "a payload that is not UTF-8") from None
    start = 0
    while (end := body.find(SEPARATOR, start)) >= 0:
        yield decode_packet(body[start:end])
        start = end + 1
    yield decode_packet(body[start:])


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


def read_request(method: str, query: Mapping[str, str], *, websocket: bool) -> str | None:
    """The session id that a request is for, or ``None`` when it asks for a new session.

    ``websocket``: it is a WebSocket handshake. Raises :class:`EngineError`. Whether the session exists, and
    whether the Origin may come here, is for the caller to check: ``UNKNOWN_SID`` and ``FORBIDDEN``.
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
