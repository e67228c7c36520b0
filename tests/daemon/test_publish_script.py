"""What ``POST /publish`` has Redis do: once for a key, and as part of a room's history if it has one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from kraftek.contract.names import HISTORY_RULES, history_log_key, topic_channel
from kraftek.daemon.publish_requests import PUBLISH
from tests.support.redis_server import PrivateRedis

CONFLICT = -1
RULES = "k:" + HISTORY_RULES
KEPT = {"rules": json.dumps([["room:board", False, 9, 60_000, 9000]]), "generation": "g"}


class House:
    """A Redis, and who listens there."""

    def __init__(self, server: PrivateRedis) -> None:
        self.redis: Any = server.client(decode_responses=True)
        self.heard = self.redis.pubsub(ignore_subscribe_messages=True)

    def listen(self, *channels: str) -> None:
        self.heard.subscribe(*channels)
        for _ in channels:
            self.heard.get_message(timeout=5.0)

    def publish(self, message: str, digest: str, topic: str = "", key: str = "") -> list[Any]:
        keys = [RULES, "k:said", *([key] if key else [])]
        done: list[Any] = self.redis.eval(PUBLISH.source, len(keys), *keys, message, digest, 60, topic)
        return done

    def hear(self) -> list[tuple[str, str]]:
        """All that was told until now, to whom listens to "k:said" as well."""
        self.redis.publish("k:said", "the end")
        told = []
        while (message := self.heard.get_message(timeout=10.0)) is None or message["data"] != "the end":
            assert message is not None
            told.append((message["channel"], message["data"]))
        return told


@pytest.fixture
def house(server: PrivateRedis) -> Iterator[House]:
    house = House(server)
    house.redis.flushall()
    yield house
    house.heard.close()
    house.redis.close()


@pytest.mark.parametrize("topic", ["", "room:lobby"])
def test_without_history_it_is_published_as_it_is(house: House, topic: str) -> None:
    assert house.publish("{}", "aa", topic, "key") == [0, 0, ""]
    house.listen("k:said")
    assert house.publish("{}", "aa", topic, "key") == house.publish("{}", "aa", topic, "key") == [1, 0, ""]
    assert house.publish("{}", "bb", topic, "key") == [CONFLICT, 0, ""]
    assert house.publish("[]", "cc", topic) == house.publish("[]", "cc", topic) == [1, 0, ""]
    assert house.hear() == [("k:said", "{}"), ("k:said", "[]"), ("k:said", "[]")]


def test_with_history_it_is_kept_whoever_is_there(house: House) -> None:
    house.redis.hset(RULES, mapping=KEPT)
    taken, offset, epoch = house.publish('{"type":"a"}', "aa", "room:board", "key")
    assert (taken, offset) == (0, 1)
    house.listen("k:said", "k:" + topic_channel("room:board"))
    assert house.publish('{"type":"a"}', "aa", "room:board", "key") == [0, 1, epoch]
    assert house.publish('{"type":"b"}', "bb", "room:board", "key") == [CONFLICT, 0, ""]
    assert house.publish('{"type":"b"}', "bb", "room:board") == [1, 2, epoch]
    assert house.publish('{"type":"c"}', "cc", "room:lobby") == [1, 0, ""]
    (channel, told), lobby = house.hear()
    assert (channel, *told.split(" ")[:2], told.split(" ")[3]) == (
        "k:" + topic_channel("room:board"),
        epoch,
        "2",
        '{"type":"b"}',
    )
    assert lobby == ("k:said", '{"type":"c"}')
    kept = [entry["m"] for _, entry in house.redis.xrange("k:" + history_log_key("room:board"))]
    assert kept == ['{"type":"a"}', '{"type":"b"}']


def test_with_a_history_of_users_each_of_them_has_it(house: House) -> None:
    """Where the first one stands is what the publisher is told."""
    said, users = '{"type":"a","userIds":["ann","bob"]}', 'users:["ann","bob"]'
    house.listen("k:said", *("k:" + topic_channel(f"user:{user}") for user in ("ann", "bob")))
    house.redis.hset(RULES, mapping=KEPT)
    assert house.publish(said, "aa", users) == [1, 0, ""]
    rules = json.dumps([["user:", "", 9, 60_000, 9000, [["a"]]]])
    house.redis.hset(RULES, mapping={"rules": rules, "generation": "h"})
    house.publish('{"type":"a","userIds":["ann"]}', "cc", 'users:["ann"]')
    taken, offset, epoch = house.publish(said, "aa", users, "key")
    assert (taken, offset) == (2, 2)
    assert house.publish(said, "aa", users, "key") == [2, 2, epoch]
    other = '{"type":"b","userIds":["ann","bob"]}'
    assert house.publish(other, "dd", users) == [1, 0, ""]
    told = [(channel, text.split(" ")[-1]) for channel, text in house.hear()]
    ann, bob = ("k:" + topic_channel(f"user:{user}") for user in ("ann", "bob"))
    assert told == [("k:said", said), *((each, '{"type":"a"}') for each in (ann, ann, bob)), ("k:said", other)]
