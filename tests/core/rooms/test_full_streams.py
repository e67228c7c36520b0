"""Presence for a service on a stream that is full, in a real Redis."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import TestCase

from kraftek.bus import RedisBus
from kraftek.contract.interfaces import Undelivered
from kraftek.contract.iteration import Iteration
from kraftek.contract.messages import Envelope
from kraftek.contract.metrics import Counters
from kraftek.contract.settings import Redis, Registration
from kraftek.core.dispatch import Dispatch
from kraftek.core.registry import ServiceRegistry
from kraftek.core.rooms import room_cache
from kraftek.core.rooms.room_cache import RedisRooms
from tests.support.redis_server import private_redis
from tests.support.waiting import until

LOG = Registration(name="log", channel="events:log", transport="stream", max_length=5, presence=True)
STREAM = "k:events:log"
OWED = f"{STREAM}:presence"


def envelope(text: str) -> Envelope:
    payload = msgspec.Raw(msgspec.json.encode(text))
    return Envelope(
        event_type="log:line:add",
        user_id="ann",
        socket_id="g1.a",
        timestamp=1,
        gateway_id="g1",
        reply_to="",
        payload=payload,
    )


class FullStreamTest(TestCase):
    timeout = 30

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        self.redis = private_redis(self)
        self.bus = RedisBus(reactor, Redis(url=self.redis.url, prefix="k:"), Iteration(reactor), Counters())
        self.bus.startService()
        self.addCleanup(self.bus.stopService)
        self.registry = ServiceRegistry([LOG])
        self.rooms = RedisRooms(self.bus, self.registry, "g1", "k:events:reply:g1")
        self.dispatch = Dispatch(self.registry, self.bus)
        self.client = self.redis.client(decode_responses=True)
        self.addCleanup(self.client.close)
        self.client.xgroup_create(STREAM, "log", "0", mkstream=True)
        self.time = 0
        await until(lambda: self.bus.available, "a connection to Redis")
        await self.rooms.begin_epoch()
        self.heard: list[str] = []
        self.numbers: list[int] = []

    async def enter(self, user: str, room: str = "board", socket: str = "g1.a") -> None:
        self.time += 1
        await self.rooms.enter((user, room, socket), self.time)

    async def leave(self, user: str, room: str = "board", socket: str = "g1.a") -> None:
        await self.rooms.leave([((user, room, socket), "left")])

    def send(self, text: str) -> Deferred[int]:
        receipt: Deferred[int] = Deferred()
        self.dispatch.send(LOG, envelope(text), receipt.callback)
        return receipt

    async def fill(self) -> None:
        """Only events wait, as many as there may be."""
        self.read()
        for number in range(LOG.max_length):
            assert await self.send(str(number)) == 1
        assert await self.send("more") == Undelivered.FULL

    async def swept(self) -> None:
        """The sweep, with all that it does again because there is more."""
        self.dispatch.sweep()
        await until(lambda: not self.dispatch._looking, "the sweep")

    def read(self) -> list[str]:
        """What the service reads, and handles."""
        answer: Any = self.client.xreadgroup("log", "one", {STREAM: ">"}, noack=True)
        events = [msgspec.json.decode(fields["event"]) for _, entries in answer for _, fields in entries]
        for event in events:
            if event["eventType"].startswith("gateway:"):
                self.numbers.append(event["payload"]["number"])
        return [
            event["payload"]
            if event["eventType"] == "log:line:add"
            else " ".join(filter(None, (event["eventType"].split(":")[2], event["userId"], event.get("roomId"))))
            for event in events
        ]

    async def drained(self) -> list[str]:
        """All that it reads until there is nothing more."""
        found: list[str] = []
        while new := self.read():
            found += new
            await self.swept()
        return found

    async def test_no_event_is_lost_for_who_joins_and_leaves(self) -> None:
        await self.fill()
        for _ in range(100):
            await self.enter("flood")
            await self.leave("flood")
        assert self.client.exists(OWED) == 0, "who left again is nothing to tell"
        await self.enter("ann")
        assert await self.drained() == ["0", "1", "2", "3", "4", "joined ann board"]
        await self.leave("ann")
        assert self.read() == ["left ann board"]
        assert self.numbers == sorted(set(self.numbers))

    async def test_what_was_told_before_ends_as_it_is(self) -> None:
        for user in ("ann", "bob", "cid"):
            await self.enter(user)
        await self.fill()
        for user in ("ann", "bob", "ann"):
            await self.leave(user)
        await self.enter("ann", socket="g1.b")
        await self.enter("dan")
        found = await self.drained()
        assert found[:5] == ["0", "1", "2", "3", "4"]
        assert sorted(found[5:]) == ["joined dan board", "left bob board"]

    async def test_dead_letters_are_counted(self) -> None:
        await self.swept()
        assert self.dispatch.dead_letters == {"log": 0, "events:gateway": 0}
        for _ in range(2):
            self.redis.call("XADD", f"{STREAM}:dead", "*", "event", "{}")
        self.redis.call("SET", "k:events:gateway:dead", "of another type")
        await self.swept()
        assert self.dispatch.dead_letters == {"log": 2, "events:gateway": 0}

    async def test_it_is_told_before_the_stream_takes_events_again(self) -> None:
        await self.fill()
        for number in range(7):
            await self.enter(f"user {number}")
        assert self.read() == ["0", "1", "2", "3", "4"]
        assert await self.send("too early") == Undelivered.FULL
        await self.swept()
        assert self.dispatch.presence_waiting["log"] == 2
        assert await self.send("too early") == Undelivered.FULL
        assert len(await self.drained()) == 7
        assert self.dispatch.presence_waiting["log"] == 0
        assert await self.send("now") == 1
        assert self.read() == ["now"]

    async def test_of_very_many_one_event_says_that_all_rooms_are_to_be_read(self) -> None:
        await self.fill()
        await self.enter("ann")
        with self.client.pipeline() as pipe:
            for number in range(room_cache._MOST_OWED):
                pipe.hset(OWED, f"some {number}", "event")
            pipe.execute()
        await self.enter("bob")
        await self.leave("ann")
        assert self.client.hkeys(OWED) == ["reset"]
        assert await self.drained() == ["0", "1", "2", "3", "4", "reset"]
        await self.leave("bob")
        assert self.read() == ["left bob board"]

    async def test_a_new_epoch_is_told_instead_of_what_waited(self) -> None:
        await self.fill()
        await self.enter("ann")
        self.patch(RedisBus, "epoch", "two")
        self.redis.call("HSET", "k:gateway:epoch", "epoch", "two")
        await self.enter("bob")
        await self.rooms.begin_epoch()
        await self.enter("cid")
        assert self.client.hkeys(OWED) == ["reset"]
        await self.drained()
        assert self.client.exists(OWED) == 0
        await self.leave("cid")
        assert self.read() == ["left cid board"]

    async def test_nothing_is_told_before_services_know_the_epoch(self) -> None:
        await self.fill()
        await self.enter("ann")
        self.read()
        self.redis.call("HSET", "k:gateway:epoch", "epoch", "two")
        await self.swept()
        assert self.dispatch.presence_waiting["log"] == 1
        self.redis.call("HSET", "k:gateway:epoch", "rooms", "two")
        await self.swept()
        assert self.read() == ["joined ann board"]

    async def test_a_service_that_wants_no_presence_any_more_has_none_waiting(self) -> None:
        await self.fill()
        await self.enter("ann")
        self.registry.unregister("log")
        self.registry.register(Registration(name="log", channel="events:log", transport="stream", max_length=6))
        await self.swept()
        assert self.client.exists(OWED) == 0
        self.read()
        assert await self.send("now") == 1

    async def test_presence_that_waits_is_known_without_the_level(self) -> None:
        await self.fill()
        await self.enter("ann")
        self.redis.call("DEL", f"{STREAM}:level")
        await self.leave("ann")
        assert self.client.exists(OWED) == 0
        await self.enter("bob")
        assert await self.drained() == ["0", "1", "2", "3", "4", "joined bob board"]

    async def test_a_key_that_is_no_stream_does_not_keep_it_from_others(self) -> None:
        self.registry.register(Registration(name="odd", channel="events:odd", transport="stream", presence=True))
        self.redis.call("SET", "k:events:odd", "no stream")
        self.read()
        await self.enter("ann")
        assert self.read() == ["joined ann board"]
        self.flushLoggedErrors()
