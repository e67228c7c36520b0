"""A gateway that stops: whoever answers its close frame has time to, and nobody holds it up."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from tests.support.ports import free_port
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.integration.conftest import Connect, Gateway, RedisServer, StartGateway

T = TypeVar("T")

NATIVE = "/"
ENGINE = "/socket.io/?EIO=4&transport=websocket"
POLLING = "/socket.io/?EIO=4&transport=polling"

CUT = 1006
"""In the place of a code: the connection ended before the client had answered the close frame."""

HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: gateway.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
CLIENTS = 200


class Member:
    """A WebSocket client that answers its close frame after ``delay`` seconds, never when that is ``None``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float | None) -> None:
        self._reader = reader
        self._writer = writer
        self._delay = delay
        self.told = asyncio.Event()
        self.waited = 0.0
        """Seconds from the close frame to the end of the connection."""

    @classmethod
    async def connect(cls, port: int, path: str, delay: float | None) -> Member:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HANDSHAKE.format(path=path).encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        return cls(reader, writer, delay)

    async def closed(self) -> int:
        """The code that it reports in the end."""
        opcode, payload = await self._frame()
        while opcode != 0x88:
            opcode, payload = await self._frame()
        self.told.set()
        told = time.monotonic()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._end(), self._delay)
            self.waited = time.monotonic() - told
            return CUT
        self._writer.write(b"\x88\x82\0\0\0\0" + payload[:2])
        await self._end()
        self.waited = time.monotonic() - told
        return int.from_bytes(payload[:2], "big")

    async def _frame(self) -> tuple[int, bytes]:
        opcode, size = await self._reader.readexactly(2)
        if size == 126:
            size = int.from_bytes(await self._reader.readexactly(2), "big")
        return opcode, await self._reader.readexactly(size)

    async def _end(self) -> None:
        with suppress(ConnectionError):
            assert await self._reader.read() == b""
        self._writer.close()


async def held_poll(port: int, ready: asyncio.Event) -> list[bytes]:
    """The head of the answer to a poll that is held when the gateway stops."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def ask(query: str) -> tuple[list[bytes], bytes]:
        writer.write(f"GET {POLLING}{query} HTTP/1.1\r\nHost: gateway.test\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        (length,) = (int(line.split()[1]) for line in head if line.lower().startswith(b"content-length:"))
        return head, await reader.readexactly(length)

    _, opened = await ask("")
    sid = opened.split(b'"')[3].decode()
    polled = asyncio.create_task(ask(f"&sid={sid}"))
    await asyncio.sleep(0)
    ready.set()
    head, _ = await polled
    assert await reader.read() == b""
    writer.close()
    return head


def run(test: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(test, 60.0))


def in_time(start: Callable[[], Gateway], test: Callable[[Gateway], Coroutine[Any, Any, bool]]) -> None:
    """A gateway that stops waits for a second, and on a busy machine clients hear of it late: of three gateways one
    whose clients are in time is enough.
    """
    assert any(run(test(start())) for _ in range(3)), "in time with none of three"


async def stopped(process: Gateway) -> None:
    await asyncio.to_thread(process.terminate)


@pytest.fixture
def start(redis_server: RedisServer, gateway: StartGateway) -> Callable[[], Gateway]:
    return lambda: gateway(redis_server, config={"socketio": {"enabled": True}})


@pytest.mark.parametrize("path", [NATIVE, ENGINE])
def test_all_that_answer_hear_why(start: Callable[[], Gateway], path: str) -> None:
    """Late, and while one of them never does."""

    async def test(process: Gateway) -> bool:
        silent = await Member.connect(process.port, path, None)
        members = [await Member.connect(process.port, path, 0.1 + 0.1 * number / CLIENTS) for number in range(CLIENTS)]
        closed = asyncio.gather(*(member.closed() for member in (silent, *members)))
        await stopped(process)
        first, *codes = await closed
        assert first == CUT
        assert len(codes) == CLIENTS
        assert {*codes} <= {1012, CUT}
        return CUT not in codes

    in_time(start, test)


def test_it_ends_at_once_when_all_have_answered(start: Callable[[], Gateway]) -> None:
    async def test(process: Gateway) -> bool:
        members = [await Member.connect(process.port, NATIVE, 0.0) for _ in range(10)]
        closed = asyncio.gather(*(member.closed() for member in members))
        await stopped(process)
        codes = await closed
        assert {*codes} <= {1012, CUT}
        return CUT not in codes and max(member.waited for member in members) < 0.9

    in_time(start, test)


def test_who_never_answers_holds_it_up_for_a_second(start: Callable[[], Gateway]) -> None:
    """Not for the two or three that Autobahn would give it."""

    async def test(process: Gateway) -> bool:
        silent = await Member.connect(process.port, NATIVE, None)
        closed = asyncio.create_task(silent.closed())
        await stopped(process)
        assert await closed == CUT
        return 0.5 < silent.waited < 1.9

    in_time(start, test)


def test_polls_that_are_held_are_answered(start: Callable[[], Gateway]) -> None:
    process = start()

    async def test() -> None:
        ready = [asyncio.Event() for _ in range(50)]
        polls = asyncio.gather(*(held_poll(process.port, event) for event in ready))
        for event in ready:
            await event.wait()
        # Its handshake comes behind all of them.
        last = await Member.connect(process.port, NATIVE, 0.0)
        await asyncio.gather(stopped(process), last.closed())
        for head in await polls:
            assert head[0].startswith(b"HTTP/1.1 503 ")
            assert b"connection: close" in [line.lower() for line in head]

    run(test())


def status(port: int, path: str) -> int:
    """The status of a plain request, or of a handshake, on a connection of its own."""
    with socket.create_connection(("127.0.0.1", port), 10.0) as connection:
        request = (
            HANDSHAKE.format(path=path) if path == NATIVE else f"GET {path} HTTP/1.1\r\nHost: gateway.test\r\n\r\n"
        )
        connection.sendall(request.encode())
        return int(connection.makefile("rb").readline().split()[1])


def test_balancers_are_told_before_clients_are_refused(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect
) -> None:
    """Until a second signal, here; the first is enough for who has the time."""
    operator = free_port()
    config = {"drain": {"lead": 300.0}, "operator": {"listen": [f"tcp:{operator}:interface=127.0.0.1"]}}
    process = gateway(redis_server, config=config)
    ada = connect(process, token="ada", room="r1")
    assert (status(process.port, "/health"), status(operator, "/health")) == (200, 200)
    process.process.send_signal(signal.SIGTERM)
    process.wait_log("/health says so")
    assert (status(process.port, "/health"), status(operator, "/health")) == (503, 503)
    bob = connect(process, token="bob", room="r1")
    process.terminate()
    for client in (ada, bob):
        client.expect_stop()
    assert "Traceback" not in process.log()


@pytest.mark.parametrize("listen", ["tcp:0:interface=127.0.0.1", "reuseport:0:interface=127.0.0.1"])
def test_requests_in_flight_are_answered_first(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, listen: str
) -> None:
    """Whoever comes meanwhile is refused, at once: where others listen on the port by an answer."""
    services = {"chat": {"channel": "events:chat", "reply": True}}
    process = gateway(redis_server, services=services, args=("--listen", listen))
    redis: Any = redis_server.client()
    events = redis.pubsub(ignore_subscribe_messages=True)
    events.subscribe("events:chat")
    wait_until(lambda: redis.pubsub_numsub("events:chat")[0][1] == 1, "the subscription")
    ada = connect(process, token="ada", room="r1")
    bob = connect(process, token="bob", room="r1")
    ada.send("chat:message:send", id=1)
    event = json.loads(wait_until(lambda: events.get_message(timeout=0.1), "the request")["data"])
    process.process.send_signal(signal.SIGTERM)
    bob.expect_stop()
    if listen.startswith("reuseport"):
        assert status(process.port, NATIVE) == status(process.port, "/health") == 503
    else:
        with pytest.raises(ConnectionRefusedError):
            status(process.port, NATIVE)
    redis.publish(event["replyTo"], json.dumps({"type": "x:y:z", "inReplyTo": 1, "recipients": [ada.socket_id]}))
    assert ada.expect("x:y:z")["id"] == 1
    assert ada.expect("drain")["payload"] == {"reconnectAfter": 0}
    ada.expect_close(1012)


def test_a_handshake_that_is_late_is_refused(start: Callable[[], Gateway]) -> None:
    async def test(process: Gateway) -> bool:
        late = [await asyncio.open_connection("127.0.0.1", process.port) for _ in range(2)]
        requests = [HANDSHAKE.format(path=NATIVE), f"GET {POLLING} HTTP/1.1\r\nHost: gateway.test\r\n\r\n"]
        for (_, writer), request in zip(late, requests, strict=True):
            writer.write(request[:10].encode())
        # It was accepted behind them.
        silent = await Member.connect(process.port, NATIVE, None)
        closed = asyncio.create_task(silent.closed())
        process.process.terminate()
        await silent.told.wait()
        answers = []
        for (reader, writer), request in zip(late, requests, strict=True):
            with suppress(ConnectionError):
                writer.write(request[10:].encode())
                answers.append((await reader.readline())[:13])
            writer.close()
        assert {*answers} <= {b"HTTP/1.1 503 ", b""}
        assert await closed == CUT
        return answers == [b"HTTP/1.1 503 "] * 2

    in_time(start, test)
