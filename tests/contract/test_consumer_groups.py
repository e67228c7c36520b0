"""Joining a consumer group, as Redis does it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from kraftek.contract.consumer_groups import FORGET, JOIN
from kraftek.contract.lua import Script
from tests.support.redis_server import PrivateRedis


@pytest.fixture(scope="module")
def server() -> Iterator[PrivateRedis]:
    server = PrivateRedis()
    server.start()
    yield server
    server.close()


@pytest.fixture
def redis(server: PrivateRedis) -> Iterator[Redis]:
    with server.client(decode_responses=True) as client:
        client.flushall()
        yield client


def names(redis: Redis) -> set[str]:
    return {consumer["name"] for consumer in redis.xinfo_consumers("s", "group")}


def test_who_joins_makes_the_group_where_it_is_missing_and_gets_what_there_is(redis: Redis) -> None:
    redis.xadd("s", {"event": "1"})
    for _ in range(2):
        redis.eval(JOIN.source, 1, "s", "group", 60_000)
    assert [group["name"] for group in redis.xinfo_groups("s")] == ["group"]
    assert len(redis.xreadgroup("group", "me", {"s": ">"})) == 1


@pytest.mark.parametrize("script", [JOIN, FORGET])
def test_who_was_idle_for_long_and_has_nothing_in_hand_is_forgotten(redis: Redis, script: Script) -> None:
    redis.xadd("s", {"event": "1"})
    redis.xgroup_create("s", "group", "0")
    redis.xgroup_createconsumer("s", "group", "idle")
    redis.xreadgroup("group", "dead", {"s": ">"})
    redis.eval(script.source, 1, "s", "group", 60_000)
    assert names(redis) == {"dead", "idle"}
    redis.eval(script.source, 1, "s", "group", -1)
    assert names(redis) == {"dead"}


def test_why_there_can_be_no_group_is_said(redis: Redis) -> None:
    redis.set("s", "no stream")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        redis.eval(JOIN.source, 1, "s", "group", 60_000)
    redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(ResponseError, match="maxmemory"):
            redis.eval(JOIN.source, 1, "another", "group", 60_000)
    finally:
        redis.config_set("maxmemory", 0)
