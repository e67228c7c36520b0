"""Answers that come in parts: what their clients are told, also when they come back on another gateway."""

from __future__ import annotations

import json
from typing import Any

import pytest
from twisted.logger import capturedLogs
from twisted.python.failure import Failure

from kraftek.contract.messages import PARTS_KEPT, REQUEST_KNOWN, Place
from kraftek.contract.names import REQUEST_PROGRESS, parts_key
from kraftek.contract.settings import Limits, Registration
from kraftek.core.answer_budget import PARTS
from kraftek.core.request_progress import AT_ONCE, LINGER, READ_PARTS, counted
from kraftek.core.session import Session
from kraftek.service.progress import PROGRESS
from tests.core.test_requests import reply
from tests.support.fakes import Call
from tests.support.request_gateways import RequestsTestCase, ask, told
from tests.support.waiting import until
from tests.support.world import Client, House

ASK = {"type": "chat:bot:ask", "id": "q", "progress": True}


def part(client: Client, number: int, payload: Any, run: str = "x", words: dict[str, Any] | None = None) -> None:
    """The service sends a part of the answer."""
    body = {"run": run, "number": number, "payload": payload}
    message = {"type": REQUEST_PROGRESS, "recipients": [client.id], "inReplyTo": "q", "payload": body}
    client.house.broadcast(**(message | (words or {})))


def heard(number: int, payload: Any, run: str = "x") -> dict[str, Any]:
    return {"type": "progress", "id": "q", "payload": payload, "run": run, "number": number}


def test_parts_and_then_the_answer() -> None:
    house = House()
    client = house.admit()
    client.send(ASK)
    assert house.bus.published[0].event["progress"] is True
    part(client, 1, "a")
    part(client, 2, {"größe": 1})
    part(client, 2, "again")
    reply(client, "q", "all")
    part(client, 3, "late")
    reply(client, "q", "all")
    assert client.link.read() == [heard(1, "a"), heard(2, {"größe": 1}), {"type": "r", "id": "q", "payload": "all"}]
    house.pass_time(1)
    assert len(house.requests) == len(house.requests.progress) == 0


def test_who_does_not_ask_for_parts_gets_none() -> None:
    house = House()
    client = house.admit()
    client.send({**ASK, "progress": False})
    assert "progress" not in house.bus.published[0].event
    part(client, 1, "a")
    assert client.link.read() == []


def test_a_handler_that_is_called_again_begins_anew() -> None:
    house = House()
    client = house.admit()
    client.send(ASK)
    part(client, 1, "a")
    part(client, 2, "b")
    part(client, 1, "A", run="y")
    part(client, 2, "B", run="y")
    assert client.link.read() == [heard(1, "a"), heard(2, "b"), heard(1, "A", "y"), heard(2, "B", "y")]


@pytest.mark.parametrize("body", [None, {"run": "x"}, {"run": 1, "number": 1}, {"run": "x", "number": "1"}])
def test_malformed_parts_are_counted(body: Any) -> None:
    house = House()
    client = house.admit()
    client.send(ASK)
    part(client, 1, "a", words={"payload": body})
    assert house.counters.broadcasts_malformed == 1
    assert client.link.read() == []


@pytest.mark.parametrize("words", [{"recipients": None}, {"recipients": ["gw.unknown"]}, {"inReplyTo": "other"}])
def test_parts_for_nobody_are_dropped(words: dict[str, Any]) -> None:
    house = House()
    client = house.admit()
    client.send(ASK)
    part(client, 1, "a", words=words)
    assert client.link.read() == []
    assert house.counters.broadcasts_malformed == 0


def test_each_part_gives_the_request_its_time_anew_for_an_hour() -> None:
    house = House(services=[Registration(name="chat", channel="events:chat", reply=True, timeout=1000.0)])
    client = house.admit()
    client.send(ASK)
    client.send({"type": "chat:bot:ask", "id": "plain"})
    for number, seconds in enumerate((900, 900, 900, 800, 900), 1):
        house.clock.advance(seconds)
        part(client, number, number)
        house.requests.sweep()
    told = client.link.read()
    assert [each["payload"]["code"] for each in told if each["id"] == "plain"] == ["TIMEOUT"]
    assert [each["number"] for each in told if each["id"] == "q"] == [1, 2, 3, 4, 5]
    house.clock.advance(99)  # it has waited for longer than an hour: the fifth gave it no time
    house.requests.sweep()
    assert client.link.read() == []
    house.clock.advance(2)
    house.requests.sweep()
    assert [each["payload"]["code"] for each in client.link.read()] == ["TIMEOUT"]


def reads(house: House) -> list[Call]:
    """What Redis was asked for parts."""
    return [call for call in house.bus.calls if call.command is READ_PARTS]


def entries(*numbers: int) -> list[Any]:
    """What Redis has of the run ``x``, or of another one."""
    return [b"x", [(b"%d-9" % number, [b"run", b"x", b"part", b"%d" % number]) for number in numbers]]


def test_a_part_that_is_missing_is_read_and_what_comes_meanwhile() -> None:
    house = House()
    client = house.admit()
    client.send(ASK)
    part(client, 1, 1)
    part(client, 3, 3)
    (read,) = reads(house)
    assert (read.keys, read.args) == ((parts_key(client.id, "q"),), ("x", 1, AT_ONCE))
    part(client, 4, 4)
    read.reply.callback(entries(2, 3))
    house.requests.sweep()
    (_, again) = reads(house)
    assert again.args == ("x", 3, AT_ONCE)
    again.reply.callback(entries(4))
    part(client, 5, 5)
    assert client.link.read() == [heard(number, number) for number in range(1, 6)]


ANSWER = {"type": "r", "id": "q", "payload": "all"}


def missing_one(house: House) -> tuple[Client, Call]:
    """The client lacks the second part, which is being read."""
    client = house.admit()
    client.send(ASK)
    part(client, 1, 1)
    part(client, 3, 3)
    (read,) = reads(house)
    return client, read


def test_after_an_outage_parts_are_read_before_the_answer_is_told() -> None:
    house = House()
    client = house.admit()
    client.send(ASK)
    house.bus.answer(1)
    house.bus.down()
    house.requests.sweep()
    house.bus.up()
    reply(client, "q", "all")
    (read,) = reads(house)
    house.requests.sweep()
    assert client.link.read() == []
    read.reply.callback(entries(1, 2))
    assert client.link.read() == [heard(1, 1), heard(2, 2), ANSWER]
    house.pass_time(1)
    assert len(house.requests) == len(house.requests.progress) == 0


def test_an_answer_waits_for_parts_that_came_while_others_were_read() -> None:
    house = House()
    client, read = missing_one(house)
    part(client, 4, 4)
    reply(client, "q", "all")
    read.reply.callback(entries(2, 3))
    (_, again) = reads(house)
    assert again.args == ("x", 3, AT_ONCE)
    again.reply.callback(entries(4))
    assert client.link.read() == [*(heard(number, number) for number in range(1, 5)), ANSWER]
    assert len(reads(house)) == 2


def test_but_not_for_ever() -> None:
    house = House()
    client, read = missing_one(house)
    reply(client, "q", "all")
    with capturedLogs():
        read.reply.errback(Failure(ValueError("no")))
    assert client.link.read() == [heard(1, 1), ANSWER]


def test_who_is_over_its_budget_gets_the_last_parts_with_the_answer() -> None:
    house = House(limits=Limits(bytes_per_user=200, burst=1.0))
    client, read = missing_one(house)
    read.reply.callback([b"x", [(b"2-9", [b"run", b"x", b"part", b'"%b"' % (b"y" * 1000)])]])
    part(client, 4, 4)
    reply(client, "q", "all")
    (_, again) = reads(house)
    again.reply.callback(entries(3, 4))
    assert client.link.read()[2:] == [heard(3, 3), heard(4, 4), ANSWER]


def test_many_are_read_some_at_a_time() -> None:
    """5,000 parts of a byte are in the 256 KiB that are kept."""
    house = House()
    client = house.admit()
    client.send(ASK)
    part(client, 1, 1)
    part(client, 3, 3)
    reads(house)[0].reply.callback(entries(*range(2, AT_ONCE + 2)))
    assert [each["number"] for each in client.link.read()] == [*range(1, AT_ONCE + 2)]
    (_, again) = reads(house)
    assert again.args == ("x", AT_ONCE + 1, AT_ONCE)
    again.reply.callback(entries(AT_ONCE + 2))
    assert len(reads(house)) == 2


def test_what_is_read_counts_for_the_user_and_who_is_over_its_budget_waits() -> None:
    house = House(limits=Limits(bytes_per_user=200, burst=1.0))
    client = house.admit()
    client.send(ASK)
    part(client, 1, 1)
    part(client, 3, 3)
    (read,) = reads(house)
    read.reply.callback([b"x", [(b"2-9", [b"run", b"x", b"part", b'"%b"' % (b"y" * 1000)])]])
    assert client.session.budgets.overdrawn("user", "") > 0
    part(client, 9, 9)
    house.requests.sweep()
    assert len(reads(house)) == 1
    house.clock.advance(8)
    house.requests.sweep()
    assert len(reads(house)) == 2


# What Redis keeps of them.


def commands(house: House, name: str) -> list[Any]:
    """The keys and arguments of these."""
    return [(call.keys, call.args) for call in house.bus.calls if call.command == name]


def test_they_are_counted_until_redis_has_removed_them() -> None:
    house = House()
    client, budget = house.admit(), house.requests.budget
    key = parts_key(client.id, "q")
    client.send(ASK)
    before = budget.used
    part(client, 1, "a")
    part(client, 2, "bc")
    assert budget.parts == budget.used - before == PARTS + counted(3) + counted(4)
    part(client, 1, "a", run="y")
    assert budget.parts == PARTS + counted(3), "those of the other run are gone"
    house.requests.sweep()
    assert commands(house, "PEXPIRE") == []
    reply(client, "q", "all")
    house.requests.sweep()
    assert commands(house, "PEXPIRE") == [((key,), (5000,))]
    assert budget.parts == PARTS + counted(3), "Redis has them still"
    house.clock.advance(LINGER)
    house.requests.sweep()
    assert (budget.parts, budget.used) == (0, before)


def test_of_one_answer_no_more_is_counted_than_is_kept() -> None:
    house = House()
    client, budget = house.admit(), house.requests.budget
    client.send(ASK)
    for number in range(1, 10):
        part(client, number, "x" * (PARTS_KEPT // 4))
    assert budget.parts == PARTS + counted(PARTS_KEPT)
    part(client, 10, "x" * (2 * PARTS_KEPT))
    assert budget.parts == PARTS + counted(2 * PARTS_KEPT + 2)


def test_beyond_the_budget_only_the_last_one_is_kept() -> None:
    house = House(limits=Limits(answer_bytes=88_000))
    client, budget = house.admit(), house.requests.budget
    client.send(ASK)
    part(client, 1, "x" * 4000)
    assert commands(house, "XTRIM") == []
    part(client, 2, "y" * 4000)
    assert commands(house, "XTRIM") == [((parts_key(client.id, "q"),), ("MAXLEN", 1))]
    assert budget.parts == PARTS + counted(4002)
    part(client, 3, "z")
    assert house.counters.parts_trimmed == 1
    assert [each["number"] for each in client.link.read()] == [1, 2, 3], "it hears all of them"


def test_who_has_lost_its_socket_finds_the_parts() -> None:
    """It asks again, over whichever gateway, and reads them there; also those that come meanwhile."""
    house = House()
    client = house.admit()
    client.send(ASK)
    part(client, 1, "a")
    client.leave()
    part(client, 2, "b")
    house.requests.sweep()
    assert commands(house, "PEXPIRE") == commands(house, "DEL") == []
    reply(client, "q", "all")
    house.requests.sweep()
    assert commands(house, "PEXPIRE") == commands(house, "DEL") == [], "the answer is for who asks next"
    house.clock.advance(LINGER)
    house.requests.sweep()
    assert house.requests.budget.parts == PARTS + counted(3) + counted(3), "and Redis has them"
    house.clock.advance(REQUEST_KNOWN - LINGER)
    house.requests.sweep()
    assert house.requests.budget.parts == 0


def test_an_id_that_is_in_use_again_keeps_its_parts() -> None:
    house = House()
    client = house.admit()
    client.send(ASK)
    part(client, 1, "a")
    reply(client, "q", "all")
    client.send(ASK)
    part(client, 1, "a", run="y")
    house.requests.sweep()
    assert commands(house, "PEXPIRE") == []
    assert house.requests.budget.parts == PARTS + counted(3)


def test_what_redis_refuses_is_told_and_what_it_has_lost_is_not_missed() -> None:
    house = House()
    client = house.admit()
    client.send(ASK)
    part(client, 1, 1)
    part(client, 3, 3)
    with capturedLogs() as logged:
        reads(house)[0].reply.errback(Failure(ValueError("no")))
    assert "failed" in logged[0]["log_format"]
    part(client, 4, 4)
    reads(house)[1].reply.callback([])
    assert [each["number"] for each in client.link.read()] == [1]
    assert house.bus.epoch == "e1"
    house.requests.progress.epoch_changed()


def test_for_a_client_that_is_gone_nothing_is_read_or_sent() -> None:
    house = House()
    client = house.admit()
    client.send(ASK)
    client.link.read()
    client.leave()
    part(client, 1, 1)
    part(client, 3, 3)
    assert client.link.read() == []
    assert reads(house) == []


def test_where_the_gateway_answers_there_are_no_parts() -> None:
    house = House()
    client = house.admit()
    client.send({"type": "notes:note:create", "id": "q", "progress": True})
    part(client, 1, "a")
    assert client.link.read() == []
    assert len(house.requests.progress) == 0


def test_what_a_client_has_heard_is_well_formed() -> None:
    client = House().admit()
    client.play("""
        > {"type": "chat:bot:ask", "id": 1, "progress": {"run": "x"}}
        x INVALID_MESSAGE Object missing required field `number` - at `$.progress` {"id": 1}
        > {"type": "chat:bot:ask", "id": 1, "progress": 3}
        x INVALID_MESSAGE Expected `bool | object`, got `int` - at `$.progress` {"id": 1}
    """)


class PartsInRedis(RequestsTestCase):
    """As the SDKs send them."""

    def asks(self, session: Session, progress: bool | Place = True, *, resent: bool = False) -> None:
        """As the core does it."""
        ask(session, resent=resent)
        gateway = self.one if session.socket_id.startswith("one") else self.two
        gateway.requests.progress.begin(session, "q", progress)

    def sends(self, number: int, payload: Any, run: str = "x", over: int = 1) -> int:
        """The service sends a part of the answer to the first client's request, which nobody may hear."""
        part = json.dumps(payload)
        args = (run, number, part, "{}", "nobody", PARTS_KEPT, round(1000 * REQUEST_KNOWN), over)
        return int(self.client.eval(PROGRESS.source, 1, f"k:{parts_key('one.1', 'q')}", *args))

    async def come_back(self, progress: bool | Place) -> Session:
        """The client asked through the first gateway, and comes back to the second."""
        self.asks(self.one.connect("1"))
        await until(lambda: self.client.xlen("k:events:chat") == 1, "the event")
        second = self.two.connect("2")
        self.asks(second, progress, resent=True)
        await until(lambda: len(self.two.requests.look_ups.waiting) == 1, "the duplicate")
        return second

    async def hears(self, session: Session, *numbers: int) -> list[Any]:
        """What it is told in all, until it has had so many parts."""
        found: list[Any] = []

        def all_of_them() -> bool:
            self.two.requests.sweep()
            found.extend(told(session))
            return len(found) >= len(numbers)

        await until(all_of_them, "parts")
        assert [each["number"] for each in found] == [*numbers]
        return found

    async def test_who_comes_back_hears_the_parts_from_where_it_was(self) -> None:
        for number in (1, 2, 3):
            self.sends(number, f"part {number}")
        second = await self.come_back(Place("x", 2))
        assert (await self.hears(second, 3))[0]["payload"] == "part 3"
        self.sends(4, "part 4")
        self.sends(5, "part 5")
        await self.hears(second, 4, 5)
        self.sends(1, "part 1", run="y")
        assert (await self.hears(second, 1))[0]["run"] == "y"

    async def test_whoever_comes_back_after_the_answer_hears_the_last_parts_before_it(self) -> None:
        """Also over the gateway that has answered it, and once."""
        first = self.one.connect("1")
        self.asks(first)
        await until(lambda: self.client.xlen("k:events:chat") == 1, "the event")
        for number in (1, 2, 3):
            self.sends(number, number)
        self.one.closed(first)
        self.answer(self.one, "one.1", "all")
        self.one.requests.sweep()
        for gateway in (self.one, self.two):
            again = gateway.connect("2")
            self.asks(again, Place("x", 1), resent=True)
            found: list[Any] = []

            def has_it(again: Session = again, found: list[Any] = found) -> bool:
                found.extend(told(again))
                return any(each.get("payload") == "all" for each in found)

            await until(has_it, "the answer")
            assert [each.get("number") for each in found] == [2, 3, None]

    async def test_or_from_the_first_if_it_has_had_none_or_of_another_run(self) -> None:
        for number in (1, 2, 3):
            self.sends(number, number, run="y")
        second = await self.come_back(Place("x", 2))
        await self.hears(second, 1, 2, 3)

    async def test_a_record_lives_as_long_as_parts_come(self) -> None:
        second = await self.come_back(True)
        (record,) = [key for key in self.client.keys("k:request:*") if "parts" not in key]
        self.client.pexpire(record, 60_000)
        self.two.clock.advance(9.0)
        self.sends(1, 1)
        await self.hears(second, 1)
        assert self.client.pttl(record) <= 60_000
        self.two.clock.advance(9.0)
        self.sends(2, 2)
        await self.hears(second, 2)
        await until(lambda: self.client.pttl(record) > 100_000, "a longer life")

    async def test_parts_that_were_missed_are_read(self) -> None:
        """A gateway that was cut off hears a later one, or that Redis is back."""
        first = self.one.connect("1")
        self.asks(first)
        for number in (1, 2, 3):
            self.sends(number, number)
        self.one.requests.progress.bus_up()
        found: list[Any] = []

        def all_of_them() -> bool:
            self.one.requests.sweep()
            found.extend(told(first))
            return len(found) == 3

        await until(all_of_them, "parts")
        assert [each["number"] for each in found] == [1, 2, 3]

    async def test_only_the_last_parts_are_kept_and_not_for_ever(self) -> None:
        key = f"k:{parts_key('one.1', 'q')}"
        large = "x" * (PARTS_KEPT // 4)
        for number in range(1, 10):
            self.sends(number, large)
        assert self.client.xlen(key) == 3, "with what Redis needs besides"
        assert 0 < self.client.pttl(key) <= 1000 * REQUEST_KNOWN
        self.sends(10, "x" * (2 * PARTS_KEPT))
        assert self.client.xlen(key) == 1
        assert self.client.eval(READ_PARTS.source, 1, key, "x", 9, AT_ONCE)[1][0][0].startswith("10-")

    async def test_of_two_instances_one_sends_parts(self) -> None:
        assert self.sends(1, "a", "x", 0) == 1
        assert self.sends(1, "b", "y", 0) == 0
        assert self.sends(2, "c", "x", 0) == 1
        assert self.client.xlen(f"k:{parts_key('one.1', 'q')}") == 2
        assert self.sends(1, "b", "y", 1) == 1
        assert self.client.xlen(f"k:{parts_key('one.1', 'q')}") == 1


def test_an_upgrade_takes_along_where_the_parts_are() -> None:
    house = House()
    client = house.admit()
    client.send(ASK)
    part(client, 1, "a")
    client.link.read()
    (state,) = house.requests.moving.give().waiting
    assert state.parts is not None
    assert (state.parts.run, state.parts.number) == ("x", 1)
    assert house.requests.moving.give().kept == house.requests.budget.used - house.requests.budget.parts
    (request,) = house.requests._waiting[client.id].values()
    progress = house.requests.progress
    kept = house.requests.budget.parts
    house.requests.budget.part("user", -kept)
    progress.restore(request, None)
    progress.restore(request, state.parts)
    assert house.requests.budget.parts == kept > 0
    part(client, 2, "b")
    assert client.link.read() == [heard(2, "b")]
    reply(client, "q", "all")
    reads(house)[-1].reply.callback([])
    assert client.link.read() == [ANSWER]
    house.requests.sweep()
    assert commands(house, "PEXPIRE") == [((parts_key(client.id, "q"),), (5000,))]
