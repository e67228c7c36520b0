"""What the loss of one link to Redis costs: ``python -m bench.blips``. README.rst says how to read what it prints.

Two gateways, an auth service, services over Pub/Sub and on streams with and without answers of their own, and clients
that send at a steady pace whether the last answer has come or not. Then one gateway loses one link after the other, by
``CLIENT KILL ID``; and Redis is away twice in a row.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
from msgspec import Struct
from websockets.asyncio.client import ClientConnection

from bench.failover import running, until
from bench.revocation import AuthService, let_in
from bench.spread import percentile
from tests.support.ports import free_port
from tests.support.redis_server import PrivateRedis
from tests.support.sentinels import Sentinels

CONFIG = """
listen = ["tcp:{port}:interface=127.0.0.1"]
redis.url = "{url}"
auth.check = "{auth}"

[services]
chat = {{channel = "events:chat", reply = true, timeout = 2.0}}
board = {{channel = "events:board", reply = true, transport = "stream", timeout = 2.0}}
notes = {{channel = "events:notes"}}
log = {{channel = "events:log", transport = "stream"}}
"""

SERVICES = {"chat": "pubsub", "board": "stream", "notes": "pubsub", "log": "stream"}
LOGIN = "login"
KINDS = {
    "chat": "request, Pub/Sub",
    "board": "request, stream",
    "notes": "event, Pub/Sub",
    "log": "event, stream",
    LOGIN: "login",
}
LINKS = "commands", "subscriber", "stream reader"

PACE = 0.05
"""Seconds between two messages of a client."""
CALM = 3.0
"""Seconds of load before the first loss, and after each: everything that it costs is over by then."""
OUTAGES = 8.6, 1.6
"""Seconds that Redis is away, twice."""
BETWEEN = 0.3
"""Seconds that Redis is there between the two."""


class Sent(Struct):
    """One message: when it was sent and answered, and the code of its error."""

    kind: str
    at: float
    answered: float = 0.0
    code: str = ""


class Client:
    """It sends to each service in turn, and logs in again now and then."""

    def __init__(self, socket: ClientConnection, token: str) -> None:
        self.sent: dict[int, Sent] = {}
        self.closed = False
        self._logins: deque[int] = deque()
        self._socket = socket
        self._token = token

    async def listen(self) -> None:
        """Take down the answers, until it is closed."""
        async for data in self._socket:
            message = json.loads(data)
            number = message.get("id")
            sent = self.sent[self._logins.popleft() if number is None else number]
            sent.answered = time.monotonic()
            if message["type"] == "error":
                sent.code = message["payload"]["code"]
        self.closed = True

    async def send(self, late: float) -> None:
        """Send for as long as it is not cancelled."""
        kinds = list(KINDS)
        due = time.monotonic() + late
        for number in range(1, sys.maxsize):
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += PACE
            kind = kinds[number % len(kinds)]
            self.sent[number] = Sent(kind, time.monotonic())
            message: dict[str, Any] = {"type": f"{kind}:say:back", "id": number, "payload": number}
            if kind == LOGIN:
                self._logins.append(number)
                message = {"type": "authenticate", "payload": {"token": self._token, "roomId": "r"}}
            await self._socket.send(json.dumps(message))


def links(client: redis.Redis, user: str) -> dict[str, str]:
    """The gateway's links: which one is which, by its number."""
    found = {}
    for each in client.client_list():
        if each["user"] == user:
            kind = LINKS[1] if "P" in each["flags"] else LINKS[0] if "t" in each["flags"] else LINKS[2]
            found[kind] = each["id"]
    return found


class Cost(Struct):
    """What one loss cost the clients of the gateway, by kind of message: milliseconds from the loss until the last one
    was sent that failed, the longest wait for an answer, and the errors.
    """

    failed: int = 0
    slowest: int = 0
    codes: Counter[str] = Counter()


def cost(clients: list[Client], kind: str, began: float, ended: float) -> Cost:
    """Of all that was sent from just before the loss."""
    sent = [each for it in clients for each in it.sent.values() if each.kind == kind and began - PACE < each.at < ended]
    unanswered = [each for each in sent if not each.answered]
    failed = [each for each in sent if each.code]
    return Cost(
        round(1000 * max((each.at - began for each in failed), default=0.0)),
        round(1000 * max((each.answered - each.at for each in sent if each.answered), default=0.0)),
        Counter(each.code for each in failed) + Counter({"no answer": len(unanswered)} if unanswered else {}),
    )


async def lose(clients: list[Client], admin: redis.Redis, kind: str) -> dict[str, Cost]:
    """The first gateway loses this link."""
    number = links(admin, "gateway0")[kind]
    began = time.monotonic()
    admin.execute_command("CLIENT", "KILL", "ID", number)
    await asyncio.sleep(CALM)
    ended = time.monotonic() - CALM / 2
    return {kind: cost(clients[::2], kind, began, ended) for kind in KINDS}


def shown(kind: str, costs: list[dict[str, Cost]]) -> Iterator[str]:
    """The lines about one link."""
    yield f"{kind} lost {len(costs)} times:"
    for name, text in KINDS.items():
        failed = sorted(each[name].failed for each in costs)
        slowest = sorted(each[name].slowest for each in costs)
        codes = sum((each[name].codes for each in costs), Counter())
        yield (
            f"  {text:17} failed for ms: p50 {percentile(failed, 0.5)}, most {failed[-1]}; longest wait for an "
            f"answer ms: p50 {percentile(slowest, 0.5)}, most {slowest[-1]}; {dict(codes)}"
        )


async def outages(server: PrivateRedis, clients: list[Client]) -> str:
    """Redis is away twice."""
    began = time.monotonic()
    for number, seconds in enumerate(OUTAGES):
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(server.start)
        back = time.monotonic()
        if number == 0:
            await asyncio.sleep(BETWEEN)
    await asyncio.sleep(4 * CALM)
    sent = [each for client in clients for each in client.sent.values()]
    over = {
        kind: max((each.at - back for each in sent if each.kind == kind and each.code), default=0.0) for kind in KINDS
    }
    texts = ", ".join(f"{KINDS[kind]} {1000 * seconds:.0f}" for kind, seconds in over.items())
    away = " s and ".join(map(str, OUTAGES))
    return f"Redis away for {away} s, {back - began:.1f} s in all; failed for ms after: {texts}"


async def play(stack: contextlib.ExitStack, server: PrivateRedis, url: str, asked: argparse.Namespace) -> None:
    """All of it."""
    auth = AuthService()
    listening = await asyncio.start_server(auth.answer, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kraftek-bench-")))
    twistd = str(Path(sys.executable).with_name("twistd"))
    ports, ready = [free_port(), free_port()], []
    for number, port in enumerate(ports):
        config = directory / f"{port}.toml"
        config.write_text(CONFIG.format(port=port, url=url.replace("//", f"//gateway{number}:x@", 1), auth=address))
        command = ("env", "-C", str(directory), twistd, "--nodaemon", "--pidfile=", "kraftek-gateway")
        ready.append(stack.enter_context(running(directory, f"gateway-{port}", *command, "--config", str(config))))
    await until(lambda: all("is ready" in path.read_text() for path in ready), "the gateways")
    for name, transport in SERVICES.items():
        service = (sys.executable, "-m", "bench.failover_service", "asyncio", url, name, transport)
        stack.enter_context(running(directory, name, *service))
    admin = server.client(decode_responses=True)
    await until(
        lambda: admin.execute_command("PUBSUB", "NUMSUB", "events:chat", "events:notes")[1::2] == [1, 1], "services"
    )
    clients = []
    for who in range(asked.clients):
        token = f"c{who}"
        clients.append(Client(await let_in(f"ws://127.0.0.1:{ports[who % 2]}/", token), token))
    work = [asyncio.create_task(it.listen()) for it in clients]
    work += [asyncio.create_task(it.send(PACE * who / len(clients))) for who, it in enumerate(clients)]
    await asyncio.sleep(CALM)
    for kind in asked.link or LINKS:
        costs = [await lose(clients, admin, kind) for _ in range(asked.times)]
        print("\n".join(shown(kind, costs)), flush=True)
    if asked.outages:
        print(await outages(server, clients), flush=True)
    assert not any(client.closed for client in clients), "a client was closed"
    assert not any(task.done() for task in work), [task for task in work if task.done()]
    for task in work:
        task.cancel()
    await asyncio.gather(*work, return_exceptions=True)
    listening.close()


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m bench.blips", description=__doc__)
    parser.add_argument("--clients", type=int, default=40, metavar="N")
    parser.add_argument("--times", type=int, default=8, metavar="N", help="that each link is lost")
    parser.add_argument("--link", choices=LINKS, action="append")
    parser.add_argument("--sentinel", action="store_true", help="with Sentinel")
    parser.add_argument("--outages", action="store_true", help="Redis is away twice, as well")
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if asked.sentinel:
            sentinels = Sentinels()
            stack.callback(sentinels.close)
            sentinels.start()
            server, url = sentinels.servers[0], sentinels.url
        else:
            server = PrivateRedis()
            stack.callback(server.close)
            port = free_port()
            rights = ["on", ">x", "~*", "&*", "+@all"]
            users = [text for number in range(2) for text in ("--user", f"gateway{number}", *rights)]
            server.start("--port", str(port), *users)
            url = f"redis://127.0.0.1:{port}/0"
        for number in range(2):  # Sentinel's server has no such options
            server.call("ACL", "SETUSER", f"gateway{number}", "on", ">x", "~*", "&*", "+@all")
        asyncio.run(play(stack, server, url, asked))


if __name__ == "__main__":
    main()
