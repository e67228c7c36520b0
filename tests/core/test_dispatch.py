"""Events on their way to services, as they stand in a real Redis."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs
from twisted.trial.unittest import TestCase

from kraftek.bus import RedisBus
from kraftek.contract.errors import NotPublished
from kraftek.contract.interfaces import Undelivered
from kraftek.contract.iteration import Iteration
from kraftek.contract.messages import Envelope
from kraftek.contract.metrics import Counters
from kraftek.contract.names import partition_of
from kraftek.contract.settings import Redis, Registration
from kraftek.core.dispatch import Dispatch, once, target_of
from kraftek.core.registry import ServiceRegistry
from tests.support.redis_server import private_redis
from tests.support.waiting import until

CHAT = Registration(name="chat", channel="events:chat")
JOBS = Registration(name="jobs", channel="events:jobs", transport="stream", max_length=3)
ASK = Registration(name="ask", channel="events:ask", transport="stream", reply=True)
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
        script = once(service.transport, service.reply, 60_000, service.max_length)
        self.bus.run(script, (target_of(service, event), record, event, receipt.callback))
        return receipt

    def texts(self, stream: str) -> list[str]:
        entries: Any = self.client.xrange(stream)
        return [json.loads(fields["event"])["payload"] for _, fields in entries]

    async def trimmed(self) -> dict[str, int]:
        self.dispatch.sweep()
        await self.bus.call("PING")
        return self.dispatch.waiting

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
