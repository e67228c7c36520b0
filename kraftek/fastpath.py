"""What reaches past the public surface of Twisted and Autobahn, for speed. Without it the gateway works the same.

Each part says why it is there and what it saves; ``tests/test_fastpath.py`` fails when a library changed under it.
Called by the WebSocket edge and the Redis bus.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import tcp

__all__ = ["plain_messages", "write_now"]

_TEXT = 0x81
_MASKED = 0x80

_LONG = 1536
"""Bytes from which a call into Autobahn's C masker (9 µs, whatever the size) beats an XOR of long integers (4 ns
a byte)."""


def plain_messages(
    data: bytes, limit: int, unmask: Callable[[bytes, bytes], bytes]
) -> tuple[list[bytes], int]:
    """The text messages at the beginning of ``data`` that are one whole masked frame each, and the bytes they take.

    Stops at whatever else there is: fragments, control frames, other opcodes, bits that an extension defines, messages
    of more than ``limit`` bytes or of 64 KiB, and text that is not UTF-8 are Autobahn's, which slices its whole buffer
    for each frame and spends some 20 µs on it. ``unmask(mask, payload)`` is called for long payloads.
    """
    messages: list[bytes] = []
    start, end = 0, len(data)
    while end - start >= 6 and data[start] == _TEXT:
        size = data[start + 1] - _MASKED
        at = start + 2
        if size < 0 or size == 127:
            break
        if size == 126:
            size = int.from_bytes(data[at : at + 2], "big")
            at += 2
            if size < 126:
                break
        stop = at + 4 + size
        if stop > end or size > limit:
            break
        mask = data[at : at + 4]
        payload = data[at + 4 : stop]
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
    return messages, start


def write_now(transport: Any, data: bytes) -> None:
    """Write ``data``, at once where nothing waits to be written.

    ``transport.write`` wakes the reactor: two ``epoll_ctl`` and a turn later comes the ``send``. For a TCP socket whose
    buffers are empty the ``send`` alone does, and costs about half of that for each message of a broadcast.
    """
    if (
        isinstance(transport, tcp.Connection)
        and not transport.TLS
        and transport.connected
        and not transport.disconnecting
        and not transport.dataBuffer
        and not transport._tempDataBuffer  # noqa: SLF001
    ):
        try:
            sent = transport.socket.send(data)
        except OSError:
            sent = 0  # Twisted will find out what is wrong, or wait
        if sent == len(data):
            return
        data = data[sent:]
    transport.write(data)
