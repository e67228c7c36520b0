"""One client that floods a gateway: ``python -m bench.flooder KIND PORT NAME``; `bench.floods` runs some at a time.

It writes as much as the gateway takes, and reads what comes back only to throw it away. Whenever it is closed it
connects again. It prints a line when it begins, and on SIGTERM one of JSON: bytes written, and how often it was closed
with which code.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from itertools import count
from typing import Any

CHUNK = 65536
"""Bytes of a write: what the gateway reads at a time."""
HELD = 60_000
"""Bytes of the longest message, a little less than the gateway takes by default."""

TEXT, BINARY, PING, PONG = 1, 2, 9, 10

Chunk = Callable[[int], bytes]
"""The bytes of the write of that number."""


def frame(opcode: int, payload: bytes = b"", final: bool = True, deflated: bool = False) -> bytes:
    """A frame of a client. Its mask is zero, so that the payload stands in it as it is."""
    head = bytes([opcode | final << 7 | deflated << 6])
    if len(payload) < 126:
        length = bytes([0x80 | len(payload)])
    elif len(payload) < 65536:
        length = bytes([0xFE]) + len(payload).to_bytes(2)
    else:
        length = bytes([0xFF]) + len(payload).to_bytes(8)
    return head + length + bytes(4) + payload


def text(message: object) -> bytes:
    return frame(TEXT, json.dumps(message, separators=(",", ":")).encode())


def deflated(payload: bytes) -> bytes:
    """The payload of a compressed message, without context of those before it (RFC 7692)."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (deflate.compress(payload) + deflate.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\x00\x00\xff\xff")


def always(*frames: bytes) -> Chunk:
    """The same frames in each write, as often as they fit."""
    each = b"".join(frames)
    chunk = each * max(1, CHUNK // len(each))
    return lambda _: chunk


def numbered(message: Callable[[int], object], size: int = 100) -> Chunk:
    """Messages that differ, by their number; so many in each write as messages of that size make 64 KiB."""
    return numbered_texts(lambda number: json.dumps(message(number), separators=(",", ":")).encode(), size)


def numbered_texts(body: Callable[[int], bytes], size: int) -> Chunk:
    many = max(1, CHUNK // size)
    return lambda number: b"".join(frame(TEXT, body(each)) for each in range(number * many, (number + 1) * many))


PING_TEXT = b'{"type":"ping"}'
VALID = frame(TEXT, PING_TEXT)
DEFLATED_PING = frame(TEXT, deflated(PING_TEXT), deflated=True)
PADDED = PING_TEXT + b" " * (HELD - len(PING_TEXT))
NAME = os.urandom(4).hex()


def fragments() -> Iterator[bytes]:
    """One text in frames of a byte each."""
    for at in range(HELD):
        yield frame(TEXT if at == 0 else 0, PADDED[at : at + 1], final=at == HELD - 1)


def joins(number: int) -> object:
    """Into a room that nobody has been in before, and out of it."""
    return {"type": "leave" if number % 2 else "join", "payload": {"roomId": f"{NAME}-{number // 2}"}}


def socketio_join(number: int) -> object:
    message: Any = joins(number)
    return [message["type"], message["payload"]]


ATTACHED = b'451-["chat:note:heard",{"_placeholder":true,"num":0}]'
TEN_ATTACHED = b'4510-["chat:note:heard",%s]' % b",".join(
    b'{"_placeholder":true,"num":%d}' % each for each in range(10)
)
POSTED = {
    "POSTs": b"\x1e".join([b'42["chat:note:heard",1]'] * (HELD // 24)),
    "POSTs of noops": b"\x1e".join([b"6"] * (HELD // 2)),
}
TOLD = "told-"
"""What rooms with history and presence begin with."""
MEGABYTE = 990_000


def megabyte(value: bytes) -> bytes:
    """So many of these as a message may have."""
    return b",".join([value] * (MEGABYTE // (len(value) + 1)))


def event(type: str, characters: int = 0, id: bool = False, **more: object) -> Callable[[int], object]:
    body = {"type": type, "payload": "x" * characters, **more}
    return lambda number: {**body, "id": f"{NAME}-{number}"} if id else body


def pages(number: int) -> bytes:
    """A history as long as it may be, and pages of it."""
    if not number:
        return text({"type": "chat:note:tell", "payload": "x" * 100}) * 1000
    page = {"type": "history", "payload": {"roomId": f"{TOLD}{sys.argv[-1]}", "limit": 1000}, "id": 1}
    return text(page) * (CHUNK // 100)


def told_joins(number: int) -> object:
    """Into rooms with history, for the last hundred messages, and out of them."""
    room = {"roomId": f"{TOLD}{NAME}-{number // 2}"}
    return {"type": "leave", "payload": room} if number % 2 else {"type": "join", "payload": {**room, "history": 100}}


def request(line: str, headers: str = "") -> bytes:
    return f"{line} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}\r\n".encode()


LIST = "a," * 7_800
"""A header as long as a head may be."""
CHUNKED = request("POST /anything", f"Transfer-Encoding: chunked\r\nUpgrade: {LIST}\r\n")
QUERY = request(f"GET /socket.io/?EIO=4&transport=polling&sid=x&{'%&' * 7_800}")


def cancel(number: int) -> object:
    """Of a request that another connection might have sent."""
    return {"type": "cancel", "payload": {"eventType": "chat:say:back"}, "id": number}


KINDS: dict[str, Callable[[], Chunk]] = {
    "pings": lambda: always(frame(PING)),
    "pongs": lambda: always(frame(PONG)),
    "unknown events": lambda: always(text({"type": "nobody:was:here"})),
    "texts of {}": lambda: always(text({}), text({}), text({}), text({}), VALID),
    "application pings": lambda: always(VALID),
    "joins and leaves": lambda: numbered(joins, 64),
    # One text, byte by byte: see flood().
    "text by bytes": lambda: lambda _: frame(TEXT, PADDED),
    "1-byte fragments": lambda: always(*fragments()),
    # The gateway closes after ten messages in a row that it cannot read.
    "empty binaries": lambda: always(frame(BINARY) * 9, VALID),
    "empty deflated": lambda: always(frame(TEXT, b"\x00", deflated=True) * 9, DEFLATED_PING),
    "inflating": lambda: always(frame(TEXT, deflated(PADDED), deflated=True)),
    "events": lambda: always(text({"type": "chat:note:heard"})),
    "events of 60 KB": lambda: always(text({"type": "chat:note:heard", "payload": "x" * (HELD - 100)})),
    "long numbers": lambda: always(
        frame(TEXT, b'{"type":"chat:note:heard","payload":[%b]}' % b",".join([b"1" * 1000] * 59))
    ),
    "ids": lambda: always(frame(TEXT, b'{"type":1,%b}' % b",".join([b'"id":1'] * 8_500)) * 9, VALID),
    "levels and digits": lambda: always(text({"type": "chat:note:heard", "payload": [[[1.5e300]] * 9] * 250})),
    "events to a stream": lambda: always(text({"type": "queue:note:heard", "payload": "x" * 1000})),
    "requests": lambda: numbered(event("chat:say:back", id=True)),
    "large answers": lambda: numbered(event("chat:say:much", id=True)),
    "answers in parts": lambda: numbered(event("chat:say:parts", id=True, progress=True)),
    "requests, Redis stalls": lambda: numbered(event("queue:note:heard", id=True)),
    "cancels": lambda: numbered(cancel),
    "presence": lambda: numbered(
        lambda n: {"type": "presence", "payload": {"roomId": f"{TOLD}{sys.argv[-1]}"}, "id": n}
    ),
    "pages of history": lambda: pages,
    "joins with history": lambda: numbered(told_joins, 80),
    "joins told to a stream": lambda: numbered(joins, 64),
    "Socket.IO noops": lambda: always(frame(TEXT, b"6")),
    "Socket.IO pongs": lambda: always(frame(TEXT, b"3")),
    "Socket.IO unknown events": lambda: always(frame(TEXT, b'42["nobody:was:here",{}]')),
    "Socket.IO requests": lambda: numbered_texts(lambda number: b'42%d["chat:say:back","x"]' % number, 40),
    "Socket.IO joins": lambda: numbered_texts(lambda number: b"42" + json.dumps(socketio_join(number)).encode(), 64),
    # Out of the namespace, and in again.
    "Socket.IO connects": lambda: always(frame(TEXT, b"41"), frame(TEXT, b"40")),
    "Socket.IO attachments": lambda: always(frame(TEXT, ATTACHED), frame(BINARY, b"x" * 100)),
    "Socket.IO empty attachments": lambda: always(frame(TEXT, TEN_ATTACHED), *[frame(BINARY)] * 10),
    "Socket.IO deflated attachments": lambda: always(
        frame(TEXT, deflated(b"4" + ATTACHED[1:]), deflated=True), frame(BINARY, deflated(b"x" * 100), deflated=True)
    ),
    "Socket.IO acknowledgements": lambda: numbered_texts(lambda number: b"43%d[]" % number, 16),
    # A message may have a megabyte.
    "Socket.IO levels": lambda: always(frame(TEXT, b'42["chat:note:heard",[%b]]' % megabyte(b"[" * 50 + b"]" * 50))),
    "Socket.IO halves": lambda: always(frame(TEXT, b'42["chat:note:heard",[%b]]' % megabyte(b'"\\ud800"'))),
    "Socket.IO placeholders": lambda: always(
        frame(TEXT, b'42["chat:note:heard",[%b]]' % megabyte(b'{"_placeholder":true,"num":1}'))
    ),
    "Socket.IO digits": lambda: always(frame(TEXT, b'42["chat:note:heard",[%b,%b]]' % (b"1" * 600, megabyte(b'""')))),
    "Socket.IO keys": lambda: always(frame(TEXT, b"40/x,{%b}" % b",".join(b'"%x":1' % key for key in range(100_000)))),
    "POSTs": lambda: lambda _: b"",
    "POSTs of noops": lambda: lambda _: b"",
    "HTTP requests": lambda: lambda _: request("GET /") * (CHUNK // 40),
    "HTTP chunks": lambda: lambda _: CHUNKED + b"1\r\na\r\n" * 8_000 + b"0\r\n\r\n",
    "HTTP queries": lambda: lambda _: QUERY * 4,
    "handshakes": lambda: lambda _: b"",
}
"""What floods do, by the names of the rows; "joins told to a stream" is with a service that has presence."""


_IN_TOLD = {"presence", "pages of history"}


class Flooder:
    """Connects and floods until it is told to end."""

    def __init__(self, kind: str, port: int, name: str) -> None:
        self._chunk = KINDS[kind]()
        self._kind = kind
        self._socketio = kind.startswith("Socket.IO")
        self._port = port
        self._name = name
        self._numbers = count()
        self.written = 0
        self.closes: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()

    def run(self) -> None:
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self._port), 10.0) as connection:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    if self._kind in POSTED:
                        self._post(connection)
                    else:
                        self._flood(connection)
            except OSError as error:
                self.closes[type(error).__name__] += 1
                time.sleep(0.01)

    def _flood(self, connection: socket.socket) -> None:
        if not self._kind.startswith("HTTP"):
            self._handshake(connection)
            room = f"{TOLD}{self._name}" if self._kind in _IN_TOLD else self._name
            who = {"token": self._name, "roomId": room}
            login = {"type": "authenticate", "payload": who}
            connection.sendall(frame(TEXT, b"40" + json.dumps(who).encode()) if self._socketio else text(login))
        if self._kind == "handshakes":
            self.closes["own"] += 1
            return
        connection.settimeout(None)
        reader = threading.Thread(target=self._read, args=(connection,), daemon=True)
        reader.start()
        try:
            for number in self._numbers:
                chunk = self._chunk(number)
                if self._kind == "text by bytes":
                    connection.sendall(chunk[:8])
                    for at in range(8, len(chunk)):
                        connection.send(chunk[at : at + 1])
                else:
                    connection.sendall(chunk)
                self.written += len(chunk)
        finally:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            reader.join()

    def _handshake(self, connection: socket.socket) -> None:
        offer = "Sec-WebSocket-Extensions: permessage-deflate\r\n" if "flat" in self._kind else ""
        path = "/socket.io/?EIO=4&transport=websocket" if self._socketio else "/"
        protocol = "" if self._socketio else "Sec-WebSocket-Protocol: kraftek.v1.json\r\n"
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\nSec-WebSocket-Version: 13\r\n"
            f"{protocol}{offer}\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            if not (data := connection.recv(65536)):
                raise ConnectionError("no handshake")
            head += data
        if not head.startswith(b"HTTP/1.1 101"):
            raise ConnectionError(head.decode(errors="replace"))

    def _post(self, connection: socket.socket) -> None:
        """One long-polling session, one POST after the other."""
        client = HTTPConnection("127.0.0.1", self._port)
        client.sock = connection
        path = "/socket.io/?EIO=4&transport=polling"
        client.request("GET", path)
        path += "&sid=" + json.loads(client.getresponse().read()[1:])["sid"]
        body = b"40" + json.dumps({"token": self._name, "roomId": self._name}).encode()
        while True:
            client.request("POST", path, body)
            response = client.getresponse()
            response.read()
            if response.status != 200:
                self.closes[f"HTTP {response.status}"] += 1
                return
            self.written += len(body)
            body = POSTED[self._kind]

    def _read(self, connection: socket.socket) -> None:
        last = b""
        with contextlib.suppress(OSError):
            while data := connection.recv(1 << 20):
                last = (last + data)[-4096:]
        # The close frame is the last one; its payload is short.
        at = last.rfind(b"\x88")
        code = int.from_bytes(last[at + 2 : at + 4]) if at >= 0 and at + 4 <= len(last) else 1006
        self.closes[str(code)] += 1


def main() -> None:
    _, kind, port, name = sys.argv
    flooder = Flooder(kind, int(port), name)

    def report(*_: object) -> None:
        print(json.dumps({"written": flooder.written, "closes": flooder.closes}), flush=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, report)
    print("begins", flush=True)
    threading.Thread(target=flooder.run, daemon=True).start()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
