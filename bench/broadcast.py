"""One message to a very large room: ``python -m bench.broadcast``. README.rst says how to read what it prints.

A Redis, a gateway whose reactor is watched, and a room of 10,000 clients that read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import time
from pathlib import Path

import redis

from bench.floods import look, started_for_many
from bench.slow_readers import ROOM, Client, connect


async def _heard(clients: list[Client], messages: int) -> None:
    deadline = time.monotonic() + 30.0
    while sum(len(client.latencies) for client in clients) < messages * len(clients):
        if time.monotonic() > deadline:
            raise TimeoutError("a client has not got the message")
        await asyncio.sleep(0.05)


async def _measured(port: int, directory: Path, gateway: subprocess.Popen[bytes], count: int, messages: int) -> None:
    clients = await connect(port, count)
    publisher = redis.Redis(unix_socket_path=str(directory / "redis.sock"))
    look(gateway, directory / "turns")
    for number in range(1, messages + 1):
        payload = {"at": time.monotonic(), "text": "x" * 64}
        publisher.publish("events:broadcast", json.dumps({"type": "a:b:c", "roomId": ROOM, "payload": payload}))
        await _heard(clients, number)
    step, turn, long, _ = look(gateway, directory / "turns")
    latencies = sorted(each for client in clients for each in client.latencies)
    half, last = (1000 * latencies[at] for at in (len(latencies) // 2, -1))
    print(f"{messages} messages, one after the other, to a room of {count}")
    print(f"longest step {1000 * step:.1f} ms, longest turn {1000 * turn:.1f} ms; {long:.0f} steps above 10 ms")
    print(f"until a client has it: p50 {half:.0f} ms, the last {last:.0f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.broadcast", description=__doc__)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--messages", type=int, default=5)
    parser.add_argument("--before", default="", metavar="DIR", help="checkout of another gateway, to measure that")
    asked = parser.parse_args()
    with started_for_many(asked.before) as (directory, port, gateway):
        asyncio.run(_measured(port, directory, gateway, asked.clients, asked.messages))


if __name__ == "__main__":
    main()
