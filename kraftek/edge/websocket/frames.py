"""Frames of the WebSocket protocol (RFC 6455, section 5.2): servers' own, which are unmasked and never fragmented here,
and the plain ones of clients.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from struct import Struct

from kraftek.contract.messages import Outgoing
from kraftek.contract.turns import STEP

__all__ = ["deflated_wire", "frame", "plain_messages", "wire"]

_TEXT = 0x81
_BINARY = 0x82
_MASKED = 0x80
_DEFLATED = 0x40

_LONG = 1536
"""Bytes from which a call into Autobahn's C masker (9 µs, whatever the size) beats an XOR of long integers (4 ns
a byte)."""

_short, _medium, _long = Struct(">BB").pack, Struct(">BBH").pack, Struct(">BBQ").pack
"""The heads of frames of these sizes."""

_WORTH_DEFLATING = 256
"""Bytes from which a message is compressed: even the shortest takes 50 µs."""


def frame(opcode: int, payload: bytes) -> bytes:
    """One whole frame. ``opcode`` is the first byte, FIN included."""
    size = len(payload)
    if size < 126:
        return _short(opcode, size) + payload
    if size < 65_536:
        return _medium(opcode, 126, size) + payload
    return _long(opcode, 127, size) + payload


def wire(outgoing: Outgoing) -> bytes:
    """The message in frames, made once however many sockets it goes to. An empty text beside attachments is none."""
    made = outgoing.wire
    if made is None:
        made = frame(_TEXT, outgoing.text) if outgoing.text or not outgoing.attachments else b""
        for attachment in outgoing.attachments:
            made += frame(_BINARY, attachment)
        outgoing.wire = made
    return made


def deflated_wire(outgoing: Outgoing, window_bits: int) -> bytes:
    """As :func:`wire`, for sockets with permessage-deflate (RFC 7692) and this window.

    Each message is compressed by itself, which any client can read, so that this too is made once for all of them, and
    nothing is kept for any.
    """
    by_window = outgoing.deflated
    if by_window is None:
        by_window = outgoing.deflated = {}
    made = by_window.get(window_bits)
    if made is None:
        made = b""
        if outgoing.text or not outgoing.attachments:
            made = _deflated(_TEXT, outgoing.text, window_bits)
        for attachment in outgoing.attachments:
            made += _deflated(_BINARY, attachment, window_bits)
        by_window[window_bits] = made
    return made


def plain_messages(
    data: bytes, start: int, limit: int, unmask: Callable[[bytes, bytes], bytes]
) -> tuple[list[bytes], int]:
    """The next text messages in ``data``, from ``start`` on, that are one whole masked frame each, and where they end:
    as many as are handled in one step.

    Stops at whatever else there is: fragments, control frames, other opcodes, bits that an extension defines, messages
    of more than ``limit`` bytes or of 64 KiB, and text that is not UTF-8 are Autobahn's, which slices its whole buffer
    for each frame and spends some 20 µs on it. ``unmask(mask, payload)`` is called for long payloads.
    """
    messages: list[bytes] = []
    end = len(data)
    while end - start >= 6 and data[start] == _TEXT:
        size = data[start + 1] - _MASKED
        at = start + 6
        if size > 125:
            size = int.from_bytes(data[start + 2 : start + 4], "big") if size == 126 else 0
            at += 2
            if size < 126:
                break
        stop = at + size
        if stop > end or size > limit or stop < at:
            break
        mask = data[at - 4 : at]
        payload = data[at:stop]
        if size < _LONG:
            masked = int.from_bytes(payload, "little")
            payload = (masked ^ int.from_bytes((mask * (size // 4 + 1))[:size], "little")).to_bytes(size, "little")
        else:
            payload = unmask(mask, payload)
        if not payload.isascii():
            try:
                payload.decode()
            except UnicodeDecodeError:
                break
        messages.append(payload)
        start = stop
        if stop == end or len(messages) == STEP:
            break
    return messages, start


def _deflated(opcode: int, payload: bytes, window_bits: int) -> bytes:
    if len(payload) < _WORTH_DEFLATING:
        return frame(opcode, payload)
    compressor = zlib.compressobj(wbits=-window_bits)
    deflated = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
    return frame(opcode | _DEFLATED, deflated[:-4])
