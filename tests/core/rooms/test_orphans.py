"""Entries in a real Redis that no gateway would remove are found, and handed to their gateways."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import TestCase

from kraftek.bus import RedisBus
from kraftek.contract.fleet import Fleet
from kraftek.contract.iteration import Iteration
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Redis
from kraftek.core.registry import ServiceRegistry
from kraftek.core.rooms.leases import Leases
from kraftek.core.rooms.orphans import KEYS_AT_ONCE, OF_ONE, Orphans
from kraftek.core.rooms.room_cache import RedisRooms
from tests.support.fakes import FakeBus
from tests.support.redis_server import private_redis
from tests.support.waiting import until

PREFIX = "k[*]:"


class OrphansTest(TestCase):
    timeout = 60

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        self.redis = private_redis(self)
        self.client: Any = self.redis.client(decode_responses=True)
        self.addCleanup(self.client.close)
        self.bus = RedisBus(reactor, Redis(url=self.redis.url, prefix=PREFIX), Iteration(reactor), Counters())
        self.bus.startService()
        self.addCleanup(self.bus.stopService)
        await until(lambda: self.bus.available, "a connection to Redis")
        self.rooms = RedisRooms(self.bus, ServiceRegistry(), "g1", "")
        self.clock = Clock()
        self.orphans = Orphans(self.bus, self.clock, Fleet())

    async def look_through(self) -> None:
        """Look at every key."""
        while True:
            self.clock.advance(1)
            self.orphans.sweep()
            await until(lambda: not self.orphans._looking, "the end of a step")
            if self.orphans._cursor == b"0":
                return

    def entries(self, gateway_id: str) -> set[str]:
        found: set[str] = self.client.smembers(f"{PREFIX}gateway:{gateway_id}:entries")
        return found

    def leases(self) -> dict[str, float]:
        return dict(self.client.zrange(f"{PREFIX}gateways", 0, -1, withscores=True))

    async def test_what_lost_its_gateway_is_handed_to_it(self) -> None:
        for number in range(2 * KEYS_AT_ONCE):
            await self.rooms.enter((f"user:{number}", f"room {number % 3}", f"g1.{number}"), 1)
        before = self.entries("g1")
        self.client.delete(f"{PREFIX}gateway:g1:entries")
        with capturedLogs() as logged:
            await self.look_through()
        assert self.entries("g1") == before
        assert self.leases().keys() == {"g1"}
        assert any("had lost their gateway" in (formatEvent(event) or "") for event in logged)
        self.client.zadd(f"{PREFIX}gateways", {"g1": 4e9})
        with capturedLogs() as logged:
            await self.look_through()
        assert self.leases() == {"g1": 4e9}
        assert logged == []

    async def test_it_is_enough_to_stand_in_the_room_or_among_the_sockets(self) -> None:
        await self.rooms.enter(("ann", "board", "g1.a"), 1)
        await self.rooms.enter(("bob", "board", "g1.b"), 1)
        self.client.delete(f"{PREFIX}gateway:g1:entries", f'{PREFIX}sockets:["ann","board"]')
        self.client.hdel(f"{PREFIX}room:board", "bob")
        await self.look_through()
        assert self.entries("g1") == {'["ann","board","g1.a"]', '["bob","board","g1.b"]'}

    async def test_a_dead_gateway_without_a_lease_is_cleaned_up_after(self) -> None:
        await self.rooms.enter(("ann", "board", "g1.a"), 1)
        rooms = RedisRooms(self.bus, ServiceRegistry(), "g2", "")
        leases = Leases(self.bus, rooms, "g2", lambda: None, Fleet(), Counters(), published=bytes)
        await self.look_through()
        assert "g1" in self.leases()
        self.client.zadd(f"{PREFIX}gateways", {"g1": 1})
        self.client.set(f"{PREFIX}gateways:looked", self.client.time()[0])
        leases.look()
        await until(lambda: not self.client.exists(f"{PREFIX}room:board"), "an empty room")
        assert not self.client.exists(f"{PREFIX}gateway:g1:entries")

    async def test_what_is_lost_or_of_another_system_is_left(self) -> None:
        await self.rooms.enter(("ann", "board", "g1.a"), 1)
        self.client.rename(f"{PREFIX}gateway:g1:entries", f"{PREFIX}gateways:lost")
        self.client.hset(f"{PREFIX}room:board", "bob", "theirs")
        self.client.hset(f"{PREFIX}room:board", b"\xff", "g1.b")
        self.client.set(f"{PREFIX}room:text", "x")
        self.client.sadd(f"{PREFIX}sockets:no names", "g1.c")
        self.client.zadd(f"{PREFIX}sockets:no names either", {"g1.c": 1})
        self.client.set(f"{PREFIX}socket:ann:wall", "g1.d")
        await self.look_through()
        assert self.entries("g1") == set()
        assert self.leases() == {}

    async def test_a_large_room_is_looked_at_in_part(self) -> None:
        self.client.hset(f"{PREFIX}room:board", mapping={f"user {n}": f"g1.{n}" for n in range(3 * OF_ONE)})
        await self.look_through()
        assert len(self.entries("g1")) == OF_ONE

    async def test_entries_of_another_type_keep_no_others_from_being_handed_over(self) -> None:
        for gateway_id in ("g0", "g2"):
            await self.rooms.enter(("ann", gateway_id, f"{gateway_id}.a"), 1)
        self.client.delete(f"{PREFIX}gateway:g1:entries")
        self.client.set(f"{PREFIX}gateway:g0:entries", "x")
        await self.look_through()
        assert self.entries("g2") == {'["ann","g2","g2.a"]'}

    async def test_what_redis_refuses_is_logged_once_and_looked_at_again(self) -> None:
        await self.rooms.enter(("ann", "board", "g1.a"), 1)
        self.client.delete(f"{PREFIX}gateway:g1:entries")
        self.client.config_set("min-replicas-to-write", 1)
        with capturedLogs() as logged:
            for _ in range(3):
                self.clock.advance(1)
                self.orphans.sweep()
                await until(lambda: not self.orphans._looking, "the end of a step")
        assert len(logged) == 1
        assert "NOREPLICAS" in formatEvent(logged[0])
        self.client.config_set("min-replicas-to-write", 0)
        await self.look_through()
        assert len(self.entries("g1")) == 1


def test_all_gateways_share_a_pace() -> None:
    bus, clock, fleet = FakeBus(), Clock(), Fleet(lambda: 0.5)
    fleet.counted(8)
    orphans = Orphans(bus, clock, fleet)
    for _ in range(64):
        clock.advance(0.25)
        orphans.sweep()
        for call in bus.calls:
            call.reply.callback([b"0", [], []])
        asked = len(bus.calls)
        bus.calls.clear()
        assert asked == (clock.seconds() % 2 == 0)


def test_without_redis_nothing_is_looked_at() -> None:
    clock = Clock()
    bus = FakeBus(available=False)
    orphans = Orphans(bus, clock, Fleet())
    clock.advance(5)
    orphans.sweep()
    assert bus.calls == []
