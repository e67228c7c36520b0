"""Another version goes on in the process of a gateway: nobody is disconnected, nothing is lost, and it can fail."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as websocket_connect

from kraftek.contract.history import APPEND_FUNCTION, TELL
from kraftek.contract.names import BROADCAST
from tests.support.versions import FAILS, NEWER, Versions
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.integration.conftest import Client, Connect, Gateway, RedisServer, StartGateway, StartService

STRANGE = {"daemon/state.py": ("FORMATS = (1,)", "FORMATS = (3,)")}
"""A version with no format in common."""


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    found = Versions(tmp_path / "versions")
    found.add("1.0")
    found.choose("1.0")
    return found


def upgrade(gateway: Gateway, line: str, meanwhile: Callable[[], None] = lambda: None) -> None:
    before = len(gateway.log())
    gateway.process.send_signal(signal.SIGUSR2)

    def seen() -> bool:
        meanwhile()
        return line in gateway.log()[before:]

    wait_until(seen, line, 30.0)


class Board:
    """A room with history, and a client in it: what it is told, all the time."""

    def __init__(self, server: RedisServer, client: Client) -> None:
        self._redis = server.client()
        self._client = client
        self._numbers = count(1)
        client.send("join", payload={"roomId": "board"})
        assert client.expect("joined")["payload"]["offset"] == 0
        self._heard = 0
        self._told = 0

    def tell(self) -> None:
        message = json.dumps({"type": "a:b:d", "payload": next(self._numbers)})
        self._told = self._redis.eval(TELL.source, 0, "board", message, "", "", BROADCAST)[1]

    def check(self) -> None:
        """It has all, in order, by one position."""
        while self._heard < self._told:
            message = self._client.expect("a:b:d", 20.0)
            self._heard += 1
            assert (message["offset"], message["payload"]) == (self._heard, self._heard)


class Text:
    """A text that comes in pieces to a room all the time, and a client in it. ``_heard``: what it makes of them."""

    def __init__(self, server: RedisServer, client: Client) -> None:
        self._redis = server.client()
        self._client = client
        self._told = self._heard = ""

    def tell(self) -> None:
        piece, first = f"{len(self._told)} ", "" if self._told else "first"
        self._redis.execute_command("FCALL", APPEND_FUNCTION, 0, "story", "a:b:text", "k", piece, first)
        self._told += piece

    def check(self) -> None:
        """It has all."""
        while self._heard != self._told:
            message = self._client.expect("a:b:text", 20.0)
            self._heard = message["payload"] if "from" in message["append"] else self._heard + message["payload"]
            assert self._told.startswith(self._heard)


def socketio(gateway: Gateway, stage: ExitStack) -> ClientConnection:
    """A Socket.IO client in the room ``room``."""
    url = f"ws://127.0.0.1:{gateway.port}/socket.io/?EIO=4&transport=websocket"
    client = stage.enter_context(websocket_connect(url, compression=None, proxy=None))
    assert str(client.recv(10)).startswith("0{")
    client.send('40{"token":"sue","roomId":"room"}')
    assert str(client.recv(10)).startswith("40{")
    assert str(client.recv(10)).startswith('42["authenticated"')
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
    config = {"rooms": {"board": {"history": 10_000}, "story": {"history": 10_000}}}
    process = gateway(redis_server, services=services, program=versions.twistd, config=config)
    process.expect_traceback()
    service(redis_server, "events:chat").wait_subscribed()
    ann, sue = connect(process, "ann", "room"), socketio(process, stage)
    board, text = Board(redis_server, ann), Text(redis_server, connect(process, "tom", "story"))

    def tell() -> None:
        board.tell()
        text.tell()

    def still_there(number: int) -> None:
        board.check()
        text.check()
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
    upgrade(process, "Took over 3 sockets of version 1.0", tell)
    still_there(2)
    versions.choose("1.2")
    upgrade(process, "Took over 3 sockets of version 1.1", tell)
    assert "Cannot start: it does not work" in process.log()
    still_there(3)
    versions.choose("1.3")
    upgrade(process, "cannot take over: Cannot start: expected state in another format than 2,1", tell)
    still_there(4)
    versions.choose("1.0")
    upgrade(process, "Took over 3 sockets of version 1.1", tell)
    still_there(5)
    with redis_server.client() as publisher:
        publisher.publish("events:broadcast", json.dumps({"type": "a:b:d", "payload": 6, "roomId": "match"}))
    assert ann.expect("a:b:d", 20.0)["payload"] == 6
    assert heard(sue) == '42["a:b:d",6]'
    assert connect(process, "ben", "room").socket_id.split(".")[0] == ann.socket_id.split(".")[0]
    assert process.process.poll() is None
