"""Compression of messages (permessage-deflate, RFC 7692): which offer is accepted, and how messages are decompressed.

Each message is compressed by itself: nothing is kept from one to the next. What the gateway sends is compressed in
:mod:`kraftek.edge.websocket.frames`.
"""

from __future__ import annotations

import re
import zlib
from typing import Any

from msgspec import Struct

__all__ = ["CORRUPT", "TOO_LARGE", "Deflate", "Inflater", "accepted"]

CORRUPT = 1007
TOO_LARGE = 1009
"""Close codes (RFC 6455, section 7.4.1)."""

_LONGEST_OFFER = 1024
"""Characters; a browser's has 44."""

_OFFERS = re.compile(r'(?:[^,"]|"[^"]*")+')
_PARAMETERS = re.compile(r'(?:[^;"]|"[^"]*")+')
_PARAMETER = re.compile(r'([!#-\'*+.0-9A-Z^-z|~-]+)(?:[ \t]*=[ \t]*("?)([!#-\'*+.0-9A-Z^-z|~-]+)\2)?')
_BITS = re.compile(r"[89]|1[0-5]")


class Deflate(Struct, frozen=True):
    """What was agreed on: the header's value, and the window of what the gateway sends."""

    header: str
    window_bits: int


def accepted(extensions: str) -> Deflate | None:
    """The first acceptable offer in a ``Sec-WebSocket-Extensions``.

    One with anything else than RFC 7692 defines is declined (section 7.1), not refused: the client goes on without.
    """
    if len(extensions) > _LONGEST_OFFER:
        return None
    return next((accepted for offer in _OFFERS.findall(extensions) if (accepted := _accepted(offer))), None)


def _accepted(offer: str) -> Deflate | None:
    parts = [part.strip(" \t") for part in _PARAMETERS.findall(offer)]
    if not parts or parts[0].lower() != "permessage-deflate":
        return None
    given: dict[str, str | None] = {}
    for parameter in parts[1:]:
        found = _PARAMETER.fullmatch(parameter)
        if found is None or found[1].lower() in given:
            return None
        given[found[1].lower()] = found[3]
    if not all(name in _KNOWN and _KNOWN[name](value) for name, value in given.items()):
        return None
    answer, bits = "permessage-deflate", given.get("server_max_window_bits")
    if "server_no_context_takeover" in given:
        answer += "; server_no_context_takeover"
    if bits is not None:
        answer += f"; server_max_window_bits={bits}"
    return Deflate(f"{answer}; client_no_context_takeover", int(bits or 15))


def _is_bits(value: str | None) -> bool:
    return value is not None and _BITS.fullmatch(value) is not None


_KNOWN: dict[str, Any] = {
    "client_no_context_takeover": lambda value: value is None,
    "server_no_context_takeover": lambda value: value is None,
    # A hint: whatever the client's window is, ours is large enough to read it.
    "client_max_window_bits": lambda value: value is None or _is_bits(value),
    # zlib cannot write with the smallest.
    "server_max_window_bits": lambda value: _is_bits(value) and value != "8",
}


class Inflater:
    """Decompresses the messages of one connection, in the place of Autobahn's ``PerMessageDeflate``: that one cuts off
    what is a few bytes above the limit, and refuses what is just at it when it comes in several reads.

    ``limit``: bytes of a message once it is decompressed. ``failure`` is the close code for one that is larger, or that
    cannot be decompressed; then there is nothing more of it.
    """

    EXTENSION_NAME = "permessage-deflate"

    __slots__ = ("_inflate", "_left", "failure", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.failure: int | None = None
        self._left = 0
        self._inflate: Any = None

    @property
    def under_way(self) -> bool:
        """Whether a compressed message is being received."""
        return self._inflate is not None

    @property
    def longest(self) -> int:
        """Bytes that a message of ``limit`` may have while it is compressed: zlib's own bound (``deflateBound``) for
        any of its settings.
        """
        return self.limit + (self.limit >> 3) + (self.limit >> 6) + 64

    # What Autobahn calls.

    def start_decompress_message(self) -> None:
        """Its first frame begins."""
        self._inflate = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
        self._left = self.limit

    def decompress_message_data(self, data: bytes, max_output_len: int | None = None) -> bytes:
        """Some of it."""
        message = self._inflated(data, self._left + 1)
        if len(message) > self._left:
            self.failure = TOO_LARGE
            return b""
        self._left -= len(message)
        return message

    def end_decompress_message(self) -> None:
        """The message is complete. The memory, 40 KiB, is released."""
        if self._inflated(b"\x00\x00\xff\xff", 1):
            self.failure = CORRUPT  # these were to be its end, not its text
        self._inflate = None

    def _inflated(self, data: bytes, length: int) -> bytes:
        if self.failure is not None:
            return b""
        try:
            inflated: bytes = self._inflate.decompress(data, length)
        except zlib.error:
            self.failure = CORRUPT
            return b""
        return inflated
