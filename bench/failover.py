"""A fail-over of Redis under load: ``python -m bench.failover``. README.rst says how to read what it prints.

Three sentinels, a master and a replica; two gateways; a service over Pub/Sub and one on a stream, each through another
backend of the SDK. Each client asks the two services in turn, and asks again with the same ``id`` when the answer is
``SERVICE_UNAVAILABLE``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import uniform
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from bench.spread import percentile
from tests.support.ports import free_port
from tests.support.sentinels import NAME, Sentinels

CONFIG = """
listen = ["tcp:{port}:interface=127.0.0.1"]
redis.url = "{url}"
auth.check = "open"

[services]
chat = {{channel = "events:chat", reply = true, presence = true, timeout = 2.0}}
board = {{channel = "events:board", reply = true, transport = "stream", timeout = 2.0}}
"""

SERVICE = "bench.failover_service"
SERVICES = {"chat": ("asyncio", "pubsub"), "board": ("twisted", "stream")}

ROOM = 4
PAUSE = 0.5
"""Seconds between two requests of a client, on average, and half as many before one is sent again."""
BEFORE = 3.0
AFTER = 5.0
"""Seconds under load before the fail-over, and after all clients have been answered again."""


class Client:
    """One client. ``answers``: when it asked each service and was answered; ``errors``: when it was not, and why."""

    def __init__(self, who: int, socket: ClientConnection) -> None:
        self.name = f"c{who}"
        self.room = f"r{who // ROOM}"
        self.socket_id = ""
        self.answers: dict[str, list[tuple[float, float]]] = {name: [] for name in SERVICES}
        self.errors: dict[str, list[tuple[float, str]]] = {name: [] for name in SERVICES}
        self.asked = 0
        self.told = 0
        self.lost = ""
        self.socket = socket
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def enter(self) -> None:
        """Authenticate and enter the room."""
        self.socket_id = json.loads(await self.socket.recv())["payload"]["socketId"]
        payload = {"token": self.name, "roomId": self.room}
        await self.socket.send(json.dumps({"type": "authenticate", "payload": payload}))
        assert json.loads(await self.socket.recv())["type"] == "authenticated"

    async def listen(self) -> None:
        """Receive until the connection is closed."""
        try:
            async for data in self.socket:
                message = json.loads(data)
                if message["type"] == "chat:told:room":
                    self.told += 1
                else:
                    self._answers.put_nowait(message)
        except ConnectionClosed as closed:
            self.lost = str(closed)

    async def ask(self, service: str) -> None:
        """Ask until it is answered. TIMEOUT is an answer, too: it was handed to the service, and stays so."""
        self.asked += 1
        began = time.monotonic()
        request = {"type": f"{service}:say:back", "id": self.asked, "payload": f"{self.name}:{self.asked}"}
        while True:
            await self.socket.send(json.dumps(request))
            answer = await asyncio.wait_for(self._answers.get(), 30.0)
            assert answer["id"] == self.asked, answer
            if answer["type"] != "error":
                assert answer["payload"] == request["payload"], answer
                self.answers[service].append((began, time.monotonic()))
                return
            self.errors[service].append((time.monotonic(), answer["payload"]["code"]))
            if answer["payload"]["code"] == "TIMEOUT":
                return
            await asyncio.sleep(PAUSE / 2)

    async def ask_all_the_time(self, over: asyncio.Event) -> None:
        """Ask the services in turn, out of step with the other clients."""
        while not over.is_set():
            for service in SERVICES:
                await self.ask(service)
                await asyncio.sleep(PAUSE * uniform(0.5, 1.5))

    async def tell(self) -> None:
        """Send something to the room."""
        await self.socket.send(json.dumps({"type": "chat:tell:room", "payload": None}))


@contextlib.contextmanager
def running(directory: Path, name: str, *command: str) -> Iterator[Path]:
    """Run a program until the block ends; where its output is."""
    output = directory / f"{name}.out"
    with output.open("wb") as out, (directory / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=log)
    try:
        yield output
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def until(seen: Any, what: str, timeout: float = 60.0) -> float:
    """Seconds until it is so."""
    began = time.monotonic()
    while not await asyncio.to_thread(seen):
        if time.monotonic() - began > timeout:
            raise TimeoutError(f"not within {timeout:g} s: {what}")
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def play(sentinels: Sentinels, how: str, number: int, ports: list[int], outputs: dict[str, Path]) -> list[str]:
    """The load, the fail-over, and what came of it, line by line."""
    clients = await connected(number, ports)
    listening = [asyncio.create_task(client.listen()) for client in clients]
    for name in SERVICES:
        await asyncio.gather(*(client.ask(name) for client in clients))
    over = asyncio.Event()
    asking = [asyncio.create_task(client.ask_all_the_time(over)) for client in clients]
    await asyncio.sleep(BEFORE)

    began = time.monotonic()
    if how == "killed":
        sentinels.servers[0].kill()
    else:
        sentinels.ask(sentinels.ports[0], "SENTINEL", "FAILOVER", NAME)
    switched = await until(lambda: sentinels.master() == 1, "another master")
    done = began + switched
    await until(
        lambda: all(each.answers[name][-1][1] > done for each in clients for name in SERVICES), "answers to all"
    )
    await asyncio.sleep(AFTER)
    over.set()
    await asyncio.gather(*asking)

    lines = [f"{how}: the sentinels named the new master after {switched:.2f} s"]
    lines += [gaps(clients, name, began) for name in SERVICES]
    with sentinels.client(sentinels.server_ports[1]) as redis:
        for client in clients[::ROOM]:
            await client.tell()
        await until(lambda: all(client.told == 1 for client in clients), "a message to each room")
        stale = [
            client.name
            for client in clients
            if redis.hget(f"room:{client.room}", f"user_{client.name}") != client.socket_id
            or redis.get(f"socket:user_{client.name}:{client.room}") != client.socket_id
        ]
        rooms = sum(redis.hlen(key) for key in redis.scan_iter("room:*"))
    told = Counter(line.split()[0] for line in outputs["chat"].read_text().splitlines())
    handled = Counter(
        (name, line) for name in SERVICES for line in outputs[name].read_text().splitlines() if "handled" in line
    )
    asked = sum(client.asked for client in clients)
    answered = sum(len(answers) for client in clients for answers in client.answers.values())
    errors = Counter(code for client in clients for name in SERVICES for _, code in client.errors[name])
    twice = sum(times > 1 for times in handled.values())
    assert asked == answered + errors["TIMEOUT"], "a request has neither an answer nor an error"
    requests = f"requests: {asked}, of which {answered} answered by the service, {errors['TIMEOUT']} by TIMEOUT"
    lines += [
        f"sockets lost: {sum(bool(client.lost) for client in clients)} of {number}",
        f"{requests}; {twice} handled twice; {errors['SERVICE_UNAVAILABLE']} times SERVICE_UNAVAILABLE, asked again",
        f"messages to the rooms: received by {sum(client.told for client in clients)} of {number}",
        f"room cache: {rooms} entries, {len(stale)} of the clients missing",
        f"presence: {told['joined']} joined, {told['left']} left",
    ]
    for task in listening:
        task.cancel()
    await asyncio.gather(*listening, return_exceptions=True)
    await asyncio.gather(*(client.socket.close() for client in clients))
    return lines


async def connected(number: int, ports: list[int]) -> list[Client]:
    """The clients, half of them at each gateway, each in its room."""
    clients = []
    for who in range(number):
        url = f"ws://127.0.0.1:{ports[who % 2]}/"
        socket = await connect(url, subprotocols=[Subprotocol("kraftek.v1.json")], compression=None, proxy=None)
        clients.append(Client(who, socket))
        await clients[-1].enter()
    return clients


def gaps(clients: list[Client], service: str, began: float) -> str:
    """For how long nobody was answered, while some asked in vain; and how long each client waited for an answer."""
    answers = sorted(answered for client in clients for _, answered in client.answers[service])
    errors = sorted(at for client in clients for at, _ in client.errors[service])
    gap, since = max(
        (
            (later - earlier, earlier)
            for earlier, later in pairwise(answers)
            if any(earlier < error < later for error in errors)
        ),
        default=(0.0, began),
    )
    waits = sorted(
        max(round(1000 * (answered - asked)) for asked, answered in client.answers[service] if answered > began)
        for client in clients
    )
    return (
        f"{service}: nobody was answered for {gap:.2f} s, from {since - began:+.2f} s on; a client's longest wait for "
        f"an answer, with asking again: p50 {percentile(waits, 0.5)} ms, most {waits[-1]} ms"
    )


def run(how: str, number: int) -> list[str]:
    """One fail-over, with everything started for it and ended after it."""
    sentinels = Sentinels()
    with contextlib.ExitStack() as stack:
        stack.callback(sentinels.close)
        sentinels.start()
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kraftek-bench-")))
        ports = [free_port(), free_port()]
        twistd = str(Path(sys.executable).with_name("twistd"))
        for port in ports:
            config = directory / f"{port}.toml"
            config.write_text(CONFIG.format(port=port, url=sentinels.url))
            command = ("env", "-C", str(directory), twistd, "--nodaemon", "--pidfile=", "kraftek-gateway")
            stack.enter_context(running(directory, f"gateway-{port}", *command, "--config", str(config)))
        outputs = {
            name: stack.enter_context(
                running(directory, name, sys.executable, "-m", SERVICE, backend, sentinels.url, name, kind)
            )
            for name, (backend, kind) in SERVICES.items()
        }
        ready = [directory / f"gateway-{port}.out" for port in ports]

        async def all_of_it() -> list[str]:
            await until(lambda: all("is ready" in path.read_text() for path in ready), "the gateways")
            return await play(sentinels, how, number, ports, outputs)

        return asyncio.run(all_of_it())


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.failover", description=__doc__)
    parser.add_argument("--clients", type=int, default=300, metavar="N")
    parser.add_argument("--how", choices=["killed", "demoted"], action="append")
    asked = parser.parse_args()
    for how in asked.how or ["killed", "demoted"]:
        print("\n  ".join(run(how, asked.clients)), flush=True)


if __name__ == "__main__":
    main()
