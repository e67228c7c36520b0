"""The files on the page about embedding run as they stand there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.docs.pages import code

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Connect, RedisServer, Starter

BIN = Path(sys.prefix) / "bin"


@pytest.fixture
def directory(tmp_path: Path, redis_server: RedisServer) -> Path:
    """The files of the page, as it says to save them; the configuration also says where Redis is."""
    (tmp_path / "access.py").write_text(code("embedding-access"), "utf-8")
    (tmp_path / "passwords").write_text("ada:lovelace\nbob:ross\n", "utf-8")
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
