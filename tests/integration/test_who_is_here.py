"""Who is in a room, as clients are told: two gateways and a real Redis, which are killed, paused and cut off."""

from __future__ import annotations

import json
import os
import signal
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.integration.conftest import Client, Connect, Gateway, Json, RedisServer, StartGateway

ROOMS = {"board-*": {"presence": True}, "tiny-*": {"presence": True, "presence_users": 2}}
CONFIG = {"sessions": "many", "rooms": ROOMS}
WITHIN = 20.0
"""Seconds until clients know what is true again after a fault: a lease of 5 s and a look, and a busy machine."""

rooms = count(1)


class Watcher:
    """A client that is told who is in its room. ``users``: what it knows; ``changes``: what it was told, in order."""

    def __init__(self, client: Client, user_id: str, room: str) -> None:
        self.client = client
        self.user_id = user_id
        self.room = room
        self.users: dict[str, Any] = {}
        self.count = 0
        self.version = ""
        self.messages = 0
        self.changes: list[tuple[str, str]] = []
        self.ask()

    def ask(self, **more: Any) -> Json:
        self.client.send("presence", payload={"roomId": self.room, **more}, id=1)
        while True:
            message = self.client.expect("presence", 30)
            self.hear(message)
            if "id" in message:
                return message

    def hear(self, message: Json) -> None:
        payload: Json = message["payload"]
        assert payload["roomId"] == self.room
        self.messages += 1
        if "users" in payload:
            self.users = {}
        for user in (*payload.get("users", ()), *payload.get("joined", ())):
            self.users[user["userId"]] = user.get("data")
        for user in payload.get("joined", ()):
            self.changes.append(("joined", user["userId"]))
        for user_id in payload.get("left", ()):
            del self.users[user_id]
            self.changes.append(("left", user_id))
        self.count, self.version = payload["count"], payload["version"]

    def look(self) -> dict[str, Any]:
        """What it knows by now."""
        while True:
            try:
                message = json.loads(self.client.connection.recv(0.01))
            except TimeoutError:
                return self.users
            assert message["type"] == "presence", message
            self.hear(message)

    def until(self, *user_ids: str) -> None:
        wait_until(lambda: {*self.look()} == {*user_ids}, lambda: f"{user_ids}; known are {self.users}", WITHIN)
        assert self.count == len(user_ids)

    def until_shown(self, user_id: str, data: Any) -> None:
        wait_until(lambda: self.look().get(user_id) == data, lambda: f"{data}; shown is {self.users}", WITHIN)


class House:
    """Two gateways on one Redis. ``sockets``: the open ones of each gateway, with their users."""

    def __init__(self, redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> None:
        self.redis = redis_server
        self.gateways = [gateway(redis_server, config=CONFIG) for _ in range(2)]
        self.connect = connect

    def enter(self, gateway: Gateway, name: str, room: str, **more: Any) -> Client:
        client = self.connect(gateway)
        client.send("authenticate", payload={"token": name, "roomId": room, **more})
        client.expect("authenticated")
        return client

    def watch(self, gateway: Gateway, name: str, room: str, **more: Any) -> Watcher:
        return Watcher(self.enter(gateway, name, room, **more), f"user_{name}", room)


@pytest.fixture
def house(redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> House:
    """Two gateways, and clients of them."""
    return House(redis_server, gateway, connect)


@pytest.fixture
def room() -> str:
    """A room of this test alone."""
    return f"board-{next(rooms)}"


def users(names: Iterable[str]) -> list[str]:
    return [f"user_{name}" for name in names]


def test_changes_are_told_over_all_gateways_once_for_each_user(house: House, room: str) -> None:
    here, there = house.gateways
    ann = house.watch(here, "ann", room, data={"name": "Ann"})
    eve = house.watch(there, "eve", room)
    sockets = [house.enter(gateway, "bob", room, data=[1]) for gateway in (here, there, there)]
    for watcher in (ann, eve):
        watcher.until("user_ann", "user_bob", "user_eve")
        assert watcher.users == {"user_ann": {"name": "Ann"}, "user_bob": [1], "user_eve": None}
    for socket in sockets[:-1]:
        socket.close()
    sockets[-1].send("join", payload={"roomId": room, "data": [2]})
    for watcher in (ann, eve):
        watcher.until_shown("user_bob", [2])
    sockets[-1].close()
    for watcher in (ann, eve):
        watcher.until("user_ann", "user_eve")
        about_bob = [kind for kind, user_id in watcher.changes if user_id == "user_bob"]
        assert about_bob == ["joined", "joined", "left"]
    assert ann.version == eve.version
    again = house.watch(there, "ann", room, data={"name": "Ann"})
    assert "users" not in again.ask(version=ann.version)["payload"]


def test_who_was_on_a_gateway_that_is_killed_or_paused_is_gone_soon_and_once(house: House, room: str) -> None:
    here, there = house.gateways
    eve = house.watch(here, "eve", room)
    for gateway, name in ((there, "ann"), (there, "bob"), (here, "bob"), (there, "dan")):
        house.enter(gateway, name, room)
    eve.until(*users(("ann", "bob", "dan", "eve")))
    os.kill(there.process.pid, signal.SIGSTOP)
    eve.until(*users(("bob", "eve")))
    os.kill(there.process.pid, signal.SIGCONT)
    eve.until(*users(("ann", "bob", "dan", "eve")))
    there.kill()
    eve.until(*users(("bob", "eve")))
    assert [each for each in eve.changes if each[1] == "user_bob"] == [("joined", "user_bob")]
    assert sorted(each for each in eve.changes if each[1] == "user_ann") == [
        *[("joined", "user_ann")] * 2,
        *[("left", "user_ann")] * 2,
    ]


def test_what_redis_loses_costs_nobody_its_place(house: House, room: str) -> None:
    here, there = house.gateways
    ann, bob = house.watch(here, "ann", room), house.watch(there, "bob", room, data=1)
    ann.until(*users(("ann", "bob")))
    with house.redis.client() as redis:
        redis.client_kill_filter(_type="pubsub")
        house.enter(there, "eve", room)
        for watcher in (ann, bob):
            watcher.until(*users(("ann", "bob", "eve")))
        redis.flushall()
        wait_until(lambda: redis.hlen(f"room:{room}") == 3, "all entries", WITHIN)
    house.enter(here, "dan", room)
    for watcher in (ann, bob):
        watcher.until(*users(("ann", "bob", "dan", "eve")))
        assert watcher.users["user_bob"] == 1
    assert not [change for change in ann.changes + bob.changes if change[0] == "left"]
    house.redis.kill()
    here.wait_log("is unavailable")
    there.wait_log("is unavailable")
    house.redis.start()
    house.enter(here, "zoe", room)
    for watcher in (ann, bob):
        watcher.until(*users(("ann", "bob", "dan", "eve", "zoe")))


def test_of_a_larger_room_some_are_told_and_how_many_there_are(house: House) -> None:
    here, there = house.gateways
    room = f"tiny-{next(rooms)}"
    ann = house.watch(here, "ann", room)
    others = [house.enter(there, f"u{number}", room) for number in range(4)]
    wait_until(lambda: (ann.look(), ann.count)[1] == 5, lambda: f"five; {ann.count}", WITHIN)
    assert len(ann.users) == 2
    for other in others:
        other.close()
    ann.until("user_ann")
