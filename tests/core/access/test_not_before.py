"""When tokens were revoked: known at once, kept in Redis as long as a token lives, and written again if it is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from kraftek.bus import RedisBus
from kraftek.contract.errors import NotPublished, Refusal
from kraftek.contract.interfaces import IBusListener, INotBefore
from kraftek.contract.iteration import Iteration
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Jwt, Redis
from kraftek.core.access.not_before import AGAIN, MARGIN, NOT_BEFORE, NotBefore
from tests.support.fakes import FakeBus
from tests.support.redis_server import oldest_redis_server, private_redis
from tests.support.waiting import until

NOW = 1_700_000_000.0
JWT = Jwt(longest=900.0, leeway=10.0)
LONGEST = 900 + 2 * 10 + MARGIN


class Process:
    """One gateway process, on a Redis that answers when the test says so."""

    def __init__(self, size: int = 10) -> None:
        self.clock, self.bus, self.ahead = Clock(), FakeBus({}), 0.0
        self.times = NotBefore(self.bus, JWT, size, self.clock, lambda: NOW + self.clock.seconds())

    def revoke(self, user: str = "ada", room: str | None = None) -> None:
        self.publish(json.dumps({"userId": user, **({} if room is None else {"roomId": room})}).encode())

    def publish(self, body: bytes) -> None:
        for listener in self.bus._channels["auth:invalidate"]:
            listener(body)

    def written(self, *, fails: Exception | None = None) -> list[tuple[str, str, float]]:
        """User, room and time of what Redis has been told to write; it does, or fails."""
        calls, self.bus.calls = self.bus.calls, []
        for call in calls:
            assert call.command is NOT_BEFORE
            call.reply.callback(None) if fails is None else call.reply.errback(fails)
        return [(call.keys[0].partition(":")[2], str(call.args[0]), float(call.args[1])) for call in calls]

    def find(self, user: str, room: str | None, *kept: bytes | None) -> float:
        found: list[float] = []
        self.times.find(user, room).addCallback(found.append)
        call = self.bus.calls.pop()
        assert call.command == "HMGET"
        assert call.keys == (f"access-not-before:{user}",)
        assert call.args == (("", room) if room else ("",))
        call.reply.callback(list(kept) or [None] * len(call.args))
        return found[0]


@pytest.fixture
def process() -> Process:
    return Process()


def test_keeps_its_interfaces(process: Process) -> None:
    verifyObject(INotBefore, process.times)
    verifyObject(IBusListener, process.times)


def test_it_is_known_before_redis_knows(process: Process) -> None:
    assert process.find("ada", "r") == 0
    process.revoke("ada")
    process.clock.advance(1)
    process.revoke("ada", "r")
    (all_rooms, one_room) = process.bus.calls
    process.bus.calls = []
    assert process.find("ada", "other") == process.find("ada", None) == NOW
    assert process.find("ada", "r") == NOW + 1
    assert process.find("bob", "r") == 0
    process.bus.calls = [all_rooms, one_room]
    assert process.written() == [("ada", "", NOW), ("ada", "r", NOW + 1)]


def test_what_others_heard_is_found_in_redis(process: Process) -> None:
    assert process.find("ada", "r", b"1700000001.5", None) == NOW + 1.5
    assert process.find("ada", "r", None, b"1700000002") == NOW + 2
    assert process.find("ada", "r", b"odd", b"") == 0


def test_an_empty_room_is_all(process: Process) -> None:
    process.publish(b'{"userId":"ada","roomId":""}')
    assert process.written() == [("ada", "", NOW)]


def test_the_latest_counts(process: Process) -> None:
    process.revoke()
    process.clock.advance(5)
    process.revoke()
    process.clock.advance(-10)  # the wall clock is set back
    process.revoke()
    assert [time for _, _, time in process.written()] == [NOW, NOW + 5, NOW + 5]


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"userId":""}', b"\xff", b'{"userId":7}'])
def test_what_is_malformed_revokes_nothing(process: Process, body: bytes) -> None:
    process.publish(body)
    assert process.bus.calls == []


def test_what_redis_did_not_take_is_written_later(process: Process) -> None:
    process.revoke("ada")
    process.revoke("bob")
    with capturedLogs() as events:
        process.written(fails=Refusal("OOM"))
        process.times.sweep()
        assert process.bus.calls == []
        process.clock.advance(AGAIN)
        process.times.sweep()
        assert process.written(fails=Refusal("OOM")) == [("ada", "", NOW), ("bob", "", NOW)]
    assert len(events) == 1
    assert "Redis does not keep when access was revoked" in events[0]["log_format"]
    process.clock.advance(AGAIN)
    process.times.sweep()
    assert process.written() == [("ada", "", NOW), ("bob", "", NOW)]
    process.times.sweep()
    assert process.bus.calls == []


def test_what_was_lost_with_the_connection_is_written_when_it_is_back(process: Process) -> None:
    process.revoke("ada")
    with capturedLogs() as events:
        process.written(fails=NotPublished())
        process.bus.down()
        process.clock.advance(AGAIN)
        process.times.sweep()
    assert (events, process.bus.calls) == ([], [])
    process.bus.up()
    assert process.written() == [("ada", "", NOW)]


def test_what_redis_has_lost_is_written_again(process: Process) -> None:
    process.revoke("ada")
    process.written()
    process.bus.begin_epoch("another")
    assert process.written() == [("ada", "", NOW)]


def test_memory_is_bounded(process: Process) -> None:
    for number in range(12):
        process.revoke(f"user{number}")
    process.written(fails=NotPublished())
    process.bus.up()
    assert [user for user, _, _ in process.written()] == [f"user{number}" for number in range(2, 12)]


def test_what_no_token_can_be_older_than_is_forgotten(process: Process) -> None:
    process.revoke("ada")
    process.clock.advance(LONGEST + 1)
    process.revoke("bob")
    process.written()
    process.bus.up()
    assert [user for user, _, _ in process.written()] == ["bob"]


class RealRedisTest(TestCase):
    """The script, on a real server."""

    timeout = 60
    binary: str | None = None

    async def setUp(self) -> None:  # type: ignore[override]
        redis = private_redis(self, self.binary)
        self.now = NOW
        self.bus = RedisBus(reactor, Redis(url=redis.url), Iteration(reactor), Counters())
        self.times = NotBefore(self.bus, JWT, 10, reactor, lambda: self.now)
        self.other = NotBefore(self.bus, JWT, 10, reactor, lambda: self.now)
        self.bus.startService()
        self.addCleanup(self.bus.stopService)
        await until(lambda: self.bus.available, "a connection to Redis")

    async def call(self, *command: Any) -> Any:
        return await self.bus.call(command[0], command[1:2], command[2:])

    async def write(self, room: str | None = None) -> None:
        self.times._invalidated(json.dumps({"userId": "ada", "roomId": room}).encode())
        await self.bus.call("PING")

    async def test_a_time_is_kept_as_long_as_a_token_lives(self) -> None:
        await self.write("r")
        assert await self.other.find("ada", "r") == NOW
        assert await self.other.find("ada", None) == 0
        await self.write()
        assert await self.other.find("ada", "x") == NOW
        left = await self.call("PTTL", "access-not-before:ada")
        assert (LONGEST - 30) * 1000 < left <= LONGEST * 1000

    async def test_who_was_let_in_while_redis_had_lost_it_is_asked_about_again(self) -> None:
        await self.write("r")
        self.times.bus_up()
        await self.call("SADD", "access:user:ada", "digest")
        self.times.bus_up()
        assert await self.call("EXISTS", "access:user:ada") == 1
        await self.call("DEL", "access-not-before:ada")
        self.times.bus_up()
        assert await self.call("EXISTS", "access:user:ada") == 0
        assert await self.other.find("ada", "r") == NOW

    async def test_an_earlier_time_does_not_replace_a_later_one(self) -> None:
        await self.call("HSET", "access-not-before:ada", "", str(NOW + 5))
        await self.write()
        assert await self.other.find("ada", None) == NOW + 5

    async def test_times_that_matter_no_more_make_room(self) -> None:
        for room in ("a", "b"):
            await self.write(room)
        self.now += LONGEST + 1
        await self.write("c")
        assert await self.call("HKEYS", "access-not-before:ada") == [b"c"]

    async def test_what_another_program_wrote_there(self) -> None:
        await self.call("SET", "access-not-before:ada", "x")
        await self.write("r")
        assert await self.other.find("ada", "r") == NOW
        await self.call("HSET", "access-not-before:ada", "r", "odd")
        await self.write("r")
        assert await self.other.find("ada", "r") == NOW


if oldest := oldest_redis_server():

    class Redis62Test(RealRedisTest):
        """The same with the oldest Redis that is supported."""

        binary = oldest
