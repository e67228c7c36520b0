"""The bus against real redis-servers that are stopped, frozen, restarted, and used by others at the same time."""

from __future__ import annotations

import re
import socket
from itertools import cycle
from typing import Any

import pytest
import redis
from twisted.internet import defer, reactor
from twisted.internet.defer import CancelledError
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectionLost
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from txredisapi import ResponseError
from zope.interface import implementer
from zope.interface.verify import verifyObject

from kraftek.bus import RedisBus, connections, standing
from kraftek.bus.resp import command
from kraftek.contract.errors import NotPublished
from kraftek.contract.interfaces import IBus, IBusListener, Undelivered
from kraftek.contract.lua import ForEach, Script, TrackingScript
from kraftek.contract.metrics import Counters
from kraftek.contract.names import EPOCH
from kraftek.contract.settings import Redis
from tests.support.fastpath import make_iteration
from tests.support.ports import free_port
from tests.support.redis_server import PrivateRedis, info_reply, oldest_redis_server, private_redis
from tests.support.waiting import until, until_logged

Keys = list[str] | None

READ = TrackingScript("return redis.call('EXISTS', unpack(KEYS))")


@implementer(IBusListener)
class Told:
    def __init__(self) -> None:
        self.events: list[str] = []

    def bus_up(self) -> None:
        self.events.append("up")

    def bus_down(self) -> None:
        self.events.append("down")

    def epoch_changed(self) -> None:
        self.events.append("epoch")


def apart(messages: list[tuple[Any, ...]]) -> tuple[list[tuple[Any, ...]], tuple[bytes, ...]]:
    """Of messages the values, the body, which is their last but one, and the receipt."""
    *values, bodies, _ = zip(*messages, strict=True)
    return values, bodies


class RedisBusTest(TestCase):
    """With the redis-server that the gateway itself would choose."""

    timeout = 30
    binary: str | None = None

    def setUp(self) -> None:
        self.redis = private_redis(self, self.binary)
        self.counters = Counters()
        self.told = Told()

    def make(self, **config: Any) -> RedisBus:
        bus = RedisBus(reactor, Redis(**{"url": self.redis.url, **config}), make_iteration(reactor), self.counters)
        bus.add_listener(self.told)
        return bus

    async def start(self, bus: RedisBus) -> RedisBus:
        bus.startService()
        self.stop_later(bus)
        await until(lambda: bus.available, "a connection to Redis")
        return bus

    def stop_later(self, bus: RedisBus) -> None:
        self.addCleanup(lambda: bus.stopService() if bus.running else None)

    async def up(self, **config: Any) -> RedisBus:
        return await self.start(self.make(**config))

    def deafen(self, bus: RedisBus, other: Any) -> None:
        """Redis closes the connection that listens."""
        assert bus.subscriber is not None
        other.execute_command("CLIENT", "KILL", "ID", bus.subscriber.id)

    # Publishing and calling

    async def test_keeps_its_interface(self) -> None:
        bus = self.make()
        verifyObject(IBus, bus)
        assert not bus.available
        await self.start(bus)
        assert bus.available
        assert self.counters.redis_connects == 1

    async def test_nobody_has_to_wait_for_the_end_of_a_subscription(self) -> None:
        bus = await self.up()
        bus.subscribe("c", lambda _: None)
        await bus.settled()
        self.patch(bus.subscriber, "write", lambda _: None)  # as with a Redis that hangs
        ending = bus.unsubscribe("c").addTimeout(0.01, reactor)
        await self.assertFailure(ending, defer.TimeoutError)
        lost = bus.unsubscribe("c")
        bus.drop("the test")
        await lost
        assert not bus._channels

    async def test_odd_answers_while_it_connects_are_logged_and_it_tries_again(self) -> None:
        bus, check = self.make(), standing.CHECK
        self.patch(standing, "CHECK", Script("return {'e1', false, nil, 'master'}"))
        with capturedLogs() as events:
            bus.startService()
            self.stop_later(bus)
            await until_logged(events, "is unavailable, trying again: it gives odd answers: not enough values")
            assert not bus.available
            assert "odd answers" in str(bus.fault)
            self.patch(standing, "CHECK", check)
            await until(lambda: bus.available, "a connection to Redis")
        assert sum("odd answers" in (formatEvent(event) or "") for event in events) == 1

    async def test_receipts_say_how_many_heard_it_in_order(self) -> None:
        bus = await self.up()
        heard: list[bytes] = []
        bus.subscribe("one", heard.append)
        await bus.settled()
        receipts: list[int] = []
        with self.redis.client().pubsub() as other:
            other.subscribe("one", "two")
            other.get_message(timeout=5)
            other.get_message(timeout=5)
            for channel in ("one", "two", "none") * 50:
                bus.publish(channel, channel.encode(), receipts.append)
            await bus.call("PING")
            assert receipts == [2, 1, 0] * 50
            await bus.settled()
            assert heard == [b"one"] * 50
            assert other.get_message(timeout=5)["data"] == b"one"
            assert other.get_message(timeout=5)["data"] == b"two"

    async def test_a_message_that_nobody_waits_for_any_more_is_ignored(self) -> None:
        """Whoever unsubscribes does not wait for ever; the answer of Redis may come later than more messages."""
        bus = await self.up()
        heard: list[bytes] = []
        for channel in ("early", "late"):
            bus.subscribe(channel, heard.append)
        await bus.settled()
        subscriber, name = bus.subscriber, bus.channel_name("early").encode()
        assert subscriber is not None
        ending = bus.unsubscribe("early").addErrback(lambda failure: failure.trap(CancelledError))
        ending.cancel()
        subscriber.hand_out([[b"message", name, b"too late"]])
        bus.publish("late", b"in time", lambda _: None)
        await until(lambda: heard, "a message")
        assert heard == [b"in time"]
        assert bus.subscriber is subscriber

    async def test_any_bytes_go_through(self) -> None:
        bus = await self.up()
        heard: list[bytes] = []
        bus.subscribe("bytes", heard.append)
        await bus.settled()
        bodies = [b"", b"\r\n$3\r\n", bytes(range(256)), "ё✂".encode(), bytes(range(256)) * 8192]
        for body in bodies:
            bus.publish("bytes", body, lambda _: None)
            await bus.call("RPUSH", ["bytes"], [body])
        await bus.settled()
        assert heard == bodies
        assert await bus.call("LRANGE", ["bytes"], [0, -1]) == bodies

    async def test_a_turn_is_one_write_however_much_is_sent(self) -> None:
        bus = await self.up()
        assert bus.commands is not None
        writes: list[int] = []
        transport = bus.commands.transport

        def write(data: bytes) -> None:
            writes.append(len(data))
            transport.write(data)

        self.patch(bus.commands, "write", write)
        receipts: list[int] = []
        for _ in range(1000):
            bus.publish("nobody", b"x" * 100, receipts.append)
        await bus.call("PING")
        assert receipts == [0] * 1000
        assert len(writes) == 1

    async def test_calls_fire_with_what_redis_says(self) -> None:
        bus = await self.up()
        assert await bus.call("SET", ["key"], ["ё"]) == b"OK"
        assert await bus.call("GET", ["key"]) == "ё".encode()
        assert await bus.call("EXISTS", ["key", "none"]) == 1
        assert await bus.call("GET", ["none"]) is None
        assert await bus.call("MGET", ["key", "none"]) == ["ё".encode(), None]
        assert await bus.call("SET", ["number"], [1.5, "PX", 10000]) == b"OK"
        assert await bus.call("INCRBYFLOAT", ["number"], [1]) == b"2.5"
        error = await self.assertFailure(bus.call("INCR", ["key"]), ResponseError)
        assert "not an integer" in str(error)

    async def test_calls_and_publishes_keep_their_order(self) -> None:
        bus = await self.up()
        order: list[object] = []
        bus.publish("c", b"1", lambda _: order.append("published 1"))
        bus.call("INCR", ["n"]).addCallback(order.append)
        bus.call(Script("return redis.call('INCR', KEYS[1])"), ["n"]).addCallback(order.append)
        bus.publish("c", b"2", lambda _: order.append("published 2"))
        bus.call("INCR", ["n"]).addCallback(order.append)
        await until(lambda: len(order) == 5, lambda: f"five replies, but {order}")
        assert order == ["published 1", 1, 2, "published 2", 3]

    async def test_what_is_in_flight_is_bounded(self) -> None:
        bus = await self.up(in_flight=3)
        receipts: list[int] = []
        for _ in range(2):
            bus.publish("c", b"", receipts.append)
        last = bus.call("PING")
        with pytest.raises(NotPublished):
            bus.publish("c", b"", receipts.append)
        await self.assertFailure(bus.call("PING"), NotPublished)
        await last
        assert receipts == [0, 0]
        bus.publish("c", b"", receipts.append)
        await bus.call("PING")
        assert receipts == [0, 0, 0]

    async def test_bytes_in_flight_are_bounded(self) -> None:
        bus = await self.up(in_flight_bytes=3000)
        receipts: list[int] = []
        for _ in range(3):
            bus.publish("c", b"x" * 1000, receipts.append)
        with pytest.raises(NotPublished, match="or 3000 bytes"):
            bus.publish("c", b"", receipts.append)
        await self.assertFailure(bus.call("PING"), NotPublished)
        with pytest.raises(NotPublished):
            bus.run(ForEach.make("key", "", apart, "return 1"), ("k", b"", receipts.append))
        await until(lambda: receipts == [0, 0, 0], "the receipts")
        bus.publish("c", b"x" * 10_000, receipts.append)  # one is always sent
        with pytest.raises(NotPublished):
            bus.publish("c", b"", receipts.append)
        await until(lambda: len(receipts) == 4, "the receipts")
        assert await bus.call("PING") == b"PONG"

    async def test_a_message_that_is_too_large_for_a_subscriber_stops_no_event(self) -> None:
        """Redis closes the connection of each subscriber of it, when it has gone round."""
        bus = await self.up()
        heard: list[bytes] = []
        receipts: list[int] = []
        bus.subscribe("c", heard.append)
        await bus.settled()
        with self.redis.client() as other:
            other.config_set("client-output-buffer-limit", "pubsub 1mb 1mb 10")
            assert other.publish("c", b"x" * 20_000_000) == 1
            assert other.publish("c", "lost") in (0, 1)
        sent = 0
        while self.counters.redis_connects < 2:
            await until(lambda sent=sent: len(receipts) == sent, "the receipt")  # type: ignore[misc]
            bus.publish("other", b"event", receipts.append)
            sent += 1
        await bus.call("PING")
        assert receipts == [0] * sent
        assert self.told.events == ["up", "down", "up"]
        with self.redis.client() as other:
            other.publish("c", "heard")
        await bus.settled()
        assert heard == [b"heard"]

    async def test_who_does_not_hear_for_long_does_not_publish(self) -> None:
        bus = await self.up(ping_interval=0.3, ping_timeout=1.0)
        receipts: list[int] = []
        with self.redis.client() as other:
            other.ping()
            most = other.config_get("maxclients")["maxclients"]
            other.config_set("maxclients", 1)
            self.deafen(bus, other)
            await until(lambda: not bus.available, "the loss")
            bus.publish("c", b"", receipts.append)
            await until(lambda: bus._sender is None, "the end of patience")
            with pytest.raises(NotPublished, match="unavailable"):
                bus.publish("c", b"", receipts.append)
            assert receipts == [0]
            other.config_set("maxclients", most)
        await until(lambda: bus.available, "the connection")
        bus.publish("c", b"", receipts.append)
        await bus.call("PING")
        assert receipts == [0, 0]
        assert self.told.events == ["up", "down", "up"]

    async def test_the_loss_of_both_connections_is_the_end_of_publishing(self) -> None:
        bus = await self.up()
        with self.redis.client() as other:
            self.deafen(bus, other)
        await until(lambda: not bus.available, "the loss")
        self.redis.kill()
        await until(lambda: bus._sender is None, "the other loss")
        with pytest.raises(NotPublished):
            bus.publish("c", b"", lambda _: None)
        self.redis.start()
        await until(lambda: bus.available, "the connection")
        assert bus._deafness._alarm is None

    async def test_many_channels_are_no_leak(self) -> None:
        bus = await self.up()
        for number in range(5000):
            bus.publish(f"channel {number}", b"", lambda _: None)
        assert len(bus._heads) < 2000
        await bus.call("PING")

    async def test_without_redis_nothing_is_promised(self) -> None:
        self.redis.kill()
        bus = self.make()
        with pytest.raises(NotPublished):
            bus.publish("c", b"", self.fail)
        await self.assertFailure(bus.call("PING"), NotPublished)
        await self.assertFailure(bus.settled(), NotPublished)
        bus.startService()
        self.stop_later(bus)
        with pytest.raises(NotPublished):
            bus.publish("c", b"", self.fail)
        self.redis.start()
        await until(lambda: bus.available, "a connection to Redis")
        assert self.told.events == ["up"]

    # Names

    async def test_prefix_and_database(self) -> None:
        bus = self.make(url=self.redis.url.replace("db=0", "db=5"), prefix="kraftek:")
        changed: list[Keys] = []
        heard: list[bytes] = []
        bus.track("access:", changed.append)
        bus.subscribe("c", heard.append)
        await self.start(bus)
        assert bus.channel_name("c") == "kraftek:c"
        await bus.call("SET", ["key"], ["value"])
        await bus.call(Script("redis.call('SET', KEYS[1], ARGV[1])"), ["scripted"], ["value"])
        await bus.call(READ, ["access:1", "other"])
        with self.redis.client(db=5) as other:
            assert sorted(other.keys()) == [b"kraftek:gateway:epoch", b"kraftek:key", b"kraftek:scripted"]
            assert other.publish("c", "without") == 0
            assert other.publish("kraftek:c", "with") == 1
            other.mset({"access:1": "", "kraftek:access:1": "", "kraftek:other": ""})
        await bus.settled()
        assert heard == [b"with"]
        assert changed == [["access:1"]]
        receipts: list[int] = []
        bus.publish("c", b"own", receipts.append)
        await bus.call("PING")
        assert receipts == [1]

    # Subscribing and tracking

    async def test_subscribing_at_any_time(self) -> None:
        bus = self.make()
        heard: list[tuple[str, bytes]] = []
        bus.subscribe("early", lambda body: heard.append(("early", body)))
        await self.start(bus)
        bus.subscribe("late", lambda body: heard.append(("late", body)))
        bus.subscribe("late", lambda body: heard.append(("as late", body)))
        await bus.settled()
        self.redis.call("PUBLISH", "early", "1")
        self.redis.call("PUBLISH", "late", "2")
        await bus.settled()
        assert heard == [("early", b"1"), ("late", b"2"), ("as late", b"2")]

    async def test_a_listener_that_fails_takes_nothing_from_the_others(self) -> None:
        bus = await self.up()
        heard: list[bytes] = []

        def fails(body: bytes) -> None:
            raise ZeroDivisionError(body)

        bus.subscribe("c", fails)
        bus.subscribe("c", heard.append)
        await bus.settled()
        self.redis.call("PUBLISH", "c", "1")
        self.redis.call("PUBLISH", "c", "2")
        await bus.settled()
        assert heard == [b"1", b"2"]
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 2

    async def test_a_receipt_that_fails_takes_nothing_from_the_others(self) -> None:
        bus = await self.up()
        receipts: list[int] = []

        def fails(_: int) -> None:
            raise ZeroDivisionError

        bus.publish("c", b"", fails)
        bus.publish("c", b"", receipts.append)
        await bus.call("PING")
        assert receipts == [0]
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1

    async def test_tells_which_tracked_keys_others_changed(self) -> None:
        bus = self.make()
        access: list[Keys] = []
        leases: list[Keys] = []
        bus.track("access:", access.append)
        bus.track("lease:", leases.append)
        await self.start(bus)

        await bus.call(READ, ["access:a", "access:h", "access:none", "lease:1", "other:a"])
        self.redis.call("SET", "access:a", "1")
        self.redis.call("HSET", "access:h", "f", "1")
        self.redis.call("SET", "access:unread", "1")
        self.redis.call("SET", "other:a", "1")
        self.redis.call("DEL", "access:none", "access:a")  # the one has changed before, the other does not
        await bus.settled()
        assert access == [["access:a"], ["access:h"]]
        await bus.call(READ, ["access:h"])
        self.redis.call("DEL", "access:h")
        await bus.settled()
        assert access[2:] == [["access:h"]]
        assert leases == []

        self.redis.call("SET", "lease:1", "", "PX", "300")
        await bus.call(READ, ["lease:1"])
        await until(lambda: len(leases) == 2, lambda: f"two leases, but {leases}")
        assert leases == [["lease:1"], ["lease:1"]]
        self.redis.call("FLUSHALL")
        await bus.settled()
        assert access[-1] is None
        assert leases[-1] is None

    async def test_only_scripts_that_track_do(self) -> None:
        bus = self.make()
        changed: list[Keys] = []
        bus.track("access:", changed.append)
        await self.start(bus)
        await bus.call("GET", ["access:1"])
        await bus.call(READ, ["access:2"])
        await bus.call(Script("return redis.call('GET', KEYS[1])"), ["access:3"])
        for number in "123":
            self.redis.call("SET", f"access:{number}", "x")
        await bus.settled()
        assert changed == [["access:2"]]

    async def test_own_changes_are_not_told_and_end_the_tracking_until_the_key_is_read(self) -> None:
        """Who caches what its own scripts write relies on this, on every version of Redis."""
        bus = self.make()
        changed: list[Keys] = []
        bus.track("access:", changed.append)
        await self.start(bus)
        keys = ["access:1", "access:2"]
        for read_again in (False, True):
            again = " redis.call('EXISTS', KEYS[1], KEYS[2])" if read_again else ""
            write = "redis.call('EXISTS', KEYS[1], KEYS[2]) redis.call('SET', KEYS[1], 1) redis.call('SET', KEYS[2], 1)"
            await bus.call(READ, keys)
            await bus.call(TrackingScript(write + again), keys)
            await bus.call("HSET", ["access:h"], ["f", "x"])
            await bus.settled()
            assert changed == []
            self.redis.call("MSET", "access:1", "x", "access:2", "x")
            await bus.settled()
            assert changed == ([["access:1"], ["access:2"]] if read_again else [])

    async def test_a_script_that_was_forgotten_tracks_all_the_same(self) -> None:
        bus = self.make()
        changed: list[Keys] = []
        bus.track("access:", changed.append)
        await self.start(bus)
        await bus.call(READ, ["access:0"])
        self.redis.call("SCRIPT", "FLUSH")
        await bus.call(READ, ["access:1"])
        self.redis.call("SET", "access:1", "x")
        await bus.settled()
        assert changed == [["access:1"]]

    # Scripts

    async def test_scripts_are_learnt_and_learnt_again(self) -> None:
        bus = await self.up()
        script = Script("return {KEYS[1], ARGV[1], ARGV[2]}")
        for _ in range(2):
            assert await bus.call(script, ["k"], ["a", 2]) == [b"k", b"a", b"2"]
        self.redis.call("SCRIPT", "FLUSH")
        assert await bus.call(script, ["k"], ["a", 2]) == [b"k", b"a", b"2"]
        assert self.redis.call("SCRIPT", "LOAD", script.source) == script.digest.encode()

    async def test_a_wrong_script_fails(self) -> None:
        bus = await self.up()
        for _ in range(2):
            await self.assertFailure(bus.call(Script("this is not Lua")), ResponseError)

    async def test_a_script_for_many_messages(self) -> None:
        bus = await self.up(prefix="us:")
        put = ForEach.make(
            "key, other",
            "name, number",
            apart,
            """
if name == 'none' then return end
if name == 'fails' then error('on purpose') end
redis.call('RPUSH', key, body)
redis.call('RPUSH', other, name, number)
return name == 'text' and body or redis.call('LLEN', key)
""",
        )
        bodies = b"\x00\xff\r\n", b"", "\N{SNOWMAN}".encode() * 30_000, b"x" * 70_000
        names = "a", "a" * 40, "\N{SNOWMAN}" * 300, "a" * 70_000
        numbers = 0, 127, 4_294_967_295, 1 << 40
        got: list[Any] = []
        told = got.append
        bus.run(put, ("k", "o", "none", 1, b"not put", told))
        for each in zip(names, numbers, bodies, strict=True):
            bus.run(put, ("k", "o", *each, told))
        bus.run(put, ("k", "o", "fails", 1, b"not put", told))
        bus.run(put, ("k", "o", "text", 1, b"put", told))
        bus.run_all(put, [("k", "o", "none", 1, b"not put", told), ("l", "o", "all", 1, b"put", told)])
        bus.run(put, ("l", "o", "last", 1, b"put", told))
        await bus.call("PING")
        assert got == [1, 2, 3, 4, Undelivered.REFUSED, b"put", 1, 2]
        assert self.redis.call("LRANGE", "us:k", "0", "-1") == [*bodies, b"put"]
        pairs = zip(names, map(str, numbers), strict=True)
        assert self.redis.call("LRANGE", "us:o", "0", "7") == [text.encode() for pair in pairs for text in pair]

    async def test_messages_in_a_row_for_one_script_are_one_command(self) -> None:
        bus = await self.up(in_flight=250)
        put = ForEach.make("key", "", apart, "return redis.call('RPUSH', key, body)")
        got: list[Any] = []
        for _ in range(250):
            bus.run(put, ("k", b"", got.append))
        with pytest.raises(NotPublished):
            bus.run(put, ("k", b"", got.append))
        await until(lambda: len(got) == 250, lambda: f"250 messages, but {len(got)}")
        bus.run(put, ("k", b"", got.append))
        await bus.call("PING")
        assert got == [*range(1, 252)]
        stats: Any = self.redis.client().info("commandstats")
        assert [stats[f"cmdstat_{name}"]["calls"] for name in ("eval", "evalsha", "rpush")] == [2, 3, 251]

    # Coming and going

    async def test_a_listener_is_told_at_once_when_redis_is_there(self) -> None:
        bus = await self.up()
        late = Told()
        bus.add_listener(late)
        assert late.events == ["up"]

    async def test_a_listener_that_fails_keeps_nothing_from_the_others(self) -> None:
        @implementer(IBusListener)
        class Fails:
            def bus_up(self) -> None:
                raise ZeroDivisionError

            def bus_down(self) -> None:
                raise ZeroDivisionError

            def epoch_changed(self) -> None:
                raise ZeroDivisionError

        bus = self.make()
        bus.add_listener(Fails())
        later = Told()
        bus.add_listener(later)
        await self.start(bus)
        assert later.events == ["up"]
        await bus.stopService()
        assert later.events == ["up", "down"]
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 2

    async def test_redis_ends_and_is_back(self) -> None:
        bus = self.make()
        heard: list[bytes] = []
        changed: list[Keys] = []
        bus.subscribe("c", heard.append)
        bus.track("access:", changed.append)
        await self.start(bus)
        script = Script("return redis.call('INCR', KEYS[1])")
        await bus.call(script, ["n"])
        bus.subscribe("late", heard.append)

        # Frozen, so that what is in flight stays there.
        self.redis.freeze()
        receipts: list[int] = []
        bus.publish("c", b"lost", receipts.append)
        call = bus.call("GET", ["n"])
        settled = bus.settled()
        bus.publish("c", b"lost", receipts.append)
        self.redis.kill()
        await self.assertFailure(call, NotPublished)
        await self.assertFailure(settled, NotPublished)
        assert receipts == [-1, -1]
        assert self.told.events == ["up", "down"]
        with pytest.raises(NotPublished):
            bus.publish("c", b"", self.fail)

        self.redis.start()
        await until(lambda: bus.available, "a connection to Redis")
        assert self.told.events == ["up", "down", "up"]
        assert self.counters.redis_connects == 2
        assert await bus.call(script, ["n"]) == 1
        self.redis.call("PUBLISH", "c", "1")
        self.redis.call("PUBLISH", "late", "2")
        await bus.call(READ, ["access:1"])
        self.redis.call("SET", "access:1", "x")
        await bus.settled()
        assert heard == [b"1", b"2"]
        assert changed == [["access:1"]]
        bus.publish("c", b"", receipts.append)
        await bus.call("PING")
        assert receipts == [-1, -1, 1]

    async def one_is_killed(self, kind: str) -> None:
        """Another client kills the bus's connections of one kind."""
        bus = self.make()
        heard: list[bytes] = []
        changed: list[Keys] = []
        bus.subscribe("c", heard.append)
        bus.track("access:", changed.append)
        await self.start(bus)
        for times in range(1, 4):
            before = bus.commands, bus.subscriber
            self.redis.call("CLIENT", "KILL", "TYPE", kind)
            await until(lambda: not bus.available, "the loss of Redis")
            await until(lambda: bus.available, "a connection to Redis")
            assert self.told.events == ["up", *(["down", "up"] * times)]
            kept = [link is known for link, known in zip((bus.commands, bus.subscriber), before, strict=True)]
            assert kept == [kind == "pubsub", kind == "normal"]
            self.redis.call("PUBLISH", "c", "1")
            await bus.call(READ, ["access:1", "access:own"])
            self.redis.call("SET", "access:1", "x")
            await bus.call("SET", ["access:own"], ["x"])
            await bus.settled()
            assert heard == [b"1"] * times
            assert changed == [["access:1"]] * times

    async def test_a_lost_subscriber_is_a_lost_bus(self) -> None:
        await self.one_is_killed("pubsub")

    async def test_a_lost_publisher_is_a_lost_bus(self) -> None:
        await self.one_is_killed("normal")

    async def test_a_frozen_redis_is_noticed(self) -> None:
        bus = await self.up(ping_interval=0.05, ping_timeout=1.0)
        receipts: list[int] = []
        self.redis.freeze()
        bus.publish("c", b"", receipts.append)
        await until(lambda: not bus.available, "the loss of Redis")
        await until(lambda: receipts == [-1], lambda: f"the receipt -1, but {receipts}")
        assert self.told.events == ["up", "down"]
        self.redis.thaw()
        await until(lambda: bus.available, "a connection to Redis")
        assert self.told.events == ["up", "down", "up"]

    async def test_a_redis_that_is_frozen_from_the_beginning_is_left_and_tried_again(self) -> None:
        self.redis.freeze()
        bus = self.make(ping_timeout=0.1)
        with capturedLogs() as events:
            bus.startService()
            self.stop_later(bus)
            await until_logged(events, "no answer")
        self.redis.thaw()
        await until(lambda: bus.available, "a connection to Redis")
        assert self.told.events == ["up"]

    async def test_stopping_writes_what_was_sent_and_leaves_nothing_behind(self) -> None:
        bus = await self.up()
        bus.publish("c", b"", lambda _: None)
        bus.call("SET", ["farewell"], ["x"]).addErrback(lambda failure: failure.trap(NotPublished))
        await bus.stopService()
        assert self.redis.call("GET", "farewell") == b"x"
        assert self.told.events == ["up", "down"]
        assert not bus.available
        await until(
            lambda: self.redis.call("CLIENT", "LIST").count(b"\n") <= 1,
            lambda: f"our connection alone, but {self.redis.call('CLIENT', 'LIST')}",
        )

    async def test_stopping_while_redis_is_away(self) -> None:
        self.redis.kill()
        bus = self.make()
        with capturedLogs() as events:
            bus.startService()
            await until_logged(events, "is unavailable")
            await bus.stopService()
        assert self.told.events == []
        assert len(events) == 1, events

    async def test_stopping_while_redis_is_frozen(self) -> None:
        bus = await self.up(ping_interval=0.05, ping_timeout=0.1)
        self.redis.freeze()
        # More than the socket's buffer takes, so that there is something left to write.
        lost = bus.call("SET", ["key"], [bytes(10_000_000)])
        await bus.stopService()
        await self.assertFailure(lost, NotPublished)

    # The right server

    async def test_a_server_that_becomes_a_replica_is_left_although_nobody_writes(self) -> None:
        other = await self.another()
        bus = self.make()
        self.patch(connections, "CHECK_INTERVAL", 0.05)
        await self.start(bus)
        with capturedLogs() as events:
            self.redis.call("REPLICAOF", "127.0.0.1", other.port)
            await until(lambda: not bus.available, "the loss of Redis")
            await until_logged(events, "unavailable, trying again: it is no primary any more")
            self.redis.call("CONFIG", "SET", "replica-read-only", "no")
            await until(lambda: "it is a replica of 127.0.0.1:" in str(bus.fault), lambda: f"why not, but {bus.fault}")
            assert not bus.available
            self.redis.call("REPLICAOF", "NO", "ONE")
            await until(lambda: bus.available, "a connection to Redis")
        assert bus.fault is None

    async def another(self) -> PrivateRedis:
        """Another redis-server, at a port."""
        other = PrivateRedis(self.binary)
        self.addCleanup(other.close)
        other.port = str(free_port())
        other.start("--port", other.port)
        return other

    async def demoted(self) -> RedisBus:
        """A bus whose server is a replica now, which it has not noticed yet."""
        bus = await self.up(ping_interval=60.0)
        self.redis.call("REPLICAOF", "127.0.0.1", str(free_port()))
        assert bus.available
        return bus

    async def left(self, bus: RedisBus) -> None:
        """Return when the bus has given up its server, with all connections."""
        await until(lambda: not bus.available, "the loss of Redis")
        assert "READONLY" in str(bus.fault)
        await until(lambda: bus.subscriber is None, "the loss of the other connection")
        await bus.stopService()
        self.redis.call("REPLICAOF", "NO", "ONE")

    async def test_a_write_that_a_replica_refuses_shows_it_at_once(self) -> None:
        self.patch(connections, "CHECK_INTERVAL", 60.0)
        write = Script("redis.call('SET', KEYS[1], 'x')")
        write_each = ForEach.make("key", "", apart, "redis.call('SET', key, body)")

        bus = await self.demoted()
        await self.assertFailure(bus.call("SET", ["k"], ["x"]), ResponseError)
        await self.left(bus)
        bus = await self.demoted()
        await self.assertFailure(bus.call(write, ["k"]), ResponseError)
        await self.left(bus)
        bus = await self.demoted()
        receipts: list[int] = []
        bus.run(write_each, ("k", b"x", receipts.append))
        await self.left(bus)
        assert receipts == [Undelivered.REFUSED]

    async def test_connections_to_two_servers_are_all_dropped(self) -> None:
        other = await self.another()
        bus = self.make()
        reading = bus.read("group", "me", "stream", lambda *_: None)
        with capturedLogs() as events:
            # The name leads to each in turn.
            servers = cycle((UNIXClientEndpoint(reactor, other.path), UNIXClientEndpoint(reactor, self.redis.path)))
            self.patch(bus.endpoint, "connect", lambda factory: next(servers).connect(factory))
            bus.startService()
            self.stop_later(bus)
            await until_logged(events, "its connections lead to different servers")
            assert not bus.available
            self.patch(bus.endpoint, "connect", UNIXClientEndpoint(reactor, self.redis.path).connect)
            await until(lambda: bus.available and reading.connection is not None, "a connection to Redis")

    async def test_refused_writes_are_a_fault_until_they_work_again(self) -> None:
        self.patch(connections, "CHECK_INTERVAL", 0.05)
        bus = await self.up()
        assert bus.fault is None
        with capturedLogs() as events:
            for option, refuses, takes, word in (
                ("min-replicas-to-write", "1", "0", "NOREPLICAS"),
                ("maxmemory", "1", "0", "OOM"),
            ):
                self.redis.call("CONFIG", "SET", option, refuses)
                await until(lambda: bus.fault is not None, "a fault")
                assert str(bus.fault).startswith(word)
                self.redis.call("CONFIG", "SET", option, takes)
                await until(lambda: bus.fault is None, lambda: f"no fault, but {bus.fault}")
            lines = [str(formatEvent(event)) for event in events]
        assert len(lines) == 4
        assert "refuses to be written, trying again: NOREPLICAS" in lines[0]
        assert re.search(r"takes writes again after \d+ s", lines[1])
        assert self.told.events == ["up"]

    async def test_keys_that_may_be_evicted_are_warned_of_once(self) -> None:
        self.redis.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        with capturedLogs() as events:
            bus = await self.up()
            await self.again(bus)
            warnings = [str(formatEvent(event)) for event in events if "maxmemory-policy" in str(formatEvent(event))]
        assert len(warnings) == 1
        assert "maxmemory-policy allkeys-lru" in warnings[0]

    # The epoch

    async def test_lost_data_are_another_epoch_though_the_connections_stay(self) -> None:
        self.patch(connections, "CHECK_INTERVAL", 0.05)
        bus = await self.up()
        first = bus.epoch
        self.redis.call("FLUSHALL")
        await until(lambda: self.told.events == ["up", "epoch"], lambda: f"another epoch, but {self.told.events}")
        assert bus.epoch not in (None, first)

    async def test_a_script_that_occupies_redis_is_no_news_of_the_epoch(self) -> None:
        self.redis.call("CONFIG", "SET", "lua-time-limit", "1")
        self.patch(connections, "CHECK_INTERVAL", 0.05)
        bus = await self.up()
        first = bus.epoch
        with socket.socket(socket.AF_UNIX) as busy:
            busy.connect(self.redis.path)
            busy.sendall(command("EVAL", "while true do end", 0))
            await until(lambda: "BUSY" in self.said("PING"), "a script that occupies Redis")
            await self.assertFailure(bus.call("GET", ["a"]), ResponseError)
            await self.assertFailure(bus.call("GET", ["a"]), ResponseError)
            self.redis.call("SCRIPT", "KILL")
        await until(lambda: self.said("PING") == "True", "the end of the script")
        await bus.call("PING")
        assert (bus.epoch, bus.fault, self.told.events) == (first, None, ["up"])

    def said(self, *words: str) -> str:
        """What another client gets, also when that is an error."""
        try:
            return str(self.redis.call(*words))
        except redis.RedisError as error:
            return f"{type(error).__name__}: {error}"

    async def again(self, bus: RedisBus) -> str | None:
        """The epoch after the connections were lost."""
        self.redis.call("CLIENT", "KILL", "TYPE", "normal")
        await until(lambda: not bus.available, "the loss of Redis")
        assert bus.epoch is None
        await until(lambda: bus.available, "a connection to Redis")
        return bus.epoch

    async def test_an_epoch_is_that_of_the_server_process_and_the_same_for_all(self) -> None:
        epochs: list[str | None] = []
        bus = self.make()
        self.patch(self.told, "bus_up", lambda: epochs.append(bus.epoch))
        await self.start(bus)
        first = bus.epoch
        assert first
        assert epochs == [first]
        assert (await self.up()).epoch == first
        assert await self.again(bus) == first

    async def test_the_data_in_another_server_process_are_another_epoch(self) -> None:
        bus = await self.up()
        first = bus.epoch
        self.redis.call("SET", "kept", "x")
        self.redis.call("SAVE")
        self.redis.kill()
        await until(lambda: not bus.available, "the loss of Redis")
        self.redis.start()
        await until(lambda: bus.available, "a connection to Redis")
        assert self.redis.call("GET", "kept") == b"x"
        assert bus.epoch not in (None, first)
        assert (await self.up()).epoch == bus.epoch

    async def test_what_others_keep_beside_the_epoch_stays(self) -> None:
        bus = await self.up()
        self.redis.call("HSET", EPOCH, "told", bus.epoch or "", "run", "another")
        first = bus.epoch
        assert await self.again(bus) not in (None, first)
        assert self.redis.call("HGET", EPOCH, "told") == (first or "").encode()

    async def test_an_unreadable_epoch_is_absent(self) -> None:
        self.redis.call("SET", EPOCH, "x")
        assert (await self.up()).epoch
        self.redis.call("HSET", EPOCH, "epoch", b"\xff")
        await until(lambda: self.redis.call("HGET", EPOCH, "epoch") != b"\xff", "another epoch")

    async def test_an_epoch_that_cannot_be_written_is_unknown(self) -> None:
        bus = await self.up()
        first = bus.epoch
        self.redis.call("CONFIG", "SET", "maxmemory", "1")
        assert await self.again(bus) == first
        self.redis.call("DEL", EPOCH)
        assert await self.again(bus) is None
        assert await bus.call("PUBLISH", ["c"], [""]) == 0
        assert self.told.events[-1] == "up"
        self.redis.call("CONFIG", "SET", "maxmemory", "0")
        await until(lambda: bus.epoch is not None, "an epoch")
        assert bus.epoch != first
        assert self.told.events[-1] == "epoch"

    # Passwords

    async def test_a_wrong_password_is_tried_again_and_never_logged(self) -> None:
        self.redis.call("CONFIG", "SET", "requirepass", "right")
        url = self.redis.url.replace("unix://", "unix://:wrong-one@")
        bus = self.make(url=url)
        with capturedLogs() as events:
            bus.startService()
            self.stop_later(bus)
            await until_logged(events, "WRONGPASS")
            assert not bus.available
            with self.redis.client(password="right") as admin:
                admin.config_set("requirepass", "wrong-one")
            await until(lambda: bus.available, "a connection to Redis")
        assert self.told.events == ["up"]
        assert "wrong-one" not in repr(events)
        assert await bus.call("PING") == b"PONG"

    async def test_a_user_with_just_the_rights_it_needs(self) -> None:
        self.redis.call(
            "ACL", "SETUSER", "gateway", "on", ">p@ss:word", "resetchannels", "&kraftek:*", "&__redis__:invalidate",
            "~kraftek:*", "+@all", "-@dangerous", "+client", "+info",
        )  # fmt: skip
        url = self.redis.url.replace("unix://", "unix://gateway:p%40ss%3Aword@")
        bus = self.make(url=url, prefix="kraftek:")
        changed: list[Keys] = []
        bus.track("access:", changed.append)
        bus.subscribe("c", lambda _: None)
        await self.start(bus)
        await bus.call(READ, ["access:1"])
        self.redis.call("SET", "kraftek:access:1", "x")
        await bus.settled()
        assert changed == [["access:1"]]

    async def test_a_user_without_the_right_to_a_channel_never_counts_as_up(self) -> None:
        self.redis.call("ACL", "SETUSER", "gateway", "on", ">pw", "resetchannels", "&other", "~*", "+@all")
        bus = self.make(url=self.redis.url.replace("unix://", "unix://gateway:pw@"))
        bus.subscribe("c", lambda _: None)
        with capturedLogs() as events:
            bus.startService()
            await until_logged(events, "NOPERM")
            # It tries again and again, with two connections each time.
            await until(
                lambda: self.connections() >= 6, lambda: f"three attempts, not {self.connections()} connections"
            )
            await bus.stopService()
        assert self.told.events == []
        assert len(events) == 1, events

    def connections(self) -> int:
        """How many there were since the server's start, beside the test's own."""
        return int(self.redis.call("INFO", "stats")["total_connections_received"]) - 1


if oldest := oldest_redis_server():

    class RedisBusOnRedis62Test(RedisBusTest):
        """The same with the oldest Redis that is supported."""

        binary = oldest


# Without Redis: the other end of the wires is in the test's hands


class Wires:
    """A bus whose connections the test makes, answers and loses."""

    def __init__(self) -> None:
        self.reactor = MemoryReactorClock()
        # The test answers no pings, and lets time pass between two attempts.
        config = Redis(url="unix:///redis.sock", ping_interval=60, ping_timeout=60)
        # Nor is it checked each second, which comes before some attempts.
        self.bus = RedisBus(self.reactor, config, make_iteration(self.reactor), Counters(), keeps_epoch=False)
        self.bus.track("access:", lambda _: None)
        self.bus.startService()

    def attempt(self) -> Any:
        """The factory of the oldest attempt to connect; when there is none, of the next one."""
        while not self.reactor.unixClients:
            self.reactor.advance(self.delays()[0])
        return self.reactor.unixClients.pop(0)[1]

    def refuse(self) -> None:
        """Nobody is there."""
        self.attempt().clientConnectionFailed(None, Failure(ConnectionRefusedError()))

    def connect(self) -> Any:
        """Somebody is there; writes to the returned link what it reads."""
        link = self.attempt().buildProtocol(None)
        link.makeConnection(StringTransport())
        self.reactor.advance(0)
        return link

    def greet(self) -> tuple[Any, Any]:
        """Both connections are there, and only tracking is not on yet: the commands' and the subscriber's."""
        first, second = self.connect(), self.connect()
        self.answer(first)
        self.answer(second)
        commands, subscriber = (first, second) if self.commands(first) else (second, first)
        subscriber.dataReceived(SUBSCRIBED)
        return commands, subscriber

    def greeted(self) -> Any:
        """One connection is there and ready."""
        link = self.connect()
        self.answer(link)
        return link

    def answer(self, link: Any) -> None:
        """It is ready."""
        link.dataReceived(info_reply() + (b"+OK\r\n" if self.commands(link) else b":7\r\n") + b"+PONG\r\n")

    def commands(self, link: Any) -> bool:
        """Whether this is the connection for commands."""
        return b"SELECT" in link.transport.value()

    def delays(self) -> list[float]:
        """Seconds until the next things happen."""
        return sorted(call.getTime() - self.reactor.seconds() for call in self.reactor.getDelayedCalls())


SUBSCRIBED = b"*3\r\n$9\r\nsubscribe\r\n$20\r\n__redis__:invalidate\r\n:1\r\n"
TRACKING = b"+OK\r\n+OK\r\n+OK\r\n+PONG\r\n"
LOST = Failure(ConnectionLost())


def test_attempts_become_rarer_until_redis_is_there() -> None:
    wires = Wires()
    for _ in range(10):
        wires.refuse()
    assert 1 <= max(wires.delays()) <= 1.2

    commands, subscriber = wires.greet()
    commands.dataReceived(TRACKING)
    assert wires.bus.available
    commands.connectionLost(LOST)
    subscriber.connectionLost(LOST)
    assert max(wires.delays()) <= 0.12


@pytest.mark.parametrize("lost", ["commands", "subscriber"])
def test_a_lost_connection_is_made_again_at_once(lost: str) -> None:
    wires = Wires()
    commands, subscriber = wires.greet()
    commands.dataReceived(TRACKING)
    wires.reactor.advance(1)
    {"commands": commands, "subscriber": subscriber}[lost].connectionLost(LOST)
    assert wires.delays()[0] == 0.0


def test_a_connection_that_is_lost_again_and_again_is_not_made_again_at_once() -> None:
    wires = Wires()
    for _ in range(5):
        commands, subscriber = wires.greet()
        commands.dataReceived(TRACKING)
        assert wires.bus.available
        subscriber.connectionLost(LOST)
        commands.connectionLost(LOST)
        wires.reactor.advance(0)
        assert 0.05 <= min(wires.delays()) <= 0.06


def test_when_one_connection_is_made_the_other_waits_no_longer() -> None:
    wires = Wires()
    for _ in range(10):
        wires.refuse()
    wires.greeted()
    assert wires.delays()[0] == 0.0


def test_who_last_heard_long_ago_publishes_for_the_rest_of_the_time() -> None:
    wires = Wires()
    commands, subscriber = wires.greet()
    commands.dataReceived(TRACKING)
    wires.reactor.advance(50)
    subscriber.connectionLost(LOST)
    wires.reactor.advance(50)
    commands.dataReceived(b"+PONG\r\n")
    wires.reactor.advance(19)
    wires.bus.publish("c", b"", lambda _: None)
    wires.reactor.advance(1)
    with pytest.raises(NotPublished, match="unavailable"):
        wires.bus.publish("c", b"", lambda _: None)


def test_attempts_become_rarer_when_redis_refuses_us_as_well() -> None:
    wires = Wires()
    for _ in range(10):
        link = wires.connect()
        link.dataReceived(b"-NOAUTH Authentication required.\r\n" * 2)
        link.connectionLost(LOST)
    assert 1 <= max(wires.delays()) <= 1.2


def test_a_subscriber_lost_while_tracking_is_turned_on_is_not_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # With jitter the next attempt may come after the next check, which is after a second.
    monkeypatch.setattr("kraftek.bus.endpoint.uniform", lambda least, _: least)
    wires = Wires()
    commands, subscriber = wires.greet()
    subscriber.connectionLost(LOST)
    commands.dataReceived(TRACKING)
    assert not wires.bus.available

    wires.greeted().dataReceived(SUBSCRIBED)
    assert not wires.bus.available
    commands.dataReceived(TRACKING)
    assert wires.bus.available
