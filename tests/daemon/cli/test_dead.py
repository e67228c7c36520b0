"""The command ``kraftek dead`` as it is installed, with a real Redis, and a service that handles what is replayed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from kraftek.contract.consumer_groups import dead_letter
from kraftek.service import Context, EventProcessor
from kraftek.service.testing import Contract
from tests.support.redis_server import PrivateRedis

KRAFTEK = str(Path(sys.executable).with_name("kraftek"))
EVENT = '{"eventType":"orders:cart:pay","userId":"ada","socketId":"g.1","payload":{"n":1.50},"id":7,"replyTo":"r"}'


@pytest.fixture
def client(server: PrivateRedis) -> Iterator[Any]:
    with redis.Redis(unix_socket_path=server.path, decode_responses=True) as client:
        client.flushall()
        client.config_set("maxmemory", 0)
        yield client


def dead(url: str, *arguments: str) -> tuple[int, str, str]:
    environ = {**os.environ, "KRAFTEK_REDIS": url}
    ran = subprocess.run([KRAFTEK, "dead", *arguments], capture_output=True, check=False, timeout=60, env=environ)
    return ran.returncode, ran.stdout.decode(), ran.stderr.decode()


def die(client: Any, stream: str, event: str | bytes = EVENT, reason: str = "KeyError: 'total'") -> str:
    body = event.encode() if isinstance(event, str) else event
    return str(client.execute_command("XADD", f"{stream}:dead", *dead_letter(body, reason, "5-0", "attempts", 3)))


def test_they_are_listed_and_shown(client: Any, server: PrivateRedis, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    orders = '[services.orders]\nchannel = "events:orders"\ntransport = "stream"\npartitions = 2\n'
    file.write_text(f'{orders}[services.chat]\nchannel = "events:chat"\n[redis]\nprefix = "live:"\n', "utf-8")
    config = ("--config", str(file))
    assert dead(server.url, "list", *config) == (0, "no dead letters\n", "")
    first = die(client, "live:events:orders:1")
    odd = die(client, "live:events:gateway", b'\x1b[2J"\xff', "two\nlines")
    die(client, "live:events:gateway")

    listed = (
        f"{first}  events:orders:1  orders:cart:pay  3 attempts  KeyError: 'total'\n"
        f"{odd}  events:gateway  no event  3 attempts  two\\x0alines\n1 more of events:gateway\n"
    )
    assert dead(server.url, "list", "--most", "1", *config) == (0, listed, "")
    assert dead(server.url, "list", "--service", "orders", *config)[1] == listed.splitlines(keepends=True)[0]
    assert dead(server.url, "list", "--service", "chat", *config)[0] == 1
    status, shown, _ = dead(server.url, "show", first, *config)
    assert status == 0
    assert EVENT in shown
    assert "entry        5-0\n" in shown
    assert "\\x1b[2J" in dead(server.url, "show", odd, *config)[1]
    assert dead(server.url, "show", "1-0", *config) == (1, "", "kraftek: 1-0: no such dead letter\n")


def test_one_is_replayed_without_its_id_and_the_others_are_dropped(client: Any, server: PrivateRedis) -> None:
    where = ("--stream", "events:orders")
    first, odd, last = die(client, "events:orders"), die(client, "events:orders", "[1]"), die(client, "events:orders")
    said = "replayed 1; their order is gone: they come after what was sent since\n"
    assert dead(server.url, "replay", first, *where) == (0, said, "")
    ((_, fields),) = client.xrange("events:orders")
    assert fields == {"event": '{"eventType":"orders:cart:pay","userId":"ada","socketId":"g.1","payload":{"n":1.50}}'}
    assert dead(server.url, "replay", first, *where) == (1, "", f"kraftek: {first}: no such dead letter\n")
    complaint = f"kraftek: {odd}: it is no event, and can only be dropped\n"
    assert dead(server.url, "replay", "--all", *where) == (1, said, complaint)
    assert client.xlen("events:orders") == 2
    assert dead(server.url, "drop", last, *where) == (1, "dropped 0\n", f"kraftek: {last}: no such dead letter\n")
    assert dead(server.url, "drop", "--all", *where) == (0, "dropped 1\n", "")
    assert client.xlen("events:orders:dead") == 0


def test_more_than_a_page_is_replayed_in_order(client: Any, server: PrivateRedis) -> None:
    for number in range(250):
        die(client, "events:orders", json.dumps({"eventType": "orders:cart:pay", "payload": number}))
    status, printed, _ = dead(server.url, "replay", "--all", "--stream", "events:orders")
    assert (status, printed.split(";")[0]) == (0, "replayed 250")
    replayed = [json.loads(fields["event"])["payload"] for _, fields in client.xrange("events:orders")]
    assert replayed == [*range(250)]


def test_nothing_is_lost_when_redis_has_no_memory(client: Any, server: PrivateRedis) -> None:
    one = die(client, "events:orders")
    client.config_set("maxmemory", 1)
    status, _, complaint = dead(server.url, "replay", one, "--stream", "events:orders")
    assert (status, "OOM" in complaint) == (1, True)
    client.config_set("maxmemory", 0)
    assert (client.xlen("events:orders"), client.xlen("events:orders:dead")) == (0, 1)


@pytest.mark.parametrize("arguments", [("list", "1-0"), ("list", "--most", "0"), ("show",), ("drop", "1-0", "--all")])
def test_what_makes_no_sense_is_refused(arguments: tuple[str, ...], server: PrivateRedis) -> None:
    status, printed, complaint = dead(server.url, *arguments, "--stream", "events:orders")
    assert (status, printed) == (1, "")
    assert "takes" in complaint


def test_a_service_handles_what_is_replayed(gateway_contract: Contract) -> None:
    orders, handled, broken = EventProcessor("orders", transport="stream", attempts=1), [], [True]

    @orders.on("cart:pay")
    async def pay(context: Context, payload: Any) -> None:
        if broken:
            raise KeyError("total")
        handled.append((payload, context.id, context.user_id))

    gateway_contract.run(orders)
    ada = gateway_contract.client("ada", "r")
    ada.send("orders:cart:pay", {"n": 1}, id=1)
    assert ada.receive()["payload"]["code"] == "EVENT_PROCESSING_ERROR"
    broken.clear()
    assert dead(gateway_contract.url, "replay", "--all", "--stream", "events:orders")[0] == 0
    ada.send("orders:cart:pay", {"n": 2}, id=2)
    assert ada.receive()["id"] == 2
    assert handled == [({"n": 1}, None, "ada"), ({"n": 2}, 2, "ada")]
