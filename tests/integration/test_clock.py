"""The wall clock of a machine is set under a running gateway, back and forward: nothing that waits may notice."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from websockets.frames import Frame, Opcode
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as websocket_connect

from tests.support.waiting import wait_until
from tests.support.wall_clock import WallClock

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from tests.integration.conftest import Connect, RedisServer, StartGateway, StartService

DIRECTIONS = pytest.mark.parametrize("seconds", [-30, 3600], ids=["back", "forward"])

CHANNEL = "events:chat"
LIMITS = {"authenticate_timeout": 2.0, "ping_interval": 6.0, "ping_timeout": 5.0}
CONFIG = {"limits": LIMITS, "socketio": {"ping_interval": 2.0, "ping_timeout": 10.0}}
SERVICES = {"chat": {"channel": CHANNEL, "reply": True, "timeout": 3.0}, "stickyNotes": "events:stickyNotes"}


class Pinged(ClientConnection):
    """Counts the pings that it answers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pings = 0

    def process_event(self, event: Any) -> None:
        self.pings += isinstance(event, Frame) and event.opcode is Opcode.PING
        super().process_event(event)


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    """The clock of the gateways that are started with its environment."""
    return WallClock(tmp_path)


def took(seconds: float, began: float) -> None:
    """What began then took so long by a clock that nobody sets."""
    passed = time.monotonic() - began
    assert seconds - 0.1 <= passed <= seconds + 8.0, f"{passed:.2f} s instead of {seconds:g}"


@DIRECTIONS
def test_deadlines(
    seconds: int,
    clock: WallClock,
    redis_server: RedisServer,
    gateway: StartGateway,
    service: StartService,
    connect: Connect,
) -> None:
    """AUTH_TIMEOUT and TIMEOUT come when they are due, for what began before the clock was set and after."""
    service(redis_server, CHANNEL, on_event=lambda event: None)
    process = gateway(redis_server, services=SERVICES, config=CONFIG, env=clock.environment)
    ada = connect(process, token="ada", room="r1")
    for at in (0, seconds):
        began = time.monotonic()
        stranger = connect(process)
        ada.send("chat:message:send", id=at)
        clock.set(seconds)
        stranger.expect_error("AUTH_TIMEOUT")
        took(LIMITS["authenticate_timeout"], began)
        stranger.expect_close(4408)
        assert ada.expect_error("TIMEOUT")["id"] == at
        took(3.0, began)
    ada.expect_nothing()


@DIRECTIONS
def test_pings(
    seconds: int, clock: WallClock, redis_server: RedisServer, gateway: StartGateway, stage: ExitStack
) -> None:
    """Clients of both dialects are pinged as before, and stay."""
    process = gateway(redis_server, config=CONFIG, env=clock.environment)
    native = stage.enter_context(websocket_connect(process.url, create_connection=Pinged, compression=None, proxy=None))
    assert isinstance(native, Pinged)
    native.send(json.dumps({"type": "authenticate", "payload": {"token": "ada", "roomId": "r1"}}))
    native.recv(10), native.recv(10)
    url = f"{process.url}socket.io/?EIO=4&transport=websocket"
    socketio = stage.enter_context(websocket_connect(url, compression=None, proxy=None))
    assert str(socketio.recv(10)).startswith("0{")
    socketio.send('40{"token":"bob","roomId":"r1"}')
    assert str(socketio.recv(10)).startswith("40{")

    def ping() -> None:
        while socketio.recv(10) != "2":
            pass
        socketio.send("3")

    ping()
    clock.set(seconds)
    began, pings = time.monotonic(), native.pings
    for _ in range(3):
        ping()
    took(4.0, began)  # the three are two intervals apart, and the first may be a third one away
    wait_until(lambda: native.pings > pings, "a ping of the native client")
    assert native.pings - pings <= 3


@DIRECTIONS
def test_leases(
    seconds: int, clock: WallClock, redis_server: RedisServer, gateway: StartGateway, connect: Connect
) -> None:
    """A gateway whose clock was set lives on for the others, which clean up after it when it is killed."""
    other = gateway(redis_server)
    process = gateway(redis_server, config=CONFIG, env=clock.environment)
    connect(process, token="ada", room="r1")
    redis = redis_server.client()
    wait_until(lambda: redis.hget("room:r1", "user_ada"), "ada in her room")
    clock.set(seconds)
    time.sleep(6.0)  # longer than a lease
    assert len(redis.zrangebyscore("gateways", time.time(), "+inf")) == 2
    assert "presumed this one dead" not in process.log() + other.log()
    process.kill()
    wait_until(lambda: not redis.exists("room:r1"), "the room without ada", 30.0)
