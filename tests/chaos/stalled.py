"""A client of the chaos run that does not read for a while."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
from dataclasses import dataclass
from itertools import count
from typing import ClassVar

from bench.flooder import text

__all__ = ["Found", "Stalled"]

ALLOWED = {None, 1001, 1006, 1012, 4413}
"""How a client that did not read may be closed: as one that is too slow, or by what happens to gateways."""


@dataclass
class Found:
    """What it read in the end: how many messages, the close code if there was one, and what is wrong with them."""

    messages: int = 0
    closed: int | None = None
    wrong: str = ""


class Stalled:
    """It enters a room and reads no more, until :meth:`read_on`."""

    numbers: ClassVar[count[int]] = count(1)

    def __init__(self, port: int, token: str, room: str) -> None:
        self._port = port
        self._token = token
        self._room = f"{room}"
        self._name = f"stalled client {next(self.numbers)}"
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        self._socket.setblocking(False)

    def __repr__(self) -> str:
        return self._name

    async def connect(self) -> None:
        """Connect, and enter the room."""
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, ("127.0.0.1", self._port))
        key = base64.b64encode(os.urandom(16)).decode()
        head = (
            f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: kraftek.v1.json\r\n\r\n"
        ).encode()
        payload = {"token": self._token, "roomId": self._room}
        await loop.sock_sendall(self._socket, head + b"")
        await asyncio.sleep(0.2)
        await loop.sock_sendall(self._socket, text({"type": "authenticate", "payload": payload}))

    async def read_on(self, seconds: float) -> Found:
        """Read everything that has piled up, for at most so long after the last of it."""
        loop, found, data = asyncio.get_running_loop(), Found(), bytearray()
        try:
            while more := await asyncio.wait_for(loop.sock_recv(self._socket, 1 << 20), seconds):
                data += more
        except (TimeoutError, OSError):
            pass
        _, _, rest = bytes(data).partition(b"\r\n\r\n")
        last = 0
        for opcode, body in _frames(rest):
            if opcode == 8:
                found.closed = int.from_bytes(body[:2]) if body else 1005
            elif opcode == 1:
                message = json.loads(body)
                if message["type"] == "chat:said:room":
                    number = message["payload"]["n"]
                    found.messages += 1
                    if number <= last:
                        found.wrong = f"{number} after {last}"
                    last = number
        if found.closed not in ALLOWED:
            found.wrong = f"closed with {found.closed}"
        return found

    def close(self) -> None:
        """End."""
        self._socket.close()


def _frames(data: bytes) -> list[tuple[int, bytes]]:
    """The whole frames of a server: opcode and payload. Those of the gateway are not fragmented."""
    found, at = [], 0
    while at + 2 <= len(data):
        size, width = data[at + 1] & 127, 0
        if size > 125:
            width = {126: 2, 127: 8}[size]
            size = int.from_bytes(data[at + 2 : at + 2 + width])
        end = at + 2 + width + size
        if end > len(data):
            break
        found.append((data[at] & 15, data[at + 2 + width : end]))
        at = end
    return found
