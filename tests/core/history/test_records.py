"""What is kept of sockets whose clients may come back, in a real Redis."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from kraftek.bus import RedisBus
from kraftek.contract.interfaces import ISocketRecords, SocketRecord
from kraftek.contract.iteration import Iteration
from kraftek.contract.metrics import Counters
from kraftek.contract.names import kept_socket_key
from kraftek.contract.settings import Redis
from kraftek.core.history.records import RENEWED, SocketRecords
from tests.support.fakes import FakeBus, FakeRecords
from tests.support.redis_server import private_redis
from tests.support.waiting import until

RECORD = SocketRecord(
    user_id="ann",
    sid="g1.a",
    sockets=("g1.a",),
    rooms=(("board-é", "e1", 7),),
    room_id="board-é",
    floor="0123456789ab.7",
)
KEY = "k:" + kept_socket_key("pid")


def test_what_redis_answers_is_read() -> None:
    bus = FakeBus()
    records: Any = SocketRecords(bus, 120.0)
    asked = [records.find("pid") for _ in range(4)]
    assert records.keep("pid", "g1.a", "g1.a", RECORD) is not None
    before, owner, state, lasts = bus.calls[-1].args
    assert (before, owner, lasts) == ("g1.a", "g1.a", 180_000)
    for answer in ([b"g1.a", state], [None, None], [b"g1.a", b"{}"], [b"g1.a", None]):
        bus.calls.pop(0).reply.callback(answer)
    assert [each.result for each in asked] == [("g1.a", RECORD), None, None, None]
    bus.calls.pop(0)
    ends = [records.end("pid", "g1.a", returns=returns) for returns in (True, False)]
    assert [call.args for call in bus.calls] == [(120_000, "g1.a"), (0, "g1.a")]
    renewed = records.renew([("pid", "g1.a"), ("other", "g1.b")])
    assert bus.calls[-1].args == (180_000, "g1.a", "g1.b")
    replies: list[Any] = [[[], []], [[], []], [[0], [1]]]
    for reply in replies:
        bus.calls.pop(0).reply.callback(reply)
    assert [each.result for each in (*ends, renewed)] == [None, None, ([0], [1])]


class SocketRecordsTest(TestCase):
    timeout = 30

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        self.redis = private_redis(self)
        self.client: Any = self.redis.client(decode_responses=True)
        self.addCleanup(self.client.close)
        self.bus = RedisBus(reactor, Redis(url=self.redis.url, prefix="k:"), Iteration(reactor), Counters())
        self.bus.startService()
        self.addCleanup(self.bus.stopService)
        await until(lambda: self.bus.available, "a connection to Redis")
        self.records: Any = SocketRecords(self.bus, 100.0)

    def lives(self, low: float, high: float) -> bool:
        return bool(low * 1000 < self.client.pttl(KEY) <= high * 1000)

    async def test_it_belongs_to_one_socket_at_a_time(self) -> None:
        verifyObject(ISocketRecords, self.records)
        assert await self.records.find("pid") is None
        assert not await self.records.keep("pid", "g1.a", "g2.b", RECORD)  # there is nothing to take over
        assert await self.records.keep("pid", "g1.a", "g1.a", RECORD)
        assert await self.records.find("pid") == ("g1.a", RECORD)
        assert self.lives(100 + RENEWED - 10, 100 + RENEWED)
        assert not await self.records.keep("pid", "g3.c", "g2.b", RECORD)
        assert await self.records.keep("pid", "g1.a", "g2.b", RECORD)
        assert not await self.records.keep("pid", "g1.a", "g1.a", RECORD)
        assert not await self.records.keep("pid", "g1.a", "g3.c", RECORD)
        assert (await self.records.find("pid"))[0] == "g2.b"

    async def test_it_is_renewed_and_ends_by_whom_it_belongs_to(self) -> None:
        await self.records.keep("pid", "g1.a", "g1.a", RECORD)
        self.client.pexpire(KEY, 5000)
        assert await self.records.renew([("gone", "g1.z"), ("pid", "g1.a")]) == ([0], [])
        assert self.lives(100 + RENEWED - 10, 100 + RENEWED)
        assert await self.records.renew([("pid", "g2.b")]) == ([], [0])
        for returns in (True, False):
            await self.records.end("pid", "g2.b", returns=returns)
        assert self.lives(100 + RENEWED - 10, 100 + RENEWED)
        await self.records.end("pid", "g1.a", returns=True)
        assert self.lives(90, 100)
        await self.records.end("pid", "g1.a", returns=False)
        assert not self.client.exists(KEY)


class FakeRecordsTest(SocketRecordsTest):
    """The stand-in promises the same."""

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        self.records = FakeRecords()

    def lives(self, low: float, high: float) -> bool:
        return True

    async def test_it_is_renewed_and_ends_by_whom_it_belongs_to(self) -> None:
        await self.records.keep("pid", "g1.a", "g1.a", RECORD)
        assert await self.records.renew([("gone", "g1.z"), ("pid", "g1.a")]) == ([0], [])
        assert await self.records.renew([("pid", "g2.b")]) == ([], [0])
        await self.records.end("pid", "g2.b", returns=False)
        assert await self.records.find("pid") is not None
        await self.records.end("pid", "g1.a", returns=False)
        assert await self.records.find("pid") is None
