"""What services say to rooms and users with history: kept with what else they do, and told last; elsewhere as ever."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from kraftek.contract.names import (
    HISTORY_RULES,
    history_log_key,
    history_position_key,
    history_texts_key,
    room_topic,
    topic_channel,
    user_topic,
)
from kraftek.service import Context, EventProcessor, Refused
from kraftek.service.testing import Client, Contract
from tests.service.instances import Instances, registered, stopped
from tests.support.redis_server import PrivateRedis
from tests.support.waiting import wait_until

WAYS = [
    ("asyncio", {}),
    ("twisted", {}),
    ("node", {}),
    ("asyncio", {"transport": "stream"}),
    ("twisted", {"transport": "stream"}),
    ("node", {"transport": "stream"}),
]
KEPT = {"rules": json.dumps([["room:kept", "", 9, 60_000, 9000]]), "generation": "g"}


@pytest.fixture(scope="module", params=WAYS, ids=["-".join((backend, *way.values())) for backend, way in WAYS])
def stage(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, Any]]]:
    """A Redis and one process of the service, for all tests of one way."""
    backend, settings = request.param
    server, instances = PrivateRedis(), Instances()
    server.start()
    process = instances.start(backend, server.url, attempts=2, **settings)
    yield server.url, settings
    stopped(process)
    server.close()


class House:
    """A service and a client of it; and what is published, of all channels in the order in which it is."""

    def __init__(self, url: str, room: str, settings: dict[str, Any]) -> None:
        self.contract = Contract(url)
        self.redis: Any = self.contract.redis
        self.room = room
        self.log = history_log_key(room_topic(room))
        processor = registered(**settings)
        self.contract.register(processor)
        self.contract.wait_for(processor)
        self.ada: Client = self.contract.client("ada", room)
        self._heard = self.redis.pubsub(ignore_subscribe_messages=True)
        topics = room_topic(room), user_topic("ada"), user_topic('b"ö')
        self._kinds = {topic_channel(topic): topic.partition(" ")[0] for topic in topics}
        self._kinds |= {"events:broadcast": "all", self.contract.reply_to: "one"}
        self._heard.subscribe(*self._kinds)
        self.redis.delete("also", "events:gateway")

    def close(self) -> None:
        self.redis.delete(HISTORY_RULES)
        self._heard.close()
        self.contract.close()

    def heard(self, many: int) -> list[tuple[str, str]]:
        """The next messages, and whether each came to all gateways, to one, or to those of a topic."""
        found: list[tuple[str, str]] = []
        while len(found) < many:
            message = wait_until(lambda: self._heard.get_message(timeout=1.0), lambda: f"{many} messages, not {found}")
            found.append((self._kinds[message["channel"]], without_order(message["data"])))
        return found

    def kept(self) -> list[str]:
        return [entry["m"] for _, entry in self.redis.xrange(self.log)]


@pytest.fixture
def house(stage: tuple[str, dict[str, Any]], request: pytest.FixtureRequest) -> Iterator[House]:
    url, settings = stage
    house = House(url, f"kept of {request.node.originalname}", settings)
    yield house
    house.close()


def without_order(told: str) -> str:
    """What stands between the offset and the message is where that is among those of all rooms."""
    return told if told[0] == "{" else " ".join(part for i, part in enumerate(told.split(" ", 3)) if i != 2)


def said(number: int, room: str) -> str:
    return f'{{"type":"sample:told:rooms","payload":{number},"roomId":"{room}"}}'


def test_without_rules_all_gateways_get_it_as_it_is(house: House) -> None:
    house.ada.send("sample:tell:rooms", {"rooms": [house.room]})
    house.ada.send("sample:tell:rooms", {"rooms": [house.room, "there"], "emit": "other:thing:set"})
    texts = [said(0, house.room), said(0, house.room), said(1, "there")]
    assert house.heard(3) == [("all", text) for text in texts]
    assert not house.redis.exists(house.log, history_position_key(room_topic(house.room)))


def test_all_is_said_in_order_and_kept_before(house: House) -> None:
    house.redis.hset(HISTORY_RULES, mapping=KEPT)
    rooms = [house.room, "there", house.room]
    house.ada.send(
        "sample:tell:rooms", {"rooms": rooms, "also": ["SET", "also", "done"], "emit": "other:thing:set"}, id=7
    )
    heard = house.heard(4)
    epoch = house.redis.hget(history_position_key(room_topic(house.room)), "epoch")
    assert heard[:3] == [
        ("room:kept", f"{epoch} 1 {said(0, house.room)}"),
        ("all", said(1, "there")),
        ("room:kept", f"{epoch} 2 {said(2, house.room)}"),
    ]
    assert (heard[3][0], json.loads(heard[3][1])["inReplyTo"]) == ("one", 7)
    assert house.kept() == [said(0, house.room), said(2, house.room)]
    assert (house.redis.get("also"), house.contract.emitted()["eventType"]) == ("done", "other:thing:set")

    house.ada.send("sample:tell:rooms", {"rooms": [house.room]})
    assert house.heard(1) == [("room:kept", f"{epoch} 3 {said(0, house.room)}")]
    house.redis.delete(HISTORY_RULES)
    house.ada.send("sample:tell:rooms", {"rooms": [house.room]})
    assert house.heard(1) == [("all", said(0, house.room))]


def test_a_text_is_told_in_pieces_and_kept_as_one(house: House) -> None:
    """Also for longer than its handler may take, as each piece gives it its time anew."""
    house.redis.hset(HISTORY_RULES, mapping=KEPT)
    assert house.ada.request("sample:say:text", ["a", "ö/", "c", "d"]) == [1, 2, 3, 4]
    told = [json.loads(text.split(" ", 2)[2]) for _, text in house.heard(4)]
    assert [(each["payload"], each["append"]) for each in told] == [
        ("a", {"key": "k", "from": 1}),
        ("ö/", {"key": "k"}),
        ("c", {"key": "k"}),
        ("d", {"key": "k", "last": True}),
    ]
    assert house.kept() == ['{"type":"sample:told:text","append":{"key":"k","from":1,"last":true},"payload":"']
    assert house.redis.hvals(history_texts_key(room_topic(house.room))) == ["aö/cd"]
    with pytest.raises(Refused, match="EVENT_PROCESSING_ERROR"):
        house.ada.request("sample:say:text", ["x" * 10_000])
    house.redis.delete(HISTORY_RULES)
    assert house.ada.request("sample:say:text", ["a", "b"]) == [0, 0]


USERS = ["ada", 'b"ö']
TO_USERS = '{"type":"sample:told:users","payload":"here","userIds":["ada","b\\"ö"]}'


def test_users_without_a_history_are_told_as_ever(house: House) -> None:
    house.ada.send("sample:tell:rooms", {"users": USERS})
    house.redis.hset(HISTORY_RULES, mapping=KEPT)
    house.ada.send("sample:tell:rooms", {"users": USERS})
    house.ada.send("sample:tell:rooms", {"rooms": ["there"], "users": USERS, "also": ["SET", "also", "done"]})
    assert house.heard(4) == [("all", text) for text in (TO_USERS, TO_USERS, said(0, "there"), TO_USERS)]
    assert not house.redis.exists(history_log_key(user_topic("ada")))


def test_each_user_has_a_history_in_which_the_others_do_not_stand(house: House) -> None:
    rules = json.dumps([["user:", "", 9, 60_000, 9000], ["room:kept", "", 9, 60_000, 9000]])
    house.redis.hset(HISTORY_RULES, mapping={"rules": rules, "generation": "u"})
    house.ada.send("sample:tell:rooms", {"users": USERS})
    text = '{"type":"sample:told:users","payload":"here"}'
    epochs = []
    for user, (kind, told) in zip(USERS, house.heard(2), strict=True):
        epoch, offset, message = told.split(" ", 2)
        assert (kind, offset, message) == (user_topic(user), "1", text)
        epochs.append(epoch)
    house.ada.send("sample:tell:rooms", {"rooms": [house.room], "users": USERS, "emit": "other:thing:set"}, id=7)
    heard = house.heard(4)
    assert [kind for kind, _ in heard] == ["room:kept", "user:ada", 'user:b"ö', "one"]
    assert [told for _, told in heard[1:3]] == [f"{epoch} 2 {text}" for epoch in epochs]
    kept = [entry["m"] for _, entry in house.redis.xrange(history_log_key(user_topic("ada")))]
    assert kept == [text, text]
    house.redis.delete(*(history_log_key(user_topic(user)) for user in USERS))
    house.redis.delete(*(history_position_key(user_topic(user)) for user in USERS))


def test_nothing_is_kept_of_what_redis_refuses(house: House) -> None:
    house.redis.hset(HISTORY_RULES, mapping=KEPT)
    house.redis.rpush("list", "x")
    house.ada.send("sample:tell:rooms", {"rooms": [house.room], "also": ["INCR", "list"]}, id=1)
    assert json.loads(house.heard(1)[0][1])["payload"]["code"] == "EVENT_PROCESSING_ERROR"
    assert house.kept() == []


@pytest.fixture
def server() -> Iterator[PrivateRedis]:
    server = PrivateRedis()
    server.start()
    yield server
    server.close()


def test_it_waits_for_memory(server: PrivateRedis) -> None:
    """And is told when it is kept, once."""
    log = EventProcessor("log", transport="stream", claim_after=0.5)
    called: list[Any] = []

    @log.on("line:add")
    def add(context: Context, payload: Any) -> None:
        if payload == "second":
            server.call("CONFIG", "SET", "maxmemory", "1")
        called.append(payload)
        context.broadcast_to_room("log:line:added", payload)

    contract = Contract(server.url)
    redis: Any = contract.redis
    heard = redis.pubsub(ignore_subscribe_messages=True)
    try:
        redis.hset(HISTORY_RULES, mapping=KEPT)
        heard.subscribe(topic_channel("room:kept r"))
        contract.run(log)
        ada = contract.client("ada", "kept r")
        ada.request("log:line:add", "first")
        ada.send("log:line:add", "second")
        assert contract.hear(1.5) is None
        assert (called, redis.xlen(history_log_key("room:kept r"))) == (["first", "second"], 1)
        server.call("CONFIG", "SET", "maxmemory", "0")
        told: list[Any] = []
        while len(told) < 2:
            message = wait_until(lambda: heard.get_message(timeout=1.0), lambda: f"two messages, not {told}")
            told.append(without_order(message["data"]).split(" ", 2)[1:])
        assert told[1] == ["2", '{"type":"log:line:added","payload":"second","roomId":"kept r"}']
        assert redis.xlen(history_log_key("room:kept r")) == 2
    finally:
        heard.close()
        contract.close()
