"""An answer in pieces, to clients that are there, come late, and lose their sockets: ``python -m bench.texts``.

README.rst says what is done. It starts two gateways and a Redis of its own, and fails when a client ends with another
text, or when a late joiner gets more than 1.1 times the bytes of the text.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from bench.measure import allow_many_files, cpu_seconds
from bench.presence import Fleet
from bench.websocket_client import WebSocketClient
from kraftek.service.asyncio import Publisher

ROOM, TYPE, KEY = "chat-1", "bot:text:said", "answer"
CONFIG = """
listen = ["tcp:{port}:interface=127.0.0.1"]
sessions = "many"
redis.url = "redis://127.0.0.1:{redis}/0"
auth.check = "open"
limits.connects_per_address = 0
limits.events_per_address = 0
[rooms."chat-*"]
history = 200
"""
WORDS = [
    "the",
    "a",
    "gateway",
    "client",
    "room",
    "answer",
    "piece",
    "of",
    "and",
    "to",
    "is",
    "while",
    "nobody",
    "everybody",
    "reads,",
    "writes.",
    "told?",
]
_decode = msgspec.json.Decoder().decode


class _Fleet(Fleet):
    config = CONFIG


class Reader(WebSocketClient):
    """A client of the room. ``asked``: for what, when it enters; ``size``: bytes of what it got of the text."""

    def __init__(self, user: str, **asked: Any) -> None:
        super().__init__()
        self.user, self.asked = user, asked
        self.said = self.epoch = ""
        self.offset = self.size = self.messages = 0
        self.whole = False
        self.entered = asyncio.get_running_loop().create_future()

    def text(self, payload: bytes) -> None:
        """A message came."""
        message = _decode(payload)
        match message["type"]:
            case "connected":
                self.say({"type": "authenticate", "payload": {"token": self.user, "roomId": ROOM, **self.asked}})
            case "authenticated":
                self.epoch, self.offset = message["payload"]["epoch"], message["payload"]["offset"]
                self.entered.set_result(message["payload"].get("recovered"))
            case "bot:text:said":
                append, piece = message["append"], message["payload"]
                self.said = piece if "from" in append else self.said + piece
                self.offset, self.whole = message["offset"], append.get("last", False)
                self.size += len(payload)
                self.messages += 1


async def _enter(port: int, user: str, **asked: Any) -> Reader:
    _, reader = await asyncio.get_running_loop().create_connection(lambda: Reader(user, **asked), "127.0.0.1", port)
    await reader.entered
    return reader


async def _until(condition: Any) -> None:
    until = time.monotonic() + 60
    while not condition():
        if time.monotonic() > until:
            raise SystemExit("the clients do not get on")
        await asyncio.sleep(0.05)


async def _play(fleet: Fleet, count: int, clients: int) -> int:
    chance, tenth = random.Random(1), clients // 10
    pieces = [chance.choice(WORDS) + " " for _ in range(count)]
    ports = fleet.ports
    there = [await _enter(ports[n % 2], f"u{n}") for n in range(clients - tenth)]
    losing = there[-tenth:]
    half = count // 2
    async with Publisher(f"redis://127.0.0.1:{fleet.redis_port}/0") as publisher:
        for number in range(500):
            await publisher.broadcast_to_room("bot:line:said", pieces[number % count], ROOM)
        server = fleet.redis.info("server")["process_id"]
        cpu, began = cpu_seconds([server]), time.monotonic()
        for number in range(count):
            await publisher.broadcast_to_room("bot:line:said", pieces[number], ROOM)
        plain, plain_seconds = cpu_seconds([server]) - cpu, time.monotonic() - began
        await asyncio.sleep(1.0)

        async def tell(begin: int, end: int) -> None:
            for number in range(begin, end):
                first, last = number == 0, number == count - 1
                await publisher.append_to_room(TYPE, KEY, pieces[number], ROOM, first=first, last=last)

        cpu, began = cpu_seconds([server]), time.monotonic()
        gateways = fleet.cpu
        await tell(0, half)
        for reader in losing:
            reader.transport.abort()
        await tell(half, half + count // 10)
        late = [await _enter(ports[n % 2], f"late{n}", history=1) for n in range(tenth)]
        await tell(half + count // 10, half + count // 5)
        again = []
        for n, reader in enumerate(losing):
            since = {"epoch": reader.epoch, "offset": reader.offset}
            again.append(await _enter(ports[(n + 1) % 2], reader.user, since=since))
        await tell(half + count // 5, count)
        used, seconds = cpu_seconds([server]) - cpu, time.monotonic() - began
        last = await _enter(ports[0], "last", history=1)
        staying = there[:-tenth]
        everybody = [*staying, *late, *again, last]
        await _until(lambda: all(reader.whole for reader in everybody))
        gateways = fleet.cpu - gateways
    answer = "".join(pieces)
    size = len(msgspec.json.encode(answer))
    wrong = [reader for reader in everybody if reader.said != answer]
    unsure = [reader for reader in again if reader.entered.result() is not True]
    log, texts = (
        fleet.redis.memory_usage(f"gateways:history:{kind}:room:{ROOM}", samples=0) for kind in ("log", "texts")
    )
    print(f"a text of {size:,} bytes in {count:,} pieces, {clients} clients, {len(ports)} gateways: {seconds:.1f} s")
    print(f"{len(staying)} who were there: {staying[0].messages:,} messages, {staying[0].size:,} bytes")
    print(f"{len(late)} who came late: {late[0].messages:,} messages, {late[0].size:,} bytes")
    print(
        f"{len(again)} who lost their sockets, {len(again) - len(unsure)} recovered: {again[0].messages:,} messages, ",
        end="",
    )
    print(f"{again[0].size:,} bytes, after {losing[0].messages:,} messages before")
    print(
        f"who came when all was told: {last.messages} message, {last.size:,} bytes, {last.size / size:.3f} of the text"
    )
    print(f"Redis: {used / count * 1e6:.1f} us a piece; {plain / count * 1e6:.1f} us a message to the same room")
    print(f"the publisher told {count / seconds:,.0f} pieces a second, and {count / plain_seconds:,.0f} messages")
    print(f"gateways: {gateways / count * 1e6 / (clients - tenth):.1f} us a piece and client")
    print(f"Redis keeps {texts:,} bytes of the text, beside the log of {log:,}")
    print(f"with another text: {len(wrong)}; not recovered: {len(unsure)}")
    return int(bool(wrong or unsure) or last.size > 1.1 * size)


def main() -> int:
    """Measure; 1 when something was lost, or too much was sent."""
    parser = argparse.ArgumentParser(prog="python -m bench.texts", description=__doc__)
    parser.add_argument("--pieces", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=200)
    asked = parser.parse_args()
    allow_many_files()
    with tempfile.TemporaryDirectory() as home:
        fleet = _Fleet(Path(home), 2, 0)
        try:
            return asyncio.run(_play(fleet, asked.pieces, asked.clients))
        finally:
            fleet.stop()


if __name__ == "__main__":
    sys.exit(main())
