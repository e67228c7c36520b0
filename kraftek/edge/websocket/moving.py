"""WebSocket connections that pass from one version of the gateway to another, in the same process.

Used by :mod:`kraftek.edge.websocket.outbox`, which is the link that is handed over, and by
:mod:`kraftek.edge.websocket.factory`, which goes on with it. All that Autobahn knows of a connection between two
messages is that it is open: so it passes only there, with the bytes that were read and not handled.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from kraftek.edge.websocket.deflate import Inflater

__all__ = ["SocketState", "between_messages", "decode", "encode", "reopen"]


class SocketState(Struct, kw_only=True):
    """A connection, as another version reads it: fields are added with defaults, and never change what they mean.

    ``peer``: its client's address; ``counted_as``: what it counts for as a connection, if for any. ``unread``: what was
    read and not handled. ``unsent``: frames, of which the first may be the rest of one. ``window_bits``: of compressed
    messages, 0 without. ``slot``: its place in the heartbeat. ``engine``: its Engine.IO connection, if it is one.
    """

    peer: str
    counted_as: str | None = None
    unread: bytes = b""
    unsent: list[bytes] = []
    window_bits: int = 0
    slot: int = 0
    engine: bytes | None = None


def encode(state: SocketState) -> bytes:
    """What is handed over."""
    return msgspec.msgpack.encode(state)


decode = msgspec.msgpack.Decoder(SocketState).decode


def between_messages(protocol: Any) -> bool:
    """Whether the client is not in the middle of a message, or of a frame whose head was read."""
    return protocol.current_frame is None and not protocol.inside_message


def reopen(protocol: Any, window_bits: int) -> None:
    """Have Autobahn go on with a connection whose handshake was done by another version. It begins at CONNECTING."""
    protocol.websocket_version = 13
    protocol.websocket_protocol_in_use = None
    protocol.inside_message = False
    protocol.current_frame = None
    protocol.state = protocol.STATE_OPEN
    if window_bits:
        protocol._perMessageCompress = Inflater(protocol.message_limit)  # noqa: SLF001
        protocol.outbox.window_bits = window_bits
    protocol.forget_handshake()
