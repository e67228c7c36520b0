"""Rooms with history, two gateways and a real Redis: what is lost on the way, and what clients get all the same."""

from __future__ import annotations

import asyncio
import json
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import pytest

from kraftek.contract.history import FUNCTION, USERS_FUNCTION
from kraftek.contract.names import HISTORY_FOLLOWING, history_log_key, history_position_key, room_topic
from kraftek.service.asyncio import Publisher
from tests.support.redis_server import oldest_redis_server
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import Client, Connect, Gateway, Json, RedisServer, StartGateway, StartRedis

ROOMS = {"rooms": {"board-*": {"history": 200}, "short-*": {"history": 5}}}

names = count(1)


def tell(server: RedisServer, room: str, number: int, id: str = "") -> tuple[int, int]:
    """A service tells the room a number. Returns how many gateways took it, and its offset."""
    message = json.dumps({"type": "board:note:added", "payload": number})
    with server.client() as client:
        answer: Any = client.execute_command("FCALL", FUNCTION, 0, room, message, id)
    receivers, offset, _ = answer
    return receivers, offset


class Seen:
    """A client in a room, and what it has got there."""

    def __init__(self, client: Client, room: str, standing: Json) -> None:
        self.client = client
        self.room = room
        self.epoch: str | None = standing.get("epoch")
        self.offset: int | None = standing.get("offset")
        self.standing = standing
        self.numbers: list[int] = []

    def read(self, many: int) -> list[int]:
        """So many numbers, each with the next offset."""
        for _ in range(many):
            message = self.client.expect("board:note:added")
            assert self.offset is not None
            assert message["offset"] == self.offset + 1
            self.offset += 1
            self.numbers.append(message["payload"])
        return self.numbers[-many:] if many else []

    @property
    def since(self) -> Json:
        return {"epoch": self.epoch, "offset": self.offset, "socketIds": [self.client.socket_id]}


@pytest.fixture
def room() -> str:
    """A room of this test alone."""
    return f"board-{next(names)}"


class House:
    """Two gateways on one Redis."""

    def __init__(self, redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> None:
        self.redis = redis_server
        self.gateways = [gateway(redis_server, config=ROOMS) for _ in range(2)]
        self.connect = connect

    def enter(self, gateway: Gateway, token: str, room: str, since: Json | None = None) -> Seen:
        client = self.connect(gateway)
        payload = {"token": token, "roomId": room, **({} if since is None else {"since": since})}
        client.send("authenticate", payload=payload)
        return Seen(client, room, client.expect("authenticated")["payload"])


@pytest.fixture
def house(redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> House:
    """Two gateways, and clients of them."""
    return House(redis_server, gateway, connect)


def test_who_loses_its_socket_gets_what_it_missed_on_another_gateway(house: House, room: str) -> None:
    here, there = house.gateways
    ann, bob = house.enter(here, "ann", room), house.enter(there, "bob", room)
    assert ann.standing["offset"] == 0
    assert tell(house.redis, room, 1)[1] == 1
    assert ann.read(1) == bob.read(1) == [1]
    here.kill()
    for number in range(2, 50):
        tell(house.redis, room, number)
    again = house.enter(there, "ann", room, ann.since)
    assert (again.standing["recovered"], again.standing["offset"]) == (True, 1)
    tell(house.redis, room, 50)
    assert again.read(49) == bob.read(49) == list(range(2, 51))
    again.client.expect_nothing_through(house.redis)
    assert tell(house.redis, room, 51, "m51")[1] == tell(house.redis, room, 51, "m51")[1] == 51
    assert again.read(1) == [51]
    again.client.expect_nothing_through(house.redis)


def test_links_that_are_cut_under_load_cost_nobody_a_message(house: House, room: str) -> None:
    clients = [house.enter(gateway, f"u{number}", room) for number, gateway in enumerate(house.gateways * 3)]
    redis = house.redis.client()
    for number in range(1, 101):
        if number % 10 == 0:
            redis.client_kill_filter(_type="pubsub" if number % 20 else "normal", skipme=True)
        tell(house.redis, room, number)
    redis.client_kill_filter(_type="pubsub")
    tell(house.redis, room, 101)  # the last one: nothing comes after it by which it would be missed
    for client in clients:
        assert client.read(101) == list(range(1, 102))


def test_a_redis_that_comes_back_empty_is_another_epoch(house: House, room: str) -> None:
    here, there = house.gateways
    ann, bob = house.enter(here, "ann", room), house.enter(there, "bob", room)
    tell(house.redis, room, 1)
    assert ann.read(1) == bob.read(1) == [1]
    since = ann.since
    house.redis.kill()
    here.wait_log("is unavailable")
    ann.client.close()  # a gateway leaves a room that nobody is in, unless Redis is away
    late = house.enter(here, "late", room, since)
    assert late.standing["recovered"] is True  # it has what this gateway has, and more cannot be told
    house.redis.start()
    position = bob.client.expect("position", 30)
    assert late.client.expect("position", 30)["payload"] == position["payload"]
    assert position["roomId"] == room
    assert (position["payload"]["recovered"], position["payload"]["reason"]) == (False, "epoch")
    assert (position["payload"]["offset"], position["payload"]["epoch"] == bob.epoch) == (0, False)
    again = house.enter(here, "ann", room, since)
    assert (again.standing["recovered"], again.standing["reason"]) == (False, "epoch")
    assert again.epoch == position["payload"]["epoch"]
    wait_until(lambda: FUNCTION in str(house.redis.client().function_list()), "the Function in the new Redis")
    tell(house.redis, room, 2)
    assert again.read(1) == [2]
    assert bob.client.expect("board:note:added")["offset"] == 1


def test_what_is_kept_no_longer_is_said_to_be_lost(house: House) -> None:
    here, there = house.gateways
    room = "short-1"
    ann, bob = house.enter(here, "ann", room), house.enter(there, "bob", room)
    ann.client.close()
    for number in range(6):
        tell(house.redis, room, number)
    assert bob.read(6) == list(range(6))
    again = house.enter(there, "ann", room, ann.since)
    assert (again.standing["recovered"], again.standing["reason"], again.offset) == (False, "too_many", 6)
    again.client.close()
    tell(house.redis, room, 6)
    house.redis.client().delete(history_log_key(room_topic(room)))
    again = house.enter(here, "ann", room, again.since)
    assert (again.standing["recovered"], again.standing["reason"], again.offset) == (False, "expired", 7)
    tell(house.redis, room, 7)
    assert again.read(1) == [7]


def test_a_position_that_is_lost_is_told_within_seconds(house: House, room: str) -> None:
    ann = house.enter(house.gateways[0], "ann", room)
    tell(house.redis, room, 1)
    assert ann.read(1) == [1]
    house.redis.client().delete(history_position_key(room_topic(room)))
    position = ann.client.expect("position", 15)["payload"]
    assert (position["recovered"], position["reason"], position["offset"]) == (False, "epoch", 0)


def test_gateways_without_these_rules_are_told_as_ever(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect, room: str
) -> None:
    without, with_history = gateway(redis_server), gateway(redis_server, config=ROOMS)
    old = connect(without, token="old", room=room)
    house_client = connect(with_history)
    house_client.send("authenticate", payload={"token": "new", "roomId": room})
    new = Seen(house_client, room, house_client.expect("authenticated")["payload"])
    tell(redis_server, room, 1)
    message = old.expect("board:note:added")
    assert (message["payload"], "offset" in message) == (1, False)
    assert new.read(1) == [1]
    new.client.expect_nothing_through(redis_server)
    # Who stops follows no more before its lease is gone: it is not taken for another one that has none of these rules.
    with_history.terminate()
    assert redis_server.client().zrange(HISTORY_FOLLOWING, 0, -1) == []


def test_without_rules_there_is_no_key_more(redis_server: RedisServer, gateway: StartGateway, connect: Connect) -> None:
    process = gateway(redis_server)
    client = connect(process, token="ann", room="board-1")
    client.expect_nothing_through(redis_server)
    redis = redis_server.client()
    assert [key for key in redis.scan_iter() if key.startswith("gateways:history")] == []
    assert redis.function_list() == []


class Device:
    """A connection of a user who has a history."""

    def __init__(self, client: Client, since: Json | None = None) -> None:
        self.client = client
        payload = {"token": "ann", "roomId": "lobby", **({} if since is None else {"userSince": since})}
        client.send("authenticate", payload=payload)
        told = client.expect("authenticated")["payload"]
        self.user_id: str = told["userId"]
        self.standing: Json = told["userPosition"]
        self.at: Json = {"epoch": self.standing.get("epoch"), "offset": self.standing.get("offset")}

    def read(self, many: int) -> list[int]:
        """So many numbers, each with the next offset."""
        found = []
        for _ in range(many):
            message = self.client.expect("inbox:mail:came")
            self.at["offset"] += 1
            assert (message["userOffset"], "roomId" in message, "offset" in message) == (
                self.at["offset"],
                False,
                False,
            )
            found.append(message["payload"])
        return found

    @property
    def since(self) -> Json:
        return {**self.at, "socketIds": [self.client.socket_id]}


def test_a_user_who_is_away_with_one_device_and_here_with_another(
    redis_server: RedisServer, gateway: StartGateway, connect: Connect
) -> None:
    config = {"users": {"history": 50}, "sessions": "many"}
    here, there = (gateway(redis_server, config=config) for _ in range(2))
    phone, desk = Device(connect(here)), Device(connect(there))
    other = connect(there, token="bob", room="lobby")
    redis = redis_server.client()

    def tell(number: int, **more: Any) -> Any:
        message = json.dumps({"type": "inbox:mail:came", "payload": number, **more})
        return redis.execute_command("FCALL", USERS_FUNCTION, 0, json.dumps([desk.user_id]), message, f"m{number}")

    assert tell(1)[0] == 2
    assert phone.read(1) == desk.read(1) == [1]
    here.kill()
    tell(2, excludeSocketIds=[phone.client.socket_id])
    for number in range(3, 30):
        tell(number)
    redis.client_kill_filter(_type="pubsub")
    tell(30)  # the last one: nothing comes after it by which it would be missed
    assert tell(30)[0] == 0
    assert desk.read(29) == list(range(2, 31))
    again = Device(connect(there), phone.since)
    assert again.standing == {**phone.at, "recovered": True}
    again.at["offset"] += 1  # which was not for it
    tell(31)
    assert again.read(29) == list(range(3, 32))
    assert desk.read(1) == [31]
    late = Device(connect(there), {"epoch": "of-another-user", "offset": 1})
    assert (late.standing["recovered"], late.standing["reason"], late.at["offset"]) == (False, "epoch", 31)
    for number in range(32, 90):
        tell(number)
    lost = Device(connect(there), phone.since)
    assert (lost.standing["recovered"], lost.standing["reason"]) == (False, "too_many")
    redis.publish(
        "events:broadcast", json.dumps({"type": "inbox:mail:came", "payload": "plain", "userIds": [desk.user_id]})
    )
    message = lost.client.expect("inbox:mail:came")
    assert (message["payload"], "userOffset" in message) == ("plain", False)
    for client in (lost.client, other):
        client.expect_nothing_through(redis_server)


REDISES = {"": "", **({"6.2": oldest} if (oldest := oldest_redis_server()) else {})}


@pytest.mark.parametrize("binary", REDISES.values(), ids=REDISES)
def test_a_user_is_told_by_a_publisher(
    binary: str, redis_servers: StartRedis, gateway: StartGateway, connect: Connect
) -> None:
    """As it is told where users have no history; here it is kept. Also by the oldest Redis, which has no Functions."""
    server = redis_servers(binary=binary)
    config = {"users": {"history": 50}, "sessions": "many"}
    here, there = (gateway(server, config=config) for _ in range(2))
    phone, desk = Device(connect(here)), Device(connect(there))
    mails = count(1)

    def mail(many: int, *users: str) -> None:
        async def send() -> None:
            async with Publisher(server.url) as publisher:
                for number in islice(mails, many):
                    told = await publisher.broadcast_to_users("inbox:mail:came", number, (desk.user_id, *users))
                    assert told.offset == number

        asyncio.run(send())

    mail(2, "user_bob")
    assert phone.read(2) == desk.read(2) == [1, 2]
    here.kill()
    mail(9, "user_bob", "user_eve")
    again = Device(connect(there), phone.since)
    assert again.standing == {**phone.at, "recovered": True}
    mail(1)
    assert again.read(10) == desk.read(10) == [*range(3, 13)]
    for device in (again, desk):
        device.client.expect_nothing_through(server)
