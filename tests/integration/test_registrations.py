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

    from tests.integration.conftest import RedisServer, StartGateway

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
