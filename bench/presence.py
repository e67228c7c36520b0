"""Who is in a room, as clients are told: a room that fills, and one whose gateways are killed, paused and cut off.

    python -m bench.presence                    # 5,000 users come in ten seconds, over two gateways
    python -m bench.presence --faults           # 300 users with one to five sockets each, three gateways; four minutes

It starts gateways and a Redis of its own. Each client asks who is there as soon as it is in the room. Printed are, of
the room that fills, how many messages about that each client got until all know the last count, the processor time of
the gateways, and the bytes in Redis that each user costs there; of the faults, after each of them, the seconds until
every client whose socket stayed knows the users of exactly those sockets that are open. It fails when a client got more
than ten messages while the room filled, when somebody still knows something else 20 s after a fault, or was told twice
of the same coming or going.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import redis

from bench.measure import allow_many_files, cpu_seconds, family
from bench.websocket_client import WebSocketClient

ROOM = "board-1"
DATA = {"name": "Somebody Else", "colour": "violet"}
WITHIN = 20.0
CONFIG = """
listen = ["tcp:{port}:interface=127.0.0.1"]
sessions = "many"
redis.url = "redis://127.0.0.1:{redis}/0"
auth.check = "open"
limits.connects_per_address = 0
limits.events_per_address = 0
[rooms."board-*"]
presence = true
presence_users = {most}
"""
_decode = msgspec.json.Decoder().decode


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


class Client(WebSocketClient):
    """One socket of a user. ``users``: who is there, as far as it was told; ``twice``: what it was told twice."""

    def __init__(self, user: str) -> None:
        super().__init__()
        self.user = user
        self.users: set[str] = set()
        self.count = -1
        self.messages = 0
        self.twice: list[str] = []
        self.open = True
        self.entered = asyncio.get_running_loop().create_future()

    @property
    def path(self) -> str:
        """Where it connects to."""
        return "/"

    def connection_lost(self, exc: Exception | None) -> None:
        """It has no socket any more."""
        self.open = False
        if not self.entered.done():
            self.entered.set_result(None)

    def text(self, payload: bytes) -> None:
        """A message came."""
        message = _decode(payload)
        match message["type"]:
            case "connected":
                self.say({"type": "authenticate", "payload": {"token": self.user, "roomId": ROOM, "data": DATA}})
            case "authenticated":
                self.say({"type": "presence", "payload": {"roomId": ROOM}, "id": 1})
            case "presence":
                self._told(message["payload"])
            case "error":
                if message.get("id") == 1:
                    asyncio.get_running_loop().call_later(1, self._ask_again)

    def _ask_again(self) -> None:
        if self.open:
            self.say({"type": "presence", "payload": {"roomId": ROOM}, "id": 1})

    def _told(self, told: Any) -> None:
        self.messages += 1
        if "users" in told:
            self.users = {user["userId"] for user in told["users"]}
        joined = {user["userId"] for user in told.get("joined", ())}
        self.twice += (self.users & joined) | (set(told.get("left", ())) - self.users)
        self.users = (self.users | joined) - set(told.get("left", ()))
        self.count = told["count"]
        if not self.entered.done():
            self.entered.set_result(None)


class Fleet:
    """A Redis and gateways."""

    config = CONFIG

    def __init__(self, home: Path, gateways: int, most: int) -> None:
        self.home = home
        self.redis_port = _free_port()
        self.most = most
        self.ports = [_free_port() for _ in range(gateways)]
        server = [shutil.which("redis-server") or "redis-server", "--port", str(self.redis_port)]
        self._redis = subprocess.Popen(
            [*server, "--bind", "127.0.0.1", "--dir", str(home), "--save", ""], stdout=subprocess.DEVNULL
        )
        self.redis = redis.Redis(port=self.redis_port, decode_responses=True)
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        for port in self.ports:
            self.start(port)

    @property
    def cpu(self) -> float:
        """Seconds of processor time of all gateways."""
        return sum(cpu_seconds(family(process.pid)) for process in self.processes.values())

    def start(self, port: int) -> None:
        """Start the gateway of that port."""
        config = self.home / f"{port}.toml"
        config.write_text(self.config.format(port=port, redis=self.redis_port, most=self.most))
        # From elsewhere: what is measured is the installed gateway.
        twistd = [
            "env",
            "-C",
            str(self.home),
            str(Path(sys.executable).with_name("twistd")),
            "--nodaemon",
            "--pidfile=",
        ]
        with (self.home / f"{port}.log").open("ab") as log:
            self.processes[port] = subprocess.Popen([*twistd, "kraftek-gateway", "--config", str(config)], stdout=log)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return
            time.sleep(0.1)
        raise SystemExit("the gateway did not start")

    def stop(self) -> None:
        """Leave nothing behind."""
        for process in (*self.processes.values(), self._redis):
            process.kill()
            process.wait()


async def connect(port: int, user: str) -> Client:
    """One more socket of a user, in the room."""
    _, client = await asyncio.get_running_loop().create_connection(lambda: Client(user), "127.0.0.1", port)
    return client


async def fill(fleet: Fleet, count: int, seconds: float) -> int:
    """So many users come within so many seconds. The exit status."""
    loop, clients = asyncio.get_running_loop(), list[Client]()
    cpu, began = fleet.cpu, loop.time()
    for number in range(count):
        if (ahead := began + seconds * number / count - loop.time()) > 0:
            await asyncio.sleep(ahead)
        clients.append(await connect(fleet.ports[number % len(fleet.ports)], f"u{number}"))
    came = loop.time() - began
    until = loop.time() + 60
    while loop.time() < until and not all(client.count == count for client in clients):
        await asyncio.sleep(0.1)
    known = loop.time() - began
    most = max(client.messages for client in clients)
    listed = max(len(client.users) for client in clients)
    key = f"gateways:presence:{ROOM}"
    memory = (fleet.redis.memory_usage(key, samples=0) or 0) / count
    room = (fleet.redis.memory_usage(f"room:{ROOM}", samples=0) or 0) / count
    print(
        f"{count} users came in {came:.1f} s over {len(fleet.ports)} gateways; all know the count after {known:.1f} s"
    )
    print(f"messages about that to a client: {most} at most, {sum(c.messages for c in clients) / count:.1f} on average")
    print(f"users that a client knows: {listed} at most; processor time of the gateways: {fleet.cpu - cpu:.1f} s")
    print(
        f"bytes in Redis for a user: {memory:.0f} for {len(msgspec.json.encode(DATA))} bytes of data, "
        f"beside {room:.0f} in the room"
    )
    wrong = [client for client in clients if client.count != count]
    return 0 if not wrong and most <= 10 else 1


class Ledger:
    """All sockets, each with the port of its gateway."""

    def __init__(self, fleet: Fleet, chance: random.Random) -> None:
        self.fleet = fleet
        self.sockets: dict[Client, int] = {}
        self.chance = chance
        self.users = [f"user_u{number}" for number in range(300)]

    async def come(self, number: int, ports: list[int]) -> None:
        """One more socket of a user."""
        port = self.chance.choice(ports)
        self.sockets[await connect(port, f"u{number}")] = port

    def go(self, client: Client) -> None:
        """A socket closes."""
        del self.sockets[client]
        client.transport.abort()

    def lost(self, port: int) -> None:
        """All sockets of a gateway are gone."""
        self.sockets = {client: its for client, its in self.sockets.items() if its != port}

    async def agreed(self, away: int | None = None) -> float:
        """Seconds until all know the truth. ``away``: the port of a gateway that nobody hears."""
        began = time.monotonic()
        while True:
            here = [client for client, port in self.sockets.items() if port != away]
            truth = {f"user_{client.user}" for client in here}
            wrong = [client for client in here if client.users != truth]
            if not wrong:
                return time.monotonic() - began
            if time.monotonic() - began > WITHIN:
                differ = [sorted(client.users ^ truth)[:5] for client in wrong[:3]]
                raise SystemExit(f"{len(wrong)} of {len(here)} clients know something else after {WITHIN} s: {differ}")
            await asyncio.sleep(0.05)

    async def wander(self, ports: list[int]) -> None:
        """Some come and go."""
        for client in self.chance.sample(list(self.sockets), 40):
            self.go(client)
        for _ in range(40):
            await self.come(self.chance.randrange(300), ports)


async def faults(fleet: Fleet, seed: int, rounds: int) -> int:
    """Everything that can go wrong. The exit status."""
    chance = random.Random(seed)
    ledger, ports = Ledger(fleet, chance), fleet.ports
    for number in range(300):
        for _ in range(chance.randint(1, 5)):
            await ledger.come(number, ports)
    print(f"{len(ledger.sockets)} sockets of 300 users: all know after {await ledger.agreed():.1f} s")
    for round_ in range(rounds):
        port = chance.choice(ports)
        others = [each for each in ports if each != port]
        process = fleet.processes[port]
        await ledger.wander(ports)
        print(f"{round_}: 40 sockets went and 40 came: {await ledger.agreed():.1f} s")
        process.kill()
        process.wait()
        ledger.lost(port)
        await ledger.wander(others)
        print(f"{round_}: a gateway was killed: {await ledger.agreed():.1f} s")
        fleet.start(port)
        for number in chance.sample(range(300), 100):
            await ledger.come(number, [port])
        print(f"{round_}: it is back: {await ledger.agreed():.1f} s")
        os.kill(fleet.processes[port].pid, signal.SIGSTOP)
        await asyncio.sleep(7)
        print(f"{round_}: a gateway was paused for 7 s: {await ledger.agreed(port):.1f} s after that")
        os.kill(fleet.processes[port].pid, signal.SIGCONT)
        print(f"{round_}: it goes on: {await ledger.agreed():.1f} s")
        for kind in ("pubsub", "normal", "pubsub"):
            fleet.redis.client_kill_filter(_type=kind, skipme=True)
            await ledger.wander(ports)
        print(f"{round_}: all links to Redis were cut: {await ledger.agreed():.1f} s")
        fleet.redis.flushall()
        print(f"{round_}: Redis lost its data: {await ledger.agreed():.1f} s")
    twice = [(client.user, client.twice) for client in ledger.sockets if client.twice]
    print(f"told twice of the same coming or going: {len(twice)} clients {twice[:3]}")
    return 1 if twice else 0


def main() -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.presence", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--users", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--faults", action="store_true", help="the faults instead")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    allow_many_files()
    with tempfile.TemporaryDirectory(prefix="kraftek-bench-") as directory:
        fleet = Fleet(Path(directory), 3 if options.faults else 2, 1000 if options.faults else 100)
        try:
            if options.faults:
                return asyncio.run(faults(fleet, options.seed, options.rounds))
            return asyncio.run(fill(fleet, options.users, options.seconds))
        finally:
            fleet.stop()


if __name__ == "__main__":
    sys.exit(main())
