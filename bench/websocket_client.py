"""A WebSocket client that costs little, for benchmarks that play thousands of them in one process."""

import asyncio
import base64
import os
from typing import Any

import msgspec

__all__ = ["WebSocketClient"]

_encode = msgspec.json.Encoder().encode


class WebSocketClient(asyncio.Protocol):
    """Connects to its ``path``, answers pings, and hands out messages as :meth:`text`."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self._data = bytearray()

    @property
    def path(self) -> str:
        """Where it connects to."""
        return "/"

    def text(self, payload: bytes) -> None:
        """A message came."""

    def say(self, message: Any) -> None:
        """Send it as JSON."""
        self.send(_encode(message))

    def send(self, data: bytes) -> None:
        """Send a text. A mask of zeros is a mask."""
        size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + len(data).to_bytes(2, "big")
        self.transport.write(b"\x81" + size + b"\0\0\0\0" + data)

    def close_frame(self) -> None:
        """The gateway closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected: send the handshake."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            f"GET {self.path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        """Unframe what came; servers do not mask."""
        self._data += data
        if self._data.startswith(b"HTTP/"):
            head = self._data.find(b"\r\n\r\n")
            if head < 0:
                return
            del self._data[: head + 4]
        while len(self._data) >= 2:
            size, at = self._data[1], 2
            if size == 126:
                size, at = int.from_bytes(self._data[2:4], "big"), 4
            elif size == 127:
                size, at = int.from_bytes(self._data[2:10], "big"), 10
            if len(self._data) < at + size:
                return
            opcode, payload = self._data[0] & 15, bytes(self._data[at : at + size])
            del self._data[: at + size]
            if opcode == 9:
                self.transport.write(b"\x8a\x80\0\0\0\0")
            elif opcode == 8:
                self.close_frame()
            elif opcode == 1:
                self.text(payload)
