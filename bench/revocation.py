"""How soon access that was taken back is gone: ``python -m bench.revocation``. README.rst says how to read it.

Two gateways, an auth service, a service that answers, and clients that ask it all the time, so that nothing idles. Then
one client after the other loses its access, in turn by ``auth:invalidate`` and by ``DEL`` of its token's key, and waits
for ``ACCESS_REVOKED``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import redis.asyncio
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from bench.failover import running, until
from bench.spread import percentile
from tests.support.ports import free_port
from tests.support.redis_server import PrivateRedis

CONFIG = """
listen = ["tcp:{port}:interface=127.0.0.1"]
redis.url = "{url}"
auth.check = "{auth}"
services.chat = {{channel = "events:chat", reply = true}}
"""

HOW = "auth:invalidate", "DEL"
ROOM = "r"
WARM_UP = 3.0
"""Seconds of load before the first revocation."""


class AuthService:
    """Says yes to everybody but the ``banned``. A token is its user's name."""

    def __init__(self) -> None:
        self.banned: set[str] = set()
        self.asked = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        with contextlib.suppress(asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(
                    (int(line[15:]) for line in head.lower().split("\r\n") if line[:15] == "content-length:"), 0
                )
                query = parse_qs(urlsplit(head.split()[1]).query)
                asked = {name: values[0] for name, values in query.items()}
                if length:
                    asked |= json.loads(await reader.readexactly(length))
                user, self.asked = asked["token"], self.asked + 1
                body = {
                    "success": user not in self.banned,
                    "userId": user,
                    "roomId": asked.get("roomId", ROOM),
                    "ttl": 300,
                }
                text = json.dumps(body).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(text)
                )
                writer.write(text)
        writer.close()


async def let_in(url: str, name: str) -> ClientConnection:
    """A client that is in the room."""
    socket = await connect(url, subprotocols=[Subprotocol("kraftek.v1.json")], compression=None, proxy=None)
    await socket.recv()
    await socket.send(json.dumps({"type": "authenticate", "payload": {"token": name, "roomId": ROOM}}))
    answer = json.loads(await socket.recv())
    assert answer["type"] == "authenticated", answer
    return socket


async def load(urls: list[str], number: int) -> None:
    """Ask and ask, until this process is ended."""

    async def ask(who: int) -> None:
        socket = await let_in(urls[who % len(urls)], f"load{who}")
        for request in range(sys.maxsize):
            await socket.send(json.dumps({"type": "chat:say:back", "id": request, "payload": request}))
            await socket.recv()

    await asyncio.gather(*(ask(who) for who in range(number)))


async def measure(urls: list[str], server: PrivateRedis, auth: AuthService, number: int) -> dict[str, list[int]]:
    """Microseconds until the clients heard that their access was taken back, in order, by how it was."""
    names = [f"c{who}" for who in range(number)]
    sockets = [await let_in(urls[who % len(urls)], name) for who, name in enumerate(names)]
    await asyncio.sleep(WARM_UP)
    took: dict[str, list[int]] = {how: [] for how in HOW}
    client = redis.asyncio.Redis.from_url(server.url)
    for who, (name, socket) in enumerate(zip(names, sockets, strict=True)):
        how = HOW[who // len(urls) % len(HOW)]
        auth.banned.add(name)
        began = time.perf_counter_ns()
        if how == "DEL":
            assert await client.delete(f"access:token:{hashlib.sha256(name.encode()).hexdigest()}") == 1
        else:
            await client.publish("auth:invalidate", json.dumps({"userId": name}))
        heard = json.loads(await asyncio.wait_for(socket.recv(), 10))
        took[how].append((time.perf_counter_ns() - began) // 1000)
        assert heard["payload"]["code"] == "ACCESS_REVOKED", heard
        await socket.close()
    await client.aclose()
    return {how: sorted(times) for how, times in took.items()}


def idle_share() -> tuple[int, int]:
    """Time that the processors were idle, and all of it, since the machine was started."""
    times = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return times[3] + times[4], sum(times)


async def play(server: PrivateRedis, number: int, clients: int) -> list[str]:
    """All of it; what came of it, line by line."""
    auth = AuthService()
    listening = await asyncio.start_server(auth.answer, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kraftek-bench-")))
        twistd = str(Path(sys.executable).with_name("twistd"))
        ports, ready = [free_port(), free_port()], []
        for port in ports:
            config = directory / f"{port}.toml"
            config.write_text(CONFIG.format(port=port, url=server.url, auth=address))
            command = ("env", "-C", str(directory), twistd, "--nodaemon", "--pidfile=", "kraftek-gateway")
            ready.append(stack.enter_context(running(directory, f"gateway-{port}", *command, "--config", str(config))))
        await until(lambda: all("is ready" in path.read_text() for path in ready), "the gateways")
        service = (sys.executable, "-m", "bench.failover_service", "asyncio", server.url, "chat", "pubsub")
        stack.enter_context(running(directory, "service", *service))
        await until(lambda: server.call("PUBSUB", "NUMSUB", "events:chat")[1], "the service")
        urls = [f"ws://127.0.0.1:{port}/" for port in ports]
        stack.enter_context(
            running(
                directory, "load", sys.executable, "-m", "bench.revocation", "--load", *urls, "--clients", str(clients)
            )
        )
        idle, all_of_it = idle_share()
        took = await measure(urls, server, auth, number)
        now_idle, now_all = idle_share()
    listening.close()
    idle_for = 100 * (now_idle - idle) / (now_all - all_of_it)
    lines = [f"{number} of {number} heard of it; {os.cpu_count()} processors, idle for {idle_for:.0f} % of the time"]
    for how, times in took.items():
        shown = ", ".join(f"p{round(100 * share)} {percentile(times, share) / 1000:.1f}" for share in (0.5, 0.9, 0.99))
        lines.append(f"{how} to ACCESS_REVOKED, ms: {shown}, most {times[-1] / 1000:.1f}")
    return lines


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m bench.revocation", description=__doc__)
    parser.add_argument("--revocations", type=int, default=400, metavar="N")
    parser.add_argument("--clients", type=int, default=20, metavar="N", help="that ask all the time")
    parser.add_argument("--load", nargs="+", metavar="URL", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.load:
        asyncio.run(load(asked.load, asked.clients))
        return
    server = PrivateRedis()
    try:
        server.start()
        print("\n".join(asyncio.run(play(server, asked.revocations, asked.clients))))
    finally:
        server.close()


if __name__ == "__main__":
    main()
