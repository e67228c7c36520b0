"""Upgrades under load: what clients notice of them.

    python -m bench.upgrade                     # 2,000 clients, four upgrades; a minute

It starts a gateway, a Redis and a service of its own. Clients of both dialects are in rooms, which are told numbers;
they ask the service, and send events that it gets by a stream. Meanwhile the gateway is upgraded to a version with a
newer format of the state, to one that fails half-way, back to the older one, and once more to the newer.

Printed is how long nobody was told anything. It fails when a client was disconnected, when a number was lost, came
twice or out of order, or when a request has no answer or more than one.
"""

import argparse
import asyncio
import contextlib
import itertools
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis

from bench.measure import allow_many_files
from bench.websocket_client import WebSocketClient
from kraftek.bus.embedded import redis_server_path
from tests.support.ports import free_port
from tests.support.versions import FAILS, NEWER, Versions

ROOM_SIZE = 200
ROOM_RATE = 3.0
"""Numbers that each room is told in a second."""
REQUESTS = 200.0
EVENTS = 100.0
"""Of all clients in a second."""
PATIENCE = 15.0
CONFIG = """
listen = ["tcp:{port}:interface=127.0.0.1"]
sessions = "many"
redis.url = "unix://{directory}/redis.sock"
auth.check = "open"
limits.connections_per_address = 0

[services]
chat = {{channel = "events:chat", reply = true}}
queue = {{channel = "events:queue", transport = "stream"}}
"""
_decode = msgspec.json.Decoder().decode


class Watch:
    """What all clients have noticed. ``last``: when something was told last; ``longest``: seconds without that."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.longest = 0.0
        self.told = 0
        self.faults: Counter[str] = Counter()
        self.slowest = 0.0

    def heard(self) -> None:
        """Something came."""
        now = time.monotonic()
        self.longest = max(self.longest, now - self.last)
        self.last = now
        self.told += 1


class Client(WebSocketClient):
    """One client. ``numbers``: the last one that it was told. ``asked``: when each of its requests was sent."""

    def __init__(self, watch: Watch, room: str, name: str, socketio: bool) -> None:
        super().__init__()
        self.room, self.name, self.socketio = room, name, socketio
        self.number: int | None = None
        self.sent = itertools.count(1)
        self.last_sent = 0
        self.asked: dict[int, float] = {}
        self.ready = asyncio.get_running_loop().create_future()
        self.over = False
        self._watch = watch
        self._ids = itertools.count(1)

    @property
    def path(self) -> str:
        """By its dialect."""
        return "/socket.io/?EIO=4&transport=websocket" if self.socketio else f"/?token={self.name}&roomId={self.room}"

    def connection_lost(self, exc: Exception | None) -> None:
        """That must not happen."""
        if not self.over:
            self._watch.faults["disconnected"] += 1

    def text(self, payload: bytes) -> None:
        """A message came."""
        if self.socketio:
            self._packet(payload)
        else:
            message = _decode(payload)
            self._told(message["type"], message.get("payload"), message.get("id"))

    def close_frame(self) -> None:
        """That must not happen."""
        self._watch.faults["closed"] += 1

    def ask(self) -> None:
        """Send a request."""
        number = next(self._ids)
        self.asked[number] = time.monotonic()
        if self.socketio:
            self._send(f'42{number}["chat:a:ask",{number}]')
        else:
            self._send(f'{{"type":"chat:a:ask","id":{number},"payload":{number}}}')

    def tell(self) -> None:
        """Send an event."""
        self.last_sent = next(self.sent)
        payload = f'{{"who":"{self.name}","number":{self.last_sent}}}'
        if self.socketio:
            self._send(f'42["queue:a:tell",{payload}]')
        else:
            self._send(f'{{"type":"queue:a:tell","payload":{payload}}}')

    def _send(self, text: str) -> None:
        self.send(text.encode())

    def _packet(self, packet: bytes) -> None:
        if packet == b"2":
            self._send("3")
        elif packet.startswith(b"0"):
            self._send(f'40{{"token":"{self.name}","roomId":"{self.room}"}}')
        elif packet.startswith(b"42"):
            name, payload = _decode(packet[2:])
            self._told(name, payload, None)
        elif packet.startswith(b"43"):
            number, _, _ = packet[2:].partition(b"[")
            self._told("chat:a:ask", None, int(number))

    def _told(self, type: str, payload: object, id: int | None) -> None:
        self._watch.heard()
        if type == "authenticated":
            self.ready.set_result(None)
        elif type == "room:a:number":
            assert isinstance(payload, int)
            if self.number is not None and payload != self.number + 1:
                kind = "doubled or out of order" if payload <= self.number else "lost"
                self._watch.faults[f"number {kind}"] += 1
            self.number = payload
        elif type == "chat:a:ask":
            asked = self.asked.pop(id or 0, None)
            if asked is None:
                self._watch.faults["answered twice"] += 1
            else:
                self._watch.slowest = max(self._watch.slowest, time.monotonic() - asked)
        elif type != "connected":
            self._watch.faults[f"{type} {payload}"] += 1


class Load:
    """What clients and services do, until ``end``."""

    def __init__(self, url: str, clients: list[Client], watch: Watch) -> None:
        self._redis = Redis.from_url(url)
        self._clients = clients
        self._watch = watch
        self._ends = False
        self.numbers = dict.fromkeys({client.room for client in clients}, 0)
        self.seen: dict[str, int] = {}

    async def serve(self, ready: asyncio.Event) -> None:
        """Answer requests."""
        async with self._redis.pubsub() as events:
            await events.subscribe("events:chat")
            ready.set()
            async for message in events.listen():
                if message["type"] != "message":
                    continue
                event = _decode(message["data"])
                answer = {
                    "type": "chat:a:ask",
                    "recipients": [event["socketId"]],
                    "inReplyTo": event["id"],
                    "payload": 1,
                }
                if await self._redis.publish(event["replyTo"], msgspec.json.encode(answer)) != 1:
                    self._watch.faults["an answer that nobody heard"] += 1

    async def read(self) -> None:
        """Read the stream, in order."""
        last: Any = "0"
        while True:
            found: Any = await self._redis.xread({"events:queue": last}, block=200)
            for _, entries in found or ():
                for entry, fields in entries:
                    last = entry
                    payload = _decode(fields[b"event"])["payload"]
                    before = self.seen.get(payload["who"], 0)
                    if payload["number"] != before + 1:
                        self._watch.faults["event lost, doubled or out of order"] += 1
                    self.seen[payload["who"]] = payload["number"]

    async def run(self) -> None:
        """Tell and ask, as often as a clock says."""
        rooms = itertools.cycle(self.numbers)
        chance = random.Random(1)

        async def often(rate: float, call: Callable[[], Any]) -> None:
            began = time.monotonic()
            for number in itertools.count():
                if self._ends:
                    return
                await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
                result = call()
                if result is not None:
                    await result

        async def tell_room() -> None:
            room = next(rooms)
            self.numbers[room] += 1
            said = {"type": "room:a:number", "roomId": room, "payload": self.numbers[room]}
            await self._redis.publish("events:broadcast", msgspec.json.encode(said))

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(often(ROOM_RATE * len(self.numbers), tell_room))
            tasks.create_task(often(REQUESTS, lambda: chance.choice(self._clients).ask()))
            tasks.create_task(often(EVENTS, lambda: chance.choice(self._clients).tell()))

    def end(self) -> None:
        """No more."""
        self._ends = True

    def left(self) -> str:
        """What has not come yet."""
        late = sum(client.number != self.numbers[client.room] for client in self._clients)
        waits = sum(len(client.asked) for client in self._clients)
        events = sum(self.seen.get(client.name, 0) != client.last_sent for client in self._clients)
        return (
            f"{late} clients without the last number, {waits} requests, {events} events"
            if late + waits + events
            else ""
        )


class Gateway:
    """The process."""

    def __init__(self, directory: Path, versions: Versions, port: int) -> None:
        (directory / "config.toml").write_text(CONFIG.format(port=port, directory=directory))
        self._log = directory / "gateway.log"
        self._written = self._log.open("wb")
        self.process = subprocess.Popen(
            [versions.twistd, "--nodaemon", "--pidfile=", "kraftek-gateway", "--config", directory / "config.toml"],
            stdout=self._written,
            stderr=subprocess.STDOUT,
        )

    async def says(self, what: str, after: int = 0) -> str:
        """Return its log from ``after`` on, once it has this."""
        async with asyncio.timeout(60.0):
            while what not in (text := self._log.read_text()[after:]):
                await asyncio.sleep(0.02)
        return text

    async def upgrade(self, what: str) -> str:
        """Upgrade, and wait for this line."""
        before = len(self._log.read_text())
        self.process.send_signal(signal.SIGUSR2)
        return await self.says(what, before)

    def end(self) -> None:
        """SIGTERM."""
        self.process.terminate()
        self.process.wait()
        self._written.close()


def _itself(client: Client) -> Client:
    return client


async def connect(watch: Watch, number: int, port: int) -> list[Client]:
    """So many clients, each in its room; a fifth of them speak Socket.IO."""
    clients: list[Client] = []
    for first in range(0, number, 50):
        some = [
            Client(watch, f"r{each // ROOM_SIZE}", f"u{each}", each % 5 == 0)
            for each in range(first, min(first + 50, number))
        ]
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.create_connection(partial(_itself, each), "127.0.0.1", port) for each in some))
        await asyncio.gather(*(client.ready for client in some))
        clients += some
    return clients


async def main(number: int, directory: Path) -> int:
    """Run; the exit status."""
    versions = Versions(directory / "versions")
    versions.add("1.0")
    versions.add("1.1", NEWER)
    versions.add("1.2", FAILS)
    versions.choose("1.0")
    port, watch = free_port(), Watch()
    redis = subprocess.Popen(
        [redis_server_path(), "--port", "0", "--unixsocket", directory / "redis.sock", "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    gateway = Gateway(directory, versions, port)
    try:
        await gateway.says("is ready")
        clients = await connect(watch, number, port)
        load = Load(f"unix://{directory}/redis.sock", clients, watch)
        ready = asyncio.Event()
        others = [asyncio.create_task(load.serve(ready)), asyncio.create_task(load.read())]
        await ready.wait()
        running = asyncio.create_task(load.run())
        for version, line in (
            ("", ""),
            ("1.1", "of version 1.0"),
            ("1.2", "of version 1.1"),
            ("1.0", "of version 1.1"),
            ("1.1", "of version 1.0"),
        ):
            await asyncio.sleep(3.0)
            watch.longest = watch.slowest = 0.0
            watch.last = time.monotonic()
            if version:
                versions.choose(version)
                await gateway.upgrade(line)
            await asyncio.sleep(3.0)
            print(
                f"{version or 'none':>5}  silence {watch.longest * 1000:5.0f} ms  slowest answer "
                f"{watch.slowest * 1000:5.0f} ms  {dict(watch.faults) or 'no fault'}",
                flush=True,
            )
        load.end()
        await running
        until = time.monotonic() + PATIENCE
        while (left := load.left()) and time.monotonic() < until:
            await asyncio.sleep(0.05)
        told = f"{watch.told} messages told to {number} clients"
        print(f"{told}; left: {left or 'nothing'}; {dict(watch.faults) or 'no fault'}")
        for client in clients:
            client.over = True
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        return int(bool(left or watch.faults))
    finally:
        gateway.end()
        redis.terminate()
        redis.wait()
        print((directory / "gateway.log").read_text()[-3000:]) if watch.faults else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Upgrades under load.")
    parser.add_argument("--clients", type=int, default=2000)
    allow_many_files()
    with tempfile.TemporaryDirectory(prefix="kraftek-upgrade-") as name, contextlib.suppress(KeyboardInterrupt):
        sys.exit(asyncio.run(main(parser.parse_args().clients, Path(name))))
