"""The room cache, as services see it in a real Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
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
from kraftek.contract.interfaces import Here, IBus, IRooms, Mended
from kraftek.contract.interfaces import RoomEntry as Entry
from kraftek.contract.iteration import Iteration
from kraftek.contract.lua import Script
from kraftek.contract.metrics import Counters
from kraftek.contract.names import LOST_GATEWAYS, entries_key, partition_of, shown_key
from kraftek.contract.settings import Redis, Registration, RoomPolicy
from kraftek.core.registry import ServiceRegistry
from kraftek.core.rooms.room_cache import ENTRIES_AT_ONCE, RedisRooms
from kraftek.core.rooms.shown import Shown
from tests.support.redis_server import PrivateRedis, private_redis
from tests.support.waiting import until


def told(event: bytes) -> Any:
    """What a service reads of an event about a coming or going: all that changes from one to the next."""
    words = msgspec.json.decode(event)
    kind = words["eventType"].removeprefix("gateway:client:")
    return kind, words["userId"], words.get("roomId"), words["socketId"], words["payload"].get("reason")


def is_said(words: list[bytes], number: int) -> bool:
    return len(words) == number


TIMES = count(1)
"""Redis's time, as gateways know it."""


def enter(rooms: RedisRooms, user_id: str, room_id: str, socket_id: str) -> Deferred[str | None]:
    """Fires with the newest of the user's older sockets in the room."""
    entering = rooms.enter((user_id, room_id, socket_id), next(TIMES))
    return entering.addCallback(lambda answer: answer[1][0] if answer[1] else None)


def leave(rooms: RedisRooms, user_id: str, room_id: str, socket_id: str, reason: str) -> Deferred[None]:
    return rooms.leave([((user_id, room_id, socket_id), reason)])


def appended(client: Any, stream: str) -> list[Any]:
    """The same of all events in a stream."""
    return [told(entry[b"event"]) for _, entry in client.xrange(stream)]


WATCHED = (RoomPolicy(pattern="board", presence=True),)


class RedisRoomsTest(TestCase):
    timeout = 30

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        self.redis = private_redis(self)
        self.bus = RedisBus(reactor, Redis(url=self.redis.url, prefix="k:"), Iteration(reactor), Counters())
        self.bus.startService()
        self.addCleanup(self.bus.stopService)
        self.registry = ServiceRegistry()
        self.rooms = self.process("g1")
        self.other = self.process("g2")
        await until(lambda: self.bus.available, "a connection to Redis")
        await self.rooms.begin_epoch()

    def process(self, gateway_id: str, policies: Sequence[RoomPolicy] = ()) -> RedisRooms:
        """The rooms of a gateway process."""
        reply_to = f"k:events:reply:{gateway_id}"
        return RedisRooms(self.bus, self.registry, gateway_id, reply_to, lambda: 1234.5678, policies=policies)

    def everything(self) -> dict[str, Any]:
        """Everything in Redis."""
        kinds = {"hash": "hgetall", "string": "get", "set": "smembers", "zset": "zrange"}
        with self.redis.client(decode_responses=True) as client:
            found = {key: kinds[client.type(key)] for key in client.scan_iter() if key != "k:gateway:epoch"}
            return {
                key: getattr(client, kind)(key, *((0, -1) if kind == "zrange" else ())) for key, kind in found.items()
            }

    def stored(self) -> dict[str, Any]:
        """What services read."""
        return {key: value for key, value in self.everything().items() if key.startswith(("k:room:", "k:socket:"))}

    async def test_keeps_its_interface(self) -> None:
        verifyObject(IRooms, self.rooms)

    async def test_entering_writes_what_services_read(self) -> None:
        assert await enter(self.rooms, "ann", "board", "g1.a") is None
        assert await enter(self.rooms, "bob", "board", "g1.b") is None
        assert self.stored() == {
            "k:room:board": {"ann": "g1.a", "bob": "g1.b"},
            "k:socket:ann:board": "g1.a",
            "k:socket:bob:board": "g1.b",
        }

    async def test_entering_writes_what_gateways_need(self) -> None:
        await enter(self.rooms, "ann", "board", "g1.a")
        await enter(self.other, "ann", "board", "g2.b")
        everything = self.everything()
        assert everything['k:sockets:["ann","board"]'] == ["g1.a", "g2.b"]
        assert everything["k:gateway:g1:entries"] == {'["ann","board","g1.a"]'}
        assert everything["k:gateway:g2:entries"] == {'["ann","board","g2.b"]'}
        await leave(self.rooms, "ann", "board", "g1.a", "left")
        await leave(self.other, "ann", "board", "g2.b", "left")
        assert self.everything() == {}

    async def test_the_later_socket_displaces_the_earlier(self) -> None:
        await enter(self.rooms, "ann", "board", "g1.a")
        assert await enter(self.other, "ann", "board", "g2.b") == "g1.a"
        assert await enter(self.other, "ann", "board", "g2.b") == "g1.a"
        assert self.stored() == {"k:room:board": {"ann": "g2.b"}, "k:socket:ann:board": "g2.b"}

    async def test_leaving_removes_the_own_entry_only(self) -> None:
        await enter(self.rooms, "ann", "board", "g1.a")
        await enter(self.other, "ann", "board", "g2.b")
        await leave(self.rooms, "ann", "board", "g1.a", "left")
        assert self.stored() == {"k:room:board": {"ann": "g2.b"}, "k:socket:ann:board": "g2.b"}
        await leave(self.other, "ann", "board", "g2.b", "left")
        assert self.everything() == {}

    async def test_leaving_hands_the_own_entry_to_another_socket_wherever_it_is(self) -> None:
        await enter(self.rooms, "ann", "board", "g1.a")
        await enter(self.other, "ann", "board", "g2.b")
        await leave(self.other, "ann", "board", "g2.b", "left")
        assert self.stored() == {"k:room:board": {"ann": "g1.a"}, "k:socket:ann:board": "g1.a"}

    async def test_of_names_that_come_to_the_same_key_the_later_one_stands(self) -> None:
        one, other, third = (
            ("ann", "red:board:a", "g1.a"),
            ("ann:red", "board:a", "g1.b"),
            ("ann:red:board", "a", "g1.c"),
        )
        string = "k:socket:ann:red:board:a"
        for entry in (one, other, third):
            await enter(self.rooms, *entry)
            assert self.stored()[string] == entry[2]
        assert await self.rooms.mend([(entry, 1) for entry in (one, other, third)]) == []
        assert self.stored()[string] == "g1.c"
        await leave(self.rooms, *other, "left")
        assert self.stored()[string] == "g1.c"
        await leave(self.rooms, *third, "left")
        assert self.stored() == {"k:room:red:board:a": {"ann": "g1.a"}, string: "g1.a"}
        await leave(self.rooms, *one, "left")
        assert self.everything() == {}

    async def test_a_name_of_colons_is_a_name(self) -> None:
        colons = ":" * 300
        await enter(self.rooms, colons, colons, "g1.a")
        assert await self.rooms.mend([((colons, colons, "g1.a"), 1)]) == []
        await leave(self.rooms, colons, colons, "g1.a", "left")
        assert self.everything() == {}

    async def test_what_another_system_writes_is_left_to_it(self) -> None:
        await enter(self.rooms, "ann", "board", "g1.a")
        self.redis.call("HSET", "k:room:board", "ann", "theirs")
        self.redis.call("SET", "k:socket:ann:board", "theirs")
        await leave(self.rooms, "ann", "board", "g1.a", "left")
        assert self.everything() == {"k:room:board": {"ann": "theirs"}, "k:socket:ann:board": "theirs"}

    async def test_who_leaves_and_comes_back_while_its_process_counts_as_gone_is_there(self) -> None:
        entry = "ann", "board", "g1.a"
        await enter(self.rooms, *entry)
        self.redis.call("RENAME", "k:gateway:g1:entries", "k:gateways:lost")
        await leave(self.rooms, *entry, "left")
        assert self.everything() == {}
        await enter(self.rooms, *entry)
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
        await enter(self.rooms, "ann", "board", "g1.a")
        await leave(self.rooms, "ann", "board", "g1.a", "left")
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
            for kind, payload in (
                ("joined", {"epoch": self.bus.epoch, "number": 1}),
                ("left", {"reason": "left", "epoch": self.bus.epoch, "number": 2}),
            )
        ]

    async def test_an_epoch_is_told_once_and_numbers_begin_anew(self) -> None:
        events = await self.subscribed("events:board")
        self.registry.register(Registration(name="board", channel="events:board", presence=True))
        self.registry.register(
            Registration(name="log", channel="events:log", presence=True, transport="stream", partitions=2)
        )
        for epoch in ("one", "two"):
            self.patch(RedisBus, "epoch", epoch)
            await self.rooms.begin_epoch()  # these data are of another epoch
            self.redis.call("HSET", "k:gateway:epoch", "epoch", epoch)
            for rooms in (self.rooms, self.other):
                assert await rooms.begin_epoch() > 1_700_000_000_000_000
            await enter(self.rooms, "ann", "board", f"g1.{epoch}")
            await leave(self.rooms, "ann", "board", f"g1.{epoch}", "left")
        await self.bus.settled()
        found = [msgspec.json.decode(event) for event in events]
        kinds = ["gateway:room:reset", "gateway:client:joined", "gateway:client:left"]
        assert [event["eventType"] for event in found] == kinds * 2
        assert [(event["payload"]["epoch"], event["payload"]["number"]) for event in found] == [
            (epoch, number) for epoch in ("one", "two") for number in (1, 2, 3)
        ]
        reset = found[0]
        assert (reset["userId"], reset["socketId"], "roomId" in reset) == ("", "", False)
        with self.redis.client() as client:
            for number in range(2):
                told = [msgspec.json.decode(entry[b"event"]) for _, entry in client.xrange(f"k:events:log:{number}")]
                assert [event["eventType"] for event in told].count("gateway:room:reset") == 2

    async def test_nobody_is_told_anything_before_the_epoch(self) -> None:
        events = await self.subscribed("events:board")
        self.registry.register(Registration(name="board", channel="events:board", presence=True))
        self.patch(RedisBus, "epoch", "one")
        for lose in (["DEL", "k:gateway:epoch"], ["HSET", "k:gateway:epoch", "epoch", "one"]):
            self.redis.call(*lose)
            await enter(self.rooms, "ann", "board", "g1.a")
            await leave(self.rooms, "ann", "board", "g1.a", "left")
        await self.rooms.begin_epoch()
        await enter(self.rooms, "ann", "board", "g1.a")
        await self.bus.settled()
        assert [msgspec.json.decode(event)["payload"] for event in events] == [
            {"epoch": "one", "number": 1},
            {"epoch": "one", "number": 2},
        ]

    async def test_who_has_not_noticed_the_new_epoch_tells_of_it(self) -> None:
        events = await self.subscribed("events:board")
        self.registry.register(Registration(name="board", channel="events:board", presence=True))
        self.redis.call("HSET", "k:gateway:epoch", "epoch", "two", "rooms", "two", "number", "1")
        for epoch, user in (("one", "ann"), (None, "bob"), ("two", "cid")):
            self.patch(RedisBus, "epoch", epoch)
            await enter(self.rooms, user, "board", f"g1.{user}")
        await self.bus.settled()
        told = [msgspec.json.decode(event) for event in events]
        assert [(event["userId"], event["payload"]) for event in told] == [
            ("ann", {"epoch": "two", "number": 2}),
            ("cid", {"epoch": "two", "number": 3}),
        ]

    async def test_one_coming_and_one_going_of_a_user_however_many_sockets(self) -> None:
        events = await self.subscribed("events:board")
        self.registry.register(Registration(name="board", channel="events:board", presence=True))
        await enter(self.rooms, "ann", "board", "g1.a")
        await enter(self.other, "ann", "board", "g2.b")
        await enter(self.rooms, "ann", "board", "g1.c")
        await enter(self.rooms, "ann", "wall", "g1.c")
        for socket, rooms in (("g1.c", self.rooms), ("g1.a", self.rooms), ("g1.a", self.rooms), ("g2.b", self.other)):
            await leave(rooms, "ann", "board", socket, "closed")
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
            await enter(self.rooms, "ann", room, "g1.a")
        await leave(self.rooms, "ann", "r1", "g1.a", "revoked")
        await self.bus.settled()
        expected: list[Any] = [("joined", "ann", room, "g1.a", None) for room in ("r1", "r2", "r3")]
        expected.append(("left", "ann", "r1", "g1.a", "revoked"))
        with self.redis.client() as client:
            log = appended(client, "k:events:log")
            notes = {number: appended(client, f"k:events:notes:{number}") for number in range(4)}
            assert [told(event) for event in heard] == log == expected
            for number, found in notes.items():
                assert found == [event for event in expected if partition_of(event[2], 4) == number]
            for _ in range(60):
                await enter(self.rooms, "ann", "r1", "g1.a")
                await leave(self.rooms, "ann", "r1", "g1.a", "left")
            assert client.xlen("k:events:log") == 100
            assert appended(client, "k:events:log")[:4] == expected

    async def test_who_is_told_may_change_at_any_time(self) -> None:
        events = await self.subscribed("events:board")
        await enter(self.rooms, "ann", "board", "g1.a")
        self.registry.register(Registration(name="board", channel="events:board", presence=True))
        await enter(self.rooms, "bob", "board", "g1.b")
        self.registry.unregister("board")
        await leave(self.rooms, "bob", "board", "g1.b", "left")
        await self.bus.settled()
        assert [told(event)[:2] for event in events] == [("joined", "bob")]

    async def test_the_dead_are_buried_once_and_services_told_once(self) -> None:
        events = await self.subscribed("events:board")
        entries = [(f"user {number}", "board", f"g2.{number}") for number in range(50)]
        for entry in entries:
            await enter(self.other, *entry)
        await enter(self.rooms, "user 7", "board", "g1.back")
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
        await leave(self.rooms, "user 7", "board", "g1.back", "closed")
        assert self.everything() == {}

    async def test_who_was_only_paused_is_not_buried_after_it_is_back(self) -> None:
        events = await self.subscribed("events:board")
        self.registry.register(Registration(name="board", channel="events:board", presence=True))
        entries = [("ann", "board", "g2.a"), ("bob", "board", "g2.b")]
        for entry in entries:
            await enter(self.other, *entry)
        self.redis.call("RENAME", "k:gateway:g2:entries", "k:gateways:lost")
        await self.rooms.bury(entries[:1])
        assert await self.other.mend([(entry, 1) for entry in entries]) == []
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
        for first in range(0, len(entries), ENTRIES_AT_ONCE):
            batch = [(entry, 1) for entry in entries[first : first + ENTRIES_AT_ONCE]]
            assert await self.rooms.mend(batch) == []
        stored = self.stored()
        assert len(stored) == 7 + len(entries)
        assert len(self.everything()["k:gateway:g1:entries"]) == len(entries)
        for user_id, room_id, socket_id in entries:
            assert stored[f"k:room:{room_id}"][user_id] == socket_id
            assert stored[f"k:socket:{user_id}:{room_id}"] == socket_id

    async def test_mending_makes_every_key_of_an_entry_right(self) -> None:
        entries = [(user, "board", f"g1.{user}") for user in ("ann", "bob", "a:b")]
        for number, entry in enumerate(entries):
            await self.rooms.enter(entry, 1000 + number)
        right = self.everything()
        wrong = [
            ["DEL", "k:room:board"],
            ["HSET", "k:room:board", "bob", "g9.gone"],
            ["DEL", "k:socket:bob:board"],
            ["SET", "k:socket:a:b:board", "g9.gone"],
            ["DEL", 'k:sockets:["bob","board"]'],
            ["DEL", "k:gateway:g1:entries"],
            ["SREM", "k:gateway:g1:entries", '["a:b","board","g1.a:b"]'],
        ]
        events = await self.subscribed("events:board")
        self.registry.register(Registration(name="board", channel="events:board", presence=True))
        for change in wrong:
            self.redis.call(*change)
            assert self.everything() != right
            assert await self.rooms.mend([(entry, 1000 + number) for number, entry in enumerate(entries)]) == []
            assert self.everything() == right
        await self.bus.settled()
        assert events == []

    async def test_what_is_right_is_not_written_again(self) -> None:
        entries: list[Entry] = [(user, "board", f"g1.{user}") for user in ("ann", "bob", "a:b")]
        for entry in entries:
            await self.rooms.enter(entry, 1000)
        before = self.changes()
        assert await self.rooms.mend([(entry, 1000) for entry in entries]) == []
        assert self.changes() == before

    def changes(self) -> int:
        with self.redis.client() as client:
            return int(client.info("persistence")["rdb_changes_since_last_save"])

    async def test_what_is_mended_takes_its_place_by_when_it_entered(self) -> None:
        await self.other.enter(("ann", "board", "g2.ann"), 1000)
        mended = await self.rooms.mend([(("ann", "board", "g1.older"), 999), (("bob", "board", "g1.bob"), 5)])
        assert mended == [Mended(("ann", "board", "g1.older"), False, [])]
        assert self.stored()["k:room:board"] == {"ann": "g2.ann", "bob": "g1.bob"}
        newer = ("ann", "board", "g1.newer")
        assert await self.rooms.mend([(newer, 1001)]) == [Mended(newer, True, ["g2.ann", "g1.older"])]
        assert self.stored()["k:socket:ann:board"] == "g1.newer"

    async def test_what_another_system_wrote_stays_when_entries_are_mended(self) -> None:
        await self.rooms.enter(("ann", "board", "g1.a"), 1000)
        self.redis.call("HSET", "k:room:board", "ann", "theirs")
        assert await self.rooms.mend([(("ann", "board", "g1.a"), 1000)]) == []
        assert self.stored()["k:room:board"] == {"ann": "theirs"}

    async def test_what_no_gateway_wrote_is_removed_from_the_own_entries(self) -> None:
        await self.rooms.enter(("ann", "board", "g1.a"), 1000)
        with self.redis.client() as client:
            client.sadd("k:gateway:g1:entries", "text", b"\xff", '["ann", "board", "x"]', "[" * 100_000)
        assert await self.rooms.scan(b"0") == (b"0", [("ann", "board", "g1.a")])
        assert (await self.rooms.count())[0] == 1

    async def test_entries_of_another_type_count_as_absent(self) -> None:
        self.redis.call("SET", "k:gateway:g1:entries", "text")
        await self.rooms.begin_epoch()
        await self.rooms.enter(("ann", "board", "g1.a"), 1000)
        assert (await self.rooms.count())[0] == 1

    async def watched(self) -> tuple[Shown, list[bytes], RedisRooms]:
        """What users of a process show in ``board``, the words on its channel, and the process."""
        words: list[bytes] = []
        await self.bus.follow(shown_key("board"), words.append)
        rooms = self.process("g1", WATCHED)
        return rooms.shown, words, rooms

    async def test_what_a_user_shows_stands_as_long_as_its_socket(self) -> None:
        shown, words, rooms = await self.watched()
        for socket_id, data in (("g1.a", b'"one"'), ("g1.b", b'"two"')):
            shown.show(("ann", "board", socket_id), data)
            await enter(rooms, "ann", "board", socket_id)
        await enter(rooms, "bob", "board", "g1.c")
        key = "k:gateways:presence:board"
        assert self.everything()[key] == {"g1.a": '"one"', "g1.b": '"two"'}
        assert await rooms.here("board", 9, []) == Here(2, {"ann": b'"two"', "bob": b""})
        await leave(rooms, "ann", "board", "g1.b", "left")
        assert await rooms.here("board", 9, []) == Here(2, {"ann": b'"one"', "bob": b""})
        await leave(rooms, "ann", "board", "g1.a", "left")
        await leave(rooms, "bob", "board", "g1.c", "left")
        assert self.everything() == {}
        await until(lambda: len(words) == 6, lambda: f"a word for each change: {words}")

    async def test_what_an_older_gateway_left_goes_with_the_last_user(self) -> None:
        _, _, rooms = await self.watched()
        await enter(rooms, "ann", "board", "g1.a")
        self.redis.call("HSET", "k:gateways:presence:board", "g9.x", "1")
        assert await rooms.here("board", 9, []) == Here(1, {"ann": b""})
        await leave(rooms, "ann", "board", "g1.a", "left")
        assert self.everything() == {}

    async def test_mending_says_a_word_only_where_something_changes(self) -> None:
        shown, words, rooms = await self.watched()
        entry = ("ann", "board", "g1.a")
        shown.show(entry, b"1")
        await rooms.enter(entry, 1000)
        await until(lambda: len(words) == 1, "a word")
        changes = self.changes()
        await rooms.mend([(entry, 1000)])
        await self.bus.settled()
        assert (len(words), self.changes()) == (1, changes)
        for said, data in enumerate((b"2", b"null"), 2):
            shown.show(entry, data)
            await rooms.mend([(entry, 1000)])
            await until(partial(is_said, words, said), "a word")
        assert "k:gateways:presence:board" not in self.everything()
        self.redis.call("DEL", "k:room:board")
        await rooms.mend([(entry, 1000)])
        await until(lambda: len(words) == 4, "a word")

    async def test_the_dead_are_gone_with_what_they_showed_and_others_are_told(self) -> None:
        shown, words, rooms = await self.watched()
        shown.show(("ann", "board", "g1.a"), b"1")
        for user_id, room_id in (("ann", "board"), ("ann", "hall"), ("bob", "board")):
            await enter(rooms, user_id, room_id, "g1.a")
        await self.bus.call("RENAME", [entries_key("g1"), LOST_GATEWAYS])
        await self.process("g2", WATCHED).bury(
            [("ann", "board", "g1.a"), ("ann", "hall", "g1.a"), ("bob", "board", "g1.a")]
        )
        assert self.everything() == {}
        await until(lambda: len(words) == 4, lambda: f"two who came and two who went: {words}")

    async def test_a_room_without_presence_costs_nothing_more(self) -> None:
        _, words, rooms = await self.watched()
        before = self.changes()
        await enter(self.other, "ann", "hall", "g2.a")
        plain = self.changes() - before
        await enter(rooms, "ann", "lobby", "g1.a")
        assert self.changes() - before == 2 * plain
        assert words == []

    async def test_of_a_large_room_some_users_are_told_and_they_stay(self) -> None:
        _, _, rooms = await self.watched()
        self.redis.call("HSET", "k:room:board", *(word for n in range(1000) for word in (f"u{n}", f"g9.{n}")))
        some = await rooms.here("board", 100, [])
        assert (some.count, len(some.users)) == (1000, 100)
        assert await rooms.here("board", 100, list(some.users)) == some
        gone = list(some.users)[:30]
        self.redis.call("HDEL", "k:room:board", *gone)
        other = await rooms.here("board", 100, list(some.users))
        assert (other.count, len(other.users)) == (970, 100)
        assert set(some.users) - set(gone) <= set(other.users)
        assert not set(gone) & set(other.users)

    async def test_nobody_is_taken_for_gone_because_redis_has_lost_its_data_a_moment_ago(self) -> None:
        _, _, rooms = await self.watched()
        await enter(rooms, "ann", "board", "g1.a")
        self.redis.call("FLUSHALL")
        with pytest.raises(NotPublished, match="being written anew"):
            await rooms.here("board", 9, [])

    async def test_any_name_is_a_name(self) -> None:
        user_id, room_id, socket_id = "ё: *[x]", 'доска "1"\r\n', "g1.🙂"
        assert await enter(self.rooms, user_id, room_id, "g1.old") is None
        assert await enter(self.rooms, user_id, room_id, socket_id) == "g1.old"
        assert self.stored() == {
            f"k:room:{room_id}": {user_id: socket_id},
            f"k:socket:{user_id}:{room_id}": socket_id,
        }
        _, entries = await self.rooms.scan(b"0")
        assert sorted(entries) == [(user_id, room_id, "g1.old"), (user_id, room_id, socket_id)]

    async def test_what_redis_refuses_is_said(self) -> None:
        await enter(self.rooms, "ann", "board", "g1.a")
        self.redis.call("CONFIG", "SET", "min-replicas-to-write", "1")
        await self.assertFailure(enter(self.rooms, "bob", "board", "g1.b"), ResponseError)
        await self.assertFailure(leave(self.rooms, "ann", "board", "g1.a", "left"), ResponseError)
        await self.assertFailure(self.rooms.mend([(("ann", "board", "g1.a"), 1)]), ResponseError)

    async def test_a_key_of_another_type_keeps_no_other_entry_from_being_written(self) -> None:
        self.redis.call("SET", "k:room:board", "not a hash")
        bad, good = ("ann", "board", "g1.a"), ("ann", "hall", "g1.a")
        with capturedLogs() as logged:
            assert await enter(self.rooms, *bad) is None
            assert await self.rooms.mend([(bad, 1), (good, 1)]) == []
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
                assert await enter(self.rooms, *entry) is None
            assert await enter(self.other, "bob", "board", "g2.bob") == "g1.bob"
            await leave(self.other, "bob", "board", "g2.bob", "left")
            await leave(self.rooms, *entries[0], "left")
            assert self.stored() == {"k:room:board": {"bob": "g1.bob"}, "k:socket:bob:board": "g1.bob"}
            self.redis.call("DEL", "k:room:board", "k:socket:bob:board")
            self.redis.call("DEL", 'k:sockets:["ann","board"]', 'k:sockets:["bob","board"]')
            again: list[Entry] = [*entries, ("ann", "board", "g1.more")]
            assert await self.rooms.mend([(entry, 1) for entry in again]) == [Mended(again[2], True, ["g1.ann"])]
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
                await enter(self.rooms, "ann", "board", "g1.a")
                await leave(self.rooms, "ann", "board", "g1.a", "left")
            said.append(len(logged))
        assert said == [1, 0, 0, 1]

    async def test_without_redis_nothing_is_written(self) -> None:
        self.redis.kill()
        await until(lambda: not self.bus.available, "the loss of Redis")
        await self.assertFailure(enter(self.rooms, "ann", "board", "g1.a"), NotPublished)
        await self.assertFailure(leave(self.rooms, "ann", "board", "g1.a", "left"), NotPublished)
        await self.assertFailure(self.rooms.mend([(("ann", "board", "g1.a"), 1)]), NotPublished)


# The scripts by themselves, against what they mean


class BlockingBus:
    """As much of a bus as rooms use, answering at once, for tests that have no reactor."""

    epoch = "e1"

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


USERS = st.sampled_from(["ann", "bob", "a", "a:b"])
ROOMS = st.sampled_from(["board", "c", "b:c"])
PROCESSES = st.integers(0, 1)
SOCKETS = st.integers(1, 2)
LOG = Registration(name="log", channel="log", transport="stream", presence=True)


class Cluster:
    """Two processes and a Redis, as they are meant: who is where since when, and what a service hears of it."""

    def __init__(self, client: Any) -> None:
        self.client = client
        bus, registry = cast("IBus", BlockingBus(client)), ServiceRegistry([LOG])
        self.processes = [RedisRooms(bus, registry, f"g{number}", "") for number in range(2)]
        self.named: list[set[Entry]] = [set(), set()]
        self.lost: set[Entry] = set()
        self.sockets: dict[tuple[str, str], dict[str, int]] = {}
        self.events: list[tuple[str, str, str]] = []
        client.hset("gateway:epoch", "epoch", "e1")
        now(self.processes[0].begin_epoch())

    def enter(self, process: int, user: str, room: str, number: int, at: int) -> None:
        entry = user, room, f"g{process}.{number}"
        others = self.sockets.get((user, room), {})
        at = max([at, *(time + 1 for time in others.values())])
        older = [socket for socket in self.newest_first(user, room) if socket != entry[2]]
        assert now(self.processes[process].enter(entry, at)) == (at, older)
        self.stands(process, entry, at)

    def leave(self, process: int, user: str, room: str, number: int) -> None:
        entry = user, room, f"g{process}.{number}"
        self.gone(process, entry)
        now(leave(self.processes[process], *entry, "left"))

    def mend(self, process: int, entries: list[tuple[str, str, int, int]]) -> None:
        expected = []
        for user, room, number, at in entries:
            entry = user, room, f"g{process}.{number}"
            self.stands(process, entry, max(at, self.sockets.get((user, room), {}).get(entry[2], at)))
            newest, *older = self.newest_first(user, room)
            if newest != entry[2] or older:
                expected.append(Mended(entry, newest == entry[2], older if newest == entry[2] else []))
        asked = [((user, room, f"g{process}.{number}"), at) for user, room, number, at in entries]
        assert now(self.processes[process].mend(asked)) == expected

    def die(self, process: int) -> None:
        """Whoever looks finds that it is gone."""
        self.lost |= self.named[process]
        self.named[process].clear()
        self.client.sunionstore(LOST_GATEWAYS, LOST_GATEWAYS, entries_key(f"g{process}"))
        self.client.delete(entries_key(f"g{process}"))

    def bury(self, process: int, number: int) -> None:
        entries = sorted(self.lost)[:number]
        for entry in entries:
            self.gone(process, entry)
        now(self.processes[process].bury(entries))

    def newest_first(self, user: str, room: str) -> list[str]:
        sockets = self.sockets.get((user, room), {})
        return sorted(sockets, key=lambda socket: (sockets[socket], socket), reverse=True)

    def stands(self, process: int, entry: Entry, at: int) -> None:
        user, room, socket = entry
        if (user, room) not in self.sockets:
            self.events.append(("joined", user, room))
        self.sockets.setdefault((user, room), {})[socket] = at
        self.lost.discard(entry)
        self.named[process].add(entry)

    def gone(self, process: int, entry: Entry) -> None:
        user, room, socket = entry
        self.lost.discard(entry)
        self.named[process].discard(entry)
        sockets = self.sockets.get((user, room), {})
        if sockets.pop(socket, None) is not None and not sockets:
            del self.sockets[user, room]
            self.events.append(("left", user, room))

    def check(self) -> None:
        """Redis has all of this, and nothing else."""
        client = self.client
        strings: dict[str, set[str]] = {}
        for (user, room), sockets in self.sockets.items():
            newest = self.newest_first(user, room)[0]
            assert client.hget(f"room:{room}", user) == newest.encode()
            assert client.zrange(f'sockets:["{user}","{room}"]', 0, -1, withscores=True) == sorted(
                ((socket.encode(), at) for socket, at in sockets.items()), key=lambda pair: (pair[1], pair[0])
            )
            strings.setdefault(f"socket:{user}:{room}", set()).add(newest)
        assert {key.decode() for key in client.keys("socket:*")} == set(strings)
        for key, candidates in strings.items():
            assert client.get(key).decode() in candidates
        assert sum(client.hlen(key) for key in client.keys("room:*")) == len(self.sockets)
        assert len(client.keys("sockets:*")) == len(self.sockets)
        for process, entries in enumerate(self.named):
            found = client.smembers(entries_key(f"g{process}"))
            assert {tuple(msgspec.json.decode(entry)) for entry in found} == entries
        told = [msgspec.json.decode(entry[b"event"]) for _, entry in client.xrange("log")]
        assert [event["eventType"] for event in told[:1]] == ["gateway:room:reset"]
        assert [event["payload"]["number"] for event in told] == list(range(1, len(told) + 1))
        assert [event[:3] for event in appended(client, "log")[1:]] == self.events


TIME = st.integers(1, 9)
STEPS: st.SearchStrategy[tuple[Callable[..., None], tuple[Any, ...]]] = (
    st.tuples(st.just(Cluster.enter), st.tuples(PROCESSES, USERS, ROOMS, SOCKETS, TIME))
    | st.tuples(st.just(Cluster.leave), st.tuples(PROCESSES, USERS, ROOMS, SOCKETS))
    | st.tuples(
        st.just(Cluster.mend), st.tuples(PROCESSES, st.lists(st.tuples(USERS, ROOMS, SOCKETS, TIME), max_size=4))
    )
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
