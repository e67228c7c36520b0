"""Once round, with real parts: what must work with the oldest and the newest of everything the package depends on.

``make smoke`` runs it, and the tests of TLS, with both.
"""

from __future__ import annotations

import json
import re
import signal
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from websockets.sync.client import connect

from kraftek.client import Closed, State
from tests.client.backends import BACKENDS
from tests.service.instances import Instances
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tests.client.backends import MakeUser
    from tests.integration.conftest import AuthService, Gateway, RedisServer, StartGateway

PAYLOAD = {"text": "größe 🎉"}
CONFIG = {"operator": {"listen": ["tcp:0:interface=127.0.0.1"]}}
SERVICE = {"channel": "events:sample", "reply": True, "transport": "stream"}


@pytest.fixture
def running(stage: ExitStack, redis_server: RedisServer, auth_service: AuthService, gateway: StartGateway) -> Gateway:
    """A gateway that asks an auth service for ``good``, and before instances of a service through each library."""
    auth_service.allow("good", "ada", rooms=["r1"])
    instances = Instances()
    stage.callback(instances.stop)
    process = gateway(redis_server, auth=auth_service.url, services={"sample": SERVICE}, config=CONFIG)
    for backend in BACKENDS:
        instances.start(backend, redis_server.url, transport="stream", unordered=True)
    redis: Any = redis_server.client()
    wait_until(lambda: len(redis.pubsub_channels("events:reply:*.*")) == len(BACKENDS), "both instances", 30.0)
    return process


def test_a_client_of_ours(running: Gateway, user: MakeUser, redis_server: RedisServer) -> None:
    with pytest.raises(Closed, match="AUTH_FAILED"):
        user(running.url, lambda _: "bad").run("connect")

    ada = user(running.url, lambda _: "good")
    ada.run("connect")
    ada.expect(State.CONNECTING)
    ada.expect(State.READY)
    assert ada.run("request", "sample:say:back", PAYLOAD) == PAYLOAD
    heard_of = redis_server.client()

    def both_worked() -> bool:
        ada.run("request", "sample:do:sleep", {"seconds": 0.0})
        return len(heard_of.hgetall("by")) == len(BACKENDS)

    wait_until(both_worked, "work of both instances", 30.0)

    operator = running.wait_log(re.compile(r"Answering the operator on (\S+)"))[1]
    with urllib.request.urlopen(f"http://{operator}/metrics", timeout=5) as metrics:
        assert "kraftek_sockets 1.0" in metrics.read().decode()

    assert running.terminate() == -signal.SIGTERM
    assert ada.expect(State.WAITING).code == 1012


def test_a_client_of_socketio(running: Gateway) -> None:
    with connect(f"{running.url}socket.io/?EIO=4&transport=websocket", proxy=None) as client:
        assert str(client.recv(30)).startswith('0{"sid":')
        client.send('40{"token": "good", "roomId": "r1"}')
        assert str(client.recv(30)).startswith('40{"sid":')
        assert str(client.recv(30)).startswith('42["authenticated",')
        client.send("421" + json.dumps(["sample:say:back", PAYLOAD]))
        answer = str(client.recv(30))
        assert answer[:3] == "431", answer
        assert json.loads(answer[3:]) == [PAYLOAD]
