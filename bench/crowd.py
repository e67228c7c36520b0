"""The clients of one load process, and the line that a fan-out's events are published on. `bench.load` wires it."""

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Protocol, cast

import hiredis
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from bench.dialects import DIALECTS
from bench.measure import cpu_seconds
from bench.orders import Outcome, Setting
from bench.spread import percentile
from kraftek.contract.history import FUNCTION

PATIENCE = 15.0
"""Seconds after which an answer counts as missing."""

_ORIGIN = time.perf_counter_ns()


def clock() -> int:
    """Give nanoseconds since this process began: a number small enough for JavaScript to give back unharmed."""
    return time.perf_counter_ns() - _ORIGIN


class Client(WSListener):
    """One client. `Crowd.received` gets what comes once it is ready."""

    transport: WSTransport

    def __init__(self, crowd: "Crowd", who: int, room: int) -> None:
        self.who = who
        self.room = room
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._crowd = crowd
        self._greeted = False

    def on_ws_connected(self, transport: WSTransport) -> None:
        self.transport = transport
        self._reply(self._crowd.dialect.opening(self.who, self.room))

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        crowd = self._crowd
        if frame.msg_type == WSMsgType.TEXT:
            data = frame.get_payload_as_bytes()
            if data == crowd.dialect.heartbeat:
                crowd.pings += 1
                self.send(crowd.dialect.heartbeat_answer)
            elif self._greeted:
                crowd.received(self, data)
            else:
                self._reply(crowd.dialect.greeting(data, self.who, self.room))
        elif frame.msg_type == WSMsgType.PING:
            crowd.pings += 1
            transport.send_pong(frame.get_payload_as_bytes())
        elif frame.msg_type == WSMsgType.CLOSE:
            crowd.fault(f"closed with {frame.get_close_code()} {frame.get_close_reason()}")
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._crowd.fault("connection lost")
        if not self.ready.done():
            self.ready.set_exception(ConnectionError("connection lost"))

    def send(self, data: bytes) -> None:
        self.transport.send(WSMsgType.TEXT, data)

    def _reply(self, data: bytes | None) -> None:
        if data is None:
            self._greeted = True
            self.ready.set_result(None)
        elif data:
            self.send(data)


class Line(Protocol):
    """Where a fan-out's events are published."""

    def publish(self, members: bytes) -> None:
        """Publish one event; `members` are the JSON members ``type`` and ``payload``, without braces."""

    def tell(self, members: bytes) -> None:
        """The same for the room ``r0``, which has a history."""


class _Link(asyncio.Protocol):
    """The connection under a line."""

    def __init__(self, crowd: "Crowd") -> None:
        self.crowd = crowd

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)


class RedisLine(_Link):
    """Publishes as services do."""

    def __init__(self, crowd: "Crowd") -> None:
        super().__init__(crowd)
        self._reader = hiredis.Reader()

    def publish(self, members: bytes) -> None:
        body = b'{"recipients":[],%s}' % members
        self.transport.write(hiredis.pack_command((b"PUBLISH", b"events:broadcast", body)))  # type: ignore[arg-type]

    def tell(self, members: bytes) -> None:
        words = "FCALL", FUNCTION, "0", "r0", b"{%s}" % members
        self.transport.write(hiredis.pack_command(words))  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (heard := self._reader.gets()) is not False:
            if isinstance(heard, list):
                heard = heard[0]
            if not isinstance(heard, int) or heard < 1:
                self.crowd.fault(f"published to nobody: {heard!r}")


class NchanLine(_Link):
    """Publishes as Nchan wants it."""

    def publish(self, members: bytes) -> None:
        body = b"{%s}" % members
        head = b"POST /pub?id=r0 HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body)
        self.transport.write(head + body)

    def tell(self, members: bytes) -> None:
        raise NotImplementedError("Nchan has histories of its own")

    def data_received(self, data: bytes) -> None:
        if not data.startswith(b"HTTP/1.1 20"):
            self.crowd.fault(f"not published: {data[:100]!r}")


class Window:
    """The time in which messages count: opened at its construction, closed by `Crowd.outcome`."""

    def __init__(self, pids: dict[str, list[int]]) -> None:
        self._pids = pids
        self._began = clock()
        self._before = self._cpu()

    def close(self) -> tuple[float, dict[str, float]]:
        """Give its length and the processor time of each role, both in seconds."""
        after = self._cpu()
        return (clock() - self._began) / 1e9, {role: used - self._before[role] for role, used in after.items()}

    def _cpu(self) -> dict[str, float]:
        return {role: cpu_seconds(pids) for role, pids in self._pids.items()}


class Crowd:
    """All clients of one load process."""

    line: Line
    received: Callable[[Client, bytes], None]
    """The drill in hand sets it."""

    def __init__(self, setting: Setting) -> None:
        self.dialect = DIALECTS[setting.dialect]()
        self.clients: dict[int, Client] = {}
        self.rooms: dict[int, list[Client]] = {}
        self.pings = 0
        self._setting = setting
        self._faults: dict[str, int] = {}

    async def open_line(self) -> None:
        """Connect to where a fan-out's events are published."""
        setting = self._setting
        line: RedisLine | NchanLine
        if setting.dialect == "nchan":
            line, port = NchanLine(self), setting.ports[0]
        else:
            line, port = RedisLine(self), setting.redis_port
        await asyncio.get_running_loop().create_connection(lambda: line, "127.0.0.1", port)
        self.line = line

    def more(self, clients: int) -> range:
        """Give the numbers of clients to come."""
        first = self._setting.first + len(self.clients)
        return range(first, first + clients)

    async def connect(self, who: int, room: int) -> None:
        """Open one connection and authenticate; raises whatever stands in the way."""
        client, ports = Client(self, who, room), self._setting.ports
        port = ports[room % len(ports)]
        await ws_connect(
            lambda: client,
            f"ws://127.0.0.1:{port}{self.dialect.path}",
            socket_factory=lambda _: self._socket(port),
            enable_auto_pong=False,
            websocket_handshake_timeout=PATIENCE,
            read_buffer_init_size=4096,
        )
        await asyncio.wait_for(client.ready, PATIENCE)
        self.clients[who] = client
        self.rooms.setdefault(room, []).append(client)

    def _socket(self, port: int) -> socket.socket:
        # Left to itself picows goes through name resolution, twice the cost of all the rest.
        plain = socket.socket()
        plain.setblocking(False)
        plain.connect_ex(("127.0.0.1", port))
        return plain

    def fault(self, what: str) -> None:
        """Note something that must not happen."""
        self._faults[what] = self._faults.get(what, 0) + 1

    def window(self) -> Window:
        """Open a window."""
        return Window(self._setting.pids)

    def outcome(
        self, window: tuple[float, dict[str, float]], due: int, delivered: int, latencies: list[int]
    ) -> Outcome:
        """Sum up a drill; `latencies` are those of the messages within the window, in nanoseconds."""
        seconds, cpu = window
        latencies.sort()
        faults = [f"{times} x {what}" for what, times in self._faults.items()]
        self._faults.clear()
        return Outcome(
            messages=len(latencies),
            due=due,
            delivered=delivered,
            seconds=seconds,
            cpu=cpu,
            p50_ms=percentile(latencies, 0.50) / 1e6 if latencies else None,
            p99_ms=percentile(latencies, 0.99) / 1e6 if latencies else None,
            faults=faults[:5],
        )
