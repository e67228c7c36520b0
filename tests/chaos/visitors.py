"""Small clients for the soak: each way of connecting, on plain streams, so that the gateway is what takes the time.

All have the words of :class:`Visitor`, whatever they speak: Socket.IO's packets, over its WebSocket, over long-polling,
or over both, one after the other; or native frames. They know only what the gateway says to clients that behave.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from abc import ABC, abstractmethod
from collections import deque
from typing import Any, ClassVar

from bench.flooder import frame, text

__all__ = ["PATIENCE", "VISITORS", "GoneError", "Polling", "SocketIO", "Visitor"]

TEXT, CLOSE, PING = 1, 8, 9
PATIENCE = 30.0
"""Seconds for anything that the gateway is to say or do."""
SEPARATOR = b"\x1e"
"""Between the packets of a payload of long-polling."""


class GoneError(Exception):
    """The gateway has closed the connection."""


class Visitor(ABC):
    """A client. :meth:`told` returns type, payload and the id of a request that this answers.

    ``lingers``: that it has vanished is noticed only when it does not answer a ping.
    """

    lingers: ClassVar[bool] = False

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []

    @abstractmethod
    async def connect(self) -> None:
        """Connect, until the gateway is ready to hear."""

    @abstractmethod
    async def say(self, type: str, payload: object, id: int | None = None, room: str | None = None) -> None:
        """Say it; with an ``id`` it is a request. ``room``: where the dialect has a place for it."""

    @abstractmethod
    async def told(self) -> tuple[str, Any, int | None]:
        """What the gateway says next."""

    @abstractmethod
    async def leave(self) -> None:
        """Close as one does."""

    def vanish(self) -> None:
        """Be gone without a word."""
        for writer in self._writers:
            writer.transport.abort()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers.append(writer)
        return reader, writer

    async def expect(self, type: str, id: int | None = None) -> Any:
        """The payload of what the gateway says next, which must be this."""
        found, payload, answered = await asyncio.wait_for(self.told(), PATIENCE)
        if (found, answered) != (type, id):
            raise AssertionError(f"{self.__class__.__name__} expected {type}, {id}: {found}, {answered}, {payload}")
        return payload


class _Frames:
    """A WebSocket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def open(self, path: str, protocol: str = "") -> None:
        """The handshake."""
        key = base64.b64encode(os.urandom(16)).decode()
        offer = f"Sec-WebSocket-Protocol: {protocol}\r\n" if protocol else ""
        self._writer.write(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{offer}\r\n".encode()
        )
        try:
            head = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), PATIENCE)
        except asyncio.IncompleteReadError as error:
            raise GoneError(f"no handshake: {error.partial!r}") from None
        if not head.startswith(b"HTTP/1.1 101"):
            raise GoneError(f"no handshake: {head!r}")

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def receive(self) -> bytes:
        """The next text."""
        try:
            while True:
                head = await self._reader.readexactly(2)
                size = head[1] & 127
                if size > 125:
                    size = int.from_bytes(await self._reader.readexactly(2 if size == 126 else 8))
                body = await self._reader.readexactly(size)
                if (opcode := head[0] & 15) == TEXT:
                    return body
                if opcode == CLOSE:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        raise GoneError

    async def close(self) -> None:
        """Say so, and wait for the answer and the end."""
        self.send(frame(CLOSE, (1000).to_bytes(2)))
        try:
            await asyncio.wait_for(self._reader.read(), PATIENCE)
        except ConnectionError:
            pass
        finally:
            self._writer.close()


class Native(Visitor):
    """``kraftek.v1.json``."""

    async def connect(self) -> None:
        self._socket = _Frames(*await self._open())
        await self._socket.open("/", "kraftek.v1.json")
        await self.expect("connected")

    async def say(self, type: str, payload: object, id: int | None = None, room: str | None = None) -> None:
        more = {key: value for key, value in (("id", id), ("roomId", room)) if value is not None}
        self._socket.send(text({"type": type, "payload": payload, **more}))

    async def told(self) -> tuple[str, Any, int | None]:
        message = json.loads(await self._socket.receive())
        return message["type"], message.get("payload"), message.get("id")

    async def leave(self) -> None:
        await self._socket.close()


class SocketIO(Visitor):
    """Socket.IO over WebSocket."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._asked: dict[int, str] = {}

    async def connect(self) -> None:
        self._socket = _Frames(*await self._open())
        await self._socket.open("/socket.io/?EIO=4&transport=websocket")
        await self._open_packet()
        await self._enter()

    async def _open_packet(self) -> Any:
        packet = await self._receive()
        assert packet.startswith(b"0{"), packet
        return json.loads(packet[1:])

    async def _enter(self) -> None:
        await self._send(b"40")
        while (packet := await asyncio.wait_for(self._receive(), PATIENCE)) == b"2":
            await self._send(b"3")  # on a busy machine it may be asked before it is in
        assert packet.startswith(b"40{"), packet
        self.socket_id: str = json.loads(packet[2:])["sid"]

    async def say(self, type: str, payload: object, id: int | None = None, room: str | None = None) -> None:
        number = "" if id is None else str(id)
        if id is not None:
            self._asked[id] = type
        await self._send(f"42{number}{json.dumps([type, payload])}".encode())

    async def told(self) -> tuple[str, Any, int | None]:
        while True:
            packet = await self._receive()
            if packet[:2] == b"42":
                said, payload = json.loads(packet[2:])
                return said, payload, None
            if packet[:2] == b"43":
                number, _, rest = packet[2:].partition(b"[")
                (payload,) = json.loads(b"[" + rest)
                return self._asked.pop(int(number)), payload, int(number)
            if packet in (b"41", b"1"):
                raise GoneError
            assert packet == b"2", packet
            await self._send(b"3")

    async def leave(self) -> None:
        await self._send(b"41")
        await self._socket.close()

    async def _send(self, packet: bytes) -> None:
        self._socket.send(frame(TEXT, packet))

    async def _receive(self) -> bytes:
        return await self._socket.receive()


class Polling(SocketIO):
    """Socket.IO over long-polling, on one connection: it asks for the next packets when it has read the last."""

    lingers = True

    async def connect(self) -> None:
        self._reader, self._writer = await self._open()
        self._path = "/socket.io/?EIO=4&transport=polling"
        self._waiting: deque[bytes] = deque()
        opened = await self._open_packet()
        self._path += f"&sid={opened['sid']}"
        await self._enter()

    async def _send(self, packet: bytes) -> None:
        answer = await self._request("POST", packet)
        if answer != b"ok":
            raise GoneError

    async def _receive(self) -> bytes:
        if not self._waiting:
            self._waiting.extend((await self._request("GET")).split(SEPARATOR))
        return self._waiting.popleft()

    async def _request(self, method: str, body: bytes = b"") -> bytes:
        length = f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n" if body else ""
        self._writer.write(f"{method} {self._path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{length}\r\n".encode() + body)
        try:
            head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
            size = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
            body = await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            raise GoneError from None
        if not head.startswith(b"http/1.1 200"):
            raise GoneError
        return body

    async def leave(self) -> None:
        await self._send(b"41" + SEPARATOR + b"1")
        self._writer.close()


class Upgraded(Polling):
    """Socket.IO that begins with long-polling and goes over to WebSocket, as the libraries do."""

    lingers = False

    async def connect(self) -> None:
        await super().connect()
        self._socket = _Frames(*await self._open())
        await self._socket.open(self._path.replace("polling", "websocket"))
        self._socket.send(frame(TEXT, b"2probe"))
        assert await self._socket.receive() == b"3probe"
        self._socket.send(frame(TEXT, b"5"))
        self._upgraded = True

    _upgraded = False

    async def _send(self, packet: bytes) -> None:
        if self._upgraded:
            self._socket.send(frame(TEXT, packet))
        else:
            await super()._send(packet)

    async def _receive(self) -> bytes:
        return await self._socket.receive() if self._upgraded else await super()._receive()

    async def leave(self) -> None:
        self._writer.close()
        await self._send(b"41")
        await self._socket.close()


VISITORS: tuple[type[Visitor], ...] = (Native, SocketIO, Polling, Upgraded)
"""Each way of connecting."""
