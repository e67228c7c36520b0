"""Events on their way to services, as they stand in a real Redis."""

from __future__ import annotations

import itertools
import json
import struct
import time
from typing import Any, cast

import msgspec
import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase

from kraftek.bus import RedisBus
from kraftek.contract.errors import Code, Limit, NotPublished
from kraftek.contract.interfaces import Undelivered
from kraftek.contract.iteration import Iteration
from kraftek.contract.messages import Envelope
from kraftek.contract.metrics import Counters
from kraftek.contract.names import GATEWAY_STREAM, partition_of
from kraftek.contract.settings import Redis, Registration
from kraftek.core.dispatch import Dispatch, once, target_of
from kraftek.core.registry import ServiceRegistry
from tests.support.redis_server import private_redis
from tests.support.waiting import until

CHAT = Registration(name="chat", channel="events:chat")
JOBS = Registration(name="jobs", channel="events:jobs", transport="stream", max_length=3)
ASK = Registration(name="ask", channel="events:ask", transport="stream", reply=True)
BYTES = Registration(name="bytes", channel="events:bytes", transport="stream", max_bytes=10_000)
ROOMS = Registration(name="rooms", channel="events:rooms", transport="stream", partitions=4)


def envelope(text: str = "", room_id: str | None = "board", socket_id: str = "g.1") -> Envelope:
    payload = msgspec.Raw(msgspec.json.encode(text))
    return Envelope(
        event_type="jobs:job:do",
        user_id="ann",
        socket_id=socket_id,
        timestamp=1,
        gateway_id="g",
        reply_to="events:reply:g",
        payload=payload,
        room_id=room_id,
    )


class DispatchTest(TestCase):
    timeout = 30

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        self.redis = private_redis(self)
        self.bus = RedisBus(reactor, Redis(url=self.redis.url, prefix="k:"), Iteration(reactor), Counters())
        self.bus.startService()
        self.addCleanup(self.bus.stopService)
        self.registry = ServiceRegistry([CHAT, JOBS, ROOMS])
        self.dispatch = Dispatch(self.registry, self.bus)
        self.client = self.redis.client(decode_responses=True)
        self.addCleanup(self.client.close)
        await until(lambda: self.bus.available, "a connection to Redis")

    def send(self, service: Registration, event: Envelope) -> Deferred[int]:
        receipt: Deferred[int] = Deferred()
        self.dispatch.send(service, event, receipt.callback)
        return receipt

    def send_once(self, service: Registration, event: Envelope, record: str = "request:1") -> Deferred[int | bytes]:
        receipt: Deferred[int | bytes] = Deferred()
        script = once(service.transport, service.reply, 60_000, service.max_length, service.max_bytes)
        self.bus.run(script, (target_of(service, event), record, event, receipt.callback))
        return receipt

    def texts(self, stream: str) -> list[str]:
        entries: Any = self.client.xrange(stream)
        return [json.loads(fields["event"])["payload"] for _, fields in entries]

    async def trimmed(self) -> dict[str, int]:
        self.dispatch.sweep()
        await self.bus.call("PING")
        return {name: waiting for name, waiting in self.dispatch.waiting.items() if name != GATEWAY_STREAM}

    async def test_a_channel_says_how_many_listen(self) -> None:
        assert await self.send(CHAT, envelope()) == 0
        with self.client.pubsub() as listener:
            listener.subscribe("k:events:chat")
            assert listener.get_message(timeout=10) is not None, "Redis did not confirm the subscription"
            assert await self.send(CHAT, envelope("hello")) == 1
            message = listener.get_message(timeout=5)
            assert message is not None
            assert json.loads(message["data"])["payload"] == "hello"

    async def test_a_channel_has_no_partitions(self) -> None:
        service = Registration(name="chat", channel="events:chat", partitions=4)
        with self.client.pubsub() as listener:
            listener.subscribe("k:events:chat")
            assert listener.get_message(timeout=10) is not None, "Redis did not confirm the subscription"
            assert await self.send(service, envelope()) == 1
            assert await self.send_once(service, envelope()) == 1

    async def test_a_stream_keeps_what_nobody_reads_yet(self) -> None:
        assert await self.send(JOBS, envelope("one")) == 1
        entries: Any = self.client.xrange("k:events:jobs")
        [(_, fields)] = entries
        assert fields.keys() == {"event"}
        assert json.loads(fields["event"]) == {
            "eventType": "jobs:job:do",
            "userId": "ann",
            "socketId": "g.1",
            "timestamp": 1,
            "gatewayId": "g",
            "replyTo": "events:reply:g",
            "payload": "one",
            "roomId": "board",
        }

    async def test_a_room_has_its_partition(self) -> None:
        for number in range(20):
            await self.send(ROOMS, envelope(str(number), f"room{number % 5}"))
        await self.send(ROOMS, envelope("roomless", None, "g.7"))
        for number in range(20):
            assert str(number) in self.texts(f"k:events:rooms:{partition_of(f'room{number % 5}', 4)}")
        assert "roomless" in self.texts(f"k:events:rooms:{partition_of('g.7', 4)}")
        assert await self.trimmed() == {"jobs": 0, "rooms": 21}

    async def test_a_full_stream_takes_no_more_and_loses_nothing(self) -> None:
        for text in "abc":
            assert await self.send(JOBS, envelope(text)) == 1
        assert await self.send(JOBS, envelope("d")) == Undelivered.FULL
        assert await self.send_once(JOBS, envelope("d")) == Undelivered.FULL
        assert self.client.exists("k:request:1") == 0
        assert self.texts("k:events:jobs") == ["a", "b", "c"]

    async def test_what_is_handled_makes_room(self) -> None:
        self.client.xgroup_create("k:events:jobs", "jobs", "0", mkstream=True)
        for text in "abc":
            await self.send(JOBS, envelope(text))
        read: Any = self.client.xreadgroup("jobs", "one", {"k:events:jobs": ">"}, count=2)
        [[_, entries]] = read
        assert await self.send(JOBS, envelope("d")) == Undelivered.FULL
        self.client.xack("k:events:jobs", "jobs", entries[0][0])
        assert await self.send(JOBS, envelope("d")) == 1
        assert self.texts("k:events:jobs") == ["b", "c", "d"]

    async def test_what_one_of_two_groups_has_not_handled_stays(self) -> None:
        for group in ("jobs", "audit"):
            self.client.xgroup_create("k:events:jobs", group, "0", mkstream=True)
        for text in "abc":
            await self.send(JOBS, envelope(text))
        self.client.xreadgroup("jobs", "one", {"k:events:jobs": ">"}, noack=True)
        assert await self.trimmed() == {"jobs": 3, "rooms": 0}
        self.client.xreadgroup("audit", "one", {"k:events:jobs": ">"}, count=1, noack=True)
        assert await self.trimmed() == {"jobs": 2, "rooms": 0}
        assert self.texts("k:events:jobs") == ["b", "c"]

    async def test_the_sweep_counts_what_waits(self) -> None:
        assert await self.trimmed() == {"jobs": 0, "rooms": 0}
        self.client.xgroup_create("k:events:jobs", "jobs", "0", mkstream=True)
        for text in "ab":
            await self.send(JOBS, envelope(text))
        assert await self.trimmed() == {"jobs": 2, "rooms": 0}
        self.client.xreadgroup("jobs", "one", {"k:events:jobs": ">"}, noack=True)
        assert await self.trimmed() == {"jobs": 0, "rooms": 0}
        assert self.texts("k:events:jobs") == []
        self.registry.unregister("jobs")
        assert await self.trimmed() == {"rooms": 0}

    def level(self, stream: str) -> dict[str, float]:
        """What is known of a stream, as it is kept beside it."""
        kept: Any = self.redis.call("GET", f"k:{stream}:level")
        names = ("ms", "sum", "handled", "length", "measured", "owed")
        return dict(zip(names, struct.unpack("<6d", kept), strict=True))

    async def waits(self, service: Registration = BYTES) -> int:
        """How many bytes wait for it, as the sweep sees it."""
        await self.trimmed()
        return self.dispatch.waiting_bytes[service.name]

    async def test_a_stream_is_full_by_its_bytes(self) -> None:
        self.registry.register(BYTES)
        large = envelope("x" * 3000)
        for _ in range(3):
            assert await self.send(BYTES, large) == 1
        assert await self.send(BYTES, large) == Undelivered.FULL
        assert await self.send_once(BYTES, large) == Undelivered.FULL
        assert await self.send(BYTES, envelope("small")) == 1
        entries: Any = self.client.xrange("k:events:bytes")
        sizes = [len(fields["event"]) + 50 for _, fields in entries]
        assert await self.waits() == sum(sizes)

    async def test_what_is_handled_makes_room_in_bytes(self) -> None:
        self.registry.register(BYTES)
        self.client.xgroup_create("k:events:bytes", "bytes", "0", mkstream=True)
        for _ in range(3):
            await self.send(BYTES, envelope("x" * 3000))
        read: Any = self.client.xreadgroup("bytes", "one", {"k:events:bytes": ">"})
        [[_, entries]] = read
        for (first, fields), (following, _) in itertools.pairwise(entries):
            assert int(following.split("-")[1]) - int(first.split("-")[1]) == len(fields["event"]) + 50
        self.client.xack("k:events:bytes", "bytes", entries[0][0])
        assert await self.send(BYTES, envelope("x" * 3000)) == 1
        assert await self.send(BYTES, envelope("x" * 3000)) == Undelivered.FULL
        assert 9000 < await self.waits() < 10_000
        self.client.xack("k:events:bytes", "bytes", *(entry for entry, _ in entries))
        self.client.xreadgroup("bytes", "one", {"k:events:bytes": ">"}, noack=True)
        assert await self.waits() == 0
        assert self.level("events:bytes") | {"ms": 0, "sum": 0, "handled": 0} == dict.fromkeys(
            ("ms", "sum", "handled", "length", "measured", "owed"), 0
        )

    async def test_one_event_may_always_wait(self) -> None:
        self.registry.register(BYTES)
        assert await self.send(BYTES, envelope("x" * 50_000)) == 1
        assert await self.send(BYTES, envelope("x")) == Undelivered.FULL
        assert await self.waits() > 50_000

    async def test_the_events_of_one_write_fill_it_together(self) -> None:
        self.registry.register(BYTES)
        receipts = [self.send(BYTES, envelope("x" * 3000)) for _ in range(5)]
        assert [await receipt for receipt in receipts] == [1, 1, 1, Undelivered.FULL, Undelivered.FULL]
        assert self.level("events:bytes")["length"] == 3

    async def test_a_group_that_begins_with_the_stream_has_all_of_it_before_it(self) -> None:
        self.registry.register(BYTES)
        await self.send(BYTES, envelope("x" * 3000))
        self.client.xtrim("k:events:bytes", maxlen=0, approximate=False)
        assert await self.waits() == 0
        await self.send(BYTES, envelope("x" * 3000))
        for group, start in (("bytes", "0"), ("audit", "$")):
            self.client.xgroup_create("k:events:bytes", group, start)
            assert 3000 < await self.waits() < 3500

    async def test_a_stream_that_was_deleted_is_empty(self) -> None:
        self.registry.register(BYTES)
        for _ in range(3):
            await self.send(BYTES, envelope("x" * 3000))
        self.client.delete("k:events:bytes")
        assert await self.waits() == 0
        for _ in range(3):
            assert await self.send(BYTES, envelope("x" * 3000)) == 1

    async def test_what_others_append_is_measured(self) -> None:
        self.registry.register(BYTES)
        await self.send(BYTES, envelope("ours"))
        for _ in range(5):
            self.client.xadd("k:events:bytes", {"event": "x" * 3000})
        assert await self.waits() > 15_000
        assert await self.send(BYTES, envelope("ours")) == Undelivered.FULL
        self.client.xgroup_create("k:events:bytes", "bytes", "0")
        self.client.xreadgroup("bytes", "one", {"k:events:bytes": ">"}, count=4, noack=True)
        assert await self.send(BYTES, envelope("ours")) == 1
        assert 6000 < await self.waits() < 8000
        self.client.xreadgroup("bytes", "one", {"k:events:bytes": ">"}, noack=True)
        assert await self.waits() == 0
        assert self.level("events:bytes")["measured"] == 0

    async def test_what_older_gateways_appended_is_measured(self) -> None:
        self.registry.register(BYTES)
        for _ in range(2):
            self.client.xadd("k:events:bytes", {"event": "x" * 3000})
        assert 6000 < await self.waits() < 10_000, "listpacks have some room for more"
        assert await self.send(BYTES, envelope("x" * 3000)) == Undelivered.FULL

    async def test_ids_grow_when_clocks_go_back(self) -> None:
        ahead = 4_102_444_800_000
        for sequence in ("0", str(2**53 + 1)):
            self.client.xadd("k:events:jobs", {"event": '{"payload": "theirs"}'}, id=f"{ahead}-{sequence}")
            assert await self.send(JOBS, envelope("ours")) == 1
            ahead += 1000
            self.client.xtrim("k:events:jobs", maxlen=1, approximate=False)
        entries: Any = self.client.xrange("k:events:jobs")
        assert entries[-1][0].startswith(f"{ahead - 999}-")

    async def test_an_event_that_finds_room_costs_redis_four_commands(self) -> None:
        for _ in range(2):
            await self.send(JOBS, envelope())
        self.client.config_resetstat()
        await self.send(JOBS, envelope())
        used: Any = self.client.info("commandstats")
        calls = {
            name.removeprefix("cmdstat_"): int(stats["calls"]) for name, stats in used.items() if "config" not in name
        }
        assert calls == dict.fromkeys(("evalsha", "get", "xlen", "xadd", "set"), 1)

    async def test_times_in_ids_follow_the_clock(self) -> None:
        await self.send(JOBS, envelope())
        [(first, _)] = cast("Any", self.client.xrange("k:events:jobs"))
        await until(lambda: int(time.time() * 1000) > int(first.split("-")[0]) + 1, "another millisecond")
        self.client.xgroup_create("k:events:jobs", "jobs", "0")
        await self.trimmed()
        await self.send(JOBS, envelope())
        entries: Any = self.client.xrange("k:events:jobs")
        assert int(entries[1][0].split("-")[0]) > int(first.split("-")[0])

    async def test_a_level_that_was_lost_or_is_not_ours_is_made_anew(self) -> None:
        self.registry.register(BYTES)
        for spoil in (["DEL"], ["SET", "x"], ["HSET", "a", "b"], []):
            assert await self.send(BYTES, envelope("x" * 2000)) == 1
            if spoil:
                key = "k:events:bytes:level"
                self.redis.call("DEL", key)
                self.redis.call(spoil[0], key, *spoil[1:])
        assert await self.waits() > 8000
        assert await self.send(BYTES, envelope("x" * 2000)) == Undelivered.FULL

    async def test_ids_beyond_what_numbers_hold_lose_nothing(self) -> None:
        last = 2**64 - 1
        self.client.xgroup_create("k:events:jobs", "jobs", "0", mkstream=True)
        for number in (last - 3, last - 2, last - 1, last):
            self.client.xadd("k:events:jobs", {"event": '{"payload": "theirs"}'}, id=f"5-{number}")
        self.client.xreadgroup("jobs", "one", {"k:events:jobs": ">"}, count=2, noack=True)
        await self.trimmed()
        entries: Any = self.client.xrange("k:events:jobs")
        assert [entry for entry, _ in entries] == [f"5-{number}" for number in (last - 2, last - 1, last)]

    async def test_a_user_who_fills_half_a_stream_waits(self) -> None:
        service = Registration(name="half", channel="events:half", transport="stream", max_length=100)
        self.registry.register(service)
        for _ in range(50):
            assert self.dispatch.refusal(service, envelope()) is None
            assert await self.send(service, envelope()) == 1
        assert self.dispatch.refusal(service, envelope()) is None, "Redis is asked before anybody is refused"
        await self.bus.call("PING")
        refusal = self.dispatch.refusal(service, envelope())
        assert refusal is not None
        assert (refusal.code, refusal.limit, refusal.retry_after) == (Code.RATE_LIMITED, Limit.SHARE, 1.0)
        other = msgspec.structs.replace(envelope(), user_id="bob")
        assert self.dispatch.refusal(service, other) is None
        self.registry.unregister("half")
        self.dispatch.sweep()
        self.registry.register(service)
        assert self.dispatch.refusal(service, envelope()) is None

    async def test_once_is_once(self) -> None:
        assert await self.send_once(JOBS, envelope("a")) == 1
        known = await self.send_once(JOBS, envelope("a"))
        assert known == b'{"type":"ack","payload":{"receivers":1}}'
        assert await self.send_once(JOBS, envelope("a"), "request:2") == 1
        assert self.texts("k:events:jobs") == ["a", "a"]
        assert 0 < int(self.client.pttl("k:request:1")) <= 60_000

    async def test_of_who_replies_there_is_no_receipt(self) -> None:
        asked = self.send_once(ASK, envelope("a"))
        known = await self.send_once(ASK, envelope("a"))
        assert known == b"?g.1"
        assert not asked.called
        assert self.texts("k:events:ask") == ["a"]

    async def test_once_goes_to_the_partition_of_the_room(self) -> None:
        for number in range(20):
            await self.send_once(ROOMS, envelope(str(number), f"room{number % 5}"), f"request:{number}")
        for number in range(20):
            assert str(number) in self.texts(f"k:events:rooms:{partition_of(f'room{number % 5}', 4)}")

    async def test_what_nobody_heard_may_be_sent_again(self) -> None:
        assert await self.send_once(CHAT, envelope()) == 0
        assert await self.send_once(CHAT, envelope()) == 0
        assert self.client.exists("k:request:1") == 0

    async def test_redis_forgets_scripts(self) -> None:
        assert await self.send(JOBS, envelope("a")) == 1
        self.client.script_flush()
        assert await self.send(JOBS, envelope("b")) == 1
        assert self.texts("k:events:jobs") == ["a", "b"]

    async def test_a_key_of_another_kind(self) -> None:
        self.client.set("k:events:jobs", "not a stream")
        assert await self.send(JOBS, envelope("a")) == Undelivered.REFUSED
        assert await self.send_once(JOBS, envelope("a")) == Undelivered.REFUSED
        assert self.client.exists("k:request:1") == 0
        with capturedLogs() as logged:
            await self.trimmed()
            await self.trimmed()
            assert len(logged) == 1
            self.client.delete("k:events:jobs")
            await self.trimmed()
            self.client.set("k:events:jobs", "not a stream again")
            await self.trimmed()
        assert len(logged) == 2

    async def test_redis_is_away(self) -> None:
        await self.bus.stopService()
        await deferLater(reactor, 0)  # this runs within the service's own state machine until then
        with pytest.raises(NotPublished):
            self.dispatch.send(JOBS, envelope(), lambda _: None)
        self.dispatch.sweep()
        assert self.dispatch.waiting == {}
