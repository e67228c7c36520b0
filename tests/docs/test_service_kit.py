"""The services and the tests on the pages about the kits run as they stand there."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.docs.pages import code
from tests.service.js.kit import unpack
from tests.support.node_project import run
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from tests.integration.conftest import Connect, RedisServer, StartGateway


@pytest.mark.parametrize(
    ("name", "answer"), [("kit-asyncio", {"heard by": 1}), ("kit-twisted", {"length": len("größe 🎉")})]
)
def test_service(
    name: str,
    answer: dict[str, int],
    stage: ExitStack,
    redis_server: RedisServer,
    gateway: StartGateway,
    connect: Connect,
) -> None:
    assert len(code(name).splitlines()) < 20
    process = gateway(redis_server, services={"chat": {"channel": "events:chat", "reply": True}})
    service = subprocess.Popen([sys.executable, "-c", code(name)], env={**os.environ, "REDIS_URL": redis_server.url})
    stage.callback(service.wait, 30)
    stage.callback(service.terminate)
    redis = redis_server.client()
    wait_until(lambda: redis.pubsub_numsub("events:chat")[0][1] == 1, "the service", 30.0)
    ada, bob = connect(process, token="ada", room="r1"), connect(process, token="bob", room="r1")

    ada.send("chat:message:send", payload={"text": "größe 🎉"}, id=1)

    told = ada.expect("chat:message:send")
    assert (told["id"], told["payload"]) == (1, answer)
    assert bob.expect("chat:message:sent")["payload"] == {"text": "größe 🎉"}
    ada.send("chat:message:send", payload={"text": 7}, id=2)
    refusal = ada.expect_error("INVALID_PAYLOAD")
    assert (refusal["id"], refusal["payload"]["message"]) == (2, "Expected `str`, got `int` - at `$.text`")
    ada.send("chat:message:eat", payload={}, id=3)
    assert ada.expect_error("NO_HANDLER")["id"] == 3


def test_test(tmp_path: Path) -> None:
    *service, end = code("kit-asyncio").splitlines()
    assert end == "run(chat)"
    (tmp_path / "chat.py").write_text("\n".join(service), "utf-8")
    (tmp_path / "test_chat.py").write_text(code("kit-test"), "utf-8")

    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-W", "error"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert tested.returncode == 0, tested.stdout
    assert "1 passed" in tested.stdout


def test_publisher(redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> None:
    process = gateway(redis_server)
    ada = connect(process, token="ada", room="lobby")
    program = code("kit-publisher").replace("redis://127.0.0.1:6379/0", redis_server.url)
    assert redis_server.url in program

    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30)

    assert (said.returncode, said.stdout) == (0, "taken by 1 gateways\n"), said.stderr
    assert ada.expect("news:item:new")["payload"] == {"title": "It rains"}


def test_in_node(
    tmp_path: Path, stage: ExitStack, redis_server: RedisServer, gateway: StartGateway, connect: Connect
) -> None:
    place = unpack(tmp_path)
    (place / "chat.js").write_text(code("kit-node"), "utf-8")
    (place / "chat.test.js").write_text(code("kit-node-test"), "utf-8")
    said = run("node", "--test", "--test-reporter=tap", "chat.test.js", cwd=place)
    assert "\n# pass 1\n" in said
    assert "\n# fail 0\n" in said

    process = gateway(redis_server, services={"chat": {"channel": "events:chat", "reply": True}})
    service = subprocess.Popen(["node", "chat.js"], cwd=place, env={**os.environ, "REDIS_URL": redis_server.url})
    stage.callback(service.wait, 30)
    stage.callback(service.terminate)
    redis = redis_server.client()
    wait_until(lambda: redis.pubsub_numsub("events:chat")[0][1] == 1, "the service", 30.0)
    ada, bob = connect(process, token="ada", room="r1"), connect(process, token="bob", room="r1")

    ada.send("chat:message:send", payload={"text": "größe 🎉"}, id=1)

    told = ada.expect("chat:message:send")
    assert (told["id"], told["payload"]) == (1, {"heard by": 1})
    assert bob.expect("chat:message:sent")["payload"] == {"text": "größe 🎉"}
    ada.send("chat:message:send", payload={"text": 7}, id=2)
    refusal = ada.expect_error("INVALID_PAYLOAD")
    assert (refusal["id"], refusal["payload"]["message"]) == (2, "expected a text")
