"""A WebSocket server that says what the test says: the far end of a client under test."""

from __future__ import annotations

import json
import queue
import socket
import ssl
import threading
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

__all__ = ["Far", "ScriptedGateway"]

Json = dict[str, Any]


class _Connection(ServerConnection):
    """Counts the pings of the client's library."""

    pings = 0

    def process_event(self, event: Any) -> None:
        self.pings += isinstance(event, Frame) and event.opcode is Opcode.PING
        super().process_event(event)


class _Gate:
    """The server's end of a TCP connection. Once it is shut what arrives is not read, until it is ``over``."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self.is_shut = False
        self.over = threading.Event()

    def recv(self, size: int) -> bytes:
        data = self._end.recv(size)
        if self.is_shut:
            assert self.over.wait(60), "the test has not ended the connection"
            return b""
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._end, name)


class Far:
    """One socket, seen from the server. A wait that ends badly is the test's failure."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        self._gate = _Gate(connection.socket)
        # It reads from here once it has read the client's first message.
        gated: Any = connection
        gated.socket = self._gate
        self.ended = threading.Event()
        self.subprotocol = connection.subprotocol

    def expect(self, type: str) -> Json:
        """The next message, which must be of this type."""
        try:
            message = json.loads(self._connection.recv(10.0))
        except TimeoutError:
            pytest.fail(f"the client did not send {type}")
        except ConnectionClosed as closed:
            pytest.fail(f"the client closed the socket instead of sending {type}: {closed}")
        assert isinstance(message, dict), message
        assert message["type"] == type, message
        return message

    def expect_close(self) -> int:
        """The code with which the client closes the socket."""
        try:
            message = self._connection.recv(10.0)
        except ConnectionClosed as closed:
            return 1006 if closed.rcvd is None else closed.rcvd.code
        pytest.fail(f"the client sent something instead of closing the socket: {message!r}")

    def say(self, type: str, payload: Any = None, **more: Any) -> None:
        """Send a message."""
        self.say_raw(json.dumps({"type": type, "payload": payload, **more}))

    def say_raw(self, data: str | bytes) -> None:
        """Send what may be no message."""
        self._connection.send(data)

    def admit(self) -> Json:
        """Let it in; what it showed."""
        self.say("connected", {"socketId": "s"})
        shown = self.expect("authenticate")
        self.say("authenticated", {"success": True, "userId": "ada", "roomId": shown["payload"]["roomId"]})
        return shown

    @property
    def pings(self) -> int:
        """How many pings the client's library has sent."""
        assert isinstance(self._connection, _Connection)
        return self._connection.pings

    def settle(self) -> None:
        """What was said on this socket, by either side, has been read by the other; and what that caused as well."""
        for _ in range(2):
            pong = self._connection.ping()
            assert pong.wait(10.0), "the client does not answer a ping"

    def left_over(self) -> list[Json]:
        """What the client has sent besides."""
        found = []
        try:
            while True:
                found.append(json.loads(self._connection.recv(0)))
        except (TimeoutError, ConnectionClosed):
            return found

    def begin_close(self, code: int, reason: str = "") -> None:
        """Send a close frame, and nothing after it: :meth:`end_close` ends the connection."""
        self._gate.is_shut = True
        self._gate.sendall(Frame(Opcode.CLOSE, Close(code, reason).serialize()).serialize(mask=False))

    def end_close(self) -> None:
        """End the connection, whatever the client has sent since."""
        if self._gate.is_shut and not self._gate.over.is_set():
            self._gate.over.set()
            with suppress(OSError):  # the client may have ended it
                self.cut()
        self.ended.set()

    def close(self, code: int, reason: str = "") -> None:
        """Close it, politely."""
        self._connection.close(code, reason)
        self.ended.set()

    def cut(self) -> None:
        """Break it, without a word."""
        self._connection.socket.shutdown(socket.SHUT_RDWR)
        self.ended.set()


class ScriptedGateway:
    """Listens on a port of 127.0.0.1, and hands each socket to the test. ``full``: it refuses each handshake.

    ``unread``: how many messages wait for the test before the server reads no more; ``None`` for any number.
    """

    def __init__(self, port: int = 0, tls: ssl.SSLContext | None = None, unread: int | None = 1) -> None:
        self.full = False
        self._sockets: queue.Queue[Far] = queue.Queue()
        self._all: list[Far] = []
        self._server = serve(
            self._talk,
            "127.0.0.1",
            port,
            ssl=tls,
            subprotocols=[Subprotocol("kraftek.v1.json")],
            process_request=self._refuse,
            max_size=None,
            max_queue=unread,
            compression=None,
            close_timeout=1.0,
            create_connection=_Connection,
        )
        self.port = int(self._server.socket.getsockname()[1])
        self.url = f"{'wss' if tls else 'ws'}://127.0.0.1:{self.port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def accept(self) -> Far:
        """The next socket."""
        try:
            return self._sockets.get(timeout=10.0)
        except queue.Empty:
            pytest.fail("the client did not connect")

    def admitted(self) -> Far:
        """The next socket, authenticated."""
        far = self.accept()
        far.admit()
        return far

    def close(self) -> None:
        """Stop listening, and cut every socket."""
        for far in self._all:
            far.end_close()
        self._server.shutdown()
        self._thread.join(10.0)

    def _talk(self, connection: ServerConnection) -> None:
        far = Far(connection)
        self._all.append(far)
        self._sockets.put(far)
        assert far.ended.wait(60), "the test has not ended the socket"

    def _refuse(self, connection: ServerConnection, _: Request) -> Response | None:
        return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "full\n") if self.full else None
