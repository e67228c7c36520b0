"""Rooms that services give, over two gateway processes, by ``kraftek send``: Redis and services with presence know."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import Connect, RedisServer, StartGateway

KRAFTEK = str(Path(sys.executable).with_name("kraftek"))
SERVICES = {"board": {"channel": "events:board", "presence": True}}


def send(redis_server: RedisServer, *arguments: str) -> tuple[int, str]:
    """Run ``kraftek send``: its status, and all that it said."""
    environ = {**os.environ, "KRAFTEK_REDIS": redis_server.url}
    ran = subprocess.run(
        [KRAFTEK, "send", *arguments], capture_output=True, check=False, timeout=60, env=environ, text=True
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_a_service_puts_users_into_a_room_and_takes_them_out(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect
) -> None:
    one, two = (gateway(redis_server, config={"services": SERVICES}) for _ in range(2))
    ada, bob = connect(one, token="ada", room="lobby"), connect(two, token="bob", room="lobby")
    redis: Any = redis_server.client()
    listening = redis.pubsub(ignore_subscribe_messages=True)
    listening.subscribe("events:board")
    told: list[tuple[str, str, str]] = []

    def hear() -> list[tuple[str, str, str]]:
        while (received := listening.get_message()) is not None:
            event = json.loads(received["data"])
            if event["eventType"].startswith("gateway:client:") and event["roomId"] == "match":
                told.append((event["eventType"], event["userId"], event["payload"].get("reason", "")))
        return sorted(told)

    both = ("--user", "user_ada", "--socket", bob.socket_id)
    command = "gateway:room:put", '{"permissions": ["board:*:*"]}', "--room", "match"
    assert send(redis_server, *command, *both) == (0, "taken by 2 gateways\n")
    for client in (ada, bob):
        assert client.expect("joined")["payload"] == {"roomId": "match"}
    there = {"user_ada": ada.socket_id, "user_bob": bob.socket_id}
    wait_until(lambda: redis.hgetall("room:match") == there, lambda: f"{there}, not {redis.hgetall('room:match')}")
    joined = [("gateway:client:joined", user, "") for user in ("user_ada", "user_bob")]
    wait_until(lambda: hear() == joined, lambda: f"{joined}, not {told}")
    assert send(redis_server, "match:round:begins", "1", "--room", "match") == (0, "taken by 2 gateways\n")
    for client in (ada, bob):
        assert client.expect("match:round:begins") == {"type": "match:round:begins", "payload": 1, "roomId": "match"}
    ada.send("board:note:move", roomId="match", id=1)
    assert ada.expect("ack")["id"] == 1

    assert send(redis_server, "gateway:room:remove", "--room", "match", "--user", "user_bob")[0] == 0
    assert bob.expect("error")["roomId"] == "match"
    redis.publish("auth:invalidate", json.dumps({"userId": "user_ada", "roomId": "match"}))
    gone = ada.expect("error")
    assert (gone["payload"]["code"], gone["roomId"]) == ("ACCESS_REVOKED", "match")
    left = [("gateway:client:left", "user_ada", "revoked"), ("gateway:client:left", "user_bob", "removed")]
    wait_until(lambda: hear() == [*joined, *left], lambda: f"{[*joined, *left]}, not {told}")
    assert redis.hgetall("room:match") == {}
    assert redis.hgetall("room:lobby") == there

    listening.close()


def test_who_reconnects_is_not_in_it(redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> None:
    running = gateway(redis_server, config={"services": SERVICES})
    ada = connect(running, token="ada", room="lobby")
    assert send(redis_server, "gateway:room:put", "--room", "match", "--user", "user_ada")[0] == 0
    ada.expect("joined")
    ada.connection.close()
    redis: Any = redis_server.client()
    wait_until(lambda: not redis.exists("room:match"), "nobody in the room")
    again = connect(running, token="ada", room="lobby")
    assert send(redis_server, "match:round:begins", "1", "--room", "match")[0] == 0
    assert send(redis_server, "match:round:ends", "1", "--room", "lobby")[0] == 0
    again.expect("match:round:ends")
