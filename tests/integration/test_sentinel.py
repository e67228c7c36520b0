"""Fail-over under two gateways, their clients, and services with both SDKs, with three sentinels."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kraftek.contract.history import TELL
from kraftek.contract.names import BROADCAST, history_position_key, room_topic
from tests.service.instances import node_program
from tests.support.sentinels import Sentinels
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from tests.integration.conftest import Client, Connect, StartGateway

SERVICE = Path(__file__).parent / "fail_over_service.py"
SERVICES = {
    "chat": {"channel": "events:chat", "reply": True, "presence": True, "timeout": 1.0},
    "board": {"channel": "events:board", "reply": True, "transport": "stream", "timeout": 5.0},
}

numbers = count(1)
"""Every request has an ``id`` of its own: one that is sent again gets the answer that was kept."""

GAPS = {"killed": 15.0, "demoted": 5.0}
"""Seconds without service at most, on a busy machine. The sentinels themselves take some three, and one; but one that
has stood still for two seconds does nothing for thirty."""


@pytest.fixture
def sentinels(stage: ExitStack) -> Sentinels:
    started = Sentinels()
    stage.callback(started.close)
    started.start()
    return started


def start_service(stage: ExitStack, backend: str, url: str, name: str, transport: str) -> None:
    node = backend == "node"
    program = node_program(SERVICE.with_suffix(".js")) if node else [sys.executable, str(SERVICE), backend]
    process = subprocess.Popen([*program, url, name, transport], stderr=subprocess.PIPE, text=True)

    def end() -> None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        _, logged = process.communicate()
        assert process.returncode == 0, logged
        assert "Traceback" not in logged, logged

    stage.callback(end)


def answered(client: Client, event: str) -> bool:
    """Ask, and say whether it was answered; every request has its one answer or error."""
    number = next(numbers)
    client.send(event, id=number, payload=number)
    message = client.receive(10.0)
    assert message["id"] == number, message
    if message["type"] == "error":
        assert message["payload"]["code"] in {"SERVICE_UNAVAILABLE", "TIMEOUT"}, message
        return False
    assert message["payload"] == number, message
    return True


def longest_gap(client: Client, over: Callable[[], bool]) -> float:
    """Ask all the time until it is ``over``, and ten answers more: the longest time between two answers."""
    gap, last, after = 0.0, time.monotonic(), 0
    while True:
        if answered(client, "chat:say:back"):
            now = time.monotonic()
            gap, last = max(gap, now - last), now
            after = after + 1 if over() else 0
            if after == 10:
                return gap
        assert time.monotonic() - last < 90.0, "no answer for a minute and a half"


def works(sentinels: Sentinels, master: int, sockets: dict[str, Client]) -> None:
    """Requests, events, a stream, and the room cache, through this master."""
    for client in sockets.values():
        for name in ("chat", "board"):
            wait_until(partial(answered, client, f"{name}:say:back"), f"an answer of {name}", 20.0)
    for name in ("chat", "board"):
        next(iter(sockets.values())).send(f"{name}:say:all", payload=name)
        for client in sockets.values():
            assert client.expect(f"{name}:said:all", 10.0)["payload"] == name
    with sentinels.client(sentinels.server_ports[master]) as redis:
        members = {f"user_{name}": client.socket_id for name, client in sockets.items()}
        wait_until(lambda: redis.hgetall("room:r1") == members, lambda: f"{members}: {redis.hgetall('room:r1')}")
        for name, client in sockets.items():
            assert redis.get(f"socket:user_{name}:r1") == client.socket_id


def told(sentinels: Sentinels, master: int, *payloads: int) -> None:
    """A service tells the room ``kept``, which has a history."""
    with sentinels.client(sentinels.server_ports[master]) as redis:
        for payload in payloads:
            message = json.dumps({"type": "notes:note:said", "payload": payload})
            redis.eval(TELL.source, 0, "kept", message, "", "", BROADCAST)


def heard(client: Client, many: int) -> list[tuple[int, int]]:
    """Offset and payload of so many messages to it."""
    messages = [client.expect("notes:note:said", 20.0) for _ in range(many)]
    return [(message["offset"], message["payload"]) for message in messages]


@pytest.mark.parametrize(
    ("how", "backends"),
    [
        ("killed", "asyncio twisted"),
        ("killed", "node node"),
        ("demoted", "twisted asyncio"),
        ("demoted", "node node"),
    ],
)
def test_fail_over(
    how: str, backends: str, sentinels: Sentinels, gateway: StartGateway, connect: Connect, stage: ExitStack
) -> None:
    config = {"redis": {"url": sentinels.url}, "rooms": {"kept": {"history": 100}}}
    first, second = (gateway(services=SERVICES, config=config) for _ in range(2))
    chat, board = backends.split()
    start_service(stage, chat, sentinels.url, "chat", "pubsub")
    start_service(stage, board, sentinels.url, "board", "stream")
    ada, bob = connect(first, token="ada", room="r1"), connect(second, token="bob", room="r1")
    sockets = {"ada": ada, "bob": bob}
    works(sentinels, 0, sockets)
    stays, away = connect(first), connect(first)
    for name, client in (("stays", stays), ("away", away)):
        client.send("authenticate", payload={"token": name, "roomId": "kept"})
        standing = client.expect("authenticated")["payload"]
    away.close()
    told(sentinels, 0, 1, 2, 3)
    assert heard(stays, 3) == [(1, 1), (2, 2), (3, 3)]
    with sentinels.client(sentinels.server_ports[1]) as replica:
        wait_until(lambda: replica.hget(history_position_key(room_topic("kept")), "offset") == "3", "the replica")

    if how == "killed":
        sentinels.servers[0].kill()
    else:
        sentinels.ask(sentinels.ports[2], "SENTINEL", "FAILOVER", "mymaster")
    gap = longest_gap(ada, lambda: sentinels.master() == 1)
    assert gap < GAPS[how] or sentinels.stood_still(), f"{gap:.1f} s without service"
    print(f"{how}: {gap:.2f} s without service")
    if how == "demoted":
        with sentinels.client(sentinels.server_ports[0]) as old:
            names = "events:broadcast", "events:chat", "auth:invalidate"
            nobody = [(name, 0) for name in names]
            wait_until(lambda: old.pubsub_numsub(*names) == nobody, "nobody at the old master", 4.0)
            assert old.info("replication")["role"] == "master", "it is demoted later, and nobody is left there by then"

    works(sentinels, 1, sockets)
    told(sentinels, 1, 4)
    moved = stays.expect("position", 20.0)
    assert moved["payload"].items() >= {"offset": 3, "recovered": True}.items()
    assert moved["payload"]["epoch"] != standing["epoch"]
    assert heard(stays, 1) == [(4, 4)]
    back = connect(second)
    since = {"epoch": standing["epoch"], "offset": 0}
    back.send("authenticate", payload={"token": "away", "roomId": "kept", "since": since})
    assert back.expect("authenticated")["payload"]["recovered"]
    assert heard(back, 4) == [(1, 1), (2, 2), (3, 3), (4, 4)]
    with sentinels.client(sentinels.server_ports[1]) as redis:
        sockets["cy"] = cy = connect(second, token="cy", room="r1")
        wait_until(lambda: redis.lrange("told", 0, -1)[-1:] == ["joined user_cy r1"], "cy joined", 20.0)
        works(sentinels, 1, sockets)
        cy.close()
        del sockets["cy"]
        wait_until(lambda: redis.lrange("told", 0, -1)[-1:] == ["left user_cy r1"], "cy left", 20.0)
        assert redis.lrange("told", 0, -1).count("joined user_cy r1") == 1
    works(sentinels, 1, sockets)
    first.wait_log(f"The master mymaster is at 127.0.0.1:{sentinels.server_ports[1]}, says the sentinel at 127.0.0.1:")
