"""The applications on the page about embedding run as they stand there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.docs.pages import code
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Connect, RedisServer, Starter

BIN = Path(sys.prefix) / "bin"


@pytest.fixture
def directory(tmp_path: Path, redis_server: RedisServer) -> Path:
    """The files of the page, as it says to save them; the configuration also says where Redis is."""
    (tmp_path / "access.py").write_text(code("embedding-access"), "utf-8")
    (tmp_path / "passwords").write_text("ada:lovelace\nbob:ross\n", "utf-8")
    (tmp_path / "chat.tac").write_text(code("embedding-tac"), "utf-8")
    (tmp_path / "board.py").write_text(code("embedding-multiservice"), "utf-8")
    here = f'listen = ["tcp:0:interface=127.0.0.1"]\nredis.url = "{redis_server.url}"\n'
    (tmp_path / "gateway.toml").write_text(here + code("embedding-config"), "utf-8")
    return tmp_path


def ask(client: Client, name: str, payload: Any, id: Any, **more: Any) -> Any:
    client.send(name, payload=payload, id=id, **more)
    return answer_to(client, id)


def answer_to(client: Client, id: Any) -> Any:
    """The answer; what else comes is not looked at."""
    while True:
        message = client.receive()
        if message.get("id") == id:
            return message


def test_a_tac_with_a_checker_and_a_service(
    starter: Starter, redis_server: RedisServer, connect: Connect, directory: Path
) -> None:
    command = [str(BIN / "twistd"), "--nodaemon", "--pidfile=", "--python", "chat.tac"]
    one, two = (starter.run(command, directory, {"PYTHONPATH": "."}) for _ in range(2))
    redis = redis_server.client()
    ada, bob = connect(one, token="ada:lovelace", room="r"), connect(two, token="bob:ross", room="r")

    # Answered within the process, told on both.
    heard = redis.pubsub()
    heard.psubscribe("events:*")
    assert heard.get_message(timeout=5)
    assert ask(ada, "chat:message:send", {"text": "hello"}, 1)["payload"] == {"length": 5}
    told = {"type": "chat:message:sent", "payload": {"from": "ada", "text": "hello"}, "roomId": "r"}
    assert bob.receive() == told
    assert ask(bob, "chat:message:send", {"text": 7}, 1)["payload"]["code"] == "INVALID_PAYLOAD"
    assert ask(bob, "chat:message:eat", {}, 2)["payload"]["code"] == "NO_HANDLER"
    redis.publish("events:end", "")
    channels = []
    while (message := heard.get_message(timeout=5)) and message["channel"] != "events:end":
        channels.append(message["channel"])
    heard.close()
    assert channels == ["events:broadcast"]  # the message to the room

    # Nobody else, and nobody's token in the log.
    mallory = connect(one)
    mallory.send("authenticate", payload={"token": "ada:hunter2", "roomId": "r"})
    mallory.expect_error("AUTH_FAILED")
    mallory.expect_close(4401)
    assert "hunter2" not in one.log()
    assert one.terminate() == two.terminate()


def test_a_request_that_is_sent_again_runs_once(
    starter: Starter, redis_server: RedisServer, connect: Connect, directory: Path
) -> None:
    env = {"PORT": "0", "REDIS_URL": redis_server.url}
    one, two = (starter.run([sys.executable, "board.py"], directory, env) for _ in range(2))
    redis = redis_server.client()
    first = connect(one, token="ada", room="r")
    first.send("notes:note:add", payload="milk", id="again")
    wait_until(lambda: list(redis.scan_iter("request:*")), "the claim")
    first.close()

    second = connect(two, token="ada", room="r")
    for _ in range(2):  # while the first gateway does it, and from what is kept of it
        assert ask(second, "notes:note:add", "milk", "again")["payload"] == {"number": 1, "pid": one.pid}
    assert ask(second, "notes:note:add", "milk", "other")["payload"] == {"number": 1, "pid": two.pid}
    assert ask(second, "notes:note:add", "", 3)["payload"]["code"] == "EMPTY"
    for process in (one, two):
        assert process.terminate() in (0, -15)


def test_the_gateway_answers_what_is_in_hand_when_its_application_stops(
    starter: Starter, redis_server: RedisServer, connect: Connect, directory: Path
) -> None:
    env = {"PORT": "0", "REDIS_URL": redis_server.url}
    process = starter.run([sys.executable, "board.py"], directory, env)
    ada = connect(process, token="ada", room="r")
    ada.send("notes:note:add", payload="milk", id=1)
    wait_until(lambda: list(redis_server.client().scan_iter("request:*")), "the claim")
    process.process.terminate()
    assert answer_to(ada, 1)["payload"]["number"] == 1
    assert process.process.wait(15) in (0, -15)


@pytest.mark.parametrize("program", ["twist", "twistd"])
def test_both_programs_run_the_command(
    program: str, starter: Starter, redis_server: RedisServer, connect: Connect, directory: Path
) -> None:
    own = ["--log-format=text"] if program == "twist" else ["--nodaemon", "--pidfile="]
    command = [str(BIN / program), *own, "kraftek-gateway", "--config", "gateway.toml", "--service", "chat=events:chat"]
    process = starter.run(command, directory, {"PYTHONPATH": "."})
    ada = connect(process, token="ada:lovelace", room="r")
    assert ask(ada, "chat:message:send", {}, 1)["payload"]["code"] == "SERVICE_UNAVAILABLE"
    before = len(process.log())
    process.process.send_signal(1)
    process.wait_log("Reloaded", after=before)
    process.process.send_signal(12)
    process.wait_log("Not upgraded" if program == "twist" else "pgrade", after=before)
    assert process.process.poll() is None
