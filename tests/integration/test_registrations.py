"""Services that run with something else than they are registered with: each SDK says so, and goes on watching."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.conftest import toml
from tests.service.instances import program
from tests.support.waiting import Lines, wait_until

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from tests.integration.conftest import AuthService, Connect, RedisServer, StartGateway

BACKENDS = ["asyncio", "twisted", "node"]
CHANNEL = {"sample": {"channel": "events:sample", "reply": True}}
STREAM = {"sample": {**CHANNEL["sample"], "transport": "stream", "partitions": 2}}


class Told:
    """An instance of the sample service, and what it logs."""

    def __init__(self, stage: ExitStack, backend: str, server: RedisServer, **settings: Any) -> None:
        command = [*program(backend), server.url, json.dumps(settings)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        stage.callback(self.process.wait, 20)
        stage.callback(self.process.kill)
        assert self.process.stderr is not None
        self._lines = Lines(self.process.stderr)

    def wait_for(self, text: str) -> str:
        """The next line with this text."""
        while text not in (line := self._lines.next(text, 20)):
            pass
        return line


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "gateway.toml"


def test_a_difference_is_told_by_each_sdk_and_so_is_its_end(
    stage: ExitStack, redis_server: RedisServer, gateway: StartGateway, file: Path
) -> None:
    tables = {"auth": {"check": "open"}, "redis": {"url": redis_server.url}}
    file.write_text(toml({**tables, "services": CHANNEL}))
    process = gateway(args=("--config", str(file)))
    wait_until(lambda: redis_server.client().hlen("gateways:registrations") == 1, "what the gateway publishes")
    services = [Told(stage, each, redis_server, transport="stream", partitions=2) for each in BACKENDS]
    elsewhere = Told(stage, "asyncio", redis_server, prefix="x:")
    for each in services:
        line = each.wait_for('transport is "stream" here, and "pubsub" at the gateways')
        assert 'write transport = "stream" under [services.sample] of the gateways, and reload them' in line
    assert 'there are gateways with ""' in elsewhere.wait_for('no gateway with the prefix "x:"')

    file.write_text(toml({**tables, "services": STREAM}))
    process.process.send_signal(signal.SIGHUP)
    for each in services:
        each.wait_for("Service sample agrees with its registration at the gateways")
    process.terminate()
    assert redis_server.client().hlen("gateways:registrations") == 0


def test_a_service_registers_itself_while_it_lives(
    stage: ExitStack,
    redis_server: RedisServer,
    gateway: StartGateway,
    connect: Connect,
    auth_service: AuthService,
) -> None:
    config = {"auto_register": ["sam*"], "auth": {"check": auth_service.url}}
    one, two = (gateway(redis=redis_server, services={}, config=config) for _ in range(2))
    auth_service.allow("ada", "ada", permissions=["*:*:*", "sample:say:back"])
    auth_service.allow("bob", "bob")
    clients = [connect(one, token="ada", room="r1"), connect(two, token="ada", room="r2")]
    bob = connect(one, token="bob", room="r1")
    bob.send("sample:say:back", id=0)
    bob.expect_error("INVALID_EVENT")

    first = Told(stage, "twisted", redis_server, register=True, reply=True)
    for process in (one, two):
        process.wait_log("Service sample has registered itself", timeout=20)
    other = Told(stage, "node", redis_server, register=True, reply=True)
    last = Told(stage, "asyncio", redis_server, register=True, reply=False)
    last.wait_for("Service sample is registered by other instances as ")
    for number, ada in enumerate(clients):
        ada.send("sample:say:back", id=number, payload="hello")
        assert ada.receive()["payload"] == "hello"
    bob.send("sample:say:back", id=1)
    bob.expect_error("ACCESS_DENIED")

    before = [len(process.log()) for process in (one, two)]
    two.process.send_signal(signal.SIGUSR2)
    two.wait_log("Service sample has registered itself", 30, after=before[1])
    clients[1].send("sample:say:back", id="after the upgrade", payload="hello")
    assert clients[1].receive(30)["payload"] == "hello"
    for each in (first, other, last):
        each.process.kill()
    for process, length in zip((one, two), before, strict=True):
        process.wait_log("Service sample, which had registered itself, is gone", 40, after=length)
    for ada in clients:
        ada.send("sample:say:back", id="gone")
        ada.expect_error("INVALID_EVENT")
