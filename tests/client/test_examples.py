"""The examples of docs/python-client.rst run as they stand there."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.docs.pages import code
from tests.docs.test_examples import SERVICES, start_chat
from tests.support.waiting import Lines

if TYPE_CHECKING:
    from tests.integration.conftest import Connect, RedisServer, StartGateway


@pytest.mark.parametrize("backend", ["asyncio", "twisted"])
def test_example(
    backend: str, stage: ExitStack, redis_server: RedisServer, gateway: StartGateway, connect: Connect
) -> None:
    process = gateway(redis_server, services=SERVICES)
    start_chat(redis_server, stage, "service-python")
    bob = connect(process, token="bob", room="r1")
    example = subprocess.Popen(
        [sys.executable, "-u", "-c", code(f"client-{backend}")],
        env={**os.environ, "GATEWAY_URL": process.url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert example.stdout is not None
    lines = Lines(example.stdout)
    stage.callback(lines.rest)
    stage.callback(example.wait, 10)
    stage.callback(example.kill)

    assert lines.next(timeout=30.0) == "{'users': ['user_ada', 'user_bob']}"
    assert bob.expect("chat:message:sent", 10.0)["payload"]["text"].startswith("Hello from ")
    bob.send("chat:message:send", payload={"text": "größe 🎉"})
    assert lines.next() == "größe 🎉"
