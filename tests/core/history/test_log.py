"""The history of rooms in a real Redis, as gateways read it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.internet import reactor
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from kraftek.bus import RedisBus
from kraftek.contract.errors import NotPublished
from kraftek.contract.history import APPEND, FUNCTION, TELL
from kraftek.contract.interfaces import ITopicLogs, Missed, Page, Recovered
from kraftek.contract.iteration import Iteration
from kraftek.contract.metrics import Counters
from kraftek.contract.names import (
    GATEWAY_LEASES,
    HISTORY_FOLLOWING,
    HISTORY_RULES,
    history_log_key,
    history_position_key,
    room_topic,
)
from kraftek.contract.order import number_in
from kraftek.contract.settings import Redis, RoomPolicy
from kraftek.core.history.log import FOLLOWED, TopicLogs
from kraftek.core.history.rules import Rules
from tests.support.fakes import FakeBus
from tests.support.ports import free_port
from tests.support.redis_server import PrivateRedis, oldest_redis_server, private_redis
from tests.support.waiting import until

BOARDS = RoomPolicy(pattern="board-*", history=3, history_bytes=1000)
LOG = "k:" + history_log_key("room:")


def on_fake_bus() -> tuple[FakeBus, TopicLogs]:
    bus = FakeBus()
    return bus, TopicLogs(bus, Rules([BOARDS]), "g1")


def test_what_redis_answers_is_read() -> None:
    bus, logs = on_fake_bus()
    asked = [logs.read("room:board-1", "e1", 1, 1000) for _ in range(3)]
    assert [(call.keys, call.args) for call in bus.calls] == [
        ((HISTORY_RULES, history_position_key("room:board-1")), ("e1", 1, 1000))
    ] * 3
    for answer in ([b"e1", 2, None, b"2", b"{}"], [b"e2", 2, b"epoch"], None):
        bus.calls.pop(0).reply.callback(answer)
    assert [each.result for each in asked] == [Missed("e1", 2, None, [(2, b"{}")]), Missed("e2", 2, "epoch", []), None]
    order, recovered = logs.order(), [logs.recover("0123456789ab.7", [("room:a", "e1", 2)], 9) for _ in range(2)]
    assert bus.calls[1].args == ("0123456789ab", "7", 9, "e1", 2)
    for reply in (b"0123456789ab.8", [b"o", None, [b"e", 3], [[0, 3, 8, b"{}"]]], [b"o", b"epoch"]):
        bus.calls.pop(0).reply.callback(reply)
    assert order.result == "0123456789ab.8"
    found = [Recovered("o", None, [("e", 3)], [(0, 3, 8, b"{}")]), Recovered("o", "epoch")]
    assert [each.result for each in recovered] == found
    compared = logs.compare([("room:board-1", "e1", 2), ("room:board-2", "e1", 3)])
    assert bus.calls[0].args == ("e1", 2, "e1", 3)
    bus.calls[0].reply.callback([1])
    assert compared.result == [("room:board-2", "e1", 3)]


def test_what_redis_answers_is_a_page() -> None:
    bus, logs = on_fake_bus()
    asked = [logs.page("room:board-1", "e1", 7, 50, 1000) for _ in range(3)]
    assert bus.calls[0].args == ("e1", 7, 50, 1000)
    for answer in ([b"e1", 6, 1, b"6", b"{}"], [b"e2"], None):
        bus.calls.pop(0).reply.callback(answer)
    assert [each.result for each in asked] == [Page("e1", 6, True, [(6, b"{}")]), Page("e2", None), None]


def test_only_who_starts_writes_the_rules() -> None:
    bus, logs = on_fake_bus()
    with capturedLogs() as events:
        for answer in (logs._rules.text.encode(), b"[]", b"[]", logs._rules.text.encode(), b"[]"):
            following = logs.follow()
            bus.calls[-1].reply.callback(answer)
            assert following.result is (answer != b"[]")
    assert [call.args[-1] for call in bus.calls] == ["1", "", "", "", ""]
    assert len(events) == 2


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (Exception("ERR Library 'kraftek_tell_v1' already exists"), 0),
        (Exception("ERR unknown command `FUNCTION`, with args beginning with: `LOAD`"), 0),
        (NotPublished("away"), 0),
        (Exception("NOPERM this user has no permissions to run the 'function|load' command"), 1),
    ],
)
def test_a_function_that_redis_does_not_take_is_logged_once(error: Exception, lines: int) -> None:
    bus, logs = on_fake_bus()
    with capturedLogs() as events:
        for _ in range(2):
            logs.offer()
            bus.calls.pop().reply.errback(error)
    assert len(events) == lines


class TopicLogsTest(TestCase):
    timeout = 30
    binary: str | None = None

    async def setUp(self) -> None:  # type: ignore[override]  # trial waits for it
        await self.use(private_redis(self, self.binary))

    async def use(self, server: PrivateRedis) -> None:
        self.client: Any = server.client(decode_responses=True)
        self.addCleanup(self.client.close)
        self.bus = await self.connected(server)
        self.client.zadd("k:" + GATEWAY_LEASES, {"g1": 2**40, "g2": 2**40})
        self.logs = self.gateway("g1", BOARDS)
        assert await self.logs.follow()

    async def connected(self, server: PrivateRedis) -> RedisBus:
        bus = RedisBus(reactor, Redis(url=server.url, prefix="k:"), Iteration(reactor), Counters())
        bus.startService()
        self.addCleanup(bus.stopService)
        await until(lambda: bus.available, "a connection to Redis")
        return bus

    def gateway(self, gateway_id: str, *policies: RoomPolicy) -> TopicLogs:
        return TopicLogs(self.bus, Rules(policies), gateway_id)

    def following(self) -> set[str]:
        return set(self.client.zrange("k:" + HISTORY_FOLLOWING, 0, -1))

    def tell(self, text: str, room_id: str = "board-1") -> str:
        body = json.dumps({"type": "x", "payload": text})
        self.client.eval(TELL.source, 0, room_id, body, "", "k:", "events:broadcast")
        return body

    async def missed(self, epoch: str, offset: int, most: int = 1000, room_id: str = "board-1") -> Missed:
        missed = await self.logs.read(room_topic(room_id), epoch, offset, most)
        assert missed is not None
        return missed

    async def epoch(self, room_id: str = "board-1") -> str:
        return (await self.missed("", 0, room_id=room_id)).epoch

    async def test_keeps_its_interface(self) -> None:
        verifyObject(ITopicLogs, self.logs)

    async def test_a_room_in_which_nothing_was_told_has_a_position(self) -> None:
        epoch = await self.epoch()
        assert await self.missed(epoch, 0) == Missed(epoch, 0, None, [])
        self.tell("a")
        assert (await self.missed(epoch, 1)).offset == 1

    async def test_what_was_told_after_a_position(self) -> None:
        epoch = await self.epoch()
        bodies = [(number, self.tell(text).encode()) for number, text in enumerate("abc", 1)]
        for offset in range(4):
            assert await self.missed(epoch, offset) == Missed(epoch, 3, None, bodies[offset:])

    async def test_why_it_cannot_be_had(self) -> None:
        epoch = await self.epoch()
        size = max(len(self.tell(text)) for text in "abcd")
        for its, offset, most, reason in (
            ("another", 4, 1000, "epoch"),
            (epoch, 5, 1000, "epoch"),
            (epoch, 0, 1000, "too_many"),
            (epoch, 1, 3 * size - 1, "too_many"),
        ):
            assert await self.missed(its, offset, most) == Missed(epoch, 4, reason, [])
        assert (await self.missed(epoch, 1, 3 * size)).reason is None
        self.client.xdel(LOG + "board-1", self.client.xrange(LOG + "board-1")[1][0])
        assert (await self.missed(epoch, 1)).reason == "expired"
        self.client.delete(LOG + "board-1")
        assert (await self.missed(epoch, 1)).reason == "expired"
        assert (await self.missed(epoch, 4)).reason is None
        self.client.set(LOG + "board-1", "x")
        assert (await self.missed(epoch, 1)).reason == "expired"

    async def test_an_ancestor_is_continued_up_to_its_end(self) -> None:
        before = await self.epoch()
        self.tell("a")
        self.client.hset("k:" + history_position_key("room:board-1"), "life", f"{self.generation()}:another")
        self.tell("b")
        self.client.hset("k:" + history_position_key("room:board-1"), "life", f"{self.generation()}:yet another")
        epoch = await self.epoch()
        assert epoch != before
        assert len((await self.missed(before, 0)).messages) == 2
        assert len((await self.missed(before, 1)).messages) == 1
        assert (await self.missed(before, 2)).reason == "epoch"
        assert (await self.missed(epoch, 2)).reason is None

    async def test_a_fail_over_and_back_is_another_epoch_where_nothing_was_told_meanwhile(self) -> None:
        one, other = self.server_with_port(), self.server_with_port()
        client = other.client(decode_responses=True)
        self.addCleanup(client.close)
        await self.use(one)
        epoch = await self.epoch()
        self.tell("a")
        client.replicaof("127.0.0.1", one.port)
        await until(lambda: self.offset_on(client) == "1", "the replica has it")
        client.replicaof("NO", "ONE")
        self.tell("lost")
        bus = await self.connected(other)
        assert await TopicLogs(bus, Rules([BOARDS]), "g1").follow()
        self.client.replicaof("127.0.0.1", other.port)
        await until(lambda: self.offset_on(self.client) == "1", "the other one's data")
        self.client.replicaof("NO", "ONE")
        bodies = [(number, self.tell(text).encode()) for number, text in enumerate("bcd", 2)]
        await until(lambda: self.bus.available, "the first one")
        assert (await self.missed(epoch, 2)).reason == "epoch"
        missed = await self.missed(epoch, 1)
        assert (missed.epoch == epoch, missed.reason, missed.messages) == (False, None, bodies)

    def server_with_port(self) -> PrivateRedis:
        server = PrivateRedis(self.binary)
        self.addCleanup(server.close)
        server.port = str(free_port())
        server.start("--port", server.port, "--repl-diskless-sync-delay", "0")
        return server

    def offset_on(self, client: Any) -> Any:
        return client.hget("k:" + history_position_key("room:board-1"), "offset")

    def generation(self) -> str:
        return str(self.client.hget("k:" + HISTORY_RULES, "generation"))

    async def test_a_room_without_history(self) -> None:
        assert await self.logs.read("room:lobby", "", 0, 1000) is None
        assert not self.client.exists("k:" + history_position_key("room:lobby"))

    async def page(self, epoch: str = "", before: int = 0, limit: int = 50, most: int = 1000) -> Page:
        page = await self.logs.page("room:board-1", epoch, before, limit, most)
        assert page is not None
        return page

    async def test_older_messages_page_by_page(self) -> None:
        epoch = await self.epoch()
        assert await self.page() == Page(epoch, 1, False, [])
        bodies = [(number, self.tell(text).encode()) for number, text in enumerate("abc", 1)]
        assert await self.page() == Page(epoch, 1, False, bodies)
        assert await self.page(limit=2) == Page(epoch, 2, True, bodies[1:])
        assert await self.page(epoch, 2, limit=2) == Page(epoch, 1, False, bodies[:1])
        assert await self.page(epoch, 1) == Page(epoch, 1, False, [])
        self.tell("d")  # three are kept
        assert await self.page(epoch, 3) == Page(epoch, 2, False, bodies[1:2])
        assert await self.page(epoch, 2) == Page(epoch, 2, False, [])
        size = len(bodies[0][1])
        assert await self.page(most=2 * size) == await self.page(limit=2)
        assert await self.page(most=2 * size - 1) == await self.page(most=1) == await self.page(limit=1)
        self.client.pexpire("k:" + history_position_key("room:board-1"), 5000)
        await self.page()
        assert self.client.pttl("k:" + history_position_key("room:board-1")) > 600_000
        self.client.delete(LOG + "board-1")
        assert await self.page() == Page(epoch, 5, False, [])
        self.client.set(LOG + "board-1", "x")
        assert await self.page() == Page(epoch, 5, False, [])

    async def test_a_text_of_which_redis_has_lost_some_is_lost(self) -> None:
        order, one = await self.logs.order(), ("board-1", await self.epoch(), 0)
        assert order is not None
        args = ("board-1", "x", "key", "piece", "first", "", "k:", "k:events:broadcast")
        self.client.eval(APPEND.source, 0, *args)
        self.tell("b")
        epoch = await self.epoch()
        assert (await self.missed(epoch, 0)).reason is None
        assert (await self.recover(order, one)).reason is None
        assert len((await self.page()).messages) == 2
        self.client.delete("k:gateways:history:texts:room:board-1")
        assert (await self.missed(epoch, 0)).reason == "expired"
        assert (await self.recover(order, one)).reason == "expired"
        page = await self.page()
        assert ([offset for offset, _ in page.messages], page.first, page.more) == ([2], 2, False)

    async def test_a_page_before_a_position_of_another_epoch(self) -> None:
        before = await self.epoch()
        self.tell("a")
        self.client.hset("k:" + history_position_key("room:board-1"), "life", f"{self.generation()}:another")
        self.tell("b")
        epoch = await self.epoch()
        assert await self.page(before, 2) == await self.page(epoch, 2)
        for its, offset in ((before, 3), (epoch, 4), ("another", 1)):
            assert await self.page(its, offset) == Page(epoch, None)
        assert len((await self.page(epoch, 3)).messages) == 2
        assert await self.logs.page("room:lobby", "", 0, 50, 1000) is None

    async def test_those_that_are_elsewhere(self) -> None:
        epochs = {room_id: await self.epoch(room_id) for room_id in ("board-1", "board-2", "board-3")}
        for room_id in ("board-1", "board-3"):
            self.tell("a", room_id)
        same = ("room:board-3", epochs["board-3"], 1)
        behind = ("room:board-1", epochs["board-1"], 0)
        renamed = ("room:board-2", "another", 0)
        unknown = ("room:lobby", "another", 0)
        assert await self.logs.compare([same, behind, renamed, unknown]) == [behind, renamed, unknown]
        self.client.pexpire("k:" + history_position_key("room:board-3"), 5000)
        assert await self.logs.compare([same]) == []
        assert self.client.pttl("k:" + history_position_key("room:board-3")) > 600_000

    async def recover(self, word: str, *entered: tuple[str, str, int], most: int = 10_000) -> Recovered:
        its = [(room_topic(room_id), epoch, offset) for room_id, epoch, offset in entered]
        return await self.logs.recover(word, its, most)

    async def test_all_that_rooms_are_told_is_in_one_order(self) -> None:
        start = await self.logs.order()
        assert start is not None
        assert number_in(start) == 0
        one, two = [("board-1", await self.epoch(), 0), ("board-2", await self.epoch("board-2"), 0)]
        bodies = [self.tell(text, f"board-{room}").encode() for text, room in (("a", 1), ("b", 2), ("c", 1), ("d", 3))]
        end = await self.logs.order()
        assert end == f"{start[:13]}4"
        recovered = await self.recover(start, one, two)
        assert (recovered.order, recovered.reason) == (end, None)
        assert recovered.positions == [(one[1], 2), (two[1], 1)]
        found = sorted(recovered.messages, key=lambda each: each[2])
        assert found == [(0, 1, 1, bodies[0]), (1, 1, 2, bodies[1]), (0, 2, 3, bodies[2])]
        for number, its in ((1, [(1, 1, 2), (0, 2, 3)]), (2, [(0, 2, 3)]), (3, []), (4, [])):
            recovered = await self.recover(f"{start[:13]}{number}", one, two)
            assert sorted((each[:3] for each in recovered.messages), key=lambda each: each[2]) == its
        recovered = await self.recover(start, ("board-1", one[1], 1))
        assert [each[:3] for each in recovered.messages] == [(0, 2, 3)]  # of before it was entered it gets nothing

    async def test_what_cannot_be_recovered(self) -> None:
        start = await self.logs.order()
        assert start is not None
        one = ("board-1", await self.epoch(), 0)
        size = len(self.tell("a"))
        assert (await self.recover(f"{start[:13]}2", one)).reason == "epoch"
        assert (await self.recover("ffffffffffff.0", one)).reason == "epoch"
        assert (await self.recover(start, ("board-1", "another", 0))).reason == "epoch"
        assert (await self.recover(start, ("board-1", one[1], 2))).reason == "epoch"
        assert (await self.recover(start, ("lobby", one[1], 0))).reason == "epoch"
        assert (await self.recover(start, one, most=size - 1)).reason == "too_many"
        assert (await self.recover(start, one, most=size)).reason is None
        for text in "bc":
            self.tell(text)
        assert len((await self.recover(start, one)).messages) == 3
        self.tell("d")  # three are kept
        assert (await self.recover(start, one)).reason == "too_many"
        assert (await self.recover(f"{start[:13]}1", one)).reason == "too_many"  # nothing shows that these are all
        assert len((await self.recover(f"{start[:13]}2", one)).messages) == 2
        self.client.delete(LOG + "board-1")
        assert (await self.recover(f"{start[:13]}3", one)).reason == "expired"
        assert (await self.recover(f"{start[:13]}4", one)).reason is None
        self.client.set(LOG + "board-1", "x")
        assert (await self.recover(f"{start[:13]}3", one)).reason == "expired"
        self.client.delete("k:" + HISTORY_RULES)
        assert await self.logs.order() is None
        assert (await self.recover(start, one)).reason == "epoch"

    async def test_the_order_goes_on_in_another_process_up_to_where_it_was(self) -> None:
        start = await self.logs.order()
        assert start is not None
        one = ("board-1", await self.epoch(), 0)
        self.tell("a")
        self.client.hset("k:" + HISTORY_RULES, "life", f"{self.generation()}:another")
        self.tell("b")
        now = await self.logs.order()
        assert now is not None
        assert now[:12] != start[:12]
        assert number_in(now) == 2
        assert len((await self.recover(start, one)).messages) == 2
        assert len((await self.recover(f"{start[:13]}1", one)).messages) == 1
        assert (await self.recover(f"{start[:13]}2", one)).reason == "epoch"  # that one is lost
        assert (await self.recover(now, one)).messages == []

    async def test_with_other_rules_the_order_begins_anew(self) -> None:
        start = await self.logs.order()
        self.tell("a")
        assert await self.gateway("g2", RoomPolicy(pattern="*", history=1)).follow()
        now = await self.logs.order()
        assert start is not None
        assert now is not None
        assert (number_in(now), now[:12] == start[:12]) == (0, False)

    async def test_a_hundred_that_were_missed_are_read_in_parts(self) -> None:
        assert await self.gateway("g2", RoomPolicy(pattern="*", history=500)).follow()
        start = await self.logs.order()
        assert start is not None
        one = ("board-1", await self.epoch(), 0)
        for number in range(250):
            self.tell(str(number))
        recovered = await self.recover(f"{start[:13]}20", one, most=100_000)
        assert [offset for _, offset, _, _ in recovered.messages] == list(range(250, 20, -1))

    async def test_the_position_is_lost_and_found_so(self) -> None:
        epoch = await self.epoch()
        self.tell("a")
        self.client.delete("k:" + history_position_key("room:board-1"))
        assert await self.logs.compare([("room:board-1", epoch, 1)]) == [("room:board-1", epoch, 1)]
        missed = await self.missed(epoch, 1)
        assert (missed.offset, missed.reason) == (0, "epoch")

    async def test_the_rules_stand_while_somebody_has_them(self) -> None:
        generation = self.generation()
        assert 0 < self.client.ttl("k:" + HISTORY_RULES) <= 60
        assert self.following() == {"g1"}
        assert await self.gateway("g2", BOARDS).follow()
        assert await self.logs.follow()
        assert self.generation() == generation
        assert self.following() == {"g1", "g2"}
        self.client.delete("k:" + HISTORY_RULES)
        assert await self.logs.follow()
        assert self.generation() != generation

    async def test_who_starts_writes_other_rules_and_who_has_older_ones_follows_them_no_more(self) -> None:
        generation = self.generation()
        with capturedLogs() as events:
            assert await self.gateway("g2", RoomPolicy(pattern="*", history=1)).follow()
            assert self.following() == {"g2"}
            assert not await self.logs.follow()
            assert not await self.logs.follow()
        assert self.generation() != generation
        assert self.following() == {"g2"}
        lines = [formatEvent(event) for event in events if event["log_level"] is LogLevel.warn]
        assert len(lines) == 1
        assert "[rooms] is another one" in str(lines[0])

    async def test_who_is_gone_does_not_follow(self) -> None:
        seconds, _ = self.client.time()
        assert seconds < self.client.zscore("k:" + HISTORY_FOLLOWING, "g1") <= seconds + 1 + FOLLOWED
        assert 0 < self.client.pttl("k:" + HISTORY_FOLLOWING) <= FOLLOWED * 1000
        self.client.zadd("k:" + HISTORY_FOLLOWING, {"gone": seconds - 1, "before the clock was set back": 2**40})
        await self.gateway("g2", BOARDS).follow()
        assert self.following() == {"g1", "g2"}
        await self.logs.unfollow()
        assert self.following() == {"g2"}

    async def test_who_follows_has_a_lease(self) -> None:
        g3 = self.gateway("g3", BOARDS)
        assert await g3.follow()
        assert self.following() == {"g1"}
        self.client.zadd("k:" + GATEWAY_LEASES, {"g3": 2**40})
        assert await g3.follow()
        assert self.following() == {"g1", "g3"}

    async def test_the_function_is_there_where_redis_has_functions(self) -> None:
        with capturedLogs() as events:
            await self.logs.offer()
            await self.logs.offer()
        assert [event for event in events if event["log_level"] is LogLevel.error] == []
        if self.binary is None:
            body = json.dumps({"type": "x", "payload": "a"})
            assert self.client.execute_command("FCALL", FUNCTION, 0, "board-1", body, "", "k:")[1] == 1


if oldest := oldest_redis_server():

    class OldestTopicLogsTest(TopicLogsTest):
        """The same with the oldest Redis that is supported."""

        binary = oldest
