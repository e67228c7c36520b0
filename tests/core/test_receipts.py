"""Who has acknowledged a message: what clients are asked, and what services are told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kraftek.contract.settings import Limits, RoomPolicy
from tests.edge.dialects.test_socketio_client import admitted, texts
from tests.support.world import Client, House

CHANNEL = "events:reply:chat"


def begin(house: House, id: int | str = 1, seconds: Any = 5.0, channel: str = CHANNEL, **to: Any) -> dict[str, Any]:
    """A service will wait for the acknowledgements of a message to these. Returns what the message carries."""
    name = {"receipt": {"replyTo": channel, "id": id}}
    house.broadcast(type="gateway:receipt", payload={"seconds": seconds}, **name, **to)
    return name


def heard(house: House) -> list[Any]:
    """What its service was told since the last time."""
    published, house.bus.published[:] = list(house.bus.published), []
    for each in published:
        assert (each.channel, each.event["type"], each.event["inReplyTo"]) == (CHANNEL, "gateway:receipt", 1)
    return [{key: value for key, value in each.event["payload"].items() if key != "gatewayId"} for each in published]


def asked(client: Client) -> int:
    """The number under which the client is to acknowledge what it was sent."""
    (message,) = client.link.read()
    number = message["receipt"]
    assert isinstance(number, int)
    return number


def acknowledge(client: Client, number: Any) -> None:
    client.send({"type": "receipt", "id": number})


def test_a_message_to_a_room_is_acknowledged() -> None:
    house = House()
    ann, bob = house.admit("ann"), house.admit("bob", token="b")
    house.admit("cid", "another", token="c")
    name = begin(house, roomId="room")
    assert heard(house) == [{"waiting": ["ann", "bob"]}]
    house.broadcast(type="chat:message:sent", payload="hi", roomId="room", **name)
    number = asked(ann)
    assert bob.link.read() == [{"type": "chat:message:sent", "payload": "hi", "roomId": "room", "receipt": number}]
    assert number < 2**53
    acknowledge(ann, number)
    assert heard(house) == []
    acknowledge(bob, number)
    assert heard(house) == [{"acknowledged": ["ann", "bob"], "done": True}]
    assert len(house.receipts) == 0
    assert (house.counters.receipts, house.counters.receipts_acknowledged, house.counters.receipts_refused) == (1, 2, 0)
    assert house.counters.errors_peer == house.counters.broadcasts_malformed == 0


def test_who_does_not_acknowledge_in_time_was_too_slow() -> None:
    house = House()
    ann, bob = house.admit("ann"), house.admit("bob", token="b")
    name = begin(house, userIds=["ann", "bob", "cid"])
    house.broadcast(type="t", userIds=["ann", "bob", "cid"], **name)
    acknowledge(ann, number := asked(ann))
    heard(house)
    house.pass_time(4.75)
    assert heard(house) == []
    house.pass_time(0.25)
    assert heard(house) == [{"acknowledged": ["ann"], "waiting": ["bob"], "done": True}]
    acknowledge(bob, number)
    assert heard(house) == []


def test_a_user_has_it_with_one_of_the_sockets() -> None:
    house = House(single=False)
    one, two = house.admit("ann"), house.admit("ann")
    name = begin(house, roomId="room")
    assert heard(house) == [{"waiting": ["ann"]}]
    house.broadcast(type="t", roomId="room", **name)
    asked(one)
    acknowledge(two, number := asked(two))
    assert heard(house) == [{"acknowledged": ["ann"], "done": True}]
    acknowledge(one, number)
    assert heard(house) == []


def test_a_gateway_that_has_nobody_says_so() -> None:
    house = House()
    name = begin(house, userIds=["ann"])
    assert heard(house) == [{"done": True}]
    client = house.admit("ann")
    house.broadcast(type="t", userIds=["ann"], **name)
    assert "receipt" not in client.link.read()[0]


def test_it_counts_only_from_sockets_that_it_was_for() -> None:
    house = House(single=False)
    ann, bob, excluded = house.admit("ann"), house.admit("bob", token="b"), house.admit("ann")
    late, stranger = house.admit("ann", "another"), house.connect()
    name = begin(house, roomId="room", excludeSocketIds=[excluded.id, bob.id])
    assert heard(house) == [{"waiting": ["ann"]}]
    house.broadcast(type="t", roomId="room", excludeSocketIds=[excluded.id, bob.id], **name)
    number = asked(ann)
    for client in (bob, excluded, late, stranger):
        acknowledge(client, number)
        assert client.link.read() == []
    for wrong in (number + 1, str(number), None, 1):
        acknowledge(ann, wrong)
    assert heard(house) == []
    acknowledge(ann, number)
    assert heard(house) == [{"acknowledged": ["ann"], "done": True}]


def test_who_is_gone_has_not_acknowledged_it() -> None:
    house = House()
    ann = house.admit("ann")
    name = begin(house, roomId="room")
    house.broadcast(type="t", roomId="room", **name)
    number = asked(ann)
    ann.leave()
    acknowledge(house.admit("ann"), number)
    heard(house)
    house.pass_time(5)
    assert heard(house) == [{"waiting": ["ann"], "done": True}]


def test_what_a_room_with_history_is_told() -> None:
    house = House(history=[RoomPolicy(pattern="room", history=10)])
    client = house.connect()
    client.send({"type": "authenticate", "payload": {"token": "t", "roomId": "room"}})
    house.access.next().yes("ann")
    name = begin(house, roomId="room")
    topic = house.following.find("room")
    client.link.read()
    assert topic is not None
    house.deliveries.told(topic, 7, json.dumps({"type": "t", "payload": 1, **name}).encode(), "o")
    (message,) = client.link.read()
    assert message["offset"] == 7
    acknowledge(client, message["receipt"])
    assert heard(house)[-1] == {"acknowledged": ["ann"], "done": True}
    house.deliveries.told(topic, 8, json.dumps({"type": "t", "payload": 1, **name}).encode(), "o")
    assert "receipt" not in client.link.read()[0]


def test_socket_io_clients_have_their_own_acknowledgements() -> None:
    house = House()
    page = admitted(house)
    name = begin(house, roomId="r")
    assert heard(house) == [{"waiting": ["user"]}]
    house.broadcast(type="t", payload={"a": 1}, roomId="r", **name)
    (text,) = texts(page.link)
    number = text.removeprefix("42").partition("[")[0]
    assert text == f'42{number}["t",{{"a": 1}}]'
    assert page.says("30[]", f"3{number}[]") == []
    assert heard(house) == [{"acknowledged": ["user"], "done": True}]


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": 0},
        {"seconds": 30.5},
        {"seconds": "5"},
        {"channel": "elsewhere"},
        {"channel": "app:" + 512 * "c"},
        {"id": 65 * "i"},
        {"id": 10**65},
        {"userIds": []},
        {"recipients": ["s"]},
        {"roomId": "room", "userIds": ["ann"]},
    ],
)
def test_what_is_no_such_command(wrong: dict[str, Any]) -> None:
    house = House(prefix="app:")
    house.admit("ann")
    begin(house, **{"channel": "app:events:reply:chat", "roomId": "room"} | wrong)
    expected = 1 if wrong != {"userIds": []} else 0
    assert house.counters.broadcasts_malformed == expected
    assert len(house.bus.published) == 1 - expected


def test_a_name_is_used_once_at_a_time_and_the_prefix_stays_where_it_is() -> None:
    house = House(prefix="app:")
    ann = house.admit("ann")
    channel = "app:" + CHANNEL
    name = begin(house, channel=channel, roomId="room")
    assert heard(house) == [{"waiting": ["ann"]}]
    begin(house, channel=channel, roomId="room")
    assert house.counters.broadcasts_malformed == 1
    house.broadcast(type="gateway:receipt", payload={"seconds": 1}, roomId="room")
    assert house.counters.broadcasts_malformed == 2
    house.broadcast(type="t", roomId="room", **name)
    acknowledge(ann, asked(ann))
    assert heard(house) == [{"acknowledged": ["ann"], "done": True}]
    begin(house, channel=channel, roomId="room")
    assert heard(house) == [{"waiting": ["ann"]}]


def test_what_is_too_much_is_not_waited_for() -> None:
    house = House(limits=Limits(receipts=8))
    ann = house.admit("ann")
    refused = {"refused": "limits.receipts is reached"}
    for number in range(2):
        begin(house, number, roomId="room")
    assert [each.event["payload"].get("waiting") for each in house.bus.published] == [["ann"], ["ann"]]
    house.bus.published.clear()
    name = begin(house, 1, channel="events:reply:other", roomId="room")
    begin(house, 2, channel="events:reply:other", roomId="room")
    begin(house, 3, channel="events:reply:third", roomId="room")
    house.bus.published.clear()
    begin(house, 9, roomId="room")
    (answer,) = house.bus.published
    assert answer.event["payload"] == {"gatewayId": "gw", **refused}
    assert house.counters.receipts_refused == 2
    house.bus.published.clear()
    house.broadcast(type="t", roomId="room", **name)
    acknowledge(ann, asked(ann))
    house.pass_time(5)
    house.bus.published.clear()
    begin(house, roomId="room")
    assert heard(house) == [{"waiting": ["ann"]}]


def test_a_message_to_too_many_users_is_not_waited_for() -> None:
    house = House()
    for number in range(1001):
        house.admit(f"user{number}", token=str(number))
    begin(house, roomId="room")
    assert heard(house) == [{"refused": "more than 1000 users"}]


def test_at_its_end_a_gateway_says_what_it_knows() -> None:
    house = House()
    ann = house.admit("ann")
    house.admit("bob", token="b")
    name = begin(house, roomId="room")
    house.broadcast(type="t", roomId="room", **name)
    acknowledge(ann, asked(ann))
    heard(house)
    house.receipts.stop()
    assert heard(house) == [{"acknowledged": ["ann"], "waiting": ["bob"], "done": True}]


def test_while_redis_is_away_nothing_is_said() -> None:
    house = House()
    house.admit("ann")
    begin(house, roomId="room")
    heard(house)
    house.bus.down()
    house.pass_time(5)
    assert len(house.receipts) == 0


def test_acknowledging_is_not_refused_over_the_budget() -> None:
    house = House(limits=Limits(events_per_user=2, burst=1.0))
    ann = house.admit("ann")
    name = begin(house, roomId="room")
    heard(house)
    house.broadcast(type="t", roomId="room", **name)
    number = asked(ann)
    for _ in range(5):
        ann.send({"type": "ping"})
    ann.link.read()
    acknowledge(ann, number)
    assert heard(house) == [{"acknowledged": ["ann"], "done": True}]
    assert ann.link.read() == []
