"""The opening handshake (RFC 6455, section 4.2.1): what a client asks for, and why that cannot be.

What cannot be used, subprotocols that nobody knows and extensions, is declined, where the RFC leaves the choice.
"""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha1
from typing import Protocol

from msgspec import Struct

from kraftek.contract.metrics import RefusalReason
from kraftek.edge.http_responses import RefusedError

__all__ = ["Asked", "Handshake", "accept_token", "asks_for_websocket", "read_handshake"]

_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^][:/?#@\s]+)(?::[0-9]{0,5})?")
_UPGRADE = (b"Upgrade", b"websocket")


class Asked(Protocol):
    """What is read of a request."""

    method: bytes
    clientproto: bytes
    host_name: str

    def lines(self, name: str) -> list[str]:
        """The lines of this header."""

    def tokens(self, name: str) -> list[str]:
        """The members of a header that is a list."""


class Handshake(Struct, frozen=True):
    """What a client asks for. ``subprotocols``: offered, each once, in the client's order."""

    key: str
    subprotocols: tuple[str, ...]
    extensions: str


def asks_for_websocket(request: Asked) -> bool:
    """Whether a request is a handshake, right or wrong."""
    return any(name.lower() == "websocket" for name in request.tokens("upgrade"))


def read_handshake(request: Asked) -> Handshake:
    """What a request that is one asks for. Raises :class:`RefusedError`."""
    if request.method != b"GET":
        raise _refusal(405, "expected the method GET", (b"Allow", b"GET"))
    if request.clientproto != b"HTTP/1.1":
        raise _refusal(505, "expected HTTP/1.1; a proxy may have made it another version")
    if len(request.lines("host")) != 1 or not _HOST.fullmatch(request.host_name):
        raise _refusal(400, "expected one header Host, with a host and maybe a port")
    if not any(name.lower() == "upgrade" for name in request.tokens("connection")):
        raise _refusal(400, "expected a header Connection: Upgrade; a proxy may have taken it away")
    versions = request.lines("sec-websocket-version")
    if len(versions) != 1:
        raise _refusal(400, "expected one header Sec-WebSocket-Version")
    if versions[0] != "13":
        raise _refusal(426, "expected Sec-WebSocket-Version: 13", (b"Sec-WebSocket-Version", b"13"), _UPGRADE)
    keys = request.lines("sec-websocket-key")
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        raise _refusal(400, "expected one header Sec-WebSocket-Key, with 16 bytes in base64")
    offered = tuple(dict.fromkeys(request.tokens("sec-websocket-protocol")))
    return Handshake(keys[0], offered, ", ".join(request.lines("sec-websocket-extensions")))


def accept_token(key: str) -> str:
    """The ``Sec-WebSocket-Accept`` for a client's key (RFC 6455, section 4.2.2)."""
    digest = sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode(), usedforsecurity=False).digest()
    return b64encode(digest).decode()


def _refusal(status: int, expected: str, *headers: tuple[bytes, bytes]) -> RefusedError:
    return RefusedError(status, RefusalReason.HANDSHAKE, f"not a WebSocket handshake: {expected}", headers=headers)
