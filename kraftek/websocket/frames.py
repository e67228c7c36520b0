"""Server frames of the WebSocket protocol (RFC 6455, section 5.2): unmasked, never fragmented."""

from __future__ import annotations

from kraftek.messages import Outgoing

__all__ = ["frame", "wire"]

_TEXT = 0x81
_BINARY = 0x82


def frame(opcode: int, payload: bytes) -> bytes:
    """One whole frame. ``opcode`` is the first byte, FIN included."""
    size = len(payload)
    if size < 126:
        return bytes((opcode, size)) + payload
    if size < 65_536:
        return bytes((opcode, 126)) + size.to_bytes(2, "big") + payload
    return bytes((opcode, 127)) + size.to_bytes(8, "big") + payload


def wire(outgoing: Outgoing) -> bytes:
    """The message in frames, made once however many sockets it goes to. An empty text beside attachments is none."""
    made = outgoing.wire
    if made is None:
        made = frame(_TEXT, outgoing.text) if outgoing.text or not outgoing.attachments else b""
        for attachment in outgoing.attachments:
            made += frame(_BINARY, attachment)
        outgoing.wire = made
    return made
