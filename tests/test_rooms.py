"""The room cache, as services see it in a real Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from txredisapi import ResponseError
from zope.interface.verify import verifyObject

from kraftek.bus import RedisBus
from kraftek.config import Redis
from kraftek.errors import NotPublished
from kraftek.interfaces import IBus, IRooms
from kraftek.metrics import Counters
from kraftek.rooms import BATCH, RedisRooms
from kraftek.scripts import Script
from kraftek.turn import Turn
from tests.redis_server import PrivateRedis


class RedisRoomsTest(TestCase):
    timeout = 30

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        self.redis = PrivateRedis()
        self.addCleanup(self.redis.close)
        self.redis.start()
        self.bus = RedisBus(reactor, Redis(url=self.redis.url, prefix="k:"), Turn(reactor), Counters())
        self.bus.startService()
        self.addCleanup(self.bus.stopService)
        self.rooms = RedisRooms(self.bus)
        while not self.bus.available:
            await deferLater(reactor, 0.002)

    def stored(self) -> dict[str, Any]:
        """Everything in Redis."""
        with self.redis.client(decode_responses=True) as client:
            return {
                key: client.hgetall(key) if key.startswith("k:room:") else client.get(key)
                for key in client.scan_iter()
            }

    async def test_keeps_its_interface(self) -> None:
        verifyObject(IRooms, self.rooms)

    async def test_entering_writes_what_services_read(self) -> None:
        assert await self.rooms.enter("ann", "board", "g1.a") is None
        assert await self.rooms.enter("bob", "board", "g1.b") is None
        assert self.stored() == {
            "k:room:board": {"ann": "g1.a", "bob": "g1.b"},
            "k:socket:ann:board": "g1.a",
            "k:socket:bob:board": "g1.b",
        }

    async def test_the_later_socket_displaces_the_earlier(self) -> None:
        await self.rooms.enter("ann", "board", "g1.a")
        assert await self.rooms.enter("ann", "board", "g2.b") == "g1.a"
        assert await self.rooms.enter("ann", "board", "g2.b") is None
        assert self.stored() == {"k:room:board": {"ann": "g2.b"}, "k:socket:ann:board": "g2.b"}

    async def test_leaving_removes_the_own_entry_only(self) -> None:
        await self.rooms.enter("ann", "board", "g1.a")
        await self.rooms.enter("ann", "board", "g2.b")
        await self.rooms.leave("ann", "board", "g1.a", None)
        assert self.stored() == {"k:room:board": {"ann": "g2.b"}, "k:socket:ann:board": "g2.b"}
        await self.rooms.leave("ann", "board", "g2.b", None)
        assert self.stored() == {}

    async def test_leaving_hands_the_own_entry_to_an_heir(self) -> None:
        await self.rooms.enter("ann", "board", "g1.a")
        await self.rooms.leave("ann", "board", "g1.a", "g1.b")
        assert self.stored() == {"k:room:board": {"ann": "g1.b"}, "k:socket:ann:board": "g1.b"}
        await self.rooms.leave("ann", "board", "g1.a", "g1.c")
        assert self.stored() == {"k:room:board": {"ann": "g1.b"}, "k:socket:ann:board": "g1.b"}

    async def test_restoring_fills_an_empty_redis(self) -> None:
        entries = [(f"user {number}", f"room {number % 7}", f"g1.{number}") for number in range(2 * BATCH + 1)]
        assert await self.rooms.restore(iter(entries)) == []
        stored = self.stored()
        assert len(stored) == 7 + len(entries)
        for user_id, room_id, socket_id in entries:
            assert stored[f"k:room:{room_id}"][user_id] == socket_id
            assert stored[f"k:socket:{user_id}:{room_id}"] == socket_id

    async def test_restoring_leaves_newer_entries_alone(self) -> None:
        await self.rooms.enter("ann", "board", "g2.newer")
        await self.rooms.enter("bob", "board", "g1.bob")
        self.redis.call("DEL", "k:socket:bob:board")
        entries = [("ann", "board", "g1.ann"), ("bob", "board", "g1.bob"), ("cyd", "board", "g1.cyd")]
        assert await self.rooms.restore(entries) == ["g1.ann"]
        assert self.stored() == {
            "k:room:board": {"ann": "g2.newer", "bob": "g1.bob", "cyd": "g1.cyd"},
            "k:socket:ann:board": "g2.newer",
            "k:socket:bob:board": "g1.bob",
            "k:socket:cyd:board": "g1.cyd",
        }

    async def test_restoring_nothing(self) -> None:
        assert await self.rooms.restore([]) == []

    async def test_who_leaves_while_all_are_restored_is_gone_afterwards(self) -> None:
        entries = [(f"user {number}", "room", f"g1.{number}") for number in range(2 * BATCH)]
        restored = self.rooms.restore(entries)
        left = [self.rooms.leave(*entry, None) for entry in entries]
        assert await restored == []
        for leaving in left:
            await leaving
        assert self.stored() == {}

    async def test_any_name_is_a_name(self) -> None:
        user_id, room_id, socket_id = "ё: *[x]", 'доска "1"\r\n', "g1.🙂"
        assert await self.rooms.enter(user_id, room_id, "g1.old") is None
        assert await self.rooms.enter(user_id, room_id, socket_id) == "g1.old"
        assert self.stored() == {
            f"k:room:{room_id}": {user_id: socket_id},
            f"k:socket:{user_id}:{room_id}": socket_id,
        }
        assert await self.rooms.restore([(user_id, room_id, "g2.🙁")]) == ["g2.🙁"]

    async def test_what_redis_refuses_is_said(self) -> None:
        self.redis.call("SET", "k:room:board", "not a hash")
        await self.assertFailure(self.rooms.enter("ann", "board", "g1.a"), ResponseError)
        await self.assertFailure(self.rooms.leave("ann", "board", "g1.a", None), ResponseError)
        await self.assertFailure(self.rooms.restore([("ann", "board", "g1.a")]), ResponseError)

    async def test_without_redis_nothing_is_written(self) -> None:
        self.redis.kill()
        while self.bus.available:
            await deferLater(reactor, 0.002)
        await self.assertFailure(self.rooms.enter("ann", "board", "g1.a"), NotPublished)
        await self.assertFailure(self.rooms.leave("ann", "board", "g1.a", None), NotPublished)
        await self.assertFailure(self.rooms.restore([("ann", "board", "g1.a")] * BATCH * 2), NotPublished)


# The scripts by themselves, against what they mean


class BlockingBus:
    """As much of a bus as rooms use, answering at once, for tests that have no reactor."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def call(self, script: Script, keys: Sequence[str], args: Sequence[str]) -> Deferred[Any]:
        return succeed(self._client.eval(script.source, len(keys), *keys, *args))


@pytest.fixture(scope="module")
def client() -> Iterator[redis.Redis]:
    server = PrivateRedis()
    server.start()
    with server.client() as client:
        yield client
    server.close()


def now(deferred: Deferred[Any]) -> Any:
    found: list[Any] = []
    deferred.addCallback(found.append)
    return found[0]


USERS = st.sampled_from(["ann", "bob"])
ROOMS = st.sampled_from(["board", "wall"])
SOCKETS = st.sampled_from(["g1.1", "g1.2", "g2.1"])
Rooms = dict[tuple[str, str], str]


def enter(model: Rooms, user_id: str, room_id: str, socket_id: str) -> str | None:
    before = model.get((user_id, room_id))
    model[user_id, room_id] = socket_id
    return None if before == socket_id else before


def leave(model: Rooms, user_id: str, room_id: str, socket_id: str, heir: str | None) -> None:
    if model.get((user_id, room_id)) == socket_id:
        del model[user_id, room_id]
        if heir is not None:
            model[user_id, room_id] = heir


def restore(model: Rooms, entries: Iterable[tuple[str, str, str]]) -> list[str]:
    return [
        socket_id
        for user_id, room_id, socket_id in entries
        if model.setdefault((user_id, room_id), socket_id) != socket_id
    ]


STEPS: st.SearchStrategy[tuple[Callable[..., Any], tuple[Any, ...]]] = (
    st.tuples(st.just(enter), st.tuples(USERS, ROOMS, SOCKETS))
    | st.tuples(st.just(leave), st.tuples(USERS, ROOMS, SOCKETS, st.none() | SOCKETS))
    | st.tuples(st.just(restore), st.tuples(st.lists(st.tuples(USERS, ROOMS, SOCKETS), max_size=4)))
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(steps=st.lists(STEPS, max_size=25))
def test_the_scripts_do_what_they_mean(
    client: redis.Redis, steps: list[tuple[Callable[..., Any], tuple[Any, ...]]]
) -> None:
    client.flushall()
    rooms = RedisRooms(cast("IBus", BlockingBus(client)))
    model: Rooms = {}
    for meaning, arguments in steps:
        assert now(getattr(rooms, meaning.__name__)(*arguments)) == meaning(model, *arguments)
        stored = {(user, room): client.hget(f"room:{room}", user) for user, room in model}
        assert stored == {key: socket_id.encode() for key, socket_id in model.items()}
        assert {key: client.get(f"socket:{key[0]}:{key[1]}") for key in model} == stored
        assert len(client.keys("socket:*")) == sum(client.hlen(key) for key in client.keys("room:*")) == len(model)
