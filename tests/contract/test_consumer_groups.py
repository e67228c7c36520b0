"""Consumer groups, as Redis has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from kraftek.contract.consumer_groups import CLAIM, FORGET, JOIN, Consumer, dead_letter, event_in, new_entries
from kraftek.contract.lua import Script
from tests.support.redis_server import PrivateRedis


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


@pytest.fixture
def consumers(server: PrivateRedis, redis: Redis) -> Iterator[tuple[Redis, Consumer, Consumer]]:
    """A client that gets bytes, and two consumers of a group."""
    redis.eval(JOIN.source, 1, "s", "group", 60_000)
    with server.client(protocol=2) as client:  # as both readers have it
        client.response_callbacks.clear()
        yield client, Consumer("s", "group", "one"), Consumer("s", "group", "two")


def claimed(client: Redis, consumer: Consumer, idle: float, **options: Any) -> list[tuple[bytes, int]]:
    found: Any = client.eval(CLAIM.source, 1, consumer.stream, *consumer.claim(idle, 10, **options))
    return [(event_in(fields), delivered) for _, fields, delivered in found]


def read(client: Redis, consumer: Consumer) -> dict[bytes, bytes]:
    return {event: entry_id for entry_id, event in new_entries(client.execute_command(*consumer.read(10, 1)))}


def test_what_one_has_read_another_claims_once_it_is_stale(consumers: tuple[Redis, Consumer, Consumer]) -> None:
    client, one, two = consumers
    assert read(client, one) == {}
    client.xadd("s", {"event": "a", "more": "x"})
    client.xadd("s", {"event": "b"})
    ids = read(client, one)
    assert [*ids] == [b"a", b"b"]
    assert read(client, two) == {}
    assert claimed(client, two, 60.0) == []
    assert claimed(client, two, 0.0, whose="two") == []
    assert claimed(client, two, 0.0, whose="one", in_hand=[ids[b"b"].decode()]) == [(b"a", 2)]
    assert claimed(client, one, 0.0, attempts=3, alone=True) == [(b"b", 2)]  # for "a" it would be the last attempt


def test_what_is_kept_is_not_stale(consumers: tuple[Redis, Consumer, Consumer]) -> None:
    client, one, two = consumers
    client.xadd("s", {"event": "a"})
    client.xadd("s", {"event": "b"})
    ids = read(client, one)
    client.execute_command("XCLAIM", "s", "group", "one", 0, *ids.values(), "IDLE", 60_000, "JUSTID")
    client.execute_command(*one.keep([ids[b"a"]]))
    assert claimed(client, two, 30.0) == [(b"b", 2)]


def test_what_a_consumer_says() -> None:
    one = Consumer("s", "group", "one")
    assert one.read(5, 500) == ("XREADGROUP", "GROUP", "group", "one", "COUNT", 5, "BLOCK", 500, "STREAMS", "s", ">")
    assert one.keep(["1-0", "2-0"]) == ("XCLAIM", "s", "group", "one", 0, "1-0", "2-0", "IDLE", 0, "JUSTID")
    assert one.claim(0.5, 5) == ("group", "one", 500, 5, "", 0, 0)
    claim = one.claim(5.0, 9, whose="two", attempts=3, alone=True, in_hand=["1-0"])
    assert claim == ("group", "one", 5000, 9, "two", 3, 1, "1-0")


def test_what_a_consumer_is_told() -> None:
    answer = [[b"s", [[b"1-0", [b"event", b"{}"]], [b"2-0", [b"event", b"[]"]]]]]
    assert [*new_entries(answer)] == [(b"1-0", b"{}"), (b"2-0", b"[]")]
    assert [*new_entries(None)] == []


def test_an_entry_of_somebody_else_holds_no_event() -> None:
    assert event_in([b"other", b"x"]) == b""
    assert event_in([b"other", b"x", b"event", b"{}"]) == b"{}"


def test_what_is_put_aside_is_kept_with_the_reason() -> None:
    letter = dead_letter(b"{}", "x" * 2000, b"1-0", "attempts", 3)
    assert letter[:4] == ("MAXLEN", "~", 10_000, "*")
    assert letter[4:] == ("event", b"{}", "reason", "x" * 1000, "id", b"1-0", "attempts", 3)


@pytest.mark.parametrize(("size", "most"), [(0, 10_000), (1000, 10_000), (1_048_576, 63), (10**9, 1)])
def test_large_dead_letters_are_fewer(size: int, most: int) -> None:
    assert dead_letter(bytes(size), "", "1-0")[:3] == ("MAXLEN", "~", most)
