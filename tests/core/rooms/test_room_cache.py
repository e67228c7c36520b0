"""The room cache, as services see it in a real Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import TestCase
from txredisapi import ResponseError
from zope.interface.verify import verifyObject

from kraftek.bus import RedisBus
from kraftek.contract.errors import NotPublished
from kraftek.contract.interfaces import IBus, IRooms
from kraftek.contract.iteration import Iteration
from kraftek.contract.lua import Script
from kraftek.contract.metrics import Counters
from kraftek.contract.names import LOST_GATEWAYS, entries_key, partition_of
from kraftek.contract.settings import Redis, Registration
from kraftek.core.registry import ServiceRegistry
from kraftek.core.rooms.room_cache import ENTRIES_AT_ONCE, Entry, RedisRooms
from tests.support.redis_server import PrivateRedis
from tests.support.waiting import until


def told(event: bytes) -> Any:
    """What a service reads of an event about a coming or going: all that changes from one to the next."""
    words = msgspec.json.decode(event)
    kind = words["eventType"].removeprefix("gateway:client:")
    return kind, words["userId"], words["roomId"], words["socketId"], words["payload"].get("reason")


def appended(client: Any, stream: str) -> list[Any]:
    """The same of all events in a stream."""
    return [told(entry[b"event"]) for _, entry in client.xrange(stream)]


class RedisRoomsTest(TestCase):
    timeout = 30

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        self.redis = PrivateRedis()
        self.addCleanup(self.redis.close)
        self.redis.start()
        self.bus = RedisBus(reactor, Redis(url=self.redis.url, prefix="k:"), Iteration(reactor), Counters())
        self.bus.startService()
        self.addCleanup(self.bus.stopService)
        self.registry = ServiceRegistry()
        self.rooms = self.process("g1")
        self.other = self.process("g2")
        await until(lambda: self.bus.available, "a connection to Redis")

    def process(self, gateway_id: str) -> RedisRooms:
        """The rooms of a gateway process."""
        return RedisRooms(self.bus, self.registry, gateway_id, f"k:events:reply:{gateway_id}", lambda: 1234.5678)

    def everything(self) -> dict[str, Any]:
        """Everything in Redis."""
        kinds = {"hash": "hgetall", "string": "get", "set": "smembers"}
        with self.redis.client(decode_responses=True) as client:
            return {key: getattr(client, kinds[client.type(key)])(key) for key in client.scan_iter()}

    def stored(self) -> dict[str, Any]:
        """What services read."""
        return {key: value for key, value in self.everything().items() if key.startswith(("k:room:", "k:socket:"))}

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

    async def test_entering_writes_what_gateways_need(self) -> None:
        await self.rooms.enter("ann", "board", "g1.a")
        await self.other.enter("ann", "board", "g2.b")
        everything = self.everything()
        assert everything['k:sockets:["ann","board"]'] == {"g1.a", "g2.b"}
        assert everything["k:gateway:g1:entries"] == {'["ann","board","g1.a"]'}
        assert everything["k:gateway:g2:entries"] == {'["ann","board","g2.b"]'}
        await self.rooms.leave("ann", "board", "g1.a", "left")
        await self.other.leave("ann", "board", "g2.b", "left")
        assert self.everything() == {}

    async def test_the_later_socket_displaces_the_earlier(self) -> None:
        await self.rooms.enter("ann", "board", "g1.a")
        assert await self.other.enter("ann", "board", "g2.b") == "g1.a"
        assert await self.other.enter("ann", "board", "g2.b") is None
        assert self.stored() == {"k:room:board": {"ann": "g2.b"}, "k:socket:ann:board": "g2.b"}

    async def test_leaving_removes_the_own_entry_only(self) -> None:
        await self.rooms.enter("ann", "board", "g1.a")
        await self.other.enter("ann", "board", "g2.b")
        await self.rooms.leave("ann", "board", "g1.a", "left")
        assert self.stored() == {"k:room:board": {"ann": "g2.b"}, "k:socket:ann:board": "g2.b"}
        await self.other.leave("ann", "board", "g2.b", "left")
        assert self.everything() == {}

    async def test_leaving_hands_the_own_entry_to_another_socket_wherever_it_is(self) -> None:
        await self.rooms.enter("ann", "board", "g1.a")
        await self.other.enter("ann", "board", "g2.b")
        await self.other.leave("ann", "board", "g2.b", "left")
        assert self.stored() == {"k:room:board": {"ann": "g1.a"}, "k:socket:ann:board": "g1.a"}

    async def test_nobody_inherits_the_socket_of_another_whose_names_come_to_the_same(self) -> None:
        await self.rooms.enter("ann", "red:board", "g1.a")
        await self.rooms.enter("ann:red", "board", "g1.b")
        await self.rooms.leave("ann:red", "board", "g1.b", "left")
        assert "k:room:board" not in self.stored()
        await self.rooms.leave("ann", "red:board", "g1.a", "left")
        assert self.everything() == {}

    async def test_what_another_system_writes_is_left_to_it(self) -> None:
        await self.rooms.enter("ann", "board", "g1.a")
        self.redis.call("HSET", "k:room:board", "ann", "theirs")
        self.redis.call("SET", "k:socket:ann:board", "theirs")
        await self.rooms.leave("ann", "board", "g1.a", "left")
        assert self.everything() == {"k:room:board": {"ann": "theirs"}, "k:socket:ann:board": "theirs"}

    async def test_who_leaves_and_comes_back_while_its_process_counts_as_gone_is_there(self) -> None:
        entry = "ann", "board", "g1.a"
        await self.rooms.enter(*entry)
        self.redis.call("RENAME", "k:gateway:g1:entries", "k:gateways:lost")
        await self.rooms.leave(*entry, "left")
        await self.rooms.enter(*entry)
        await self.other.bury([entry])
        assert self.stored() == {"k:room:board": {"ann": "g1.a"}, "k:socket:ann:board": "g1.a"}

    # What services are told

    async def subscribed(self, channel: str) -> list[bytes]:
        events: list[bytes] = []
        self.bus.subscribe(channel, events.append)
        await self.bus.settled()
        return events

    async def test_services_are_told_who_comes_and_goes(self) -> None:
        events = await self.subscribed("events:board")
        self.registry.register(Registration(name="deaf", channel="events:board"))
        self.registry.register(Registration(name="board", channel="events:board", presence=True))
        await self.rooms.enter("ann", "board", "g1.a")
        await self.rooms.leave("ann", "board", "g1.a", "left")
        await self.bus.settled()
        assert [msgspec.json.decode(event) for event in events] == [
            {
                "eventType": f"gateway:client:{kind}",
                "userId": "ann",
                "roomId": "board",
                "socketId": "g1.a",
                "timestamp": 1234567,
                "gatewayId": "g1",
                "replyTo": "k:events:reply:g1",
                "payload": payload,
            }
            for kind, payload in (("joined", {}), ("left", {"reason": "left"}))
        ]

    async def test_one_coming_and_one_going_of_a_user_however_many_sockets(self) -> None:
        events = await self.subscribed("events:board")
        self.registry.register(Registration(name="board", channel="events:board", presence=True))
        await self.rooms.enter("ann", "board", "g1.a")
        await self.other.enter("ann", "board", "g2.b")
        await self.rooms.enter("ann", "board", "g1.c")
        await self.rooms.enter("ann", "wall", "g1.c")
        for socket, rooms in (("g1.c", self.rooms), ("g1.a", self.rooms), ("g1.a", self.rooms), ("g2.b", self.other)):
            await rooms.leave("ann", "board", socket, "closed")
        await self.bus.settled()
        assert [told(event)[:3] for event in events] == [
            ("joined", "ann", "board"),
            ("joined", "ann", "wall"),
            ("left", "ann", "board"),
        ]

    async def test_services_on_streams_are_told_there_in_the_rooms_own_partition(self) -> None:
        heard = await self.subscribed("events:chat")
        self.registry.register(Registration(name="chat", channel="events:chat", presence=True))
        self.registry.register(
            Registration(name="log", channel="events:log", presence=True, transport="stream", max_length=100)
        )
        self.registry.register(
            Registration(name="notes", channel="events:notes", presence=True, transport="stream", partitions=4)
        )
        for room in ("r1", "r2", "r3"):
            await self.rooms.enter("ann", room, "g1.a")
        await self.rooms.leave("ann", "r1", "g1.a", "revoked")
        await self.bus.settled()
        expected: list[Any] = [("joined", "ann", room, "g1.a", None) for room in ("r1", "r2", "r3")]
        expected.append(("left", "ann", "r1", "g1.a", "revoked"))
        with self.redis.client() as client:
            log = appended(client, "k:events:log")
            notes = {number: appended(client, f"k:events:notes:{number}") for number in range(4)}
            assert [told(event) for event in heard] == log == expected
            for number, found in notes.items():
                assert found == [event for event in expected if partition_of(event[2], 4) == number]
            for _ in range(500):
                await self.rooms.enter("ann", "r1", "g1.a")
                await self.rooms.leave("ann", "r1", "g1.a", "left")
            assert client.xlen("k:events:log") < 300

    async def test_who_is_told_may_change_at_any_time(self) -> None:
        events = await self.subscribed("events:board")
        await self.rooms.enter("ann", "board", "g1.a")
        self.registry.register(Registration(name="board", channel="events:board", presence=True))
        await self.rooms.enter("bob", "board", "g1.b")
        self.registry.unregister("board")
        await self.rooms.leave("bob", "board", "g1.b", "left")
        await self.bus.settled()
        assert [told(event)[:2] for event in events] == [("joined", "bob")]

    async def test_the_dead_are_buried_once_and_services_told_once(self) -> None:
        events = await self.subscribed("events:board")
        entries = [(f"user {number}", "board", f"g2.{number}") for number in range(50)]
        for entry in entries:
            await self.other.enter(*entry)
        await self.rooms.enter("user 7", "board", "g1.back")
        self.registry.register(Registration(name="board", channel="events:board", presence=True))
        self.redis.call("RENAME", "k:gateway:g2:entries", "k:gateways:lost")
        third = self.process("g3")
        burying = [self.rooms.bury(entries), third.bury(entries[:30]), third.bury(entries)]
        for each in burying:
            await each
        await self.bus.settled()
        expected = [("left", *entry, "gateway_lost") for entry in entries if entry[0] != "user 7"]
        assert [told(event) for event in events] == expected
        assert self.stored() == {"k:room:board": {"user 7": "g1.back"}, "k:socket:user 7:board": "g1.back"}
        await self.rooms.leave("user 7", "board", "g1.back", "closed")
        assert self.everything() == {}

    async def test_who_was_only_paused_is_not_buried_after_it_is_back(self) -> None:
        events = await self.subscribed("events:board")
        self.registry.register(Registration(name="board", channel="events:board", presence=True))
        entries = [("ann", "board", "g2.a"), ("bob", "board", "g2.b")]
        for entry in entries:
            await self.other.enter(*entry)
        self.redis.call("RENAME", "k:gateway:g2:entries", "k:gateways:lost")
        await self.rooms.bury(entries[:1])
        assert await self.other.restore(entries) == []
        await self.rooms.bury(entries)
        await self.bus.settled()
        assert [told(event)[:2] for event in events] == [
            ("joined", "ann"),
            ("joined", "bob"),
            ("left", "ann"),
            ("joined", "ann"),
        ]
        assert self.stored()["k:room:board"] == {"ann": "g2.a", "bob": "g2.b"}
        assert len(self.everything()["k:gateway:g2:entries"]) == 2

    async def test_restoring_fills_an_empty_redis(self) -> None:
        entries = [
            (f"user {number}", f"room {number % 7}", f"g1.{number}") for number in range(2 * ENTRIES_AT_ONCE + 1)
        ]
        assert await self.rooms.restore(iter(entries)) == []
        stored = self.stored()
        assert len(stored) == 7 + len(entries)
        assert len(self.everything()["k:gateway:g1:entries"]) == len(entries)
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
        entries = [(f"user {number}", "room", f"g1.{number}") for number in range(2 * ENTRIES_AT_ONCE)]
        restored = self.rooms.restore(entries)
        left = [self.rooms.leave(*entry, "left") for entry in entries]
        assert await restored == []
        for leaving in left:
            await leaving
        assert self.everything() == {}

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
        await self.rooms.enter("ann", "board", "g1.a")
        self.redis.call("CONFIG", "SET", "min-replicas-to-write", "1")
        await self.assertFailure(self.rooms.enter("bob", "board", "g1.b"), ResponseError)
        await self.assertFailure(self.rooms.leave("ann", "board", "g1.a", "left"), ResponseError)
        await self.assertFailure(self.rooms.restore([("ann", "board", "g1.a")]), ResponseError)

    async def test_a_key_of_another_type_keeps_no_other_entry_from_being_written(self) -> None:
        self.redis.call("SET", "k:room:board", "not a hash")
        bad, good = ("ann", "board", "g1.a"), ("ann", "hall", "g1.a")
        with capturedLogs() as logged:
            assert await self.rooms.enter(*bad) is None
            assert await self.rooms.restore([bad, good]) == []
            assert self.redis.call("HGETALL", "k:room:hall") == {b"ann": b"g1.a"}
            with self.redis.client() as client:
                client.sadd("k:gateways:lost", *map(msgspec.json.encode, (bad, good)))
            await self.other.bury([bad, good])
            assert not self.redis.call("EXISTS", "k:room:hall", "k:gateways:lost")
        places = [event["place"] for event in logged]
        assert places == ["k:room:board"] * 2  # once by each gateway

    async def test_a_service_that_cannot_be_told_keeps_nothing_from_being_written(self) -> None:
        self.registry.register(Registration(name="log", channel="log", transport="stream", presence=True))
        heard = await self.subscribed("told")
        self.registry.register(Registration(name="told", channel="told", presence=True))
        self.redis.call("SET", "k:log", "not a stream")
        entries: list[Entry] = [(user, "board", f"g1.{user}") for user in ("ann", "bob")]
        with capturedLogs() as logged:
            for entry in entries:
                assert await self.rooms.enter(*entry) is None
            assert await self.other.enter("bob", "board", "g2.bob") == "g1.bob"
            await self.other.leave("bob", "board", "g2.bob", "left")
            await self.rooms.leave(*entries[0], "left")
            assert self.stored() == {"k:room:board": {"bob": "g1.bob"}, "k:socket:bob:board": "g1.bob"}
            self.redis.call("DEL", "k:room:board", "k:socket:bob:board")
            again: list[Entry] = [*entries, ("ann", "board", "g1.more")]
            assert await self.rooms.restore(again) == ["g1.more"]
        assert [(entry["log_level"], entry["place"]) for entry in logged] == [(LogLevel.error, "k:log")]
        assert "WRONGTYPE" in logged[0]["reason"]
        self.redis.call("RENAME", "k:gateway:g1:entries", "k:gateways:lost")
        await self.other.bury(again)
        assert self.everything() == {"k:log": "not a stream"}
        await self.bus.settled()
        assert [told(event)[:2] for event in heard] == [
            ("joined", "ann"), ("joined", "bob"), ("left", "ann"),
            ("joined", "ann"), ("joined", "bob"), ("left", "bob"), ("left", "ann"),
        ]  # fmt: skip

    async def test_that_a_service_cannot_be_told_is_said_once_until_it_can(self) -> None:
        for name in ("log", "other"):
            self.registry.register(Registration(name=name, channel=name, transport="stream", presence=True))
        said = []
        for state in ("refused", "refused", "taken", "refused"):
            self.redis.call("DEL", "k:log")
            if state == "refused":
                self.redis.call("SET", "k:log", "not a stream")
            with capturedLogs() as logged:
                await self.rooms.enter("ann", "board", "g1.a")
                await self.rooms.leave("ann", "board", "g1.a", "left")
            said.append(len(logged))
        assert said == [1, 0, 0, 1]

    async def test_without_redis_nothing_is_written(self) -> None:
        self.redis.kill()
        await until(lambda: not self.bus.available, "the loss of Redis")
        await self.assertFailure(self.rooms.enter("ann", "board", "g1.a"), NotPublished)
        await self.assertFailure(self.rooms.leave("ann", "board", "g1.a", "left"), NotPublished)
        await self.assertFailure(self.rooms.restore([("ann", "board", "g1.a")] * ENTRIES_AT_ONCE * 2), NotPublished)


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
PROCESSES = st.integers(0, 1)
SOCKETS = st.integers(1, 2)
LOG = Registration(name="log", channel="log", transport="stream", presence=True)


class Cluster:
    """Two processes and a Redis, as they are meant: who is where, and what a service hears of it."""

    def __init__(self, client: Any) -> None:
        self.client = client
        bus, registry = cast("IBus", BlockingBus(client)), ServiceRegistry([LOG])
        self.processes = [RedisRooms(bus, registry, f"g{number}", "") for number in range(2)]
        self.named: list[set[Entry]] = [set(), set()]
        self.lost: set[Entry] = set()
        self.sockets: dict[tuple[str, str], set[str]] = {}
        self.holder: dict[tuple[str, str], str] = {}
        self.events: list[tuple[str, str, str]] = []

    def enter(self, process: int, user: str, room: str, number: int) -> None:
        entry = user, room, f"g{process}.{number}"
        before = self.holder.get((user, room))
        self.sockets.setdefault((user, room), set()).add(entry[2])
        self.lost.discard(entry)
        self.named[process].add(entry)
        self.holder[user, room] = entry[2]
        if before is None:
            self.events.append(("joined", user, room))
        assert now(self.processes[process].enter(*entry)) == (None if before == entry[2] else before)

    def leave(self, process: int, user: str, room: str, number: int) -> None:
        entry = user, room, f"g{process}.{number}"
        if entry in self.named[process]:
            self.named[process].remove(entry)
            self._gone(entry)
        now(self.processes[process].leave(*entry, "left"))
        self._inherited(user, room)

    def restore(self, process: int, entries: list[tuple[str, str, int]]) -> None:
        written = [(user, room, f"g{process}.{number}") for user, room, number in entries]
        superseded = []
        for user, room, socket in written:
            self.lost.discard((user, room, socket))
            self.named[process].add((user, room, socket))
            self.sockets.setdefault((user, room), set()).add(socket)
            if (user, room) not in self.holder:
                self.events.append(("joined", user, room))
            if self.holder.setdefault((user, room), socket) != socket:
                superseded.append(socket)
        assert now(self.processes[process].restore(written)) == superseded

    def die(self, process: int) -> None:
        """Whoever looks finds that it is gone."""
        self.lost |= self.named[process]
        self.named[process].clear()
        self.client.sunionstore(LOST_GATEWAYS, LOST_GATEWAYS, entries_key(f"g{process}"))
        self.client.delete(entries_key(f"g{process}"))

    def bury(self, process: int, number: int) -> None:
        entries = sorted(self.lost)[:number]
        now(self.processes[process].bury(entries))
        for entry in entries:
            self.lost.remove(entry)
            self._gone(entry)
        for user, room, _ in entries:
            self._inherited(user, room)

    def _gone(self, entry: Entry) -> None:
        user, room, socket = entry
        sockets = self.sockets[user, room]
        sockets.discard(socket)
        if self.holder.get((user, room)) in {socket, "any of them"}:
            if sockets:
                self.holder[user, room] = "any of them"
            else:
                del self.holder[user, room]
                self.events.append(("left", user, room))

    def _inherited(self, user: str, room: str) -> None:
        """Redis chooses who inherits: any socket that is there."""
        if self.holder.get((user, room)) == "any of them":
            heir = self.client.hget(f"room:{room}", user)
            assert heir is not None
            assert heir.decode() in self.sockets[user, room]
            self.holder[user, room] = heir.decode()

    def check(self) -> None:
        """Redis has all of this, and nothing else."""
        client = self.client
        for (user, room), socket in self.holder.items():
            assert client.hget(f"room:{room}", user) == client.get(f"socket:{user}:{room}") == socket.encode()
        assert len(client.keys("socket:*")) == len(self.holder)
        assert sum(client.hlen(key) for key in client.keys("room:*")) == len(self.holder)
        for (user, room), sockets in self.sockets.items():
            assert client.smembers(f'sockets:["{user}","{room}"]') == {socket.encode() for socket in sockets}
        for process, entries in enumerate(self.named):
            found = client.smembers(entries_key(f"g{process}"))
            assert {tuple(msgspec.json.decode(entry)) for entry in found} == entries
        assert [event[:3] for event in appended(client, "log")] == self.events


STEPS: st.SearchStrategy[tuple[Callable[..., None], tuple[Any, ...]]] = (
    st.tuples(st.just(Cluster.enter), st.tuples(PROCESSES, USERS, ROOMS, SOCKETS))
    | st.tuples(st.just(Cluster.leave), st.tuples(PROCESSES, USERS, ROOMS, SOCKETS))
    | st.tuples(st.just(Cluster.restore), st.tuples(PROCESSES, st.lists(st.tuples(USERS, ROOMS, SOCKETS), max_size=4)))
    | st.tuples(st.just(Cluster.die), st.tuples(PROCESSES))
    | st.tuples(st.just(Cluster.bury), st.tuples(PROCESSES, st.integers(0, 5)))
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(steps=st.lists(STEPS, max_size=30))
def test_the_scripts_do_what_they_mean(
    client: redis.Redis, steps: list[tuple[Callable[..., None], tuple[Any, ...]]]
) -> None:
    client.flushall()
    cluster = Cluster(client)
    for step, arguments in steps:
        step(cluster, *arguments)
        cluster.check()
