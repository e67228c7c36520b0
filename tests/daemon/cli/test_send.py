"""The command ``kraftek send`` as it is installed: to a real Redis, with something that listens."""

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

from tests.support.redis_server import PrivateRedis

KRAFTEK = str(Path(sys.executable).with_name("kraftek"))


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateRedis]:
    server = PrivateRedis()
    server.start("--requirepass", "se-cret")
    yield server
    server.close()


@pytest.fixture
def url(server: PrivateRedis) -> str:
    return f"unix://:se-cret@{server.path}"


def kraftek(*arguments: str, stdin: bytes = b"", **environ: str) -> tuple[int, str, str]:
    """Run the command: its status, what it printed, and its complaints."""
    ran = subprocess.run(
        [KRAFTEK, *arguments], input=stdin, capture_output=True, check=False, timeout=60, env={**os.environ, **environ}
    )
    assert b"se-cret" not in ran.stdout + ran.stderr
    return ran.returncode, ran.stdout.decode(), ran.stderr.decode()


@pytest.fixture
def said(server: PrivateRedis) -> Iterator[Any]:
    """What listens as a gateway does, and gives what it was sent."""
    client = redis.Redis(unix_socket_path=server.path, password="se-cret")
    listening = client.pubsub(ignore_subscribe_messages=True)
    listening.subscribe("events:broadcast")
    listening.get_message(timeout=5.0)

    def read() -> Any:
        message = listening.get_message(timeout=5.0)
        while message is None:
            message = listening.get_message(timeout=5.0)
        return json.loads(message["data"])

    yield read
    listening.close()
    client.close()


def test_to_whom_it_says(url: str, said: Any) -> None:
    for whom, words in (
        (("--room", "r 1", "--exclude", "g.1"), {"roomId": "r 1", "excludeSocketIds": ["g.1"]}),
        (("--user", "ada", "--user", "bob"), {"userIds": ["ada", "bob"]}),
        (("--socket", "g.1"), {"recipients": ["g.1"]}),
        (("--everybody",), {"everybody": True}),
    ):
        sent = kraftek("send", "news:item:new", '{"n": 1.50}', *whom, KRAFTEK_REDIS=url)
        assert sent == (0, "taken by 1 gateway\n", "")
        assert said() == {"type": "news:item:new", "payload": {"n": 1.5}, **words}
    assert kraftek("send", "t", "-", "--everybody", stdin=b' [1,\n"\xc3\xa9"]\n', KRAFTEK_REDIS=url)[0] == 0
    assert said()["payload"] == [1, "é"]
    assert kraftek("send", "t", "--everybody", "--redis", url)[0] == 0
    assert said() == {"type": "t", "payload": None, "everybody": True}


def test_where_it_is_kept_is_said(url: str, said: Any) -> None:
    rules = json.dumps([["room:", "", 9, 60_000, 9000], ["user:", "", 9, 60_000, 9000]])
    with redis.Redis.from_url(url) as client:
        client.hset("gateways:history:rules", mapping={"rules": rules, "generation": "g"})
        for whom, where in (
            (("--room", "r"), "as number 1 of the room's history"),
            (("--user", "ada"), "as number 1 of the user's history"),
            (("--user", "ada", "--user", "bob"), "in the histories of 2 users"),
        ):
            assert kraftek("send", "a:b:c", *whom, KRAFTEK_REDIS=url) == (
                0,
                f"taken by 0 gateways, and kept {where}\n",
                "",
            )
        client.delete("gateways:history:rules")


def test_who_has_got_it(url: str, said: Any) -> None:
    """Nobody answers: what listens here is no gateway."""
    sent = kraftek("send", "news:item:new", "1", "--user", "ada", "--receipt", "0.1", KRAFTEK_REDIS=url)
    receipt = '{"acknowledged":[],"slow":[],"offline":[],"owed":["ada"],"complete":false}\n'
    assert sent == (0, receipt, "")
    command, message = said(), said()
    assert (command["type"], command["payload"], command["userIds"]) == ("gateway:receipt", {"seconds": 0.1}, ["ada"])
    assert message == {"type": "news:item:new", "payload": 1, "userIds": ["ada"], "receipt": command["receipt"]}
    for wrong in (("--everybody", "--receipt", "1"), ("--user", "ada", "--receipt", "31")):
        status, printed, complaint = kraftek("send", "t", *wrong, KRAFTEK_REDIS=url)
        assert (status, printed) == (1, "")
        assert "receipt" in complaint


def test_no_command_is_sent_to_a_gateway_that_does_not_know_it(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.zadd("older:gateways", {"3f0c": 4_102_444_800})
    put = "send", "gateway:room:put", "--room", "match", "--user", "ada", "--prefix", "older:"
    said = "kraftek: gateway 3f0c is of a version that does not know gateway:room:put: upgrade it first\n"
    assert kraftek(*put, KRAFTEK_REDIS=url) == (1, "", said)


def test_where_the_configuration_says(url: str, server: PrivateRedis, tmp_path: Path) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f'[redis]\nurl = "{url}"\nprefix = "live:"\nbroadcast = "said"\n', "utf-8")
    nobody = (1, "", "kraftek: no gateway took it: none listens to live:said\n")
    assert kraftek("send", "t", "1", "--room", "r", "--config", str(file)) == nobody
    elsewhere = kraftek("send", "t", "1", "--room", "r", "--config", str(file), "--prefix", "", "--broadcast", "b")
    assert elsewhere == (1, "", "kraftek: no gateway took it: none listens to b\n")


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (("send", "t", "1"), 1, "t: expected one of a room, users or sockets, and everybody"),
        (
            ("send", "t", "1", "--room", "r", "--everybody"),
            1,
            "t: expected one of a room",
        ),
        (("send", "gateway:room:put", "--room", "r"), 1, "gateway:room:put: expected a room, and users or sockets"),
        (("send", "disconnect", "--room", "r"), 1, "disconnect: expected users or sockets to close"),
        (("say", "t"), 2, "invalid choice: 'say'"),
        ((), 2, "COMMAND"),
        (("send", "t", "{no", "--everybody"), 1, "kraftek: the payload is no JSON: "),
        (("send", "t", '"\udcff"', "--everybody"), 1, "kraftek: the payload is no JSON: "),
        (("send", "t", "[" * 5000, "--everybody"), 1, "kraftek: the payload is no JSON: "),
        (("send", "t", "--everybody", "--redis", "embedded:"), 1, "a Redis that its gateway alone reaches"),
        (("send", "t", "--everybody", "--redis", "http://:se-cret@x"), 1, "redis.url: expected a URL"),
        (("send", "t", "--everybody", "--prefix", "a b"), 1, "prefix"),
        (("send", "t", "--everybody", "--config", "/nowhere.toml"), 1, "/nowhere.toml"),
        (("send", "t", "--everybody", "--redis", "redis://:se-cret@127.0.0.1:1"), 1, "Redis is unavailable: "),
    ],
)
def test_what_is_wrong_is_said(arguments: tuple[str, ...], status: int, complaint: str) -> None:
    found, printed, complained = kraftek(*arguments)
    assert (found, printed) == (status, "")
    assert complaint in complained
    assert "Traceback" not in complained


def test_a_wrong_password_is_said(server: PrivateRedis) -> None:
    status, _, complaint = kraftek("send", "t", "--everybody", KRAFTEK_REDIS=f"unix://:false@{server.path}")
    assert (status, "WRONGPASS" in complaint) == (1, True)


def test_what_is_too_large_is_said(url: str) -> None:
    large = json.dumps("x" * 1_048_576).encode()
    status, _, complaint = kraftek("send", "t", "-", "--everybody", stdin=large, KRAFTEK_REDIS=url)
    assert (status, "at most 1048576 may be sent" in complaint) == (1, True)


def test_it_says_what_it_can() -> None:
    status, printed, _ = kraftek("--help")
    assert status == 0
    assert "Send a message to clients" in printed
    assert kraftek("--version")[1].startswith("kraftek ")
