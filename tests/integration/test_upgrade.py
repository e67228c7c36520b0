"""Another version goes on in the process of a gateway: nobody is disconnected, nothing is lost, and it can fail."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as websocket_connect

from tests.support.versions import FAILS, NEWER, Versions

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.integration.conftest import Connect, Gateway, RedisServer, StartGateway, StartService

STRANGE = {"daemon/state.py": ("FORMATS = (1,)", "FORMATS = (3,)")}
"""A version with no format in common."""


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    found = Versions(tmp_path / "versions")
    found.add("1.0")
    found.choose("1.0")
    return found


def upgrade(gateway: Gateway, line: str) -> None:
    before = len(gateway.log())
    gateway.process.send_signal(signal.SIGUSR2)
    gateway.wait_log(line, 30.0, after=before)


def socketio(gateway: Gateway, stage: ExitStack) -> ClientConnection:
    """A Socket.IO client in the room ``room``."""
    url = f"ws://127.0.0.1:{gateway.port}/socket.io/?EIO=4&transport=websocket"
    client = stage.enter_context(websocket_connect(url, compression=None, proxy=None))
    assert str(client.recv(5.0)).startswith("0{")
    client.send('40{"token":"sue","roomId":"room"}')
    assert str(client.recv(5.0)).startswith("40{")
    assert str(client.recv(5.0)).startswith('42["authenticated"')
    return client


def heard(client: ClientConnection) -> str:
    """What it is told next, beside pings."""
    while (text := client.recv(20.0)) == "2":
        client.send("3")
    assert isinstance(text, str)
    return text


def broadcast(server: RedisServer, number: int) -> None:
    with server.client() as publisher:
        publisher.publish("events:broadcast", json.dumps({"type": "a:b:c", "payload": number, "roomId": "room"}))


def test_nobody_notices(
    redis_server: RedisServer,
    gateway: StartGateway,
    service: StartService,
    connect: Connect,
    stage: ExitStack,
    versions: Versions,
) -> None:
    versions.add("1.1", NEWER)
    versions.add("1.2", FAILS)
    versions.add("1.3", STRANGE)
    services = {"chat": {"channel": "events:chat", "reply": True}}
    process = gateway(redis_server, services=services, program=versions.twistd)
    process.expect_traceback()
    service(redis_server, "events:chat").wait_subscribed()
    ann, sue = connect(process, "ann", "room"), socketio(process, stage)

    def still_there(number: int) -> None:
        broadcast(redis_server, number)
        assert ann.expect("a:b:c", 20.0)["payload"] == number
        assert heard(sue) == f'42["a:b:c",{number}]'
        ann.send("chat:a:reply", id=number, payload=number)
        assert ann.expect("chat:a:reply", 20.0)["id"] == number
        sue.send(f'42{number}["chat:a:reply",{number}]')
        assert heard(sue) == f"43{number}[{number}]"

    still_there(1)
    put = {"type": "gateway:room:put", "roomId": "match", "userIds": ["user_ann", "user_sue"]}
    with redis_server.client() as publisher:
        publisher.publish("events:broadcast", json.dumps(put))
    assert ann.expect("joined")["payload"] == {"roomId": "match"}
    assert heard(sue) == '42["joined",{"roomId":"match"}]'
    versions.choose("1.1")
    upgrade(process, "Took over 2 sockets of version 1.0")
    still_there(2)
    versions.choose("1.2")
    upgrade(process, "Took over 2 sockets of version 1.1")
    assert "Cannot start: it does not work" in process.log()
    still_there(3)
    versions.choose("1.3")
    upgrade(process, "cannot take over: Cannot start: expected state in another format than 2,1")
    still_there(4)
    versions.choose("1.0")
    upgrade(process, "Took over 2 sockets of version 1.1")
    still_there(5)
    with redis_server.client() as publisher:
        publisher.publish("events:broadcast", json.dumps({"type": "a:b:d", "payload": 6, "roomId": "match"}))
    assert ann.expect("a:b:d", 20.0)["payload"] == 6
    assert heard(sue) == '42["a:b:d",6]'
    assert connect(process, "ben", "room").socket_id.split(".")[0] == ann.socket_id.split(".")[0]
    assert process.process.poll() is None
