"""Reading streams as a consumer, against real redis-servers: nothing lost, nothing twice, nobody's entry stolen."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import fail
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase
from txredisapi import ResponseError
from zope.interface.verify import verifyObject

from kraftek.bus import RedisBus
from kraftek.bus.reading import BATCH, MOST_BYTES
from kraftek.contract.accounts import Accounts
from kraftek.contract.consumer_groups import FORGET
from kraftek.contract.interfaces import IReading
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Redis
from tests.support.fastpath import make_iteration
from tests.support.redis_server import oldest_redis_server, private_redis
from tests.support.waiting import until, until_logged


class Heard:
    """What came, and from where."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, bytes, int]] = []

    def __call__(self, entry_id: str, event: bytes, delivered: int) -> None:
        self.entries.append((entry_id, event, delivered))

    async def so_many(self, number: int) -> None:
        """Returns once so many have come, or more."""
        await until(lambda: len(self.entries) >= number, lambda: f"{number} events, but {self.entries}")

    async def just(self, *events: bytes) -> None:
        """Returns once these have come, and no others."""
        await until(lambda: self.events == list(events), lambda: f"{list(events)}, but {self.events}")

    @property
    def events(self) -> list[bytes]:
        return [event for _, event, _ in self.entries]

    @property
    def delivered(self) -> list[int]:
        return [delivered for _, _, delivered in self.entries]


class ReadingTest(TestCase):
    """With the redis-server that the gateway itself would choose."""

    timeout = 30
    binary: str | None = None

    def setUp(self) -> None:
        self.redis = private_redis(self, self.binary)
        self.heard = Heard()

    async def bus(self, accounts: Accounts | None = None, **config: Any) -> RedisBus:
        redis = Redis(url=self.redis.url, prefix="k:", **config)
        bus = RedisBus(reactor, redis, make_iteration(reactor), Counters(), accounts=accounts)
        bus.startService()
        self.addCleanup(lambda: bus.stopService() if bus.running else None)
        await until(lambda: bus.available, "a connection to Redis")
        return bus

    def add(self, stream: str, *events: str) -> list[str]:
        with self.redis.client(decode_responses=True) as client:
            return [client.xadd(f"k:{stream}", {"event": event}) for event in events]

    def pending(self, stream: str, group: str = "group") -> list[dict[str, Any]]:
        with self.redis.client(decode_responses=True) as client:
            return list(client.xpending_range(f"k:{stream}", group, "-", "+", 10_000))

    async def left_behind(self, events: tuple[str, ...], stream: str = "s") -> list[str]:
        """A consumer of the group was given these, and was never heard of again."""
        ids = self.add(stream, *events)
        with self.redis.client() as client:
            client.xgroup_create(f"k:{stream}", "group", "0")
            client.xreadgroup("group", "dead", {f"k:{stream}": ">"}, len(events))
        return ids

    async def test_entries_come_from_the_first_in_order_and_are_acknowledged(self) -> None:
        bus = await self.bus()
        ids = self.add("s", "1", "2", "3")
        reading = bus.read("group", "me", "s", self.heard)
        verifyObject(IReading, reading)
        await self.heard.so_many(3)
        ids += self.add("s", "4")
        await self.heard.so_many(4)
        assert self.heard.entries == [(entry_id, b"%d" % n, 1) for n, entry_id in enumerate(ids, 1)]
        assert [found["message_id"] for found in self.pending("s")] == ids
        for entry_id in ids[:3]:
            reading.ack(entry_id)
        await until(lambda: len(self.pending("s")) == 1, lambda: f"one that is pending, but {self.pending('s')}")
        reading.ack("0-1")
        await bus.call("PING")
        assert [found["message_id"] for found in self.pending("s")] == ids[3:]

    async def test_a_stream_that_is_not_there_yet(self) -> None:
        bus = await self.bus()
        bus.read("group", "me", "s", self.heard)
        await until(lambda: self.redis.call("EXISTS", "k:s"), "the stream")
        self.add("s", "1")
        await self.heard.just(b"1")

    async def test_large_entries_wait_in_redis(self) -> None:
        accounts = Accounts()
        bus = await self.bus(accounts)
        self.add("s", *["x" * 1_000_000] * 50)
        reading = bus.read("group", "me", "s", self.heard, window=200)
        await self.heard.so_many(MOST_BYTES // 1_000_000)
        assert len(self.heard.entries) <= MOST_BYTES // 1_000_000 + BATCH
        assert accounts.intake == 1_000_000 * len(self.heard.entries)
        finished = 0
        while finished < 50:
            await self.heard.so_many(finished + 1)
            for entry_id, _, _ in self.heard.entries[finished:]:
                reading.ack(entry_id)
                finished += 1
        assert accounts.intake == 0

    async def test_an_entry_without_an_event(self) -> None:
        bus = await self.bus()
        bus.read("group", "me", "s", self.heard)
        self.redis.call("XADD", "k:s", "*", "other", "x")
        await self.heard.just(b"")

    async def test_each_entry_goes_to_one_consumer(self) -> None:
        other, bus = Heard(), await self.bus()
        readings = [bus.read("group", "one", "s", self.heard), bus.read("group", "two", "s", other)]
        self.add("s", *map(str, range(500)))

        def all_of_them() -> bool:
            for reading, heard in zip(readings, (self.heard, other), strict=True):
                for entry_id, _, _ in heard.entries:
                    reading.ack(entry_id)
            return len(self.heard.entries) + len(other.entries) == 500

        await until(all_of_them, lambda: f"200 events, but {len(self.heard.entries)}")
        await until(lambda: not self.pending("s"), lambda: f"that nothing is pending, but {self.pending('s')}")
        assert sorted(map(int, self.heard.events + other.events)) == list(range(500))

    async def test_no_more_is_asked_for_than_may_be_open(self) -> None:
        bus = await self.bus()
        self.add("s", *map(str, range(20)))
        reading = bus.read("group", "me", "s", self.heard, window=3)
        for done in range(17):
            await self.heard.so_many(done + 3)
            assert len(self.pending("s")) == 3
            reading.ack(self.heard.entries[done][0])
        await self.heard.so_many(20)
        assert self.heard.events == [b"%d" % n for n in range(20)]

    async def test_what_the_dead_left_behind_is_taken_over(self) -> None:
        ids = await self.left_behind(("1", "2"))
        bus = await self.bus()
        reading = bus.read("group", "me", "s", self.heard, claim_after=0.2)
        self.add("s", "new")
        await self.heard.so_many(3)
        assert sorted(self.heard.entries)[:2] == [(ids[0], b"1", 2), (ids[1], b"2", 2)]
        assert b"new" in self.heard.events
        for entry_id, _, _ in self.heard.entries:
            reading.ack(entry_id)
        await until(lambda: not self.pending("s"), lambda: f"that nothing is pending, but {self.pending('s')}")

    async def test_what_lives_is_left_to_its_consumer_however_long_it_takes(self) -> None:
        bus, other = await self.bus(), Heard()
        slow = bus.read("group", "slow", "s", self.heard, claim_after=1.5)
        (entry_id,) = self.add("s", "slow")
        await until(lambda: self.heard.entries, "an event")
        thief = bus.read("group", "thief", "s", other, claim_after=1.5)
        looks: list[int] = []
        look = thief._look

        async def counted(link: Any, room: int) -> None:
            await look(link, room)
            looks.append(room)

        # Each look is a third of that time after the one before.
        self.patch(thief, "_look", counted)
        await until(lambda: len(looks) == 5, lambda: f"five looks, but {looks}")
        (found,) = self.pending("s")
        assert (found["message_id"], found["consumer"], found["times_delivered"]) == (entry_id, "slow", 1)
        slow.ack(entry_id)
        await until(lambda: not self.pending("s"), lambda: f"that nothing is pending, but {self.pending('s')}")
        assert other.entries == []

    async def test_an_entry_that_was_trimmed_away_is_nobodys(self) -> None:
        ids = await self.left_behind(("gone", "there"))
        self.redis.call("XDEL", "k:s", ids[0])
        bus = await self.bus()
        reading = bus.read("group", "me", "s", self.heard, claim_after=0.1)
        await until(lambda: self.heard.entries, "an event")
        assert self.heard.events == [b"there"]
        reading.ack(ids[1])
        await until(lambda: not self.pending("s"), lambda: f"that nothing is pending, but {self.pending('s')}")

    async def test_after_the_end_nothing_comes(self) -> None:
        bus = await self.bus()
        reading = bus.read("group", "me", "s", self.heard)
        (entry_id,) = self.add("s", "1")
        await until(lambda: self.heard.entries, "an event")
        await reading.end()
        self.add("s", "2")
        reading.ack(entry_id)
        await bus.call("PING")
        assert (self.heard.events, self.pending("s")) == ([b"1"], [])
        await reading.end()
        await bus.stopService()
        assert self.heard.events == [b"1"]

    async def test_it_goes_on_after_the_end_and_hands_out_nothing_twice(self) -> None:
        bus = await self.bus()
        reading = bus.read("group", "me", "s", self.heard)
        self.add("s", "1")
        await self.heard.so_many(1)
        await reading.end()
        self.add("s", "2")
        reading.go_on()
        await self.heard.so_many(2)
        reading.end()
        reading.go_on()  # before it has ended
        self.add("s", "3")
        await self.heard.so_many(3)
        assert self.heard.events == [b"1", b"2", b"3"]

    async def test_the_end_of_what_never_began(self) -> None:
        self.redis.kill()
        bus = RedisBus(reactor, Redis(url=self.redis.url), make_iteration(reactor), Counters())
        bus.startService()
        self.addCleanup(bus.stopService)
        await bus.read("group", "me", "s", self.heard).end()

    async def test_what_never_arrived_comes_first_after_a_lost_connection(self) -> None:
        bus = await self.bus()
        bus.read("group", "me", "s", self.heard)
        self.add("s", "1")
        await until(lambda: self.heard.entries, "an event")
        # Redis hands two out to this consumer, and nobody hears of it: the connection was lost on the way.
        self.add("s", "2", "3")
        with self.redis.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal")
        with self.redis.client() as client:
            client.xreadgroup("group", "me", {"k:s": ">"})
        self.add("s", "4")
        await self.heard.so_many(4)
        assert self.heard.events == [b"1", b"2", b"3", b"4"]

    async def test_nothing_comes_twice_over_many_lost_connections(self) -> None:
        bus = await self.bus()
        reading = bus.read("group", "me", "s", self.heard, window=50)
        for batch in range(10):
            self.add("s", *(f"{batch}.{n}" for n in range(20)))
            await self.heard.so_many(batch * 15 + 1)
            for entry_id, _, _ in self.heard.entries:
                reading.ack(entry_id)
            self.redis.call("CLIENT", "KILL", "TYPE", "normal")

        def all_of_them() -> bool:
            for entry_id, _, _ in self.heard.entries:
                reading.ack(entry_id)
            return len(self.heard.entries) >= 200

        await until(all_of_them, lambda: f"200 events, but {len(self.heard.entries)}")
        await until(lambda: not self.pending("s"), lambda: f"that nothing is pending, but {self.pending('s')}")
        assert self.heard.events == [b"%d.%d" % (batch, n) for batch in range(10) for n in range(20)]

    async def test_an_acknowledgement_that_was_lost_is_repeated(self) -> None:
        bus = await self.bus()
        reading = bus.read("group", "me", "s", self.heard)
        (entry_id,) = self.add("s", "1")
        await until(lambda: self.heard.entries, "an event")
        self.redis.freeze()
        reading.ack(entry_id)
        assert bus.commands is not None
        bus.commands.flush()
        bus.commands.transport.abortConnection()
        await until(lambda: not bus.available, "the loss of Redis")
        self.redis.thaw()
        await until(lambda: bus.available, "a connection to Redis")
        await until(lambda: not self.pending("s"), lambda: f"that nothing is pending, but {self.pending('s')}")
        assert self.heard.events == [b"1"]

    async def test_a_redis_that_forgot_everything(self) -> None:
        bus = await self.bus()
        reading = bus.read("group", "me", "s", self.heard)
        self.add("s", "1")
        await until(lambda: self.heard.entries, "an event")
        self.redis.call("FLUSHALL")
        reading.ack(self.heard.entries[0][0])
        self.add("s", "2")
        await self.heard.just(b"1", b"2")
        self.redis.kill()
        self.redis.start()
        self.add("s", "3")
        await self.heard.just(b"1", b"2", b"3")

    async def test_a_listener_that_fails_keeps_nothing_from_the_others(self) -> None:
        bus = await self.bus()

        def fails(entry_id: str, event: bytes, delivered: int) -> None:
            self.heard(entry_id, event, delivered)
            raise ZeroDivisionError

        bus.read("group", "me", "s", fails)
        self.add("s", "1", "2")
        await self.heard.so_many(2)
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 2

    async def test_what_is_no_stream_is_said_once_and_tried_again(self) -> None:
        bus = await self.bus()
        self.redis.call("SET", "k:s", "a string")
        with capturedLogs() as events:
            bus.read("group", "me", "s", self.heard)
            await until_logged(events, "The stream s is unavailable, trying again: WRONGTYPE")
            self.redis.call("DEL", "k:s")
            self.add("s", "1")
            await self.heard.just(b"1")
            await until_logged(events, "The stream s is back after")
        assert len(events) == 2, events
        assert bus.available

    async def test_a_frozen_redis_is_noticed(self) -> None:
        bus = await self.bus(ping_interval=0.05, ping_timeout=0.2)
        reading = bus.read("group", "me", "s", self.heard)
        await until(lambda: reading.connection is not None, "a connection for reading")
        self.redis.freeze()
        await until(lambda: reading.connection is None, "the loss of the connection for reading")
        self.redis.thaw()
        self.add("s", "1")
        await until(lambda: self.heard.entries, "an event")

    async def test_a_quiet_stream_is_no_dead_connection(self) -> None:
        bus = await self.bus(ping_interval=0.05, ping_timeout=0.2)
        reading = bus.read("group", "me", "s", self.heard)
        await until(lambda: reading.connection is not None, "a connection for reading")
        link = reading.connection
        assert link is not None
        pings: list[object] = []
        answered = link._answered

        def counted(answer: object) -> None:
            pings.append(answer)
            answered(answer)

        self.patch(link, "_answered", counted)
        await until(lambda: len(pings) == 10, lambda: f"ten answers to pings, but {len(pings)}")
        assert reading.connection is link

    async def test_without_redis_for_commands_nothing_is_asked_for(self) -> None:
        bus = await self.bus()
        reading = bus.read("group", "me", "s", self.heard)
        await until(lambda: reading.connection is not None, "a connection for reading")
        self.patch(bus, "available", False)
        await until(lambda: reading._sleep is not None, "that it waits before it reads again")
        self.add("s", "1")
        assert self.heard.entries == []
        self.patch(bus, "available", True)
        reading.bus_up()
        await until(lambda: self.heard.entries, "an event")

    async def test_what_was_too_much_to_acknowledge_is_acknowledged_later(self) -> None:
        bus = await self.bus()
        reading = bus.read("group", "me", "s", self.heard, window=1, claim_after=0.2)
        self.add("s", "1", "2")
        await self.heard.so_many(1)
        self.patch(bus, "_in_flight", 0)
        reading.ack(self.heard.entries[0][0])
        self.patch(bus, "_in_flight", 100)
        await self.heard.so_many(2)
        assert self.heard.events == [b"1", b"2"]

    async def test_what_redis_refuses_to_acknowledge_comes_again_and_is_logged_once(self) -> None:
        bus = await self.bus()
        reading = bus.read("group", "me", "s", self.heard, claim_after=0.2)
        refuses = ResponseError("NOPERM this user has no permissions to run the 'evalsha' command")
        call = bus.call
        self.patch(bus, "call", lambda *_: fail(refuses))
        self.add("s", "1", "2")
        await self.heard.so_many(2)
        for entry_id, _, _ in self.heard.entries:
            reading.ack(entry_id)
        await self.heard.so_many(4)
        assert self.heard.delivered == [1, 1, 2, 2]
        assert len(self.flushLoggedErrors(ResponseError)) == 1
        self.patch(bus, "call", call)
        for entry_id, _, _ in self.heard.entries[2:]:
            reading.ack(entry_id)
        await until(lambda: not self.pending("s"), lambda: f"that nothing is pending, but {self.pending('s')}")

    async def test_consumers_that_are_gone_are_forgotten(self) -> None:
        bus = await self.bus()
        await self.left_behind(("1",))
        with self.redis.client() as client:
            client.xgroup_createconsumer("k:s", "group", "idle")
            forget = FORGET.source, 1, "k:s", "group"
            client.eval(*forget, "60000")
            assert {found["name"] for found in client.xinfo_consumers("k:s", "group")} == {b"dead", b"idle"}
            await until(
                lambda: all(found["idle"] > 1 for found in client.xinfo_consumers("k:s", "group")),
                lambda: f"idle consumers, but {client.xinfo_consumers('k:s', 'group')}",
            )
            client.eval(*forget, "0")
            assert {found["name"] for found in client.xinfo_consumers("k:s", "group")} == {b"dead"}
        bus.read("group", "me", "s", self.heard, claim_after=0.05)
        await self.heard.just(b"1")

    async def test_stopping_leaves_nothing_behind(self) -> None:
        bus = await self.bus()
        reading = bus.read("group", "me", "s", self.heard)
        self.add("s", "1")
        await until(lambda: self.heard.entries, "an event")
        reading.ack(self.heard.entries[0][0])
        await bus.stopService()
        assert self.pending("s") == []
        await until(
            lambda: self.redis.call("CLIENT", "LIST").count(b"\n") <= 1,
            lambda: f"our connection alone, but {self.redis.call('CLIENT', 'LIST')}",
        )


if oldest := oldest_redis_server():

    class ReadingOnRedis62Test(ReadingTest):
        """The same with the oldest Redis that is supported."""

        binary = oldest
