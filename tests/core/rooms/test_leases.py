"""Leases of gateway processes in a real Redis: who is taken for gone, by whom, and what happens to who was not."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from kraftek.bus import RedisBus
from kraftek.bus.endpoint import RedisEndpoint
from kraftek.contract.fleet import Fleet
from kraftek.contract.interfaces import IBusListener
from kraftek.contract.iteration import Iteration
from kraftek.contract.metrics import Counters
from kraftek.contract.names import ROOM_PUT, ROOM_REMOVE
from kraftek.contract.registrations import published
from kraftek.contract.settings import Config, Redis
from kraftek.core.registry import ServiceRegistry
from kraftek.core.rooms.leases import FIND_LOST, LEASE, OUTAGE, RENEW, RENEW_INTERVAL, Leases
from kraftek.core.rooms.room_cache import ENTRIES_AT_ONCE, RedisRooms
from kraftek.service.commits import UNAWARE
from tests.support.fakes import FakeBus, FakeRooms
from tests.support.redis_server import private_redis
from tests.support.waiting import until


class Process:
    """What of a gateway process has to do with leases. ``lost``: how often it was told that its entries are gone."""

    def __init__(self, bus: RedisBus, gateway_id: str) -> None:
        self.rooms = RedisRooms(bus, ServiceRegistry(), gateway_id, "")
        self.counters = Counters()
        self.lost = 0
        self.fleet = Fleet()
        parts = bus, self.rooms, gateway_id, self.lose, self.fleet, self.counters
        self.published = f"of {gateway_id}".encode()
        self.leases = Leases(*parts, published=lambda: self.published)

    def lose(self) -> None:
        self.lost += 1


class LeasesTest(TestCase):
    timeout = 30

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        self.redis = private_redis(self)
        self.client = self.redis.client(decode_responses=True)
        self.addCleanup(self.client.close)
        self.bus = RedisBus(reactor, Redis(url=self.redis.url, prefix="k:"), Iteration(reactor), Counters())
        self.bus.startService()
        self.addCleanup(self.bus.stopService)
        await until(lambda: self.bus.available, "a connection to Redis")

    async def process(self, gateway_id: str) -> Process:
        process = Process(self.bus, gateway_id)
        await self.bus.call("PING")
        return process

    def leases(self) -> dict[str, float]:
        """Seconds until each lease runs out."""
        client: Any = self.client
        seconds, micro = client.time()
        leases = client.zrange("k:gateways", 0, -1, withscores=True)
        return {gateway_id: expiry - seconds - micro / 1e6 for gateway_id, expiry in leases}

    def is_gone(self, gateway_id: str) -> None:
        """Its lease runs out, while others are looking."""
        self.client.zadd("k:gateways", {gateway_id: 1})
        self.client.set("k:gateways:looked", self.client.time()[0])

    async def look(self, *processes: Process) -> None:
        """All of these look, and have done what is to be done."""
        for process in processes:
            process.leases.look()
        await until(lambda: not any(process.leases._looking for process in processes), "the end of all looks")

    async def test_a_process_has_a_lease_once_redis_is_there(self) -> None:
        process = await self.process("g1")
        assert verifyObject(IBusListener, process.leases)
        assert LEASE - 1 < self.leases()["g1"] <= LEASE
        self.client.zincrby("k:gateways", -3, "g1")
        process.leases.renew()
        await self.bus.call("PING")
        assert LEASE - 1 < self.leases()["g1"] <= LEASE
        assert (process.lost, process.counters.leases_lost) == (0, 0)

    async def test_what_it_publishes_lives_as_long_as_its_lease(self) -> None:
        self.client.set("k:gateways:registrations", "of another program")
        one, two = await self.process("g1"), await self.process("g2")
        assert self.client.hgetall("k:gateways:registrations") == {"g1": "of g1", "g2": "of g2"}
        assert 0 < self.client.pttl("k:gateways:registrations") <= LEASE * 1000
        one.published = b"of g1, reloaded"
        one.leases.renew()
        await self.bus.call("PING")
        assert self.client.hgetall("k:gateways:registrations") == {"g1": "of g1, reloaded", "g2": "of g2"}
        self.is_gone("g1")
        await self.look(two)
        two.leases.renew()
        await self.bus.call("PING")
        assert self.client.hgetall("k:gateways:registrations") == {"g2": "of g2"}
        two.leases.release()
        await self.bus.call("PING")
        assert not self.client.exists("k:gateways:registrations", "k:gateways")

    async def test_it_is_published_again_after_redis_has_lost_it(self) -> None:
        process = await self.process("g1")
        self.client.flushall()
        process.leases.renew()
        await self.bus.call("PING")
        assert self.client.hgetall("k:gateways:registrations") == {"g1": "of g1"}

    async def test_commands_are_for_gateways_that_all_know_them(self) -> None:
        async def unaware() -> Any:
            return await self.bus.call(UNAWARE, ["gateways", "gateways:registrations"], [ROOM_PUT, ROOM_REMOVE])

        assert await unaware() == []
        process = await self.process("one")
        process.published = published(Config(), [])
        process.leases.renew()
        assert await unaware() == []
        for older in (
            b"",
            b"no JSON",
            b"[]",
            b'{"version": 1}',
            b'{"commands": 1}',
            b'{"commands": ["gateway:room:put"]}',
        ):
            process.published = older
            process.leases.renew()
            missing = ROOM_REMOVE if b"put" in older else ROOM_PUT
            assert await unaware() == [b"one", missing.encode()]
        self.client.zadd("k:gateways", {"one": self.client.time()[0] - 1})
        assert await unaware() == []
        self.client.zadd("k:gateways", {"old": self.client.time()[0] + 5})
        assert await unaware() == [b"old", ROOM_PUT.encode()]

    async def test_what_the_dead_left_is_removed_and_nothing_else(self) -> None:
        dead, one, two = [await self.process(name) for name in ("dead", "one", "two")]
        for number in range(2 * ENTRIES_AT_ONCE + 50):
            await dead.rooms.enter((f"user {number}", "board", f"dead.{number}"), 1)
        await one.rooms.enter(("ann", "board", "one.a"), 1)
        await two.rooms.enter(("user 7", "board", "two.7"), 1)
        await self.look(one, two)
        assert self.client.hlen("k:room:board") == 2 * ENTRIES_AT_ONCE + 51
        self.is_gone("dead")
        await self.look(one, two)
        assert self.client.hgetall("k:room:board") == {"ann": "one.a", "user 7": "two.7"}
        assert self.leases().keys() == {"one", "two"}
        assert set(self.client.scan_iter("k:*gateway*")) == {
            "k:gateway:epoch",
            "k:gateways",
            "k:gateways:looked",
            "k:gateways:registrations",
            "k:gateway:one:entries",
            "k:gateway:two:entries",
        }
        assert one.counters.entries_swept + two.counters.entries_swept >= 2 * ENTRIES_AT_ONCE + 50

    async def test_what_no_gateway_wrote_is_removed_and_the_rest_cleaned_up(self) -> None:
        dead, one = await self.process("dead"), await self.process("one")
        for number in range(3):
            await dead.rooms.enter((f"user {number}", "board", f"dead.{number}"), 1)
        await dead.rooms.enter(("ann", "broken", "dead.a"), 1)
        self.client.delete("k:room:broken")
        self.client.set("k:room:broken", "no hash")
        odd: list[Any] = [
            "text",
            b"\xff",
            b'["ann","\xff","x"]',
            '["ann","board"]',
            '["a", "board", "x"]',
            "[" * 100_000,
        ]
        self.client.sadd("k:gateways:lost", *odd)
        self.is_gone("dead")
        with capturedLogs() as logged:
            await self.look(one)
            self.client.sadd("k:gateways:lost", *odd)
            await self.look(one)
        assert not self.client.exists("k:room:board", "k:gateways:lost", "k:gateway:dead:entries")
        assert one.counters.entries_swept == 4
        assert len([event for event in logged if "no gateway wrote" in event["log_format"]]) == 1
        assert not [event for event in logged if event["log_level"] is LogLevel.critical]

    async def test_keys_of_another_type_stop_nothing_else(self) -> None:
        dead, one = await self.process("dead"), await self.process("one")
        await self.process("odd")
        await dead.rooms.enter(("ann", "board", "dead.a"), 1)
        for key in ("k:gateways:lost", "k:gateway:odd:entries"):
            self.client.delete(key)
            self.client.set(key, "no set")
        self.is_gone("dead")
        self.client.zadd("k:gateways", {"odd": 1})
        await self.look(one)
        assert self.leases().keys() == {"one"}
        assert not self.client.exists("k:room:board", "k:gateways:lost")
        for what in ("text", "set"):
            self.client.delete("k:gateways:looked")
            self.client.set("k:gateways:looked", what) if what == "text" else self.client.sadd("k:gateways:looked", "x")
            await self.look(one)
            assert float(str(self.client.get("k:gateways:looked")))

    async def test_what_one_that_looked_could_not_finish_is_finished_by_others(self) -> None:
        dead, one, two = [await self.process(name) for name in ("dead", "one", "two")]
        await dead.rooms.enter(("ann", "board", "dead.a"), 1)
        self.is_gone("dead")
        one.rooms.bury = lambda entries: fail(ConnectionError("it dies as well"))  # type: ignore[method-assign]
        await self.look(one)
        assert len(self.flushLoggedErrors(ConnectionError)) == 1
        assert self.client.hgetall("k:room:board") == {"ann": "dead.a"}
        await self.look(two)
        assert not self.client.exists("k:room:board", "k:gateways:lost")

    async def test_who_was_only_paused_hears_that_its_entries_are_gone(self) -> None:
        paused, other = await self.process("paused"), await self.process("other")
        await paused.rooms.enter(("ann", "board", "paused.a"), 1)
        self.is_gone("paused")
        await self.look(other)
        assert not self.client.exists("k:room:board")
        paused.leases.renew()
        await self.bus.call("PING")
        assert (paused.lost, paused.counters.leases_lost) == (1, 1)
        assert self.leases().keys() == {"paused", "other"}
        paused.leases.renew()
        await self.bus.call("PING")
        assert paused.lost == 1

    async def test_renewals_say_how_many_gateways_there_are(self) -> None:
        processes = [await self.process(name) for name in ("g1", "g2", "g3")]
        processes[0].leases.renew()
        await self.bus.call("PING")
        assert processes[0].fleet.gateways == 3

    async def test_a_redis_that_forgot_everything_is_noticed(self) -> None:
        process = await self.process("g1")
        self.client.flushall()
        process.leases.renew()
        await self.bus.call("PING")
        assert process.lost == 1

    async def test_nobody_is_taken_for_gone_because_redis_was_away(self) -> None:
        processes = [await self.process(name) for name in ("g1", "g2", "g3")]
        await self.look(*processes)
        self.client.set("k:gateways:looked", self.client.time()[0] - OUTAGE - 0.1)
        self.client.zadd("k:gateways", {"g2": self.client.time()[0] + 1, "g3": 1})
        await self.look(*processes)
        assert all(LEASE - 1 < left <= LEASE for left in self.leases().values())
        assert len(self.leases()) == 3
        # Who does not come back in all that time is gone.
        self.is_gone("g3")
        await self.look(*processes)
        assert self.leases().keys() == {"g1", "g2"}

    async def test_the_clock_of_redis_is_set_back(self) -> None:
        """Who is gone is found as soon as otherwise, and nobody else is."""
        await self.process("g1")
        two = await self.process("g2")
        for name in ("g1", "g2"):
            self.client.zincrby("k:gateways", 3600, name)
        self.client.set("k:gateways:looked", self.client.time()[0] + 3600)
        await self.look(two)
        assert all(LEASE - 1 < left <= LEASE for left in self.leases().values())
        assert len(self.leases()) == 2
        self.is_gone("g1")
        await self.look(two)
        assert self.leases().keys() == {"g2"}

    def test_a_lease_outlives_an_outage(self) -> None:
        assert OUTAGE + 1.2 * RedisEndpoint.longest_wait < LEASE - RENEW_INTERVAL

    async def test_the_first_to_look_ever_takes_nobody_for_gone(self) -> None:
        process = await self.process("g1")
        self.client.zadd("k:gateways", {"long ago": 1})
        await self.look(process)
        assert self.leases().keys() == {"g1", "long ago"}
        self.is_gone("long ago")
        await self.look(process)
        assert self.leases().keys() == {"g1"}

    async def test_who_ends_in_order_needs_no_sweeping(self) -> None:
        process = await self.process("g1")
        await process.rooms.enter(("ann", "board", "g1.a"), 1)
        await process.rooms.leave([(("ann", "board", "g1.a"), "closed")])
        process.leases.release()
        await self.bus.call("PING")
        assert self.client.keys() == ["k:gateway:epoch"]

    async def test_what_who_ends_leaves_behind_is_left_to_the_others(self) -> None:
        process, other = await self.process("g1"), await self.process("g2")
        await process.rooms.enter(("ann", "board", "g1.a"), 1)
        await self.look(other)
        process.leases.release()
        await self.look(other)
        assert self.leases().keys() == {"g2"}
        assert not self.client.exists("k:room:board")

    async def test_what_redis_refuses_is_logged_once_until_it_goes_well(self) -> None:
        process = await self.process("g1")
        for _ in range(2):
            self.client.delete("k:gateways")
            self.client.set("k:gateways", "no leases")
            with capturedLogs() as logged:
                process.leases.renew()
                process.leases.release()
                await self.look(process)
            assert len(logged) == 1
            assert "WRONGTYPE" in formatEvent(logged[0])
            assert process.lost == 0
            self.client.delete("k:gateways")
            await self.look(process)


# Without Redis


def test_without_redis_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    bus = FakeBus(available=False)
    leases = Leases(
        bus, FakeRooms(), "g1", lambda: pytest.fail("no lease was lost"), Fleet(), Counters(), published=bytes
    )
    leases.renew()
    leases.look()
    leases.release()
    assert bus.calls == []
    assert not leases._looking
    bus.up()
    assert [call.command for call in bus.calls] == [RENEW]
    leases.renew()
    bus.down()


def test_one_look_at_a_time() -> None:
    bus = FakeBus()
    rooms = FakeRooms()
    leases = Leases(bus, rooms, "g1", lambda: None, Fleet(), Counters(), published=bytes)
    bus.calls.clear()
    buried: list[Any] = []
    burying: Deferred[None] = Deferred()
    rooms.bury = lambda entries: (buried.append(entries), burying)[1]  # type: ignore[func-returns-value,method-assign]
    for _ in range(3):
        leases.look()
    (look,) = bus.calls
    assert look.command == FIND_LOST
    look.reply.callback([b'["ann","board","g2.a"]'])
    assert buried == [[("ann", "board", "g2.a")]]
    leases.look()
    assert len(bus.calls) == 1
    burying.callback(None)
    bus.calls[1].reply.callback([])
    leases.look()
    assert len(bus.calls) == 3
