"""The command ``kraftek check`` as it is installed, with a real Redis; what gateways publish is the test's."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from kraftek.contract.registrations import published
from kraftek.contract.settings import Config, Redis, Registration
from tests.support.redis_server import PrivateRedis

KRAFTEK = str(Path(sys.executable).with_name("kraftek"))
CHAT = Registration(name="chat", channel="events:chat", reply=True)
NOTES = Registration(name="notes", channel="events:notes", transport="stream", partitions=2)
FILE = """
[redis]
prefix = "k:"
[services.chat]
channel = "events:chat"
reply = true
[services.notes]
channel = "events:notes"
transport = "stream"
partitions = 2
"""


@pytest.fixture
def client(server: PrivateRedis) -> Iterator[Any]:
    with redis.Redis(unix_socket_path=server.path, decode_responses=True) as client:
        client.flushall()
        yield client


@pytest.fixture
def file(tmp_path: Path) -> str:
    place = tmp_path / "gateway.toml"
    place.write_text(FILE, "utf-8")
    return str(place)


def check(url: str, *arguments: str) -> tuple[int, str, str]:
    environ = {**os.environ, "KRAFTEK_REDIS": url}
    ran = subprocess.run([KRAFTEK, "check", *arguments], capture_output=True, check=False, timeout=60, env=environ)
    return ran.returncode, ran.stdout.decode(), ran.stderr.decode()


def has(client: Any, gateway: str, *services: Registration, prefix: str = "") -> None:
    """A gateway with these services is there."""
    document = published(Config(redis=Redis(prefix=prefix)), services)
    client.hset(f"{prefix}gateways:registrations", gateway, document)


@contextmanager
def reading(client: Any, stream: str, name: str) -> Iterator[None]:
    """An instance that reads without a lease, all the time."""
    client.xgroup_create(stream, "notes", "0", mkstream=True)
    client.xgroup_createconsumer(stream, "notes", name)
    ended = threading.Event()

    def read() -> None:
        while not ended.wait(0.1):
            client.xreadgroup("notes", name, {stream: ">"})

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_all_services_of_the_file_are_as_registered(client: Any, server: PrivateRedis, file: str) -> None:
    has(client, "g1", CHAT, NOTES, prefix="k:")
    client.set("k:events:notes:0:lease:notes", "host.1.a.ordered")
    with client.pubsub() as subscriber:
        subscriber.subscribe("k:events:chat")
        subscriber.get_message(timeout=10)
        with reading(client, "k:events:notes:1", "host.2.b.ordered"):
            assert check(server.url, "--config", file) == (0, "Service chat: ok\nService notes: ok\n", "")


def test_what_differs_and_who_is_missing_is_said(client: Any, server: PrivateRedis, file: str) -> None:
    has(client, "g1", Registration(name="chat", channel="events:chat"), prefix="k:")
    with reading(client, "k:events:notes:1", "host.2.b"):
        status, printed, _ = check(server.url, "--config", file)
    assert status == 1
    assert [line.partition(". ")[0] for line in printed.splitlines()] == [
        "Service chat: reply is true here, and false at the gateways",
        "Service chat: nobody is subscribed to k:events:chat",
        "Service notes: it is not registered (those that are: chat) at the gateways",
        "Service notes: no instance reads k:events:notes:0",
        "Service notes: host.2.b keeps no order of rooms: it is of an older version, or has unordered=True",
    ]


def test_one_service_is_what_the_options_say_of_it(client: Any, server: PrivateRedis, file: str) -> None:
    has(client, "g1", CHAT)
    status, printed, _ = check(server.url, "--service", "chat", "--transport", "stream", "--no-reply")
    assert (status, printed.count("\n")) == (1, 3)
    assert 'transport = "pubsub"' in printed
    assert "reply is false here, and true at" in printed
    assert "no instance reads events:chat" in printed
    has(client, "g1", NOTES, prefix="k:")
    printed = check(server.url, "--service", "notes", "--config", file, "--partitions", "1")[1]
    assert printed.startswith("Service notes: partitions is 1 here, and 2 at")
    assert check(server.url, "--service", "chat", "--channel", "x")[1].startswith('Service chat: channel is "x" here')


def test_without_a_gateway_it_is_not_ok(client: Any, server: PrivateRedis) -> None:
    with client.pubsub() as subscriber:
        subscriber.subscribe("events:chat", "x:events:reply:0123456789ab")
        for _ in range(2):
            subscriber.get_message(timeout=10)
        status, printed, _ = check(server.url, "--service", "chat")
        assert (status, 'there are gateways with "x:"' in printed) == (1, True)
    status, printed, _ = check(server.url, "--service", "chat")
    assert (status, "no gateway is connected to this Redis" in printed) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "expected --service NAME, or --config with services"),
        (("--channel", "x"), "go with --service"),
        (("--service", "gateway"), "name: expected another name"),
        (("--service", "chat", "--channel", "auth:invalidate"), "channel: expected a channel that is none of"),
        (("--service", "chat", "--partitions", "2"), "partitions: expected nothing unless"),
        (("--service", "chat", "--partitions", "-1"), "chat: Expected `int` >= 0"),
    ],
)
def test_what_could_not_be_registered_is_refused(
    arguments: tuple[str, ...], complaint: str, server: PrivateRedis
) -> None:
    status, printed, said = check(server.url, *arguments)
    assert (status, printed, complaint in said) == (1, "", True), said


def test_without_redis_it_says_so(tmp_path: Path) -> None:
    status, printed, said = check(f"unix://{tmp_path}/none", "--service", "chat")
    assert (status, printed, said.startswith("kraftek: Redis is unavailable: ")) == (1, "", True)
    assert check("redis://127.0.0.1", "--transport", "pigeon")[0] == 2
