"""Clients that stop reading under fan-out: what they cost the process and the others, and what they hear of it.

    python -m bench.slow_readers                # 2,000 clients, of which 200 stop reading; a minute
    python -m bench.slow_readers --large 20     # one message of 20 MB to 40 clients that do not read

It starts a gateway and a Redis of its own. All clients are in one room, which is told of cursors (``latest``), of
typing (``drop``) and of notes (``queue``). Printed are the resident memory of the gateway, the 99th percentile of the
time from the publishing of a message until each reading client has it, before and while the others do not read, and how
many of those were told a gap when they read again. It fails when one of them was not.
"""

import argparse
import asyncio
import contextlib
import itertools
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import redis

from bench.measure import allow_many_files, family, resident_bytes
from bench.websocket_client import WebSocketClient

ROOM = "r1"
RATE = 4
"""Messages a second to the room, nine of ten of them cursors or typing: what one process of clients can take."""
KINDS = itertools.cycle(["cursor:moved", "typing:begun"] * 4 + ["cursor:moved", "note:made"])
WHO = itertools.cycle(range(20))
SMALL = 4096
"""Bytes of a client's receive buffer: by themselves kernels give it up to 32 MiB, and nobody would notice that it does
not read.
"""
FILL = 6_000_000
"""Bytes of a message that no kernel takes for such a client: Linux sends up to 4 MiB ahead."""
CONFIG = """
listen = ["tcp:{port}:interface=127.0.0.1"]
sessions = "many"
limits.ping_interval = {ping_interval}
limits.ping_timeout = {ping_timeout}
redis.url = "redis://127.0.0.1:{redis}/0"
auth.check = "open"
[events."bench:cursor:moved"]
policy = "latest"
key = "who"
[events."bench:typing:*"]
policy = "drop"
"""
_decode = msgspec.json.Decoder().decode


class Client(WebSocketClient):
    """One client: notes when what was published arrives, and the gaps it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.latencies: list[float] = []
        self.gaps: list[object] = []
        self.closed = False
        self.socket_id = ""
        self.ready = asyncio.get_running_loop().create_future()

    @property
    def path(self) -> str:
        """With the token and the room."""
        return f"/?token={id(self)}&roomId={ROOM}"

    def connection_lost(self, exc: Exception | None) -> None:
        """The gateway has closed it."""
        self.closed = True

    def text(self, payload: bytes) -> None:
        """A message came."""
        if b'"at":' in payload:
            self.latencies.append(time.monotonic() - _decode(payload)["payload"]["at"])
            return
        message = _decode(payload)
        if message["type"] == "gap":
            self.gaps.append(message["payload"])
        elif message["type"] == "connected":
            self.socket_id = message["payload"]["socketId"]
        elif message["type"] == "authenticated" and not self.ready.done():
            self.ready.set_result(None)


async def connect(port: int, count: int, buffer: int = 0) -> list[Client]:
    """So many clients, in their room. ``buffer``: bytes of their kernel's receive buffer."""
    loop, clients = asyncio.get_running_loop(), list[Client]()
    for _ in range(count):
        end = socket.socket()
        if buffer:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        end.setblocking(False)
        await loop.sock_connect(end, ("127.0.0.1", port))
        _, client = await loop.create_connection(Client, sock=end)
        clients.append(client)
        await asyncio.wait_for(client.ready, 30)
    return clients


async def fan_out(publisher: redis.Redis, seconds: float) -> None:
    """Tell the room of something, ``RATE`` times a second."""
    for _ in range(int(seconds * RATE)):
        payload = {"at": time.monotonic(), "who": next(WHO), "text": "x" * 1000}
        message = {"type": f"bench:{next(KINDS)}", "roomId": ROOM, "payload": payload}
        publisher.publish("events:broadcast", msgspec.json.encode(message))
        await asyncio.sleep(1 / RATE)


def p99(clients: list[Client]) -> float:
    """The 99th percentile in milliseconds, and begin anew."""
    latencies = [each for client in clients for each in client.latencies]
    for client in clients:
        client.latencies.clear()
    return 1000 * statistics.quantiles(latencies, n=100)[98]


@contextlib.contextmanager
def running(home: Path, ping_interval: float) -> Iterator[tuple[int, int, redis.Redis]]:
    """A Redis and a gateway: its port, its process, and a connection to Redis."""
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            ports.append(taken.getsockname()[1])
    port, redis_port = ports
    (home / "gateway.toml").write_text(
        CONFIG.format(
            port=port,
            redis=redis_port,
            ping_interval=ping_interval,
            ping_timeout=20.0 if ping_interval < 100 else 500.0,
        )
    )
    server = shutil.which("redis-server") or "redis-server"
    limits = ["--client-output-buffer-limit", "pubsub 0 0 0", "--save", ""]
    # From elsewhere: what is measured is the installed gateway.
    twistd = ["env", "-C", str(home), str(Path(sys.executable).with_name("twistd")), "--nodaemon", "--pidfile="]
    with contextlib.ExitStack() as stack:
        for command in (
            [server, "--port", str(redis_port), "--bind", "127.0.0.1", "--dir", str(home), *limits],
            [*twistd, "kraftek-gateway", "--config", str(home / "gateway.toml")],
        ):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield port, process.pid, redis.Redis(port=redis_port)


async def slow(port: int, pid: int, publisher: redis.Redis, count: int, stop: int, seconds: float) -> int:
    """Some stop reading, and read again. The exit status."""
    slow_ones = await connect(port, stop, SMALL)
    others = await connect(port, count - stop)
    await fan_out(publisher, 5)
    p99(slow_ones + others)
    await fan_out(publisher, seconds)
    before, memory = p99(others), resident_bytes(family(pid))
    for client in slow_ones:
        client.transport.pause_reading()
    filling = {"type": "bench:fill:up", "recipients": [client.socket_id for client in slow_ones], "payload": "x" * FILL}
    publisher.publish("events:broadcast", msgspec.json.encode(filling))
    await asyncio.sleep(3)
    most = 0
    for _ in range(int(seconds)):
        await fan_out(publisher, 1)
        most = max(most, resident_bytes(family(pid)))
    during = p99(others)
    for client in slow_ones:
        client.transport.resume_reading()
    until = time.monotonic() + 60
    while time.monotonic() < until and not all(client.gaps for client in slow_ones):
        await asyncio.sleep(0.5)
    told = sum(bool(client.gaps) for client in slow_ones)
    closed = sum(client.closed for client in slow_ones)
    print(f"{count} clients, {stop} stop reading; {RATE} messages a second of 1 kB to all")
    print(f"p99 of the others: {before:.1f} ms before, {during:.1f} ms meanwhile ({during / before:.2f} times)")
    print(f"memory of the gateway: {memory / 2**20:.0f} MiB before, {(most - memory) / 2**20:+.1f} MiB meanwhile")
    print(f"told a gap when they read again: {told} of {stop}; closed: {closed}")
    return 0 if told == stop and not closed else 1


async def large(port: int, pid: int, publisher: redis.Redis, megabytes: int, count: int) -> int:
    """One message to clients that do not read, and to one that does. The exit status."""
    slow_ones = await connect(port, count, SMALL)
    (reader,) = await connect(port, 1)
    for client in slow_ones:
        client.transport.pause_reading()
    memory, most, began = resident_bytes(family(pid)), 0, time.monotonic()
    payload = {"at": began, "text": "x" * (megabytes * 1_000_000)}
    publisher.publish("events:broadcast", msgspec.json.encode({"type": "a:b:c", "roomId": ROOM, "payload": payload}))
    while time.monotonic() < began + 40:
        await asyncio.sleep(0.2)
        most = max(most, resident_bytes(family(pid)))
    for client in slow_ones:
        client.transport.resume_reading()
    await asyncio.sleep(3)
    closed = sum(client.closed for client in slow_ones)
    print(f"one message of {megabytes} MB to {count} clients that do not read, and to one that does")
    print(f"memory of the gateway: {memory / 2**20:.0f} MiB before, at most {most / 2**20:.0f} MiB")
    print(f"closed: {closed} of {count}; the reader has it: {bool(reader.latencies)}")
    return 0 if closed == count and reader.latencies else 1


def main() -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.slow_readers", description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--stop", type=int, default=200, help="how many of them stop reading")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--large", type=int, default=0, metavar="MB", help="one message of so many MB to 40 instead")
    options = parser.parse_args()
    allow_many_files()
    with (
        tempfile.TemporaryDirectory(prefix="kraftek-bench-") as directory,
        # A client that does not read answers no ping either.
        running(Path(directory), 25.0 if options.large else 600.0) as (port, pid, publisher),
    ):
        if options.large:
            return asyncio.run(large(port, pid, publisher, options.large, 40))
        return asyncio.run(slow(port, pid, publisher, options.clients, options.stop, options.seconds))


if __name__ == "__main__":
    sys.exit(main())
